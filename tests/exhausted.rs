//! Something runs out, on the collector's side or on a server's: disk, file descriptors, connections. Who cannot go on says
//! why, the others go on, and when there is room again all do, by themselves.

mod scene;
mod support;

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::Command;

use scene::{Scene, add_source, one, run};
use serde_json::{Value, json};
use support::{
    Cluster, Collector, Control, DEADLINE, Powa, Registration, Spool, on_both_versions, wait_until,
};
use tokio_postgres::{Client, NoTls};

const ROWS: i64 = 500;

on_both_versions! {
    async fn a_full_disk_costs_only_snapshots_that_are_too_large_for_memory(powa: Powa) {
        let scene = scene(powa).await;
        make_large_and_small(&scene).await;
        let large = scene.id;
        let [small, other] = [add_server(&scene, 1, "small").await, add_server(&scene, 2, "small").await];
        scene.share_marked().await;
        scene.run("ALTER ROLE postgres SET lock_timeout = '1min'").await;
        set_period(&scene).await;
        let spool = Spool::new();
        let disk = Disk::new(&spool);
        let mut collector = disk.collect(scene.config(json!({
            "spool": { "directory": spool.path(), "memory_limit": 1 << 20 },
            "repository": { "max_connections": 1 },
            "debug": true,
        })));
        for server in [large, small, other] {
            scene.wait_for_snapshots_of(server, 1).await;
        }

        wait_until("the disk is full", DEADLINE, async || {
            // What has been stored has left some room.
            disk.fill(&collector);
            let is_told = |text: &str| collector.warnings().iter().any(|line| line.contains(text));
            is_told("no snapshot: write a spool file") && is_told("could not wait for the repository")
        }).await;
        let is_clear = |line: &str| line.contains(&spool.path().display().to_string()) && line.contains(disk.error());
        wait_until("the repository says why", DEADLINE, async || {
            scene.errors_of(large).await.iter().any(|error| is_clear(error))
        }).await;
        // One is being stored, and another one waits for that.
        let busy = scene.cluster.client("powa").await;
        let lock = "BEGIN; LOCK TABLE {powa}.test_marked_src_tmp IN SHARE MODE";
        run(&busy, &scene.sql(lock)).await;
        let before = [scene.snapshots_of(small).await, scene.snapshots_of(other).await];
        collector.wait_for_log_after(collector.log_position(), "waits for the repository").await;
        drop(busy);
        for (server, before) in [small, other].into_iter().zip(before) {
            scene.wait_for_snapshots_of(server, before + 1).await;
            assert_eq!(Vec::<String>::new(), scene.errors_of(server).await);
        }
        let warnings = collector.warnings();
        assert!(warnings.iter().all(|line| is_clear(line)), "{warnings:#?}");
        for server in [small, other] {
            let lost = collector.warnings_of(server).into_iter().filter(|line| line.contains("no snapshot: "));
            assert_eq!(Vec::<String>::new(), lost.collect::<Vec<_>>());
        }
        let told = warnings.iter().filter(|line| !line.contains("no snapshot: "));
        assert_eq!(1, told.count(), "{warnings:#?}");
        let log = collector.log_of(large);
        assert!(!log.iter().any(|line| line.contains("works again")), "{log:#?}");

        disk.make_room(&collector);
        collector.wait_for_log("snapshots can wait for the repository again").await;
        let before = scene.snapshots_of(large).await;
        scene.wait_for_snapshots_of(large, before + 1).await;
        assert_eq!(Vec::<String>::new(), scene.errors_of(large).await);
        finish(&scene, collector).await;
    }

    async fn without_file_descriptors_some_servers_wait_and_the_rest_goes_on(powa: Powa) {
        let scene = scene(powa).await;
        let mut servers = vec![scene.id];
        for number in 1..30 {
            servers.push(add_server(&scene, number, "monitored").await);
        }
        scene.share_marked().await;
        scene.run("UPDATE {powa}.powa_servers SET frequency = -1 WHERE id > 0").await;
        let spool = Spool::new();
        let config = scene.config(json!({
            "spool": { "directory": spool.path() },
            "repository": { "max_connections": 2 },
            "fetch": { "connects_at_once": 2, "at_once": 2, "database_connections": 1 },
        }));
        let mut collector = Collector::start(config);
        collector.wait_for_log("listening for control messages on").await;
        // It has raised its limit already, and comes to its servers now.
        // As many as it has, from whoever started it too, what it keeps for the repository, and half of the servers.
        let open = std::fs::read_dir(format!("/proc/{}/fd", collector.pid())).unwrap().count();
        let limit = open + 13 + servers.len() / 2;
        prlimit(&collector, &format!("--nofile={limit}:"));
        set_period(&scene).await;
        let mut control = Control::connect(&scene.cluster, "powa").await;
        assert_eq!("RELOAD OK OK", control.ask("RELOAD", "").await);
        let all_have = async |servers: &[i32], least| {
            for server in servers {
                scene.wait_for_snapshots_of(*server, least).await;
            }
        };

        let is_told = |server: &i32| !collector.warnings_of(*server).is_empty();
        wait_until("some find no room", DEADLINE, async || servers.iter().any(is_told)).await;
        // By then everybody has tried.
        wait_until("everybody has a state", DEADLINE, async || {
            !control.ask("WORKERS_STATUS", "").await.contains("Unknown")
        }).await;
        let (without, with): (Vec<i32>, Vec<i32>) = servers.iter().partition(|server| is_told(server));
        assert!(with.len() > 5 && without.len() > 5, "{}", collector.log());
        all_have(&with, 2).await;
        for server in &without {
            assert_eq!(0, scene.snapshots_of(*server).await);
            let warnings = collector.warnings_of(*server);
            assert!(warnings.len() == 1 && warnings[0].contains(&format!("of the {limit} files and connections")), "{warnings:#?}");
            let errors = scene.errors_of(*server).await;
            assert!(errors.len() == 1 && errors[0].contains("LimitNOFILE"), "{errors:#?}");
        }

        prlimit(&collector, "--nofile=1024:");
        all_have(&servers, 1).await;
        assert_eq!(without.len(), collector.warnings().len(), "{:#?}", collector.warnings());
        finish(&scene, collector).await;
    }

    async fn a_repository_without_connections_is_waited_for(powa: Powa) {
        let scene = scene(powa).await;
        let other = add_server(&scene, 1, "monitored").await;
        scene.share_marked().await;
        set_period(&scene).await;
        set_up_role(&scene).await;
        let spool = Spool::new();
        let config = json!({
            "repository": { "dsn": scene.cluster.dsn("powa_collector", "powa") },
            "spool": { "directory": spool.path() },
            "debug": true,
        });
        let mut collector = Collector::start(config);
        for server in [scene.id, other] {
            scene.wait_for_snapshots_of(server, 1).await;
        }

        // One for each purpose, where there would be two stores at a time.
        scene.run("ALTER ROLE powa_collector CONNECTION LIMIT 3").await;
        end_sessions(&scene.repository, "powa_collector").await;
        let (before, before_other) = (scene.snapshots().await, scene.snapshots_of(other).await);
        scene.wait_for_snapshots_of(scene.id, before + 2).await;
        scene.wait_for_snapshots_of(other, before_other + 2).await;

        scene.run("ALTER ROLE powa_collector CONNECTION LIMIT 0").await;
        let position = collector.log_position();
        end_sessions(&scene.repository, "powa_collector").await;
        let line = collector.wait_for_log_after(position, "the repository does not take snapshots").await;
        assert!(line.contains("WARN"), "{line}");
        let line = collector.wait_for_log_after(position, "too many connections for role").await;
        assert!(line.contains("max_connections of the server, or of the role"), "{line}");
        spool.wait_for_snapshots(4).await;
        scene.run("ALTER ROLE powa_collector CONNECTION LIMIT -1").await;
        spool.wait_until_no_snapshots().await;
        collector.wait_for_log_after(position, "the repository takes snapshots again").await;
        for server in [scene.id, other] {
            let warnings: Vec<_> = collector.warnings_after(position).into_iter()
                .filter(|line| line.contains(&format!("srvid={server}}}"))).collect();
            assert_eq!(1, warnings.len(), "{warnings:#?}");
        }
        let missing = scene.missing(&scene::fetched(&collector.log())).await;
        finish(&scene, collector).await;
        assert!(missing.is_empty(), "fetched and not stored: {missing:?}");
    }

    async fn a_server_without_connections_is_waited_for(powa: Powa) {
        let scene = scene(powa).await;
        let server = Cluster::builder(powa).setting("max_connections", "8").start();
        server.create_monitored("powa", &[]).await;
        scene.add_marked_source(&server.client("powa").await, ROWS).await;
        let id = scene.register(&Registration::of(&server, "powa")).await;
        scene.share_marked().await;
        set_period(&scene).await;
        let spool = Spool::new();
        let collector = Collector::start(scene.config(json!({ "spool": { "directory": spool.path() } })));
        scene.wait_for_snapshots_of(id, 1).await;

        let mut others = vec![server.client("powa").await];
        wait_until("others have all connections", DEADLINE, async || {
            end_sessions(&others[0], "postgres").await;
            while let Some(other) = connect(&server).await {
                others.push(other);
            }
            collector.log_of(id).iter().any(|line| line.contains("no connection to the monitored server"))
                && collector_sessions(&others[0]).await == 0
        }).await;
        wait_until("the repository says why", DEADLINE, async || {
            let errors = scene.errors_of(id).await;
            errors.iter().any(|error| error.contains("too many clients") && error.contains("max_connections"))
        }).await;
        let (before, mine) = (scene.snapshots().await, scene.snapshots_of(id).await);
        scene.wait_for_snapshots(before + 2).await;
        assert_eq!(mine, scene.snapshots_of(id).await);

        drop(others);
        scene.wait_for_snapshots_of(id, mine + 1).await;
        assert_eq!(Vec::<String>::new(), scene.errors_of(id).await);
        let warnings = collector.warnings();
        assert!(warnings.len() == 1 && warnings[0].contains("no connection to the monitored server"), "{warnings:#?}");
        finish(&scene, collector).await;
    }
}

