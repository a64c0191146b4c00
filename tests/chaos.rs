//! Twenty servers, a repository and a collector, to which everything happens at once, for `CHAOS_SECONDS` (20): in the
//! end every snapshot that was fetched is stored, whole and once. `SWEEP_SEED` chooses what happens; a failure tells
//! the seed.

mod scene;
mod support;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use scene::{Scene, run};
use serde_json::{Value, json};
use support::{
    Cluster, Collector, DEADLINE, Fault, Powa, Proxy, Registration, Signal, Spool, number_from_environment,
    on_both_versions, seed,
};

const SERVERS: usize = 20;
const ROWS: i64 = 200;
/// Between two things that go wrong.
const PAUSE: Duration = Duration::from_millis(300);
/// How much longer than asked for it may go on, until enough was fetched.
const MOST_LONGER: Duration = Duration::from_secs(90);

on_both_versions! {
    async fn whatever_happens_each_snapshot_is_stored_once(powa: Powa) {
        let (seed, time) = (seed(), Duration::from_secs(number_from_environment("CHAOS_SECONDS", 20)));
        let mut chaos = Chaos::start(powa).await;
        let (mut dice, began) = (StdRng::seed_from_u64(seed), Instant::now());
        // A slow machine has not fetched much by then: chaos that met nothing would show nothing.
        while began.elapsed() < time || chaos.note_fetched() <= SERVERS {
            assert!(began.elapsed() < time + MOST_LONGER, "hardly anything was fetched: {}", chaos.collector.log());
            chaos.happen(&mut dice).await;
            tokio::time::sleep(PAUSE).await;
        }
        chaos.account().await;
    }
}

struct Chaos {
    scene: Scene,
    _monitored: Cluster,
    to_servers: Vec<Proxy>,
    to_repository: Proxy,
    spool: Spool,
    collector: Collector,
    /// The times of the snapshots that collectors say they have fetched, those that were killed included.
    fetched: BTreeSet<String>,
    happened: Vec<String>,
}

impl Chaos {
    async fn start(powa: Powa) -> Chaos {
        let monitored = Cluster::start(powa);
        monitored.create_monitored("powa", &[]).await;
        let mut to_servers = Vec::new();
        for _ in 0..SERVERS {
            to_servers.push(Proxy::start(monitored.port()).await);
        }
        let server = |proxy: &Proxy| Registration::new("127.0.0.1", proxy.port).dbname("powa");
        let scene = Scene::apart(&monitored, server(&to_servers[0])).await;
        let to_repository = Proxy::start(scene.cluster.port()).await;
        for proxy in &to_servers[1..] {
            scene.register(&server(proxy)).await;
        }
        scene.add_marked(ROWS).await;
        scene.share_marked().await;
        scene.run("UPDATE {powa}.powa_servers SET frequency = 5 WHERE id > 0").await;
        let spool = Spool::new();
        let collector = Collector::start(config(&scene, &to_repository, &spool));
        let (fetched, happened) = (BTreeSet::new(), Vec::new());
        let chaos = Chaos {
            scene,
            _monitored: monitored,
            to_servers,
            to_repository,
            spool,
            collector,
            fetched,
            happened,
        };
        chaos.scene.wait_for_snapshots(1).await;
        chaos
    }

    /// One thing goes wrong.
    async fn happen(&mut self, dice: &mut StdRng) {
        let what = match dice.random_range(0..20) {
            0 => {
                self.collector.signal(Signal::SIGKILL);
                self.collector.wait_exit(DEADLINE).await;
                self.start_again();
                "kill -9".to_owned()
            }
            1 => {
                self.collector.signal(Signal::SIGTERM);
                self.collector.wait_exit(2 * DEADLINE).await;
                self.start_again();
                "stop".to_owned()
            }
            2 => {
                self.scene.cluster.stop_immediately();
                tokio::time::sleep(PAUSE * dice.random_range(0..10)).await;
                self.scene.cluster.start_again();
                self.scene.repository = self.scene.cluster.client("powa").await;
                "crash of the repository".to_owned()
            }
            3 | 4 => {
                let sessions = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                    WHERE application_name LIKE 'PoWA collector%' AND random() < 0.3";
                let client =
                    if dice.random_bool(0.5) { &self.scene.monitored } else { &self.scene.repository };
                run(client, sessions).await;
                "sessions ended".to_owned()
            }
            5..=9 => self.arm(&self.to_repository, 200, dice),
            _ => self.arm(self.to_servers.choose(dice).expect("there are some"), 60, dice),
        };
        self.happened.push(what);
    }

    fn arm(&self, proxy: &Proxy, most: usize, dice: &mut StdRng) -> String {
        let (number, fault) = (dice.random_range(0..most), *Fault::ALL.choose(dice).expect("there are some"));
        proxy.arm(number, fault);
        format!("{fault:?} at {number}")
    }

    /// Starts a collector in place of one that has ended.
    fn start_again(&mut self) {
        self.note_fetched();
        self.collector = Collector::start(config(&self.scene, &self.to_repository, &self.spool));
    }

    /// Gives how many different snapshots were fetched so far.
    fn note_fetched(&mut self) -> usize {
        let log = self.collector.log();
        for bad in ["is dropped", "is lost", "fault of the collector", "panicked"] {
            assert!(!log.contains(bad), "{bad}: {:?}\n{log}", self.happened);
        }
        self.fetched.extend(scene::fetched(&log));
        self.fetched.len()
    }

    async fn account(mut self) {
        for proxy in self.to_servers.iter().chain([&self.to_repository]) {
            proxy.disarm();
        }
        // On a slow machine there is always one on its way to the repository.
        self.scene.run("UPDATE {powa}.powa_servers SET frequency = 3600 WHERE id > 0").await;
        self.spool.wait_until_empty().await;
        assert!(self.collector.stop().await.success());
        self.note_fetched();
        let stored = self.scene.account(ROWS, &self.collector.log()).await;
        let missing = self.scene.missing(&self.fetched).await;
        assert!(
            missing.is_empty(),
            "fetched and not stored: {missing:?}; what happened: {:?}",
            self.happened
        );
        eprintln!("{stored} snapshots stored, {} things happened", self.happened.len());
    }
}

fn config(scene: &Scene, proxy: &Proxy, spool: &Spool) -> Value {
    let dsn = format!("host=127.0.0.1 port={} user=postgres dbname=powa", proxy.port);
    scene.config(json!({
        "repository": { "dsn": dsn },
        "debug": true,
        "spool": { "directory": spool.path() },
        "servers_refresh_interval": 5,
        "timeouts": { "connect": 2, "query": 3, "datasource": 3, "fetch": 6, "store": 6, "close": 1 },
    }))
}
