//! What fails costs only itself, and is said: in the log and in `powa_snapshot_metas.errors`.

mod scene;
mod support;

use std::cell::Cell;

use nix::sys::signal::kill;
use nix::unistd::Pid;
use scene::{Scene, one, run};
use serde_json::json;
use support::{Collector, DEADLINE, EXTENSIONS, Powa, Signal, on_both_versions, wait_until};

/// What datasources that a test adds are called in errors.
const DATASOURCE: &str = "plpgsql";

on_both_versions! {
    async fn a_dropped_extension_costs_only_its_own_rows(powa: Powa) {
        let scene = Scene::new(powa).await;
        run(&scene.monitored, "DROP EXTENSION pg_stat_kcache").await;
        let log = scene.snapshot().await;
        let error = scene.error().await;
        let missing = "the extension pg_stat_kcache is not installed on the monitored server";
        assert!(error.contains(missing), "{error}");
        assert!(log.contains(&error), "{log}");
        assert_eq!(0, scene.count("powa_kcache_metrics_current").await);
        assert_the_rest_is_stored(&scene).await;
    }

    async fn an_extension_missing_in_the_repository_costs_only_its_own_rows(powa: Powa) {
        let scene = Scene::new(powa).await;
        run(&scene.repository, "DROP EXTENSION pg_track_settings").await;
        let log = scene.snapshot().await;
        let missing = scene.pick(
            "pg_track_settings_settings_src_tmp\" does not exist",
            "the extension pg_track_settings is not installed on the repository server",
        );
        let errors = scene.errors().await;
        assert!(errors.iter().all(|error| error.contains("pg_track_settings")), "{errors:#?}");
        assert!(errors.iter().any(|error| error.contains(missing)), "{errors:#?}");
        assert!(log.contains(missing), "{log}");
        assert!(scene.count("powa_statements_history_current").await > 0);
        assert!(scene.count("powa_stat_bgwriter_history_current").await > 0);
    }

    async fn a_failing_datasource_leaves_no_part_of_its_rows(powa: Powa) {
        let scene = Scene::new(powa).await;
        // This function is inlined: its rows are on their way before the last one fails.
        let half = "SELECT number, 1 / (200000 - number) FROM generate_series(1, 200000) AS number";
        scene.add_datasource("half", "number integer, quotient integer", half, None).await;
        scene.add_datasource("missing", "number integer", "SELECT 1", None).await;
        run(&scene.monitored, "DROP FUNCTION test_missing_src").await;
        scene.add_datasource("well", "number integer", "SELECT 1", None).await;
        let log = scene.snapshot().await;
        let errors = scene.errors().await;
        assert_eq!(2, errors.len(), "{errors:#?}");
        assert!(errors.iter().any(|error| error.contains("division by zero")), "{errors:#?}");
        assert!(errors.iter().any(|error| error.contains("test_missing_src(integer) does not exist")));
        assert!(errors.iter().all(|error| log.contains(error)), "{log}");
        assert_eq!(0, scene.count("test_half_history").await);
        assert_eq!(1, scene.count("test_well_history").await);
        assert_the_rest_is_stored(&scene).await;
    }

    async fn a_datasource_without_a_source_is_skipped_with_a_warning(powa: Powa) {
        let scene = Scene::new(powa).await;
        let functions = scene.pick("powa_functions", "powa_extension_functions");
        scene.run(&format!("UPDATE {{powa}}.{functions} SET query_source = NULL
            WHERE function_name = 'powa_kcache_snapshot'")).await;
        let log = scene.snapshot().await;
        assert!(log.lines().any(|line| {
            line.contains("WARN") && line.contains("pg_stat_kcache") && line.contains("query_source")
        }), "{log}");
        assert_eq!(Vec::<String>::new(), scene.errors().await);
        assert_eq!(0, scene.count("powa_kcache_metrics_current").await);
        assert_the_rest_is_stored(&scene).await;
    }

    async fn a_cleanup_follows_its_datasource_even_when_that_failed(powa: Powa) {
        let scene = Scene::new(powa).await;
        let cleanup = |note| format!("INSERT INTO public.cleanups VALUES ('{note}')");
        run(&scene.monitored, "CREATE TABLE public.cleanups (note text)").await;
        let before = "SELECT count(*)::integer FROM public.cleanups WHERE note = 'read'";
        scene.add_datasource("read", "before integer", before, Some(&cleanup("read"))).await;
        let half = "SELECT 1 / (3 - number) FROM generate_series(1, 5) AS number";
        scene.add_datasource("failed", "number integer", half, Some(&cleanup("failed"))).await;
        scene.add_datasource("gone", "number integer", "SELECT 1", Some(&cleanup("gone"))).await;
        run(&scene.monitored, "DROP FUNCTION test_gone_src").await;
        scene.snapshot().await;
        let errors = scene.errors().await;
        assert_eq!(2, errors.len(), "{errors:#?}");
        assert_eq!(vec!["failed", "gone", "read"], cleanups(&scene).await);
        assert_eq!(0, scene.one::<i32>("SELECT before FROM {powa}.test_read_history", &[]).await);
    }

    async fn a_failing_cleanup_costs_nothing_else(powa: Powa) {
        let scene = Scene::new(powa).await;
        run(&scene.monitored, "CREATE TABLE public.cleanups (note text)").await;
        let half = "INSERT INTO public.cleanups SELECT 1 / (3 - number) FROM generate_series(1, 5) AS number";
        scene.add_datasource("a", "number integer", "SELECT 1", Some(half)).await;
        let well = "INSERT INTO public.cleanups VALUES ('well')";
        scene.add_datasource("b", "number integer", "SELECT 1", Some(well)).await;
        scene.add_datasource("c", "number integer", "SELECT 1", Some("no statement")).await;
        let log = scene.snapshot().await;
        let errors = scene.errors().await;
        assert_eq!(2, errors.len(), "{errors:#?}");
        assert!(errors.iter().all(|error| error.contains("cleanup")), "{errors:#?}");
        assert!(errors[0].contains("division by zero") && errors[1].contains("syntax error"), "{errors:#?}");
        assert!(errors.iter().all(|error| log.contains(error)), "{log}");
        assert_eq!(vec!["well"], cleanups(&scene).await);
        for table in ["test_a_history", "test_b_history", "test_c_history"] {
            assert_eq!(1, scene.count(table).await, "{table}");
        }
        assert_the_rest_is_stored(&scene).await;
    }

    async fn rows_that_the_repository_refuses_cost_only_themselves(powa: Powa) {
        let scene = Scene::new(powa).await;
        let rows = "SELECT * FROM generate_series(1, 10000)";
        for name in ["refused", "narrow", "taken"] {
            scene.add_datasource(name, "number integer", rows, None).await;
        }
        scene.run("
            ALTER TABLE {powa}.test_refused_src_tmp ADD CHECK (number < 9000);
            ALTER TABLE {powa}.test_narrow_src_tmp DROP COLUMN number;
        ").await;
        let log = scene.snapshot().await;
        let errors = scene.errors().await;
        assert_eq!(2, errors.len(), "{errors:#?}");
        for name in ["refused", "narrow"] {
            let table = format!("test_{name}_src_tmp");
            assert!(errors.iter().any(|error| error.contains(&table)), "{errors:#?}");
        }
        assert!(errors.iter().all(|error| log.contains(error)), "{log}");
        assert_eq!(0, scene.count("test_refused_history").await);
        assert_eq!(10_000, scene.count("test_taken_history").await);
        assert_the_rest_is_stored(&scene).await;
    }

    async fn a_missing_or_locked_table_of_the_repository_costs_only_its_own_rows(powa: Powa) {
        let scene = Scene::new(powa).await;
        for name in ["missing", "locked", "taken"] {
            scene.add_datasource(name, "number integer", "SELECT 1", None).await;
        }
        scene.run("DROP TABLE {powa}.test_missing_src_tmp").await;
        let mut other = scene.cluster.client("powa").await;
        let other = other.transaction().await.unwrap();
        let lock = scene.sql("LOCK TABLE {powa}.test_locked_src_tmp IN SHARE MODE");
        other.batch_execute(&lock).await.unwrap();
        let log = scene.snapshot().await;
        other.commit().await.unwrap();
        let errors = scene.errors().await;
        for (name, reason) in [("missing", "does not exist"), ("locked", "lock timeout")] {
            let table = format!("test_{name}_src_tmp");
            let of_table: Vec<_> = errors.iter().filter(|error| error.contains(&table)).collect();
            assert!(of_table.iter().any(|error| error.contains(reason) && log.contains(*error)), "{errors:#?}");
        }
        assert_eq!(1, scene.count("test_taken_history").await);
        assert_the_rest_is_stored(&scene).await;
    }

    async fn a_failing_powa_take_snapshot_leaves_nothing_behind(powa: Powa) {
        let scene = Scene::new(powa).await;
        scene.run("
            UPDATE {powa}.powa_snapshot_metas SET errors = '{older}';
            ALTER FUNCTION {powa}.powa_take_snapshot(integer) RENAME TO real_take_snapshot;
            CREATE FUNCTION {powa}.powa_take_snapshot(_srvid integer) RETURNS integer LANGUAGE plpgsql AS $$
            BEGIN
                PERFORM {powa}.real_take_snapshot(_srvid);
                RAISE 'this snapshot is broken';
            END $$;
        ").await;
        let mut collector = scene.begin_period().await;
        collector.wait_for_log("this snapshot is broken").await;
        wait_until("the failure is written down", DEADLINE, async || scene.errors().await != ["older"]).await;
        assert!(scene.error().await.contains("this snapshot is broken"));
        assert_eq!(0, scene.snapshots().await);
        assert_eq!(Vec::<String>::new(), scene.leftovers().await);
        assert_eq!(0, scene.count("powa_statements_history_current").await);

        scene.run("
            DROP FUNCTION {powa}.powa_take_snapshot(integer);
            ALTER FUNCTION {powa}.real_take_snapshot(integer) RENAME TO powa_take_snapshot;
        ").await;
        scene.wait_for_snapshots(1).await;
        assert_eq!(Vec::<String>::new(), scene.errors().await);
        assert_the_rest_is_stored(&scene).await;
    }

    async fn a_snapshot_while_another_is_taken_waits_for_it(powa: Powa) {
        let scene = Scene::new(powa).await;
        let mut other = scene.cluster.client("powa").await;
        let other = other.transaction().await.unwrap();
        other.batch_execute(&scene.sql("SELECT FROM {powa}.powa_snapshot_metas FOR UPDATE")).await.unwrap();
        let mut collector = Collector::start(scene.config(json!({})));
        collector.wait_for_log("worker for").await;
        scene.force(scene.id).await;
        let line = collector.wait_for_log("the repository does not take snapshots").await;
        assert!(line.contains(&format!("another snapshot of server {} is being stored", scene.id)), "{line}");
        assert_eq!(Vec::<String>::new(), scene.leftovers().await);
        other.commit().await.unwrap();
        scene.wait_for_snapshots(1).await;
        assert_eq!(Vec::<String>::new(), scene.errors().await);
    }

    async fn errors_of_the_repository_come_before_the_collectors_own(powa: Powa) {
        let scene = Scene::new(powa).await;
        break_snapshot_function(&scene).await;
        run(&scene.monitored, "DROP EXTENSION pg_stat_kcache").await;
        let log = scene.snapshot().await;
        let errors = scene.errors().await;
        assert_eq!(2, errors.len(), "{errors:#?}");
        assert!(errors[0].contains("this function is broken"), "{errors:#?}");
        assert!(errors[1].contains("pg_stat_kcache"), "{errors:#?}");
        assert!(log.lines().any(|line| {
            line.contains("WARN") && line.contains("errors met by powa_take_snapshot: 1;")
        }), "{log}");
    }

    async fn rows_that_powa_cannot_take_over_do_not_pile_up(powa: Powa) {
        let scene = Scene::new(powa).await;
        break_snapshot_function(&scene).await;
        scene.snapshot().await;
        let first = scene.count("test_broken_src_tmp").await;
        scene.snapshot().await;
        assert_eq!(first, scene.count("test_broken_src_tmp").await);
    }

    async fn another_version_on_the_monitored_server_is_refused_or_replaced_until_mended(powa: Powa) {
        let scene = Scene::new(powa).await;
        let version: String =
            scene.one("SELECT extversion FROM pg_extension WHERE extname = 'powa'", &[]).await;
        let fake = |version: &str| {
            format!("UPDATE pg_catalog.pg_extension SET extversion = '{version}' WHERE extname = 'powa'")
        };
        run(&scene.monitored, &fake("9.9.9")).await;
        let mut collector = scene.begin_period().await;
        if scene.is_powa5() {
            collector.wait_for_log("the server's PoWA is 9.9.9: read by the repository's own definitions").await;
            scene.wait_for_snapshots(1).await;
            assert_eq!(Vec::<String>::new(), scene.errors().await);
            run(&scene.monitored, &fake(&version)).await;
            collector.wait_for_log("read by the server's own PoWA").await;
            wait_until("nothing is wrong", DEADLINE, async || scene.errors().await.is_empty()).await;
            return;
        }
        let line = collector.wait_for_log("no snapshot: ").await;
        wait_until("the failure is written down", DEADLINE, async || !scene.errors().await.is_empty()).await;
        let error = scene.error().await;
        assert!(error.contains("9.9.9") && error.contains(&version), "{error}");
        assert!(line.contains(&error), "{line}");
        assert_eq!(0, scene.snapshots().await);
        assert_eq!(Vec::<String>::new(), scene.leftovers().await);

        run(&scene.monitored, &fake(&version)).await;
        scene.wait_for_snapshots(1).await;
        assert_eq!(Vec::<String>::new(), scene.errors().await);
    }

    async fn a_repository_that_is_too_old_is_refused_until_upgraded(powa: Powa) {
        let scene = Scene::new(powa).await;
        scene.run("
            CREATE TABLE kept AS SELECT extversion FROM pg_extension WHERE extname = 'powa';
            UPDATE pg_catalog.pg_extension SET extversion = '3.2.0' WHERE extname = 'powa';
        ").await;
        let mut collector = Collector::start(scene.config(json!({})));
        let line = collector.wait_for_log("3.2.0").await;
        assert!(line.contains("4.0"), "it does not say what is needed: {line}");
        scene.run("
            UPDATE pg_catalog.pg_extension SET extversion = kept.extversion FROM kept WHERE extname = 'powa'
        ").await;
        collector.wait_for_log("worker for").await;
        scene.force(scene.id).await;
        scene.wait_for_snapshots(1).await;
    }

    async fn a_monitored_database_that_lacks_what_it_needs_is_told_until_it_has_it(powa: Powa) {
        let scene = Scene::new(powa).await;
        scene.run("UPDATE {powa}.powa_servers SET dbname = 'postgres' WHERE id > 0").await;
        let mut collector = scene.begin_period().await;
        let line = collector.wait_for_log(scene.pick("no snapshot: ", "pg_stat_statements is not installed")).await;
        wait_until("the failure is written down", DEADLINE, async || !scene.errors().await.is_empty()).await;
        let error = &scene.errors().await[0];
        let lacks = scene.pick("database postgres of the monitored server has no extension powa", "pg_stat_statements is not installed");
        assert!(error.contains(lacks), "{error}");
        assert!(line.contains(error), "{line}");

        let mended = scene.cluster.client("postgres").await;
        for extension in ["powa"].iter().chain(EXTENSIONS) {
            run(&mended, &format!("CREATE EXTENSION {extension} CASCADE")).await;
        }
        wait_until("a snapshot without errors", DEADLINE, async || scene.errors().await.is_empty()).await;
        assert_the_rest_is_stored(&scene).await;
    }

    async fn a_datasource_that_takes_too_long_costs_only_itself(powa: Powa) {
        let scene = Scene::new(powa).await;
        scene.add_datasource("slow", "number integer", "SELECT 1 FROM pg_sleep(600)", None).await;
        scene.add_datasource("well", "number integer", "SELECT 1", None).await;
        let log = scene.snapshot_with(json!({ "timeouts": { "datasource": 3 } })).await;
        let error = scene.error().await;
        assert!(error.contains("statement timeout"), "{error}");
        assert!(log.contains(&error), "{log}");
        assert_eq!(0, scene.count("test_slow_history").await);
        assert_eq!(1, scene.count("test_well_history").await);
        assert_the_rest_is_stored(&scene).await;
    }

    async fn a_shorter_statement_timeout_of_the_servers_own_holds(powa: Powa) {
        let scene = Scene::new(powa).await;
        run(&scene.monitored, "ALTER DATABASE monitored SET statement_timeout = '3500ms'").await;
        scene.add_datasource("slow", "number integer", "SELECT 1 FROM pg_sleep(600)", None).await;
        scene.snapshot().await;
        let error = scene.error().await;
        assert!(error.contains("statement timeout"), "{error}");
        assert_the_rest_is_stored(&scene).await;
    }

    async fn a_server_that_falls_silent_costs_one_deadline(powa: Powa) {
        let scene = Scene::new(powa).await;
        scene.add_datasource("slow", "number integer", "SELECT 1 FROM pg_sleep(600)", None).await;
        let timeouts = json!({ "timeouts": { "datasource": 4, "close": 1 } });
        let mut collector = scene.begin(timeouts).await;
        let backend = Cell::new(0);
        wait_until("the datasource is being read", DEADLINE, async || {
            let reading = "SELECT coalesce(max(pid), 0) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
            backend.set(one(&scene.monitored, reading, &[]).await);
            backend.get() > 0
        }).await;
        // It can no longer end the statement by itself, nor hear that it is to be cancelled.
        let backend = Pid::from_raw(backend.get());
        kill(backend, Signal::SIGSTOP).unwrap();
        let line = collector.wait_for_log("no snapshot: ").await;
        kill(backend, Signal::SIGCONT).unwrap();
        assert!(line.contains("not done within 5 s") && line.contains(DATASOURCE), "{line}");
        wait_until("its statement is gone", DEADLINE, async || {
            one::<bool>(&scene.monitored, "SELECT NOT EXISTS (SELECT FROM pg_stat_activity
                WHERE wait_event = 'PgSleep')", &[]).await
        }).await;
    }

    async fn a_datasource_that_hangs_is_given_up_and_cancelled(powa: Powa) {
        let scene = Scene::new(powa).await;
        // Otherwise it would end by itself, a second after the session.
        run(&scene.monitored, "ALTER DATABASE monitored SET client_connection_check_interval = '1h'").await;
        scene.add_datasource("slow", "number integer", "SELECT 1 FROM pg_sleep(600)", None).await;
        let log = scene.failed_snapshot_with(json!({ "timeouts": { "fetch": 1 } })).await;
        let error = scene.error().await;
        assert!(error.contains("not done within 1 s"), "{error}");
        assert!(log.contains(&error), "{log}");
        wait_until("its statement is gone", DEADLINE, async || {
            one::<bool>(&scene.monitored, "SELECT NOT EXISTS (SELECT FROM pg_stat_activity
                WHERE application_name LIKE 'PoWA collector - worker%')", &[]).await
        }).await;
    }
}

/// A datasource whose rows PoWA cannot take over into its history.
async fn break_snapshot_function(scene: &Scene) {
    scene.add_datasource("broken", "number integer", "SELECT 1", None).await;
    scene
        .run(
            "CREATE OR REPLACE FUNCTION {powa}.test_broken_snapshot(_srvid integer) RETURNS void
             LANGUAGE plpgsql AS 'BEGIN RAISE ''this function is broken''; END'",
        )
        .await;
}

async fn cleanups(scene: &Scene) -> Vec<String> {
    let sql = "SELECT coalesce(array_agg(note ORDER BY note), '{}') FROM public.cleanups";
    one(&scene.monitored, sql, &[]).await
}

/// Datasources that are read first, in between and last.
async fn assert_the_rest_is_stored(scene: &Scene) {
    for table in ["powa_databases", "powa_statements_history_current", "powa_stat_bgwriter_history_current"] {
        assert!(scene.count(table).await > 0, "{table} is empty");
    }
    let settings = "SELECT count(*) FROM public.pg_track_settings_history WHERE srvid = $1";
    assert!(scene.one::<i64>(settings, &[&scene.id]).await > 0, "pg_track_settings_history is empty");
    assert_eq!(Vec::<String>::new(), scene.leftovers().await);
}
