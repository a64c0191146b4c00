//! What a snapshot brings: every history table of the repository has its rows, they say what the source says,
//! and nothing is left behind.

mod scene;
mod support;

use scene::{Scene, flush_statistics, one, run};
use serde_json::{Value, json};
use support::{
    Collector, DEADLINE, Powa, Registration, on_both_versions, powa_schema, quote_identifier, wait_until,
};
use tokio_postgres::Client;

/// Tables that must have rows after two snapshots of a server with all extensions and [`WORKLOAD`].
fn filled(powa: Powa) -> Vec<&'static str> {
    let both = [
        "pg_track_settings_history",
        "pg_track_settings_list",
        "pg_track_db_role_settings_history",
        "pg_track_db_role_settings_list",
        "pg_reboot",
        "powa_databases",
        "powa_kcache_metrics_current",
        "powa_kcache_metrics_current_db",
        "powa_qualstats_constvalues_history_current",
        "powa_qualstats_quals",
        "powa_qualstats_quals_history_current",
        "powa_stat_bgwriter_history_current",
        "powa_statements",
        "powa_statements_history_current",
        "powa_statements_history_current_db",
        "powa_wait_sampling_history_current",
        "powa_wait_sampling_history_current_db",
    ];
    let powa5 = [
        "powa_all_indexes_history_current",
        "powa_all_indexes_history_current_db",
        "powa_all_tables_history_current",
        "powa_all_tables_history_current_db",
        "powa_catalog_attribute",
        "powa_catalog_class",
        "powa_catalog_collation",
        "powa_catalog_databases",
        "powa_catalog_language",
        "powa_catalog_namespace",
        "powa_catalog_proc",
        "powa_catalog_roles",
        "powa_catalog_type",
        "powa_replication_slots_history_current",
        "powa_stat_activity_history_current",
        "powa_stat_archiver_history_current",
        "powa_stat_checkpointer_history_current",
        "powa_stat_database_conflicts_history_current",
        "powa_stat_database_history_current",
        "powa_stat_io_history_current",
        "powa_stat_replication_history_current",
        "powa_stat_slru_history_current",
        "powa_stat_subscription_history_current",
        "powa_stat_subscription_stats_history_current",
        "powa_stat_wal_history_current",
        "powa_user_functions_history_current",
        "powa_user_functions_history_current_db",
    ];
    both.into_iter().chain(powa5.into_iter().filter(|_| powa.is_v5())).collect()
}

/// Tables that may be empty.
fn may_be_empty(powa: Powa) -> Vec<&'static str> {
    match powa {
        // PoWA 4.1 cannot read these statistics of PostgreSQL 15.
        Powa::V4 => vec![
            "powa_all_relations_history_current",
            "powa_all_relations_history_current_db",
            "powa_user_functions_history_current",
        ],
        // A primary receives no WAL.
        Powa::V5 => vec!["powa_stat_wal_receiver_history_current"],
    }
}

/// Which tables hold what snapshots bring, as opposed to what PoWA makes of it later.
const SNAPSHOT_TABLES: &str = "^(powa_.*_current|powa_.*_current_db|powa_(databases|statements)\
    |powa_qualstats_quals|powa_catalog_(?!src_queries)[a-z]*|pg_track.*_(history|list)|pg_reboot)$";

/// Something for every datasource to tell of.
const WORKLOAD: &str = "
    CREATE TABLE fruit (id integer PRIMARY KEY, name text, weight integer);
    INSERT INTO fruit SELECT i, 'fruit ' || i, i % 10 FROM generate_series(1, 1000) AS i;
    ANALYZE fruit;
    CREATE FUNCTION taste(integer) RETURNS integer LANGUAGE plpgsql AS 'BEGIN RETURN $1 + 1; END';
    SELECT taste(id) FROM fruit WHERE id < 10;
    SELECT a.name FROM fruit AS a JOIN fruit AS b ON a.id = b.weight WHERE b.id = 7 AND a.weight > 1;
    SELECT name FROM fruit WHERE id = 7;
    UPDATE fruit SET weight = 11 WHERE id = 3;
    DELETE FROM fruit WHERE id = 4;
    -- pg_wait_sampling looks every 10 ms
    SELECT pg_sleep(0.1);
    SELECT pg_create_physical_replication_slot('slot');
    CREATE SUBSCRIPTION subscription CONNECTION 'dbname=none' PUBLICATION none
        WITH (connect = false, enabled = false, slot_name = NONE);
    ALTER DATABASE monitored SET work_mem = '5MB';
";

async fn work(client: &Client) {
    for statement in WORKLOAD.split(";\n") {
        run(client, statement).await;
    }
    for _ in 0..7 {
        run(client, MARKED).await;
    }
    flush_statistics(client).await;
}

