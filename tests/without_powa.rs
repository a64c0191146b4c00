//! Servers that have no PoWA, or another one than the repository: read by the repository's own definitions.

mod scene;
mod support;

use std::collections::BTreeMap;

use powa_collector::postgres::extension::powa as powa_of;
use powa_collector::postgres::extension::{INSTALLED, installed};
use powa_collector::snapshot::borrowed::{self, Definition};
use scene::{Scene, one, run};
use serde_json::json;
use support::{Cluster, Collector, DEADLINE, EXTENSIONS, Powa, Registration, quote_identifier, wait_until};
use tokio_postgres::{Client, SimpleQueryMessage};

const DEFINITIONS: &str = include_str!("../sql/repository/definitions.sql");

/// Needs quoting, as everything may.
const SCHEMA: &str = "PoWA – repository.x";

const BORROWED: &str = "read by the repository's own definitions";

/// Each datasource that PoWA itself reads, on the same server, one way and the other, in one transaction.
#[tokio::test]
async fn every_datasource_has_the_rows_that_powas_function_has() {
    let (cluster, schema) = with_all_extensions().await;
    let client = cluster.client("powa").await;
    same_rows(&client, &blocks(&client, &schema).await, &schema).await;
}

/// Where nothing can be created.
#[tokio::test]
async fn every_datasource_has_the_same_rows_on_a_standby() {
    let (cluster, schema) = with_all_extensions().await;
    let standby = cluster.standby();
    let blocks = blocks(&cluster.client("powa").await, &schema).await;
    same_rows(&standby.client("powa").await, &blocks, &schema).await;
}

/// PostgreSQL 15 has no PoWA 5 from Debian: its functions are made there by hand.
#[tokio::test]
async fn every_datasource_has_the_same_rows_on_an_older_server() {
    let (cluster, schema) = with_all_extensions().await;
    let repository = cluster.client("powa").await;
    let older = Cluster::start(Powa::V4);
    run(&older.client("postgres").await, "CREATE DATABASE powa").await;
    let client = older.client("powa").await;
    for extension in ["pg_stat_statements", "pg_stat_kcache", "pg_qualstats", "pg_wait_sampling"] {
        run(&client, &format!("CREATE EXTENSION {extension}")).await;
    }
    let quoted = quote_identifier(&schema);
    run(
        &client,
        &format!(
            "SET check_function_bodies = off;
             CREATE SCHEMA {quoted};
             CREATE TYPE {quoted}.qual_type AS (relid oid, attnum integer, opno oid, eval_type \"char\");
             CREATE TABLE {quoted}.powa_databases (oid oid, dropped timestamptz);
             CREATE TABLE {quoted}.powa_statements (srvid integer, queryid bigint, dbid oid, userid oid)"
        ),
    )
    .await;
    let sql =
        "SELECT pg_get_functiondef(p.oid) FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = pronamespace
        WHERE nspname = $1 AND (proname LIKE 'powa\\_%\\_src' OR proname = 'powa_get_guc')";
    for row in repository.query(sql, &[&schema]).await.unwrap() {
        run(&client, row.get(0)).await;
    }
    same_rows(&client, &blocks(&repository, &schema).await, &schema).await;
}

/// A cluster whose database `powa` has all extensions in a schema that needs quoting.
async fn with_all_extensions() -> (Cluster, String) {
    let cluster = Cluster::start(Powa::V5);
    cluster.create_powa_database("powa", Some(SCHEMA), EXTENSIONS).await;
    let client = cluster.client("powa").await;
    let schema = powa_of(&installed(&client, INSTALLED).await.unwrap()).unwrap().schema;
    (cluster, schema)
}

async fn same_rows(client: &Client, blocks: &BTreeMap<String, Result<String, String>>, schema: &str) {
    // What is read is not to change by being read.
    run(
        client,
        "SET pg_stat_statements.track = none; SET pg_stat_kcache.track = none; SET pg_qualstats.enabled = off",
    )
    .await;
    assert_eq!(21, blocks.values().filter(|block| block.is_ok()).count(), "{blocks:#?}");
    let refused: Vec<_> = blocks.iter().filter(|(_, block)| block.is_err()).collect();
    // It is not a datasource any more; each database is read for that.
    assert!(matches!(refused[..], [(name, Err(_))] if name == "powa_user_functions_src"), "{refused:?}");
    let mut with_rows = 0;
    for (name, block) in blocks.iter().filter_map(|(name, block)| Some((name, block.as_ref().ok()?))) {
        let function = format!("{}.{}", quote_identifier(schema), quote_identifier(name));
        // The rest of the server does something now and then.
        let count = wait_until(&format!("{name} is the same both ways"), DEADLINE, async || {
            run(client, "BEGIN; SET LOCAL stats_fetch_consistency = snapshot").await;
            let own = rows(client, &[format!("SELECT * FROM {function}(0)")], name).await;
            run(client, block).await;
            let fetches: Vec<String> =
                (1..=borrowed::CURSORS).map(|cursor| borrowed::fetch(cursor, "ALL")).collect();
            let through_cursors = rows(client, &fetches, name).await;
            run(client, "ROLLBACK").await;
            (own == through_cursors).then_some(own.len())
        })
        .await;
        with_rows += usize::from(count > 0);
    }
    // Nobody replicates or subscribes, and there is no checkpointer's view before PostgreSQL 17.
    assert!(with_rows >= 13, "{with_rows}");
}

#[tokio::test]
async fn a_server_without_powa_is_collected_with_pg_monitor_alone_and_nothing_is_left_there() {
    let monitored = Cluster::start(Powa::V5);
    let scene = plain(Cluster::start(Powa::V5), &monitored).await;
    let before = catalogs(&scene.monitored).await;
    let mut collector = scene.begin_period().await;
    scene.wait_for_snapshots(1).await;
    assert_eq!(Vec::<String>::new(), scene.errors().await);
    for table in STORED {
        assert!(scene.count(table).await > 0, "{table} is empty");
    }
    assert!(scene.count("powa_kcache_metrics_current").await > 0);
    assert_eq!(0, scene.count("powa_qualstats_quals_history_current").await);
    assert_eq!(Vec::<String>::new(), scene.leftovers().await);

    // The next ones say nothing of it again.
    scene.wait_for_snapshots(3).await;
    let status = collector_status(&collector).await;
    assert_eq!(status["borrowed"], "the server has no PoWA");
    assert!(status["skipped"][0].as_str().unwrap().contains("pg_qualstats is not installed"), "{status}");
    assert_eq!(status["last_error"], json!(null));
    assert!(collector.stop().await.success());
    let log = collector.log();
    for told in [
        &format!("the server has no PoWA: {BORROWED}"),
        "pg_qualstats is left out: the extension pg_qualstats is not installed on the monitored server",
    ] {
        assert_eq!(1, log.matches(told).count(), "{told}: {log}");
    }
    assert_eq!(Vec::<String>::new(), scene.errors().await);
    // What a session has counted is there when it has ended.
    wait_until("nobody is there any more", DEADLINE, async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'PoWA collector%'";
        one::<i64>(&scene.monitored, sql, &[]).await == 0
    })
    .await;
    assert_eq!(before, catalogs(&scene.monitored).await);
}

