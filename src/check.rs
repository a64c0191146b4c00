//! `powa-collector check`: tries the repository and every server, and says what works, what is missing and
//! which statement mends it. Changes nothing on either side.

pub mod findings;
pub mod one_server;
pub mod setup;

use futures_util::{StreamExt, stream};
use tokio::time::timeout;
use tokio_postgres::Client;

use self::findings::Findings;
use crate::config::Configuration;
use crate::fleet::Means;
use crate::postgres::advice::Step;
use crate::postgres::conninfo::ConnInfo;
use crate::postgres::extension::{Powa, Table, in_schema, quote_identifier};
use crate::postgres::repository::{Object, Repository};
use crate::postgres::session::Session;
use crate::postgres::text::causes;
use crate::server::{self, Server};

/// How many relations without grants are named.
const RELATIONS_SHOWN: usize = 3;

/// How the sessions of checks are named.
const SESSION: &str = "PoWA collector - check";

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
    let mut is_good = print(&findings);

    let settings = &configuration.settings;
    let mut findings = Findings::of(&format!("repository {}", configuration.repository.describe()));
    let repository = Repository::new(configuration.repository.clone(), 1, settings.timeouts.connect);
    let servers = check_repository(configuration, &repository, &mut findings).await;
    is_good &= print(&findings);

    let means = Means::new(configuration, repository, None);
    let mut findings = Findings::of("servers.by_name in the configuration");
    for name in configuration.servers.unused(&servers) {
        findings.problem(&format!("{name:?}: no server has that alias or host:port"), &[]);
    }
    if !findings.is_good() {
        is_good &= print(&findings);
    }
    let mut checks = stream::iter(servers)
        .map(|server| {
            let assignment = means.assignment(server);
            async move {
                let title = format!("server {} {}", assignment.server.id, assignment.name);
                let mut findings = Findings::of(&title);
                let plan = async |version: i32| {
                    let plan = assignment.subject().plan(version).await;
                    plan.map_err(|error| error.to_string())
                };
                one_server::check(&assignment, plan, &mut findings).await;
                findings
            }
        })
        .buffered(settings.connects_at_once);
    while let Some(findings) = checks.next().await {
        is_good &= print(&findings);
    }
    println!("{}", if is_good { "all is well" } else { "not all is well: see PROBLEM above" });
    is_good
}

fn print(findings: &Findings) -> bool {
    print!("{}", findings.text());
    findings.is_good()
}

/// Looks at the repository. Gives the servers, as far as it says.
async fn check_repository(
    configuration: &Configuration,
    repository: &Repository,
    findings: &mut Findings,
) -> Vec<Server> {
    let timeouts = configuration.settings.timeouts;
    let conninfo = &configuration.repository;
    let opened = Session::open(conninfo, SESSION, timeouts.connect).await;
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
            .problem("the extension powa is not installed", &[Step::sql("CREATE EXTENSION powa CASCADE;")]);
        return Vec::new();
    };
    if !powa.version.is_supported() {
        findings.problem(
            &format!("PoWA {} cannot collect from other servers, 4.0 or later is needed", powa.version),
            &[Step::sql("ALTER EXTENSION powa UPDATE;")],
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
                &[Step::remark("powa-collector servers add HOST registers one")],
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
            mend.push(Step::sql(format!("{}{exist});", in_schema(set_up, &powa.schema))));
        }
        mend.push(Step::sql(format!("GRANT powa_snapshot TO {user};")));
        let versions = "GRANT UPDATE (version) ON {powa}.powa_servers TO ";
        mend.push(Step::sql(format!("{}{user};", in_schema(versions, &powa.schema))));
        let versions = "GRANT INSERT, UPDATE, DELETE ON {powa}.powa_extension_config TO ";
        mend.push(Step::sql(format!("{}{user};", in_schema(versions, &powa.schema))));
    } else if !powas.is_empty() {
        let schema = quote_identifier(&powa.schema);
        mend.push(Step::sql(format!(
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {user};"
        )));
        mend.push(Step::sql(format!("GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {user};")));
    }
    if !others.is_empty() {
        let tables = others
            .iter()
            .map(|row| Table { schema: Some(row.get("schema")), name: row.get("relation") }.quoted());
        let tables = tables.collect::<Vec<_>>().join(", ");
        mend.push(Step::sql(format!("GRANT SELECT, INSERT, UPDATE, DELETE ON {tables} TO {user};")));
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
            &[Step::sql(format!("GRANT USAGE ON SCHEMA {schema} TO {user};"))],
        );
    }
    Ok(())
}
