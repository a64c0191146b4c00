//! `powa-collector check` and `powa-collector once`: what they say, and that what they say to do helps.

mod support;

use serde_json::{Value, json};
use support::{
    Cluster, Collector, EXTENSIONS, Powa, Registration, on_both_versions, powa_schema, register_server,
};
use tokio_postgres::Client;

on_both_versions! {
    async fn all_is_well_with_the_roles_of_the_setup_scripts(powa: Powa) {
        let fleet = Fleet::start(powa).await;
        fleet.set_up_roles().await;
        let server = Registration::of(&fleet.cluster, "monitored").credentials("powa", None);
        register_server(&fleet.repository, &server.extensions(EXTENSIONS)).await;
        let (output, is_good) = fleet.run_as("powa_collector", &["check"]).await;
        assert!(is_good && output.ends_with("all is well\n"), "{output}");
        assert!(output.contains("1 servers to collect") && output.contains("server 1 127.0.0.1:"), "{output}");

        let (output, is_good) = fleet.run_as("powa_collector", &["once"]).await;
        assert!(is_good && !output.contains("error") && output.contains(" rows, "), "{output}");
        assert_eq!(fleet.errors(1).await, None);
    }

    async fn every_statement_that_is_proposed_for_a_server_mends_it(powa: Powa) {
        let fleet = Fleet::start(powa).await;
        fleet.admin.batch_execute("CREATE ROLE \"po wa\" LOGIN").await.unwrap();
        fleet.monitored.batch_execute("DROP EXTENSION pg_stat_kcache").await.unwrap();
        if powa.is_v5() {
            fleet.admin.batch_execute("REVOKE CONNECT ON DATABASE template1 FROM public").await.unwrap();
        }
        let server = Registration::of(&fleet.cluster, "monitored").credentials("po wa", None);
        register_server(&fleet.repository, &server.extensions(EXTENSIONS)).await;
        let (output, is_good) = fleet.run(&["check"]).await;
        assert!(!is_good && output.ends_with("not all is well: see PROBLEM above\n"), "{output}");
        let statements = statements(&output);
        let expected = ["CREATE EXTENSION \"pg_stat_kcache\";", "GRANT pg_monitor TO \"po wa\";"];
        assert!(expected.iter().all(|one| statements.iter().any(|other| other == one)), "{output}");
        assert!(output.contains("pg_qualstats_reset\"() TO \"po wa\";"), "{output}");
        for statement in statements {
            fleet.monitored.batch_execute(&statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
        }
        let (output, is_good) = fleet.run(&["check"]).await;
        assert!(is_good, "{output}");
    }

    async fn every_statement_that_is_proposed_for_the_repository_mends_it(powa: Powa) {
        let fleet = Fleet::start(powa).await;
        let server = Registration::of(&fleet.cluster, "monitored").extensions(EXTENSIONS);
        register_server(&fleet.repository, &server).await;
        let (output, is_good) = fleet.run_as("col lector", &["check"]).await;
        assert!(!is_good && output.contains("CREATE ROLE \"col lector\" LOGIN;"), "{output}");
        fleet.admin.batch_execute("CREATE ROLE \"col lector\" LOGIN").await.unwrap();

        let (output, is_good) = fleet.run_as("col lector", &["check"]).await;
        assert!(!is_good && output.contains("no grants on ") && output.contains("permission denied"), "{output}");
        for statement in statements(&output) {
            fleet.repository.batch_execute(&statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
        }
        let (output, is_good) = fleet.run_as("col lector", &["check"]).await;
        assert!(is_good, "{output}");
        let (output, is_good) = fleet.run_as("col lector", &["once"]).await;
        assert!(is_good && !output.contains("error"), "{output}");
    }

    async fn an_address_that_pg_hba_does_not_know_is_told_with_the_line_to_add(powa: Powa) {
        let fleet = Fleet::start(powa).await;
        let server = Registration::of(&fleet.cluster, "monitored").credentials("powa", None);
        register_server(&fleet.repository, &server).await;
        fleet.set_up_roles().await;
        let rest = "host all postgres all trust\nlocal all all trust";
        fleet.cluster.set_hba(rest);
        fleet.cluster.reload().await;
        let (output, is_good) = fleet.run(&["check"]).await;
        let line = "host  \"monitored\"  \"powa\"  127.0.0.1/32  scram-sha-256";
        assert!(!is_good && output.contains("no pg_hba.conf entry") && output.contains(line), "{output}");

        let databases = line.replace("\"monitored\"", "all").replace("scram-sha-256", "trust");
        fleet.cluster.set_hba(&format!("{databases}\n{rest}"));
        fleet.cluster.reload().await;
        let (output, is_good) = fleet.run(&["check"]).await;
        assert!(is_good, "{output}");
    }

    async fn what_is_not_there_or_not_fitting_is_named(powa: Powa) {
        let fleet = Fleet::start(powa).await;
        let (output, is_good) = fleet.run(&["check"]).await;
        assert!(!is_good && output.contains("there are no servers to collect"), "{output}");

        let port = fleet.cluster.port();
        let closed = Registration::new("127.0.0.1", 1).alias("closed");
        let no_database = Registration::new("127.0.1.1", port).dbname("nowhere");
        let no_powa = Registration::new("127.0.1.2", port).dbname("postgres");
        let unregistered = Registration::new("127.0.1.3", port).dbname("monitored");
        for server in [closed, no_database, no_powa, unregistered] {
            register_server(&fleet.repository, &server).await;
        }
        let schema = powa_schema(&fleet.repository).await;
        let unregister = format!("DELETE FROM {schema}.powa_snapshot_metas WHERE srvid = 4");
        fleet.repository.batch_execute(&unregister).await.unwrap();
        let (output, is_good) = fleet.run(&["check"]).await;
        assert!(!is_good, "{output}");
        for expected in [
            "Connection refused",
            "database \"nowhere\" does not exist\n           CREATE DATABASE \"nowhere\";",
            match powa {
                Powa::V4 => "the extension powa is not installed in database postgres",
                Powa::V5 => {
                    "the extension pg_stat_statements is not installed on the monitored server\n           \
                     CREATE EXTENSION \"pg_stat_statements\";"
                }
            },
            "it has no row in powa_snapshot_metas",
        ] {
            assert!(output.contains(expected), "{expected} is not in {output}");
        }

        fleet.set_monitored_version("9.9.9").await;
        let (output, _) = fleet.run(&["check"]).await;
        let told = match powa {
            Powa::V4 => "PoWA is 9.9.9 here and 4.1",
            Powa::V5 => "PoWA 9.9.9 here: read by the definitions of the repository's 5.0",
        };
        assert!(output.contains(told), "{output}");
    }

    async fn once_takes_one_snapshot_of_each_server_or_of_those_that_are_named(powa: Powa) {
        let fleet = Fleet::start(powa).await;
        for (host, alias) in [("127.0.1.1", "first"), ("127.0.1.2", "second")] {
            let server = Registration::new(host, fleet.cluster.port()).alias(alias).dbname("monitored");
            register_server(&fleet.repository, &server.frequency(3600)).await;
        }
        let (output, is_good) = fleet.run(&["once", "2"]).await;
        assert!(is_good && output.starts_with("2 second: ") && output.lines().count() == 1, "{output}");
        assert_eq!((fleet.snapshots(1).await, fleet.snapshots(2).await), (0, 1));

        let (output, is_good) = fleet.run(&["once"]).await;
        assert!(is_good && output.lines().count() == 2, "{output}");
        assert_eq!((fleet.snapshots(1).await, fleet.snapshots(2).await), (1, 2));

        fleet.set_monitored_version("9.9.9").await;
        let (output, is_good) = fleet.run(&["once", "1", "7"]).await;
        assert!(!is_good && output.contains("7: FAILED: no such server"), "{output}");
        // PoWA 5 helps itself.
        if powa.is_v4() {
            assert!(output.contains("1 first: FAILED after ") && output.contains("9.9.9"), "{output}");
        }
        assert_eq!(fleet.snapshots(1).await, if powa.is_v4() { 1 } else { 2 });
    }

    async fn a_repository_that_is_away_fails_both_commands_with_a_reason(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        fleet.cluster.stop();
        for command in ["check", "once"] {
            let (output, is_good) = fleet.run(&[command]).await;
            assert!(!is_good && output.contains("Connection refused"), "{output}");
        }
    }
}

#[tokio::test]
async fn a_configuration_that_cannot_be_used_ends_every_command_with_status_2() {
    for arguments in [&["run"][..], &["check"], &["once"], &[]] {
        let mut builder = Collector::builder(json!({ "repository": { "dns": "" } }));
        for argument in arguments {
            builder = builder.argument(argument);
        }
        let output = builder.run().await;
        assert_eq!(output.status.code(), Some(2));
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(told.contains("key repository.dsn: missing"), "{told}");
        assert!(output.stdout.is_empty());
    }
}

/// A repository and a monitored database, in one cluster.
struct Fleet {
    cluster: Cluster,
    admin: Client,
    repository: Client,
    monitored: Client,
}

impl Fleet {
    async fn start(powa: Powa) -> Self {
        let cluster = Cluster::start(powa);
        cluster.create_repository("repository").await;
        cluster.create_monitored("monitored", EXTENSIONS).await;
        Self {
            admin: cluster.client("postgres").await,
            repository: cluster.client("repository").await,
            monitored: cluster.client("monitored").await,
            cluster,
        }
    }

    async fn set_up_roles(&self) {
        let repository = if self.cluster.powa().is_v4() {
            include_str!("../sql/setup/repository_powa4.sql")
        } else {
            include_str!("../sql/setup/repository_powa5.sql")
        };
        self.repository.batch_execute(repository).await.unwrap();
        self.monitored.batch_execute(include_str!("../sql/setup/server.sql")).await.unwrap();
    }

    async fn run(&self, arguments: &[&str]) -> (String, bool) {
        self.run_as("postgres", arguments).await
    }

    /// Runs a command of the collector. Gives what it said and whether it was content.
    async fn run_as(&self, user: &str, arguments: &[&str]) -> (String, bool) {
        let port = self.cluster.port();
        let dsn = format!("host=127.0.0.1 port={port} user='{user}' dbname=repository");
        let config: Value = json!({ "repository": { "dsn": dsn }, "use_server_alias": true });
        let mut builder = Collector::builder(config);
        for argument in arguments {
            builder = builder.argument(argument);
        }
        let output = builder.run().await;
        let text = [output.stdout, output.stderr].concat();
        (String::from_utf8(text).unwrap(), output.status.success())
    }

    /// Makes the monitored database's PoWA look like another version.
    async fn set_monitored_version(&self, version: &str) {
        let statement = "UPDATE pg_catalog.pg_extension SET extversion = $1 WHERE extname = 'powa'";
        self.monitored.execute(statement, &[&version]).await.unwrap();
    }

    async fn snapshots(&self, server: i32) -> i64 {
        let schema = powa_schema(&self.repository).await;
        let statement = format!("SELECT coalesce_seq - 1 FROM {schema}.powa_snapshot_metas WHERE srvid = $1");
        self.repository.query_one(&statement, &[&server]).await.unwrap().get(0)
    }

    async fn errors(&self, server: i32) -> Option<Vec<String>> {
        let schema = powa_schema(&self.repository).await;
        let statement = format!("SELECT errors FROM {schema}.powa_snapshot_metas WHERE srvid = $1");
        self.repository.query_one(&statement, &[&server]).await.unwrap().get(0)
    }
}

/// The statements that a check proposes.
fn statements(output: &str) -> Vec<String> {
    let proposed = output.lines().filter_map(|line| line.strip_prefix("           "));
    proposed.filter(|line| !line.starts_with("--")).map(str::to_owned).collect()
}
