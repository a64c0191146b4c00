//! `servers list`.

use std::collections::BTreeMap;

use serde::Serialize;
use tokio_postgres::Row;

use super::ServersError;
use super::administration::Administration;
use crate::client::print;
use crate::client::table::laid_out;
use crate::config::Configuration;
use crate::postgres::extension::PowaVersion;
use crate::postgres::text::one_line;
use crate::server;

const COLUMNS: [&str; 9] =
    ["ID", "ALIAS", "SERVER", "DATABASE", "ROLE", "PASSWORD", "EVERY", "POSTGRESQL", "POWA"];
/// The columns of numbers, which end at the same place.
const NUMBERS: [usize; 2] = [0, 6];

/// A server as it is registered, but for its password.
#[derive(Debug, Clone, Serialize)]
struct Registration {
    srvid: i32,
    alias: Option<String>,
    /// `host:port`.
    server: String,
    hostname: String,
    port: i32,
    dbname: String,
    username: String,
    has_password: bool,
    /// Seconds; −1: switched off.
    frequency: i32,
    retention: String,
    postgresql_version: Option<String>,
    /// PoWA 5 does not write it down.
    powa_version: Option<String>,
}

pub async fn list(configuration: &Configuration, json: bool) -> Result<bool, ServersError> {
    let administration = Administration::open(configuration).await?;
    let client = administration.client();
    let statement = administration.sql(include_str!("../../../sql/repository/registrations.sql"));
    let rows = administration.ask(client.query(&statement, &[])).await?;
    let mut versions = BTreeMap::new();
    if let Some(statement) = versions_of_powa(&administration.about().powa.version) {
        let statement = administration.sql(statement);
        let rows = administration.ask(client.query(&statement, &[])).await?;
        versions = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    }
    let servers: Vec<Registration> = rows.iter().map(|row| registration(row, &versions)).collect();
    if json {
        print(&(serde_json::to_string(&servers).expect("texts and numbers") + "\n"))?;
    } else {
        print(&table(&servers, terminal_size::terminal_size().map(|(width, _)| width.0)))?;
    }
    Ok(true)
}

/// Where the repository notes which PoWA its servers have. None: nowhere.
fn versions_of_powa(repository: &PowaVersion) -> Option<&'static str> {
    if repository.is_5() {
        return Some("SELECT srvid, version FROM {powa}.powa_extension_config WHERE extname = 'powa'");
    }
    let statement = "SELECT srvid, version FROM {powa}.powa_extensions WHERE extname = 'powa'";
    (!repository.needs_load()).then_some(statement)
}

fn registration(row: &Row, versions: &BTreeMap<i32, Option<String>>) -> Registration {
    let (srvid, hostname, port) = (row.get("id"), row.get::<_, String>("hostname"), row.get("port"));
    Registration {
        srvid,
        alias: row.get("alias"),
        server: server::address(&hostname, port),
        hostname,
        port,
        dbname: row.get("dbname"),
        username: row.get("username"),
        has_password: row.get("has_password"),
        frequency: row.get("frequency"),
        retention: row.get("retention"),
        postgresql_version: row.get("version"),
        powa_version: versions.get(&srvid).cloned().flatten(),
    }
}

fn table(servers: &[Registration], width: Option<u16>) -> String {
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    rows.extend(servers.iter().map(row));
    laid_out(&rows, &NUMBERS, width)
}

fn row(server: &Registration) -> [String; 9] {
    let or_none = |text: Option<&str>| text.map_or_else(|| "-".to_owned(), one_line);
    // Behind it, the distribution says what its package is called.
    let version = server.postgresql_version.as_deref().and_then(|version| version.split(' ').next());
    [
        server.srvid.to_string(),
        or_none(server.alias.as_deref()),
        one_line(&server.server),
        one_line(&server.dbname),
        one_line(&server.username),
        if server.has_password { "yes" } else { "no" }.to_owned(),
        if server.frequency > 0 { format!("{} s", server.frequency) } else { "off".to_owned() },
        or_none(version),
        or_none(server.powa_version.as_deref()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_a_line_of_the_table_whatever_it_is_called() {
        let server = Registration {
            srvid: 7,
            alias: Some("a\n\x1b[31mb".to_owned()),
            server: "db1:5432".to_owned(),
            hostname: "db1".to_owned(),
            port: 5432,
            dbname: "powa".to_owned(),
            username: "po wa".to_owned(),
            has_password: true,
            frequency: 300,
            retention: "1 day".to_owned(),
            postgresql_version: Some("15.14 (Debian 15.14-0+deb12u1)".to_owned()),
            powa_version: Some("4.1.4".to_owned()),
        };
        let off = Registration {
            srvid: 12,
            alias: None,
            has_password: false,
            frequency: -1,
            postgresql_version: None,
            powa_version: None,
            ..server.clone()
        };
        let table = table(&[server, off], None);
        let words: Vec<Vec<&str>> = table
            .lines()
            .map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
            .collect();
        assert_eq!(words[0], COLUMNS);
        assert_eq!(
            words[1],
            ["7", r"a \u{1b}[31mb", "db1:5432", "powa", "po wa", "yes", "300 s", "15.14", "4.1.4"]
        );
        assert_eq!(words[2], ["12", "-", "db1:5432", "powa", "po wa", "no", "off", "-", "-"]);
        assert_eq!(words.len(), 3);
    }
}
