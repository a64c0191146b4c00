//! The versions that the repository keeps of each server and its extensions: brought up to date when a worker
//! starts and at each reload, and written only where they differ.

use std::collections::HashMap;

use tokio_postgres::Error;

use super::fetch::Remote;
use crate::postgres::extension::{self, Extension, Powa, in_schema};
use crate::postgres::repository::Object;
use crate::server::ServerId;

/// The one extension that need not be created: PoWA uses it where it is available.
const HYPOPG: &str = "hypopg";

/// What a server says of its versions.
#[derive(Debug)]
pub struct Versions {
    server: String,
    extensions: HashMap<String, Extension>,
    hypopg: Option<String>,
}

/// A difference between a server and what the repository says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Server(String),
    /// `None`: the extension is not there any more.
    Extension {
        name: String,
        version: Option<String>,
    },
    AddHypopg(String),
    RemoveHypopg,
}

/// Asks a monitored server.
///
/// # Errors
/// Those of the connection.
pub async fn ask(remote: &Remote) -> Result<Versions, Error> {
    let client = &remote.session.client;
    let (extensions, hypopg) = futures_util::try_join!(
        extension::installed(client, extension::INSTALLED),
        client.query_opt(include_str!("../../sql/remote/hypopg.sql"), &[]),
    )?;
    Ok(Versions {
        server: remote.session.facts.version.clone(),
        extensions,
        hypopg: hypopg.and_then(|row| row.get(0)),
    })
}

/// Writes what has changed. Gives the changes.
///
/// # Errors
/// Those of the connection, a missing grant among them.
pub async fn update(
    client: &Object,
    powa: &Powa,
    server: ServerId,
    versions: &Versions,
) -> Result<Vec<Change>, Error> {
    let sql = |powa5, powa4| in_schema(if powa.version.is_5() { powa5 } else { powa4 }, &powa.schema);
    let known_server = in_schema("SELECT version FROM {powa}.powa_servers WHERE id = $1", &powa.schema);
    let known_server: Option<String> = match client.query_opt(&known_server, &[&server.0]).await? {
        Some(row) => row.get(0),
        None => return Ok(Vec::new()),
    };
    let known = sql(
        "SELECT extname, version FROM {powa}.powa_extension_config WHERE srvid = $1",
        "SELECT extname, version FROM {powa}.powa_extensions WHERE srvid = $1",
    );
    let known: Vec<(String, Option<String>)> =
        client.query(&known, &[&server.0]).await?.iter().map(|row| (row.get(0), row.get(1))).collect();
    let changes = changes(versions, known_server.as_deref(), &known);
    for change in &changes {
        match change {
            Change::Server(version) => {
                let sql =
                    in_schema("UPDATE {powa}.powa_servers SET version = $2 WHERE id = $1", &powa.schema);
                client.execute(&sql, &[&server.0, version]).await?
            }
            Change::Extension { name, version } => {
                let sql = sql(
                    "UPDATE {powa}.powa_extension_config SET version = $3 WHERE srvid = $1 AND extname = $2",
                    "UPDATE {powa}.powa_extensions SET version = $3 WHERE srvid = $1 AND extname = $2",
                );
                client.execute(&sql, &[&server.0, name, version]).await?
            }
            Change::AddHypopg(version) => {
                let sql = sql(
                    "INSERT INTO {powa}.powa_extension_config (srvid, extname, version) VALUES ($1, $2, $3)",
                    "INSERT INTO {powa}.powa_extensions (srvid, extname, version) VALUES ($1, $2, $3)",
                );
                client.execute(&sql, &[&server.0, &HYPOPG, version]).await?
            }
            Change::RemoveHypopg => {
                let sql = sql(
                    "DELETE FROM {powa}.powa_extension_config WHERE srvid = $1 AND extname = $2",
                    "DELETE FROM {powa}.powa_extensions WHERE srvid = $1 AND extname = $2",
                );
                client.execute(&sql, &[&server.0, &HYPOPG]).await?
            }
        };
    }
    Ok(changes)
}

/// What differs between a server and what is known of it.
fn changes(
    versions: &Versions,
    known_server: Option<&str>,
    known: &[(String, Option<String>)],
) -> Vec<Change> {
    let mut changes = Vec::new();
    if known_server != Some(versions.server.as_str()) {
        changes.push(Change::Server(versions.server.clone()));
    }
    for (name, version) in known.iter().filter(|(name, _)| name != HYPOPG) {
        let now = versions.extensions.get(name).map(|extension| extension.version.clone());
        if &now != version {
            changes.push(Change::Extension { name: name.clone(), version: now });
        }
    }
    let known_hypopg = known.iter().find(|(name, _)| name == HYPOPG);
    match (known_hypopg, &versions.hypopg) {
        (None, Some(version)) => changes.push(Change::AddHypopg(version.clone())),
        (Some(_), None) => changes.push(Change::RemoveHypopg),
        (Some((name, known)), now) if known != now => {
            changes.push(Change::Extension { name: name.clone(), version: now.clone() });
        }
        _ => {}
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versions(hypopg: Option<&str>) -> Versions {
        let extension = |version: &str| Extension { schema: "s".into(), version: version.into() };
        Versions {
            server: "17.6".into(),
            extensions: HashMap::from([
                ("powa".into(), extension("5.0.2")),
                ("pg_qualstats".into(), extension("2.1.1")),
            ]),
            hypopg: hypopg.map(str::to_owned),
        }
    }

    fn known(rows: &[(&str, Option<&str>)]) -> Vec<(String, Option<String>)> {
        rows.iter().map(|(name, version)| ((*name).to_owned(), version.map(str::to_owned))).collect()
    }

    #[test]
    fn nothing_is_written_when_nothing_changed() {
        let known = known(&[("powa", Some("5.0.2")), ("pg_qualstats", Some("2.1.1"))]);
        assert_eq!(changes(&versions(None), Some("17.6"), &known), []);
    }

    #[test]
    fn an_upgrade_and_a_dropped_extension_are_written() {
        let known = known(&[("powa", Some("5.0.1")), ("pg_stat_kcache", Some("2.2.0"))]);
        assert_eq!(
            changes(&versions(None), Some("16.1"), &known),
            [
                Change::Server("17.6".into()),
                Change::Extension { name: "powa".into(), version: Some("5.0.2".into()) },
                Change::Extension { name: "pg_stat_kcache".into(), version: None },
            ]
        );
        assert_eq!(changes(&versions(None), None, &[]), [Change::Server("17.6".into())]);
    }

    #[test]
    fn hypopg_follows_what_is_available() {
        let with = known(&[("hypopg", Some("1.3.1"))]);
        let without = known(&[]);
        let changed = |hypopg, known: &[_]| changes(&versions(hypopg), Some("17.6"), known);
        assert_eq!(changed(Some("1.4.1"), &without), [Change::AddHypopg("1.4.1".into())]);
        assert_eq!(
            changed(Some("1.4.1"), &with),
            [Change::Extension { name: "hypopg".into(), version: Some("1.4.1".into()) }]
        );
        assert_eq!(changed(Some("1.3.1"), &with), []);
        assert_eq!(changed(None, &with), [Change::RemoveHypopg]);
        assert_eq!(changed(None, &without), []);
    }
}