#[tokio::test]
async fn a_server_that_loses_its_powa_misses_no_snapshot() {
    let scene = Scene::new(Powa::V5).await;
    let mut collector = scene.begin_period().await;
    scene.wait_for_snapshots(1).await;
    run(&scene.monitored, "DROP EXTENSION powa CASCADE").await;
    collector.wait_for_log(&format!("the server has no PoWA: {BORROWED}")).await;
    let before = scene.snapshots().await;
    scene.wait_for_snapshots(before + 1).await;
    assert_eq!(Vec::<String>::new(), scene.errors().await);
    assert!(!collector.log().contains("no snapshot: "), "{}", collector.log());
}

#[tokio::test]
async fn a_standby_without_powa_is_collected() {
    let primary = Cluster::start(Powa::V5);
    let repository = Cluster::start(Powa::V5);
    make_plain(&primary).await;
    let standby = primary.standby();
    let client = standby.client("postgres").await;
    wait_until("the standby has received something", DEADLINE, async || {
        run(&primary.client("plain").await, "INSERT INTO things VALUES (0)").await;
        one::<bool>(&client, "SELECT count(written_lsn) = 1 FROM pg_stat_wal_receiver", &[]).await
    })
    .await;
    let scene = of_plain(repository, &standby).await;
    scene.snapshot().await;
    assert_eq!(Vec::<String>::new(), scene.errors().await);
    for table in STORED {
        assert!(scene.count(table).await > 0, "{table} is empty");
    }
}

/// `PostgreSQL` 15, whose statistics look otherwise.
#[tokio::test]
async fn an_older_server_without_powa_is_collected() {
    let monitored = Cluster::start(Powa::V4);
    let scene = plain(Cluster::start(Powa::V5), &monitored).await;
    scene.snapshot().await;
    assert_eq!(Vec::<String>::new(), scene.errors().await);
    for table in STORED {
        assert!(scene.count(table).await > 0, "{table} is empty");
    }
}

