//! The commands that speak to a collector at work: what they print, how they exit, and what they have it do.

mod fleet;
mod support;

use std::process::Output;

use fleet::{Fleet, Gate, cluster, config, monitored};
use serde_json::{Value, json};
use support::{Collector, DEADLINE, Powa, Registration, on_both_versions, register_server, wait_until};

on_both_versions! {
    async fn status_tells_what_workers_status_cannot(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        fleet.execute("UPDATE powa_servers SET alias = 'main one' WHERE id = 1").await;
        fleet.ask("RELOAD", "").await;
        fleet.force(1).await;
        fleet.wait_for_snapshots(1, 2).await;
        let server = wait_for_detail(&fleet, |server| server["snapshots"] == 1).await;
        assert_eq!(server["srvid"], 1);
        assert_eq!(server["server"], format!("127.0.1.1:{}", fleet.cluster.port()));
        assert_eq!(server["alias"], "main one");
        assert_eq!(server["state"], "running");
        assert_eq!(server["frequency"], 3600);
        assert_eq!(server["failures"], 0);
        assert_eq!(server["last_error"], Value::Null);
        assert_eq!(server["backlog"], json!({ "snapshots": 0, "bytes": 0 }));
        let last = &server["last_snapshot"];
        let (rows, bytes) = fleet.collector.log().lines().find_map(told_snapshot).expect("it is logged");
        assert_eq!((last["rows"].as_u64(), last["bytes"].as_u64()), (Some(rows), Some(bytes)));
        assert!(last["fetch_seconds"].as_f64() > Some(0.0) && last["store_seconds"].as_f64() > Some(0.0), "{last}");
        let time = |value: &Value| value.as_str().expect("a time").parse::<jiff::Timestamp>().expect("a time");
        let wait = time(&server["next_due"]).as_second() - time(&last["time"]).as_second();
        assert!((3500..=3600).contains(&wait), "{server}");

        let (code, out, err) = run(&fleet, &["status"]).await;
        assert_eq!((code, err.as_str()), (0, ""), "{out}");
        assert!(out.starts_with("ID  SERVER") || out.starts_with(" ID  SERVER"), "{out}");
        assert!(out.contains("main one") && out.contains(&rows.to_string()), "{out}");
        assert!(out.ends_with("1 server, 0 with a problem\n"), "{out}");
        fleet.collector.stop().await;
    }

    async fn status_shows_the_servers_that_are_named_and_problems_first(powa: Powa) {
        let (cluster, repository) = cluster(powa).await;
        fleet::register_idle(&repository, monitored(&cluster, 1)).await;
        let nowhere = Registration::new("127.0.1.2", 1).dbname("monitored").frequency(3600);
        register_server(&repository, &nowhere).await;
        let mut fleet = Fleet::of(cluster, repository, json!({})).await;
        fleet.wait_for_states(r#"{"1": "running", "2": "no connection to remote server"}"#).await;

        let (code, out, _) = run(&fleet, &["status"]).await;
        let place = |what: &str| out.find(what).unwrap_or_else(|| panic!("no {what}: {out}"));
        assert_eq!(code, 1);
        assert!(place("127.0.1.2:1 ") < place("127.0.1.1:"), "{out}");
        assert!(place("no connection to the monitored server: ") > place("ago: "), "{out}");
        assert!(out.ends_with("2 servers, 1 with a problem\n"), "{out}");

        let of_first = format!("127.0.1.1:{}", fleet.cluster.port());
        for (names, code, ids) in [
            (vec![of_first.as_str()], 0, json!([1])),
            (vec!["2"], 1, json!([2])),
            (vec!["127.0.1.2:1", "1"], 1, json!([1, 2])),
        ] {
            let arguments = [&["status", "--json"], &names[..]].concat();
            let (exit, out, err) = run(&fleet, &arguments).await;
            let servers: Vec<Value> = serde_json::from_str(&out).expect(&err);
            let seen: Value = servers.iter().map(|server| server["srvid"].clone()).collect();
            assert_eq!((exit, seen), (code, ids), "{names:?}");
        }
        let (code, out, err) = run(&fleet, &["status", "3"]).await;
        assert_eq!((code, out.as_str()), (1, ""));
        assert!(err.contains(r#"no server is called "3""#), "{err}");
        let third = fleet.register(3).await.to_string();
        let (code, _, err) = run(&fleet, &["status", "1", &third]).await;
        assert!(code == 1 && err.starts_with(&format!("powa-collector: {third}: it is not collected")), "{err}");
        fleet.collector.stop().await;
    }

    async fn status_is_watched_also_while_the_collector_is_away(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        let keys = config(&fleet.cluster, json!({}));
        let mut watch = Collector::builder(keys).argument("status").argument("--watch").start();
        let shown = "1 server, 0 with a problem";
        watch.wait_for_log(shown).await;
        let position = watch.log_position();
        watch.wait_for_log_after(position, shown).await;
        assert!(!watch.log().contains('\x1b'), "there is no terminal");

        assert!(fleet.collector.stop().await.success());
        let position = watch.log_position();
        watch.wait_for_log_after(position, "no collector is connected to ").await;
        fleet.collector = Collector::start(config(&fleet.cluster, json!({})));
        let position = watch.log_position();
        watch.wait_for_log_after(position, shown).await;
        assert_eq!(1, watch.log().matches("no collector is connected to ").count(), "{}", watch.log());
        fleet.collector.stop().await;
    }

    async fn a_large_fleet_comes_in_parts(powa: Powa) {
        let (cluster, repository) = cluster(powa).await;
        // Nobody is there, and the reason takes room.
        let register = "SELECT powa_register_server(hostname => '127.0.1.' || n, port => 1, alias => 'server ' || n,
            username => 'postgres', dbname => 'monitored', frequency => 3600) FROM generate_series(1, 60) AS n";
        repository.batch_execute(register).await.unwrap();
        let mut fleet = Fleet::of(cluster, repository, json!({})).await;
        wait_until("every server has been tried", DEADLINE, async || {
            details(&fleet).await.iter().all(|server| server["failures"] != 0)
        })
        .await;
        assert_eq!(details(&fleet).await.len(), 60);
        fleet.control.send("WORKERS_DETAIL", "").await;
        let mut parts = 1;
        let mut seen = 0;
        for number in 1.. {
            if number > parts {
                break;
            }
            let answer = fleet.answer().await;
            assert!(answer.len() < 8000);
            let part: Value = serde_json::from_str(answer.strip_prefix("WORKERS_DETAIL OK ").unwrap()).unwrap();
            assert_eq!(part["part"], number);
            parts = part["parts"].as_u64().unwrap();
            seen += part["servers"].as_array().unwrap().len();
        }
        assert!(parts > 1);
        assert_eq!(seen, 60);
        fleet.collector.stop().await;
    }

    async fn a_snapshot_is_asked_for_and_waited_for(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        let (code, out, err) = run(&fleet, &["snapshot", "1", "--wait"]).await;
        assert_eq!((code, err.as_str()), (0, ""), "{out}");
        assert!(out.starts_with("1: ") && out.contains(" rows, "), "{out}");
        assert_eq!(fleet.snapshots(1).await, 2);

        let (code, out, err) = run(&fleet, &["snapshot", "1"]).await;
        assert_eq!((code, out.as_str()), (1, ""));
        assert_eq!(err, "powa-collector: 1: Last snapshot was less than 10s. ago\n");

        // One that fails is told, too.
        let second = fleet.register(2).await.to_string();
        fleet.ask("RELOAD", "").await;
        fleet.wait_for_states(r#"{"1": "running", "2": "running"}"#).await;
        fleet.execute("ALTER FUNCTION powa_take_snapshot(integer) RENAME TO gone").await;
        let (code, out, err) = run(&fleet, &["snapshot", &second, "--wait"]).await;
        assert_eq!((code, out.as_str()), (1, ""), "{err}");
        assert!(err.contains("powa_take_snapshot"), "{err}");
        fleet.collector.stop().await;
    }

    async fn a_snapshot_that_is_only_asked_for_is_taken(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        let (code, out, err) = run(&fleet, &["snapshot", "1"]).await;
        assert_eq!((code, out.as_str(), err.as_str()), (0, "1: Snapshot in progress\n", ""));
        fleet.wait_for_snapshots(1, 2).await;
        fleet.collector.stop().await;
    }

    async fn reload_reads_the_servers_again(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        fleet.register(2).await;
        let (code, out, err) = run(&fleet, &["reload"]).await;
        assert_eq!((code, out.as_str(), err.as_str()), (0, "reloaded\n", ""));
        fleet.wait_for_states(r#"{"1": "running", "2": "running"}"#).await;

        let config = fleet.collector.config_path();
        let good = std::fs::read(&config).unwrap();
        std::fs::write(&config, "{").unwrap();
        // The command has a file of its own, which is good.
        let (code, out, err) = run(&fleet, &["reload"]).await;
        assert_eq!((code, out.as_str()), (1, ""));
        assert!(err.starts_with("powa-collector: the collector refuses: "), "{err}");
        std::fs::write(&config, good).unwrap();
        fleet.collector.stop().await;
    }

    async fn catalogs_are_read_again(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        let told = "1: Catalogs will be refreshed during the next snapshot\n";
        for arguments in [&["refresh-catalogs", "1"][..], &["refresh-catalogs", "1", "monitored", "odd\"name"]] {
            let (code, out, err) = run(&fleet, arguments).await;
            assert_eq!((code, out.as_str(), err.as_str()), (0, told, ""), "{arguments:?}");
        }
        let (code, _, err) = run(&fleet, &["refresh-catalogs", "1", "two words"]).await;
        assert!(code == 1 && err.contains("\"two words\" cannot be sent"), "{err}");
        let (code, _, err) = run(&fleet, &["refresh-catalogs", "elsewhere"]).await;
        assert!(code == 1 && err.contains("\"elsewhere\""), "{err}");
        fleet.collector.stop().await;
    }

    async fn that_no_collector_answers_has_a_status_of_its_own(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        // One that is there, but stands still.
        let gate = Gate::in_store(&fleet.cluster).await;
        fleet.force(1).await;
        gate.reached().await;
        let (code, _, err) = run(&fleet, &["status"]).await;
        assert_eq!((code, err.as_str()), (0, ""), "a store holds nobody up");
        gate.open();
        fleet.collector.suspend().await;
        let mut keys = config(&fleet.cluster, json!({}));
        keys["timeouts"] = json!({ "query": 1 });
        let (code, out, err) = finish(Collector::builder(keys).argument("status").run().await);
        assert_eq!((code, out.as_str()), (3, ""), "{err}");
        assert!(err.contains("the collector does not answer within 2 s"), "{err}");
        fleet.collector.resume();
        fleet.collector.stop().await;

        for command in [&["status"][..], &["reload"], &["snapshot", "1"], &["refresh-catalogs", "1"]] {
            wait_until("its session is gone", DEADLINE, async || {
                fleet::sessions(&fleet.repository, "PoWA collector - main%").await.is_empty()
            })
            .await;
            let (code, out, err) = run(&fleet, command).await;
            assert_eq!((code, out.as_str()), (3, ""), "{err}");
            assert!(err.starts_with("powa-collector: no collector is connected to "), "{err}");
        }
    }

    async fn the_collectors_own_role_is_enough_and_another_is_refused(powa: Powa) {
        let (cluster, repository) = cluster(powa).await;
        let set_up = if powa.is_v4() {
            include_str!("../sql/setup/repository_powa4.sql")
        } else {
            include_str!("../sql/setup/repository_powa5.sql")
        };
        repository.batch_execute(set_up).await.unwrap();
        repository.batch_execute("CREATE ROLE nobody LOGIN; GRANT SELECT ON powa_servers TO nobody").await.unwrap();
        fleet::register_idle(&repository, monitored(&cluster, 1)).await;
        let keys = |role| {
            let mut keys = config(&cluster, json!({}));
            keys["repository"]["dsn"] = cluster.dsn(role, "powa").into();
            keys
        };
        let mut collector = Collector::start(keys("powa_collector"));
        collector.wait_for_log("worker for ").await;
        let asked = async |role, command| finish(Collector::builder(keys(role)).argument(command).run().await);
        for command in ["status", "reload"] {
            let (code, _, err) = asked("powa_collector", command).await;
            assert_eq!((code, err.as_str()), (0, ""), "{command}");
        }
        let (code, out, err) = asked("nobody", "status").await;
        assert_eq!((code, out.as_str()), (1, ""), "{err}");
        assert!(err.contains("the collector refuses: Permission denied"), "{err}");
        collector.stop().await;
    }
}

#[tokio::test]
async fn the_health_of_a_collector_that_serves_no_pages_is_not_known() {
    let keys = json!({ "repository": { "dsn": "host=127.0.0.1 dbname=powa" } });
    let (code, out, err) = finish(Collector::builder(keys).argument("health").run().await);
    assert_eq!((code, out.as_str()), (1, ""), "{err}");
    assert!(err.contains("http.listen is not set"), "{err}");
}

#[tokio::test]
async fn completions_and_the_manual_name_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, out, _) = finish(Collector::bare().argument("completions").argument(shell).run().await);
        assert!(
            code == 0 && out.contains("refresh-catalogs") && out.contains("password-stdin"),
            "{shell}: {out}"
        );
    }
    let (code, out, _) = finish(Collector::bare().argument("man").run().await);
    assert!(code == 0 && out.contains(".TH powa-collector 8"), "{out}");
    for command in [
        "RUN",
        "CHECK",
        "ONCE",
        "STATUS",
        "RELOAD",
        "SNAPSHOT",
        "REFRESH-CATALOGS",
        "HEALTH",
        "SERVERS",
        "SERVERS LIST",
        "SERVERS ADD",
        "SERVERS SET",
        "SERVERS REMOVE",
    ] {
        assert!(out.contains(&format!(".SH \"COMMAND {command}\"")), "{command}: {out}");
    }
}

/// Rows and bytes, out of the line that tells of a snapshot.
fn told_snapshot(line: &str) -> Option<(u64, u64)> {
    let (_, told) = line.split_once("snapshot: ")?;
    let (rows, rest) = told.split_once(" rows, ")?;
    let (bytes, _) = rest.split_once(" bytes")?;
    Some((rows.parse().ok()?, bytes.parse().ok()?))
}

async fn wait_for_detail(fleet: &Fleet, is_wanted: impl Fn(&Value) -> bool) -> Value {
    wait_until("the server is as it should be", DEADLINE, async || is_wanted(&details(fleet).await[0])).await;
    details(fleet).await.remove(0)
}

async fn details(fleet: &Fleet) -> Vec<Value> {
    let (_, out, err) = run(fleet, &["status", "--json"]).await;
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}"))
}

/// Runs a command with the collector's configuration. Gives its exit status and what it prints.
async fn run(fleet: &Fleet, arguments: &[&str]) -> (i32, String, String) {
    let builder = Collector::builder(config(&fleet.cluster, json!({})));
    let builder = arguments.iter().fold(builder, |builder, argument| builder.argument(argument));
    finish(builder.run().await)
}

fn finish(output: Output) -> (i32, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code().expect("it exits by itself"), text(output.stdout), text(output.stderr))
}
