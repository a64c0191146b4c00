//! What a monitored server lacks for its snapshots, registered or not.

use std::collections::{BTreeSet, HashMap};

use futures_util::{StreamExt, stream};
use tokio::time::timeout;
use tokio_postgres::error::SqlState;

use super::findings::Findings;
use super::{SESSION, check_schemas};
use crate::postgres::advice::Step;
use crate::postgres::conninfo::{ConnInfo, ConnInfoError};
use crate::postgres::extension::{self, Extension, in_schema, quote_identifier};
use crate::postgres::session::Session;
use crate::postgres::text::one_line;
use crate::snapshot::fetch::{self, FetchError, Remote};
use crate::snapshot::plan::Plan;
use crate::snapshot::reading::{self, Functions, Lack};
use crate::worker::Assignment;

/// Looks at a server as the collector would read it. `plan` says what is read from such a server, or why nobody can say so.
pub async fn check(
    assignment: &Assignment,
    plan: impl AsyncFnOnce(i32) -> Result<Plan, String>,
    findings: &mut Findings,
) {
    let server = &assignment.server;
    if !server.is_registered {
        findings.problem(
            "it has no row in powa_snapshot_metas: it was not registered with powa_register_server",
            &[Step::Pattern(format!(
                "INSERT INTO powa_snapshot_metas (srvid) VALUES ({});   -- in PoWA's schema",
                server.id
            ))],
        );
    }
    let conninfo = match assignment.conninfo() {
        Ok(conninfo) => conninfo,
        Err(error) => {
            let mend = match &*error {
                ConnInfoError::Port(_) => vec![Step::remark("powa_servers.port must be mended")],
                _ => Vec::new(),
            };
            findings.problem(&error.to_string(), &mend);
            return;
        }
    };
    let timeouts = assignment.settings.timeouts;
    let remote = match Remote::open(&conninfo, SESSION.to_owned(), timeouts.connect).await {
        Ok(remote) => remote,
        Err(error) => {
            findings.problem(error.what(), error.advice());
            if error.is_refusal() {
                findings.note_unseen();
            }
            return;
        }
    };
    findings.good(&format!("connected: PostgreSQL {}", remote.session.facts.version));
    let plan = match plan(remote.session.facts.version_num).await {
        Ok(plan) => plan,
        Err(error) => {
            findings.problem(&error, &[]);
            return;
        }
    };
    plan.skipped.iter().for_each(|skipped| tracing::warn!("{skipped}"));
    for error in &plan.errors {
        findings.problem(error, &[Step::remark("on the repository server: CREATE EXTENSION …")]);
    }
    let excluded = &assignment.settings.excluded_databases;
    match timeout(timeouts.fetch, look(&remote, &plan, &conninfo, excluded, findings)).await {
        Ok(Ok(databases)) => check_databases(assignment, &conninfo, databases, findings).await,
        Ok(Err(error)) => findings.problem(&FetchError::Connection(error).to_string(), &[]),
        Err(_) => findings.problem(&FetchError::Deadline(timeouts.fetch).to_string(), &[]),
    }
}

