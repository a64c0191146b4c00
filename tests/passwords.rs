//! Where passwords and other options come from: files of libpq's, `servers` in the configuration, programs.

mod fleet;
mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use fleet::{Fleet, config, databases, monitored, register_idle};
use serde_json::{Value, json};
use support::{
    Cluster, Collector, DEADLINE, Powa, Registration, Signal, on_both_versions, powa_schema, register_server,
    wait_until,
};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_postgres::Client;

/// Only this role needs a password.
const HBA: &str = "local all all trust\nhost all watcher all scram-sha-256\nhost all all all trust";

on_both_versions! {
    async fn password_files(powa: Powa) {
        let place = Place::new(powa).await;
        place.register(1).await;
        let port = place.cluster.port();
        let config = json!({ "repository": { "dsn": place.dsn("") } });
        let once = async |variable: (&str, &Path)| {
            let once =
                Collector::builder(config.clone()).argument("once").environment(variable.0, variable.1);
            let output = once.run().await;
            (text(&output), output.status.success())
        };
        let home = ("HOME", place.folder.path());
        let (told, is_good) = once(home).await;
        assert!(!is_good && told.contains("the server asks for a password, and none is given"), "{told}");

        let both = format!("127.0.0.1:{port}:powa:watcher:right\n127.0.1.1:{port}:*:watcher:right\n");
        let file = place.write(".pgpass", &both, 0o600);
        let (told, is_good) = once(home).await;
        assert!(is_good, "{told}");
        place.write(".pgpass", &both, 0o640);
        let (told, is_good) = once(home).await;
        assert!(
            !is_good && told.contains(&format!("{} is ignored: others may read it", file.display())),
            "{told}"
        );
        // However many connections look for it.
        assert_eq!(told.matches("WARN the password file").count(), 1, "{told}");
        place.write(".pgpass", &both.replace("127.0.1.1", "127.0.1.2"), 0o600);
        let (told, is_good) = once(home).await;
        assert!(!is_good && told.contains("127.0.1.1") && told.contains("none is given"), "{told}");
        let other = place.write("other", &both, 0o600);
        let (told, is_good) = once(("PGPASSFILE", &other)).await;
        assert!(is_good, "{told}");
    }

    async fn service_files(powa: Powa) {
        let place = Place::new(powa).await;
        place.register(1).await;
        let port = place.cluster.port();
        let repository =
            format!("[powa]\nhost=127.0.0.1\nport={port}\nuser=watcher\npassword=right\ndbname=powa\n");
        let services =
            format!("{repository}[servers]\n# its host is the row's\nhost=nowhere\npassword=right\n");
        let file = place.write(".pg_service.conf", &services, 0o600);
        let config = json!({
            "repository": { "dsn": "service=powa" },
            "servers": { "defaults": { "service": "servers" } },
        });
        for variable in [("HOME", place.folder.path()), ("PGSERVICEFILE", &file)] {
            let once =
                Collector::builder(config.clone()).argument("once").environment(variable.0, variable.1);
            let output = once.run().await;
            assert!(output.status.success(), "{}", text(&output));
        }
        let output = Collector::builder(config).argument("once").run().await;
        assert_eq!(output.status.code(), Some(2));
        assert!(
            text(&output).contains("repository.dsn: option service: no service of that name"),
            "{}",
            text(&output)
        );
    }

    async fn credentials_of_systemd_by_the_drop_in_that_is_shipped(powa: Powa) {
        let place = Place::new(powa).await;
        place.register(1).await;
        let drop_in = include_str!("../packaging/systemd/credentials.conf");
        let values = |name: &str| -> Vec<&str> {
            drop_in.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('=')).collect()
        };
        let credentials = place.folder.path().join("credentials");
        fs::create_dir(&credentials).unwrap();
        let mut once = Collector::builder(json!({ "repository": { "dsn": place.dsn("") } }))
            .argument("once")
            .environment("CREDENTIALS_DIRECTORY", &credentials);
        // What systemd does with these lines. Its files may have an access list, which shows as rights of the group.
        for credential in values("LoadCredential") {
            let (name, _) = credential.split_once(':').unwrap();
            place.write(&format!("credentials/{name}"), "right\n", 0o440);
        }
        for assignment in values("Environment") {
            let assignment = assignment.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')).unwrap();
            let (name, value) = assignment.split_once('=').unwrap();
            once = once.environment(name, value);
        }
        let output = once.run().await;
        assert!(output.status.success(), "{}", text(&output));
    }

    async fn options_of_servers_take_effect(powa: Powa) {
        let place = Place::new(powa).await;
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let passfile = place.write("passfile", "*:*:*:*:right\n", 0o600);
        let services = place.write("services", "[right]\npassword=right\n", 0o600);
        let connected = "ok       connected";
        let trusted: fn(Registration) -> Registration = |server| server.credentials("postgres", None);
        let watched: fn(Registration) -> Registration = |server| server;
        let mut rows: Vec<(Value, Registration, &str)> = Vec::new();
        let mut row = |options: Value, change: fn(Registration) -> Registration, told| {
            let number = u8::try_from(rows.len() + 1).unwrap();
            let mut server = change(place.server(number));
            // Some by alias, some by host and port.
            if number % 2 == 0 {
                server = server.alias(&format!("Alias.{number}"));
            }
            rows.push((options, server, told));
        };
        row(json!({}), trusted, connected);
        row(json!({}), watched, "none is given");
        row(json!({ "sslmode": "require" }), trusted, "does not support TLS, and sslmode require");
        row(json!({ "sslmode": "verify-ca" }), trusted, "does not support TLS, and sslmode verify-ca");
        row(json!({ "require_auth": "scram-sha-256" }), trusted, "which require_auth does not allow");
        row(json!({ "channel_binding": "require" }), trusted, "there is no TLS to bind to");
        row(
            json!({ "target_session_attrs": "standby" }),
            trusted,
            "target_session_attrs: the server is not standby",
        );
        row(json!({ "options": "-c work_mem=none" }), trusted, "invalid value for parameter \"work_mem\"");
        row(json!({ "password": "right" }), watched, connected);
        row(json!({ "password": "wrong" }), watched, "password authentication failed");
        row(json!({ "passfile": passfile }), watched, connected);
        row(json!({ "service": "right" }), watched, connected);
        row(json!({ "password_command": ["/bin/echo", "right"] }), watched, connected);
        row(json!({ "password_command": "echo right" }), watched, connected);
        row(
            json!({ "hostaddr": "127.0.0.1" }),
            |server| Registration { hostname: "db.invalid".into(), ..trusted_(server) },
            connected,
        );
        row(
            json!({ "keepalives": true, "tcp_user_timeout": 1000, "sslsni": false, "sslmode": null }),
            trusted,
            connected,
        );
        row(
            json!({ "passfile": "/none", "gssencmode": "disable", "application_name": "mine" }),
            trusted,
            connected,
        );
        let number = rows.len() + 1;
        let mut server = trusted(place.server(u8::try_from(number).unwrap()));
        (server.hostname, server.port) = ("127.0.0.1".to_owned(), silent.local_addr().unwrap().port());
        rows.push((json!({ "connect_timeout": 2, "sslmode": "disable" }), server, "no answer within 2 s"));
        let mut server = trusted(place.server(99));
        server.hostname = place.cluster.socket_directory().display().to_string();
        rows.push((json!({ "requirepeer": "nobody" }), server, "option requirepeer: the server runs as"));

        let mut by_name = serde_json::Map::new();
        let mut expected = Vec::new();
        for (options, server, told) in rows {
            let key = server.alias.clone().unwrap_or(format!("{}:{}", server.hostname, server.port));
            by_name.insert(key, options.clone());
            expected.push((register_server(&place.repository, &server).await, options, told));
        }
        let config =
            json!({ "repository": { "dsn": place.trusted_dsn() }, "servers": { "by_name": by_name } });
        let check = Collector::builder(config).argument("check").environment("PGSERVICEFILE", services);
        let told = text(&check.run().await);
        for (id, options, words) in expected {
            assert!(section(&told, id).contains(words), "{options}: {told}");
        }

        // The same for all.
        for (defaults, words) in [
            (json!({ "sslmode": "require" }), "does not support TLS"),
            (json!({ "options": "-c work_mem=none" }), "invalid value for parameter \"work_mem\""),
            (json!({ "connect_timeout": "2", "sslmode": "disable" }), connected),
        ] {
            let config = json!({
                "repository": { "dsn": place.trusted_dsn() },
                "servers": { "defaults": defaults },
                "timeouts": { "connect": 1 },
            });
            let told = text(&Collector::builder(config).argument("check").run().await);
            assert!(section(&told, 1).contains(words), "{defaults}: {told}");
            assert!(told.contains("repository") && section(&told, 0).is_empty(), "{told}");
        }
    }

    async fn the_row_is_before_the_name_and_the_name_before_the_defaults(powa: Powa) {
        let place = Place::new(powa).await;
        let row = |number: u8, password| place.server(number).credentials("watcher", password);
        let rows = [
            row(1, Some("wrong")),
            row(2, None),
            row(3, None),
            row(4, None).alias("four"),
            row(5, None),
            row(6, None),
            row(7, Some("right")),
        ];
        for row in rows {
            register_server(&place.repository, &row).await;
        }
        let name = |number: u8| format!("127.0.1.{number}:{}", place.cluster.port());
        let by_name = json!({
            name(1): { "password": "right" },
            name(2): { "password": "right" },
            name(4): { "password": "wrong" },
            "four": { "password": "right" },
            name(5): { "password_command": "echo right" },
            name(6): { "password": "right" },
            name(7): { "password_command": "echo wrong" },
        });
        for defaults in [json!({ "password": "wrong" }), json!({ "password_command": "echo wrong" })] {
            let servers = json!({ "by_name": by_name, "defaults": defaults });
            let config = json!({ "repository": { "dsn": place.trusted_dsn() }, "servers": servers });
            let told = text(&Collector::builder(config).argument("check").run().await);
            for (id, is_right) in
                [(1, false), (2, true), (3, false), (4, true), (5, true), (6, true), (7, true)]
            {
                let section = section(&told, id);
                let words = if is_right { "ok       connected" } else { "password authentication failed" };
                assert!(section.contains(words), "{id}: {told}");
            }
        }
    }

    async fn names_without_a_server_are_told(powa: Powa) {
        let place = Place::new(powa).await;
        register_server(&place.repository, &place.server(1).credentials("postgres", None).alias("Prod.DB-1"))
            .await;
        let by_name = json!({ "Prod.DB-1": { "connect_timeout": 5 }, "prod.db-1": {}, "127.0.1.1:1": {} });
        let mut config =
            json!({ "repository": { "dsn": place.trusted_dsn() }, "servers": { "by_name": by_name } });
        let output = Collector::builder(config.clone()).argument("check").run().await;
        let told = text(&output);
        assert!(!output.status.success());
        for name in ["prod.db-1", "127.0.1.1:1"] {
            assert!(
                told.contains(&format!("PROBLEM  {name:?}: no server has that alias or host:port")),
                "{told}"
            );
        }
        assert!(!told.contains("\"Prod.DB-1\""), "{told}");
        config["servers_refresh_interval"] = json!(0);
        let mut collector = Collector::start(config);
        collector.wait_for_log("worker for").await;
        collector.signal(Signal::SIGHUP);
        collector
            .wait_for_log(r#"servers.by_name."prod.db-1" in the configuration: no server has that alias"#)
            .await;
        assert!(collector.stop().await.success());
    }

    async fn variables_are_defaults(powa: Powa) {
        let place = Place::new(powa).await;
        place.register(1).await;
        place.run("ALTER ROLE watcher PASSWORD '007'").await;
        let config = json!({
            "repository": { "dsn": place.trusted_dsn() },
            "servers": { "defaults": { "password": "wrong" } },
        });
        let check = |name: &str, value: &str| {
            Collector::builder(config.clone()).argument("check").environment(name, value).run()
        };
        for (password, is_right) in [("007", true), ("7", false)] {
            let told = text(&check("POWA_COLLECTOR_SERVERS__DEFAULTS__PASSWORD", password).await);
            assert_eq!(section(&told, 1).contains("ok       connected"), is_right, "{told}");
        }
        let told = text(&check("POWA_COLLECTOR_SERVERS__DEFAULTS__SSLMODE", "require").await);
        assert!(section(&told, 1).contains("does not support TLS"), "{told}");
        let told = text(&check("PGPASSWORD", "007").await);
        assert!(section(&told, 1).contains("password authentication failed"), "{told}");
        let output = check("POWA_COLLECTOR_SERVERS__DEFAULTS__SSLMOD", "require").await;
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output).contains("the nearest is sslmode"), "{}", text(&output));
        // What stands nowhere else is of libpq's own variables.
        let config = json!({ "repository": { "dsn": place.dsn("") } });
        let check = Collector::builder(config).argument("check").environment("PGPASSWORD", "007");
        let told = text(&check.run().await);
        assert!(section(&told, 1).contains("ok       connected"), "{told}");
    }

    async fn a_program_prints_the_password(powa: Powa) {
        let place = Place::new(powa).await;
        place.register(1).await;
        let folder = place.folder.path().display().to_string();
        place.write("password", "right\n", 0o600);
        let line = format!(
            "echo $PGHOST $PGPORT $PGUSER $PGDATABASE >>{folder}/runs; cat {folder}/password; echo lost >&2"
        );
        let keys = json!({ "servers": { "defaults": { "password_command": line } }, "debug": true });
        let (port, runs) =
            (place.cluster.port(), || fs::read_to_string(format!("{folder}/runs")).unwrap_or_default());
        let Place { cluster, repository, folder, .. } = place;
        let mut fleet = Fleet::of(cluster, repository, keys).await;
        fleet.execute("UPDATE powa_servers SET frequency = 5 WHERE id > 0").await;
        assert_eq!("RELOAD OK OK", fleet.ask("RELOAD", "").await);
        fleet.wait_for_snapshots(1, 2).await;
        let run = format!("127.0.1.1 {port} watcher monitored\n");
        assert_eq!(runs(), run);

        // Another session, the same password.
        end_session(&mut fleet).await;
        wait_until("a new session", DEADLINE, async || fleet.sessions(1).await.len() == 1).await;
        assert_eq!(runs(), run);

        // It is not the password that a server refuses which has not asked for it.
        fleet.cluster.set_hba(&format!("host all watcher 127.0.0.0/8 reject\n{HBA}"));
        fleet.cluster.reload().await;
        end_session(&mut fleet).await;
        fleet.collector.wait_for_log("pg_hba.conf rejects connection").await;
        fleet.cluster.set_hba(HBA);
        fleet.cluster.reload().await;
        wait_until("a new session", DEADLINE, async || fleet.sessions(1).await.len() == 1).await;
        assert_eq!(runs(), run);

        // The password changes, and the program knows.
        fleet.execute("ALTER ROLE watcher PASSWORD 'hidden-new'").await;
        fs::write(folder.path().join("password"), "hidden-new").unwrap();
        end_session(&mut fleet).await;
        wait_until("a new session", DEADLINE, async || fleet.sessions(1).await.len() == 1).await;
        let taken = fleet.snapshots(1).await;
        fleet.wait_for_snapshots(1, taken + 1).await;
        assert_eq!(runs(), run.repeat(2));

        // It changes, and the program does not know yet: it is asked with every try.
        fleet.execute("ALTER ROLE watcher PASSWORD 'hidden-newer'").await;
        end_session(&mut fleet).await;
        wait_until("it is asked again and again", DEADLINE, async || runs().lines().count() >= 4).await;
        fs::write(folder.path().join("password"), "hidden-newer\r\n").unwrap();
        fleet.wait_for_states(r#"{"1": "running"}"#).await;
        let log = fleet.collector.log();
        for hidden in ["right", "hidden", "lost"] {
            assert!(!log.contains(hidden), "{log}");
        }
    }

    async fn a_program_that_prints_no_password(powa: Powa) {
        let place = Place::new(powa).await;
        let (folder, port) = (place.folder.path().display().to_string(), place.cluster.port());
        let hang =
            format!("echo $$ >{folder}/one; sh -c 'echo $$ >{folder}/two; exec sleep 500' & sleep 500");
        let leave = format!("echo hidden; sh -c 'echo $$ >{folder}/three; exec sleep 500' & exit 0");
        let mut by_name = serde_json::Map::new();
        let cases = [
            (json!("echo hidden; exit 3"), "/bin/sh ended with exit status: 3"),
            (json!("echo hidden; kill -9 $$"), "/bin/sh ended with signal: 9"),
            (json!("true"), "/bin/sh printed nothing"),
            (json!(["printf", "\n"]), "printf printed nothing"),
            (json!("echo hidden; echo hidden"), "/bin/sh printed more than one line"),
            (json!(["printf", "hidden\\377"]), "printf printed what is not UTF-8"),
            (json!("head -c 100000 /dev/zero"), "/bin/sh printed more than 64 KiB"),
            (json!(["/none/hidden-not", "hidden"]), "/none/hidden-not cannot be run: No such file"),
            (json!(hang), "/bin/sh did not end within 1 s"),
            (json!(leave), "/bin/sh did not end within 1 s"),
            (json!(["echo", "hidden"]), "password authentication failed"),
        ];
        for (number, (command, _)) in (1..).zip(&cases) {
            place.register(number).await;
            by_name.insert(format!("127.0.1.{number}:{port}"), json!({ "password_command": command }));
        }
        let config = json!({
            "repository": { "dsn": place.trusted_dsn() },
            "servers": { "by_name": by_name },
            "timeouts": { "password_command": 1 },
            "debug": true,
        });
        let check = Collector::builder(config).argument("check").environment("PATH", "/usr/bin:/bin");
        let told = text(&check.run().await);
        for (id, (command, words)) in (1..).zip(cases) {
            assert!(section(&told, id).contains(words), "{command}: {told}");
        }
        assert!(!told.replace("hidden-not", "").contains("hidden"), "{told}");
        for name in ["one", "two", "three"] {
            let id = fs::read_to_string(place.folder.path().join(name)).unwrap();
            wait_until("the process is gone", DEADLINE, async || is_gone(id.trim())).await;
        }
    }

    async fn the_repositorys_own_program(powa: Powa) {
        let place = Place::new(powa).await;
        place.register(1).await;
        let runs = place.folder.path().join("runs");
        let command = format!("echo $PGHOST $PGDATABASE >>{}; echo right", runs.display());
        let config = json!({
            "repository": { "dsn": place.dsn(""), "password_command": command },
            "servers": { "defaults": { "password_command": ["echo", "right"] } },
        });
        let output = Collector::builder(config.clone()).argument("once").run().await;
        assert!(output.status.success(), "{}", text(&output));
        // For all of the repository's connections.
        assert_eq!(fs::read_to_string(runs).unwrap(), "127.0.0.1 powa\n");
        for (key, value) in [("dsn", json!(place.dsn("password=right"))), ("password_command", json!([]))] {
            let mut config = config.clone();
            config["repository"][key] = value;
            let output = Collector::builder(config).argument("once").run().await;
            assert_eq!(output.status.code(), Some(2));
            assert!(text(&output).contains("key repository.password_command: "), "{}", text(&output));
        }
    }

    async fn a_reload_changes_the_options_of_one_server(powa: Powa) {
        let place = Place::new(powa).await;
        place.register(1).await;
        place.register(2).await;
        let port = place.cluster.port();
        let keys = |second: Value| {
            json!({ "servers": {
                "defaults": { "password": "right" },
                "by_name": { format!("127.0.1.2:{port}"): second },
            } })
        };
        let Place { cluster, repository, folder: _folder } = place;
        let mut fleet = Fleet::of(cluster, repository, keys(json!({}))).await;
        fleet.wait_for_states(r#"{"1": "running", "2": "running"}"#).await;
        let (first, second) = (fleet.sessions(1).await, fleet.sessions(2).await);
        assert_eq!((first.len(), second.len()), (1, 1));

        let change = async |fleet: &mut Fleet, options: Value| {
            fleet.collector.write_config(&config(&fleet.cluster, keys(options)));
            assert_eq!("RELOAD OK OK", fleet.ask("RELOAD", "").await);
        };
        change(&mut fleet, json!({ "options": "-c work_mem=5MB" })).await;
        let told = fleet.collector.wait_for_log("servers.by_name.").await;
        assert!(told.contains("options changes"), "{told}");
        wait_until("a new session", DEADLINE, async || {
            let now = fleet.sessions(2).await;
            now.len() == 1 && now != second
        })
        .await;
        change(&mut fleet, json!({ "password": "wrong" })).await;
        fleet.wait_for_states(r#"{"1": "running", "2": "no connection to remote server"}"#).await;
        change(&mut fleet, json!({ "password_command": "echo right" })).await;
        fleet.wait_for_states(r#"{"1": "running", "2": "running"}"#).await;
        let second = fleet.sessions(2).await;
        change(&mut fleet, json!({ "password_command": "echo right" })).await;
        assert_eq!(fleet.sessions(2).await, second);
        // Nothing of this was about the first.
        assert_eq!(fleet.sessions(1).await, first);
    }
}

#[tokio::test]
async fn what_cannot_be_an_option_is_named() {
    for (servers, words) in [
        (json!({ "defaults": { "host": "db1" } }), "servers.defaults.host: comes from powa_servers"),
        (json!({ "defaults": { "port": 1 } }), "servers.defaults.port: comes from powa_servers"),
        (json!({ "defaults": { "dbname": "db" } }), "servers.defaults.dbname: comes from powa_servers"),
        (
            json!({ "by_name": { "A.b": { "user": "u" } } }),
            "servers.by_name.\"A.b\".user: comes from powa_servers",
        ),
        (
            json!({ "defaults": { "sslmod": "require" } }),
            "servers.defaults.sslmod: no option of libpq; the nearest is sslmode",
        ),
        (json!({ "by_name": { "a:1": { "pasword_command": "x" } } }), "the nearest is password_command"),
        (json!({ "defaults": { "sslmode": "hidden" } }), "servers.defaults.sslmode: "),
        (json!({ "defaults": { "connect_timeout": "soon" } }), "servers.defaults.connect_timeout: "),
        (json!({ "defaults": { "connect_timeout": 1.5 } }), "servers.defaults.connect_timeout: must be"),
        (json!({ "defaults": { "password": ["hidden"] } }), "servers.defaults.password: must be"),
        (json!({ "defaults": { "password_command": [] } }), "servers.defaults.password_command: must be"),
        (json!({ "defaults": { "password_command": [1] } }), "servers.defaults.password_command: must be"),
        (json!({ "defaults": { "password_command": " " } }), "servers.defaults.password_command: must be"),
        (
            json!({ "by_name": { "a": { "password_command": "x", "password": "hidden" } } }),
            "servers.by_name.\"a\".password_command: there is a password besides",
        ),
        (json!({ "defaults": { "sslrootcert": "system", "sslmode": "require" } }), "needs verify-full"),
        (json!({ "defaults": "hidden" }), "servers.defaults"),
    ] {
        let config = json!({ "repository": { "dsn": "host=127.0.0.1 port=1" }, "servers": servers });
        let output = Collector::builder(config).argument("check").run().await;
        let told = text(&output);
        assert_eq!(output.status.code(), Some(2), "{servers}: {told}");
        assert!(told.contains(words), "{servers}: {told}");
        assert!(!told.contains("hidden") || told.contains("\"hidden\" is none of disable"), "{told}");
    }
}

/// A repository, servers to be registered as the role `watcher`, who needs a password, and a folder.
struct Place {
    cluster: Cluster,
    repository: Client,
    folder: TempDir,
}

impl Place {
    async fn new(powa: Powa) -> Place {
        let (cluster, repository) = databases(Cluster::builder(powa).hba(HBA).start()).await;
        repository.batch_execute("CREATE ROLE watcher SUPERUSER LOGIN PASSWORD 'right'").await.unwrap();
        let prefix = format!("collector-{}-", std::process::id());
        let folder =
            tempfile::Builder::new().prefix(&prefix).tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        assert_eq!(powa_schema(&repository).await, "\"public\"");
        Place { cluster, repository, folder }
    }

    fn server(&self, number: u8) -> Registration {
        monitored(&self.cluster, number).credentials("watcher", None)
    }

    async fn register(&self, number: u8) -> i32 {
        register_idle(&self.repository, self.server(number)).await
    }

    /// The repository as the role that needs a password.
    fn dsn(&self, options: &str) -> String {
        format!("host=127.0.0.1 port={} user=watcher dbname=powa {options}", self.cluster.port())
    }

    fn trusted_dsn(&self) -> String {
        self.cluster.superuser_dsn("powa")
    }

    async fn run(&self, statement: &str) {
        self.repository.batch_execute(statement).await.expect(statement);
    }

    fn write(&self, name: &str, contents: &str, mode: u32) -> std::path::PathBuf {
        let file = self.folder.path().join(name);
        fs::write(&file, contents).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        file
    }
}

fn trusted_(server: Registration) -> Registration {
    server.credentials("postgres", None)
}

/// Ends the session of the only server, and waits until the worker has noticed.
async fn end_session(fleet: &mut Fleet) {
    let before = fleet.sessions(1).await;
    assert_eq!(before.len(), 1);
    let position = fleet.collector.log_position();
    fleet.execute(&format!("SELECT pg_terminate_backend({}, 10000)", before[0])).await;
    // It may have been reading just then.
    let notices =
        |line: &str| line.contains("no connection to the monitored server") || line.contains("no snapshot: ");
    fleet.collector.wait_for_line(position, "the end of the session", notices).await;
}

fn text(output: &std::process::Output) -> String {
    [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat()
}

/// What `check` says of one server.
fn section(told: &str, id: i32) -> String {
    let title = format!("server {id} ");
    let lines = told.lines().skip_while(|line| !line.starts_with(&title));
    let lines: Vec<&str> =
        lines.enumerate().take_while(|(at, line)| *at == 0 || line.starts_with(' ')).map(|it| it.1).collect();
    lines.join("\n")
}

/// Nobody may have waited for it.
fn is_gone(id: &str) -> bool {
    match fs::read_to_string(format!("/proc/{id}/stat")) {
        Ok(stat) => stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')),
        Err(_) => true,
    }
}
