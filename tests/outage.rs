//! The repository is away for longer than a few periods, or the collector is: nothing that was read is lost, and
//! nothing is stored twice.

mod scene;
mod support;

use std::fs;
use std::path::{Path, PathBuf};

use scene::outage::Outage;
use serde_json::{Value, json};
use support::{Cluster, Collector, DEADLINE, Fault, Powa, Proxy, Signal, on_both_versions, wait_until};

/// How many rows a snapshot has in the table that is counted.
const ROWS: i64 = 2000;
/// What may lie between two of them, in seconds: the period, and a deadline in which the repository is found to be away.
const GAP: f64 = 10.0;

on_both_versions! {
    async fn a_repository_that_is_stopped_leaves_no_gap(powa: Powa) {
        without_repository(powa, Cluster::stop, Cluster::start_again).await;
    }

    async fn a_repository_that_crashes_leaves_no_gap(powa: Powa) {
        without_repository(powa, Cluster::stop_immediately, Cluster::start_again).await;
    }

    async fn a_repository_that_stands_still_leaves_no_gap(powa: Powa) {
        without_repository(
            powa,
            |cluster| cluster.signal_all(Signal::SIGSTOP),
            |cluster| cluster.signal_all(Signal::SIGCONT),
        )
        .await;
    }

    async fn what_waits_survives_a_restart_of_the_collector(powa: Powa) {
        let mut outage = Outage::start(powa, ROWS).await;
        let mut collector = outage.begin(Cluster::stop, 2).await;
        assert!(collector.stop().await.success());
        outage.come_back(Cluster::start_again).await;
        let mut collector = outage.collect(json!({}));
        outage.spool.wait_until_no_snapshots().await;
        assert!(collector.stop().await.success());
        outage.account(3).await;
    }

    async fn what_waits_survives_a_kill_of_the_collector(powa: Powa) {
        let mut outage = Outage::start(powa, ROWS).await;
        let mut collector = outage.begin(Cluster::stop_immediately, 2).await;
        kill_at_once(&mut collector).await;
        outage.come_back(Cluster::start_again).await;
        let mut collector = outage.collect(json!({}));
        outage.spool.wait_until_no_snapshots().await;
        assert!(collector.stop().await.success());
        outage.account(3).await;
    }

    async fn a_commit_whose_answer_is_lost_is_not_repeated(powa: Powa) {
        let outage = Outage::start(powa, ROWS).await;
        let proxy = Proxy::start(outage.scene.cluster.port()).await;
        let mut collector = outage.collect(outage.through(&proxy));
        for fault in [Fault::Cut, Fault::Reset, Fault::Stall] {
            let position = collector.log_position();
            proxy.arm_answer("COMMIT", fault);
            collector.wait_for_log_after(position, "was stored already").await;
        }
        assert!(collector.stop().await.success());
        outage.account(3).await;
    }

    async fn a_commit_is_not_repeated_by_the_next_collector(powa: Powa) {
        let outage = Outage::start(powa, ROWS).await;
        let proxy = Proxy::start(outage.scene.cluster.port()).await;
        let mut collector = outage.collect(outage.through(&proxy));
        outage.scene.wait_for_snapshots(1).await;
        proxy.arm_answer("COMMIT", Fault::Stall);
        wait_until("the answer is held back", DEADLINE, async || proxy.fired() == 1).await;
        kill_at_once(&mut collector).await;
        let mut collector = outage.collect(outage.through(&proxy));
        collector.wait_for_log("was stored already").await;
        assert!(collector.stop().await.success());
        outage.account(2).await;
    }

    async fn a_damaged_file_is_put_aside_and_the_rest_is_stored(powa: Powa) {
        let mut outage = Outage::start(powa, ROWS).await;
        let mut collector = outage.begin(Cluster::stop, 4).await;
        kill_at_once(&mut collector).await;
        let files = outage.spool.snapshots();
        let damage = |file: &Path, with: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = fs::read(file).unwrap();
            with(&mut bytes);
            fs::write(file, bytes).unwrap();
        };
        damage(&files[1], &|bytes| bytes[10] ^= 1);
        damage(&files[2], &|bytes| bytes.truncate(bytes.len() / 2));
        outage.come_back(Cluster::start_again).await;
        let mut collector = outage.collect(json!({}));
        let line = collector.wait_for_log("checksum of its rows").await;
        assert!(line.contains("is lost") && line.contains("ERROR"), "{line}");
        let line = collector.wait_for_log("not written to its end").await;
        assert!(line.contains("is lost") && line.contains("ERROR"), "{line}");
        outage.spool.wait_until_no_snapshots().await;
        for file in &files[1..=2] {
            let mut aside = file.clone().into_os_string();
            aside.push(".damaged");
            assert!(PathBuf::from(aside).exists());
        }
        assert!(collector.stop().await.success());
        outage.account_with_gaps(3).await;
    }

    async fn what_is_too_much_is_dropped_and_said(powa: Powa) {
        let mut outage = Outage::start(powa, ROWS).await;
        let mut collector = outage.collect(json!({ "spool": { "max_bytes": 1000 } }));
        outage.scene.wait_for_snapshots(1).await;
        outage.scene.cluster.stop();
        for _ in 0..2 {
            let position = collector.log_position();
            let line = collector.wait_for_log_after(position, "is dropped").await;
            assert!(line.contains("spool.max_bytes (1000)") && line.contains("ERROR"), "{line}");
        }
        let before = outage.come_back(Cluster::start_again).await;
        outage.scene.wait_for_snapshots(before + 1).await;
        assert!(collector.stop().await.success());
        outage.account_with_gaps(2).await;
    }

    async fn without_a_disk_snapshots_are_stored_as_long_as_they_need_not_wait(powa: Powa) {
        let mut outage = Outage::start(powa, ROWS).await;
        let nowhere = json!({ "spool": { "directory": "/proc/nowhere" } });
        let mut collector = outage.collect(nowhere);
        collector.wait_for_log("snapshots will not wait while the repository is away").await;
        outage.scene.wait_for_snapshots(2).await;
        outage.scene.cluster.stop();
        let line = collector.wait_for_log("a snapshot is lost").await;
        assert!(line.contains("could not wait on disk"), "{line}");
        let before = outage.come_back(Cluster::start_again).await;
        outage.scene.wait_for_snapshots(before + 1).await;
        assert!(collector.stop().await.success());
        outage.account_with_gaps(3).await;
    }
}

