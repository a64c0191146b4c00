//! Connections of the program: TLS or not, and what it says of those that cannot be made.

mod certificates;
mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use certificates::{PATIENCE, Site};
use powa_collector::postgres::session::Session;
use serde_json::json;
use support::{Cluster, Collector, Powa, Registration, on_both_versions, register_server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

on_both_versions! {
    async fn sslmode_decides_whether_sessions_are_encrypted(powa: Powa) {
        let site = repository_and_server(powa).await;
        let cases = [
            ("disable", false),
            ("allow", false),
            ("prefer", true),
            ("require", true),
            ("verify-full", true),
        ];
        for (mode, is_encrypted) in cases {
            let root = site.file("root.crt");
            let option = format!("sslmode={mode} sslrootcert={}", root.display());
            let log = log_of_once(&site.cluster, &option).await;
            assert_eq!(log.0, is_encrypted, "{mode}: {}", log.1);
        }
        site.hide().await;
        let (output, is_good) = once(&site.cluster, "sslmode=require").await;
        assert!(!is_good && output.contains("server does not support TLS"), "{output}");
        let (output, is_good) = once(&site.cluster, "sslmode=prefer").await;
        assert!(is_good, "{output}");
    }

    async fn prefer_goes_on_without_tls_when_pg_hba_allows_only_that(powa: Powa) {
        let site = repository_and_server(powa).await;
        site.hba("hostnossl all all all trust\nlocal all all trust").await;
        let (output, is_good) = once(&site.cluster, "sslmode=prefer").await;
        assert!(is_good, "{output}");
        let (output, is_good) = once(&site.cluster, "sslmode=require").await;
        assert!(!is_good && output.contains("no pg_hba.conf entry"), "{output}");
    }

    async fn files_are_found_at_home(powa: Powa) {
        let site = repository_and_server(powa).await;
        site.ask_clients().await;
        site.hba("local all all trust\nhostssl all all all cert map=any").await;
        fs::write(site.cluster.data_directory().join("pg_ident.conf"), "any /^(.*)$ postgres\n").unwrap();
        site.cluster.reload().await;
        // The monitored server is the same one: its row has no options, what is at home counts for it too.
        let home = site.home().to_owned();
        let run = async || run_at(&site.cluster, home.clone(), "sslmode=verify-full", "once").await;
        let (output, is_good) = run().await;
        assert!(!is_good && output.contains(".postgresql/root.crt: does not exist"), "{output}");
        site.settle("root.crt", "root.crt");
        let (output, is_good) = run().await;
        assert!(!is_good && output.contains("client certificate"), "{output}");
        site.settle("ec.crt", "postgresql.crt");
        site.settle("ec.key", "postgresql.key");
        let (output, is_good) = run().await;
        assert!(is_good, "{output}");
        site.settle("root.crl", "root.crl");
        site.show("revoked").await;
        let (output, is_good) = run().await;
        assert!(!is_good && output.contains("certificate revoked"), "{output}");
    }

    async fn the_systems_roots_may_be_said_by_openssls_own_variable(powa: Powa) {
        let site = repository_and_server(powa).await;
        let config = |dsn: &str| json!({ "repository": { "dsn": site.dsn(dsn) } });
        let dsn = "dbname=repository sslrootcert=system";
        for (root, is_right) in [("root.crt", true), ("other.crt", false)] {
            let collector = Collector::builder(config(dsn)).argument("check");
            let output = collector.environment("SSL_CERT_FILE", site.file(root)).run().await;
            let told = String::from_utf8(output.stdout).unwrap();
            assert_eq!(told.contains("ok       connected"), is_right, "{told}");
            assert_eq!(told.contains("local issuer"), !is_right, "{told}");
        }
    }

    async fn another_database_is_tried_first_in_the_way_that_has_worked(powa: Powa) {
        let site = Site::new(powa);
        site.show("valid").await;
        for (mode, is_encrypted) in [("prefer", true), ("prefer", false), ("allow", true), ("allow", false)] {
            let (same, different) =
                if is_encrypted { ("hostssl", "hostnossl") } else { ("hostnossl", "hostssl") };
            let hba = |other: &str| {
                format!("local all all trust\n{same} postgres all all trust\n{other} template1 all all trust")
            };
            site.hba(&hba(same)).await;
            let session = site.open(&format!("sslmode={mode}")).await.unwrap();
            assert_eq!(encryption(&session).await, is_encrypted, "{mode}");
            for (other, expected) in [(same, is_encrypted), ("host", is_encrypted), (different, !is_encrypted)] {
                site.hba(&hba(other)).await;
                let before = site.cluster.log().len();
                assert_eq!(encryption(&database(&session).await.unwrap()).await, expected, "{mode}, {other}");
                let tries_in_vain = site.cluster.log()[before..].matches("FATAL").count();
                assert_eq!(tries_in_vain, usize::from(other == different), "{mode}, {other}");
            }
        }
    }

    async fn a_server_that_comes_to_want_tls_for_a_database_gets_it(powa: Powa) {
        let site = Site::new(powa);
        let session = site.open("sslmode=prefer").await.unwrap();
        assert!(!encryption(&session).await);
        site.hba("local all all trust\nhost postgres all all trust\nhostssl template1 all all trust").await;
        // Nobody is asked to log in twice by a server that has no TLS.
        let before = site.cluster.log().len();
        let told = database(&session).await.map(|_| ()).unwrap_err();
        assert_eq!(told.matches("no pg_hba.conf entry").count(), 1, "{told}");
        assert_eq!(site.cluster.log()[before..].matches("FATAL").count(), 1);

        site.show("valid").await;
        assert!(encryption(&database(&session).await.unwrap()).await);
    }

    async fn a_database_is_read_that_wants_tls_where_the_server_wants_none(powa: Powa) {
        let site = repository_and_server(powa).await;
        let only_with_tls = "hostssl postgres all all trust\nhostnossl postgres all all reject";
        site.hba(&format!("local all all trust\n{only_with_tls}\nhostnossl all all all trust")).await;
        let before = site.cluster.log().len();
        let (output, is_good) = once(&site.cluster, "sslmode=prefer").await;
        assert!(is_good && !output.contains("pg_hba.conf"), "{output}");
        let log = site.cluster.log()[before..].to_owned();
        let is_encrypted = |database: &str| {
            let authorized = format!("authorized: user=postgres database={database} ");
            let is_read = |line: &&str| line.contains(&authorized) && line.contains("- worker");
            log.lines().find(is_read).map(|line| line.contains("SSL enabled"))
        };
        assert_eq!(is_encrypted("monitored"), Some(false), "{log}");
        assert_eq!(is_encrypted("template1"), powa.is_v5().then_some(false), "{log}");
        assert_eq!(is_encrypted("postgres"), powa.is_v5().then_some(true), "{log}");
    }

    async fn passwords_are_used_and_never_shown(powa: Powa) {
        let site = repository_and_server(powa).await;
        let cluster = &site.cluster;
        let repository = cluster.client("repository").await;
        site.run("ALTER ROLE postgres PASSWORD 'hunter2 it''s'").await;
        site.hba("host all all all scram-sha-256\nlocal all all trust").await;
        let repository_password = r"password='hunter2 it\'s'";
        let (output, is_good) = once(cluster, repository_password).await;
        assert!(!is_good && output.contains("asks for a password, and none is given"), "{output}");

        let password = "UPDATE powa_servers SET password = $1 WHERE id = 1";
        for (text, is_right) in [("hunter2 wrong", false), ("hunter2 it's", true)] {
            repository.execute(password, &[&text]).await.unwrap();
            for command in ["once", "check"] {
                let (output, is_good) = run(cluster, repository_password, command, true).await;
                assert_eq!(is_good, is_right, "{output}");
                assert!(is_right || output.contains("password authentication failed"), "{output}");
                assert!(!output.contains("hunter2"), "{output}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_says_who_refused_and_what_mends_it() {
    let hba = "local all all trust
        host all scrammed all scram-sha-256
        host all postgres,nobody,idle,kept,full 127.0.0.1/32 trust";
    let site = Site::with_hba(Powa::V4, hba);
    site.run(
        "CREATE ROLE scrammed LOGIN PASSWORD 'sesame'; CREATE ROLE idle; CREATE ROLE kept LOGIN;
         CREATE ROLE full LOGIN CONNECTION LIMIT 0",
    )
    .await;
    site.run("CREATE DATABASE closed").await;
    site.run("REVOKE CONNECT ON DATABASE closed FROM PUBLIC").await;
    let passfile = site.file("passfile");
    fs::write(&passfile, "*:*:*:*:sesame\n").unwrap();
    fs::set_permissions(&passfile, Permissions::from_mode(0o640)).unwrap();
    for (options, server, words) in [
        (
            "user=stranger",
            "stranger@localhost:PORT/postgres",
            &[
                "no pg_hba.conf entry for host \"127.0.0.1\"",
                "pg_reload_conf",
                "host  \"postgres\"  \"stranger\"  127.0.0.1/32  scram-sha-256",
            ][..],
        ),
        (
            "user=scrammed password=wrong",
            "scrammed@localhost:PORT/postgres",
            &["password authentication failed", "ALTER ROLE \"scrammed\" PASSWORD"],
        ),
        (
            "user=scrammed",
            "scrammed@localhost:PORT/postgres",
            &[
                "the server asks for a password, and none is given",
                "password_command",
                "~/.pgpass",
                "powa_servers",
            ],
        ),
        (
            "user=scrammed passfile=FILES/passfile",
            "scrammed@localhost:PORT/postgres",
            &[
                "none is given (the password file",
                "certificates/passfile is ignored: others may read it: chmod 600)",
            ],
        ),
        (
            "user=nobody",
            "nobody@localhost:PORT/postgres",
            &["does not exist", "CREATE ROLE \"nobody\" LOGIN"],
        ),
        (
            "user=idle",
            "idle@localhost:PORT/postgres",
            &["not permitted to log in", "ALTER ROLE \"idle\" LOGIN"],
        ),
        ("user=full", "full@localhost:PORT/postgres", &["too many connections", "max_connections"]),
        (
            "dbname='no \"such'",
            "postgres@localhost:PORT/no \"such",
            &["does not exist", "CREATE DATABASE \"no \"\"such\""],
        ),
        (
            "user=kept dbname=closed",
            "kept@localhost:PORT/closed",
            &["permission denied for database", "GRANT CONNECT ON DATABASE \"closed\" TO \"kept\""],
        ),
        ("sslmode=require", "postgres@localhost:PORT/postgres", &["does not support TLS", "switch ssl on"]),
        (
            "host=nobody.invalid hostaddr=''",
            "postgres@nobody.invalid:PORT/postgres",
            &["no address", "hostaddr"],
        ),
        (
            "host='' hostaddr=127.0.0.1 port=1",
            "postgres@127.0.0.1:1/postgres",
            &["Connection refused", "is the server running", "listen_addresses"],
        ),
        (
            "host=/nowhere hostaddr=''",
            "postgres@/nowhere:PORT/postgres",
            &["No such file", "is the server running"],
        ),
    ] {
        let told = site.ours(options).await;
        let server = server.replace("PORT", &site.cluster.port().to_string());
        let told = told.refusal();
        assert!(told.starts_with(&format!("connect to {server}: ")), "{options}: {told}");
        assert!(!told.contains('\n') && !told.contains("sesame"), "{told}");
        for words in words {
            assert!(told.contains(words), "{options}: {words}: {told}");
        }
    }
    // What is said twice, with TLS and without, is said once.
    site.show("valid").await;
    let told = site.ours("user=scrammed password=wrong").await;
    assert_eq!(told.refusal().matches("password authentication failed").count(), 1, "{told:?}");
    let told = site.ours("user=stranger").await;
    assert!(told.refusal().contains("; and without TLS: "), "{told:?}");
}

#[tokio::test]
async fn what_is_no_postgresql_is_told() {
    let site = Site::new(Powa::V4);
    for (answer, mode, words) in [
        (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "require", "byte 72: it is not PostgreSQL"),
        (b"SSH-2.0\r\n", "require", "in the clear before TLS began"),
        (b"SSH-2.0\r\n", "prefer", "in the clear before TLS began"),
        (b"S", "require", "TLS: "),
        (b"", "require", "unexpected end of file"),
        (b"", "disable", "is it a PostgreSQL server?"),
    ] {
        let (port, task) = answering(answer).await;
        let told = site.ours(&format!("port={port} sslmode={mode}")).await;
        assert!(told.refusal().contains(words), "{words}: {told:?}");
        task.abort();
    }
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    let site = Site::new(Powa::V4);
    // The system accepts connections; nobody takes them.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    for mode in ["disable", "require"] {
        // libpq makes two of one.
        let options = format!("port={port} sslmode={mode} connect_timeout=1");
        let began = std::time::Instant::now();
        let told = site.ours(&options).await;
        assert!((2.0..4.0).contains(&began.elapsed().as_secs_f64()), "{:?}", began.elapsed());
        let told = told.refusal();
        assert!(
            told.starts_with(&format!("connect to postgres@localhost:{port}/postgres: no answer within 2 s"))
        );
        assert!(told.contains("firewall"), "{told}");
    }
}

/// A listener that reads a little, answers this to everybody, and hangs up.
async fn answering(answer: &'static [u8]) -> (u16, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 8];
            stream.read_exact(&mut request).await.ok();
            stream.write_all(answer).await.ok();
        }
    });
    (port, task)
}

/// With the certificate `valid`; the server logs who connects.
async fn repository_and_server(powa: Powa) -> Site {
    let cluster = Cluster::start(powa);
    cluster.create_repository("repository").await;
    cluster.create_monitored("monitored", &[]).await;
    let repository = cluster.client("repository").await;
    register_server(&repository, &Registration::of(&cluster, "monitored").frequency(3600)).await;
    cluster.set("log_connections", "on");
    let site = Site::of(cluster);
    site.show("valid").await;
    site
}

/// Another database of a session's server.
async fn database(session: &Session) -> Result<Session, String> {
    let conninfo = session.database("template1");
    Session::open(&conninfo, "test", PATIENCE).await.map_err(|error| error.to_string())
}

async fn encryption(session: &Session) -> bool {
    let question = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    session.client.query_one(question, &[]).await.unwrap().get(0)
}

async fn once(cluster: &Cluster, option: &str) -> (String, bool) {
    run(cluster, option, "once", false).await
}

async fn run(cluster: &Cluster, option: &str, command: &str, is_verbose: bool) -> (String, bool) {
    let dsn = dsn(cluster, option);
    let config = json!({ "repository": { "dsn": dsn }, "debug": is_verbose });
    output(Collector::builder(config).argument(command).run().await)
}

/// With the user's home directory somewhere else.
async fn run_at(cluster: &Cluster, home: PathBuf, option: &str, command: &str) -> (String, bool) {
    let config = json!({ "repository": { "dsn": dsn(cluster, option) } });
    output(Collector::builder(config).argument(command).environment("HOME", home).run().await)
}

fn dsn(cluster: &Cluster, option: &str) -> String {
    format!("host=127.0.0.1 port={} user=postgres dbname=repository {option}", cluster.port())
}

fn output(output: std::process::Output) -> (String, bool) {
    let text = [output.stdout, output.stderr].concat();
    (String::from_utf8(text).unwrap(), output.status.success())
}

/// Whether the server logged encrypted sessions of a run to the repository, and what it logged.
async fn log_of_once(cluster: &Cluster, option: &str) -> (bool, String) {
    let before = cluster.log().len();
    let (output, is_good) = once(cluster, option).await;
    assert!(is_good, "{output}");
    let log = cluster.log()[before..].to_owned();
    let authorized = log.lines().filter(|line| {
        // The worker's sessions are with the monitored server, whose sslmode this is not.
        line.contains("authorized: user=postgres database=repository") && !line.contains("- worker")
    });
    let encrypted: Vec<bool> = authorized.map(|line| line.contains("SSL enabled")).collect();
    assert!(!encrypted.is_empty(), "{log}");
    assert!(encrypted.iter().all(|one| *one == encrypted[0]), "{log}");
    (encrypted[0], log)
}
