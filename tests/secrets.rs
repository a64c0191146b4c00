//! Nothing that is a secret is ever seen: each is a text of its own that has `xyzzy42` in it, and nothing
//! that the program says has.

mod certificates;
mod fleet;
mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;

use certificates::Site;
use fleet::{databases, monitored, register_idle};
use openssl::pkey::PKey;
use openssl::symm::Cipher;
use serde_json::{Value, json};
use support::{Cluster, Collector, CollectorBuilder, Control, DEADLINE, Powa, on_both_versions, wait_until};

const MARK: &str = "xyzzy42";

on_both_versions! {
    async fn no_secret_is_ever_seen(powa: Powa) {
        let hba = "local all all trust
            hostssl all watcher all cert
            host all guarded,repository,changing all scram-sha-256
            host all all all trust";
        let (cluster, repository) = databases(Cluster::builder(powa).hba(hba).start()).await;
        let site = Site::of(cluster);
        site.ask_clients().await;
        site.show("valid").await;
        let mut roles = "CREATE ROLE watcher SUPERUSER LOGIN;".to_owned();
        for (role, password) in
            [("guarded", "xyzzy42-of-row"), ("changing", "xyzzy42-one"), ("repository", "xyzzy42-of-dsn")]
        {
            roles.push_str(&format!("CREATE ROLE {role} SUPERUSER LOGIN PASSWORD '{password}';"));
        }
        site.run(&roles).await;
        for (name, password) in [("key", "xyzzy42-of-key"), ("other-key", "xyzzy42-of-other-key")] {
            let key = PKey::private_key_from_pem(&fs::read(site.file("ec.key")).unwrap()).unwrap();
            let cipher = Cipher::aes_256_cbc();
            let text = key.private_key_to_pem_pkcs8_passphrase(cipher, password.as_bytes()).unwrap();
            write(&site.file(name), &text);
        }
        let (port, home) = (site.cluster.port(), site.home().to_owned());
        write(
            &home.join(".pgpass"),
            format!("*:{port}:*:guarded:xyzzy42-of-row\n*:*:*:*:xyzzy42-of-passfile\n").as_bytes(),
        );
        let service = format!(
            "[powa]\nhost=127.0.0.1\nport={port}\nuser=repository\ndbname=powa\npassword=xyzzy42-of-dsn\n\
             [bad]\nhost=127.0.0.1\nport={port}\nuser=repository\ndbname=powa\npassword=xyzzy42-of-service\n"
        );
        write(&home.join(".pg_service.conf"), service.as_bytes());

        // Who gets in, and by which secret, or why not.
        let server = |number, role, password| monitored(&site.cluster, number).credentials(role, password);
        for row in [
            server(1, "guarded", Some("xyzzy42-of-row")),
            server(2, "guarded", Some("xyzzy42-that-is-wrong")),
            server(3, "changing", None),
            server(4, "watcher", None),
            server(5, "watcher", None),
            server(6, "changing", None),
            server(7, "guarded", None),
            server(8, "guarded", None),
            server(9, "guarded", None),
        ] {
            register_idle(&repository, row).await;
        }
        let name = |number: u8| format!("127.0.1.{number}:{port}");
        let shown = site.file("ec.crt");
        let certificate = |key: &str, password: &str| {
            let key = site.file(key);
            json!({ "sslmode": "require", "sslcert": shown, "sslkey": key, "sslpassword": password })
        };
        let place = format!("host=127.0.0.1 port={port} user=repository dbname=powa");
        let config = |dsn: &str, default: &str, printed: &str| {
            json!({
                "repository": { "dsn": format!("{place} {dsn}") },
                "servers": {
                    "defaults": { "password": default },
                    "by_name": {
                        name(4): certificate("key", "xyzzy42-of-key"),
                        name(5): certificate("other-key", "xyzzy42-of-key"),
                        name(6): { "password_command": ["/bin/echo", printed] },
                        name(7): { "password_command": "echo xyzzy42-said; echo xyzzy42-told >&2; exit 1" },
                        name(8): { "password_command": ["/none/program", "xyzzy42-of-an-argument"] },
                        name(9): { "password_command": "echo xyzzy42-a; echo xyzzy42-b" },
                    },
                },
                "debug": true,
                "servers_refresh_interval": 1,
            })
        };
        let good = config("password=xyzzy42-of-dsn", "xyzzy42-one", "xyzzy42-one");
        let dressed = |builder: CollectorBuilder| {
            builder
                .environment("HOME", &home)
                .environment("PGPASSWORD", "xyzzy42-of-variable")
                .environment("RUST_LOG", "trace")
        };

        // The daemon.
        let mut collector = dressed(Collector::builder(good.clone())).start();
        collector.wait_for_log("listening for control messages").await;
        let mut control = Control::connect(&site.cluster, "powa").await;
        let away = "no connection to remote server";
        let expected = |changed: &str| {
            let states = ["running", away, changed, "running", away, changed, away, away, away];
            let states = states.iter().enumerate().map(|(at, state)| format!("\"{}\": \"{state}\"", at + 1));
            format!("WORKERS_STATUS OK {{{}}}", states.collect::<Vec<_>>().join(", "))
        };
        let mut answers = Vec::new();
        let mut wait_for = async |control: &mut Control, expected: String| {
            let mut last = String::new();
            wait_until(&expected, DEADLINE, async || {
                last = control.ask("WORKERS_STATUS", "").await;
                last == expected
            })
            .await;
            answers.push(last);
        };
        wait_for(&mut control, expected("running")).await;
        let activity = "SELECT string_agg(concat_ws(' ', application_name, query), ' ') FROM pg_stat_activity
            WHERE application_name LIKE 'PoWA%'";
        let activity: String = repository.query_one(activity, &[]).await.unwrap().get(0);
        unseen("the sessions", &activity);
        for id in 1..=9 {
            control.send("FORCE_SNAPSHOT", &id.to_string()).await;
        }
        for command in ["STATUS", "RELOAD", "xyzzy42", "WORKERS_STATUS xyzzy42"] {
            control.send(command, "").await;
        }
        // What changes behind its back, and what a reload changes.
        site.run("ALTER ROLE changing PASSWORD 'xyzzy42-two'").await;
        site.run("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = 'changing'")
            .await;
        wait_for(&mut control, expected(away)).await;
        collector.write_config(&config("password=xyzzy42-of-dsn", "xyzzy42-two", "xyzzy42-two"));
        control.send("RELOAD", "").await;
        collector.wait_for_log("servers.defaults: password changes").await;
        wait_for(&mut control, expected("running")).await;
        repository
            .execute("UPDATE powa_servers SET password = 'xyzzy42-of-row-2' WHERE id = 1", &[])
            .await
            .unwrap();
        collector.wait_for_log("password changes").await;
        // Configurations that cannot be: the present one goes on.
        for dsn in broken() {
            let position = collector.log_position();
            let mut config = good.clone();
            config["repository"]["dsn"] = dsn;
            collector.write_config(&config);
            control.send("RELOAD", "").await;
            collector.wait_for_log_after(position, "key repository").await;
        }
        // A password for the repository that is wrong.
        let position = collector.log_position();
        collector.write_config(&config("password=xyzzy42-that-is-wrong-too", "xyzzy42-two", "xyzzy42-two"));
        control.send("RELOAD", "").await;
        collector
            .wait_for_log_after(position, "password authentication failed for user \"repository\"")
            .await;
        unseen(
            "the command line",
            &fs::read_to_string(format!("/proc/{}/cmdline", collector.pid())).unwrap(),
        );
        for answer in control.received() {
            // What is no command is repeated to whoever sent it; nobody else sees it.
            answers.push(answer.payload().replace("xyzzy42 ", "").replace(" xyzzy42", ""));
        }
        unseen("the answers", &answers.join("\n"));
        collector.stop().await;
        let log = collector.log();
        for words in [
            "password authentication failed",
            "sslpassword is wrong",
            "printed more than one line",
            "exit status: 1",
        ] {
            assert!(log.contains(words), "{words} was to be said: {log}");
        }
        unseen("the log", &log.replace("command xyzzy42", "").replace("xyzzy42 from backend", ""));
        let errors = "SELECT string_agg(coalesce(errors::text, ''), ' ') FROM powa_snapshot_metas";
        let errors: String = repository.query_one(errors, &[]).await.unwrap().get(0);
        assert!(errors.contains("password authentication failed"), "{errors}");
        unseen("powa_snapshot_metas", &errors);

        // The other commands.
        let mut by_service = good.clone();
        by_service["repository"]["dsn"] = json!("service=powa");
        let mut by_bad_service = by_service.clone();
        by_bad_service["repository"]["dsn"] = json!("service=bad");
        let mut by_files = by_service.clone();
        by_files["servers"] = json!({});
        let none = config("", "xyzzy42-x", "xyzzy42-x");
        for (config, words) in [
            (&good, "password authentication failed for user \"changing\""),
            (&by_service, "password authentication failed for user \"changing\""),
            (&by_bad_service, "password authentication failed for user \"repository\""),
            (&by_files, "password authentication failed for user \"changing\""),
            (&none, "password authentication failed for user \"repository\""),
        ] {
            for command in ["once", "check"] {
                let output = dressed(Collector::builder(config.clone())).argument(command).run().await;
                let told = text(&output);
                assert!(told.contains(words), "{command}: {told}");
                unseen(command, &told);
            }
        }
        // By the password file alone.
        let output = Collector::builder(by_files).argument("check").environment("HOME", &home).run().await;
        let told = text(&output);
        assert!(told.contains("server 7") && told.contains("ok       connected"), "{told}");
        unseen("check", &told);
    }
}

