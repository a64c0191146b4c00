//! A monitored server is away for a while: that is said once when it goes and once when it is back, costs no other
//! server anything, and snapshots are taken of it again by themselves.

mod fleet;
mod scene;
mod support;

use fleet::Gate;
use scene::{Scene, one};
use serde_json::json;
use support::{
    Cluster, Collector, Control, DEADLINE, Powa, Registration, Signal, Spool, on_both_versions, wait_until,
};

const ROWS: i64 = 500;
/// How often snapshots come, in seconds.
const PERIOD: i32 = 5;
/// What may lie between two of a server that is never away, in seconds.
const GAP: f64 = 7.5;

on_both_versions! {
    async fn a_server_that_is_stopped_is_told_of_once(powa: Powa) {
        without_server(powa, 2, Cluster::stop, Cluster::start_again).await;
    }

    async fn a_server_that_crashes_is_told_of_once(powa: Powa) {
        without_server(powa, 2, Cluster::stop_immediately, Cluster::start_again).await;
    }

    async fn a_server_that_stands_still_costs_one_deadline(powa: Powa) {
        let log = without_server(
            powa,
            4,
            |server| server.signal_all(Signal::SIGSTOP),
            |server| server.signal_all(Signal::SIGCONT),
        )
        .await;
        let deadlines = log.iter().filter(|line| line.contains("not done within 3 s"));
        assert_eq!(1, deadlines.count(), "{log:#?}");
    }

    async fn a_server_that_restarts_is_told_of_once(powa: Powa) {
        let mut site = Site::start(powa).await;
        site.server.restart();
        site.is_back().await;
        site.account().await;
    }

    async fn a_server_that_is_away_with_the_repository_is_told_of_once(powa: Powa) {
        let mut site = Site::start(powa).await;
        site.scene.cluster.stop();
        wait_until("a snapshot of it waits", DEADLINE, async || !site.spool.snapshots_of(site.id).is_empty())
            .await;
        site.server.stop();
        site.collector.wait_for_log(&format!("srvid={}}}: {GONE}", site.id)).await;
        site.scene.cluster.start_again();
        site.scene.repository = site.scene.cluster.client("powa").await;
        site.wait_for_states("no connection to remote server").await;
        site.wait_for_error().await;
        site.spool.wait_until_no_snapshots().await;
        site.wait_for_states("no connection to remote server").await;
        site.server.start_again();
        site.is_back().await;
        site.account().await;
    }

    async fn why_a_server_is_away_is_told_also_after_what_had_waited_is_stored(powa: Powa) {
        let mut site = Site::with_store_deadline(powa, 2).await;
        let gate = Gate::in_store(&site.scene.cluster).await;
        wait_until("a snapshot of it waits", DEADLINE, async || !site.spool.snapshots_of(site.id).is_empty())
            .await;
        site.server.stop();
        site.wait_for_error().await;
        let before = site.scene.snapshots_of(site.id).await;
        gate.open();
        // It leaves no errors behind, its own being none.
        site.scene.wait_for_snapshots_of(site.id, before + 1).await;
        site.spool.wait_until_no_snapshots().await;
        site.wait_for_error().await;
        site.server.start_again();
        site.is_back().await;
        site.account().await;
    }
}

/// What is said of a server that is away.
const GONE: &str = "no connection to the monitored server";
/// What is said of the repository, once to each server.
const REPOSITORY: &str = "the repository does not take snapshots";

/// Takes a server away for so many periods. Gives what the log says of it.
async fn without_server(
    powa: Powa,
    periods: i64,
    leave: fn(&mut Cluster),
    come_back: fn(&mut Cluster),
) -> Vec<String> {
    let mut site = Site::start(powa).await;
    leave(&mut site.server);
    let before = site.scene.snapshots().await;
    site.wait_for_states("no connection to remote server").await;
    site.wait_for_error().await;
    site.scene.wait_for_snapshots(before + periods).await;
    site.wait_for_states("no connection to remote server").await;
    come_back(&mut site.server);
    site.is_back().await;
    let gap = site.scene.longest_gap(site.scene.id).await;
    assert!(gap < GAP, "{gap} s between two snapshots of another server");
    site.account().await
}

