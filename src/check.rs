//! `powa-collector check`: tries the repository and every server, and says what works, what is missing and
//! which statement mends it. Changes nothing on either side.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;

use futures_util::{StreamExt, stream};
use tokio::time::timeout;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::config::Configuration;
use crate::fleet::Means;
use crate::postgres::conninfo::{ConnInfo, ConnInfoError};
use crate::postgres::extension::{self, Extension, Powa, Table, in_schema, quote_identifier};
use crate::postgres::repository::{Object, Repository};
use crate::postgres::session::Session;
use crate::postgres::text::{causes, one_line};
use crate::server::{self, Server};
use crate::snapshot::fetch::{self, FetchError, Remote};
use crate::snapshot::plan::Plan;
use crate::snapshot::reading;
use crate::worker::Assignment;

/// How many relations without grants are named.
const RELATIONS_SHOWN: usize = 3;

/// What was found of one thing, line by line.
#[derive(Default)]
struct Findings {
    text: String,
    is_good: bool,
}

impl Findings {
    fn of(what: &str) -> Self {
        Self { text: format!("{what}\n"), is_good: true }
    }

    fn good(&mut self, what: &str) {
        let _ = writeln!(self.text, "  ok       {what}");
    }

    /// Something is missing or wrong. `mend`: what to do about it, where that can be said.
    fn problem(&mut self, what: &str, mend: &[String]) {
        self.is_good = false;
        let _ = writeln!(self.text, "  PROBLEM  {what}");
        for line in mend {
            let _ = writeln!(self.text, "           {line}");
        }
    }

    fn print(&self) -> bool {
        print!("{}", self.text);
        self.is_good
    }
}

/// Checks everything. True when all is well.
pub async fn run(configuration: &Configuration, warnings: &[String]) -> bool {
    let place = configuration.file.as_ref().map_or_else(
        || "configuration from the environment".to_owned(),
        |file| format!("configuration {}", file.display()),
    );
    let mut findings = Findings::of(&place);
    for warning in warnings {
        findings.problem(warning, &[]);
    }
    findings.good("valid");
    let mut is_good = findings.print();

    let settings = &configuration.settings;
    let mut findings = Findings::of(&format!("repository {}", configuration.repository.describe()));
    let repository = Repository::new(configuration.repository.clone(), 1, settings.timeouts.connect);
    let servers = check_repository(configuration, &repository, &mut findings).await;
    is_good &= findings.print();

    let means = Means::new(configuration, repository, None);
    let mut findings = Findings::of("servers.by_name in the configuration");
    for name in configuration.servers.unused(&servers) {
        findings.problem(&format!("{name:?}: no server has that alias or host:port"), &[]);
    }
    if !findings.is_good {
        is_good &= findings.print();
    }
    let mut checks = stream::iter(servers)
        .map(|server| {
            let assignment = means.assignment(server);
            async move {
                let title = format!("server {} {}", assignment.server.id, assignment.name);
                let mut findings = Findings::of(&title);
                check_server(&assignment, &mut findings).await;
                findings
            }
        })
        .buffered(settings.connects_at_once);
    while let Some(findings) = checks.next().await {
        is_good &= findings.print();
    }
    println!("{}", if is_good { "all is well" } else { "not all is well: see PROBLEM above" });
    is_good
}

/// Looks at the repository. Gives the servers, as far as it says.
async fn check_repository(
    configuration: &Configuration,
    repository: &Repository,
    findings: &mut Findings,
) -> Vec<Server> {
    let timeouts = configuration.settings.timeouts;
    let conninfo = &configuration.repository;
    let opened = Session::open(conninfo, "PoWA collector - check", timeouts.connect).await;
    let session = match opened {
        Ok(session) => session,
        Err(error) => {
            findings.problem(error.what(), error.advice());
            return Vec::new();
        }
    };
    findings.good(&format!("connected: PostgreSQL {}", session.facts.version));
    let Some(powa) = session.facts.powa.clone() else {
        findings
            .problem("the extension powa is not installed", &["CREATE EXTENSION powa CASCADE;".to_owned()]);
        return Vec::new();
    };
    if !powa.version.is_supported() {
        findings.problem(
            &format!("PoWA {} cannot collect from other servers, 4.0 or later is needed", powa.version),
            &["ALTER EXTENSION powa UPDATE;".to_owned()],
        );
        return Vec::new();
    }
    findings.good(&format!("PoWA {} in schema {}", powa.version, quote_identifier(&powa.schema)));
    drop(session);

    let client = match repository.question_connection().await {
        Ok(client) => client,
        Err(error) => {
            findings.problem(&error.to_string(), &[]);
            return Vec::new();
        }
    };
    let looking = async {
        check_grants(&client, &powa, conninfo, findings).await?;
        server::list(&client, &powa.schema).await.map(|servers| servers.collected)
    };
    match timeout(timeouts.query, looking).await {
        Ok(Ok(servers)) if servers.is_empty() => {
            findings.problem(
                "there are no servers to collect",
                &[in_schema(
                    "SELECT {powa}.powa_register_server(hostname => '…', alias => '…', username => '…', \
                     dbname => 'powa');",
                    &powa.schema,
                )],
            );
            Vec::new()
        }
        Ok(Ok(servers)) => {
            findings.good(&format!("{} servers to collect", servers.len()));
            servers
        }
        Ok(Err(error)) => {
            findings.problem(&format!("read the servers: {}", causes(&error)), &[]);
            Vec::new()
        }
        Err(_) => {
            findings.problem(&format!("no answer within {} s", timeouts.query.as_secs()), &[]);
            Vec::new()
        }
    }
}