#[tokio::test]
async fn what_is_broken_is_not_repeated() {
    for dsn in broken() {
        broken_is_unseen(json!({ "repository": { "dsn": dsn } })).await;
    }
    let dsn = "host=127.0.0.1 port=1";
    for (key, value) in [
        ("password", json!(1.5)),
        ("password", json!(["xyzzy42"])),
        ("password_command", json!({ "xyzzy42": "xyzzy42" })),
        ("password_command", json!(["xyzzy42", 1])),
        ("sslpassword", json!({ "xyzzy42": 1 })),
        ("passwort", json!("xyzzy42")),
        ("password", json!("xyzzy42\0")),
    ] {
        let options = json!({ key: value });
        broken_is_unseen(json!({ "repository": { "dsn": dsn }, "servers": { "defaults": options } })).await;
        broken_is_unseen(json!({ "repository": { "dsn": dsn }, "servers": { "by_name": { "a": options } } }))
            .await;
    }
    for servers in
        [json!("xyzzy42"), json!({ "defaults": "xyzzy42" }), json!({ "by_name": { "a": "xyzzy42" } })]
    {
        broken_is_unseen(json!({ "repository": { "dsn": dsn }, "servers": servers })).await;
    }
    broken_is_unseen(json!({ "repository": { "dsn": dsn, "password_command": { "a": "xyzzy42" } } })).await;
    broken_is_unseen(json!({ "repository": "xyzzy42" })).await;
    for variable in ["POWA_COLLECTOR_REPOSITORY__DSN", "POWA_COLLECTOR_REPOSITORY__MAX_CONNECTIONS"] {
        let config = json!({ "repository": { "dsn": dsn } });
        let builder = Collector::builder(config).argument("check");
        let output = builder.environment(variable, "host=h xyzzy42-x password=xyzzy42").run().await;
        assert_eq!(output.status.code(), Some(2));
        unseen(variable, &text(&output));
    }
}

