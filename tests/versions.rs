//! The versions that the repository keeps of each server and its extensions.

mod scene;
mod support;

use scene::{Scene, one, run};
use serde_json::json;
use support::{Cluster, Control, Powa, Registration, on_both_versions};

on_both_versions! {
    async fn versions_are_written_at_the_start(powa: Powa) {
        let scene = Scene::new(powa).await;
        scene.snapshot().await;
        let server: String = one(&scene.monitored, "SHOW server_version", &[]).await;
        let sql = "SELECT version FROM {powa}.powa_servers WHERE id = $1";
        assert_eq!(server, scene.one::<String>(sql, &[&scene.id]).await);
        for (name, version) in known(&scene).await.into_iter().filter(|(name, _)| name != "hypopg") {
            let sql = "SELECT extversion FROM pg_extension WHERE extname = $1";
            assert_eq!(Some(one::<String>(&scene.monitored, sql, &[&name]).await), version, "{name}");
        }
        assert!(known(&scene).await.len() >= 6, "{:?}", known(&scene).await);
    }

    async fn versions_follow_at_a_reload(powa: Powa) {
        let scene = Scene::new(powa).await;
        let mut collector = scene.begin(json!({})).await;
        collector.wait_for_log("}: snapshot: ").await;
        run(&scene.monitored, "
            UPDATE pg_catalog.pg_extension SET extversion = '8.8' WHERE extname = 'pg_qualstats';
            DROP EXTENSION pg_wait_sampling;
        ").await;
        let position = collector.log_position();
        reload(&scene).await;
        collector.wait_for_log_after(position, "the version of extension pg_qualstats is now 8.8").await;
        collector.wait_for_log_after(position, "the extension pg_wait_sampling is not installed").await;
        assert!(known(&scene).await.contains(&("pg_qualstats".to_owned(), Some("8.8".to_owned()))));
        assert!(known(&scene).await.contains(&("pg_wait_sampling".to_owned(), None)));
    }

    async fn what_has_not_changed_is_not_written(powa: Powa) {
        let scene = Scene::new(powa).await;
        let mut collector = scene.begin(json!({})).await;
        collector.wait_for_log("}: snapshot: ").await;
        let before = row_versions(&scene).await;
        run(&scene.monitored, "
            UPDATE pg_catalog.pg_extension SET extversion = '8.8' WHERE extname = 'pg_stat_kcache'").await;
        reload(&scene).await;
        // What does change is written last: it shows that the rest has been looked at.
        collector.wait_for_log("the version of extension pg_stat_kcache is now 8.8").await;
        let after = row_versions(&scene).await;
        let changed = after.iter().filter(|row| !before.contains(row)).map(|(name, _)| name.as_str());
        assert_eq!(vec!["pg_stat_kcache"], changed.collect::<Vec<_>>());
        assert_eq!(before.len(), after.len());
    }

    async fn hypopg_is_known_where_it_is_available(powa: Powa) {
        let scene = Scene::new(powa).await;
        run(&scene.monitored, "DROP EXTENSION hypopg").await;
        let extensions = scene.pick("powa_extensions", "powa_extension_config");
        scene.run(&format!("DELETE FROM {{powa}}.{extensions} WHERE extname = 'hypopg'")).await;
        let available: String = one(&scene.monitored,
            "SELECT default_version FROM pg_available_extensions WHERE name = 'hypopg'", &[]).await;
        let expected = ("hypopg".to_owned(), Some(available));
        let mut collector = scene.begin(json!({})).await;
        collector.wait_for_log("hypopg").await;
        collector.wait_for_log("}: snapshot: ").await;
        assert!(known(&scene).await.contains(&expected));

        let outdate = format!("UPDATE {{powa}}.{extensions} SET version = '0.1' WHERE extname = 'hypopg'");
        scene.run(&outdate).await;
        let position = collector.log_position();
        reload(&scene).await;
        collector.wait_for_log_after(position, "hypopg").await;
        assert!(known(&scene).await.contains(&expected));
    }
}

/// PoWA 4.0 keeps its parameters in a library that each session must load.
#[tokio::test]
async fn powa_4_0_is_loaded_on_both_sides() {
    let cluster =
        Cluster::builder(Powa::V4).setting("shared_preload_libraries", "pg_stat_statements").start();
    for database in ["powa", "monitored"] {
        run(&cluster.client("postgres").await, &format!("CREATE DATABASE {database}")).await;
        let client = cluster.client(database).await;
        // The last one that PoWA 4.0 knows.
        run(&client, "CREATE EXTENSION pg_stat_statements VERSION '1.7'").await;
        run(&client, "CREATE EXTENSION powa VERSION '4.0.1' CASCADE").await;
    }
    let server = Registration::of(&cluster, "monitored");
    let scene = Scene::of(cluster, "powa", server).await;
    scene.snapshot().await;
    assert_eq!(Vec::<String>::new(), scene.errors().await);
    assert!(scene.count("powa_statements_history_current").await > 0);
    assert_eq!(Vec::<String>::new(), scene.leftovers().await);
}

/// What the repository knows of the server's extensions.
async fn known(scene: &Scene) -> Vec<(String, Option<String>)> {
    let extensions = scene.pick("powa_extensions", "powa_extension_config");
    let sql = scene.sql(&format!("SELECT extname, version FROM {{powa}}.{extensions} WHERE srvid = $1"));
    let rows = scene.repository.query(&sql, &[&scene.id]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// Who wrote the rows of the server and its extensions.
async fn row_versions(scene: &Scene) -> Vec<(String, String)> {
    let extensions = scene.pick("powa_extensions", "powa_extension_config");
    let sql = scene.sql(&format!(
        "SELECT 'the server', xmin::text FROM {{powa}}.powa_servers WHERE id = $1
         UNION ALL SELECT extname, xmin::text FROM {{powa}}.{extensions} WHERE srvid = $1"
    ));
    let rows = scene.repository.query(&sql, &[&scene.id]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

async fn reload(scene: &Scene) {
    let mut control = Control::connect(&scene.cluster, &scene.repository_name).await;
    assert_eq!("RELOAD OK OK", control.ask("RELOAD", "").await);
}