async fn check_grants(
    client: &Object,
    powa: &Powa,
    conninfo: &ConnInfo,
    findings: &mut Findings,
) -> Result<(), tokio_postgres::Error> {
    let user = quote_identifier(&conninfo.user);
    check_schemas(client, &user, findings).await?;
    let rows = client.query(include_str!("../sql/check/repository_grants.sql"), &[]).await?;
    let relations: Vec<String> = rows
        .iter()
        .map(|row| format!("{} ({})", row.get::<_, String>("relation"), row.get::<_, String>("privileges")))
        .collect();
    if relations.is_empty() {
        findings.good("grants on the tables of PoWA and of extensions that it stores");
        return Ok(());
    }
    let only_versions = rows.iter().all(|row| row.get("for_versions"));
    let purpose = if only_versions { ", for the versions that PoWA keeps of each server" } else { "" };
    let mut mend = Vec::new();
    let (powas, others): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row.get("is_powa"));
    if !powas.is_empty() && powa.version.is_5() {
        let roles = client.query_one(include_str!("../sql/check/powa_roles.sql"), &[]).await?;
        let (exist, are_set_up): (bool, bool) = (roles.get("exist"), roles.get("are_set_up"));
        if !are_set_up {
            let set_up = "SELECT {powa}.setup_powa_roles(reuse_existing_role => ";
            mend.push(format!("{}{exist});", in_schema(set_up, &powa.schema)));
        }
        mend.push(format!("GRANT powa_snapshot TO {user};"));
        let versions = "GRANT UPDATE (version) ON {powa}.powa_servers TO ";
        mend.push(format!("{}{user};", in_schema(versions, &powa.schema)));
        let versions = "GRANT INSERT, UPDATE, DELETE ON {powa}.powa_extension_config TO ";
        mend.push(format!("{}{user};", in_schema(versions, &powa.schema)));
    } else if !powas.is_empty() {
        let schema = quote_identifier(&powa.schema);
        mend.push(format!(
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {user};"
        ));
        mend.push(format!("GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {user};"));
    }
    if !others.is_empty() {
        let tables = others
            .iter()
            .map(|row| Table { schema: Some(row.get("schema")), name: row.get("relation") }.quoted());
        let tables = tables.collect::<Vec<_>>().join(", ");
        mend.push(format!("GRANT SELECT, INSERT, UPDATE, DELETE ON {tables} TO {user};"));
    }
    let more = relations.len().saturating_sub(RELATIONS_SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let shown = relations[..relations.len().min(RELATIONS_SHOWN)].join(", ");
    findings.problem(&format!("no grants on {shown}{more}{purpose}"), &mend);
    Ok(())
}

/// Looks at the schemas of extensions, on either side.
async fn check_schemas(
    client: &Client,
    user: &str,
    findings: &mut Findings,
) -> Result<(), tokio_postgres::Error> {
    for row in client.query(include_str!("../sql/check/schemas.sql"), &[]).await? {
        let schema = quote_identifier(row.get("schema"));
        findings.problem(
            &format!("the role may not use the schema {schema}"),
            &[format!("GRANT USAGE ON SCHEMA {schema} TO {user};")],
        );
    }
    Ok(())
}

