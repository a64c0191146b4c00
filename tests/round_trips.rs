//! How often a fetch waits for a distant server.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::json;
use support::{
    Cluster, Collector, Control, DEADLINE, EXTENSIONS, Powa, Registration, on_both_versions, powa_schema,
    register_server, wait_until,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

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
        let before = relay.turns();
        wait_until("the second snapshot is there", DEADLINE, async || snapshots().await == 2).await;
        assert_eq!(relay.turns() - before, 2);

        let mut control = Control::connect(&cluster, "repository").await;
        assert!(control.ask("WORKERS_STATUS", "").await.contains("running"));
    }
}

/// A relay that counts, on the first connection over it, how often the client speaks after the server did:
/// its round trips.
struct Relay {
    port: u16,
    turns: Arc<AtomicUsize>,
}

impl Relay {
    async fn start(server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let turns = Arc::new(AtomicUsize::new(0));
        let first = Arc::clone(&turns);
        tokio::spawn(async move {
            let mut turns = first;
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                let counted = std::mem::take(&mut turns);
                let has_answered = Arc::new(AtomicBool::new(true));
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                let answered = Arc::clone(&has_answered);
                tokio::spawn(pump(from_client, to_server, move || {
                    if answered.swap(false, Ordering::SeqCst) {
                        counted.fetch_add(1, Ordering::SeqCst);
                    }
                }));
                tokio::spawn(pump(from_server, to_client, move || {
                    has_answered.store(true, Ordering::SeqCst)
                }));
            }
        });
        Self { port, turns }
    }

    fn turns(&self) -> usize {
        self.turns.load(Ordering::SeqCst)
    }
}

async fn pump(mut from: impl AsyncReadExt + Unpin, mut to: impl AsyncWriteExt + Unpin, heard: impl Fn()) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        heard();
        if to.write_all(&buffer[..length]).await.is_err() {
            break;
        }
    }
}
