//! PoWA and other extensions in whatever schemas, databases of whatever names.

mod scene;
mod support;

use scene::{Scene, one, run};
use serde_json::json;
use support::{Cluster, EXTENSIONS, Powa, Registration, on_both_versions, quote_identifier};

/// Names that need quoting. PostgreSQL allows none of `"`, `$`, `'` and `\` in the schema of an extension.
const REPOSITORY_SCHEMA: &str = "PoWA – repository.x";
const MONITORED_SCHEMA: &str = "select, from; --";

/// Database names that need quoting in SQL, in a connection string and in a URI.
const REPOSITORY: &str = r#"re"po' \ %41?x=1&é"#;
const MONITORED: &str = r#"mo"ni' tored = \ @host:1/é"#;

on_both_versions! {
    // PoWA 4 itself is bound to public, and finds other extensions by the search path.
    async fn extensions_may_be_in_any_schema(powa: Powa) {
        let cluster = Cluster::start(powa);
        cluster.create_powa_database("powa", Some(REPOSITORY_SCHEMA), EXTENSIONS).await;
        cluster.create_powa_database("monitored", Some(MONITORED_SCHEMA), EXTENSIONS).await;
        if powa.is_v4() {
            for (database, schema) in [("powa", REPOSITORY_SCHEMA), ("monitored", MONITORED_SCHEMA)] {
                let schema = quote_identifier(schema);
                let statement = format!("ALTER DATABASE {database} SET search_path = public, {schema}");
                run(&cluster.client("postgres").await, &statement).await;
            }
        }
        // What PoWA 4 stores of pg_track_settings it looks for in its own schema.
        let extensions = if powa.is_v4() { &EXTENSIONS[..3] } else { EXTENSIONS };
        let server = Registration::of(&cluster, "monitored").extensions(extensions);
        let scene = Scene::of(cluster, "powa", server).await;
        scene.leave_out_catalogs("WHERE catname <> 'pg_class'").await;
        let cleanup = format!("INSERT INTO public.cleaned SELECT count(*) FROM {}pg_stat_kcache()",
            scene.pick("", "{pg_stat_kcache}."));
        run(&scene.monitored, "CREATE TABLE public.cleaned (kcache integer)").await;
        scene.add_datasource("read", "number integer", "SELECT 1", Some(&cleanup)).await;
        scene.snapshot().await;
        assert_eq!(Vec::<String>::new(), scene.errors().await);
        assert_stored(&scene).await;
        assert!(one::<i32>(&scene.monitored, "SELECT kcache FROM public.cleaned", &[]).await > 0);
        if powa.is_v5() {
            let settings = format!("SELECT count(*) FROM {}.pg_track_settings_history", scene.powa);
            assert!(scene.one::<i64>(&settings, &[]).await > 0);
            assert!(scene.count("powa_catalog_class").await > 0);
        }
    }

    async fn databases_may_have_any_name(powa: Powa) {
        let cluster = Cluster::start(powa);
        cluster.create_repository(REPOSITORY).await;
        cluster.create_monitored(MONITORED, EXTENSIONS).await;
        let server = Registration::of(&cluster, MONITORED).alias("a b'c\"\\\n").extensions(EXTENSIONS);
        let scene = Scene::of(cluster, REPOSITORY, server).await;
        scene.leave_out_catalogs("").await;
        scene.snapshot_with(json!({ "use_server_alias": true })).await;
        assert_eq!(Vec::<String>::new(), scene.errors().await);
        assert_stored(&scene).await;
        let names = "SELECT array_agg(datname::text) FROM {powa}.powa_databases WHERE srvid = $1";
        let names: Vec<String> = scene.one(names, &[&scene.id]).await;
        assert!(names.contains(&REPOSITORY.to_owned()) && names.contains(&MONITORED.to_owned()), "{names:?}");
    }
}

async fn assert_stored(scene: &Scene) {
    for table in ["powa_databases", "powa_statements_history_current", "powa_kcache_metrics_current"] {
        assert!(scene.count(table).await > 0, "{table} is empty");
    }
    assert_eq!(Vec::<String>::new(), scene.leftovers().await);
}
