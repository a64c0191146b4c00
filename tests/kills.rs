//! The collector is killed at some message of a snapshot: what it had fetched is stored by the next one, whole and
//! once. `SWEEP_SEED` chooses the messages; a failure tells the seed.

mod scene;
mod support;

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use scene::Scene;
use serde_json::{Value, json};
use support::{
    Cluster, Collector, DEADLINE, Fault, Powa, Proxy, Signal, Spool, on_both_versions, seed, wait_until,
};

/// How many repositories are worked on side by side, and how often each collector is killed.
const LANES: u64 = 4;
const KILLS: usize = 25;
const ROWS: i64 = 500;

on_both_versions! {
    async fn a_collector_that_is_killed_loses_and_doubles_nothing(powa: Powa) {
        let seed = seed();
        let mut lanes = Vec::new();
        for number in 0..LANES {
            lanes.push(Lane::start(powa, seed ^ number).await);
        }
        let killed: usize = join_all(lanes.into_iter().map(Lane::kill)).await.into_iter().sum();
        // The others were killed when the snapshot was over, or before it began.
        assert!(killed > KILLS, "{killed} times in the midst of a snapshot");
    }
}

struct Lane {
    scene: Scene,
    to_server: Proxy,
    to_repository: Proxy,
    spool: Spool,
    dice: StdRng,
}

impl Lane {
    async fn start(powa: Powa, seed: u64) -> Lane {
        let cluster = Cluster::builder(powa).setting("autovacuum", "off").start();
        let to_server = Proxy::start(cluster.port()).await;
        let to_repository = Proxy::start(cluster.port()).await;
        let scene = Scene::marked(cluster, to_server.port, ROWS).await;
        let (spool, dice) = (Spool::new(), StdRng::seed_from_u64(seed));
        Lane { scene, to_server, to_repository, spool, dice }
    }

    /// What a collector is told that reaches everything over the proxies.
    fn config(&self) -> Value {
        let dsn = format!("host=127.0.0.1 port={} user=postgres dbname=powa", self.to_repository.port);
        json!({ "repository": { "dsn": dsn }, "spool": { "directory": self.spool.path() } })
    }

    /// Kills collectors. Gives how many of them in the midst of a snapshot.
    async fn kill(mut self) -> usize {
        let mut collector = self.snapshot().await;
        // About as many messages as there are, on both sides.
        let (server, repository) = (self.to_server.take_count(), self.to_repository.take_count());
        assert!(collector.stop().await.success());
        let mut killed = 0;
        for _ in 0..KILLS {
            let is_server = self.dice.random_bool(0.3);
            let (proxy, count) =
                if is_server { (&self.to_server, server) } else { (&self.to_repository, repository) };
            let number = self.dice.random_range(0..count);
            let fired = proxy.fired();
            let mut collector = self.scene.begin(self.config()).await;
            proxy.arm(number, Fault::Stall);
            let (before, began) = (self.scene.snapshots().await, Instant::now());
            wait_until("the moment", DEADLINE, async || {
                proxy.fired() > fired
                    || self.scene.snapshots().await > before
                    || began.elapsed() > Duration::from_secs(3)
            })
            .await;
            killed += usize::from(proxy.fired() > fired);
            collector.signal(Signal::SIGKILL);
            collector.wait_exit(DEADLINE).await;
            proxy.disarm();
        }
        let mut collector = self.scene.stand_by(self.config()).await;
        self.spool.wait_until_empty().await;
        assert!(collector.stop().await.success());
        self.scene.account(ROWS, &collector.log()).await;
        killed
    }

    /// A collector that has taken a snapshot.
    async fn snapshot(&self) -> Collector {
        let collector = self.scene.stand_by(self.config()).await;
        self.to_server.take_count();
        self.to_repository.take_count();
        self.scene.force(self.scene.id).await;
        self.scene.wait_for_snapshots(1).await;
        collector
    }
}