#[tokio::test]
async fn as_many_files_are_allowed_as_the_system_gives() {
    let config = json!({ "repository": { "dsn": "host=127.0.0.1 port=1 user=powa" } });
    let mut collector = Collector::builder(config).wrapper(&["prlimit", "--nofile=64:4096"]).start();
    collector.wait_for_log("not listening").await;
    let limits = fs::read_to_string(format!("/proc/{}/limits", collector.pid())).expect("its limits");
    let files = limits.lines().find(|line| line.starts_with("Max open files")).expect("that of files");
    assert_eq!(["4096", "4096"], files.split_whitespace().collect::<Vec<_>>()[3..5]);
    assert!(collector.stop().await.success());
}

/// A repository and a server in one cluster.
async fn scene(powa: Powa) -> Scene {
    let cluster = Cluster::builder(powa).setting("autovacuum", "off").start();
    let port = cluster.port();
    Scene::marked(cluster, port, ROWS).await
}

async fn add_server(scene: &Scene, number: u8, dbname: &str) -> i32 {
    let server = Registration::new(&format!("127.0.1.{number}"), scene.cluster.port()).dbname(dbname);
    scene.register(&server).await
}

async fn set_period(scene: &Scene) {
    scene.run("UPDATE {powa}.powa_servers SET frequency = 5 WHERE id > 0").await;
}