async fn check_server(assignment: &Assignment, findings: &mut Findings) {
    let server = &assignment.server;
    if !server.is_registered {
        findings.problem(
            "it has no row in powa_snapshot_metas: it was not registered with powa_register_server",
            &[format!(
                "INSERT INTO powa_snapshot_metas (srvid) VALUES ({});   -- in PoWA's schema",
                server.id
            )],
        );
    }
    let conninfo = match assignment.conninfo() {
        Ok(conninfo) => conninfo,
        Err(error) => {
            let mend = match &*error {
                ConnInfoError::Port(_) => vec!["-- powa_servers.port must be mended".to_owned()],
                _ => Vec::new(),
            };
            findings.problem(&error.to_string(), &mend);
            return;
        }
    };
    let timeouts = assignment.settings.timeouts;
    let name = "PoWA collector - check".to_owned();
    let remote = match Remote::open(conninfo.clone(), name, timeouts.connect).await {
        Ok(remote) => remote,
        Err(error) => {
            findings.problem(error.what(), error.advice());
            return;
        }
    };
    findings.good(&format!("connected: PostgreSQL {}", remote.session.facts.version));
    let version = remote.session.facts.version_num;
    let plan = match assignment.subject().plan(version).await {
        Ok(plan) => plan,
        Err(error) => {
            findings.problem(&error.to_string(), &[]);
            return;
        }
    };
    plan.skipped.iter().for_each(|skipped| tracing::warn!("{skipped}"));
    for error in &plan.errors {
        findings.problem(error, &["-- on the repository server: CREATE EXTENSION …".to_owned()]);
    }
    match timeout(timeouts.fetch, look(&remote, &plan, &conninfo, findings)).await {
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
    findings: &mut Findings,
) -> Result<Vec<String>, tokio_postgres::Error> {
    let client = &remote.session.client;
    let database = &conninfo.dbname;
    let user = quote_identifier(&conninfo.user);
    let extensions = extension::installed(client, extension::INSTALLED).await?;
    let Some(powa) = extension::powa(&extensions) else {
        findings.problem(
            &format!("the extension powa is not installed in database {database}"),
            &["CREATE EXTENSION powa CASCADE;".to_owned()],
        );
        return Ok(Vec::new());
    };
    if !powa.version.is_compatible(&plan.powa.version) {
        findings.problem(
            &format!(
                "PoWA is {} here and {} in the repository: both must be of the same major.minor",
                powa.version, plan.powa.version
            ),
            &["ALTER EXTENSION powa UPDATE;   -- where it is older, with the newer package installed"
                .to_owned()],
        );
        return Ok(Vec::new());
    }
    findings.good(&format!("PoWA {} in schema {}", powa.version, quote_identifier(&powa.schema)));

    check_schemas(client, &user, findings).await?;
    let role = client.query_one(include_str!("../sql/check/server_role.sql"), &[]).await?;
    if role.get("sees_all") {
        findings.good("the role sees all statistics");
    } else {
        findings.problem("the role does not see all statistics", &[format!("GRANT pg_monitor TO {user};")]);
    }
    let mut absent = BTreeSet::new();
    for datasource in plan.datasources.iter() {
        let name = &datasource.name;
        let probes = match reading::probes(plan, datasource, &powa.schema, &extensions) {
            Ok(probes) => probes,
            Err(reason) => {
                if absent.insert(name.clone()) {
                    findings.problem(&reason, &[format!("CREATE EXTENSION {};", quote_identifier(name))]);
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
                vec![format!("GRANT EXECUTE ON FUNCTION {function}() TO {user};")]
            } else if message.starts_with("permission denied for table powa_") {
                let tables = "GRANT SELECT ON {powa}.powa_databases, {powa}.powa_statements TO ";
                vec![format!("{}{user};", in_schema(tables, &powa.schema))]
            } else {
                vec![format!("GRANT pg_monitor TO {user};")]
            }
        } else if message.contains("shared_preload_libraries") {
            vec![format!("-- add {name} to shared_preload_libraries and restart the server")]
        } else {
            Vec::new()
        };
        findings.problem(&format!("{name}: {}: {message}", datasource.function), &mend);
    }
    if plan.db_modules.is_empty() && plan.catalogs.is_empty() {
        return Ok(Vec::new());
    }
    let closed: Vec<String> = role.get("closed");
    for name in &closed {
        findings.problem(
            &format!("the role may not connect to database {name}"),
            &[format!("GRANT CONNECT ON DATABASE {} TO {user};", quote_identifier(name))],
        );
    }
    let databases = client.query(fetch::DATABASES, &[]).await?;
    let names = databases.iter().map(|row| row.get("datname"));
    Ok(names.filter(|name| !closed.contains(name)).collect())
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
            let opened = Session::open(&conninfo, "PoWA collector - check", deadline).await;
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
