//! Where to connect: a libpq connection string, or a row of `powa_servers`, with libpq's defaults filled in.
//!
//! A parsed [`ConnInfo`] cannot be wrong in form. It holds the password and therefore shows itself only as
//! [`ConnInfo::describe`].

use std::env;
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use tokio_postgres::config::{Host, SslMode};

/// A text that must never be seen: passwords, and connection strings, which may hold one.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself. Only what talks to a server needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Where libpq, as Debian builds it, looks for a local server's socket; upstream's own place second.
const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// What is wrong with a connection string. Never repeats the string: it may hold a password.
#[derive(Debug, thiserror::Error)]
pub enum ConnInfoError {
    #[error("the connection string is not valid: {0}")]
    Invalid(String),
    #[error("the port {0} is not between 1 and 65535")]
    Port(i32),
}

/// A server to connect to.
#[derive(Clone)]
pub struct ConnInfo {
    config: tokio_postgres::Config,
}

impl fmt::Debug for ConnInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

impl ConnInfo {
    /// Reads a URI (`postgresql://…`) or a keyword/value string.
    ///
    /// # Errors
    /// When the string is not one, or names an option that is not supported.
    pub fn parse(dsn: &Secret) -> Result<Self, ConnInfoError> {
        let config: tokio_postgres::Config =
            dsn.reveal().parse().map_err(|error| ConnInfoError::Invalid(causes(&error)))?;
        Ok(Self::with_defaults(config))
    }

    /// The server of a `powa_servers` row.
    ///
    /// # Errors
    /// When the port is not one: the column is a plain integer.
    pub fn from_parts(
        host: &str,
        port: i32,
        user: &str,
        password: Option<&Secret>,
        dbname: &str,
    ) -> Result<Self, ConnInfoError> {
        let port = u16::try_from(port).ok().filter(|port| *port != 0).ok_or(ConnInfoError::Port(port))?;
        let mut config = tokio_postgres::Config::new();
        if !host.is_empty() {
            config.host(host);
        }
        config.port(port).user(user).dbname(dbname);
        if let Some(password) = password {
            config.password(password.reveal());
        }
        Ok(Self::with_defaults(config))
    }

    fn with_defaults(config: tokio_postgres::Config) -> Self {
        Self::with_environment(config, |name| env::var(name).ok().filter(|value| !value.is_empty()))
    }

    /// Fills in what a connection string leaves open: from libpq's environment variables, and then with its
    /// defaults. User and database default to the operating system's user in tokio-postgres.
    fn with_environment(
        mut config: tokio_postgres::Config,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Self {
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            let hosts = variable("PGHOST").unwrap_or_else(|| {
                let found = SOCKET_DIRECTORIES.into_iter().find(|directory| Path::new(directory).is_dir());
                found.unwrap_or(SOCKET_DIRECTORIES[0]).to_owned()
            });
            for host in hosts.split(',') {
                config.host(host);
            }
        }
        if config.get_ports().is_empty() {
            let ports = variable("PGPORT").unwrap_or_default();
            for port in ports.split(',').filter_map(|port| port.parse().ok()) {
                config.port(port);
            }
        }
        if let (None, Some(user)) = (config.get_user(), variable("PGUSER")) {
            config.user(user);
        }
        if let (None, Some(dbname)) = (config.get_dbname(), variable("PGDATABASE")) {
            config.dbname(dbname);
        }
        if let (None, Some(password)) = (config.get_password(), variable("PGPASSWORD")) {
            config.password(password);
        }
        Self { config }
    }

    /// The same server, another database.
    pub fn with_database(&self, dbname: &str) -> Self {
        let mut config = self.config.clone();
        config.dbname(dbname);
        Self { config }
    }

    /// The database's name, where it is given.
    pub fn database(&self) -> Option<&str> {
        self.config.get_dbname()
    }

    /// The role's name, where it is given.
    pub fn user(&self) -> Option<&str> {
        self.config.get_user()
    }

    pub(super) fn config(&self) -> &tokio_postgres::Config {
        &self.config
    }

    pub(super) fn ssl_mode(&self) -> SslMode {
        let tcp = |host: &Host| matches!(host, Host::Tcp(_));
        // libpq never tries TLS on a Unix socket, whatever `sslmode` says.
        if self.config.get_hostaddrs().is_empty() && !self.config.get_hosts().iter().any(tcp) {
            return SslMode::Disable;
        }
        self.config.get_ssl_mode()
    }