/// Makes the snapshots of the first server large, and a database whose snapshots are small.
async fn make_large_and_small(scene: &Scene) {
    let rows = |count: u32| format!("SELECT repeat('x', 200) FROM generate_series(1, {count})");
    scene.add_datasource("bulk", "filling text", &rows(20_000), None).await;
    scene.cluster.create_monitored("small", &[]).await;
    let small = scene.cluster.client("small").await;
    scene.add_marked_source(&small, ROWS).await;
    add_source(&small, "bulk", "filling text", &rows(0)).await;
}

/// Stops the collector, and looks at what is in the repository.
async fn finish(scene: &Scene, mut collector: Collector) {
    assert!(collector.stop().await.success());
    let log = collector.log();
    assert!(!log.contains("fault of the collector") && !log.contains("panicked"), "{log}");
    scene.account(ROWS, &log).await;
}

/// Makes the role that the setup script makes.
async fn set_up_role(scene: &Scene) {
    let powa4 = include_str!("../sql/setup/repository_powa4.sql");
    scene.run(scene.pick(powa4, include_str!("../sql/setup/repository_powa5.sql"))).await;
    // The script does not know of the test's own tables.
    scene.run("GRANT ALL ON {powa}.test_marked_src_tmp, {powa}.test_marked_history TO powa_collector").await;
}

