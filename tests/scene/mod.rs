//! A repository and a monitored database in one cluster, whose snapshots are taken one at a time, when a test
//! says so.
#![allow(dead_code, reason = "each test file uses a part of this module")]

pub mod outage;

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use crate::support::{
    Cluster, Collector, Control, DEADLINE, EXTENSIONS, Powa, Registration, powa_schema, register_server,
    wait_until,
};

/// Long enough that no snapshot is taken but those that a test asks for.
const NEVER: i32 = 3600;

pub struct Scene {
    pub cluster: Cluster,
    /// Connected to the repository.
    pub repository: Client,
    /// The repository's database.
    pub repository_name: String,
    /// Connected to the monitored database.
    pub monitored: Client,
    /// The schema of the repository's PoWA, quoted.
    pub powa: String,
    /// The monitored server in `powa_servers`.
    pub id: i32,
}

impl Scene {
    /// All extensions on both sides, and no system catalogs: they are ten times as many rows as the rest.
    pub async fn new(powa: Powa) -> Scene {
        let scene = Scene::with_catalogs(powa).await;
        scene.leave_out_catalogs("").await;
        scene
    }

    pub async fn with_catalogs(powa: Powa) -> Scene {
        let cluster = Cluster::builder(powa).setting("autovacuum", "off").start();
        cluster.create_repository("powa").await;
        // The same content, and a copy is made faster.
        run(&cluster.client("postgres").await, "CREATE DATABASE monitored TEMPLATE powa").await;
        let server = Registration::of(&cluster, "monitored").extensions(EXTENSIONS);
        Scene::of(cluster, "powa", server).await
    }

    /// With one system catalog, the one that is copied last.
    pub async fn with_one_catalog(powa: Powa) -> Scene {
        let scene = Scene::with_catalogs(powa).await;
        scene.leave_out_catalogs("WHERE catname <> 'pg_class'").await;
        scene
    }

    /// For what a test has made by itself. The period is set to one that does not come.
    pub async fn of(cluster: Cluster, repository_name: &str, server: Registration) -> Scene {
        let monitored = cluster.client(&server.dbname).await;
        Scene::watching(cluster, repository_name, server, monitored).await
    }

    /// The same with a server that is elsewhere, and a session with the database that is monitored there.
    pub async fn watching(
        cluster: Cluster,
        repository_name: &str,
        server: Registration,
        monitored: Client,
    ) -> Scene {
        let repository = cluster.client(repository_name).await;
        let id = register_server(&repository, &server.frequency(NEVER)).await;
        let scene = Scene {
            powa: powa_schema(&repository).await,
            monitored,
            repository_name: repository_name.to_owned(),
            repository,
            cluster,
            id,
        };
        scene.rest().await;
        scene
    }

    /// Lets its last snapshot be long enough ago to ask for another one.
    pub async fn rest(&self) {
        self.rest_until_asked(self.id).await;
    }

    /// A repository and a database `monitored`, both in this cluster, with snapshots of so many marked rows. The
    /// collector is to reach the server at this port.
    pub async fn marked(cluster: Cluster, server: u16, rows: i64) -> Scene {
        cluster.create_repository("powa").await;
        run(&cluster.client("postgres").await, "CREATE DATABASE monitored TEMPLATE powa").await;
        let server = Registration::new("127.0.0.1", server).dbname("monitored").extensions(EXTENSIONS);
        let scene = Scene::of(cluster, "powa", server).await;
        scene.leave_out_catalogs("").await;
        scene.add_marked(rows).await;
        scene
    }

    /// A repository in a cluster of its own, and a server in the database `powa` of another one. What the repository
    /// has committed stays, also when it crashes.
    pub async fn apart(monitored: &Cluster, server: Registration) -> Scene {
        let repository = Cluster::builder(monitored.powa());
        let repository = repository.setting("autovacuum", "off").setting("synchronous_commit", "on").start();
        repository.create_repository("powa").await;
        let mut scene = Scene::of(repository, "powa", server).await;
        scene.monitored = monitored.client("powa").await;
        scene.leave_out_catalogs("").await;
        scene
    }

