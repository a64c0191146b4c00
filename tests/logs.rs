//! The log: what its lines look like, which are shown, and that what comes again is not said again.

mod fleet;
mod scene;
mod support;

use fleet::{Fleet, LISTENING, cluster, config, monitored, register_idle};
use scene::{Scene, run};
use serde_json::{Value, json};
use support::{Collector, DEADLINE, Powa, Signal, on_both_versions, wait_until};

/// What tokio_postgres says at its debug level, with the statement.
const STATEMENT: &str = "preparing query";

on_both_versions! {
    async fn json_is_an_object_a_line_with_the_server_in_fields(powa: Powa) {
        let mut fleet = Fleet::with(powa, json!({ "log": { "format": "json", "level": "debug" } })).await;
        fleet.force(1).await;
        fleet.wait_for_snapshots(1, 2).await;
        fleet.collector.wait_for_log("snapshot: ").await;
        assert!(fleet.collector.stop().await.success());
        let lines: Vec<Value> = fleet.collector.log().lines().map(object).collect();
        let name = format!("127.0.1.1:{}", fleet.cluster.port());
        for told in ["worker for ", "the server's version is now ", "a command came", "snapshot: "] {
            let line = lines.iter().find(|line| line["message"].as_str().unwrap().starts_with(told));
            let line = line.unwrap_or_else(|| panic!("{told}: {lines:#?}"));
            assert_eq!((&json!(name), &json!(1)), (&line["server"], &line["srvid"]), "{line}");
        }
        let listening = lines.iter().find(|line| line["message"].as_str().unwrap().starts_with(LISTENING)).unwrap();
        assert!(listening["level"] == "INFO" && listening.get("server").is_none(), "{listening}");
        assert!(lines.iter().any(|line| line["level"] == "DEBUG"));
    }

    async fn the_format_is_switched_by_a_reload(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        for (format, is_json) in [("json", true), ("text", false)] {
            let position = fleet.collector.log_position();
            fleet.collector.write_config(&config(&fleet.cluster, json!({ "log": { "format": format } })));
            assert_eq!("RELOAD OK OK", fleet.ask("RELOAD", "").await);
            let line = fleet.collector.wait_for_log_after(position, "log.format: ").await;
            assert_eq!(is_json, line.starts_with('{'), "{line}");
            let position = fleet.collector.log_position();
            // On its way while the format changes, a worker's line has its server all the same.
            fleet.ask("FORCE_SNAPSHOT", "1").await;
            let line = fleet.collector.wait_for_log_after(position, "a command came").await;
            assert_eq!(is_json, serde_json::from_str::<Value>(&line).is_ok_and(|line| line["srvid"] == 1), "{line}");
            fleet.wait_for_snapshots(1, 2).await;
            fleet::age_snapshot(&fleet.repository, 1).await;
        }
        assert!(fleet.collector.is_running());
    }

    async fn the_level_is_switched_by_sighup_and_libraries_must_be_named(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        write_level(&fleet, "off");
        assert_eq!("RELOAD OK OK", fleet.ask("RELOAD", "").await);
        assert!(fleet.ask("REFRESH_DB_CAT", "1 0").await.contains(" OK "));
        write_level(&fleet, "debug");
        fleet.collector.signal(Signal::SIGHUP);
        // Of what came while it was off, the signal among it, nothing is there.
        fleet.collector.wait_for_log(r#"log.level: "off" becomes "debug""#).await;
        assert!(!["a command came", "SIGHUP"].iter().any(|told| fleet.collector.log().contains(told)));

        let second = fleet.register(2).await;
        assert_eq!("RELOAD OK OK", fleet.ask("RELOAD", "").await);
        fleet.collector.wait_for_log(&format!("srvid={second}}}: first snapshot in ")).await;
        fleet.wait_for_states(r#"{"1": "running", "2": "running"}"#).await;
        assert!(!fleet.collector.log().contains(STATEMENT), "{}", fleet.collector.log());

        write_level(&fleet, "info,tokio_postgres=debug");
        fleet.collector.signal(Signal::SIGHUP);
        fleet.collector.wait_for_log(r#"becomes "info,tokio_postgres=debug""#).await;
        fleet.register(3).await;
        assert_eq!("RELOAD OK OK", fleet.ask("RELOAD", "").await);
        fleet.collector.wait_for_log(STATEMENT).await;
        assert!(fleet.collector.is_running());
    }

    async fn warnings_have_their_server_when_nothing_else_is_logged(powa: Powa) {
        let (cluster, repository) = cluster(powa).await;
        register_idle(&repository, monitored(&cluster, 1).dbname("missing")).await;
        let keys = json!({ "log": { "level": "warn" }, "debug": true });
        let mut collector = Collector::start(config(&cluster, keys));
        let line = collector.wait_for_log("no connection to the monitored server").await;
        assert!(line.contains(&format!("{{server=127.0.1.1:{} srvid=1}}", cluster.port())), "{line}");
        assert!(!collector.log().contains(" INFO ") && !collector.log().contains(" DEBUG "));
    }

    async fn a_log_that_cannot_be_is_refused_at_the_start_and_on_reload(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        for (log, reason) in [
            (json!({ "level": "debgu" }), r#"key log.level: "debgu" in "debgu" is not possible: it is made of LEVEL and "#),
            (json!({ "format": "xml" }), r#"key log.format: "xml" is neither "text" nor "json""#),
        ] {
            let config = config(&fleet.cluster, json!({ "log": log }));
            let output = Collector::builder(config.clone()).run().await;
            let told = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.code() == Some(2) && told.contains(reason), "{told}");

            fleet.collector.write_config(&config);
            let answer = fleet.ask("RELOAD", "").await;
            assert!(answer.starts_with("RELOAD ERROR ") && answer.contains(reason), "{answer}");
            let line = fleet.collector.wait_for_log("the old one stays").await;
            assert!(line.contains(" ERROR "), "{line}");
        }
        assert!(!fleet.collector.log().contains(" DEBUG "));
    }

    async fn the_journal_is_given_priorities(powa: Powa) {
        let (cluster, repository) = cluster(powa).await;
        register_idle(&repository, monitored(&cluster, 1).dbname("missing")).await;
        let mut collector = Collector::builder(config(&cluster, json!({ "debug": true }))).on_journal().start();
        collector.wait_for_log(LISTENING).await;
        let line = collector.wait_for_log("no connection to the monitored server").await;
        assert!(line.starts_with("<4>WARN worker{server="), "{line}");
        std::fs::write(collector.config_path(), "{").unwrap();
        collector.signal(Signal::SIGHUP);
        let line = collector.wait_for_log("the old one stays").await;
        assert!(line.starts_with("<3>ERROR the new configuration"), "{line}");
        assert!(collector.stop().await.success());
        let log = collector.log();
        let heads = ["<3>ERROR ", "<4>WARN ", "<6>INFO ", "<7>DEBUG "];
        assert!(log.lines().all(|line| heads.iter().any(|head| line.starts_with(head))), "{log}");
        assert!(log.contains("<7>DEBUG ") && log.contains("<6>INFO stopped"), "{log}");
    }

    async fn what_ends_the_program_is_a_line_like_others(powa: Powa) {
        let (cluster, _) = cluster(powa).await;
        let mut collector = Collector::builder(config(&cluster, json!({ "debug": 5 }))).on_journal().start();
        assert_eq!(Some(2), collector.wait_exit(DEADLINE).await.code());
        assert!(collector.log().starts_with("<3>powa-collector: ") && collector.log().lines().count() == 1);

        let mut config = config(&cluster, json!({ "log": { "format": "json", "level": "off" } }));
        config["repository"]["dsn"] = cluster.superuser_dsn("missing").into();
        let output = Collector::builder(config).argument("once").run().await;
        let line = object(&String::from_utf8(output.stderr).unwrap());
        let message = line["message"].as_str().unwrap();
        assert!(line["level"] == "ERROR" && message.contains("database \"missing\" does not exist"), "{line}");
    }

    async fn a_log_that_nobody_reads_stops_nothing(powa: Powa) {
        let (cluster, repository) = cluster(powa).await;
        register_idle(&repository, monitored(&cluster, 1)).await;
        repository.batch_execute("UPDATE powa_servers SET frequency = 5 WHERE id = 1").await.unwrap();
        let deaf = ["bash", "-c", "exec \"$0\" \"$@\" 2> >(exec true)"];
        let mut collector = Collector::builder(config(&cluster, json!({ "debug": true }))).wrapper(&deaf).start();
        fleet::wait_for_snapshots(&repository, 1, 3).await;
        assert_eq!("", collector.log());
        assert!(collector.stop().await.success());
    }

    async fn errors_that_come_again_are_told_once_and_when_they_are_over(powa: Powa) {
        let scene = Scene::new(powa).await;
        scene.add_datasource("broken", "number integer", "SELECT 1", None).await;
        run(&scene.monitored, "ALTER FUNCTION test_broken_src RENAME TO kept").await;
        scene.run("
            CREATE FUNCTION {powa}.fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'powa fails'; END $$;
            CREATE TRIGGER fail BEFORE INSERT ON {powa}.powa_databases FOR EACH ROW EXECUTE FUNCTION {powa}.fail();
        ").await;
        let mut collector = scene.begin_period().await;
        let (broken, powas) = ("test_broken_src(integer) does not exist", "errors met by powa_take_snapshot: ");
        collector.wait_for_log(broken).await;
        scene.wait_for_snapshots(3).await;
        scene.run("DROP FUNCTION {powa}.fail CASCADE").await;
        run(&scene.monitored, "ALTER FUNCTION kept RENAME TO test_broken_src").await;
        for error in [broken, powas] {
            let over = collector.wait_for_line(0, error, |line| line.contains("over: ") && line.contains(error)).await;
            let (_, times) = over.rsplit_once('(').unwrap();
            let times: u32 = times.split(' ').next().unwrap().parse().unwrap();
            assert!(times >= 2 && over.contains(" INFO ") && over.ends_with("Z)"), "{over}");
            let told: Vec<String> = collector.warnings().into_iter().filter(|line| line.contains(error)).collect();
            assert_eq!(1, told.len(), "{told:#?}");
        }
        wait_until("nothing is wrong any more", DEADLINE, async || scene.errors().await.is_empty()).await;
    }

    async fn a_snapshot_that_fails_again_is_told_once_and_when_it_is_over(powa: Powa) {
        let scene = Scene::new(powa).await;
        // It fails to be read, or, where PoWA 5 helps itself with another version, to be stored.
        let version = "UPDATE pg_catalog.pg_extension SET extversion";
        let (client, breaks, mends, word) = scene.pick(
            (
                &scene.monitored,
                format!("{version} = '9.9.9' || extversion WHERE extname = 'powa'"),
                format!("{version} = replace(extversion, '9.9.9', '') WHERE extname = 'powa'"),
                "9.9.9",
            ),
            (
                &scene.repository,
                "ALTER FUNCTION powa_take_snapshot(integer) RENAME TO away".to_owned(),
                "ALTER FUNCTION away(integer) RENAME TO powa_take_snapshot".to_owned(),
                "powa_take_snapshot",
            ),
        );
        run(client, &breaks).await;
        let mut collector = scene.begin_period().await;
        collector.wait_for_log("ERROR worker").await;
        for _ in 0..2 {
            scene.run("UPDATE {powa}.powa_snapshot_metas SET errors = NULL").await;
            wait_until("it fails again", DEADLINE, async || !scene.errors().await.is_empty()).await;
        }
        run(client, &mends).await;
        let over = collector.wait_for_log("over: no snapshot: ").await;
        assert!(over.contains(word) && over.contains(" times since "), "{over}");
        let told: Vec<String> = collector.warnings().into_iter().filter(|line| line.contains("no snapshot: ")).collect();
        assert_eq!(1, told.len(), "{told:#?}");
    }
}

fn object(line: &str) -> Value {
    let object: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    for key in ["time", "level", "message"] {
        assert!(object[key].is_string(), "{line}");
    }
    object
}

fn write_level(fleet: &Fleet, level: &str) {
    fleet.collector.write_config(&config(&fleet.cluster, json!({ "log": { "level": level } })));
}