/// Ends the collector's sessions of a role.
async fn end_sessions(client: &Client, role: &str) {
    let statement = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE application_name LIKE 'PoWA collector%' AND usename = $1";
    client.execute(statement, &[&role]).await.expect("end sessions");
}

async fn collector_sessions(client: &Client) -> i64 {
    let count = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'PoWA collector%'";
    one(client, count, &[]).await
}

/// A connection, where there is one left.
async fn connect(server: &Cluster) -> Option<Client> {
    let (client, connection) = tokio_postgres::connect(&server.superuser_dsn("powa"), NoTls).await.ok()?;
    tokio::spawn(connection);
    Some(client)
}

/// The collector's disk for snapshots, which can be full.
enum Disk {
    /// A file system of its own, that only the collector sees. With the file that fills it.
    Small(PathBuf),
    /// Where nothing may be mounted: the files that the collector may write have a limit.
    Limited,
}

impl Disk {
    fn new(spool: &Spool) -> Disk {
        let mut mount = Command::new("unshare");
        mount.args(["--mount", "mount", "-t", "tmpfs", "tmpfs"]).arg(spool.path());
        match mount.status() {
            Ok(status) if status.success() => Disk::Small(spool.path().join("filling")),
            _ => Disk::Limited,
        }
    }

    /// Starts a collector on it.
    fn collect(&self, config: Value) -> Collector {
        let builder = Collector::builder(config);
        match self {
            Disk::Small(filling) => {
                let mount = "mount -t tmpfs -o size=32m tmpfs \"$0\" && exec \"$@\"";
                let directory = filling.parent().expect("it is in a directory").to_str().expect("UTF-8");
                builder.wrapper(&["unshare", "--mount", "sh", "-c", mount, directory]).start()
            }
            Disk::Limited => builder.wrapper(&["sh", "-c", "trap '' XFSZ; exec \"$@\"", "sh"]).start(),
        }
    }

    /// Leaves no room.
    fn fill(&self, collector: &Collector) {
        let Disk::Small(filling) = self else { return self.limit(collector, "0:") };
        let file = OpenOptions::new().create(true).append(true).open(seen_by(collector, filling));
        let mut file = file.expect("open the file that fills the disk");
        let error = loop {
            if let Err(error) = file.write_all(&[0; 4096]) {
                break error;
            }
        };
        assert_eq!(ErrorKind::StorageFull, error.kind());
    }

    fn make_room(&self, collector: &Collector) {
        match self {
            Disk::Small(filling) => fs::remove_file(seen_by(collector, filling)).expect("make room"),
            Disk::Limited => self.limit(collector, "unlimited:"),
        }
    }

    fn limit(&self, collector: &Collector, size: &str) {
        prlimit(collector, &format!("--fsize={size}"));
    }

    /// What the system says when it is full.
    fn error(&self) -> &str {
        match self {
            Disk::Small(_) => "No space left on device",
            Disk::Limited => "File too large",
        }
    }
}

/// A path as a process sees it.
fn seen_by(collector: &Collector, path: &std::path::Path) -> PathBuf {
    let root = format!("/proc/{}/root", collector.pid());
    PathBuf::from(root).join(path.strip_prefix("/").expect("an absolute path"))
}

/// Changes a limit of the running collector.
fn prlimit(collector: &Collector, limit: &str) {
    let status = Command::new("prlimit").arg("--pid").arg(collector.pid().to_string()).arg(limit).status();
    assert!(status.expect("run prlimit").success());
}