    /// Registers another server, whose snapshots also come only when asked for.
    pub async fn register(&self, server: &Registration) -> i32 {
        let id = register_server(&self.repository, &server.clone().frequency(NEVER)).await;
        self.rest_until_asked(id).await;
        id
    }

    pub async fn leave_out_catalogs(&self, condition: &str) {
        if self.is_powa5() {
            self.run(&format!("DELETE FROM {{powa}}.powa_catalogs {condition}")).await;
        }
    }

    pub fn is_powa5(&self) -> bool {
        self.cluster.powa().is_v5()
    }

    /// One of the two, by the version of PoWA.
    pub fn pick<T>(&self, powa4: T, powa5: T) -> T {
        if self.is_powa5() { powa5 } else { powa4 }
    }

    /// The configuration, with `extra` over it.
    pub fn config(&self, extra: Value) -> Value {
        let dsn = self.cluster.superuser_dsn(&self.repository_name);
        let mut config = json!({ "repository": { "dsn": dsn } });
        merge(&mut config, extra);
        config
    }

    /// Takes one snapshot, with a collector of its own, and gives the collector's log.
    pub async fn snapshot(&self) -> String {
        self.snapshot_with(json!({})).await
    }

    /// The same, with a part of the configuration.
    pub async fn snapshot_with(&self, extra: Value) -> String {
        let before = self.snapshots().await;
        let mut collector = self.begin(extra).await;
        collector.wait_for_log("snapshot: ").await;
        assert!(collector.stop().await.success());
        assert_eq!(before + 1, self.snapshots().await, "no snapshot was taken:\n{}", collector.log());
        collector.log()
    }

    /// Lets a collector try to take a snapshot, and gives its log when the failure is written down in
    /// `powa_snapshot_metas.errors`.
    pub async fn failed_snapshot(&self) -> String {
        self.failed_snapshot_with(json!({})).await
    }

    pub async fn failed_snapshot_with(&self, extra: Value) -> String {
        let (snapshots, errors) = (self.snapshots().await, self.errors().await);
        let mut collector = self.begin(extra).await;
        collector.wait_for_log("no snapshot: ").await;
        wait_until("the failure is written down", DEADLINE, async || self.errors().await != errors).await;
        assert!(collector.stop().await.success());
        assert_eq!(snapshots, self.snapshots().await, "a snapshot was taken:\n{}", collector.log());
        collector.log()
    }

    /// Starts a collector and asks for a snapshot.
    pub async fn begin(&self, extra: Value) -> Collector {
        let collector = self.stand_by(extra).await;
        self.force(self.id).await;
        collector
    }

    /// Starts a collector that waits to be asked.
    pub async fn stand_by(&self, extra: Value) -> Collector {
        self.rest_until_asked(self.id).await;
        let mut collector = Collector::start(self.config(extra));
        collector.wait_for_log("worker for").await;
        collector
    }

    /// Starts a collector that takes a snapshot every five seconds, the first at once.
    pub async fn begin_period(&self) -> Collector {
        self.run("UPDATE {powa}.powa_servers SET frequency = 5 WHERE id > 0").await;
        let mut collector = Collector::start(self.config(json!({})));
        collector.wait_for_log("worker for").await;
        // Refused when the first snapshot, which comes at a random time, is there already.
        Control::connect(&self.cluster, &self.repository_name)
            .await
            .ask("FORCE_SNAPSHOT", &self.id.to_string())
            .await;
        collector
    }

    /// Asks the running collector for a snapshot of a server.
    pub async fn force(&self, id: i32) {
        let mut control = Control::connect(&self.cluster, &self.repository_name).await;
        let answer = control.ask("FORCE_SNAPSHOT", &id.to_string()).await;
        assert!(answer.starts_with("FORCE_SNAPSHOT OK"), "{answer}");
    }

