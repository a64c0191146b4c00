//! Who is next, when more servers are due than can be read and stored.

mod fleet;
mod support;

use std::time::{Duration, Instant};

use fleet::{Fleet, Gate, cluster, monitored, register_idle};
use serde_json::json;
use support::{DEADLINE, Powa, on_both_versions, wait_until};

on_both_versions! {
    async fn who_was_asked_for_comes_first_and_then_who_has_been_due_longest(powa: Powa) {
        let (cluster, repository) = cluster(powa).await;
        for number in 1..=6 {
            register_idle(&repository, monitored(&cluster, number)).await;
        }
        let gate = Gate::in_store(&cluster).await;
        let keys = json!({ "repository": { "max_connections": 1 }, "fetch": { "at_once": 1 }, "debug": true });
        let mut fleet = Fleet::of(cluster, repository, keys).await;
        fleet.wait_for_states(
            r#"{"1": "running", "2": "running", "3": "running", "4": "running", "5": "running", "6": "running"}"#,
        ).await;
        // One is stored, and one has been read and waits for the repository.
        fleet.force(1).await;
        gate.reached().await;
        fleet.force(2).await;
        fleet.collector.wait_for_log("srvid=2}: waits for the repository").await;
        for (server, seconds) in [(3, 6), (4, 5), (5, 4)] {
            fleet.execute(&format!(
                "UPDATE powa_servers SET frequency = {seconds} + (SELECT extract(epoch FROM now() - snapts) FROM
                powa_snapshot_metas WHERE srvid = {server}) WHERE id = {server}"
            )).await;
        }
        assert_eq!("RELOAD OK OK", fleet.ask("RELOAD", "").await);
        for server in [5, 4, 3] {
            fleet.collector.wait_for_log(&format!("srvid={server}}}: waits for its turn")).await;
        }
        fleet.force(6).await;
        fleet.collector.wait_for_log("srvid=6}: waits for its turn").await;
        gate.open();
        wait_until("all are stored", DEADLINE, async || stored(&fleet).len() == 6).await;
        assert_eq!(stored(&fleet), ["1", "2", "6", "5", "4", "3"]);
    }

    async fn periods_that_were_missed_are_not_made_up_for(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        let gate = Gate::in_store(&fleet.cluster).await;
        fleet.execute("UPDATE powa_servers SET frequency = 5 WHERE id > 0").await;
        assert_eq!("RELOAD OK OK", fleet.ask("RELOAD", "").await);
        gate.reached().await;
        let missed = Instant::now() + Duration::from_secs(16);
        wait_until("three periods are missed", DEADLINE, async || Instant::now() > missed).await;
        gate.open();
        // The one that was held up, and the one that has become due meanwhile.
        fleet.wait_for_snapshots(1, 3).await;
        let seen = Instant::now();
        fleet.wait_for_snapshots(1, 4).await;
        assert!(seen.elapsed() > Duration::from_secs(3), "{:?}", seen.elapsed());
    }

    async fn a_server_that_hangs_does_not_keep_its_turn(powa: Powa) {
        let (cluster, repository) = cluster(powa).await;
        register_idle(&repository, monitored(&cluster, 1)).await;
        let admin = cluster.client("postgres").await;
        admin.batch_execute("CREATE DATABASE other TEMPLATE monitored").await.unwrap();
        register_idle(&repository, monitored(&cluster, 2).dbname("other")).await;
        let gate = Gate::in_fetch(&cluster).await;
        let keys = json!({ "fetch": { "at_once": 1 } });
        let mut fleet = Fleet::of(cluster, repository, keys).await;
        fleet.wait_for_states(r#"{"1": "running", "2": "running"}"#).await;
        fleet.force(1).await;
        gate.reached().await;
        fleet.force(2).await;
        fleet.wait_for_snapshots(2, 2).await;
        assert_eq!(1, fleet.snapshots(1).await);
        gate.open();
        fleet.wait_for_snapshots(1, 2).await;
    }
}

/// The servers whose snapshots have been stored, in that order.
fn stored(fleet: &Fleet) -> Vec<String> {
    let log = fleet.collector.log();
    let ids = log.lines().filter(|line| line.contains("}: snapshot: ")).filter_map(|line| {
        let (_, rest) = line.split_once("srvid=")?;
        Some(rest.split_once('}')?.0.to_owned())
    });
    ids.collect()
}
