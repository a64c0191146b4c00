//! From start to stop: what is not there yet is waited for, what goes away is found again, and a stop neither
//! loses a snapshot that is being stored nor waits for anything else.

mod fleet;
mod support;

use std::time::{Duration, Instant};

use fleet::{
    Fleet, Gate, LISTENING, age_snapshot, cluster, config, databases, monitored, prepend, register_idle,
    sessions, snapshots, wait_for_snapshots, wait_for_states,
};
use serde_json::json;
use support::{
    Cluster, Collector, Control, DEADLINE, Powa, Registration, Signal, on_both_versions, wait_until,
};
use tokio_postgres::Client;

/// How long an end at once may take on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(3);

on_both_versions! {
    async fn a_repository_that_is_down_at_the_start_is_waited_for(powa: Powa) {
        let (mut cluster, repository) = cluster(powa).await;
        register_idle(&repository, monitored(&cluster, 1)).await;
        cluster.stop();
        let mut collector = Collector::start(config(&cluster, json!({})));
        collector.wait_for_log("trying again until it works").await;
        cluster.start_again();
        collector.wait_for_log(LISTENING).await;
        let mut control = Control::connect(&cluster, "powa").await;
        wait_for_states(&mut control, r#"{"1": "running"}"#).await;
    }

    async fn a_database_without_powa_is_waited_for(powa: Powa) {
        let cluster = Cluster::start(powa);
        cluster.client("postgres").await.batch_execute("CREATE DATABASE powa").await.unwrap();
        let mut collector = Collector::start(config(&cluster, json!({})));
        let told = collector.wait_for_log("has no extension powa").await;
        assert!(told.contains("CREATE EXTENSION powa"), "{told}");
        let repository = cluster.client("powa").await;
        repository.batch_execute("BEGIN; CREATE EXTENSION powa CASCADE").await.unwrap();
        register_idle(&repository, monitored(&cluster, 1).dbname("powa")).await;
        repository.batch_execute("COMMIT").await.unwrap();
        collector.wait_for_log(LISTENING).await;
        let mut control = Control::connect(&cluster, "powa").await;
        wait_for_states(&mut control, r#"{"1": "running"}"#).await;
    }

    async fn after_a_restart_of_the_repository_all_goes_on(powa: Powa) {
        let (mut fleet, remote) = with_a_remote(powa).await;
        let session = remote_sessions(&remote).await;
        let position = fleet.collector.log_position();
        fleet.cluster.stop();
        fleet.collector.wait_for_log_after(position, "not listening for control messages").await;

        // Nobody tells the collector of the new server: it hears no message while it cannot listen.
        fleet.collector.suspend().await;
        fleet.cluster.start_again();
        fleet.repository = fleet.cluster.client("powa").await;
        let added = fleet.register(2).await;
        fleet.execute(&format!("UPDATE powa_servers SET dbname = 'powa' WHERE id = {added}")).await;
        fleet.collector.resume();

        fleet.collector.wait_for_log_after(position, LISTENING).await;
        fleet.control = Control::connect(&fleet.cluster, "powa").await;
        fleet.wait_for_states(r#"{"1": "running", "2": "running"}"#).await;
        assert_eq!(session, remote_sessions(&remote).await);
        fleet.force(1).await;
        fleet.wait_for_snapshots(1, 2).await;
    }

    async fn a_snapshot_that_was_due_while_the_repository_was_down_is_taken_afterwards(powa: Powa) {
        let (mut fleet, _remote) = with_a_remote(powa).await;
        fleet.execute("UPDATE powa_servers SET frequency = 5").await;
        assert_eq!("RELOAD OK OK", fleet.ask("RELOAD", "").await);
        fleet.cluster.stop();
        fleet.collector.wait_for_log("no snapshot: ").await;
        fleet.cluster.start_again();
        let repository = fleet.cluster.client("powa").await;
        let before = snapshots(&repository, 1).await;
        wait_for_snapshots(&repository, 1, before + 1).await;
        assert_eq!(Vec::<String>::new(), left_behind(&repository).await);
    }

    async fn after_a_restart_of_a_monitored_server_all_goes_on(powa: Powa) {
        let (mut fleet, mut remote) = with_a_remote(powa).await;
        remote.stop();
        fleet.wait_for_states(r#"{"1": "no connection to remote server"}"#).await;
        remote.start_again();
        fleet.wait_for_states(r#"{"1": "running"}"#).await;
        fleet.collector.wait_for_log("works again").await;
        fleet.force(1).await;
        fleet.wait_for_snapshots(1, 2).await;
    }

    async fn the_repository_is_told_why_a_server_is_away(powa: Powa) {
        let (fleet, mut remote) = with_a_remote(powa).await;
        remote.stop();
        let statement = "SELECT errors::text FROM powa_snapshot_metas WHERE srvid = 1";
        wait_until("the repository says why", DEADLINE, async || {
            let errors: Option<String> = fleet.repository.query_one(statement, &[]).await.unwrap().get(0);
            errors.is_some_and(|errors| errors.contains("no connection to the monitored server"))
        }).await;
    }

    async fn a_server_that_ends_a_session_during_a_fetch_is_connected_to_again(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        let gate = Gate::in_fetch(&fleet.cluster).await;
        let before = fleet.sessions(1).await;
        fleet.force(1).await;
        gate.reached().await;
        fleet.execute(&format!("SELECT pg_terminate_backend({})", before[0])).await;
        fleet.collector.wait_for_log("no snapshot: ").await;
        wait_until("another session", DEADLINE, async || {
            let now = fleet.sessions(1).await;
            now.len() == 1 && now != before
        }).await;
        fleet.wait_for_states(r#"{"1": "running"}"#).await;
        assert_eq!(1, fleet.snapshots(1).await);
    }

    async fn sigterm_and_sigint_end_an_idle_collector_at_once(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        assert_eq!(Some(0), fleet.end_by(Signal::SIGTERM).await);
        assert!(fleet.collector.log().ends_with(" stopped"));
        wait_until("all sessions have ended", DEADLINE, async || {
            sessions(&fleet.repository, "PoWA collector%").await.is_empty()
        }).await;
        fleet.collector = Collector::start(config(&fleet.cluster, json!({})));
        fleet.collector.wait_for_log("worker for").await;
        assert_eq!(Some(0), fleet.end_by(Signal::SIGINT).await);
    }

    async fn a_collector_that_waits_for_its_repository_ends_at_once(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        fleet.cluster.stop();
        fleet.collector.wait_for_log("trying again until it works").await;
        assert_eq!(Some(0), fleet.end_by(Signal::SIGTERM).await);
    }

    async fn a_stop_breaks_off_a_fetch_on_the_server_too(powa: Powa) {
        let mut fleet = where_queries_outlive_their_sessions(powa).await;
        let gate = Gate::in_fetch(&fleet.cluster).await;
        fleet.force(1).await;
        gate.reached().await;
        assert_eq!(Some(0), fleet.end_by(Signal::SIGTERM).await);
        wait_until("its query has ended", DEADLINE, async || fleet.sessions(1).await.is_empty()).await;
        assert_eq!(1, fleet.snapshots(1).await);
        // It was still closed.
        gate.open();
    }

    async fn a_stop_breaks_off_the_fetch_of_single_databases_on_the_server_too(powa: Powa) {
        if powa.is_v4() {
            return; // It reads nothing from single databases.
        }
        let mut fleet = where_queries_outlive_their_sessions(powa).await;
        fleet.execute("ALTER ROLE postgres SET lock_timeout = '1min'").await;
        // What a snapshot reads, and nobody else.
        let mut locks = Vec::new();
        for dbname in ["postgres", "monitored"] {
            let client = fleet.cluster.client(dbname).await;
            client.batch_execute("BEGIN; LOCK TABLE pg_catalog.pg_collation").await.unwrap();
            locks.push(client);
        }
        fleet.force(1).await;
        let waiting = "SELECT FROM pg_locks WHERE relation = 'pg_collation'::regclass AND NOT granted";
        wait_until("both databases are read", DEADLINE, async || {
            fleet.repository.query(waiting, &[]).await.unwrap().len() == 2
        }).await;
        assert_eq!(Some(0), fleet.end_by(Signal::SIGTERM).await);
        wait_until("its queries have ended", DEADLINE, async || fleet.sessions(1).await.is_empty()).await;
        drop(locks);
    }

    async fn a_stop_lets_a_store_finish(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        let gate = Gate::in_store(&fleet.cluster).await;
        fleet.force(1).await;
        gate.reached().await;
        fleet.collector.signal(Signal::SIGTERM);
        fleet.collector.wait_for_log("stopping").await;
        // It is at work, and takes no new one.
        assert_eq!(r#"WORKERS_STATUS OK {"1": "stopping"}"#, fleet.ask("WORKERS_STATUS", "").await);
        assert!(fleet.ask("FORCE_SNAPSHOT", "1").await.starts_with("FORCE_SNAPSHOT ERROR "));
        gate.open();
        assert_eq!(Some(0), fleet.collector.wait_exit(DEADLINE).await.code());
        assert_eq!(2, fleet.snapshots(1).await);
        assert_eq!(Vec::<String>::new(), left_behind(&fleet.repository).await);
    }

    async fn a_store_that_outlasts_the_shutdown_timeout_is_undone(powa: Powa) {
        let mut fleet = Fleet::with(powa, json!({ "shutdown_timeout": 1 })).await;
        let gate = Gate::in_store(&fleet.cluster).await;
        fleet.force(1).await;
        gate.reached().await;
        let began = Instant::now();
        assert_eq!(Some(0), fleet.end_by(Signal::SIGTERM).await);
        assert!(began.elapsed() >= Duration::from_secs(1));
        fleet.collector.wait_for_log("127.0.1.1:").await;
        assert!(fleet.collector.log().contains("the store in progress was broken off"));
        // The repository is not left to work for nobody either.
        wait_until("the store has ended", DEADLINE, async || {
            sessions(&fleet.repository, "PoWA%").await.is_empty()
        }).await;
        gate.open();
        assert_eq!(1, fleet.snapshots(1).await);
        assert_eq!(Vec::<String>::new(), left_behind(&fleet.repository).await);
    }

    async fn a_second_signal_ends_the_collector_at_once(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        let gate = Gate::in_store(&fleet.cluster).await;
        fleet.force(1).await;
        gate.reached().await;
        fleet.collector.signal(Signal::SIGTERM);
        fleet.collector.wait_for_log("stopping").await;
        assert_eq!(Some(1), fleet.end_by(Signal::SIGINT).await);
        gate.open();
        wait_until("the store is undone", DEADLINE, async || {
            sessions(&fleet.repository, "PoWA%").await.is_empty()
        }).await;
        assert_eq!(1, fleet.snapshots(1).await);
        assert_eq!(Vec::<String>::new(), left_behind(&fleet.repository).await);
    }

    async fn a_server_that_is_not_registered_properly_is_told_of_and_left_out(powa: Powa) {
        let (cluster, repository) = cluster(powa).await;
        register_idle(&repository, monitored(&cluster, 1)).await;
        repository.batch_execute(
            "INSERT INTO powa_servers (hostname, port, username, dbname)
                VALUES ('localhost', 5432, 'postgres', 'monitored')",
        ).await.unwrap();
        let mut fleet = Fleet::of(cluster, repository, json!({})).await;
        let told = fleet.collector.wait_for_log("no row in powa_snapshot_metas").await;
        assert!(told.contains("ERROR") && told.contains("localhost:5432"), "{told}");
        fleet.wait_for_states(r#"{"1": "running", "2": "stopped"}"#).await;
        assert_eq!("FORCE_SNAPSHOT ERROR Server id 2 not found", fleet.ask("FORCE_SNAPSHOT", "2").await);

        let mend = format!("UPDATE powa_servers SET port = {} WHERE id = 2", fleet.cluster.port());
        fleet.execute(&mend).await;
        fleet.execute("INSERT INTO powa_snapshot_metas (srvid) VALUES (2)").await;
        assert_eq!("RELOAD OK OK", fleet.ask("RELOAD", "").await);
        fleet.wait_for_states(r#"{"1": "running", "2": "running"}"#).await;
    }

    async fn sessions_say_whose_they_are(powa: Powa) {
        let (cluster, repository) = cluster(powa).await;
        // PostgreSQL keeps 63 bytes of such a name.
        register_idle(&repository, monitored(&cluster, 1).alias(&"x".repeat(80))).await;
        register_idle(&repository, monitored(&cluster, 2)).await;
        let mut fleet = Fleet::of(cluster, repository, json!({ "use_server_alias": true })).await;
        fleet.wait_for_states(r#"{"1": "running", "2": "running"}"#).await;
        for (id, remote, repository) in [
            (1, &format!("PoWA collector - worker {}", "x".repeat(39)),
                &format!("PoWA collector - repo_conn for worker {}", "x".repeat(25))),
            (2, &format!("PoWA collector - worker 127.0.1.2:{}", fleet.cluster.port()),
                &format!("PoWA collector - repo_conn for worker 127.0.1.2:{}", fleet.cluster.port())),
        ] {
            fleet.force(id).await;
            fleet.wait_for_snapshots(id, 2).await;
            wait_until(remote, DEADLINE, async || sessions_in(&fleet, "monitored", remote).await == 1).await;
            // powa_take_snapshot gives the session another name, for a while.
            wait_until(repository, DEADLINE, async || sessions_in(&fleet, "powa", repository).await > 0).await;
        }
        let main = format!("PoWA collector - main thread ({})", env!("CARGO_PKG_VERSION"));
        assert_eq!(1, sessions_in(&fleet, "powa", &main).await);
        let others = "SELECT application_name FROM pg_stat_activity
            WHERE application_name LIKE 'PoWA%' AND application_name NOT SIMILAR TO
                'PoWA collector - (main thread|repo_conn for worker|worker) %'";
        assert!(fleet.repository.query(others, &[]).await.unwrap().is_empty());
    }

    async fn sessions_do_not_wait_for_locks_for_ever(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        tell_lock_timeouts(&fleet).await;
        fleet.force(1).await;
        fleet.wait_for_snapshots(1, 2).await;
        let log = fleet.cluster.log();
        assert!(log.contains("lock_timeout in monitored is 2s"));
        assert!(log.contains("lock_timeout in powa is 2s"));
    }

    async fn a_lock_timeout_that_somebody_has_set_is_kept(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        tell_lock_timeouts(&fleet).await;
        fleet.execute("ALTER DATABASE monitored SET lock_timeout = '5s'").await;
        fleet.execute("ALTER ROLE postgres SET lock_timeout = '6s'").await;
        fleet.execute("ALTER ROLE postgres IN DATABASE monitored SET lock_timeout = '7s'").await;
        assert!(fleet.collector.stop().await.success());
        fleet.collector = Collector::start(config(&fleet.cluster, json!({})));
        fleet.collector.wait_for_log(LISTENING).await;
        fleet.wait_for_states(r#"{"1": "running"}"#).await;
        age_snapshot(&fleet.repository, 1).await;
        fleet.force(1).await;
        fleet.wait_for_snapshots(1, 2).await;
        let log = fleet.cluster.log();
        assert!(log.contains("lock_timeout in monitored is 7s"));
        assert!(log.contains("lock_timeout in powa is 6s"));
    }
}

/// With one server, which does not notice soon that a client has gone: a query ends only when it is cancelled.
async fn where_queries_outlive_their_sessions(powa: Powa) -> Fleet {
    let cluster = Cluster::builder(powa).setting("client_connection_check_interval", "1h").start();
    let (cluster, repository) = databases(cluster).await;
    register_idle(&repository, monitored(&cluster, 1)).await;
    let mut fleet = Fleet::of(cluster, repository, json!({})).await;
    fleet.wait_for_states(r#"{"1": "running"}"#).await;
    fleet
}

/// A collector at work on a server that is a cluster of its own.
async fn with_a_remote(powa: Powa) -> (Fleet, Cluster) {
    let (repository, remote) = (Cluster::start(powa), Cluster::start(powa));
    tokio::join!(repository.create_monitored("powa", &[]), remote.create_monitored("monitored", &[]));
    let client = repository.client("powa").await;
    register_idle(&client, Registration::of(&remote, "monitored")).await;
    let mut fleet = Fleet::of(repository, client, json!({})).await;
    fleet.wait_for_states(r#"{"1": "running"}"#).await;
    (fleet, remote)
}

async fn remote_sessions(remote: &Cluster) -> Vec<i32> {
    sessions(&remote.client("monitored").await, "PoWA collector - worker %").await
}

async fn sessions_in(fleet: &Fleet, dbname: &str, name: &str) -> i64 {
    let statement = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND application_name = $2";
    fleet.repository.query_one(statement, &[&dbname, &name]).await.unwrap().get(0)
}

/// Makes the collector's sessions on both sides write their lock_timeout to the server's log.
async fn tell_lock_timeouts(fleet: &Fleet) {
    for (dbname, function) in [("monitored", "powa_databases_src"), ("powa", "powa_take_snapshot")] {
        let client = fleet.cluster.client(dbname).await;
        client
            .batch_execute(
                "CREATE FUNCTION public.tell_lock_timeout() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
                    RAISE LOG 'lock_timeout in % is %', current_database(), current_setting('lock_timeout');
                END $$",
            )
            .await
            .expect("create a function");
        prepend(&client, function, "SELECT public.tell_lock_timeout()").await;
    }
}

/// The tables of rows on their way that have any.
async fn left_behind(repository: &Client) -> Vec<String> {
    let statement = "SELECT c.relname::text FROM pg_class AS c
        WHERE c.relkind = 'r' AND c.relname LIKE '%\\_src\\_tmp' AND (xpath('/row/n/text()', query_to_xml(
            format('SELECT count(*) AS n FROM public.%I', c.relname), true, true, '')))[1]::text <> '0'";
    repository.query(statement, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

impl Fleet {
    /// Sends a signal, and gives the exit status, which must come at once.
    async fn end_by(&mut self, signal: Signal) -> Option<i32> {
        self.collector.signal(signal);
        self.collector.wait_exit(AT_ONCE).await.code()
    }
}