    /// The last snapshot was a minute ago: too long ago to refuse another, not long enough for one to be due.
    async fn rest_until_asked(&self, id: i32) {
        let statement = self.sql(
            "UPDATE {powa}.powa_snapshot_metas SET snapts = now() - interval '1 minute' WHERE srvid = $1",
        );
        self.repository.execute(&statement, &[&id]).await.expect("set the time of the last snapshot");
    }

    /// How many snapshots of the server are in the repository.
    pub async fn snapshots(&self) -> i64 {
        self.snapshots_of(self.id).await
    }

    pub async fn wait_for_snapshots(&self, least: i64) {
        self.wait_for_snapshots_of(self.id, least).await;
    }

    pub async fn snapshots_of(&self, server: i32) -> i64 {
        let sql = "SELECT coalesce_seq - 1 FROM {powa}.powa_snapshot_metas WHERE srvid = $1";
        self.one(sql, &[&server]).await
    }

    pub async fn wait_for_snapshots_of(&self, server: i32, least: i64) {
        let what = format!("{least} snapshots of server {server}");
        wait_until(&what, 2 * DEADLINE, async || self.snapshots_of(server).await >= least).await;
    }

    /// What `powa_snapshot_metas` says of the last snapshot.
    pub async fn errors(&self) -> Vec<String> {
        self.errors_of(self.id).await
    }

    pub async fn errors_of(&self, server: i32) -> Vec<String> {
        let sql = "SELECT coalesce(errors, ARRAY[]::text[]) FROM {powa}.powa_snapshot_metas WHERE srvid = $1";
        self.one(sql, &[&server]).await
    }

    /// The one error of the last snapshot.
    pub async fn error(&self) -> String {
        let errors = self.errors().await;
        assert_eq!(1, errors.len(), "one error is expected: {errors:#?}");
        errors.into_iter().next().unwrap()
    }

