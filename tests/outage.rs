//! The repository is away for longer than a few periods, or the collector is: nothing that was read is lost, and
//! nothing is stored twice.

mod scene;
mod support;

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::kill;
use nix::unistd::Pid;
use scene::Scene;
use serde_json::{Value, json};
use support::{
    Cluster, Collector, DEADLINE, Fault, Powa, Proxy, Registration, Signal, on_both_versions, wait_until,
};
use tempfile::TempDir;

/// How many rows a snapshot has in the table that is counted.
const ROWS: i64 = 2000;
/// How often snapshots come, in seconds.
const PERIOD: i32 = 5;
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
            |cluster| signal_all(cluster, Signal::SIGSTOP),
            |cluster| signal_all(cluster, Signal::SIGCONT),
        )
        .await;
    }

    async fn what_waits_survives_a_restart_of_the_collector(powa: Powa) {
        let mut outage = Outage::start(powa).await;
        let mut collector = outage.collect(json!({}));
        outage.scene.wait_for_snapshots(1).await;
        outage.scene.cluster.stop();
        outage.wait_for_files(2).await;
        assert!(collector.stop().await.success());
        outage.come_back(Cluster::start_again).await;
        let mut collector = outage.collect(json!({}));
        outage.wait_for_no_files().await;
        assert!(collector.stop().await.success());
        outage.account(3).await;
    }

    async fn what_waits_survives_a_kill_of_the_collector(powa: Powa) {
        let mut outage = Outage::start(powa).await;
        let mut collector = outage.collect(json!({}));
        outage.scene.wait_for_snapshots(1).await;
        outage.scene.cluster.stop_immediately();
        outage.wait_for_files(2).await;
        kill_at_once(&mut collector).await;
        outage.come_back(Cluster::start_again).await;
        let mut collector = outage.collect(json!({}));
        outage.wait_for_no_files().await;
        assert!(collector.stop().await.success());
        outage.account(3).await;
    }

    async fn a_commit_whose_answer_is_lost_is_not_repeated(powa: Powa) {
        let outage = Outage::start(powa).await;
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
        let outage = Outage::start(powa).await;
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
        let mut outage = Outage::start(powa).await;
        let mut collector = outage.collect(json!({}));
        outage.scene.wait_for_snapshots(1).await;
        outage.scene.cluster.stop();
        outage.wait_for_files(4).await;
        kill_at_once(&mut collector).await;
        let files = outage.files();
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
        outage.wait_for_no_files().await;
        for file in &files[1..=2] {
            let mut aside = file.clone().into_os_string();
            aside.push(".damaged");
            assert!(PathBuf::from(aside).exists());
        }
        assert!(collector.stop().await.success());
        outage.account_with_gaps(3).await;
    }

    async fn what_is_too_much_is_dropped_and_said(powa: Powa) {
        let mut outage = Outage::start(powa).await;
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
        let mut outage = Outage::start(powa).await;
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
    let mut outage = Outage::start(powa).await;
    let mut collector = outage.collect(json!({}));
    outage.scene.wait_for_snapshots(1).await;
    leave(&mut outage.scene.cluster);
    // More than three periods of them.
    outage.wait_for_files(4).await;
    outage.come_back(come_back).await;
    outage.wait_for_no_files().await;
    assert!(collector.stop().await.success());
    let log = collector.log();
    assert_eq!(1, log.matches("the repository does not take snapshots").count(), "{log}");
    outage.account(5).await;
}

/// A repository and a server in clusters of their own.
struct Outage {
    scene: Scene,
    spool: TempDir,
    _monitored: Cluster,
}

impl Outage {
    async fn start(powa: Powa) -> Outage {
        let monitored = Cluster::start(powa);
        monitored.create_monitored("powa", &[]).await;
        // What has been committed stays, also when the repository crashes.
        let repository =
            Cluster::builder(powa).setting("autovacuum", "off").setting("synchronous_commit", "on").start();
        repository.create_repository("powa").await;
        let mut scene = Scene::of(repository, "powa", Registration::of(&monitored, "powa")).await;
        scene.monitored = monitored.client("powa").await;
        scene.leave_out_catalogs("").await;
        scene.add_marked(ROWS).await;
        scene.run(&format!("UPDATE {{powa}}.powa_servers SET frequency = {PERIOD} WHERE id > 0")).await;
        let spool = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("make a directory");
        Outage { scene, spool, _monitored: monitored }
    }

    fn collect(&self, extra: Value) -> Collector {
        let mut config = json!({
            "spool": { "directory": self.spool.path() },
            "timeouts": { "connect": 2, "query": 3, "store": 8, "close": 1 },
        });
        scene::merge(&mut config, extra);
        Collector::start(self.scene.config(config))
    }

    /// The configuration's part that leads to the repository over the proxy.
    fn through(&self, proxy: &Proxy) -> Value {
        let dsn = format!("host=127.0.0.1 port={} user=postgres dbname=powa", proxy.port);
        json!({ "repository": { "dsn": dsn } })
    }

    /// The snapshots on disk, oldest first.
    fn files(&self) -> Vec<PathBuf> {
        let folders = fs::read_dir(self.spool.path()).expect("read the spool");
        let files = folders.flat_map(|folder| fs::read_dir(folder.unwrap().path()).expect("read a folder"));
        let files = files.map(|file| file.unwrap().path());
        let mut files: Vec<_> =
            files.filter(|file| file.extension().is_some_and(|it| it == "snapshot")).collect();
        files.sort();
        files
    }

    async fn wait_for_files(&self, least: usize) {
        wait_until("snapshots wait", 2 * DEADLINE, async || self.files().len() >= least).await;
    }

    async fn wait_for_no_files(&self) {
        wait_until("nothing waits", 2 * DEADLINE, async || self.files().is_empty()).await;
    }

    /// Lets the repository come back. Gives how many snapshots it has.
    async fn come_back(&mut self, how: impl FnOnce(&mut Cluster)) -> i64 {
        how(&mut self.scene.cluster);
        self.scene.repository = self.scene.cluster.client("powa").await;
        self.scene.snapshots().await
    }

    /// What is in the repository in the end: at least so many snapshots, each whole, each once, and none is missing.
    async fn account(&self, least: i64) {
        self.account_with_gaps(least).await;
        let gap = "SELECT coalesce(max(extract(epoch FROM ts - before)), 0)::float8 FROM (
            SELECT ts, lag(ts) OVER (ORDER BY ts) AS before FROM {powa}.test_marked_history GROUP BY ts) AS times";
        let gap: f64 = self.scene.one(gap, &[]).await;
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

/// Sends a signal to all processes of a cluster.
fn signal_all(cluster: &mut Cluster, signal: Signal) {
    let file = fs::read_to_string(cluster.data_directory().join("postmaster.pid")).expect("it runs");
    let postmaster: i32 = file.lines().next().and_then(|line| line.parse().ok()).expect("a process id");
    let children =
        fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).expect("its children");
    let children = children.split_whitespace().map(|child| child.parse().expect("a process id"));
    // First who could start more of them.
    for process in std::iter::once(postmaster).chain(children) {
        // One that has just ended needs no signal.
        let _ = kill(Pid::from_raw(process), signal);
    }
}