    /// `user@host:port/database`, for people: without the password.
    pub fn describe(&self) -> String {
        let hosts = self.config.get_hosts();
        let addresses = self.config.get_hostaddrs();
        let ports = self.config.get_ports();
        let places: Vec<String> = (0..hosts.len().max(addresses.len()))
            .map(|at| {
                let host = match hosts.get(at) {
                    Some(Host::Tcp(host)) => host.clone(),
                    Some(Host::Unix(path)) => path.display().to_string(),
                    None => addresses[at].to_string(),
                };
                let port = ports.get(at).or(ports.first()).copied().unwrap_or(5432);
                format!("{host}:{port}")
            })
            .collect();
        let user = self.config.get_user().map(|user| format!("{user}@")).unwrap_or_default();
        let database = self.config.get_dbname().map(|name| format!("/{name}")).unwrap_or_default();
        format!("{user}{}{database}", places.join(","))
    }
}

/// An error with its causes, in one line. Of what a server says, the message: its details may show rows.
pub fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = next {
        if let Some(told) = cause.downcast_ref::<tokio_postgres::error::DbError>() {
            parts.retain(|part| part != "db error");
            parts.push(one_line(told.message()));
            break;
        }
        let part = one_line(&cause.to_string());
        if !parts.last().is_some_and(|last| last.ends_with(&part)) {
            parts.push(part);
        }
        next = cause.source();
    }
    parts.join(": ")
}

/// A text from outside as it may stand in a line of the log: what would break the line or steer a terminal is
/// written as an escape.
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for word in text.split_ascii_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        for c in word.chars() {
            if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_without_host_means_the_local_socket() {
        let conninfo = ConnInfo::parse(&Secret::new("postgresql:///powa")).unwrap();
        assert!(matches!(&conninfo.config.get_hosts()[0], Host::Unix(path) if SOCKET_DIRECTORIES
            .iter()
            .any(|directory| path.as_path() == Path::new(directory))));
        assert_eq!(conninfo.config.get_dbname(), Some("powa"));
        assert_eq!(conninfo.ssl_mode(), SslMode::Disable);
    }

    #[test]
    fn the_environment_fills_in_what_the_string_leaves_open() {
        let variable = |name: &str| match name {
            "PGHOST" => Some("h1,/socket".to_owned()),
            "PGPORT" => Some("1,2".to_owned()),
            "PGUSER" | "PGDATABASE" | "PGPASSWORD" => Some(name.to_lowercase()),
            _ => None,
        };
        let empty = ConnInfo::with_environment("".parse().unwrap(), variable);
        assert_eq!(empty.describe(), "pguser@h1:1,/socket:2/pgdatabase");
        assert_eq!(empty.config.get_password(), Some(&b"pgpassword"[..]));
        let full = "host=a port=3 user=u dbname=d password=p".parse().unwrap();
        let full = ConnInfo::with_environment(full, variable);
        assert_eq!(full.describe(), "u@a:3/d");
        assert_eq!(full.config.get_password(), Some(&b"p"[..]));
    }

    #[test]
    fn keyword_value_strings_are_read() {
        let conninfo = ConnInfo::parse(&Secret::new(
            r"host=a,b port=1,2 user=u password='p w\'d' dbname=d sslmode=require",
        ))
        .unwrap();
        assert_eq!(conninfo.describe(), "u@a:1,b:2/d");
        assert_eq!(conninfo.ssl_mode(), SslMode::Require);
        assert_eq!(conninfo.config.get_password(), Some(&b"p w'd"[..]));
    }

    #[test]
    fn nothing_that_can_be_printed_holds_the_password() {
        let dsn = Secret::new("postgresql://u:hunter2@h/d?nonsense=hunter2");
        let error = ConnInfo::parse(&dsn).unwrap_err();
        assert!(!format!("{error} {error:?} {dsn:?}").contains("hunter2"));
        let conninfo = ConnInfo::from_parts("h", 5432, "u", Some(&Secret::new("hunter2")), "d").unwrap();
        assert!(!format!("{conninfo:?} {}", conninfo.describe()).contains("hunter2"));
    }

    #[test]
    fn texts_from_outside_stay_in_their_line() {
        assert_eq!(one_line("a\n  b\u{1b}[31m\0"), r"a b\u{1b}[31m\u{0}");
        let inner = std::io::Error::other("inner\nline");
        assert_eq!(causes(&inner), "inner line");
    }

    #[test]
    fn a_port_that_is_none_is_refused() {
        for port in [-1, 0, 65536] {
            assert!(ConnInfo::from_parts("h", port, "u", None, "d").is_err());
        }
    }
}
