//! Servers that take another role while a session with them is open.

mod fleet;
mod scene;
mod support;

use fleet::{Fleet, Gate, LISTENING};
use scene::{Scene, one, run};
use serde_json::{Value, json};
use support::{
    Cluster, Collector, Control, DEADLINE, EXTENSIONS, Powa, Registration, on_both_versions, wait_until,
};

/// How many rows a snapshot has in the table that is counted.
const ROWS: i64 = 100;

on_both_versions! {
    async fn a_repository_that_takes_no_changes_is_left_until_it_does(powa: Powa) {
        let scene = Scene::new(powa).await;
        let mut collector = scene.begin_period().await;
        scene.wait_for_snapshots(1).await;
        set_read_only(&scene.cluster, true).await;
        let line = collector.wait_for_log("takes no changes").await;
        assert!(line.contains("standby or read-only") && line.contains("wait until it does"), "{line}");
        let mut control = support::Control::connect(&scene.cluster, "powa").await;
        let status = control.ask("WORKERS_STATUS", "").await;
        assert!(status.contains("no connection to repository server"), "{status}");
        set_read_only(&scene.cluster, false).await;
        let before = scene.snapshots().await;
        scene.wait_for_snapshots(before + 1).await;
        assert_eq!(Vec::<String>::new(), scene.errors().await);
    }

    async fn what_was_read_before_the_repository_took_no_changes_is_stored_afterwards(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        let gate = Gate::in_fetch(&fleet.cluster).await;
        fleet.force(1).await;
        gate.reached().await;
        set_read_only(&fleet.cluster, true).await;
        gate.open();
        let line = fleet.collector.wait_for_log("the repository does not take snapshots").await;
        assert!(line.contains("takes no changes: it is a standby or read-only"), "{line}");
        set_read_only(&fleet.cluster, false).await;
        fleet.wait_for_snapshots(1, 2).await;
    }

    async fn a_server_that_is_no_longer_what_is_wanted_is_looked_for_again(powa: Powa) {
        let monitored = Cluster::builder(powa).start();
        monitored.create_monitored("powa", EXTENSIONS).await;
        let repository = Cluster::builder(powa).start();
        repository.create_repository("powa").await;
        let server = Registration::of(&monitored, "powa").extensions(EXTENSIONS);
        let scene = Scene::of(repository, "powa", server).await;
        scene.leave_out_catalogs("").await;
        scene.run("UPDATE {powa}.powa_servers SET frequency = 5 WHERE id > 0").await;
        let wish = json!({ "servers": { "defaults": { "target_session_attrs": "read-write" } } });
        let mut collector = Collector::start(scene.config(wish));
        scene.wait_for_snapshots(1).await;
        set_read_only(&monitored, true).await;
        let line = collector.wait_for_log("has become read-only").await;
        assert!(line.contains("looking for it again"), "{line}");
        wait_until("the repository is told", DEADLINE, async || {
            let errors = scene.errors().await;
            errors.iter().any(|error| error.contains("target_session_attrs: the server is not read-write"))
        })
        .await;
        set_read_only(&monitored, false).await;
        let before = scene.snapshots().await;
        scene.wait_for_snapshots(before + 1).await;
    }

    async fn a_standby_that_is_named_first_is_passed_over(powa: Powa) {
        let pair = Pair::start(powa).await;
        let mut collector = Collector::start(pair.config(&[&pair.standby, &pair.scene.cluster], ""));
        collector.wait_for_log("listening for control messages").await;
        pair.scene.wait_for_snapshots(2).await;
        assert!(collector.stop().await.success());
        let log = collector.log();
        assert!(!log.contains(" WARN ") && !log.contains(" ERROR "), "{log}");
    }

    async fn a_standby_that_is_all_there_is_or_asked_for_is_told(powa: Powa) {
        let pair = Pair::start(powa).await;
        let (primary, standby) = (&pair.scene.cluster, &pair.standby);
        for config in [
            pair.config(&[standby], ""),
            pair.config(&[standby, primary], "target_session_attrs=any"),
        ] {
            let line = Collector::start(config).wait_for_log("takes no changes: it is a standby").await;
            assert!(line.contains("trying again"), "{line}");
        }
        let mut collector = Collector::start(pair.config(&[standby, standby], ""));
        let line = collector.wait_for_log("the server is not read-write").await;
        assert!(line.contains("what to do: it is a standby") && line.contains("trying again"), "{line}");
    }

    async fn a_repository_is_followed_to_the_standby_that_takes_over(powa: Powa) {
        let mut pair = Pair::start(powa).await;
        let mut collector = Collector::start(pair.config(&[&pair.scene.cluster, &pair.standby], ""));
        pair.scene.wait_for_snapshots(1).await;
        pair.wait_for_the_standby().await;
        pair.scene.cluster.stop();
        collector.wait_for_log("the repository does not take snapshots").await;
        pair.take_over().await;
        let before = pair.scene.snapshots().await;
        pair.scene.wait_for_snapshots(before + 2).await;
        assert!(collector.stop().await.success());
        pair.scene.account(ROWS, &collector.log()).await;
    }

    async fn a_repository_that_is_demoted_is_left_for_the_one_that_takes_over(powa: Powa) {
        let mut pair = Pair::start(powa).await;
        let mut collector = Collector::start(pair.config(&[&pair.scene.cluster, &pair.standby], ""));
        collector.wait_for_log("listening for control messages").await;
        pair.scene.wait_for_snapshots(1).await;
        // The former primary stays, and so do all sessions with it.
        set_read_only(&pair.scene.cluster, true).await;
        pair.wait_for_the_standby().await;
        pair.take_over().await;
        let before = pair.scene.snapshots().await;
        pair.scene.wait_for_snapshots(before + 2).await;
        // Who has something to say to the collector says it where it stores.
        let mut control = Control::connect(&pair.standby, "powa").await;
        wait_until("it listens at the server that has taken over", 2 * DEADLINE, async || {
            collector.log().matches(LISTENING).count() > 1
        })
        .await;
        let status = control.ask("WORKERS_STATUS", "").await;
        assert!(status.contains("running"), "{status}");
        // Its questions go there too: what servers there are, to begin with.
        let added = pair.scene.register(&Registration::new("127.0.1.2", pair.monitored.port())).await;
        assert_eq!("RELOAD OK OK", control.ask("RELOAD", "").await);
        let status = control.ask("WORKERS_STATUS", "").await;
        assert!(status.contains(&format!(r#""{added}": "#)), "{status}");
        assert!(collector.stop().await.success());
        pair.scene.account(ROWS, &collector.log()).await;
    }
}

/// A repository with its standby, and a server in a cluster of its own.
struct Pair {
    scene: Scene,
    standby: Cluster,
    monitored: Cluster,
}

impl Pair {
    async fn start(powa: Powa) -> Pair {
        let monitored = Cluster::start(powa);
        monitored.create_monitored("powa", &[]).await;
        let repository = Cluster::builder(powa).setting("autovacuum", "off").start();
        repository.create_repository("powa").await;
        let mut scene = Scene::of(repository, "powa", Registration::of(&monitored, "powa")).await;
        scene.monitored = monitored.client("powa").await;
        scene.leave_out_catalogs("").await;
        scene.add_marked(ROWS).await;
        scene.run("UPDATE {powa}.powa_servers SET frequency = 5 WHERE id > 0").await;
        let standby = scene.cluster.standby();
        Pair { scene, standby, monitored }
    }

    /// With a DSN that names these in this order.
    fn config(&self, hosts: &[&Cluster], options: &str) -> Value {
        let names = vec!["127.0.0.1"; hosts.len()].join(",");
        let ports: Vec<String> = hosts.iter().map(|host| host.port().to_string()).collect();
        let ports = ports.join(",");
        let dsn = format!("host={names} port={ports} user=postgres dbname=powa {options}");
        json!({ "repository": { "dsn": dsn }, "timeouts": { "connect": 2, "query": 3, "close": 1 } })
    }

    /// Waits until the standby has all that the primary has.
    async fn wait_for_the_standby(&self) {
        let standby = self.standby.client("postgres").await;
        let here = "SELECT pg_current_wal_flush_lsn()::text";
        let there = "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn";
        let position: String = self.scene.one(here, &[]).await;
        wait_until("the standby is at the primary's level", DEADLINE, async || {
            one::<bool>(&standby, there, &[&position]).await
        })
        .await;
    }

    /// The standby becomes the repository.
    async fn take_over(&mut self) {
        self.standby.promote().await;
        self.scene.repository = self.standby.client("powa").await;
    }
}

/// Lets a server take no changes any more, in the sessions that are open too.
async fn set_read_only(cluster: &Cluster, is_read_only: bool) {
    let client = cluster.client("postgres").await;
    let value = if is_read_only { "on" } else { "off" };
    run(&client, &format!("ALTER SYSTEM SET default_transaction_read_only = {value}")).await;
    run(&client, "SELECT pg_reload_conf()").await;
    wait_until("the setting is taken over", DEADLINE, async || {
        one::<String>(&client, "SHOW default_transaction_read_only", &[]).await == value
    })
    .await;
}
