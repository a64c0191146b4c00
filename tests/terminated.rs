//! Somebody ends the collector's sessions, at each step of a snapshot: what was fetched is stored all the same, whole and
//! once, and what comes next comes by itself.

mod scene;
mod support;

use scene::{Scene, run};
use serde_json::json;
use support::{Cluster, Collector, Control, DEADLINE, Powa, Spool, on_both_versions, wait_until};
use tokio_postgres::Client;

const ROWS: i64 = 500;

on_both_versions! {
    async fn sessions_with_the_repository_can_be_ended_at_every_step(powa: Powa) {
        let site = Site::start(powa).await;
        for (step, statement) in [
            (Step::Plan, "powa_functions"),
            (Step::Copy, "COPY"),
            (Step::TakeSnapshot, "powa_take_snapshot"),
            (Step::Commit, "COMMIT"),
        ] {
            let gate = site.close(step).await;
            let session = site.waiting_at(statement).await;
            let position = site.collector.log_position();
            site.end(session).await;
            drop(gate);
            site.wait_for_another().await;
            let warnings = site.collector.warnings_after(position);
            assert_eq!(1, warnings.len(), "{step:?}: {warnings:#?}");
            assert!(warnings[0].contains("the repository does not take snapshots"), "{step:?}: {warnings:#?}");
        }
        // Those that nobody uses just then are nobody's loss.
        let position = site.collector.log_position();
        run(&site.scene.repository, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE application_name LIKE 'PoWA collector - repo_conn%'").await;
        site.wait_for_another().await;
        assert_eq!(Vec::<String>::new(), site.collector.warnings_after(position));
        site.account().await;
    }

    async fn a_session_with_a_monitored_server_can_be_ended_at_every_step(powa: Powa) {
        let site = Site::start(powa).await;
        for (step, statement) in [(Step::Plan, "powa_functions"), (Step::Fetch, "test_gate_src")] {
            let gate = site.close(step).await;
            site.waiting_at(statement).await;
            let position = site.collector.log_position();
            let sessions = "SELECT max(pid) FROM pg_stat_activity WHERE application_name LIKE 'PoWA collector - worker %'";
            site.end(site.scene.one(sessions, &[]).await).await;
            drop(gate);
            site.wait_for_another().await;
            let warnings = site.collector.warnings_after(position);
            assert_eq!(1, warnings.len(), "{step:?}: {warnings:#?}");
            assert!(warnings[0].contains("no snapshot: read from the monitored server"), "{step:?}: {warnings:#?}");
        }
        site.account().await;
    }

    async fn the_session_that_listens_is_opened_again(powa: Powa) {
        let mut site = Site::start(powa).await;
        let position = site.collector.log_position();
        run(&site.scene.repository, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE application_name LIKE 'PoWA collector - main thread%'").await;
        site.collector.wait_for_log_after(position, "listening for control messages on").await;
        let mut control = Control::connect(&site.scene.cluster, "powa").await;
        assert_eq!(r#"WORKERS_STATUS OK {"1": "running"}"#, control.ask("WORKERS_STATUS", "").await);
        site.wait_for_another().await;
        let warnings = site.collector.warnings_after(position);
        assert_eq!(1, warnings.len(), "{warnings:#?}");
        assert!(warnings[0].contains("not listening for control messages"), "{warnings:#?}");
        site.account().await;
    }
}

/// Where a snapshot can be stopped on its way.
#[derive(Debug, Clone, Copy)]
enum Step {
    Plan,
    Fetch,
    Copy,
    TakeSnapshot,
    Commit,
}

/// A server, and a collector that takes its snapshots.
struct Site {
    scene: Scene,
    spool: Spool,
    collector: Collector,
}

impl Site {
    /// When there has been a snapshot.
    async fn start(powa: Powa) -> Site {
        let cluster = Cluster::builder(powa).setting("autovacuum", "off").start();
        let port = cluster.port();
        let scene = Scene::marked(cluster, port, ROWS).await;
        scene.add_datasource("gate", "number integer", &pass(Step::Fetch), None).await;
        // Who waits at a step waits until the test has seen it.
        scene.run("ALTER ROLE postgres SET lock_timeout = '1min'").await;
        let trigger = |step: Step, kind: &str, table: &str, when: &str| {
            format!(
                "CREATE FUNCTION {{powa}}.test_{step:?}() RETURNS trigger LANGUAGE plpgsql AS $function$
                 BEGIN PERFORM ({}); RETURN NEW; END $function$;
                 CREATE {kind} test_{step:?} {when} INSERT ON {{powa}}.{table} {}
                 FOR EACH ROW WHEN (NEW.number = {ROWS} / 2) EXECUTE FUNCTION {{powa}}.test_{step:?}();",
                pass(step),
                if matches!(step, Step::Commit) { "DEFERRABLE INITIALLY DEFERRED" } else { "" },
            )
        };
        scene.run(&trigger(Step::Copy, "TRIGGER", "test_marked_src_tmp", "BEFORE")).await;
        scene.run(&trigger(Step::TakeSnapshot, "TRIGGER", "test_marked_history", "BEFORE")).await;
        scene.run(&trigger(Step::Commit, "CONSTRAINT TRIGGER", "test_marked_history", "AFTER")).await;
        scene.run("UPDATE {powa}.powa_servers SET frequency = 5 WHERE id > 0").await;
        let spool = Spool::new();
        let config = json!({ "debug": true, "spool": { "directory": spool.path() } });
        let collector = Collector::start(scene.config(config));
        scene.wait_for_snapshots(1).await;
        Site { scene, spool, collector }
    }

    /// Lets nobody pass a step for as long as the session lasts.
    async fn close(&self, step: Step) -> Client {
        let dbname = if matches!(step, Step::Fetch) { "monitored" } else { "powa" };
        let gate = self.scene.cluster.client(dbname).await;
        match step {
            Step::Plan => run(&gate, &self.scene.sql("BEGIN; LOCK TABLE {powa}.powa_functions")).await,
            _ => run(&gate, &format!("SELECT pg_advisory_lock({})", step as i32)).await,
        }
        gate
    }

    /// Waits until the collector waits with a statement that has this in it. Gives its session.
    async fn waiting_at(&self, statement: &str) -> i32 {
        // By its statement: powa_take_snapshot gives its session another name.
        let waiting =
            "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND position($1 IN query) > 0";
        wait_until(&format!("{statement} waits"), DEADLINE, async || {
            let row = self.scene.repository.query_opt(waiting, &[&statement]).await;
            row.expect("one at most").map(|row| row.get(0))
        })
        .await
    }

    /// Ends a session, and waits until it is gone.
    async fn end(&self, session: i32) {
        self.scene.run(&format!("SELECT pg_terminate_backend({session})")).await;
        let is_gone = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)";
        let is_gone = async || self.scene.one::<bool>(is_gone, &[&session]).await;
        wait_until("the session has ended", DEADLINE, is_gone).await;
    }

    async fn wait_for_another(&self) {
        self.scene.wait_for_snapshots(self.scene.snapshots().await + 1).await;
    }

    /// Everything that was fetched is stored.
    async fn account(mut self) {
        self.scene.run("UPDATE {powa}.powa_servers SET frequency = 3600 WHERE id > 0").await;
        let mut control = Control::connect(&self.scene.cluster, "powa").await;
        assert_eq!("RELOAD OK OK", control.ask("RELOAD", "").await);
        self.spool.wait_until_empty().await;
        assert!(self.collector.stop().await.success());
        let log = self.collector.log();
        self.scene.account(ROWS, &log).await;
        let missing = self.scene.missing(&scene::fetched(&log)).await;
        assert!(missing.is_empty(), "fetched and not stored: {missing:?}\n{log}");
    }
}

/// A query that waits while its step is closed.
fn pass(step: Step) -> String {
    format!("SELECT 1 FROM pg_advisory_xact_lock_shared({})", step as i32)
}