/// A statement to be found again.
const MARKED: &str = "SELECT name AS marked FROM fruit WHERE weight = 3 LIMIT 5";

on_both_versions! {
    async fn two_snapshots_fill_the_history(powa: Powa) {
        let scene = Scene::with_catalogs(powa).await;
        work(&scene.monitored).await;
        let mut collector = scene.begin_period().await;
        scene.wait_for_snapshots(2).await;
        assert!(collector.stop().await.success());

        let mut times: Vec<String> = Vec::new();
        for table in scene.tables(SNAPSHOT_TABLES).await {
            let name = table.rsplit('.').next().unwrap();
            let has_rows = scene.has_rows(&table, &format!("srvid = {}", scene.id)).await;
            let may_be_empty = may_be_empty(powa).contains(&name);
            assert!(filled(powa).contains(&name) || may_be_empty, "{name} is in neither list");
            assert!(has_rows || may_be_empty, "{name} is empty\n{}", collector.log());
            times.extend(times_in(&scene, &table).await);
        }
        times.sort();
        times.dedup();
        assert_eq!(scene.snapshots().await, times.len() as i64, "the rows of one snapshot have one time");
        assert_eq!(Vec::<String>::new(), scene.errors().await);
        assert_eq!(Vec::<String>::new(), scene.leftovers().await);
        assert!(!collector.log().contains("WARN"), "{}", collector.log());
    }

    async fn rows_say_what_the_source_says(powa: Powa) {
        let scene = Scene::new(powa).await;
        work(&scene.monitored).await;
        scene.snapshot().await;
        assert_like_source(&scene).await;
    }

    async fn a_snapshot_that_goes_through_a_file_is_the_same(powa: Powa) {
        let scene = Scene::with_catalogs(powa).await;
        work(&scene.monitored).await;
        scene.snapshot_with(json!({ "spool": { "memory_limit": 0 } })).await;
        assert_like_source(&scene).await;
        assert_eq!(Vec::<String>::new(), scene.errors().await);
        if powa.is_v5() {
            let copied: i64 = scene.one(
                "SELECT count(*) FROM {powa}.powa_catalog_attribute JOIN {powa}.powa_catalog_databases AS d
                 USING (srvid) WHERE d.oid = dbid AND datname = 'monitored'", &[]).await;
            let there: i64 = one(
                &scene.monitored,
                "SELECT count(*) FROM pg_attribute JOIN pg_class AS c ON c.oid = attrelid
                 WHERE relpersistence <> 't' AND attnum > 0", &[]).await;
            assert_eq!(there, copied);
        }
    }

    async fn a_snapshot_goes_through_a_file_only_when_it_is_large(powa: Powa) {
        let scene = Scene::new(powa).await;
        for (memory_limit, line) in [(100_000_000, "snapshot: "), (1000, "no snapshot: ")] {
            scene.run("UPDATE {powa}.powa_snapshot_metas SET snapts = now() - interval '1 minute'").await;
            let nowhere = json!({ "spool": { "directory": "/proc/nowhere", "memory_limit": memory_limit } });
            let nowhere = Collector::builder(scene.config(nowhere)).environment("TMPDIR", "/proc/nowhere");
            let mut collector = nowhere.start();
            collector.wait_for_log("worker for").await;
            scene.force(scene.id).await;
            let line = collector.wait_for_log(line).await;
            assert_eq!(line.contains("make a spool file in /proc/nowhere"), memory_limit == 1000, "{line}");
            wait_until("the repository knows it", DEADLINE, async || {
                scene.errors().await.is_empty() == (memory_limit != 1000)
            }).await;
            assert!(collector.stop().await.success());
        }
        assert!(scene.error().await.contains("make a spool file in /proc/nowhere"));
    }

    async fn awkward_values_survive(powa: Powa) {
        let scene = Scene::new(powa).await;
        add_awkward_datasource(&scene).await;
        for word in AWKWARD {
            let table = quote_identifier(&format!("table {word}"));
            run(&scene.monitored, &format!("CREATE TABLE {table} (id integer)")).await;
            run(&scene.monitored, &awkward_query(word)).await;
        }
        scene.snapshot().await;
        assert_eq!(Vec::<String>::new(), scene.errors().await);
        assert_awkward_values(&scene).await;
        for word in AWKWARD {
            let sql = "SELECT EXISTS (SELECT FROM {powa}.powa_statements WHERE query = $1)";
            assert!(scene.one::<bool>(sql, &[&awkward_query(word)]).await, "{word:?}");
        }
    }

    async fn the_settings_of_either_side_change_no_value(powa: Powa) {
        let scene = Scene::new(powa).await;
        work(&scene.monitored).await;
        run(&scene.monitored, "
            ALTER DATABASE monitored SET datestyle = 'SQL, DMY';
            ALTER DATABASE monitored SET intervalstyle = 'sql_standard';
            ALTER DATABASE monitored SET extra_float_digits = -10;
            ALTER DATABASE monitored SET bytea_output = 'escape';
            ALTER DATABASE monitored SET timezone = 'America/St_Johns';
            ALTER DATABASE powa SET datestyle = 'Postgres, MDY';
            ALTER DATABASE powa SET intervalstyle = 'iso_8601';
            ALTER DATABASE powa SET timezone = 'Asia/Kathmandu';
            ALTER DATABASE powa SET standard_conforming_strings = off;
        ").await;
        add_awkward_datasource(&scene).await;
        scene.snapshot().await;
        assert_eq!(Vec::<String>::new(), scene.errors().await);
        assert_like_source(&scene).await;
        assert_awkward_values(&scene).await;
        let sql = "SELECT bool_and((record).ts BETWEEN now() - interval '5 min' AND now())
            FROM {powa}.powa_statements_history_current";
        assert!(scene.one::<bool>(sql, &[]).await, "the time is the snapshot's");
    }

    async fn two_servers_are_kept_apart(powa: Powa) {
        let scene = Scene::new(powa).await;
        work(&scene.monitored).await;
        let port = scene.cluster.port();
        let second = Registration::new("127.0.1.2", port).dbname("monitored");
        let second = scene.register(&second.extensions(&["pg_wait_sampling"])).await;
        let mut collector = scene.begin(json!({ "repository": { "max_connections": 1 } })).await;
        collector.wait_for_log("worker for 127.0.1.2").await;
        scene.force(second).await;
        for id in [scene.id, second] {
            collector.wait_for_line(0, "a snapshot", |line| {
                line.contains(&format!("srvid={id}}}: snapshot: "))
            }).await;
        }
        assert!(collector.stop().await.success());

        let servers_of = async |table: &str| -> Vec<i32> {
            scene.one(&format!(
                "SELECT array_agg(DISTINCT srvid ORDER BY srvid) FROM {{powa}}.{table}"), &[]).await
        };
        assert_eq!(vec![scene.id, second], servers_of("powa_statements_history_current").await);
        assert_eq!(vec![scene.id, second], servers_of("powa_wait_sampling_history_current").await);
        assert_eq!(vec![scene.id], servers_of("powa_kcache_metrics_current").await);
        assert_eq!(Vec::<String>::new(), scene.leftovers().await);
        assert_like_source(&scene).await;
    }

    async fn the_monitored_server_does_not_wait_for_the_repository(powa: Powa) {
        let scene = Scene::new(powa).await;
        // An inherited lock_timeout stays, so that the repository is busy for as long as the test wants.
        run(&scene.repository, "ALTER DATABASE powa SET lock_timeout = '60s'").await;
        scene.run("
            CREATE FUNCTION test_busy() RETURNS trigger LANGUAGE plpgsql
                AS 'BEGIN PERFORM pg_advisory_lock(1); RETURN NULL; END';
            CREATE TRIGGER busy BEFORE INSERT ON {powa}.powa_statements_src_tmp
                EXECUTE FUNCTION public.test_busy();
            SELECT pg_advisory_lock(1);
        ").await;
        let mut collector = scene.begin(json!({})).await;

        let waiting = "SELECT EXISTS (SELECT FROM pg_stat_activity
            WHERE application_name LIKE 'PoWA collector - repo_conn%' AND wait_event_type = 'Lock')";
        wait_until("the repository is busy", DEADLINE, async || {
            one::<bool>(&scene.monitored, waiting, &[]).await
        }).await;
        let sessions = scene.monitored.query(
            "SELECT datname::text, state FROM pg_stat_activity
             WHERE application_name LIKE 'PoWA collector - worker%'", &[]).await.unwrap();
        let sessions: Vec<(String, String)> = sessions.iter().map(|row| (row.get(0), row.get(1))).collect();
        assert_eq!(vec![("monitored".to_owned(), "idle".to_owned())], sessions);

        scene.run("SELECT pg_advisory_unlock(1)").await;
        collector.wait_for_log("}: snapshot: ").await;
        assert_eq!(1, scene.snapshots().await);
    }
}

/// The times of a table's rows, wherever in a row they are.
async fn times_in(scene: &Scene, table: &str) -> Vec<String> {
    scene
        .one(
            &format!(
                "SELECT coalesce(array_agg(DISTINCT time) FILTER (WHERE time IS NOT NULL), '{{}}')
                 FROM (
                     SELECT coalesce(r ->> 'ts', r -> 'record' ->> 'ts', r -> 'metrics' ->> 'ts') AS time
                     FROM {table} AS t, to_jsonb(t) AS r
                     WHERE srvid = $1 AND '{table}' !~ 'pg_reboot'
                 ) AS times"
            ),
            &[&scene.id],
        )
        .await
}

/// Compares what was stored of a statement, a function, a table and an index with the monitored server's own
/// view of them: all columns that both have.
async fn assert_like_source(scene: &Scene) {
    let queryid: i64 = one(
        &scene.monitored,
        "SELECT queryid FROM pg_stat_statements WHERE query LIKE $1",
        &[&"%AS marked%"],
    )
    .await;
    let statement = format!("queryid = {queryid}");
    same(scene, "pg_stat_statements", "powa_statements_history_current", &statement, 15).await;
    if scene.is_powa5() {
        let function = format!("funcid = {}", oid(scene, "'taste(integer)'::regprocedure").await);
        same(scene, "pg_stat_user_functions", "powa_user_functions_history_current", &function, 3).await;
        let table = format!("relid = {}", oid(scene, "'fruit'::regclass").await);
        same(scene, "pg_stat_all_tables", "powa_all_tables_history_current", &table, 15).await;
        let index = format!("indexrelid = {}", oid(scene, "'fruit_pkey'::regclass").await);
        same(scene, "pg_stat_all_indexes", "powa_all_indexes_history_current", &index, 3).await;
    }
}

async fn oid(scene: &Scene, expression: &str) -> u32 {
    one(&scene.monitored, &format!("SELECT {expression}::oid"), &[]).await
}

async fn same(scene: &Scene, source: &str, stored: &str, which: &str, columns: usize) {
    let there: String =
        one(&scene.monitored, &format!("SELECT to_jsonb(s)::text FROM {source} AS s WHERE {which}"), &[])
            .await;
    let here: String = scene
        .one(
            &format!("SELECT to_jsonb(record)::text FROM {{powa}}.{stored} WHERE {which} AND srvid = $1"),
            &[&scene.id],
        )
        .await;
    let (there, here): (Value, Value) = (there.parse().unwrap(), here.parse().unwrap());
    let (there, here) = (there.as_object().unwrap(), here.as_object().unwrap());
    let common: Vec<_> = here.keys().filter(|key| there.contains_key(*key)).collect();
    assert!(common.len() >= columns, "{source} and {stored} have in common only {common:?}");
    for key in common {
        assert_eq!(there[key], here[key], "{key} of {source} and {stored}");
    }
}

/// Texts that COPY, SQL or a careless program could take for something else.
const AWKWARD: &[&str] = &[
    "a\tb",
    "a\nb",
    "\n\\.\n",
    "\r\n",
    "\\N",
    "\\.",
    "\\\\",
    "ends in \\",
    "it's",
    "\"quoted\"",
    "{1,\"2\"}",
    "$1 %s {powa}",
    "é 漢字 🦀 \u{feff}",
    "\u{1}\u{7f}",
    " ",
];

const AWKWARD_COLUMNS: &str = "number bigint, word text, words text[], span interval, day date, \
    moment timestamptz, fraction float8, bytes bytea, nothing text, empty text";

fn awkward_query(word: &str) -> String {
    format!("SELECT *\n\tFROM {} /* {word} */", quote_identifier(&format!("table {word}")))
}

async fn add_awkward_datasource(scene: &Scene) {
    let words: Vec<_> = AWKWARD.iter().map(|word| format!("'{}'", word.replace('\'', "''"))).collect();
    let query = format!(
        "SELECT number, word, ARRAY[word, NULL, ''], interval '-2 days -03:04:05.678901',
             date '2026-02-03', timestamptz '2026-02-03 04:05:06.789012+00', 1 / 3::float8,
             convert_to(word, 'UTF8'), NULL, ''
         FROM unnest(ARRAY[{}]) WITH ORDINALITY AS w (word, number)",
        words.join(", ")
    );
    scene.add_datasource("awkward", AWKWARD_COLUMNS, &query, None).await;
}

async fn assert_awkward_values(scene: &Scene) {
    let rows = "SELECT array_agg((to_jsonb(t) - 'srvid')::text ORDER BY number) FROM";
    let source = format!("{rows} {}.test_awkward_src(0) AS t", powa_schema(&scene.monitored).await);
    let there: Vec<String> = one(&scene.monitored, &source, &[]).await;
    let here: Vec<String> = scene.one(&format!("{rows} {{powa}}.test_awkward_history AS t"), &[]).await;
    assert_eq!(AWKWARD.len(), there.len());
    assert_eq!(there, here);
}