async fn without_repository(powa: Powa, leave: fn(&mut Cluster), come_back: fn(&mut Cluster)) {
    let mut outage = Outage::start(powa, ROWS).await;
    let servers = [outage.scene.id, outage.register(1).await];
    let mut collector = outage.collect(json!({}));
    for server in servers {
        outage.scene.wait_for_snapshots_of(server, 1).await;
    }
    leave(&mut outage.scene.cluster);
    // More than three periods of them.
    outage.spool.wait_for_snapshots(4 * servers.len()).await;
    outage.come_back(come_back).await;
    outage.spool.wait_until_no_snapshots().await;
    let again = "the repository takes snapshots again";
    for server in servers {
        let is_told = async || collector.log_of(server).iter().any(|line| line.contains(again));
        wait_until("it is told that the repository is back", DEADLINE, is_told).await;
    }
    assert!(collector.stop().await.success());
    for server in servers {
        let (log, warnings) = (collector.log_of(server), collector.warnings_of(server));
        assert_eq!(1, warnings.len(), "{log:#?}");
        assert!(warnings[0].contains("the repository does not take snapshots"), "{log:#?}");
        assert_eq!(1, log.iter().filter(|line| line.contains(again)).count(), "{log:#?}");
        let gap = outage.scene.longest_gap(server).await;
        assert!(gap < GAP, "{gap} s between two snapshots of server {server}");
    }
    let of_all = collector.warnings().into_iter().filter(|line| !line.contains("srvid="));
    let of_all: Vec<_> = of_all.collect();
    assert!(of_all.len() <= 1 && of_all.iter().all(|line| line.contains("not listening")), "{of_all:#?}");
    outage.account_with_gaps(5 * servers.len() as i64).await;
}

impl Outage {
    /// The configuration's part that leads to the repository over the proxy.
    fn through(&self, proxy: &Proxy) -> Value {
        let dsn = format!("host=127.0.0.1 port={} user=postgres dbname=powa", proxy.port);
        json!({ "repository": { "dsn": dsn } })
    }

    /// What is in the repository in the end: at least so many snapshots, each whole, each once, and none is missing.
    async fn account(&self, least: i64) {
        self.account_with_gaps(least).await;
        let gap = self.scene.longest_gap(self.scene.id).await;
        assert!(gap < GAP, "{gap} s between two snapshots");
    }

    async fn account_with_gaps(&self, least: i64) {
        let times = self.scene.account(ROWS, "").await;
        assert!(times >= least, "{times} snapshots, and not {least}");
    }
}

async fn kill_at_once(collector: &mut Collector) {
    collector.signal(Signal::SIGKILL);
    collector.wait_exit(DEADLINE).await;
}
