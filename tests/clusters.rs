//! The tests' own support: clusters start, hold a repository and a monitored database, and are gone
//! afterwards.

mod support;

use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::time::Duration;

use support::{
    Cluster, Control, DEADLINE, EXTENSIONS, Powa, Registration, on_both_versions, register_server, wait_until,
};

on_both_versions! {
    async fn a_cluster_holds_a_repository_and_a_monitored_database(powa: Powa) {
        let cluster = Cluster::start(powa);
        cluster.create_repository("powa").await;
        cluster.create_monitored("monitored", EXTENSIONS).await;
        let repository = cluster.client("powa").await;
        let server = Registration::new("127.0.1.1", cluster.port()).alias("one").dbname("monitored");
        assert_eq!(1, register_server(&repository, &server.extensions(EXTENSIONS)).await);

        let statement = "SELECT extversion FROM pg_extension WHERE extname = 'powa'";
        let row = repository.query_one(statement, &[]).await.unwrap();
        let version: &str = row.get(0);
        assert!(version.starts_with(if powa.is_v4() { "4.1" } else { "5." }), "{version}");
        // Every address of this machine is the same cluster.
        let address = SocketAddrV4::new(Ipv4Addr::new(127, 0, 1, 1), cluster.port());
        TcpStream::connect_timeout(&address.into(), Duration::from_secs(5)).unwrap();
    }

    async fn powa_5_lives_in_a_schema_whose_name_needs_quoting(powa: Powa) {
        let cluster = Cluster::start(powa);
        cluster.create_powa_database("powa", Some("PoWA – odd.schema"), EXTENSIONS).await;
        let client = cluster.client("powa").await;
        let schema = support::powa_schema(&client).await;
        assert_eq!(if powa.is_v4() { "\"public\"" } else { "\"PoWA – odd.schema\"" }, schema);
        let server = Registration::of(&cluster, "powa").extensions(EXTENSIONS);
        assert_eq!(1, register_server(&client, &server).await);
    }

    async fn a_cluster_takes_settings_stops_and_starts(powa: Powa) {
        let mut cluster = Cluster::builder(powa).setting("work_mem", "1MB").start();
        cluster.set("work_mem", "2MB");
        cluster.reload().await;
        assert_eq!("2MB", show_work_mem(&cluster).await);
        let client = cluster.client("postgres").await;
        cluster.stop();
        wait_until("the client is disconnected", DEADLINE, async || client.is_closed()).await;
        cluster.start_again();
        assert_eq!("2MB", show_work_mem(&cluster).await);
        cluster.stop_immediately();
        cluster.start_again();
        assert!(cluster.log().contains("was not properly shut down"));

        cluster.set_hba("host all all all reject");
        cluster.reload().await;
        let refused = wait_until("refused", DEADLINE, async || {
            tokio_postgres::connect(&cluster.superuser_dsn("postgres"), tokio_postgres::NoTls).await.err()
        });
        assert!(refused.await.as_db_error().unwrap().message().contains("pg_hba.conf rejects"));
    }

    async fn a_dropped_cluster_leaves_nothing(powa: Powa) {
        let cluster = Cluster::start(powa);
        let (directory, port) = (cluster.data_directory(), cluster.port());
        drop(cluster);
        assert!(!directory.parent().unwrap().exists());
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect_err("nobody listens any more");
    }

    async fn a_client_of_the_control_channel_hears_its_answers(powa: Powa) {
        let cluster = Cluster::start(powa);
        let mut other = Control::connect(&cluster, "postgres").await;
        other.client().batch_execute("LISTEN powa_collector").await.unwrap();
        let control = Control::connect(&cluster, "postgres").await;
        control.send("WORKERS_STATUS", "1").await;
        let heard = other.next(DEADLINE).await.unwrap();
        assert_eq!(format!("WORKERS_STATUS {} 1", control.channel()), heard.payload());
        assert!(other.received().is_empty());
    }
}

async fn show_work_mem(cluster: &Cluster) -> String {
    cluster.client("postgres").await.query_one("SHOW work_mem", &[]).await.unwrap().get(0)
}
