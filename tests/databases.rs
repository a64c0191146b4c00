//! What is read in each database of a server, which PoWA 5 brought: per-database modules and catalogs.

mod scene;
#[allow(unused_macros, reason = "all of it is about PoWA 5")]
mod support;

use scene::{Scene, flush_statistics, one, run};
use serde_json::json;
use support::{Control, DEADLINE, Powa, quote_identifier, wait_until};

/// A name that needs quoting wherever it can stand: in SQL, in a connection string, in a message.
const ODD: &str = r#"we"ird 'name' \ é"#;

mod powa5 {
    use super::*;

    #[tokio::test]
    async fn modules_are_read_in_every_database_of_whatever_name() {
        let scene = Scene::new(Powa::V5).await;
        let tables = [create(&scene, "plain").await, create(&scene, ODD).await];
        scene.snapshot().await;
        for (name, table) in ["plain", ODD].iter().zip(tables) {
            let rows = "SELECT (record).n_tup_ins FROM {powa}.powa_all_tables_history_current
                JOIN {powa}.powa_databases AS d ON d.srvid = $1 AND d.oid = dbid AND d.datname = $2
                WHERE relid = $3";
            assert_eq!(3, scene.one::<i64>(rows, &[&scene.id, name, &table]).await, "{name}");
        }
        assert_eq!(
            vec!["monitored", "plain", "postgres", "powa", "template1", ODD],
            read_in(&scene, INDEXES).await
        );
        assert_eq!(Vec::<String>::new(), scene.errors().await);
        assert_eq!(Vec::<String>::new(), scene.leftovers().await);
    }

    #[tokio::test]
    async fn a_module_can_be_restricted_to_some_databases() {
        let scene = Scene::new(Powa::V5).await;
        create(&scene, ODD).await;
        let sql =
            "UPDATE {powa}.powa_db_module_config SET dbnames = $1 WHERE db_module = 'pg_stat_all_tables'";
        scene.execute(sql, &[&vec![ODD, "monitored", "no such database"]]).await;
        scene.snapshot().await;
        assert_eq!(vec!["monitored", ODD], read_in(&scene, TABLES).await);
        assert_eq!(vec!["monitored", "postgres", "powa", "template1", ODD], read_in(&scene, INDEXES).await);
        assert_eq!(Vec::<String>::new(), scene.errors().await);
    }

    #[tokio::test]
    async fn a_deactivated_module_is_not_read() {
        let scene = Scene::new(Powa::V5).await;
        scene
            .one::<bool>("SELECT {powa}.powa_deactivate_db_module($1, 'pg_stat_all_tables')", &[&scene.id])
            .await;
        scene.snapshot().await;
        assert_eq!(Vec::<String>::new(), read_in(&scene, TABLES).await);
        assert!(!read_in(&scene, INDEXES).await.is_empty());
    }

