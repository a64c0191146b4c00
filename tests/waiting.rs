//! Snapshots that wait on disk, while what they wait for changes: the repository that is configured, its servers, the
//! disk.

mod fleet;
mod scene;
mod support;

use std::fs::{self, File};
use std::path::PathBuf;

use fleet::{Fleet, Gate, LISTENING, config, prepend, register_idle, snapshots};
use nix::fcntl::{Flock, FlockArg};
use powa_collector::snapshot::backlog::folder;
use scene::outage::Outage;
use serde_json::json;
use support::{Cluster, Control, DEADLINE, Powa, Registration, Signal, Spool, on_both_versions, wait_until};

/// How many rows a snapshot has in the table that is counted.
const ROWS: i64 = 100;

/// What is said of snapshots that nobody stores.
const STRAY: &str = "nobody stores what waits there";

on_both_versions! {
    async fn what_waits_for_another_repository_is_said_and_stored_when_it_is_configured_again(powa: Powa) {
        let mut outage = Outage::start(powa, ROWS).await;
        outage.monitored.create_monitored("other", &[]).await;
        let other = json!({ "repository": { "dsn": outage.monitored.superuser_dsn("other") } });
        let mut collector = outage.begin(Cluster::stop, 2).await;
        assert!(!collector.log().contains(STRAY));

        collector.write_config(&outage.config(other.clone()));
        collector.signal(Signal::SIGHUP);
        let line = collector.wait_for_log(STRAY).await;
        let files = outage.files(outage.scene.id);
        let bytes: u64 = files.iter().map(|file| fs::metadata(file).unwrap().len()).sum();
        let folder = files[0].parent().unwrap().display();
        let told = format!("{folder}: {STRAY}, snapshots: {}, bytes: {bytes}; it is for another repository.dsn", files.len());
        assert!(line.contains(&told) && line.contains("WARN"), "{line}");
        assert!(collector.stop().await.success());

        let mut collector = outage.collect(other);
        let line = collector.wait_for_log(STRAY).await;
        assert!(line.contains(&told) && line.contains("WARN"), "{line}");
        assert_eq!(files, outage.files(outage.scene.id));

        outage.come_back(Cluster::start_again).await;
        collector.write_config(&outage.config(json!({})));
        collector.signal(Signal::SIGHUP);
        outage.wait_for_no_files(outage.scene.id).await;
        assert!(collector.stop().await.success());
        assert_eq!(1, collector.log().matches(STRAY).count(), "{}", collector.log());
        outage.scene.account(ROWS, &collector.log()).await;
    }

    async fn what_waits_where_another_repository_has_come_is_put_aside(powa: Powa) {
        let mut outage = Outage::start(powa, ROWS).await;
        let server = outage.scene.id;
        let mut collector = outage.begin(Cluster::stop, 2).await;
        assert!(collector.stop().await.success());
        outage.monitored.create_monitored("other", &[]).await;
        let other = outage.monitored.client("other").await;
        assert_eq!(server, register_idle(&other, Registration::of(&outage.monitored, "powa")).await);
        let files = outage.files(server);
        let place = folder(outage.spool.path(), &format!("127.0.0.1:{}/other", outage.monitored.port()));
        fs::rename(files[0].parent().unwrap(), &place).unwrap();

        let dsn = outage.monitored.superuser_dsn("other");
        let mut collector = outage.collect(json!({ "repository": { "dsn": dsn } }));
        let line = collector.wait_for_log("it is for the repository").await;
        assert!(line.contains(".foreign") && line.contains("ERROR"), "{line}");
        outage.wait_for_no_files(server).await;
        assert!(collector.stop().await.success());
        for file in &files {
            let mut aside = place.join(file.file_name().unwrap()).into_os_string();
            aside.push(".foreign");
            assert!(PathBuf::from(aside).exists(), "{}", collector.log());
        }
        assert_eq!(1, snapshots(&other, server).await);
    }

    async fn what_waits_in_a_former_directory_is_said(powa: Powa) {
        let mut outage = Outage::start(powa, ROWS).await;
        let mut collector = outage.begin(Cluster::stop, 2).await;
        let other = Spool::new();
        collector.write_config(&outage.config(json!({ "spool": { "directory": other.path() } })));
        collector.signal(Signal::SIGHUP);
        let line = collector.wait_for_log(STRAY).await;
        assert!(line.contains(&outage.spool.path().display().to_string()), "{line}");
        // Back again, while nobody has stored anything: the same workers go on with what waits.
        collector.write_config(&outage.config(json!({})));
        collector.signal(Signal::SIGHUP);
        outage.come_back(Cluster::start_again).await;
        outage.wait_for_no_files(outage.scene.id).await;
    }

    async fn a_directory_that_cannot_be_used_is_tried_again(powa: Powa) {
        let mut outage = Outage::start(powa, ROWS).await;
        let directory = outage.spool.path().join("in a file");
        fs::write(&directory, "").unwrap();
        let mut collector = outage.collect(json!({ "spool": { "directory": directory } }));
        let line = collector.wait_for_log("snapshots will not wait").await;
        assert!(line.contains("trying again until it works") && line.contains("ERROR"), "{line}");
        fs::remove_file(&directory).unwrap();
        let line = collector.wait_for_log("snapshots can wait").await;
        assert!(line.contains(&directory.display().to_string()), "{line}");
        outage.scene.wait_for_snapshots(1).await;
        outage.scene.cluster.stop();
        outage.wait_for_files(outage.scene.id, 1).await;
        outage.come_back(Cluster::start_again).await;
        outage.wait_for_no_files(outage.scene.id).await;
        assert!(collector.stop().await.success());
        let log = collector.log();
        assert_eq!(1, log.matches("snapshots will not wait").count(), "{log}");
        outage.scene.account(ROWS, &log).await;
    }

    async fn a_folder_that_becomes_free_is_taken_with_all_that_waits_there(powa: Powa) {
        let mut outage = Outage::start(powa, ROWS).await;
        let mut collector = outage.begin(Cluster::stop, 2).await;
        assert!(collector.stop().await.success());
        outage.come_back(Cluster::start_again).await;
        // No snapshot comes that would take the others along.
        outage.scene.run("UPDATE {powa}.powa_servers SET frequency = 3600 WHERE id > 0").await;
        outage.scene.run("UPDATE {powa}.powa_snapshot_metas SET snapts = now() WHERE srvid > 0").await;
        let files = outage.files(outage.scene.id);
        let lock = File::open(files[0].with_file_name("lock")).unwrap();
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).unwrap();
        let mut collector = outage.collect(json!({}));
        collector.wait_for_log("another collector of the same repository has it").await;
        // A question before that would be lost.
        collector.wait_for_log(fleet::LISTENING).await;
        fleet::wait_for_states(&mut Control::connect(&outage.scene.cluster, "powa").await, r#"{"1": "running"}"#).await;
        assert_eq!(files, outage.files(outage.scene.id));
        drop(lock);
        outage.wait_for_no_files(outage.scene.id).await;
        assert!(collector.stop().await.success());
        outage.scene.account(ROWS, &collector.log()).await;
    }

    async fn what_waits_is_kept_for_a_server_that_is_off_and_removed_with_one_that_is_removed(powa: Powa) {
        let mut outage = Outage::start(powa, ROWS).await;
        let (stays, [removed, off]) = (outage.scene.id, [outage.register(2).await, outage.register(3).await]);
        let mut collector = outage.collect(json!({}));
        wait_until("a plan for each", DEADLINE, async || {
            let least = "SELECT min(coalesce_seq) FROM {powa}.powa_snapshot_metas WHERE srvid > 0";
            outage.scene.one::<i64>(least, &[]).await > 1
        })
        .await;
        outage.scene.cluster.stop();
        for server in [stays, removed, off] {
            outage.wait_for_files(server, 1).await;
        }
        assert!(collector.stop().await.success());
        outage.come_back(Cluster::start_again).await;
        outage.scene.execute("DELETE FROM {powa}.powa_servers WHERE id = $1", &[&removed]).await;
        outage.scene.execute("DELETE FROM {powa}.test_marked_history WHERE srvid = $1", &[&removed]).await;
        outage.scene.execute("UPDATE {powa}.powa_servers SET frequency = -1 WHERE id = $1", &[&off]).await;
        let (of_removed, of_off) = (outage.files(removed), outage.files(off));

        let mut collector = outage.collect(json!({}));
        let line = collector.wait_for_log("not in powa_servers any more").await;
        let told = format!("snapshots: {}, bytes: ", of_removed.len());
        let server = format!("srvid={removed}");
        assert!(line.contains(&told) && line.contains(&server) && line.contains("WARN"), "{line}");
        outage.wait_for_no_files(removed).await;
        outage.wait_for_no_files(stays).await;
        assert_eq!(of_off, outage.files(off));

        outage.scene.execute("UPDATE {powa}.powa_servers SET frequency = 5 WHERE id = $1", &[&off]).await;
        collector.signal(Signal::SIGHUP);
        outage.wait_for_no_files(off).await;
        assert!(collector.stop().await.success());
        let log = collector.log();
        assert_eq!(1, log.matches("not in powa_servers any more").count(), "{log}");
        outage.scene.account(ROWS, &log).await;
    }

    async fn what_waits_is_removed_once_the_worker_has_stopped(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        fleet.register(2).await;
        // Full for a while, says the repository.
        fleet.execute(
            "CREATE FUNCTION public.test_full() RETURNS void LANGUAGE plpgsql AS
             $$ BEGIN RAISE 'full' USING ERRCODE = 'disk_full'; END $$",
        ).await;
        prepend(&fleet.repository, "powa_take_snapshot", "SELECT public.test_full()").await;
        fleet.force(1).await;
        fleet.collector.wait_for_log("the repository does not take snapshots").await;
        let spool = Spool::of(&fleet.collector);
        assert_eq!(1, spool.snapshots_of(1).len());
        fleet.execute("DELETE FROM powa_servers WHERE id = 1").await;
        assert_eq!("RELOAD OK OK", fleet.ask("RELOAD", "").await);
        let line = fleet.collector.wait_for_log("not in powa_servers any more").await;
        assert!(line.contains("snapshots: 1,"), "{line}");
        assert!(spool.snapshots_of(1).is_empty());
    }

    async fn a_repository_that_is_configured_again_before_its_stores_are_done_keeps_its_folder(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        fleet.cluster.create_monitored("other", &[]).await;
        let listening = |dbname| format!("{LISTENING} postgres@127.0.0.1:{}/{dbname}", fleet.cluster.port());
        let (here, there) = (listening("powa"), listening("other"));
        let gate = Gate::in_store(&fleet.cluster).await;
        fleet.force(1).await;
        gate.reached().await;

        let mut other = config(&fleet.cluster, json!({}));
        other["repository"]["dsn"] = fleet.cluster.superuser_dsn("other").into();
        fleet.collector.write_config(&other);
        assert_eq!("RELOAD OK OK", fleet.ask("RELOAD", "").await);
        fleet.collector.wait_for_log(&there).await;
        fleet.collector.write_config(&config(&fleet.cluster, json!({})));
        let position = fleet.collector.log_position();
        let mut control = Control::connect(&fleet.cluster, "other").await;
        assert_eq!("RELOAD OK OK", control.ask("RELOAD", "").await);
        fleet.collector.wait_for_log_after(position, &here).await;
        let log = fleet.collector.log();
        assert!(!log.contains("snapshots will not wait") && !log.contains(STRAY), "{log}");

        gate.open();
        fleet.wait_for_snapshots(1, 2).await;
        fleet.wait_for_states(r#"{"1": "running"}"#).await;
    }
}

impl Outage {
    fn files(&self, server: i32) -> Vec<PathBuf> {
        self.spool.snapshots_of(server)
    }

    async fn wait_for_files(&self, server: i32, least: usize) {
        wait_until("snapshots wait", 2 * DEADLINE, async || self.files(server).len() >= least).await;
    }

    async fn wait_for_no_files(&self, server: i32) {
        wait_until("nothing waits", 2 * DEADLINE, async || self.files(server).is_empty()).await;
    }
}
