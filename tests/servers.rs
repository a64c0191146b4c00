//! `powa-collector servers`: what becomes of a repository's servers, what is said of it, and what is not.

mod fleet;
mod support;

use std::fs::File;
use std::io::{Seek, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};

use fleet::{Fleet, config};
use serde_json::{Value, json};
use support::{
    Cluster, Collector, CollectorBuilder, DEADLINE, EXTENSIONS, Powa, Registration, Signal, Terminal,
    on_both_versions, quote_identifier, register_server, wait_until,
};
use tokio_postgres::Client;

/// Every password has it.
const MARK: &str = "xyzzy42";

/// Names that a statement, a shell, a connection string or a terminal might take for something else.
const ODD_DATABASE: &str = r#"da"ta' ba=se \ @h:1/é; drop table x; -- $1 :role %I"#;
const BROKEN_DATABASE: &str = "no such\ndatabase'\"; \\! touch x";
const ODD_ROLE: &str = "po'wa\"\n\\! touch x; --";
const ODD_ALIAS: &str = "x'\"; DROP TABLE powa_servers; --\n\x1b[31m \\ $1";

on_both_versions! {
    async fn a_server_is_registered_with_all_that_is_given(powa: Powa) {
        let site = Site::start(powa).await;
        let place = site.place(1);
        let done = site.run(&[
            "add", &place, "--alias", "main", "--username", "postgres", "--dbname", "monitored", "--no-password",
            "--frequency", "60", "--retention", "2 days 3 hours", "--extension", "pg_stat_kcache", "--extension", "powa",
        ]).await;
        done.is(0);
        assert_eq!(done.out, "");
        let expected = format!("server 1 (main, {place}) is registered; no collector is connected to postgres@");
        assert!(done.err.starts_with(&expected), "{}", done.err);
        let rows = site.rows().await;
        assert_eq!(rows.len(), 1);
        for (column, value) in [
            ("id", json!(1)), ("hostname", json!("127.0.1.1")), ("port", json!(site.cluster.port())),
            ("alias", json!("main")), ("username", json!("postgres")), ("password", json!(null)),
            ("dbname", json!("monitored")), ("frequency", json!(60)), ("retention", json!("2 days 03:00:00")),
        ] {
            assert_eq!(rows[0][column], value, "{column}");
        }
        assert_eq!(site.extensions(1).await, ["pg_stat_kcache", "pg_stat_statements"]);
        site.run(&["add", &site.place(2), "--username", "postgres", "--dbname", "monitored", "--no-password",
            "--frequency=-1"]).await.is(0);
        assert_eq!(site.rows().await[1]["frequency"], -1);
        assert_eq!(site.rows().await[1]["retention"], "1 day");

        // It can be collected, as it is.
        let taken = site.run_command(&["once"]).await;
        taken.is(0);
        assert!(taken.out.starts_with(&format!("1 {place}: ")) && !taken.out.contains("error"), "{}", taken.out);

        let listed = site.run(&["list"]).await;
        listed.is(0);
        let lines: Vec<Vec<&str>> = listed.out.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines.len(), 3, "{}", listed.out);
        assert_eq!(lines[1][..7], ["1", "main", &place, "monitored", "postgres", "no", "60"], "{}", listed.out);
        assert_eq!(lines[2][..7], ["2", "-", &site.place(2), "monitored", "postgres", "no", "off"], "{}", listed.out);
        let listed = site.list().await;
        assert_eq!(listed[0]["server"], place.as_str());
        assert_eq!(listed[0]["has_password"], false);
        assert_eq!(listed[0]["frequency"], 60);
        assert_eq!(listed[1]["alias"], Value::Null);
    }

    async fn passwords_are_stored_and_seen_nowhere(powa: Powa) {
        let hba = "host all guarded all scram-sha-256\nhost all all all trust\nlocal all all trust";
        let site = Site::of(Cluster::builder(powa).hba(hba).start()).await;
        // The server asks for a password also where there is no such role.
        let place = site.place(1);
        let add = ["add", &place, "--username", "guarded", "--dbname", "monitored", "--no-password"];
        let done = site.run(&add).await;
        done.is(1);
        assert!(done.err.contains("the server asks for a password, and none is given"), "{}", done.err);
        site.psql(&done.out);
        site.execute("ALTER ROLE guarded PASSWORD 'xyzzy42-good'").await;
        site.cluster.set("log_statement", "all");
        site.cluster.reload().await;
        let guarded = ["--username", "guarded", "--dbname", "monitored"];
        let add = |number: u8, more: &[&str]| -> Vec<String> {
            let place = site.place(number);
            [&["add", &place], &guarded[..], more].concat().iter().map(|word| (*word).to_owned()).collect()
        };

        // From standard input.
        for (input, words) in [
            ("xyzzy42-wrong\n", "password authentication failed"),
            ("\nxyzzy42-good\n", "the first line is empty"),
            ("xyzzy42\0-good\n", "a zero byte"),
        ] {
            let done = site.run_with_input(input, &strs(&add(1, &["--password-stdin"]))).await;
            assert!(done.code != 0 && done.err.contains(words), "{}", done.err);
        }
        assert!(site.rows().await.is_empty());
        let done = site.run_with_input("xyzzy42-good\nrest", &strs(&add(1, &["--password-stdin"]))).await;
        done.is(0);
        assert_eq!(site.rows().await[0]["password"], "xyzzy42-good");

        // From the terminal, and without one.
        let prompt = format!("Password of guarded on {}", site.place(2));
        for (keys, code, rows) in [("xyzzy42-wrong\r", 1, 1), ("xyzzy42-go\x03", 1, 1), ("xyzzy42-good\r", 0, 2)] {
            let (done, shown) = site.run_at_terminal(json!({}), &prompt, keys, &strs(&add(2, &[]))).await;
            done.is(code);
            assert!(shown.contains(&prompt) && !shown.contains("xyzzy"), "{shown}");
            assert_eq!(site.rows().await.len(), rows, "{}", done.err);
        }
        assert_eq!(site.rows().await[1]["password"], "xyzzy42-good");
        let (done, _) = site.run_at_terminal(
            json!({ "servers": { "defaults": { "password": "xyzzy42-good" } } }), "Password", "\r", &strs(&add(3, &[])),
        ).await;
        done.is(0);
        assert_eq!(site.rows().await[2]["password"], Value::Null);
        let done = site.run(&strs(&add(4, &[]))).await;
        done.is(2);
        assert!(done.err.contains("--password-stdin or --no-password"), "{}", done.err);

        // Another one.
        site.cluster.set("log_statement", "none");
        site.cluster.reload().await;
        // A new session, which has that setting for sure.
        let admin = site.cluster.client("postgres").await;
        admin.batch_execute("ALTER ROLE guarded PASSWORD 'xyzzy42-better'").await.unwrap();
        site.cluster.set("log_statement", "all");
        site.cluster.reload().await;
        let (first, second) = (site.place(1), site.place(2));
        let set = ["set", &first, "--password-stdin", "--retention", "3 days"];
        let done = site.run_with_input("xyzzy42-bad", &set).await;
        done.is(1);
        assert!(done.err.contains("not changed"), "{}", done.err);
        assert_eq!(site.rows().await[0]["retention"], "1 day");
        site.run_with_input("xyzzy42-better", &set).await.is(0);
        assert_eq!(site.rows().await[0]["password"], "xyzzy42-better");
        assert_eq!(site.rows().await[0]["retention"], "3 days");
        let prompt = format!("Password of guarded on {}: ", site.place(2));
        let set = ["set", &second, "--password"];
        let (done, shown) = site.run_at_terminal(json!({}), &prompt, "xyzzy42-better\r", &set).await;
        done.is(0);
        assert!(!shown.contains("xyzzy"), "{shown}");
        assert_eq!(site.rows().await[1]["password"], "xyzzy42-better");
        let (done, _) = site.run_at_terminal(json!({}), &prompt, "\r", &set).await;
        done.is(2);
        site.run(&set).await.is(2);

        // One that cannot be stored, because somebody else works on it.
        let other = site.cluster.client("powa").await;
        other.batch_execute("BEGIN; SELECT FROM powa_servers WHERE hostname = '127.0.1.2' FOR UPDATE").await.unwrap();
        let keys = json!({ "timeouts": { "query": 1 } });
        let builder = site.builder(keys, &["set", &second, "--password-stdin", "--force"]).stdin(input("xyzzy42-other"));
        let done = finish(builder).await;
        done.is(1);
        assert!(done.err.contains("somebody else works on it"), "{}", done.err);
        other.batch_execute("ROLLBACK").await.unwrap();
        site.run(&["set", &second, "--no-password", "--force"]).await.is(0);
        assert_eq!(site.rows().await[1]["password"], Value::Null);

        let listed = [site.run(&["list"]).await.out, site.run(&["list", "--json"]).await.out].concat();
        assert!(listed.contains("yes") && listed.contains("true") && !listed.contains(MARK), "{listed}");
        let log = site.cluster.log();
        for words in ["powa_register_server", "powa_configure_server"] {
            assert!(log.contains(words), "{words} was to be logged: {log}");
        }
        assert!(!log.contains(MARK), "{}", log.lines().filter(|line| line.contains(MARK)).collect::<String>());
    }

    async fn the_sql_that_is_printed_mends_what_is_missing(powa: Powa) {
        let site = Site::start(powa).await;
        let role = quote_identifier(ODD_ROLE);
        let all = ["--extension", "pg_qualstats", "--extension", "pg_stat_kcache", "--extension", "pg_wait_sampling"];

        // Neither role nor database.
        site.is_mended(1, ODD_DATABASE, &all, &["CREATE ROLE", "CREATE DATABASE", "\\connect"]).await;
        // A role with no rights at all in a database that has everything.
        site.execute(&format!("DROP OWNED BY {role}; REVOKE pg_monitor FROM {role}")).await;
        let script = site.is_mended(2, "monitored", &all, &["GRANT pg_monitor TO", "pg_qualstats_reset\"() TO"]).await;
        assert!(!script.contains("CREATE"), "{script}");
        // A database with PoWA, and without what else is to be read.
        let monitored = site.cluster.client("monitored").await;
        monitored.batch_execute("DROP EXTENSION pg_qualstats, pg_stat_kcache").await.unwrap();
        site.is_mended(3, "monitored", &all, &["CREATE EXTENSION IF NOT EXISTS \"pg_qualstats\";"]).await;
        // One that the role may not enter.
        site.execute("REVOKE CONNECT ON DATABASE monitored FROM public").await;
        site.execute(&format!("REVOKE CONNECT ON DATABASE monitored FROM {role}")).await;
        site.is_mended(4, "monitored", &all, &["GRANT CONNECT ON DATABASE"]).await;
        // And one without PoWA.
        site.execute("CREATE DATABASE empty").await;
        let base = if powa.is_v4() { "powa CASCADE" } else { "pg_stat_statements" };
        let creates = format!("CREATE EXTENSION IF NOT EXISTS {base};");
        site.is_mended(5, "empty", &all, &[&creates]).await;

        let taken = site.run_command(&["once"]).await;
        assert!(taken.code == 0 && !taken.out.contains("error"), "{}{}", taken.out, taken.err);
    }

    async fn what_cannot_be_reached_is_not_registered_unless_that_is_forced(powa: Powa) {
        let site = Site::start(powa).await;
        let add = ["add", "127.0.0.1:1", "--no-password"];
        let done = site.run(&add).await;
        done.is(1);
        assert!(done.err.contains("Connection refused") && done.err.contains("\nnot registered: "), "{}", done.err);
        assert_eq!(done.out, "", "there is no SQL for that");
        assert!(site.rows().await.is_empty());
        let done = site.run(&[&add[..], &["--force"]].concat()).await;
        done.is(0);
        assert!(done.err.contains("PROBLEM") && done.err.contains(" is registered; "), "{}", done.err);
        assert_eq!(site.rows().await.len(), 1);
        assert_eq!(site.rows().await[0]["username"], "powa");

        // Extensions that are no PoWA's, and intervals that are none, are told before anything is tried.
        let place = site.place(1);
        let add = ["add", &place, "--no-password", "--username", "postgres", "--dbname", "monitored"];
        for (more, code, words) in [
            (["--extension", "nonsense"], 1, "does not know the extension \"nonsense\""),
            (["--retention", "soon"], 2, "--retention \"soon\": not an interval"),
        ] {
            let done = site.run(&[&add[..], &more].concat()).await;
            done.is(code);
            assert!(done.err.contains(words), "{}", done.err);
        }
        let done = site.run(&[&add[..], &["--retention=-1 day"]].concat()).await;
        done.is(2);
        assert!(done.err.contains("it must be more than nothing"), "{}", done.err);
        assert_eq!(site.rows().await.len(), 1);
    }

    async fn a_server_is_tried_as_the_configuration_says(powa: Powa) {
        let site = Site::start(powa).await;
        // No server here has TLS.
        let keys = json!({ "servers": { "by_name": { "main": { "sslmode": "require" } } } });
        let (first, second) = (site.place(1), site.place(2));
        let add = |place| ["add", place, "--username", "postgres", "--dbname", "monitored", "--no-password"];
        let done = finish(site.builder(keys.clone(), &[&add(&first)[..], &["--alias", "main"]].concat())).await;
        done.is(1);
        assert!(done.err.contains("sslmode") && site.rows().await.is_empty(), "{}", done.err);
        finish(site.builder(keys.clone(), &add(&first))).await.is(0);
        // Another name can be another way to connect.
        let name = ["set", &first, "--alias", "main"];
        let done = finish(site.builder(keys.clone(), &name)).await;
        done.is(1);
        assert!(done.err.contains("sslmode") && site.rows().await[0]["alias"].is_null(), "{}", done.err);
        finish(site.builder(keys, &add(&second))).await.is(0);
        site.run(&name).await.is(0);
        assert_eq!(site.rows().await[0]["alias"], "main");
    }

    async fn nothing_is_left_of_one_that_is_killed_while_it_tries(powa: Powa) {
        let site = Site::start(powa).await;
        // Somebody who takes connections and says nothing.
        let silence = TcpListener::bind("127.0.0.1:0").unwrap();
        let place = format!("127.0.0.1:{}", silence.local_addr().unwrap().port());
        let add = site.builder(json!({}), &["add", &place, "--no-password"]).start();
        let sessions = async || fleet::sessions(&site.repository, "PoWA collector - command").await;
        wait_until("it tries", DEADLINE, async || {
            let state = "SELECT FROM pg_stat_activity WHERE application_name = 'PoWA collector - command'
                AND state = 'idle in transaction' AND query LIKE '%powa_servers%'";
            !site.repository.query(state, &[]).await.unwrap().is_empty()
        })
        .await;
        add.signal(Signal::SIGKILL);
        wait_until("its session has ended", DEADLINE, async || sessions().await.is_empty()).await;
        assert!(site.rows().await.is_empty());
    }

    async fn names_that_are_taken_are_told(powa: Powa) {
        let site = Site::start(powa).await;
        let first = Registration::new("127.0.1.1", site.cluster.port()).alias("main").dbname("monitored");
        register_server(&site.repository, &first).await;
        let second = Registration::new("127.0.1.2", site.cluster.port()).dbname("monitored");
        register_server(&site.repository, &second).await;
        let (first, third) = (site.place(1), site.place(3));
        let of_place = format!("\"{first}\" is registered already, as server 1");
        let cases: &[(&[&str], &str)] = &[
            (&["add", &first, "--no-password"], &of_place),
            (&["add", &third, "--alias", "main", "--no-password"], "the alias \"main\" is taken by server 1"),
            (&["set", "2", "--hostname", "127.0.1.1"], &of_place),
            (&["set", "2", "--alias", "main"], "the alias \"main\" is taken by server 1"),
            // The repository's own, which is not listed.
            (&["set", "2", "--alias", "<local>"], "another server has this alias"),
            (&["set", "3", "--alias", "x"], "no server is called \"3\""),
        ];
        for (arguments, words) in cases {
            let done = site.run(arguments).await;
            done.is(1);
            assert!(done.err.contains(words), "{}", done.err);
        }
        site.run(&["set", "main", "--alias", "main"]).await.is(0);
        assert_eq!(site.rows().await.len(), 2);
    }

    async fn names_may_be_anything(powa: Powa) {
        let site = Site::start(powa).await;
        let copy = format!("CREATE DATABASE {} TEMPLATE monitored", quote_identifier(ODD_DATABASE));
        site.execute(&copy).await;
        let add = ["--alias", ODD_ALIAS, "--username", "postgres", "--dbname", ODD_DATABASE, "--no-password"];
        let done = site.run(&[&["add", &site.place(1)], &add[..]].concat()).await;
        done.is(0);
        assert_eq!(done.err.lines().count(), 1, "{}", done.err);
        let rows = site.rows().await;
        assert_eq!(rows[0]["alias"], ODD_ALIAS);
        assert_eq!(rows[0]["dbname"], ODD_DATABASE);
        let listed = site.run(&["list"]).await.out;
        assert!(listed.lines().count() == 2 && !listed.contains('\x1b'), "{listed}");
        assert_eq!(site.list().await[0]["alias"], ODD_ALIAS);

        site.run(&["set", ODD_ALIAS, "--retention", "5 days"]).await.is(0);
        assert_eq!(site.rows().await[0]["retention"], "5 days");
        let done = site.run(&["set", "1", "--dbname", BROKEN_DATABASE]).await;
        done.is(1);
        // psql cannot connect to a name with a line break: the script makes the database, and no more.
        assert!(!done.out.contains("CREATE EXTENSION"), "{}", done.out);
        site.psql(&done.out);
        let there = "SELECT FROM pg_database WHERE datname = $1";
        assert_eq!(site.repository.query(there, &[&BROKEN_DATABASE]).await.unwrap().len(), 1);
        site.run(&["set", "1", "--alias", "it's \"new\"; --", "--hostname", "/no'where\"", "--force"]).await.is(0);
        let rows = site.rows().await;
        assert_eq!(rows[0]["alias"], "it's \"new\"; --");
        assert_eq!(rows[0]["hostname"], "/no'where\"");
        site.run(&["remove", "it's \"new\"; --", "--purge", "--yes"]).await.is(0);
        assert!(site.rows().await.is_empty());
    }

    async fn set_changes_what_is_given_and_tries_what_matters(powa: Powa) {
        let site = Site::start(powa).await;
        // One that cannot be reached can be changed in all that does not concern that.
        let server = Registration::new("127.0.1.1", 1).dbname("monitored").frequency(300);
        register_server(&site.repository, &server).await;
        let mut expected = site.rows().await.remove(0);
        let cases: [(&[&str], &str, Value); 6] = [
            (&["--frequency", "30"], "frequency", json!(30)),
            (&["--frequency", "-1"], "frequency", json!(-1)),
            (&["--alias", "main"], "alias", json!("main")),
            (&["--no-alias"], "alias", Value::Null),
            (&["--retention", "9 days"], "retention", json!("9 days")),
            (&["--no-password"], "password", Value::Null),
        ];
        for (arguments, column, value) in cases {
            site.run(&[&["set", "1"], arguments].concat()).await.is(0);
            expected[column] = value;
            assert_eq!(site.rows().await[0], expected, "{arguments:?}");
        }
        let port = site.cluster.port().to_string();
        let cases: &[(&[&str], i32)] = &[
            (&["--username", "postgres", "--dbname", "powa"], 1),
            (&["--hostname", "127.0.1.2"], 1),
            (&["--activate-extension", "pg_stat_kcache"], 1),
            (&["--port", "0"], 2),
            (&["--port", "65536"], 2),
            (&["--frequency", "4"], 2),
            (&["--alias", ""], 2),
            (&["--hostname", ""], 2),
            (&["--retention", "soon"], 2),
            (&["--alias", "a", "--no-alias"], 2),
            (&[], 2),
        ];
        for (arguments, code) in cases {
            let done = site.run(&[&["set", "1"], *arguments].concat()).await;
            done.is(*code);
            assert_eq!(site.rows().await[0], expected, "{arguments:?}");
        }
        site.run(&["set", "1", "--hostname", "[::1]", "--force"]).await.is(0);
        assert_eq!(site.rows().await[0]["hostname"], "::1");
        site.run(&["set", "[::1]:1", "--hostname", "127.0.1.1", "--port", &port, "--frequency", "60"]).await.is(0);
        let place = site.place(1);
        let done = site.run(&["set", &place, "--dbname", "nowhere"]).await;
        done.is(1);
        assert!(done.err.contains("database \"nowhere\" does not exist") && done.out.contains("CREATE DATABASE"));
        site.run(&["set", &place, "--dbname", "powa"]).await.is(0);
        assert_eq!(site.rows().await[0]["dbname"], "powa");

        assert_eq!(site.extensions(1).await, ["pg_stat_statements"]);
        let done = site.run(&["set", "1", "--activate-extension", "nonsense"]).await;
        done.is(1);
        assert!(done.err.contains("does not know the extension \"nonsense\""), "{}", done.err);
        site.run(&["set", "1", "--activate-extension", "pg_stat_kcache", "--activate-extension", "pg_qualstats"])
            .await
            .is(0);
        assert_eq!(site.extensions(1).await, ["pg_qualstats", "pg_stat_kcache", "pg_stat_statements"]);
    }

    async fn remove_keeps_the_history_unless_it_is_told_to_delete_it(powa: Powa) {
        let site = Site::start(powa).await;
        for number in [1, 2] {
            let server = fleet::monitored(&site.cluster, number).frequency(300);
            register_server(&site.repository, &server).await;
        }
        site.run_command(&["once"]).await.is(0);
        let history = async |id: i32| -> i64 {
            let statement = "SELECT count(*) FROM powa_statements WHERE srvid = $1";
            site.repository.query_one(statement, &[&id]).await.unwrap().get(0)
        };
        assert!(history(1).await > 0 && history(2).await > 0);

        let done = site.run(&["remove", &site.place(1)]).await;
        done.is(0);
        assert!(done.err.contains("is switched off, and its history stays"), "{}", done.err);
        assert_eq!(site.rows().await[0]["frequency"], -1);
        assert!(history(1).await > 0);

        let done = site.run(&["remove", "1", "--purge"]).await;
        done.is(2);
        assert!(done.err.contains("give --yes"), "{}", done.err);
        for (keys, code, left) in [("n\n", 1, 2), ("\n", 1, 2), ("y\n", 0, 1)] {
            let (mut terminal, program) = Terminal::open();
            terminal.type_ahead(keys);
            let builder = site.builder(json!({}), &["remove", "1", "--purge"]).stdin(program);
            let done = finish(builder.wrapper(&Terminal::WRAPPER)).await;
            done.is(code);
            assert!(done.err.starts_with(&format!("Delete server 1 ({}) and its whole history? [y/N] ", site.place(1))));
            assert_eq!(site.rows().await.len(), left);
        }
        assert_eq!((history(1).await, history(2).await > 0), (0, true));
        site.run(&["remove", "2", "--purge", "--yes"]).await.is(0);
        assert_eq!(history(2).await, 0);
        let done = site.run(&["remove", "2", "--purge", "--yes"]).await;
        done.is(1);
        assert!(done.err.contains("no server is called \"2\""), "{}", done.err);
    }

    async fn who_may_not_change_the_servers_is_told_so(powa: Powa) {
        let site = Site::start(powa).await;
        let server = fleet::monitored(&site.cluster, 1);
        register_server(&site.repository, &server).await;
        if powa.is_v5() {
            site.execute(include_str!("../sql/setup/repository_powa5.sql")).await;
        } else {
            // There, the collector's role has all rights to PoWA's tables.
            site.execute("CREATE ROLE powa_collector LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO powa_collector")
                .await;
        }
        let own = json!({ "repository": { "dsn": site.cluster.dsn("powa_collector", "powa") } });
        let place = site.place(2);
        let add = ["add", &place, "--username", "postgres", "--dbname", "monitored", "--no-password"];
        let before = site.rows().await;
        let cases: &[(&[&str], &str)] = &[
            (&add, "INSERT"),
            (&["set", "1", "--frequency", "60"], "UPDATE"),
            (&["remove", "1"], "UPDATE"),
            (&["remove", "1", "--purge", "--yes"], "DELETE"),
        ];
        for (arguments, right) in cases {
            let done = finish(site.builder_of(own.clone(), arguments)).await;
            done.is(1);
            let expected = format!("the role \"powa_collector\" may not do this in the repository: no right to {right}");
            assert!(done.err.contains(&expected) && done.err.contains("by --dsn: a superuser, or "), "{}", done.err);
        }
        assert_eq!(site.rows().await, before);
        finish(site.builder_of(own.clone(), &["list"])).await.is(0);

        // Somebody else may.
        let mut dsn = site.cluster.superuser_dsn("powa");
        if powa.is_v5() {
            site.execute("CREATE ROLE admin LOGIN IN ROLE powa_admin").await;
            dsn = site.cluster.dsn("admin", "powa");
        }
        finish(site.builder_of(own.clone(), &["--dsn", &dsn]).arguments(&add)).await.is(0);
        for arguments in [&["set", "2", "--frequency", "60"][..], &["remove", "2"]] {
            finish(site.builder_of(own.clone(), arguments).argument("--dsn").argument(&dsn)).await.is(0);
        }
        assert_eq!(site.rows().await[1]["frequency"], -1);
        let wrong = ["--dsn", "host=h password=xyzzy42 xyzzy42=1", "list"];
        let done = finish(site.builder_of(own.clone(), &wrong)).await;
        done.is(2);
        assert!(done.err.starts_with("powa-collector: --dsn: character "), "{}", done.err);
        let away = ["--dsn", "host=127.0.0.1 port=1 password=xyzzy42 user=u", "list"];
        finish(site.builder_of(own, &away)).await.is(1);
    }

    async fn a_collector_at_work_takes_it_over_at_once(powa: Powa) {
        // It reads the servers by itself never again.
        let mut fleet = Fleet::start(powa).await;
        let run = async |arguments: &[&str], cluster: &Cluster| {
            let builder = Collector::builder(config(cluster, json!({}))).argument("servers");
            let done = finish(builder.arguments(arguments)).await;
            done.is(0);
            assert!(done.err.contains("; the collector at work has taken it over"), "{}", done.err);
        };
        let second = format!("127.0.1.2:{}", fleet.cluster.port());
        let add = ["add", &second, "--username", "postgres", "--dbname", "monitored", "--no-password"];
        run(&add, &fleet.cluster).await;
        fleet.wait_for_states(r#"{"1": "running", "2": "running"}"#).await;
        run(&["set", "2", "--frequency", "-1"], &fleet.cluster).await;
        fleet.wait_for_states(r#"{"1": "running"}"#).await;
        run(&["set", "2", "--frequency", "3600"], &fleet.cluster).await;
        fleet.wait_for_states(r#"{"1": "running", "2": "running"}"#).await;
        run(&["remove", "1"], &fleet.cluster).await;
        fleet.wait_for_states(r#"{"2": "running"}"#).await;
        run(&["remove", "2", "--purge", "--yes"], &fleet.cluster).await;
        fleet.wait_for_states("{}").await;
        fleet.collector.stop().await;
    }
}

#[tokio::test]
async fn a_command_line_that_cannot_be_used_has_a_status_of_its_own() {
    for arguments in [
        &[][..],
        &["add"],
        &["add", "db1:0"],
        &["add", "::1"],
        &["add", ""],
        &["add", "db1", "--frequency", "4"],
        &["add", "db1", "--password-stdin", "--no-password"],
        &["add", "db1", "--username", ""],
        &["remove"],
    ] {
        let dsn = "host=127.0.0.1 port=1 user=u";
        let builder = Collector::builder(json!({ "repository": { "dsn": dsn } })).argument("servers");
        finish(builder.arguments(arguments)).await.is(2);
    }
}

/// A repository, and a database to be monitored that has all extensions, in one cluster.
struct Site {
    cluster: Cluster,
    repository: Client,
}

impl Site {
    async fn start(powa: Powa) -> Site {
        Site::of(Cluster::start(powa)).await
    }

    async fn of(cluster: Cluster) -> Site {
        cluster.create_powa_database("powa", None, EXTENSIONS).await;
        let admin = cluster.client("postgres").await;
        admin.batch_execute("CREATE DATABASE monitored TEMPLATE powa").await.expect("copy a database");
        let repository = cluster.client("powa").await;
        if cluster.powa().is_v5() {
            // They are ten times as many rows as the rest.
            repository.batch_execute("DELETE FROM powa_catalogs").await.expect("leave out the catalogs");
        }
        Site { cluster, repository }
    }

    async fn execute(&self, statements: &str) {
        let done = self.repository.batch_execute(statements).await;
        done.unwrap_or_else(|error| panic!("{error:?}: {statements}"));
    }

    /// One of the addresses of the cluster, with its port.
    fn place(&self, number: u8) -> String {
        format!("127.0.1.{number}:{}", self.cluster.port())
    }

    /// The registered servers, with everything.
    async fn rows(&self) -> Vec<Value> {
        let statement = "SELECT coalesce(json_agg(to_jsonb(s) ORDER BY s.id), '[]')::text FROM powa_servers AS s WHERE s.id > 0";
        let row = self.repository.query_one(statement, &[]).await.expect("read the servers");
        serde_json::from_str(row.get(0)).expect("JSON")
    }

    /// The extensions that are read from a server, but for PoWA itself.
    async fn extensions(&self, server: i32) -> Vec<String> {
        let statement = if self.cluster.powa().is_v5() {
            "SELECT extname FROM powa_extension_config WHERE srvid = $1 AND enabled AND extname <> 'powa' ORDER BY 1"
        } else {
            "SELECT DISTINCT extname FROM powa_functions WHERE srvid = $1 AND enabled AND extname <> 'powa' ORDER BY 1"
        };
        let rows = self.repository.query(statement, &[&server]).await.expect("read the extensions");
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// A `servers` command, with the superuser's configuration and these keys in it.
    fn builder(&self, keys: Value, arguments: &[&str]) -> CollectorBuilder {
        self.builder_of(config(&self.cluster, keys), arguments)
    }

    fn builder_of(&self, config: Value, arguments: &[&str]) -> CollectorBuilder {
        Collector::builder(config).argument("servers").arguments(arguments)
    }

    async fn run(&self, arguments: &[&str]) -> Done {
        finish(self.builder(json!({}), arguments)).await
    }

    async fn run_command(&self, arguments: &[&str]) -> Done {
        finish(Collector::builder(config(&self.cluster, json!({}))).arguments(arguments)).await
    }

    async fn run_with_input(&self, text: &str, arguments: &[&str]) -> Done {
        finish(self.builder(json!({}), arguments).stdin(input(text))).await
    }

    /// With a terminal, at which somebody waits for the prompt. Gives what it has shown, too.
    async fn run_at_terminal(
        &self,
        keys: Value,
        prompt: &str,
        typed: &str,
        arguments: &[&str],
    ) -> (Done, String) {
        let (terminal, program) = Terminal::open();
        let shown = terminal.type_unseen(prompt, typed);
        let builder = self.builder(keys, arguments).wrapper(&Terminal::WRAPPER).stdin(program);
        let done = finish(builder).await;
        (done, shown.join().expect("no panic at the terminal"))
    }

    async fn list(&self) -> Vec<Value> {
        let listed = self.run(&["list", "--json"]).await;
        listed.is(0);
        serde_json::from_str(&listed.out).expect("JSON")
    }

    /// A server that lacks something is not registered, and is once psql has run what is printed. Gives the script.
    async fn is_mended(&self, number: u8, database: &str, more: &[&str], expected: &[&str]) -> String {
        let before = self.rows().await;
        let place = self.place(number);
        let add = ["add", &place, "--username", ODD_ROLE, "--dbname", database, "--no-password"];
        let add = [&add[..], more].concat();
        let done = self.run(&add).await;
        done.is(1);
        for words in expected {
            assert!(done.out.contains(words), "no {words}:\n{}{}", done.out, done.err);
        }
        assert_eq!(self.rows().await, before);
        self.psql(&done.out);
        self.run(&add).await.is(0);
        assert_eq!(self.rows().await.len(), before.len() + 1);
        done.out
    }

    /// Runs a script as somebody would: as superuser, in the database that everybody has.
    fn psql(&self, script: &str) {
        let mut psql = Command::new("/usr/lib/postgresql/15/bin/psql");
        psql.args(["-X", "-q", "-h", "127.0.0.1", "-U", "postgres", "-d", "postgres", "-p"]);
        psql.arg(self.cluster.port().to_string()).env_clear().env("LC_ALL", "C.UTF-8");
        psql.stdin(input(script)).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = psql.output().expect("run psql");
        assert!(output.status.success(), "{}\n{script}", String::from_utf8_lossy(&output.stderr));
    }
}

/// How a command ended.
struct Done {
    code: i32,
    out: String,
    err: String,
}

impl Done {
    fn is(&self, code: i32) {
        assert_eq!(self.code, code, "{}{}", self.out, self.err);
    }
}

/// Runs a command to its end. No secret is in what it says.
async fn finish(builder: CollectorBuilder) -> Done {
    let output = builder.run().await;
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    let code = output.status.code().expect("it exits by itself");
    let done = Done { code, out: text(output.stdout), err: text(output.stderr) };
    assert!(!done.out.contains(MARK) && !done.err.contains(MARK), "{}{}", done.out, done.err);
    done
}

/// A file with this in it, to be read from its beginning.
fn input(text: &str) -> File {
    let mut file = tempfile::tempfile().expect("make a file");
    file.write_all(text.as_bytes()).expect("write a file");
    file.rewind().expect("go back to its beginning");
    file
}

fn strs(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}