    /// The tables with rows on their way into the history.
    pub async fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        for table in self.tables("_src_tmp$").await {
            if self.has_rows(&table, "true").await {
                left.push(table);
            }
        }
        left
    }

    /// The repository's tables whose name matches, qualified. Those of pg_track_settings, which keeps its own
    /// history, are among them.
    pub async fn tables(&self, pattern: &str) -> Vec<String> {
        let statement = "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class AS c
            JOIN pg_namespace AS n ON n.oid = c.relnamespace
            WHERE c.relkind = 'r' AND c.relname ~ $1 AND c.relname ~ '^(powa|pg_track|pg_reboot|test)'
            ORDER BY 1";
        let rows = self.repository.query(statement, &[&pattern]).await.expect("list tables");
        rows.iter().map(|row| row.get(0)).collect()
    }

    pub async fn has_rows(&self, table: &str, condition: &str) -> bool {
        self.one(&format!("SELECT EXISTS (SELECT FROM {table} WHERE {condition})"), &[]).await
    }

    /// How many rows of the server a table of PoWA's has.
    pub async fn count(&self, table: &str) -> i64 {
        self.one(&format!("SELECT count(*) FROM {{powa}}.{table} WHERE srvid = $1"), &[&self.id]).await
    }

    /// Puts the schema of the repository's PoWA into a statement that names it `{powa}`.
    pub fn sql(&self, statement: &str) -> String {
        statement.replace("{powa}", &self.powa)
    }

    /// Runs statements on the repository.
    pub async fn run(&self, statements: &str) {
        run(&self.repository, &self.sql(statements)).await;
    }

    /// The one value that a query of the repository gives.
    pub async fn one<T>(&self, query: &str, parameters: &[&(dyn ToSql + Sync)]) -> T
    where
        T: for<'a> tokio_postgres::types::FromSql<'a>,
    {
        one(&self.repository, &self.sql(query), parameters).await
    }

    /// A datasource of the test's own: `query` gives rows of `columns` on the monitored server, and they go
    /// to `test_NAME_history` on the repository.
    pub async fn add_datasource(&self, name: &str, columns: &str, query: &str, cleanup: Option<&str>) {
        add_source(&self.monitored, name, columns, query).await;
        self.run(&format!(
            "CREATE TABLE {{powa}}.test_{name}_src_tmp (srvid integer NOT NULL, {columns});
             CREATE TABLE {{powa}}.test_{name}_history (LIKE {{powa}}.test_{name}_src_tmp);
             CREATE FUNCTION {{powa}}.test_{name}_snapshot(_srvid integer) RETURNS void LANGUAGE sql
             AS $function$
                 WITH moved AS (
                     DELETE FROM {{powa}}.test_{name}_src_tmp WHERE srvid = _srvid RETURNING *
                 )
                 INSERT INTO {{powa}}.test_{name}_history SELECT * FROM moved
             $function$"
        ))
        .await;
        let (function, source) = (format!("test_{name}_snapshot"), format!("test_{name}_src"));
        if self.is_powa5() {
            // It must be an extension to have a cleanup; this one every database has.
            self.run(
                "INSERT INTO {powa}.powa_extensions (extname, external) VALUES ('plpgsql', false)
                 ON CONFLICT DO NOTHING",
            )
            .await;
            let statement = "INSERT INTO {powa}.powa_extension_functions
                (extname, operation, function_name, query_source, query_cleanup)
                VALUES ('plpgsql', 'snapshot', $1, $2, $3)";
            self.execute(statement, &[&function, &source, &cleanup]).await;
            let statement = "INSERT INTO {powa}.powa_extension_config (srvid, extname)
                VALUES ($1, 'plpgsql') ON CONFLICT DO NOTHING";
            self.execute(statement, &[&self.id]).await;
        } else {
            let statement = "INSERT INTO {powa}.powa_functions
                (srvid, module, operation, function_name, query_source, query_cleanup)
                VALUES ($1, 'plpgsql', 'snapshot', $2, $3, $4)";
            self.execute(statement, &[&self.id, &function, &source, &cleanup]).await;
        }
    }

    /// A datasource of so many rows, each with the time of its snapshot: what [`Scene::account`] counts.
    pub async fn add_marked(&self, rows: i64) {
        self.add_datasource("marked", MARKED, &marked_rows(rows), None).await;
    }

    /// Where its rows come from in another database that is monitored.
    pub async fn add_marked_source(&self, monitored: &Client, rows: i64) {
        add_source(monitored, "marked", MARKED, &marked_rows(rows)).await;
    }

    /// The same for all servers that are registered by now.
    pub async fn share_marked(&self) {
        if self.is_powa5() {
            self.run(
                "INSERT INTO {powa}.powa_extension_config (srvid, extname)
                 SELECT id, 'plpgsql' FROM {powa}.powa_servers WHERE id > 0 ON CONFLICT DO NOTHING",
            )
            .await;
        } else {
            self.execute(
                "INSERT INTO {powa}.powa_functions
                 (srvid, module, operation, function_name, query_source, query_cleanup)
                 SELECT s.id, f.module, f.operation, f.function_name, f.query_source, f.query_cleanup
                 FROM {powa}.powa_functions AS f, {powa}.powa_servers AS s
                 WHERE f.function_name = 'test_marked_snapshot' AND f.srvid = $1 AND s.id > 0 AND NOT EXISTS (
                     SELECT FROM {powa}.powa_functions AS o
                     WHERE o.srvid = s.id AND o.function_name = f.function_name)",
                &[&self.id],
            )
            .await;
        }
    }

    /// Every snapshot that the repository counts is there, whole and once. Gives how many there are.
    pub async fn account(&self, rows: i64, log: &str) -> i64 {
        let odd = format!(
            "SELECT count(*) FROM (SELECT FROM {{powa}}.test_marked_history GROUP BY srvid, ts HAVING count(*) <> {rows} \
             OR count(DISTINCT number) <> {rows}) AS odd"
        );
        assert_eq!(
            0,
            self.one::<i64>(&odd, &[]).await,
            "snapshots that are not whole, or stored twice\n{log}"
        );
        let times = self.one("SELECT count(DISTINCT (srvid, ts)) FROM {powa}.test_marked_history", &[]).await;
        let counted = "SELECT sum(coalesce_seq - 1)::bigint FROM {powa}.powa_snapshot_metas WHERE srvid > 0";
        assert_eq!(self.one::<i64>(counted, &[]).await, times, "snapshots without rows\n{log}");
        assert_eq!(Vec::<String>::new(), self.leftovers().await, "{log}");
        times
    }

    /// Which of these snapshots' times are in no snapshot of the repository.
    pub async fn missing(&self, fetched: &BTreeSet<String>) -> Vec<String> {
        let times = "SELECT DISTINCT to_char(ts AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00'
            FROM {powa}.test_marked_history";
        let rows = self.repository.query(&self.sql(times), &[]).await.expect("the times");
        let there: BTreeSet<String> = rows.iter().map(|row| row.get(0)).collect();
        fetched.difference(&there).cloned().collect()
    }

    /// The longest time between two snapshots of a server, in seconds.
    pub async fn longest_gap(&self, server: i32) -> f64 {
        let gap = "SELECT coalesce(max(extract(epoch FROM ts - before)), 0)::float8 FROM (
            SELECT ts, lag(ts) OVER (ORDER BY ts) AS before FROM {powa}.test_marked_history WHERE srvid = $1
            GROUP BY ts) AS times";
        self.one(gap, &[&server]).await
    }

    pub async fn execute(&self, statement: &str, parameters: &[&(dyn ToSql + Sync)]) {
        let statement = self.sql(statement);
        self.repository
            .execute(&statement, parameters)
            .await
            .unwrap_or_else(|error| panic!("{error:?}: {statement}"));
    }
}

