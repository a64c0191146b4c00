//! Servers that take another role while a session with them is open.

mod scene;
mod support;

use scene::{Scene, one, run};
use serde_json::json;
use support::{Cluster, Collector, DEADLINE, EXTENSIONS, Powa, Registration, on_both_versions, wait_until};

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
