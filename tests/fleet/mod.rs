//! What the tests of a collector at work share: a repository with idle servers ([`Fleet`]), and a way to make
//! a function of PostgreSQL wait ([`Gate`]).
#![allow(dead_code, reason = "each test file uses a part of this module")]

use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::support::{
    Cluster, Collector, Control, DEADLINE, Powa, Registration, register_server, wait_until,
};

/// The line that says that commands are heard.
pub const LISTENING: &str = "listening for control messages on";

/// The line that says that a worker has done all there is to do at its start.
const IDLE: &str = "the server's version is now";

/// A cluster with the repository `powa` and the database `monitored`, and a collector that listens.
pub struct Fleet {
    pub collector: Collector,
    pub control: Control,
    /// A session of the superuser in the repository.
    pub repository: Client,
    pub cluster: Cluster,
}

impl Fleet {
    /// With one server, whose id is 1; its worker runs and has nothing to do.
    pub async fn start(powa: Powa) -> Fleet {
        Fleet::with(powa, json!({})).await
    }

    /// The same, with these keys in the configuration file.
    pub async fn with(powa: Powa, keys: Value) -> Fleet {
        let (cluster, repository) = cluster(powa).await;
        register_idle(&repository, monitored(&cluster, 1)).await;
        let mut fleet = Fleet::of(cluster, repository, keys).await;
        fleet.collector.wait_for_log(IDLE).await;
        fleet
    }

    /// With the servers that are registered already.
    pub async fn of(cluster: Cluster, repository: Client, keys: Value) -> Fleet {
        let mut collector = Collector::start(config(&cluster, keys));
        collector.wait_for_log(LISTENING).await;
        let control = Control::connect(&cluster, "powa").await;
        Fleet { collector, control, repository, cluster }
    }

    /// Registers one more idle server. The collector is not told.
    pub async fn register(&self, number: u8) -> i32 {
        register_idle(&self.repository, monitored(&self.cluster, number)).await
    }

    pub async fn ask(&mut self, command: &str, arguments: &str) -> String {
        self.control.ask(command, arguments).await
    }

    /// Asks for a snapshot, which is taken or will be.
    pub async fn force(&mut self, server: i32) {
        let answer = self.ask("FORCE_SNAPSHOT", &server.to_string()).await;
        assert!(answer.starts_with("FORCE_SNAPSHOT OK Snapshot "), "{answer}");
    }

    /// What comes next on the client's channel.
    pub async fn answer(&mut self) -> String {
        let answer = self.control.next(DEADLINE).await;
        answer.expect("an answer on the control channel").payload().to_owned()
    }

    pub async fn wait_for_states(&mut self, expected: &str) {
        wait_for_states(&mut self.control, expected).await;
    }

    /// How many snapshots the repository has of a server, plus one.
    pub async fn snapshots(&self, server: i32) -> i64 {
        snapshots(&self.repository, server).await
    }

    pub async fn wait_for_snapshots(&self, server: i32, least: i64) {
        wait_for_snapshots(&self.repository, server, least).await;
    }

    /// The backends of sessions with this server.
    pub async fn sessions(&self, number: u8) -> Vec<i32> {
        let name = format!("PoWA collector - worker 127.0.1.{number}:{}", self.cluster.port());
        sessions(&self.repository, &name).await
    }

    pub async fn execute(&self, statement: &str) {
        self.repository.batch_execute(statement).await.expect(statement);
    }
}

/// A cluster with the repository `powa` and the database `monitored`, and a session with the former.
pub async fn cluster(powa: Powa) -> (Cluster, Client) {
    databases(Cluster::start(powa)).await
}

/// Makes the same of a cluster that is there.
pub async fn databases(cluster: Cluster) -> (Cluster, Client) {
    cluster.create_monitored("powa", &[]).await;
    // A copy is made faster than the extension is created again.
    let admin = cluster.client("postgres").await;
    admin.batch_execute("CREATE DATABASE monitored TEMPLATE powa").await.expect("copy a database");
    let repository = cluster.client("powa").await;
    if cluster.powa().is_v5() {
        // Nothing here is about system catalogs, and they are ten times as many rows as the rest.
        repository.batch_execute("DELETE FROM powa_catalogs").await.expect("leave out the catalogs");
    }
    (cluster, repository)
}