/// The columns of [`Scene::add_marked`].
const MARKED: &str = "ts timestamptz, number integer";

fn marked_rows(rows: i64) -> String {
    format!("SELECT now(), number FROM generate_series(1, {rows}) AS number")
}

/// The side of a datasource that is on the monitored server.
pub async fn add_source(monitored: &Client, name: &str, columns: &str, query: &str) {
    let powa = powa_schema(monitored).await;
    let statement = format!(
        "CREATE FUNCTION {powa}.test_{name}_src(_srvid integer) RETURNS TABLE ({columns}) \
         STABLE LANGUAGE sql AS $function$ {query} $function$"
    );
    run(monitored, &statement).await;
}

/// The times of the snapshots that a collector says, at the debug level, that it has fetched.
pub fn fetched(log: &str) -> BTreeSet<String> {
    let times = log.lines().filter_map(|line| line.split_once("fetched: the snapshot of "));
    times.map(|(_, time)| time.trim().to_owned()).collect()
}

/// Runs statements.
pub async fn run(client: &Client, statements: &str) {
    client.batch_execute(statements).await.unwrap_or_else(|error| panic!("{error:?}: {statements}"));
}

/// The one value that a query gives.
pub async fn one<T>(client: &Client, query: &str, parameters: &[&(dyn ToSql + Sync)]) -> T
where
    T: for<'a> tokio_postgres::types::FromSql<'a>,
{
    let row = client.query_one(query, parameters).await;
    row.unwrap_or_else(|error| panic!("{error:?}: {query}")).get(0)
}

/// Writes the session's statistics where others see them, before the next statement.
pub async fn flush_statistics(client: &Client) {
    run(client, "SELECT pg_stat_force_next_flush()").await;
}

pub fn merge(into: &mut Value, extra: Value) {
    match (into, extra) {
        (Value::Object(into), Value::Object(extra)) => {
            for (key, value) in extra {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, extra) => *into = extra,
    }
}
