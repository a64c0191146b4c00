//! How the collector connects: TLS or not, passwords, and options that are not supported.

mod support;

use serde_json::json;
use support::{Cluster, Collector, Powa, Registration, on_both_versions, register_server};

on_both_versions! {
    async fn sslmode_decides_whether_sessions_are_encrypted(powa: Powa) {
        let cluster = repository_and_server(powa).await;
        encrypt(&cluster).await;
        for (mode, is_encrypted) in [("disable", false), ("prefer", true), ("require", true)] {
            let log = log_of_once(&cluster, &format!("sslmode={mode}")).await;
            assert_eq!(log.0, is_encrypted, "{mode}: {}", log.1);
        }
    }

    async fn require_does_not_go_on_without_tls_and_prefer_does(powa: Powa) {
        let cluster = repository_and_server(powa).await;
        let (output, is_good) = once(&cluster, "sslmode=require").await;
        assert!(!is_good && output.contains("server does not support TLS"), "{output}");
        let (output, is_good) = once(&cluster, "sslmode=prefer").await;
        assert!(is_good, "{output}");
    }

    async fn prefer_goes_on_without_tls_when_pg_hba_allows_only_that(powa: Powa) {
        let cluster = repository_and_server(powa).await;
        encrypt(&cluster).await;
        cluster.set_hba("hostnossl all all all trust\nlocal all all trust");
        cluster.reload().await;
        let (output, is_good) = once(&cluster, "sslmode=prefer").await;
        assert!(is_good, "{output}");
        let (output, is_good) = once(&cluster, "sslmode=require").await;
        assert!(!is_good && output.contains("no pg_hba.conf entry"), "{output}");
    }

    async fn passwords_are_used_and_never_shown(powa: Powa) {
        let cluster = repository_and_server(powa).await;
        let (admin, repository) = (cluster.client("postgres").await, cluster.client("repository").await);
        admin.batch_execute("ALTER ROLE postgres PASSWORD 'hunter2 it''s'").await.unwrap();
        cluster.set_hba("host all all all scram-sha-256\nlocal all all trust");
        cluster.reload().await;
        let repository_password = r"password='hunter2 it\'s'";
        let (output, is_good) = once(&cluster, repository_password).await;
        assert!(!is_good && output.contains("asks for a password, and none is given"), "{output}");

        let password = "UPDATE powa_servers SET password = $1 WHERE id = 1";
        for (text, is_right) in [("hunter2 wrong", false), ("hunter2 it's", true)] {
            repository.execute(password, &[&text]).await.unwrap();
            for command in ["once", "check"] {
                let (output, is_good) = run(&cluster, repository_password, command, true).await;
                assert_eq!(is_good, is_right, "{output}");
                assert!(is_right || output.contains("password authentication failed"), "{output}");
                assert!(!output.contains("hunter2"), "{output}");
            }
        }
    }
}

#[tokio::test]
async fn what_is_not_supported_is_refused_by_its_name() {
    for (option, told) in [
        ("gssencmode=require", "option gssencmode: GSSAPI is not supported"),
        ("oauth_issuer=https://example.org", "option oauth_issuer: OAuth is not supported"),
        ("replication=database", "option replication: not for a collector"),
        ("sslrootcrt=/f", "there is no option \"sslrootcrt\"; the nearest is \"sslrootcert\""),
    ] {
        let config = json!({ "repository": { "dsn": format!("host=127.0.0.1 {option}") } });
        let output = Collector::builder(config).argument("check").run().await;
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr.contains("key repository.dsn: ") && stderr.contains(told), "{stderr}");
    }
}

async fn repository_and_server(powa: Powa) -> Cluster {
    let cluster = Cluster::start(powa);
    cluster.create_repository("repository").await;
    cluster.create_monitored("monitored", &[]).await;
    let repository = cluster.client("repository").await;
    register_server(&repository, &Registration::of(&cluster, "monitored").frequency(3600)).await;
    cluster
}

/// Gives the server a certificate of its own making.
async fn encrypt(cluster: &Cluster) {
    let admin = cluster.client("postgres").await;
    let make = "COPY (SELECT) TO PROGRAM 'openssl req -new -x509 -nodes -days 2 -subj /CN=nobody \
                -keyout server.key -out server.crt 2>/dev/null && chmod 600 server.key'";
    admin.batch_execute(make).await.unwrap();
    cluster.set("ssl", "on");
    cluster.set("log_connections", "on");
    cluster.reload().await;
}

async fn once(cluster: &Cluster, option: &str) -> (String, bool) {
    run(cluster, option, "once", false).await
}

async fn run(cluster: &Cluster, option: &str, command: &str, is_verbose: bool) -> (String, bool) {
    let port = cluster.port();
    let dsn = format!("host=127.0.0.1 port={port} user=postgres dbname=repository {option}");
    let config = json!({ "repository": { "dsn": dsn }, "debug": is_verbose });
    let output = Collector::builder(config).argument(command).run().await;
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