/// Two servers, of which one is going to be away. The other one is in the repository's cluster.
struct Site {
    scene: Scene,
    server: Cluster,
    id: i32,
    spool: Spool,
    collector: Collector,
}

impl Site {
    /// When both have been collected.
    async fn start(powa: Powa) -> Site {
        Site::with_store_deadline(powa, 900).await
    }

    /// The same, where a store has so many seconds.
    async fn with_store_deadline(powa: Powa, seconds: u64) -> Site {
        let repository =
            Cluster::builder(powa).setting("autovacuum", "off").setting("synchronous_commit", "on").start();
        let port = repository.port();
        let scene = Scene::marked(repository, port, ROWS).await;
        let server = Cluster::start(powa);
        server.create_monitored("powa", &[]).await;
        scene.add_marked_source(&server.client("powa").await, ROWS).await;
        let id = scene.register(&Registration::of(&server, "powa")).await;
        scene.share_marked().await;
        scene.run(&format!("UPDATE {{powa}}.powa_servers SET frequency = {PERIOD} WHERE id > 0")).await;
        let spool = Spool::new();
        let collector = Collector::start(scene.config(json!({
            "spool": { "directory": spool.path() },
            "timeouts": { "connect": 1, "query": 3, "fetch": 3, "store": seconds, "close": 1 },
        })));
        for server in [scene.id, id] {
            scene.wait_for_snapshots_of(server, 1).await;
        }
        Site { scene, server, id, spool, collector }
    }

    /// Waits until this is what the collector says of the server, and that it collects the other one.
    async fn wait_for_states(&self, state: &str) {
        let expected =
            format!(r#"WORKERS_STATUS OK {{"{}": "running", "{}": "{state}"}}"#, self.scene.id, self.id);
        wait_until(&expected, DEADLINE, async || {
            // The collector may be about to listen again.
            let control = Control::connect(&self.scene.cluster, "powa").await;
            control.send("WORKERS_STATUS", "").await;
            self.answers(control, &expected).await
        })
        .await;
    }

    async fn answers(&self, mut control: Control, expected: &str) -> bool {
        let answer = control.next(std::time::Duration::from_secs(2)).await;
        answer.is_some_and(|answer| answer.payload() == expected)
    }

    /// Waits until the repository says why there are no snapshots.
    async fn wait_for_error(&self) {
        wait_until("the repository says why", DEADLINE, async || {
            let errors = self.scene.errors_of(self.id).await;
            errors.iter().any(|error| error.contains(GONE))
        })
        .await;
    }

    /// Waits until snapshots are taken of the server again.
    async fn is_back(&self) {
        let before = self.scene.snapshots_of(self.id).await;
        self.scene.wait_for_snapshots_of(self.id, before + 2).await;
        self.wait_for_states("running").await;
        assert_eq!(Vec::<String>::new(), self.scene.errors_of(self.id).await);
    }

    /// What was said and stored. Gives what the log says of the server.
    async fn account(mut self) -> Vec<String> {
        let monitored = self.server.client("powa").await;
        wait_until("one session at most is left", DEADLINE, async || {
            let sessions = "SELECT count(*) < 2 FROM pg_stat_activity WHERE application_name LIKE 'PoWA%'";
            one::<bool>(&monitored, sessions, &[]).await
        })
        .await;
        assert!(self.collector.stop().await.success());
        let log = self.collector.log_of(self.id);
        let gone: Vec<_> = self
            .collector
            .warnings_of(self.id)
            .into_iter()
            .filter(|line| !line.contains(REPOSITORY))
            .collect();
        assert_eq!(1, gone.len(), "{log:#?}");
        assert_eq!(1, log.iter().filter(|line| line.contains("works again")).count(), "{log:#?}");
        self.scene.account(ROWS, &self.collector.log()).await;
        log
    }
}
