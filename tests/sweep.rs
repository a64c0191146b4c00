//! A connection goes wrong at some message of a snapshot, in some way: what is stored is whole, nothing is stored
//! twice, and the next snapshot comes by itself.
//!
//! `SWEEP=whole` tries every message in every way, which takes an hour or two; otherwise some of both are
//! chosen, by `SWEEP_SEED` where that is set: a failure tells the seed.

mod scene;
mod support;

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use scene::{Scene, one};
use serde_json::json;
use support::{Cluster, Collector, Fault, Powa, Proxy, on_both_versions, seed, wait_until};

/// How many repositories are worked on side by side. Each mostly waits: for the next snapshot, or a deadline.
const LANES: usize = 4;
/// The same when all points are tried.
const LANES_OF_WHOLE: usize = 8;
/// How long a store may take, in seconds, and the same when all points are tried: there are more lanes then, which are
/// all busy with a fault that costs them a deadline.
const STORE: u64 = 6;
const STORE_OF_WHOLE: u64 = 15;
/// How many points each of them tries, unless all are tried.
const POINTS: usize = 8;
/// How long it may take until there is a new snapshot after a fault.
const RECOVERY: Duration = Duration::from_secs(100);
/// How many rows a snapshot has in the table that is counted.
const ROWS: i64 = 500;

on_both_versions! {
    async fn a_connection_to_the_monitored_server_goes_wrong(powa: Powa) {
        sweep(powa, Side::Server).await;
    }

    async fn a_connection_to_the_repository_goes_wrong(powa: Powa) {
        sweep(powa, Side::Repository).await;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Server,
    Repository,
}

async fn sweep(powa: Powa, side: Side) {
    let seed = seed();
    let is_whole = std::env::var("SWEEP").is_ok_and(|sweep| sweep == "whole");
    let (count, store) = if is_whole { (LANES_OF_WHOLE, STORE_OF_WHOLE) } else { (LANES, STORE) };
    let mut lanes = Vec::new();
    for _ in 0..count {
        lanes.push(Lane::start(powa, side, store).await);
    }
    let mut points = lanes[0].points().await;
    eprintln!("{} messages and ways in which they can go wrong", points.len());
    points.shuffle(&mut StdRng::seed_from_u64(seed));
    if !is_whole {
        points.truncate(LANES * POINTS);
    }
    let share = points.len().div_ceil(count);
    join_all(lanes.iter().zip(points.chunks(share)).map(|(lane, points)| lane.try_all(points))).await;
    join_all(lanes.into_iter().map(Lane::account)).await;
}

/// A repository and a server in one cluster, and a collector that reaches one of them by the proxy.
struct Lane {
    collector: Collector,
    proxy: Proxy,
    scene: Scene,
}

impl Lane {
    async fn start(powa: Powa, side: Side, store: u64) -> Lane {
        // Aggregated often, and so not much at a time: all that is tried makes many snapshots.
        let cluster =
            Cluster::builder(powa).setting("autovacuum", "off").setting("powa.coalesce", "10").start();
        let proxy = Proxy::start(cluster.port()).await;
        let (server, repository) = match side {
            Side::Server => (proxy.port, cluster.port()),
            Side::Repository => (cluster.port(), proxy.port),
        };
        let scene = Scene::marked(cluster, server, ROWS).await;
        // What is read in one database is read in each.
        scene.run("UPDATE pg_database SET datallowconn = datname IN ('powa', 'monitored')").await;
        scene.run("UPDATE {powa}.powa_servers SET frequency = 5 WHERE id > 0").await;
        let collector = Collector::start(json!({
            "repository": { "dsn": format!("host=127.0.0.1 port={repository} user=postgres dbname=powa") },
            "servers_refresh_interval": 5,
            "timeouts": { "connect": 2, "query": 3, "datasource": 3, "fetch": 6, "store": store, "close": 1 },
        }));
        scene.wait_for_snapshots(1).await;
        Lane { collector, proxy, scene }
    }

    /// Every message from one snapshot to the next, and every way in which it can go wrong.
    async fn points(&self) -> Vec<(usize, Fault)> {
        let before = self.scene.snapshots().await;
        self.scene.wait_for_snapshots(before + 1).await;
        self.proxy.take_count();
        self.scene.wait_for_snapshots(before + 2).await;
        let count = self.proxy.take_count();
        (0..count).flat_map(|number| Fault::ALL.map(|fault| (number, fault))).collect()
    }

    async fn try_all(&self, points: &[(usize, Fault)]) {
        for (number, fault) in points {
            let (fired, began) = (self.proxy.fired(), Instant::now());
            self.proxy.arm(*number, *fault);
            wait_until(&format!("message {number} goes wrong ({fault:?})"), RECOVERY, async || {
                // There are not as many messages to every snapshot: those that open sessions come once.
                self.proxy.fired() > fired || began.elapsed() > Duration::from_secs(12)
            })
            .await;
            let has_fired = !self.proxy.disarm();
            let before = self.scene.snapshots().await;
            let what = format!("a snapshot after message {number} went wrong ({fault:?}, {has_fired})");
            wait_until(&what, RECOVERY, async || self.scene.snapshots().await > before).await;
        }
    }

    /// What is in the repository in the end.
    async fn account(mut self) {
        assert!(self.collector.stop().await.success(), "{}", self.collector.log());
        let log = self.collector.log();
        assert!(!log.contains("fault of the collector") && !log.contains("panicked"), "{log}");
        let scene = &self.scene;
        assert!(scene.account(ROWS, &log).await > 0);
        wait_until("its sessions are gone", RECOVERY, async || {
            one::<bool>(
                &scene.monitored,
                "SELECT NOT EXISTS (SELECT FROM pg_stat_activity
                WHERE application_name LIKE 'PoWA collector%')",
                &[],
            )
            .await
        })
        .await;
    }
}