#[tokio::test]
async fn a_server_with_an_older_powa_is_collected() {
    let old = Cluster::start(Powa::V4);
    old.create_monitored("powa", EXTENSIONS).await;
    let repository = Cluster::start(Powa::V5);
    repository.create_powa_database("powa", Some("Odd schema"), EXTENSIONS).await;
    let server = Registration::of(&old, "powa").extensions(&EXTENSIONS[..3]);
    let monitored = old.client("powa").await;
    let scene = Scene::watching(repository, "powa", server, monitored).await;
    scene.leave_out_catalogs("WHERE catname <> 'pg_class'").await;
    let log = scene.snapshot().await;
    assert!(log.contains("the server's PoWA is 4.1") && log.contains(BORROWED), "{log}");
    assert_eq!(Vec::<String>::new(), scene.errors().await);
    assert!(scene.count("powa_statements_history_current").await > 0);
    assert!(scene.count("powa_catalog_class").await > 0);
}

#[tokio::test]
async fn a_definition_that_is_not_understood_costs_its_own_rows_and_is_named() {
    let monitored = Cluster::start(Powa::V5);
    let scene = plain(Cluster::start(Powa::V5), &monitored).await;
    let sql = "SELECT pg_get_functiondef('{powa}.powa_stat_wal_src'::regproc)";
    let definition: String = scene.one(sql, &[]).await;
    let with_loop = definition.replacen("BEGIN", "BEGIN FOR i IN 1..1 LOOP NULL; END LOOP;", 1);
    assert_ne!(definition, with_loop);
    run(&scene.repository, &with_loop).await;
    scene.snapshot().await;
    let error = scene.error().await;
    assert!(error.contains("powa_stat_wal_src") && error.ends_with("it has a LOOP"), "{error}");
    assert!(scene.count("powa_statements_history_current").await > 0);
}

#[tokio::test]
async fn a_repository_of_powa_4_refuses_a_server_without_powa() {
    let monitored = Cluster::start(Powa::V4);
    let scene = plain(Cluster::start(Powa::V4), &monitored).await;
    scene.failed_snapshot().await;
    let error = scene.error().await;
    assert!(error.contains("has no extension powa") && error.contains("with PoWA 5 there"), "{error}");
}

#[tokio::test]
async fn the_databases_of_providers_are_left_alone() {
    let monitored = Cluster::start(Powa::V5);
    run(&monitored.client("postgres").await, "CREATE DATABASE rdsadmin").await;
    run(&monitored.client("postgres").await, "REVOKE CONNECT ON DATABASE rdsadmin FROM PUBLIC").await;
    let scene = plain(Cluster::start(Powa::V5), &monitored).await;
    scene.snapshot().await;
    assert_eq!(Vec::<String>::new(), scene.errors().await);
    scene.rest().await;
    scene.snapshot_with(json!({ "fetch": { "excluded_databases": ["plain"] } })).await;
    let error = scene.error().await;
    assert!(error.contains("database rdsadmin") && error.contains("permission denied"), "{error}");
}