/// Looks at a server's PoWA, extensions, role and datasources. Gives the databases that would be read one by
/// one.
async fn look(
    remote: &Remote,
    plan: &Plan,
    conninfo: &ConnInfo,
    excluded: &[String],
    findings: &mut Findings,
) -> Result<Vec<String>, tokio_postgres::Error> {
    let client = &remote.session.client;
    let database = &conninfo.dbname;
    let user = quote_identifier(&conninfo.user);
    let extensions = extension::installed(client, extension::INSTALLED).await?;
    let powa = extension::powa(&extensions);
    let functions = match (&powa, &plan.borrowed) {
        (Some(powa), _) if powa.version.is_compatible(&plan.powa.version) => {
            findings.good(&format!("PoWA {} in schema {}", powa.version, quote_identifier(&powa.schema)));
            Functions::Own(&powa.schema)
        }
        (powa, Some(blocks)) => {
            let has =
                powa.as_ref().map_or_else(|| "no PoWA".to_owned(), |powa| format!("PoWA {}", powa.version));
            findings.good(&format!(
                "{has} here: read by the definitions of the repository's {}",
                plan.powa.version
            ));
            Functions::Borrowed(blocks)
        }
        (None, None) => {
            findings.problem(
                &format!("the extension powa is not installed in database {database}"),
                &[Step::sql("CREATE EXTENSION powa CASCADE;")],
            );
            findings.note_unseen();
            return Ok(Vec::new());
        }
        (Some(powa), None) => {
            findings.problem(
                &format!(
                    "PoWA is {} here and {} in the repository: both must be of the same major.minor",
                    powa.version, plan.powa.version
                ),
                &[Step::sql(
                    "ALTER EXTENSION powa UPDATE;   -- where it is older, with the newer package installed",
                )],
            );
            return Ok(Vec::new());
        }
    };

    check_schemas(client, &user, findings).await?;
    let role = client.query_one(include_str!("../../sql/check/server_role.sql"), &[]).await?;
    if role.get("sees_all") {
        findings.good("the role sees all statistics");
    } else {
        let grant = Step::sql(format!("GRANT pg_monitor TO {user};"));
        findings.problem("the role does not see all statistics", &[grant]);
    }
    let mut absent = BTreeSet::new();
    for datasource in plan.datasources.iter() {
        let name = &datasource.name;
        let probes = match reading::probes(plan, datasource, &functions, &extensions) {
            Ok(probes) => probes,
            Err(lack) => {
                if !absent.insert(name.clone()) {
                    continue;
                }
                match &lack {
                    _ if lack.is_allowed(&functions) => findings.note(&format!("{name}: {lack}: left out")),
                    Lack::Extension(extension) => {
                        let create = Step::sql(format!("CREATE EXTENSION {};", quote_identifier(extension)));
                        findings.problem(&lack.to_string(), &[create]);
                        findings.note_unseen();
                    }
                    Lack::Other(reason) => findings.problem(reason, &[]),
                }
                continue;
            }
        };
        let mut problem = None;
        for probe in probes {
            match client.batch_execute(&probe).await {
                Ok(()) => {}
                // What cannot be explained cannot be tried without doing it.
                Err(error) if error.code() == Some(&SqlState::SYNTAX_ERROR) => {}
                Err(error) => problem = Some(error),
            }
            if problem.is_some() {
                // It may have begun a transaction.
                client.batch_execute("ROLLBACK").await?;
            }
        }
        let Some(error) = problem else {
            findings.good(&format!("{name}: {}", datasource.function));
            continue;
        };
        let Some(told) = error.as_db_error() else { return Err(error) };
        let message = one_line(told.message());
        let mend = if *told.code() == SqlState::INSUFFICIENT_PRIVILEGE {
            if let Some(function) = message.strip_prefix("permission denied for function ") {
                let function = in_own_schema(function, name, &extensions);
                vec![Step::sql(format!("GRANT EXECUTE ON FUNCTION {function}() TO {user};"))]
            } else {
                let grant = match &functions {
                    Functions::Own(schema) if message.starts_with("permission denied for table powa_") => {
                        let tables = "GRANT SELECT ON {powa}.powa_databases, {powa}.powa_statements TO ";
                        format!("{}{user};", in_schema(tables, schema))
                    }
                    _ => format!("GRANT pg_monitor TO {user};"),
                };
                vec![Step::sql(grant)]
            }
        } else if message.contains("shared_preload_libraries") {
            vec![Step::remark(format!("add {name} to shared_preload_libraries and restart the server"))]
        } else {
            Vec::new()
        };
        findings.problem(&format!("{name}: {}: {message}", datasource.function), &mend);
    }
    if plan.db_modules.is_empty() && plan.catalogs.is_empty() {
        return Ok(Vec::new());
    }
    let mut closed: Vec<String> = role.get("closed");
    closed.retain(|name| !excluded.contains(name));
    for name in &closed {
        findings.problem(
            &format!("the role may not connect to database {name}"),
            &[Step::sql(format!("GRANT CONNECT ON DATABASE {} TO {user};", quote_identifier(name)))],
        );
    }
    let databases = client.query(fetch::DATABASES, &[]).await?;
    let names = databases.iter().map(|row| row.get("datname"));
    Ok(names.filter(|name| !closed.contains(name) && !excluded.contains(name)).collect())
}

/// A function, qualified as it most likely is: in the schema of the extension that it belongs to.
fn in_own_schema(function: &str, extension: &str, extensions: &HashMap<String, Extension>) -> String {
    let function = quote_identifier(function);
    match extensions.get(extension) {
        Some(extension) => format!("{}.{function}", quote_identifier(&extension.schema)),
        None => function,
    }
}

async fn check_databases(
    assignment: &Assignment,
    conninfo: &ConnInfo,
    databases: Vec<String>,
    findings: &mut Findings,
) {
    let deadline = assignment.settings.timeouts.connect;
    let mut good = 0;
    let mut opening = stream::iter(databases)
        .map(|name| async move {
            let conninfo = conninfo.with_database(&name);
            let opened = Session::open(&conninfo, SESSION, deadline).await;
            opened.map(|_| ())
        })
        .buffered(assignment.settings.database_connections);
    while let Some(opened) = opening.next().await {
        match opened {
            Ok(()) => good += 1,
            Err(error) => findings.problem(error.what(), error.advice()),
        }
    }
    if good > 0 {
        findings.good(&format!("connected to {good} databases"));
    }
}