/// Connection strings that cannot be read, and what is none.
fn broken() -> Vec<Value> {
    let texts = [
        "host=h password='xyzzy42",
        "host=h password=xyzzy42 xyzzy42",
        "host=h password=the xyzzy42=x",
        "host=h password = xyzzy42 = x",
        "postgresql://user:xyzzy42@host:bad/db",
        "postgresql://user:xyzzy42%zz@host/db",
        "postgresql://user:xyzzy42#xyzzy42@host/db?xyzzy42",
        "postgresql://user:xy/zzy42:xyzzy42@host/db",
        "postgresql://user:pass@word:xyzzy42@host/db",
        "postgresql://user@host/db?password=xyzzy42&xyzzy42=x",
        "postgresql://user@host/db?password=xyzzy42=x",
        "postgresql://[xyzzy42",
        "host=h port=xyzzy42-x password=xyzzy42 sslmode=none",
    ];
    texts
        .iter()
        .map(|text| json!(text))
        .chain([json!(["xyzzy42"]), json!({ "password": "xyzzy42" })])
        .collect()
}

async fn broken_is_unseen(config: Value) {
    for command in ["check", "once", "run"] {
        let output = Collector::builder(config.clone()).argument(command).run().await;
        assert_eq!(output.status.code(), Some(2), "{config}: {}", text(&output));
        unseen(&format!("{command} of {config}"), &text(&output));
    }
}

fn unseen(what: &str, text: &str) {
    assert!(!text.contains(MARK), "a secret is seen in {what}:\n{text}");
}

fn write(file: &Path, contents: &[u8]) {
    fs::write(file, contents).unwrap();
    fs::set_permissions(file, Permissions::from_mode(0o600)).unwrap();
}

fn text(output: &Output) -> String {
    [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat()
}
