//! Reading the configuration and the servers again: everything that differs takes effect and is told in the
//! log, everything else is left alone.

mod fleet;
mod support;

use fleet::{Fleet, LISTENING, cluster, config, databases, monitored, register_idle, wait_for_states};
use serde_json::{Value, json};
use support::{Cluster, Control, DEADLINE, Powa, Signal, on_both_versions, wait_until};

on_both_versions! {
    async fn sighup_starts_and_stops_workers(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        follows_the_servers(&mut fleet, async |fleet| fleet.collector.signal(Signal::SIGHUP)).await;
    }

    async fn the_reload_command_starts_and_stops_workers(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        follows_the_servers(&mut fleet, async |fleet| {
            assert_eq!("RELOAD OK OK", fleet.ask("RELOAD", "").await);
        }).await;
    }

    async fn workers_start_and_stop_by_themselves(powa: Powa) {
        let mut fleet = Fleet::with(powa, json!({ "servers_refresh_interval": 1 })).await;
        follows_the_servers(&mut fleet, async |_| {}).await;
    }

    async fn a_changed_frequency_is_taken_over(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        fleet.execute("UPDATE powa_servers SET frequency = 5 WHERE id = 1").await;
        fleet.reload().await;
        fleet.collector.wait_for_log("frequency 3600s becomes 5s").await;
        let before = fleet.snapshots(1).await;
        fleet.wait_for_snapshots(1, before + 1).await;
        let first = fleet.snapshot_time().await;
        fleet.wait_for_snapshots(1, before + 2).await;
        // 5 s from one fetch to the next; the stores of a busy machine may come closer.
        let pace = fleet.snapshot_time().await - first;
        assert!(pace > 2.0, "{pace}");
    }

    async fn a_longer_period_is_taken_over(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        let second = fleet.register(2).await;
        fleet.execute("UPDATE powa_servers SET frequency = 5 WHERE id > 0").await;
        fleet.reload().await;
        fleet.execute("UPDATE powa_servers SET frequency = 3600 WHERE id = 1").await;
        fleet.reload().await;
        fleet.collector.wait_for_log("frequency 5s becomes 3600s").await;
        // Two of the other server: what had begun of the first has ended, and one period has passed.
        let seen = fleet.snapshots(second).await;
        fleet.wait_for_snapshots(second, seen + 1).await;
        let last = fleet.snapshots(1).await;
        fleet.wait_for_snapshots(second, seen + 2).await;
        assert_eq!(last, fleet.snapshots(1).await);
    }

    async fn a_server_is_switched_off_and_on_again(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        fleet.execute("UPDATE powa_servers SET frequency = -1 WHERE id = 1").await;
        fleet.reload().await;
        fleet.collector.wait_for_log("not to be collected any more").await;
        fleet.wait_for_states("{}").await;
        fleet.wait_for_no_session(1).await;
        fleet.execute("UPDATE powa_servers SET frequency = 3600 WHERE id = 1").await;
        fleet.reload().await;
        fleet.wait_for_states(r#"{"1": "running"}"#).await;
        fleet.force(1).await;
        fleet.wait_for_snapshots(1, 2).await;
    }

    async fn a_changed_password_takes_effect_and_is_not_shown(powa: Powa) {
        let hba = "host all watcher all scram-sha-256\nhost all all all trust";
        let (cluster, repository) = databases(Cluster::builder(powa).hba(hba).start()).await;
        let statement = "CREATE ROLE watcher SUPERUSER LOGIN PASSWORD 'first-secret'";
        repository.batch_execute(statement).await.unwrap();
        let server = monitored(&cluster, 1).credentials("watcher", Some("first-secret"));
        register_idle(&repository, server).await;
        let mut fleet = Fleet::of(cluster, repository, json!({ "debug": true })).await;
        fleet.wait_for_states(r#"{"1": "running"}"#).await;
        let before = fleet.sessions(1).await;

        fleet.execute("ALTER ROLE watcher PASSWORD 'second-secret'").await;
        fleet.execute("UPDATE powa_servers SET password = 'second-secret' WHERE id = 1").await;
        fleet.reload().await;
        fleet.collector.wait_for_log("password changes").await;
        fleet.wait_for_new_session(1, &before).await;

        fleet.execute("UPDATE powa_servers SET password = 'wrong-secret' WHERE id = 1").await;
        fleet.reload().await;
        fleet.wait_for_no_session(1).await;
        fleet.wait_for_states(r#"{"1": "no connection to remote server"}"#).await;
        assert!(!fleet.collector.log().contains("-secret"));
    }

    async fn a_changed_alias_renames_the_sessions(powa: Powa) {
        let (cluster, repository) = cluster(powa).await;
        register_idle(&repository, monitored(&cluster, 1).alias("first name")).await;
        let mut fleet = Fleet::of(cluster, repository, json!({ "use_server_alias": true })).await;
        fleet.wait_for_session("PoWA collector - worker first name").await;
        fleet.execute("UPDATE powa_servers SET alias = 'second name' WHERE id = 1").await;
        fleet.reload().await;
        fleet.collector.wait_for_log(r#"alias Some("first name") becomes Some("second name")"#).await;
        fleet.wait_for_session("PoWA collector - worker second name").await;
        let no_alias = config(&fleet.cluster, json!({ "use_server_alias": false }));
        fleet.collector.write_config(&no_alias);
        fleet.reload().await;
        fleet.collector.wait_for_log("use_server_alias: true becomes false").await;
        wait_until("the session has the server's name", DEADLINE, async || {
            fleet.sessions(1).await.len() == 1
        }).await;
    }

    async fn the_collector_moves_to_another_repository(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        let mut other = fleet.other_repository().await;
        fleet.collector.write_config(&fleet.config_of_other_repository());
        assert_eq!("RELOAD OK OK", fleet.ask("RELOAD", "").await);
        fleet.collector.wait_for_log("repository.dsn: ").await;
        fleet.collector.wait_for_log(&fleet.listening_on("other")).await;
        wait_for_states(&mut other, r#"{"1": "running"}"#).await;
        fleet.wait_for_no_session(1).await;
        assert_eq!(1, fleet.sessions(2).await.len());
        assert!(other.ask("FORCE_SNAPSHOT", "1").await.starts_with("FORCE_SNAPSHOT OK Snapshot "));
        fleet::wait_for_snapshots(other.client(), 1, 2).await;
        // In the former one nothing is left.
        let sessions = "SELECT FROM pg_stat_activity
            WHERE datname = 'powa' AND application_name LIKE 'PoWA collector%'";
        wait_until("all sessions have ended", DEADLINE, async || {
            fleet.repository.query(sessions, &[]).await.unwrap().is_empty()
        }).await;
        assert_eq!(1, fleet.snapshots(1).await);
    }

    async fn servers_of_the_former_repository_are_not_stored_in_another(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        let mut other = fleet.other_repository().await;
        // Their numbers are the same; whose they are is not known before the list can be read.
        let lock = fleet.cluster.client("other").await;
        lock.batch_execute("BEGIN; LOCK TABLE powa_servers").await.unwrap();
        fleet.collector.write_config(&fleet.config_of_other_repository());
        fleet.collector.signal(Signal::SIGHUP);
        fleet.collector.wait_for_log("the servers could not be read").await;
        fleet.collector.wait_for_log(&fleet.listening_on("other")).await;
        wait_for_states(&mut other, "{}").await;
        fleet.wait_for_no_session(1).await;
        lock.batch_execute("COMMIT").await.unwrap();
        assert_eq!("RELOAD OK OK", other.ask("RELOAD", "").await);
        wait_for_states(&mut other, r#"{"1": "running"}"#).await;
        assert_eq!(1, fleet.sessions(2).await.len());
    }

    async fn debug_is_switched_on_and_off(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        fleet.wait_for_states(r#"{"1": "running"}"#).await;
        assert!(!fleet.collector.log().contains(" DEBUG "));
        fleet.collector.write_config(&config(&fleet.cluster, json!({ "debug": true })));
        fleet.reload().await;
        fleet.collector.wait_for_log("debug: false becomes true").await;
        fleet.ask("WORKERS_STATUS", "").await;
        fleet.collector.wait_for_log(" DEBUG ").await;
        fleet.collector.write_config(&config(&fleet.cluster, json!({ "debug": false })));
        fleet.reload().await;
        let quiet = fleet.collector.log_position();
        fleet.reload().await;
        assert!(!fleet.collector.log().lines().skip(quiet).any(|line| line.contains(" DEBUG ")));
    }

    async fn an_invalid_file_is_reported_and_the_old_one_stays(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        let session = fleet.sessions(1).await;
        let good = std::fs::read(fleet.collector.config_path()).unwrap();
        for (text, reason) in [
            ("{\n\"repository\": {", "line 2"),
            (r#"{ "repository": { "dsn": 5 } }"#, "key repository.dsn"),
            ("{}", "key repository.dsn"),
            (r#"{ "repository": { "dsn": "host=h" }, "timeouts": { "query": 0 } }"#, "key timeouts.query"),
        ] {
            std::fs::write(fleet.collector.config_path(), text).unwrap();
            let answer = fleet.ask("RELOAD", "").await;
            assert!(answer.starts_with("RELOAD ERROR ") && answer.contains(reason), "{answer}");
            let told = format!("the new configuration cannot be used, the old one stays: {}", &answer[13..]);
            fleet.collector.wait_for_log(&told).await;
        }
        std::fs::remove_file(fleet.collector.config_path()).unwrap();
        let answer = fleet.ask("RELOAD", "").await;
        assert!(answer.starts_with("RELOAD ERROR ") && answer.contains("cannot be read"), "{answer}");

        assert_eq!(r#"WORKERS_STATUS OK {"1": "running"}"#, fleet.ask("WORKERS_STATUS", "").await);
        assert_eq!(session, fleet.sessions(1).await);
        std::fs::write(fleet.collector.config_path(), good).unwrap();
        assert_eq!("RELOAD OK OK", fleet.ask("RELOAD", "").await);
    }

    async fn servers_are_followed_also_with_an_invalid_file(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        std::fs::write(fleet.collector.config_path(), "{").unwrap();
        fleet.register(2).await;
        assert!(fleet.ask("RELOAD", "").await.starts_with("RELOAD ERROR "));
        fleet.wait_for_states(r#"{"1": "running", "2": "running"}"#).await;
    }

    async fn servers_that_cannot_be_read_stay_as_they_are(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        let session = fleet.sessions(1).await;
        fleet.execute("BEGIN; LOCK TABLE powa_servers").await;
        let answer = fleet.ask("RELOAD", "").await;
        assert!(answer.starts_with("RELOAD ERROR ") && answer.contains("lock timeout"), "{answer}");
        fleet.collector.wait_for_log("the servers could not be read").await;
        fleet.execute("COMMIT").await;
        assert_eq!(r#"WORKERS_STATUS OK {"1": "running"}"#, fleet.ask("WORKERS_STATUS", "").await);
        assert_eq!(session, fleet.sessions(1).await);
        assert_eq!("RELOAD OK OK", fleet.ask("RELOAD", "").await);
    }

    async fn reload_is_answered_when_the_work_is_done(powa: Powa) {
        let (cluster, repository) = cluster(powa).await;
        repository.batch_execute("ALTER DATABASE powa SET lock_timeout = '1min'").await.unwrap();
        let mut fleet = Fleet::of(cluster, repository, json!({})).await;
        fleet.reload().await;
        fleet.register(1).await;
        fleet.execute("BEGIN; LOCK TABLE powa_servers").await;
        fleet.control.send("RELOAD", "").await;
        let waiting = "SELECT FROM pg_locks WHERE relation = 'powa_servers'::regclass AND NOT granted";
        wait_until("the servers are being read", DEADLINE, async || {
            !fleet.repository.query(waiting, &[]).await.unwrap().is_empty()
        }).await;
        // Others are answered meanwhile.
        assert_eq!("WORKERS_STATUS OK {}", fleet.ask("WORKERS_STATUS", "").await);
        fleet.execute("COMMIT").await;
        assert_eq!("RELOAD OK OK", fleet.answer().await);
        assert!(fleet.ask("WORKERS_STATUS", "").await.starts_with(r#"WORKERS_STATUS OK {"1": "#));
    }

    async fn a_changed_interval_of_refreshes_takes_effect(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        fleet.collector.write_config(&config(&fleet.cluster, json!({ "servers_refresh_interval": 1 })));
        fleet.reload().await;
        fleet.collector.wait_for_log("servers_refresh_interval: ").await;
        fleet.register(2).await;
        fleet.wait_for_states(r#"{"1": "running", "2": "running"}"#).await;
    }
}

/// Adds a server and removes one, twice, and lets the collector take notice by `notice`. Server 1 is not
/// touched.
async fn follows_the_servers(fleet: &mut Fleet, mut notice: impl AsyncFnMut(&mut Fleet)) {
    let untouched = fleet.sessions(1).await;
    assert_eq!(1, untouched.len());
    for number in [2, 3] {
        let id = fleet.register(number).await;
        let position = fleet.collector.log_position();
        notice(fleet).await;
        fleet.wait_for_states(&format!(r#"{{"1": "running", "{id}": "running"}}"#)).await;
        let start = format!("srvid={id}");
        fleet
            .collector
            .wait_for_line(position, "the worker starts", |line| {
                line.contains(&start) && line.contains(&format!("worker for 127.0.1.{number}:"))
            })
            .await;
        assert_eq!(1, fleet.sessions(number).await.len());

        fleet.execute(&format!("DELETE FROM powa_servers WHERE id = {id}")).await;
        let position = fleet.collector.log_position();
        notice(fleet).await;
        fleet.wait_for_states(r#"{"1": "running"}"#).await;
        fleet
            .collector
            .wait_for_line(position, "the worker stops", |line| {
                line.contains(&start) && line.contains("not to be collected any more")
            })
            .await;
        fleet.wait_for_no_session(number).await;
    }
    assert_eq!(untouched, fleet.sessions(1).await);
}

impl Fleet {
    async fn reload(&mut self) {
        assert_eq!("RELOAD OK OK", self.ask("RELOAD", "").await);
    }

    async fn wait_for_session(&self, name: &str) {
        wait_until(name, DEADLINE, async || fleet::sessions(&self.repository, name).await.len() == 1).await;
    }

    async fn wait_for_no_session(&self, number: u8) {
        wait_until("no session with the server", DEADLINE, async || self.sessions(number).await.is_empty())
            .await;
    }

    /// Waits until there is a session that is none of those before.
    async fn wait_for_new_session(&self, number: u8, before: &[i32]) {
        wait_until("another session with the server", DEADLINE, async || {
            self.sessions(number).await.first().is_some_and(|session| !before.contains(session))
        })
        .await;
    }

    /// When the last snapshot of server 1 was taken, in seconds.
    async fn snapshot_time(&self) -> f64 {
        let statement = "SELECT extract(epoch FROM snapts)::float8 FROM powa_snapshot_metas WHERE srvid = 1";
        self.repository.query_one(statement, &[]).await.unwrap().get(0)
    }

    /// Makes the repository `other`, with a server 1 that is another one, and gives a client of it.
    async fn other_repository(&self) -> Control {
        self.cluster.create_monitored("other", &[]).await;
        let other = Control::connect(&self.cluster, "other").await;
        assert_eq!(1, register_idle(other.client(), monitored(&self.cluster, 2)).await);
        other
    }

    fn listening_on(&self, dbname: &str) -> String {
        format!("{LISTENING} postgres@127.0.0.1:{}/{dbname}", self.cluster.port())
    }

    fn config_of_other_repository(&self) -> Value {
        let mut config = config(&self.cluster, json!({}));
        config["repository"]["dsn"] = self.cluster.superuser_dsn("other").into();
        config
    }
}