    #[tokio::test]
    async fn a_database_without_connections_is_left_out_and_a_new_one_is_found() {
        let scene = Scene::new(Powa::V5).await;
        for name in ["closed", "late"] {
            create(&scene, name).await;
            run(&scene.monitored, &format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false")).await;
        }
        let mut collector = scene.begin_period().await;
        scene.wait_for_snapshots(1).await;
        run(&scene.monitored, "ALTER DATABASE late ALLOW_CONNECTIONS true").await;
        wait_until("the new database is read", DEADLINE, async || {
            read_in(&scene, TABLES).await.contains(&"late".to_owned())
        })
        .await;
        assert_eq!(vec!["late", "monitored", "postgres", "powa", "template1"], read_in(&scene, TABLES).await);
        assert_eq!(Vec::<String>::new(), scene.errors().await);
        assert!(collector.stop().await.success());
    }

    #[tokio::test]
    async fn a_database_that_cannot_be_connected_to_costs_only_its_own_rows() {
        let scene = Scene::new(Powa::V5).await;
        create(&scene, "forbidden").await;
        scene.cluster.set_hba("host forbidden all all reject\nhost all all all trust");
        scene.cluster.reload().await;
        let log = scene.snapshot().await;
        let error = scene.error().await;
        assert!(error.contains("database forbidden") && error.contains("pg_hba.conf"), "{error}");
        assert_eq!(1, scene.cluster.log().matches("pg_hba.conf rejects").count(), "{log}");
        assert!(log.contains(&error), "{log}");
        assert_eq!(vec!["monitored", "postgres", "powa", "template1"], read_in(&scene, TABLES).await);
        assert!(scene.count("powa_statements_history_current").await > 0);
        assert_eq!(Vec::<String>::new(), scene.leftovers().await);
    }

    #[tokio::test]
    async fn a_module_that_fails_in_one_database_is_read_in_the_others() {
        let scene = Scene::new(Powa::V5).await;
        let query = "SELECT 1 AS one,
            1 / (CASE current_database() WHEN ''monitored'' THEN 0 ELSE 1 END) AS two -- a comment";
        add_module(&scene, "test", MODULE_TABLE, query).await;
        scene.snapshot().await;
        let error = scene.error().await;
        for part in ["database monitored", "test", "division by zero"] {
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(vec!["postgres", "powa", "template1"], read_in(&scene, "test_module_history").await);
        assert!(!read_in(&scene, TABLES).await.is_empty());
    }

    #[tokio::test]
    async fn modules_with_the_same_wrong_query_cost_only_their_own_rows() {
        let scene = Scene::new(Powa::V5).await;
        for name in ["test_one", "test_two"] {
            add_module(&scene, name, MODULE_TABLE, "no statement").await;
        }
        scene.snapshot().await;
        for name in ["test_one", "test_two"] {
            let errors = scene.errors().await;
            let said = errors.iter().filter(|error| error.contains(name) && error.contains("syntax error"));
            assert_eq!(4, said.count(), "once for each database: {errors:#?}");
        }
        assert!(!read_in(&scene, TABLES).await.is_empty());
    }

    #[tokio::test]
    async fn a_target_that_is_no_table_name_is_refused() {
        let scene = Scene::new(Powa::V5).await;
        for (name, target) in [
            ("test_hostile", "powa_databases; DROP TABLE powa_databases; --"),
            ("test_quoted", r#"powa_databases" FROM STDIN; --"#),
            ("test_empty", ""),
            ("test_program", "powa_databases FROM PROGRAM 'false'"),
        ] {
            add_module(&scene, name, target, "SELECT 1 AS one, 2 AS two").await;
        }
        let log = scene.snapshot().await;
        let errors = scene.errors().await;
        assert_eq!(4, errors.len(), "{errors:#?}");
        for name in ["test_hostile", "test_quoted", "test_empty", "test_program"] {
            assert!(errors.iter().any(|error| error.contains(name)), "{errors:#?}");
        }
        assert!(errors.iter().all(|error| log.contains(error)), "{log}");
        assert!(scene.count("powa_databases").await > 0);
        assert!(!read_in(&scene, TABLES).await.is_empty());
    }

    #[tokio::test]
    async fn a_cleanup_that_names_an_extension_which_is_not_there_is_not_run() {
        let scene = Scene::new(Powa::V5).await;
        run(&scene.monitored, "DROP EXTENSION pg_qualstats").await;
        let cleanup = "SELECT {pg_qualstats}.pg_qualstats_reset()";
        scene.add_datasource("read", "number integer", "SELECT 1", Some(cleanup)).await;
        scene.snapshot().await;
        let errors = scene.errors().await;
        assert_eq!(2, errors.len(), "{errors:#?}");
        assert!(errors.iter().any(|error| error.contains("cleanup") && error.contains("pg_qualstats")));
        assert_eq!(1, scene.count("test_read_history").await);
    }

    #[tokio::test]
    async fn catalogs_are_copied_once_and_again_when_asked() {
        let scene = Scene::with_one_catalog(Powa::V5).await;
        create(&scene, ODD).await;
        scene.snapshot().await;
        let first = copies(&scene).await;
        let databases: Vec<_> = first.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(vec!["monitored", "postgres", "powa", "template1", ODD], databases);

        for database in ["monitored", "postgres", ODD] {
            run(&scene.cluster.client(database).await, "CREATE TABLE young ()").await;
        }
        scene.snapshot().await;
        assert_eq!(first, copies(&scene).await);

        // The odd name cannot be asked for: the channel's words are separated by spaces.
        snapshot_after(&scene, &["1 2 monitored powa"]).await;
        let second = copies(&scene).await;
        assert_eq!(vec!["monitored"], databases_with(&scene, "young").await);
        assert_eq!(vec!["monitored", "powa"], changed(&first, &second));

        snapshot_after(&scene, &["1 0"]).await;
        let third = copies(&scene).await;
        assert_eq!(vec!["monitored", "postgres", ODD], databases_with(&scene, "young").await);
        assert_eq!(databases, changed(&second, &third));

        snapshot_after(&scene, &["1 1 powa", "1 1 monitored"]).await;
        let fourth = copies(&scene).await;
        assert_eq!(vec!["monitored", "powa"], changed(&third, &fourth));
        scene.snapshot().await;
        assert_eq!(fourth, copies(&scene).await);
        assert_eq!(Vec::<String>::new(), scene.leftovers().await);
    }

    #[tokio::test]
    async fn the_catalogs_of_a_new_database_are_copied() {
        let scene = Scene::with_one_catalog(Powa::V5).await;
        scene.snapshot().await;
        create(&scene, "late").await;
        scene.snapshot().await;
        assert_eq!(vec!["late"], databases_with(&scene, "counted").await);
    }

    #[tokio::test]
    async fn connections_to_databases_are_few_and_closed_after() {
        let scene = Scene::new(Powa::V5).await;
        // It counts the connections besides the one that the worker keeps, when others had the time to open.
        let query = "SELECT count(*) - 1 AS one, 2 AS two FROM pg_sleep(0.5), pg_stat_activity
            WHERE application_name LIKE ''PoWA collector - worker%''";
        add_module(&scene, "test", MODULE_TABLE, query).await;
        for limit in [2, 1] {
            scene.run("TRUNCATE {powa}.test_module_history").await;
            let extra = json!({ "fetch": { "database_connections": limit } });
            let mut collector = scene.begin(extra).await;
            collector.wait_for_log("}: snapshot: ").await;
            let most = "SELECT max(one) FROM {powa}.test_module_history";
            assert_eq!(limit, scene.one::<i32>(most, &[]).await);
            wait_until("the connections are closed", DEADLINE, async || {
                let open = "SELECT count(*) FROM pg_stat_activity
                    WHERE application_name LIKE 'PoWA collector - worker%'";
                one::<i64>(&scene.monitored, open, &[]).await == 1
            })
            .await;
            assert!(collector.stop().await.success());
        }
    }
}

const TABLES: &str = "powa_all_tables_history_current";
const INDEXES: &str = "powa_all_indexes_history_current";

/// Where the rows of [`add_module`] go.
const MODULE_TABLE: &str = "{powa}.test_module_src_tmp";

/// Makes a database with a table that has three rows. Gives the table's oid.
async fn create(scene: &Scene, name: &str) -> u32 {
    run(&scene.monitored, &format!("CREATE DATABASE {}", quote_identifier(name))).await;
    let client = scene.cluster.client(name).await;
    run(&client, "CREATE TABLE counted (id integer PRIMARY KEY)").await;
    run(&client, "INSERT INTO counted SELECT generate_series(1, 3)").await;
    flush_statistics(&client).await;
    one(&client, "SELECT 'counted'::regclass::oid", &[]).await
}

/// The databases that a history table has rows of.
async fn read_in(scene: &Scene, table: &str) -> Vec<String> {
    let sql = format!(
        "SELECT coalesce(array_agg(DISTINCT d.datname::text COLLATE \"C\"), '{{}}')
         FROM {{powa}}.{table} JOIN {{powa}}.powa_databases AS d ON d.srvid = $1 AND d.oid = dbid"
    );
    scene.one(&sql, &[&scene.id]).await
}

/// Databases whose catalogs were copied, and when.
async fn copies(scene: &Scene) -> Vec<(String, String)> {
    let sql = "SELECT datname, last_refresh::text FROM {powa}.powa_catalog_databases
        WHERE srvid = $1 AND last_refresh IS NOT NULL ORDER BY datname COLLATE \"C\"";
    let rows = scene.repository.query(&scene.sql(sql), &[&scene.id]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// Databases in whose copied catalogs a table is.
async fn databases_with(scene: &Scene, table: &str) -> Vec<String> {
    let sql = "SELECT coalesce(array_agg(datname ORDER BY datname COLLATE \"C\"), '{}')
        FROM {powa}.powa_catalog_class JOIN {powa}.powa_catalog_databases AS d USING (srvid)
        WHERE d.oid = dbid AND relname = $1";
    scene.one(sql, &[&table]).await
}

/// A per-database module of the test's own, whose query gives two numbers, `one` and `two`.
async fn add_module(scene: &Scene, name: &str, target: &str, query: &str) {
    scene
        .run(&format!(
            "CREATE TABLE IF NOT EXISTS {{powa}}.test_module_src_tmp
                 (srvid integer, ts timestamptz, dbid oid, one integer, two integer);
             CREATE TABLE IF NOT EXISTS {{powa}}.test_module_history (LIKE {{powa}}.test_module_src_tmp);
             CREATE OR REPLACE FUNCTION {{powa}}.test_module_snapshot(_srvid integer) RETURNS void
             LANGUAGE sql AS $$
                 WITH moved AS (DELETE FROM {{powa}}.test_module_src_tmp WHERE srvid = _srvid RETURNING *)
                 INSERT INTO {{powa}}.test_module_history SELECT * FROM moved
             $$;
             INSERT INTO {{powa}}.powa_db_modules (db_module, tmp_table, external)
                 VALUES ('{name}', '{}', false);
             INSERT INTO {{powa}}.powa_db_module_functions (db_module, operation, function_name)
                 VALUES ('{name}', 'snapshot', 'test_module_snapshot');
             INSERT INTO {{powa}}.powa_db_module_src_queries (db_module, min_version, query_source)
                 VALUES ('{name}', 0, '{query}');
             INSERT INTO {{powa}}.powa_db_module_config (srvid, db_module) VALUES ({}, '{name}');",
            target.replace('\'', "''"),
            scene.id
        ))
        .await;
}

/// Takes a snapshot after catalogs were asked for.
async fn snapshot_after(scene: &Scene, requests: &[&str]) {
    let mut collector = scene.stand_by(json!({})).await;
    let mut control = Control::connect(&scene.cluster, &scene.repository_name).await;
    for request in requests {
        let answer = control.ask("REFRESH_DB_CAT", request).await;
        assert!(answer.starts_with("REFRESH_DB_CAT OK"), "{answer}");
    }
    scene.force(scene.id).await;
    collector.wait_for_log("}: snapshot: ").await;
    assert!(collector.stop().await.success());
    assert_eq!(Vec::<String>::new(), scene.errors().await);
}

/// The databases whose catalogs were copied in between.
fn changed<'a>(before: &[(String, String)], after: &'a [(String, String)]) -> Vec<&'a str> {
    after.iter().filter(|copy| !before.contains(copy)).map(|(name, _)| name.as_str()).collect()
}
