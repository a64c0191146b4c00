//! The control channel: each command with each of its answers, who may send it, and that nothing that is sent
//! or under way keeps the collector from answering.

mod fleet;
mod support;

use fleet::{Fleet, Gate, LISTENING, cluster, monitored, register_idle};
use serde_json::{Map, Value, json};
use support::{Control, DEADLINE, Powa, Registration, on_both_versions, quote_identifier, wait_until};

on_both_versions! {
    async fn commands_may_end_with_a_space(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        for (command, arguments, expected) in [
            ("RELOAD", "", "OK OK"),
            ("WORKERS_STATUS", "", r#"OK {"1": "running"}"#),
            ("WORKERS_STATUS", " 1", r#"OK {"1": "running"}"#),
            ("FORCE_SNAPSHOT", " 99", "ERROR Server id 99 not found"),
            ("REFRESH_DB_CAT", " 1 0", "OK Catalogs will be refreshed during the next snapshot"),
        ] {
            for end in ["", " "] {
                let channel = fleet.control.channel();
                fleet.control.notify_raw(&format!("{command} {channel}{arguments}{end}")).await;
                assert_eq!(format!("{command} {expected}"), fleet.answer().await);
            }
        }
    }

    async fn reload_without_a_channel_is_carried_out_and_answered_nowhere(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        fleet.control.client().batch_execute(r#"LISTEN "-""#).await.unwrap();
        for (number, payload) in [(2, "RELOAD"), (3, "RELOAD "), (4, "RELOAD -"), (5, "RELOAD - x")] {
            let id = fleet.register(number).await;
            fleet.control.notify_raw(payload).await;
            let expected = format!(r#"WORKERS_STATUS OK {{"{id}": "running"}}"#);
            wait_until(payload, DEADLINE, async || {
                fleet.ask("WORKERS_STATUS", &id.to_string()).await == expected
            }).await;
        }
        assert_eq!("RELOAD OK OK", fleet.ask("RELOAD", "").await);
        assert!(fleet.control.received().is_empty());
    }

    async fn workers_status_names_all_servers_or_the_one_asked_for(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        fleet.register(2).await;
        fleet.ask("RELOAD", "").await;
        let all = r#"{"1": "running", "2": "running"}"#;
        fleet.wait_for_states(all).await;
        let second = r#"{"2": "running"}"#;
        let cases = [
            ("2", second), ("2 1", second), ("2 x y", second), ("99", "{}"), ("0", "{}"),
            ("99999999999999999999", "{}"), ("x", all), ("1x", all), ("-1", all), ("x 2", all),
        ];
        for (arguments, expected) in cases {
            let answer = fleet.ask("WORKERS_STATUS", arguments).await;
            assert_eq!(format!("WORKERS_STATUS OK {expected}"), answer, "{arguments}");
        }
    }

    async fn workers_status_without_a_channel_is_answered_nowhere(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        fleet.control.client().batch_execute(r#"LISTEN "-"; LISTEN "1""#).await.unwrap();
        for payload in ["WORKERS_STATUS", "WORKERS_STATUS ", "WORKERS_STATUS -", "WORKERS_STATUS - 1"] {
            fleet.control.notify_raw(payload).await;
        }
        assert_eq!("RELOAD OK OK", fleet.ask("RELOAD", "").await);
        assert!(fleet.control.received().is_empty());
    }

    async fn a_forced_snapshot_is_taken_at_once_and_not_twice_in_10_seconds(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        let before = fleet.snapshots(1).await;
        assert_eq!("FORCE_SNAPSHOT OK Snapshot in progress", fleet.ask("FORCE_SNAPSHOT", "1").await);
        fleet.wait_for_snapshots(1, before + 1).await;
        let too_soon = "FORCE_SNAPSHOT ERROR Last snapshot was less than 10s. ago";
        fleet.wait_for_answer("FORCE_SNAPSHOT", "1", too_soon).await;
    }

    async fn a_snapshot_is_not_forced_while_one_is_taken(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        let gate = Gate::in_fetch(&fleet.cluster).await;
        let before = fleet.snapshots(1).await;
        fleet.force(1).await;
        gate.reached().await;
        let refused = "FORCE_SNAPSHOT ERROR A snapshot is already in progress";
        assert_eq!(refused, fleet.ask("FORCE_SNAPSHOT", "1").await);
        gate.open();
        fleet.wait_for_snapshots(1, before + 1).await;
    }

    async fn a_snapshot_forced_of_a_server_that_is_away_is_taken_when_it_is_back(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        let before = fleet.snapshots(1).await;
        let admin = fleet.cluster.client("postgres").await;
        admin.batch_execute("ALTER DATABASE monitored ALLOW_CONNECTIONS false").await.unwrap();
        admin.batch_execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'monitored'",
        ).await.unwrap();
        fleet.wait_for_states(r#"{"1": "no connection to remote server"}"#).await;
        assert_eq!("FORCE_SNAPSHOT OK Snapshot wil begin shortly", fleet.ask("FORCE_SNAPSHOT", "1").await);
        let refused = "FORCE_SNAPSHOT ERROR A forced snapshot is already scheduled";
        assert_eq!(refused, fleet.ask("FORCE_SNAPSHOT", "1").await);
        admin.batch_execute("ALTER DATABASE monitored ALLOW_CONNECTIONS true").await.unwrap();
        fleet.wait_for_snapshots(1, before + 1).await;
    }

    async fn a_snapshot_forced_while_its_server_is_connected_to_is_not_forgotten(powa: Powa) {
        let (cluster, repository) = cluster(powa).await;
        // It accepts and says nothing, for as long as the test wants.
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = silent.local_addr().unwrap().port();
        register_idle(&repository, Registration::new("127.0.0.1", port)).await;
        let mut fleet = Fleet::of(cluster, repository, json!({})).await;
        let (connection, _) = silent.accept().await.unwrap();
        assert_eq!("FORCE_SNAPSHOT OK Snapshot wil begin shortly", fleet.ask("FORCE_SNAPSHOT", "1").await);
        drop((connection, silent));
        fleet.wait_for_states(r#"{"1": "no connection to remote server"}"#).await;
        let refused = "FORCE_SNAPSHOT ERROR A forced snapshot is already scheduled";
        assert_eq!(refused, fleet.ask("FORCE_SNAPSHOT", "1").await);
    }

    async fn what_is_wrong_with_a_force_snapshot_is_told(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        for (arguments, reason) in [
            ("99", "Server id 99 not found"),
            ("0", "Server id 0 not found"),
            ("one", "invalid remote server id one"),
            ("1x", "invalid remote server id 1x"),
            ("99999999999", "invalid remote server id 99999999999"),
        ] {
            let answer = fleet.ask("FORCE_SNAPSHOT", arguments).await;
            assert_eq!(format!("FORCE_SNAPSHOT ERROR {reason}"), answer);
        }
        let answer = fleet.ask("FORCE_SNAPSHOT", "").await;
        let malformed = format!("\"FORCE_SNAPSHOT {}\"", fleet.control.channel());
        assert!(answer.starts_with("FORCE_SNAPSHOT ERROR ") && answer.contains(&malformed), "{answer}");
    }

    async fn catalogs_can_be_asked_for_again_before_the_next_snapshot(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        let before = fleet.snapshots(1).await;
        let expected = "REFRESH_DB_CAT OK Catalogs will be refreshed during the next snapshot";
        for arguments in ["1 1 monitored", "1 0", "1 2 monitored postgres", "1 1 no_such_database"] {
            assert_eq!(expected, fleet.ask("REFRESH_DB_CAT", arguments).await, "{arguments}");
        }
        fleet.force(1).await;
        fleet.wait_for_snapshots(1, before + 1).await;
    }

    async fn what_is_wrong_with_a_refresh_db_cat_is_told(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        for (arguments, reason) in [
            ("99 0", "Server id 99 not found"),
            ("one 0", "invalid remote server id one"),
            ("1 many", "invalid number of databases many"),
            ("1 -1", "invalid number of databases -1"),
            ("1 2 a", "Caller asked for 2 db, but found 1: a"),
            ("1 1 a b", "Caller asked for 1 db, but found 2: a, b"),
        ] {
            let answer = fleet.ask("REFRESH_DB_CAT", arguments).await;
            assert_eq!(format!("REFRESH_DB_CAT ERROR {reason}"), answer);
        }
        let answer = fleet.ask("REFRESH_DB_CAT", "1").await;
        let malformed = format!("\"REFRESH_DB_CAT {} 1\"", fleet.control.channel());
        assert!(answer.starts_with("REFRESH_DB_CAT ERROR ") && answer.contains(&malformed), "{answer}");
    }

    async fn an_unknown_command_is_answered_with_its_name(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        for command in ["MAKE_COFFEE", "reload", "RELOAD,"] {
            let expected = format!("{command} UNKNOWN Message \"{command}\" invalid, command ignored");
            assert_eq!(expected, fleet.ask(command, "").await);
        }
    }

    async fn an_answer_that_is_too_long_is_said_to_be(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        let command = "X".repeat(3990);
        assert_eq!(format!("{command} KO {{ANSWER TOO LONG}}"), fleet.ask(&command, "").await);
        let server = "9".repeat(7960);
        assert_eq!("FORCE_SNAPSHOT KO {ANSWER TOO LONG}", fleet.ask("FORCE_SNAPSHOT", &server).await);
    }

    async fn hostile_messages_leave_the_collector_answering(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        for payload in [
            "", " ", "   ", "'", "\"", "\\", "%s%n", "\n", "RELOAD\n", "RELOAD\r\n-\t1",
            "\u{1}\u{feff}🐘 🐘 🐘",
            "RELOAD '); DROP TABLE powa_servers; --",
            "FORCE_SNAPSHOT - 1;DROP/**/TABLE/**/powa_servers",
            "FORCE_SNAPSHOT - -2147483649",
            "REFRESH_DB_CAT - 1 18446744073709551616 x",
            "REFRESH_DB_CAT - 1 2 '; x\"",
            &"x".repeat(7999), &" ".repeat(7999), &"x ".repeat(3999), &"é".repeat(3999),
            &format!("WORKERS_STATUS {}", "c".repeat(64)), &format!("RELOAD {}", "é".repeat(3000)),
        ] {
            fleet.control.notify_raw(payload).await;
        }
        assert_eq!("RELOAD OK OK", fleet.ask("RELOAD", "").await);
        assert_eq!(r#"WORKERS_STATUS OK {"1": "running"}"#, fleet.ask("WORKERS_STATUS", "").await);
        // None of them has cost the connection either.
        assert_eq!(1, fleet.collector.log().matches(LISTENING).count());
    }

    async fn the_channel_of_an_answer_is_a_value(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        for channel in ["it's", "\"it\"", "MixedCase", "ÄÖÜ", "$1", "x');DROP/**/TABLE/**/powa_servers;--"] {
            let listen = format!("LISTEN {}", quote_identifier(channel));
            fleet.control.client().batch_execute(&listen).await.unwrap();
            fleet.control.notify_raw(&format!("WORKERS_STATUS {channel} 1")).await;
            let answer = fleet.control.next(DEADLINE).await.unwrap();
            assert_eq!(channel, answer.channel());
            assert_eq!(r#"WORKERS_STATUS OK {"1": "running"}"#, answer.payload());
        }
    }

    async fn a_plain_role_may_do_nothing(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        // What counts before PostgreSQL 14 only.
        fleet.execute("CREATE ROLE plain LOGIN; GRANT INSERT ON powa_statements TO plain").await;
        let mut plain = Control::connect_as(&fleet.cluster, "plain", "powa").await;
        let before = fleet.snapshots(1).await;
        fleet.register(2).await;
        for command in ["RELOAD", "WORKERS_STATUS", "FORCE_SNAPSHOT", "REFRESH_DB_CAT", "MAKE_COFFEE"] {
            assert_eq!(format!("{command} ERROR Permission denied"), plain.ask(command, "1 0").await);
        }
        assert_eq!("FORCE_SNAPSHOT ERROR Permission denied", plain.ask("FORCE_SNAPSHOT", "1").await);
        assert_eq!(r#"WORKERS_STATUS OK {"1": "running"}"#, fleet.ask("WORKERS_STATUS", "").await);
        assert_eq!(before, fleet.snapshots(1).await);
    }

    async fn roles_that_hold_the_right_one_may_command(powa: Powa) {
        let fleet = Fleet::start(powa).await;
        let mut roles = vec![("pg_signal_backend", true), ("pg_monitor", false)];
        if powa.is_v5() {
            fleet.execute("UPDATE powa_roles SET rolname = 'Fleet \"admin\"' WHERE powa_role = 'powa_admin';
                ALTER ROLE powa_admin RENAME TO \"Fleet \"\"admin\"\"\"").await;
            roles.extend([
                ("powa_signal_backend", true), ("powa_write_all_data", true), ("Fleet \"admin\"", true),
                ("powa_read_all_data", false), ("powa_read_all_metrics", false), ("powa_snapshot", false),
            ]);
        }
        for (role, may) in roles {
            let role = quote_identifier(role);
            fleet.execute(&format!("CREATE ROLE member LOGIN; GRANT {role} TO member")).await;
            let mut member = Control::connect_as(&fleet.cluster, "member", "powa").await;
            let expected = if may { "RELOAD OK OK" } else { "RELOAD ERROR Permission denied" };
            assert_eq!(expected, member.ask("RELOAD", "").await, "{role}");
            fleet.execute("DROP ROLE member").await;
        }
    }

    async fn a_role_that_would_have_to_set_role_first_may_not_command(powa: Powa) {
        let fleet = Fleet::start(powa).await;
        fleet.execute("CREATE ROLE member LOGIN NOINHERIT; GRANT pg_signal_backend TO member").await;
        let mut member = Control::connect_as(&fleet.cluster, "member", "powa").await;
        assert_eq!("RELOAD ERROR Permission denied", member.ask("RELOAD", "").await);
    }

    async fn a_sender_that_is_gone_is_refused(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        let sender = Control::connect(&fleet.cluster, "powa").await;
        let pid: i32 = sender.client().query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
        fleet.collector.suspend().await;
        sender.notify_raw(&format!("RELOAD {}", fleet.control.channel())).await;
        drop(sender);
        let gone = "SELECT FROM pg_stat_activity WHERE pid = $1";
        wait_until("the sender is gone", DEADLINE, async || {
            fleet.repository.query(gone, &[&pid]).await.unwrap().is_empty()
        }).await;
        fleet.collector.resume();
        assert_eq!("RELOAD ERROR Permission denied", fleet.answer().await);
    }

    async fn commands_are_answered_while_a_server_is_read(powa: Powa) {
        let mut fleet = Fleet::start(powa).await;
        let gate = Gate::in_fetch(&fleet.cluster).await;
        fleet.force(1).await;
        gate.reached().await;
        fleet.answers_everything().await;
        gate.open();
        fleet.wait_for_snapshots(1, 2).await;
    }

    async fn commands_are_answered_while_all_connections_of_the_repository_are_busy(powa: Powa) {
        let (cluster, repository) = cluster(powa).await;
        for number in [1, 2] {
            register_idle(&repository, monitored(&cluster, number)).await;
        }
        let keys = json!({ "repository": { "max_connections": 1 } });
        let mut fleet = Fleet::of(cluster, repository, keys).await;
        fleet.wait_for_states(r#"{"1": "running", "2": "running"}"#).await;
        let gate = Gate::in_store(&fleet.cluster).await;
        fleet.force(1).await;
        gate.reached().await;
        fleet.force(2).await;
        let busy = "FORCE_SNAPSHOT ERROR A snapshot is already in progress";
        fleet.wait_for_answer("FORCE_SNAPSHOT", "2", busy).await;
        fleet.answers_everything().await;
        gate.open();
        fleet.wait_for_snapshots(1, 2).await;
        fleet.wait_for_snapshots(2, 2).await;
    }

    async fn the_status_of_600_servers_comes_in_several_complete_messages(powa: Powa) {
        let (cluster, repository) = cluster(powa).await;
        // Nobody listens on port 1.
        repository.batch_execute(
            "INSERT INTO powa_servers (hostname, port, username, dbname, frequency)
                SELECT format('127.0.%s.%s', n / 200, n % 200), 1, 'powa', 'powa', 86400
                FROM generate_series(1, 600) AS n;
            INSERT INTO powa_snapshot_metas (srvid) SELECT id FROM powa_servers WHERE id > 0",
        ).await.unwrap();
        let mut fleet = Fleet::of(cluster, repository, json!({})).await;
        fleet.collector.wait_for_log("600 servers to collect").await;
        fleet.control.send("WORKERS_STATUS", "").await;
        let (mut messages, mut servers) = (0, Vec::new());
        while servers.len() < 600 {
            let answer = fleet.answer().await;
            assert!(answer.len() < 8000);
            let data = answer.strip_prefix("WORKERS_STATUS OK ").expect("an answer to WORKERS_STATUS");
            let states: Map<String, Value> = serde_json::from_str(data).unwrap();
            assert!(states.values().all(Value::is_string));
            servers.extend(states.into_iter().map(|(id, _)| id.parse::<i32>().unwrap()));
            messages += 1;
        }
        assert!(messages > 1, "{messages}");
        servers.sort_unstable();
        assert!(servers.into_iter().eq(1..=600));
        assert!(fleet.control.received().is_empty());
    }
}

impl Fleet {
    async fn wait_for_answer(&mut self, command: &str, arguments: &str, expected: &str) {
        wait_until(expected, DEADLINE, async || self.ask(command, arguments).await == expected).await;
    }

    /// Asks each command once, while server 1 is taking a snapshot.
    async fn answers_everything(&mut self) {
        let status = self.ask("WORKERS_STATUS", "1").await;
        assert_eq!(r#"WORKERS_STATUS OK {"1": "running"}"#, status);
        assert_eq!("RELOAD OK OK", self.ask("RELOAD", "").await);
        let refused = "FORCE_SNAPSHOT ERROR A snapshot is already in progress";
        assert_eq!(refused, self.ask("FORCE_SNAPSHOT", "1").await);
        let catalogs = self.ask("REFRESH_DB_CAT", "1 0").await;
        assert_eq!("REFRESH_DB_CAT OK Catalogs will be refreshed during the next snapshot", catalogs);
    }
}
