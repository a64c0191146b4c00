//! How often a fetch waits for a distant server.

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use support::{
    Cluster, Collector, Control, DEADLINE, EXTENSIONS, Powa, Registration, on_both_versions, powa_schema,
    register_server, wait_until,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep_until};

on_both_versions! {
    async fn a_warm_session_reads_all_global_datasources_in_two_round_trips(powa: Powa) {
        let cluster = Cluster::start(powa);
        cluster.create_repository("repository").await;
        cluster.create_monitored("monitored", EXTENSIONS).await;
        let relay = Relay::start(cluster.port()).await;
        let repository = cluster.client("repository").await;
        let server = Registration::new("127.0.0.1", relay.port).dbname("monitored").extensions(EXTENSIONS);
        let id = register_server(&repository, &server).await;
        let _collector = Collector::start(json!({ "repository": { "dsn": cluster.superuser_dsn("repository") } }));
        let schema = powa_schema(&repository).await;
        let statement = format!("SELECT coalesce_seq - 1 FROM {schema}.powa_snapshot_metas WHERE srvid = $1");
        let snapshots = async || -> i64 { repository.query_one(&statement, &[&id]).await.unwrap().get(0) };
        wait_until("the first snapshot is there", DEADLINE, async || snapshots().await == 1).await;
        let before = relay.turns()[0];
        wait_until("the second snapshot is there", DEADLINE, async || snapshots().await == 2).await;
        assert_eq!(relay.turns()[0] - before, 2);

        let mut control = Control::connect(&cluster, "repository").await;
        assert!(control.ask("WORKERS_STATUS", "").await.contains("running"));
    }

    async fn a_database_is_read_in_three_round_trips(powa: Powa) {
        let cluster = Cluster::start(powa);
        cluster.create_repository("repository").await;
        cluster.create_monitored("monitored", &[]).await;
        let relay = Relay::start(cluster.port()).await;
        let repository = cluster.client("repository").await;
        register_server(&repository, &Registration::new("127.0.0.1", relay.port).dbname("monitored")).await;
        let config = json!({ "repository": { "dsn": cluster.superuser_dsn("repository") } });
        let output = Collector::builder(config).argument("once").run().await;
        assert!(output.status.success(), "{output:?}");
        // For the login, for the settings and the statements, for the rows: TLS is not asked for again.
        let databases = if powa.is_v5() { 4 } else { 0 };
        assert_eq!(relay.turns()[1..], vec![3; databases]);
    }
}

/// A relay that counts, on each connection over it, how often the client waits for the server: it holds the
/// server's answers back until the client has said all that it has to say.
struct Relay {
    port: u16,
    turns: Arc<Mutex<Vec<Arc<AtomicUsize>>>>,
}

/// A client that has been silent for this long waits for an answer.
const SILENCE: Duration = Duration::from_millis(200);

impl Relay {
    async fn start(server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let turns = Arc::new(Mutex::new(Vec::new()));
        let counted = Arc::clone(&turns);
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                let turns = Arc::default();
                counted.lock().unwrap().push(Arc::clone(&turns));
                tokio::spawn(relay(client, server, turns));
            }
        });
        Self { port, turns }
    }

    /// Of each connection, in the order in which they came.
    fn turns(&self) -> Vec<usize> {
        self.turns.lock().unwrap().iter().map(|turns| turns.load(Ordering::SeqCst)).collect()
    }
}

async fn relay(mut client: TcpStream, mut server: TcpStream, turns: Arc<AtomicUsize>) {
    let (mut asked, mut answered) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut held = Vec::new();
    let (mut has_asked, mut spoke) = (false, Instant::now());
    loop {
        tokio::select! {
            Ok(length @ 1..) = client.read(&mut asked) => {
                (has_asked, spoke) = (true, Instant::now());
                if server.write_all(&asked[..length]).await.is_err() { return }
            }
            Ok(length @ 1..) = server.read(&mut answered) => held.extend_from_slice(&answered[..length]),
            () = sleep_until(spoke + SILENCE), if !held.is_empty() => {
                turns.fetch_add(usize::from(std::mem::take(&mut has_asked)), Ordering::SeqCst);
                if client.write_all(&held).await.is_err() { return }
                held.clear();
            }
            else => return,
        }
    }
}
