//! A repository and a server in clusters of their own, either of which can be away, and a spool.

use serde_json::{Value, json};

use super::{Scene, merge};
use crate::support::{Cluster, Collector, Powa, Registration, Spool};

/// How often snapshots come, in seconds.
const PERIOD: i32 = 5;

pub struct Outage {
    pub scene: Scene,
    pub spool: Spool,
    pub monitored: Cluster,
}

impl Outage {
    /// With snapshots of so many marked rows.
    pub async fn start(powa: Powa, rows: i64) -> Outage {
        let monitored = Cluster::start(powa);
        monitored.create_monitored("powa", &[]).await;
        let scene = Scene::apart(&monitored, Registration::of(&monitored, "powa")).await;
        scene.add_marked(rows).await;
        let outage = Outage { scene, spool: Spool::new(), monitored };
        outage.set_period().await;
        outage
    }

    /// Registers the same server once more, by another address.
    pub async fn register(&self, number: u8) -> i32 {
        let server = Registration::new(&format!("127.0.1.{number}"), self.monitored.port());
        let id = self.scene.register(&server).await;
        self.scene.share_marked().await;
        self.set_period().await;
        id
    }

    async fn set_period(&self) {
        let period = format!("UPDATE {{powa}}.powa_servers SET frequency = {PERIOD} WHERE id > 0");
        self.scene.run(&period).await;
    }

    pub fn config(&self, extra: Value) -> Value {
        let mut config = json!({
            "spool": { "directory": self.spool.path() },
            "servers_refresh_interval": 0,
            "timeouts": { "connect": 2, "query": 3, "store": 8, "close": 1 },
        });
        merge(&mut config, extra);
        self.scene.config(config)
    }

    pub fn collect(&self, extra: Value) -> Collector {
        Collector::start(self.config(extra))
    }

    /// A collector, when the repository has left after the first snapshot and so many wait.
    pub async fn begin(&mut self, leave: impl FnOnce(&mut Cluster), least: usize) -> Collector {
        let collector = self.collect(json!({}));
        self.scene.wait_for_snapshots(1).await;
        leave(&mut self.scene.cluster);
        self.spool.wait_for_snapshots(least).await;
        collector
    }

    /// Lets the repository come back. Gives how many snapshots it has.
    pub async fn come_back(&mut self, how: impl FnOnce(&mut Cluster)) -> i64 {
        how(&mut self.scene.cluster);
        self.scene.repository = self.scene.cluster.client("powa").await;
        self.scene.snapshots().await
    }
}
