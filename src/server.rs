//! A monitored server: a row of `powa_servers`.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use tokio_postgres::{Client, Error, Row};

use crate::postgres::conninfo::{ConnInfoError, Given};
use crate::postgres::extension::in_schema;
use crate::postgres::secret::Secret;

/// `powa_servers.id`. 0 is the repository itself and never collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerId(pub i32);

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A server to collect, as it is registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    pub id: ServerId,
    /// A host name, an address, or the directory of a socket.
    pub hostname: String,
    pub port: i32,
    pub username: String,
    pub password: Option<Secret>,
    pub dbname: String,
    /// From the beginning of one snapshot to the beginning of the next; zero: it is switched off.
    pub frequency: Duration,
    pub alias: Option<String>,
    /// Whether it has its row in `powa_snapshot_metas`, without which no snapshot can be stored.
    pub is_registered: bool,
}

impl Server {
    /// The name that logs and sessions carry.
    pub fn name(&self, use_alias: bool) -> String {
        match &self.alias {
            Some(alias) if use_alias => alias.clone(),
            _ => address(&self.hostname, self.port),
        }
    }

    /// What the row says of how to connect.
    ///
    /// # Errors
    /// When the port is not one: the column is a plain integer.
    pub fn given(&self) -> Result<Given, ConnInfoError> {
        let port = u16::try_from(self.port).ok().filter(|port| *port != 0);
        let port = port.ok_or(ConnInfoError::Port(self.port))?.to_string();
        let mut given = Given::default();
        let row =
            [("host", &self.hostname), ("port", &port), ("user", &self.username), ("dbname", &self.dbname)];
        for (name, value) in row {
            given.options.set(name, value)?;
        }
        if let Some(password) = &self.password {
            given.options.set("password", password.reveal())?;
        }
        Ok(given)
    }

    /// What `new` has otherwise, in words; a password only as the fact that it changed.
    pub fn differences(&self, new: &Self) -> Vec<String> {
        fn changed<T: PartialEq + fmt::Debug>(what: &str, old: &T, new: &T) -> Option<String> {
            (old != new).then(|| format!("{what} {old:?} becomes {new:?}"))
        }
        [
            changed("hostname", &self.hostname, &new.hostname),
            changed("port", &self.port, &new.port),
            changed("username", &self.username, &new.username),
            (self.password != new.password).then(|| "password changes".to_owned()),
            changed("dbname", &self.dbname, &new.dbname),
            changed("frequency", &self.frequency, &new.frequency),
            changed("alias", &self.alias, &new.alias),
            changed("registered", &self.is_registered, &new.is_registered),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// The servers of a repository.
#[derive(Debug, Default)]
pub struct Servers {
    /// Those that are to be collected, by id.
    pub collected: Vec<Server>,
    /// All, those that are switched off too.
    pub registered: BTreeSet<ServerId>,
}

/// Reads the servers.
///
/// # Errors
/// Those of the connection, and a missing grant on `powa_servers`.
pub async fn list(client: &Client, schema: &str) -> Result<Servers, Error> {
    let statement = in_schema(include_str!("../sql/repository/servers.sql"), schema);
    let mut servers = Servers::default();
    for row in client.query(&statement, &[]).await? {
        let server = of_row(&row);
        servers.registered.insert(server.id);
        if !server.frequency.is_zero() {
            servers.collected.push(server);
        }
    }
    Ok(servers)
}

/// Reads one server, whether it is switched on or off.
///
/// # Errors
/// As [`list`].
pub async fn one(client: &Client, schema: &str, id: ServerId) -> Result<Option<Server>, Error> {
    let statement = in_schema(include_str!("../sql/repository/server.sql"), schema);
    Ok(client.query_opt(&statement, &[&id.0]).await?.as_ref().map(of_row))
}

fn of_row(row: &Row) -> Server {
    let password: Option<String> = row.get("password");
    Server {
        id: ServerId(row.get("id")),
        hostname: row.get("hostname"),
        port: row.get("port"),
        username: row.get("username"),
        password: password.map(Secret::new),
        dbname: row.get("dbname"),
        frequency: period(row.get("frequency")),
        alias: row.get("alias"),
        is_registered: row.get("is_registered"),
    }
}

/// The period that `powa_servers.frequency` stands for: −1 is for a server that is switched off.
pub fn period(frequency: i32) -> Duration {
    Duration::from_secs(u64::try_from(frequency).unwrap_or(0))
}

/// What a server is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    pub id: ServerId,
    pub alias: Option<String>,
    /// `host:port`.
    pub address: String,
}

/// What the servers are called, those that are switched off too.
///
/// # Errors
/// As [`list`].
pub async fn names(client: &Client, schema: &str) -> Result<Vec<Name>, Error> {
    let statement = in_schema(include_str!("../sql/repository/server_names.sql"), schema);
    let rows = client.query(&statement, &[]).await?;
    let name = |row: &Row| Name {
        id: ServerId(row.get("id")),
        alias: row.get("alias"),
        address: address(row.get("hostname"), row.get("port")),
    };
    Ok(rows.iter().map(name).collect())
}

/// How a server is called that has no other name.
pub fn address(hostname: &str, port: i32) -> String {
    format!("{hostname}:{port}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> Server {
        Server {
            id: ServerId(1),
            hostname: "db1".into(),
            port: 5432,
            username: "powa".into(),
            password: Some(Secret::new("hunter2")),
            dbname: "powa".into(),
            frequency: Duration::from_secs(300),
            alias: Some("main".into()),
            is_registered: true,
        }
    }

    #[test]
    fn the_alias_names_a_server_only_when_asked_and_present() {
        let mut server = server();
        assert_eq!(server.name(false), "db1:5432");
        assert_eq!(server.name(true), "main");
        server.alias = None;
        assert_eq!(server.name(true), "db1:5432");
    }

    #[test]
    fn a_port_that_is_none_is_refused() {
        for port in [-1, 0, 65536] {
            assert!(matches!(Server { port, ..server() }.given(), Err(ConnInfoError::Port(_))));
        }
    }

    #[test]
    fn a_changed_password_is_told_without_showing_it() {
        let old = server();
        let mut new = server();
        new.password = Some(Secret::new("hunter3"));
        new.frequency = Duration::from_secs(60);
        let text = old.differences(&new).join("; ");
        assert_eq!(text, "password changes; frequency 300s becomes 60s");
        assert!(!format!("{old:?}").contains("hunter2"));
        assert_ne!(old.given().unwrap(), new.given().unwrap());
        assert!(!format!("{:?}", old.given()).contains("hunter2"));
        assert!(old.differences(&server()).is_empty());
    }
}