/// The configuration of a collector that reads the servers again only when it is told to, unless `keys` say
/// otherwise.
pub fn config(repository: &Cluster, mut keys: Value) -> Value {
    keys["repository"]["dsn"] = repository.superuser_dsn("powa").into();
    if keys["servers_refresh_interval"].is_null() {
        keys["servers_refresh_interval"] = json!(0);
    }
    keys
}

/// One of the many addresses of the cluster.
pub fn monitored(cluster: &Cluster, number: u8) -> Registration {
    Registration::new(&format!("127.0.1.{number}"), cluster.port()).dbname("monitored")
}

/// Registers a server with which nothing is to be done for an hour, but whose last snapshot is old enough to
/// force another one.
pub async fn register_idle(repository: &Client, server: Registration) -> i32 {
    let id = register_server(repository, &server.frequency(3600)).await;
    age_snapshot(repository, id).await;
    id
}

/// Makes the last snapshot of a server a minute old.
pub async fn age_snapshot(repository: &Client, server: i32) {
    let statement = "UPDATE powa_snapshot_metas SET snapts = now() - interval '1 minute' WHERE srvid = $1";
    repository.execute(statement, &[&server]).await.expect("make the last snapshot older");
}

pub async fn wait_for_states(control: &mut Control, expected: &str) {
    let expected = format!("WORKERS_STATUS OK {expected}");
    wait_until(&expected, DEADLINE, async || control.ask("WORKERS_STATUS", "").await == expected).await;
}

pub async fn snapshots(repository: &Client, server: i32) -> i64 {
    let statement = "SELECT coalesce_seq FROM powa_snapshot_metas WHERE srvid = $1";
    repository.query_one(statement, &[&server]).await.expect("count the snapshots").get(0)
}

pub async fn wait_for_snapshots(repository: &Client, server: i32, least: i64) {
    let what = format!("snapshot {least} of server {server}");
    wait_until(&what, DEADLINE, async || snapshots(repository, server).await >= least).await;
}

/// The backends whose `application_name` is like this.
pub async fn sessions(client: &Client, name: &str) -> Vec<i32> {
    let statement = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE $1 ORDER BY 1";
    let rows = client.query(statement, &[&name]).await.expect("list the sessions");
    rows.iter().map(|row| row.get(0)).collect()
}

/// A function of a database that waits until the test lets it go on.
pub struct Gate(Client);

impl Gate {
    /// Every snapshot of a server that is read from the database `monitored` stops at it.
    pub async fn in_fetch(cluster: &Cluster) -> Gate {
        Gate::before(cluster, "monitored", "powa_databases_src").await
    }

    /// Every snapshot that is stored stops at it, with its rows copied.
    pub async fn in_store(cluster: &Cluster) -> Gate {
        Gate::before(cluster, "powa", "powa_take_snapshot").await
    }

    async fn before(cluster: &Cluster, dbname: &str, function: &str) -> Gate {
        let client = cluster.client(dbname).await;
        client.batch_execute("SELECT pg_advisory_lock(1)").await.expect("close the gate");
        let wait = "SELECT set_config('lock_timeout', '0', true); SELECT pg_advisory_xact_lock_shared(1)";
        prepend(&client, function, wait).await;
        Gate(client)
    }

    /// Waits until somebody waits at it.
    pub async fn reached(&self) {
        let statement = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
        wait_until("the gate is reached", DEADLINE, async || {
            !self.0.query(statement, &[]).await.expect("look at the locks").is_empty()
        })
        .await;
    }

    /// For good.
    pub fn open(self) {}
}

/// Makes a function of PoWA run these statements first.
pub async fn prepend(client: &Client, function: &str, statements: &str) {
    let signature = "SELECT pg_get_function_arguments(oid), pg_get_function_result(oid)
        FROM pg_proc WHERE proname = $1";
    let row = client.query_one(signature, &[&function]).await.expect("find the function");
    let (arguments, result): (String, String) = (row.get(0), row.get(1));
    client
        .batch_execute(&format!(
            "ALTER FUNCTION public.{function} RENAME TO {function}_itself;
            CREATE FUNCTION public.{function}({arguments}) RETURNS {result} LANGUAGE sql AS
            $$ {statements}; SELECT * FROM public.{function}_itself($1) $$"
        ))
        .await
        .expect("replace the function");
}
