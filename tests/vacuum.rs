//! The tables that snapshots pass through are vacuumed when dead rows pile up in them, by whoever may.

mod scene;
mod support;

use scene::Scene;
use serde_json::{Value, json};
use support::{DEADLINE, Powa, on_both_versions, wait_until};

on_both_versions! {
    async fn dead_rows_are_vacuumed_away(powa: Powa) {
        let scene = with_many_rows(powa).await;
        // Each one waits until the snapshot, and what follows it, is done.
        scene.snapshot().await;
        wait_until("the table is vacuumed", DEADLINE, async || vacuums(&scene, MANY).await == 1).await;
        assert_eq!(0, vacuums(&scene, "powa_statements_src_tmp").await);
        // Its pages are used again.
        let size = size(&scene).await;
        for _ in 0..3 {
            scene.snapshot().await;
        }
        assert!(self::size(&scene).await < 2 * size);
        assert_eq!(4 * 60_000, scene.count("test_many_history").await);
    }

    async fn a_key_leaves_them_to_autovacuum(powa: Powa) {
        let scene = with_many_rows(powa).await;
        scene.snapshot_with(json!({ "repository": { "vacuum": false } })).await;
        assert_eq!(0, vacuums(&scene, MANY).await);
    }

    async fn who_has_no_right_to_vacuum_does_not_try(powa: Powa) {
        let scene = with_many_rows(powa).await;
        let less = scene.pick("", "REVOKE MAINTAIN ON {powa}.test_many_src_tmp FROM powa_collector");
        let mut config = set_up_role(&scene, less).await;
        // Otherwise what the server says of a try would not be in the log.
        config["debug"] = true.into();
        let log = scene.snapshot_with(config).await;
        assert_eq!(0, vacuums(&scene, MANY).await);
        assert!(log.contains("left to autovacuum") && log.contains(MANY), "{log}");
        assert!(!log.contains("permission denied"), "{log}");
    }

    async fn the_right_to_vacuum_is_enough(powa: Powa) {
        let scene = with_many_rows(powa).await;
        let right = scene.pick("ALTER TABLE {powa}.test_many_src_tmp OWNER TO powa_collector", "");
        // The script for PoWA 5 grants it, where PostgreSQL has it to grant.
        scene.snapshot_with(set_up_role(&scene, right).await).await;
        wait_until("the table is vacuumed", DEADLINE, async || vacuums(&scene, MANY).await == 1).await;
    }
}

const MANY: &str = "test_many_src_tmp";

async fn with_many_rows(powa: Powa) -> Scene {
    let scene = Scene::new(powa).await;
    let many = "SELECT number FROM generate_series(1, 60000) AS number";
    scene.add_datasource("many", "number integer", many, None).await;
    scene
}

/// How often the collector, or whoever else, has vacuumed a table.
async fn vacuums(scene: &Scene, table: &str) -> i64 {
    scene.one("SELECT vacuum_count FROM pg_stat_all_tables WHERE relname = $1", &[&table]).await
}

async fn size(scene: &Scene) -> i64 {
    scene.one("SELECT pg_relation_size('{powa}.test_many_src_tmp')", &[]).await
}

/// The configuration of a collector that logs in as the role of the setup script, and may do what `more` says.
async fn set_up_role(scene: &Scene, more: &str) -> Value {
    let script = scene.pick(
        include_str!("../sql/setup/repository_powa4.sql"),
        include_str!("../sql/setup/repository_powa5.sql"),
    );
    scene.run(script).await;
    // The script does not know of the test's own tables.
    scene
        .run(&format!(
            "GRANT SELECT, INSERT, UPDATE, DELETE ON {{powa}}.test_many_src_tmp, {{powa}}.test_many_history TO \
             powa_collector; {more}"
        ))
        .await;
    json!({ "repository": { "dsn": scene.cluster.dsn("powa_collector", &scene.repository_name) } })
}
