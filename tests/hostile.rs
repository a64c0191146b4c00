//! What servers and PoWA's own tables may say and nobody should believe: bytes that are no text, and names that are
//! statements.

mod scene;
mod support;

use scene::{Scene, flush_statistics, run};
use support::{Cluster, EXTENSIONS, Powa, Registration, on_both_versions};

/// What stands for a byte that is no character.
const REPLACEMENT: char = '\u{fffd}';

on_both_versions! {
    async fn bytes_that_are_no_text_are_replaced_and_the_rest_is_stored(powa: Powa) {
        let cluster = Cluster::builder(powa).setting("autovacuum", "off").start();
        cluster.create_repository("powa").await;
        let admin = cluster.client("postgres").await;
        run(&admin, "CREATE DATABASE template_ascii ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0").await;
        cluster.create_copy("monitored", "template_ascii", EXTENSIONS).await;
        let server = Registration::of(&cluster, "monitored").extensions(EXTENSIONS);
        let scene = Scene::of(cluster, "powa", server).await;
        scene.leave_out_catalogs("").await;
        let query = r"SELECT convert_from('\x61ff62c3'::bytea, 'SQL_ASCII') || chr(9) || 'é'";
        scene.add_datasource("bytes", "word text", query, None).await;
        // As a statement, the bytes come by way of what runs it: a client's text is UTF-8 here.
        run(&scene.monitored, r"SET pg_stat_statements.track = 'all'; SELECT pg_stat_statements_reset();
            DO $$ BEGIN
                EXECUTE convert_from('\x53454c4543542031204153202261ff6222'::bytea, 'SQL_ASCII');
            END $$").await;
        flush_statistics(&scene.monitored).await;

        scene.snapshot().await;
        assert_eq!(Vec::<String>::new(), scene.errors().await);
        let word: String = scene.one("SELECT word FROM {powa}.test_bytes_history", &[]).await;
        assert_eq!(word, format!("a{REPLACEMENT}b{REPLACEMENT}\té"));
        let texts = "SELECT array_agg(query) FROM {powa}.powa_statements WHERE srvid = $1";
        let texts: Vec<String> = scene.one(texts, &[&scene.id]).await;
        assert!(texts.contains(&format!("SELECT $1 AS \"a{REPLACEMENT}b\"")), "{texts:#?}");
    }

    async fn names_that_are_statements_cost_only_their_own_rows(powa: Powa) {
        let scene = Scene::new(powa).await;
        let owned = scene.cluster.data_directory().join("owned");
        let program = format!("x(0)) TO PROGRAM 'touch {}'; --", scene.cluster.inside(&owned).display());
        let names = [
            ("program", program.as_str()),
            ("drop", r#"x"(0)) TO STDOUT; DROP TABLE powa_servers; --"#),
            ("empty", ""),
            ("nowhere", "powa_no_such_function_src"),
            ("long", &"x".repeat(10_000)),
            ("lines", "a\nb\\\t{powa}'$1\u{1}"),
        ];
        for (name, source) in names {
            scene.add_datasource(name, "number integer", "SELECT 1", None).await;
            let functions = scene.pick("powa_functions", "powa_extension_functions");
            let statement = format!("UPDATE {{powa}}.{functions} SET query_source = $1 WHERE query_source = $2");
            scene.execute(&statement, &[&source, &format!("test_{name}_src")]).await;
        }
        // One that is read, and has no table to go to.
        scene.add_datasource("homeless", "number integer", "SELECT 1", None).await;
        scene.run("DROP TABLE {powa}.test_homeless_src_tmp").await;

        let log = scene.snapshot().await;
        let errors = scene.errors().await;
        assert!(errors.iter().any(|error| error.contains("test_homeless_src_tmp")), "{errors:#?}");
        assert!(errors.iter().any(|error| error.contains("powa_no_such_function_src")), "{errors:#?}");
        assert!(!owned.exists());
        assert!(log.lines().all(|line| !line.starts_with("b\\")), "each error is one line: {log}");
        for (name, _) in names {
            assert_eq!(0, scene.count(&format!("test_{name}_history")).await, "{name}");
        }
        for table in ["powa_statements_history_current", "powa_databases"] {
            assert!(scene.count(table).await > 0, "{table}");
        }
        assert_eq!(2, scene.one::<i64>("SELECT count(*) FROM {powa}.powa_servers", &[]).await);
        assert_eq!(Vec::<String>::new(), scene.leftovers().await);
    }
}