#[tokio::test]
async fn check_knows_what_such_a_server_needs() {
    let monitored = Cluster::start(Powa::V5);
    let scene = plain(Cluster::start(Powa::V5), &monitored).await;
    let check = async || {
        let output = Collector::builder(scene.config(json!({}))).argument("check").run().await;
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    let (is_good, told) = check().await;
    assert!(is_good, "{told}");
    assert!(told.contains("ok       no PoWA here: read by the definitions of the repository's 5."), "{told}");
    assert!(told.contains("note     pg_qualstats: the extension pg_qualstats is not installed"), "{told}");
    assert!(told.contains("ok       pg_stat_kcache: powa_kcache_src"), "{told}");
    run(&scene.monitored, "REVOKE pg_monitor FROM watcher").await;
    let (is_good, told) = check().await;
    assert!(!is_good && told.contains("GRANT pg_monitor TO \"watcher\";"), "{told}");
    assert!(!told.contains("CREATE EXTENSION"), "{told}");
}

#[tokio::test]
async fn servers_add_asks_for_no_powa() {
    let monitored = Cluster::start(Powa::V5);
    let scene = plain(Cluster::start(Powa::V5), &monitored).await;
    let place = format!("127.0.1.2:{}", monitored.port());
    let add = async |database: &str| {
        let arguments =
            ["servers", "add", &place, "--username", "watcher", "--dbname", database, "--no-password"];
        let arguments =
            [&arguments[..], &["--extension", "pg_stat_kcache", "--extension", "pg_qualstats"]].concat();
        let builder =
            arguments.iter().fold(Collector::builder(scene.config(json!({}))), |builder, argument| {
                builder.argument(*argument)
            });
        let output = builder.run().await;
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, script, told) = add("postgres").await;
    assert_eq!(code, Some(1), "{told}");
    assert!(script.contains("CREATE EXTENSION IF NOT EXISTS pg_stat_statements;"), "{script}");
    assert!(!script.contains("EXTENSION IF NOT EXISTS powa"), "{script}");
    let (code, script, told) = add("plain").await;
    assert_eq!((code, script.as_str()), (Some(0), ""), "{told}");
    assert!(told.contains("note: pg_qualstats: the extension pg_qualstats is not installed"), "{told}");
    assert_eq!(2, scene.one::<i64>("SELECT count(*) FROM {powa}.powa_servers WHERE id > 0", &[]).await);
}

/// Some of what is stored of any server.
const STORED: [&str; 4] = [
    "powa_statements_history_current",
    "powa_stat_activity_history_current",
    "powa_stat_bgwriter_history_current",
    "powa_all_tables_history_current",
];

/// A repository, and a server without PoWA in another cluster, with a role that has `pg_monitor` alone.
async fn plain(repository: Cluster, monitored: &Cluster) -> Scene {
    make_plain(monitored).await;
    of_plain(repository, monitored).await
}

async fn make_plain(monitored: &Cluster) {
    run(&monitored.client("postgres").await, "CREATE DATABASE plain").await;
    run(
        &monitored.client("plain").await,
        "CREATE EXTENSION pg_stat_statements;
         CREATE SCHEMA \"Odd – one\";
         CREATE EXTENSION pg_stat_kcache SCHEMA \"Odd – one\";
         CREATE TABLE things (id integer);
         INSERT INTO things SELECT generate_series(1, 100);
         CREATE ROLE watcher LOGIN;
         GRANT pg_monitor TO watcher;
         GRANT USAGE ON SCHEMA \"Odd – one\" TO watcher",
    )
    .await;
}

async fn of_plain(repository: Cluster, monitored: &Cluster) -> Scene {
    repository.create_repository("powa").await;
    let server = Registration::of(monitored, "plain")
        .credentials("watcher", None)
        .extensions(&["pg_stat_kcache", "pg_qualstats"]);
    let monitored = monitored.client("plain").await;
    let scene = Scene::watching(repository, "powa", server, monitored).await;
    scene.leave_out_catalogs("").await;
    scene
}

async fn blocks(client: &Client, schema: &str) -> BTreeMap<String, Result<String, String>> {
    let functions = "SELECT array_agg(proname::text) FROM pg_proc AS p
        JOIN pg_namespace AS n ON n.oid = pronamespace WHERE nspname = $1 AND proname LIKE 'powa\\_%\\_src'";
    let functions: Vec<String> = one(client, functions, &[&schema]).await;
    let rows = client.query(DEFINITIONS, &[&schema, &functions]).await.unwrap();
    assert_eq!(functions.len(), rows.len());
    let block = |row: &tokio_postgres::Row| {
        let definition = Definition {
            name: row.get("name"),
            language: row.get("language"),
            parameter: row.get("parameter"),
            body: row.get("body"),
        };
        let block = borrowed::block(&definition, schema).map_err(|refusal| refusal.to_string());
        (definition.name, block)
    };
    rows.iter().map(block).collect()
}

/// The rows of several queries, sorted, without what changes by itself from one moment to the next.
async fn rows(client: &Client, queries: &[String], datasource: &str) -> Vec<Vec<Option<String>>> {
    let mut rows = Vec::new();
    for query in queries {
        for message in client.simple_query(query).await.unwrap_or_else(|error| panic!("{query}: {error}")) {
            let SimpleQueryMessage::Row(row) = message else { continue };
            let mut values: Vec<_> = (0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect();
            match datasource {
                // How often a wait was seen, a hundred times a second.
                "powa_wait_sampling_src" => values.truncate(values.len() - 1),
                // When the query began that is just being answered.
                "powa_stat_activity_src" => {
                    values.retain(|value| !value.as_ref().is_some_and(|v| v.starts_with("20")))
                }
                _ => {}
            }
            rows.push(values);
        }
    }
    rows.sort();
    rows
}

/// How often anything was written to the catalogs of a database.
async fn catalogs(client: &Client) -> Vec<(String, i64)> {
    let sql = "SELECT relname::text, count FROM (
            SELECT 'classes' AS relname, count(*) FROM pg_class UNION ALL SELECT 'functions', count(*) FROM pg_proc
            UNION ALL SELECT 'types', count(*) FROM pg_type UNION ALL SELECT 'schemas', count(*) FROM pg_namespace
            UNION ALL SELECT relname, n_tup_ins + n_tup_upd + n_tup_del FROM pg_stat_sys_tables
                WHERE relname IN ('pg_proc', 'pg_class', 'pg_type', 'pg_depend', 'pg_namespace', 'pg_attribute')
        ) AS catalogs ORDER BY 1";
    let rows = client.query(sql, &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// What the collector at work says of its one server.
async fn collector_status(collector: &Collector) -> serde_json::Value {
    let output = Collector::bare()
        .argument("-c")
        .argument(collector.config_path())
        .argument("status")
        .argument("--json")
        .run()
        .await;
    let servers: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    servers[0].clone()
}
