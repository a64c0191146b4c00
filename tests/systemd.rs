//! What the service manager is told, by way of a socket like systemd's own, and the unit that is shipped.

mod fleet;
mod support;

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{fs, io, net};

use fleet::{Fleet, Gate, LISTENING, cluster, config, monitored, register_idle, wait_for_snapshots};
use serde_json::{Value, json};
use support::{
    Collector, CollectorBuilder, Control, DEADLINE, Powa, Signal, Spool, on_both_versions, wait_until,
};
use tempfile::TempDir;

const UNIT: &str = include_str!("../packaging/systemd/powa-collector.service");

on_both_versions! {
    async fn the_status_says_how_the_servers_are_and_who_listens(powa: Powa) {
        let began = Instant::now();
        let (mut fleet, manager) = Manager::of_fleet(powa, json!({}), &[]).await;
        let place = format!("127.0.0.1:{}/powa", fleet.cluster.port());
        let listening = format!("1 server, 1 running; listening on {place}");
        manager.wait_for("a status", 0, |message| message.has("STATUS", &listening)).await;

        let dead = net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut server = monitored(&fleet.cluster, 2);
        server.port = dead;
        register_idle(&fleet.repository, server).await;
        assert_eq!("RELOAD OK OK", fleet.ask("RELOAD", "").await);
        let told = format!("2 servers, 1 running, 1 without connection; listening on {place}");
        manager.wait_for("a status", 0, |message| message.has("STATUS", &told)).await;

        fleet.cluster.stop();
        let waits = format!("; waiting for the repository {place}");
        manager.wait_for("a status", 0, |message| message.field("STATUS").is_some_and(|status| status.contains(&waits)))
            .await;

        let messages = manager.messages();
        assert!(!messages.iter().any(|message| message.0.contains("xyzzy42")), "{messages:?}");
        // Those of which a status is all do not come faster than this, whatever happens, and only when it is another one.
        let statuses: Vec<&str> = messages.iter().filter_map(|message| message.field("STATUS")).collect();
        assert!(!statuses.windows(2).any(|pair| pair[0] == pair[1]), "{messages:?}");
        let refreshed = messages.iter().filter(|message| message.0.lines().count() == 1).count();
        let most = began.elapsed().as_secs() / 2;
        assert!(refreshed as u64 <= most, "{refreshed} in {:?}", began.elapsed());
    }

    async fn a_reload_is_over_for_the_service_manager_when_it_has_been_applied(powa: Powa) {
        let (mut fleet, manager) = Manager::of_fleet(powa, json!({}), &[]).await;
        fleet.register(2).await;
        let (position, before) = (manager.count(), monotonic_usec());
        fleet.collector.signal(Signal::SIGHUP);
        let ready = manager.wait_for_reload(position, before).await;
        assert!(ready.field("STATUS").unwrap().starts_with("2 servers, "), "{ready:?}");

        // One that a client asks for is one too.
        fleet.register(3).await;
        let (position, before) = (manager.count(), monotonic_usec());
        assert_eq!("RELOAD OK OK", fleet.ask("RELOAD", "").await);
        let ready = manager.wait_for_reload(position, before).await;
        assert!(ready.field("STATUS").unwrap().starts_with("3 servers, "), "{ready:?}");

        // As is one that fails.
        let good = fs::read_to_string(fleet.collector.config_path()).unwrap();
        fs::write(fleet.collector.config_path(), "{\"debug\": \"xyzzy42\"}").unwrap();
        let (position, before) = (manager.count(), monotonic_usec());
        fleet.collector.signal(Signal::SIGHUP);
        let ready = manager.wait_for_reload(position, before).await;
        let told = "; the last reload failed: ";
        let status = ready.field("STATUS").unwrap();
        assert!(status.contains(told) && status.contains("key debug"), "{status}");

        fs::write(fleet.collector.config_path(), good).unwrap();
        let (position, before) = (manager.count(), monotonic_usec());
        fleet.collector.signal(Signal::SIGHUP);
        let ready = manager.wait_for_reload(position, before).await;
        assert!(!ready.field("STATUS").unwrap().contains(told), "{ready:?}");
        assert!(!manager.messages().iter().any(|message| message.0.contains("xyzzy42")));
    }

    async fn a_stop_asks_for_more_time_until_it_is_over(powa: Powa) {
        let (mut fleet, manager) = Manager::of_fleet(powa, json!({ "shutdown_timeout": 600 }), &[]).await;
        let gate = Gate::in_store(&fleet.cluster).await;
        fleet.force(1).await;
        gate.reached().await;
        let position = manager.count();
        fleet.collector.signal(Signal::SIGTERM);
        let stopping = |message: &Message| message.has("STOPPING", "1");
        let (at, message) = manager.wait_for("STOPPING", position, stopping).await;
        assert_eq!(message.field("STATUS"), Some("stopping: stores in progress have 600 s; 1 server, 1 stopping"));
        let first = message.field("EXTEND_TIMEOUT_USEC").expect("more time").parse().unwrap();
        let mut last = (Instant::now(), Duration::from_micros(first));
        let mut position = at + 1;
        for _ in 0..3 {
            let extends = |message: &Message| message.field("EXTEND_TIMEOUT_USEC").is_some();
            let (at, message) = manager.wait_for("more time", position, extends).await;
            // Before what it was given is over.
            assert!(last.0.elapsed() < last.1);
            last = (Instant::now(), Duration::from_micros(message.field("EXTEND_TIMEOUT_USEC").unwrap().parse().unwrap()));
            position = at + 1;
        }
        gate.open();
        assert_eq!(Some(0), fleet.collector.wait_exit(DEADLINE).await.code());
        let messages = manager.messages();
        assert_eq!(messages.iter().filter(|message| message.has("READY", "1")).count(), 1, "{messages:?}");
    }

    async fn the_watchdog_is_not_fed_while_the_dispatcher_stands_still(powa: Powa) {
        let (cluster, repository) = cluster(powa).await;
        let server = register_idle(&repository, monitored(&cluster, 1)).await;
        repository.execute("UPDATE powa_servers SET frequency = 5", &[]).await.unwrap();
        let manager = Manager::start();
        let mut collector =
            manager.collector(config(&cluster, json!({}))).environment("WATCHDOG_USEC", "1000000").start();
        collector.wait_for_log(LISTENING).await;
        manager.wait_for_feeding(0).await;

        // A file system that does not answer: to open this one takes until somebody opens its other end.
        let spool = Spool::new();
        let folder = spool.path().join("folder");
        fs::create_dir(&folder).unwrap();
        nix::unistd::mkfifo(&folder.join("lock"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        collector.write_config(&config(&cluster, json!({ "spool": { "directory": spool.path() } })));
        collector.signal(Signal::SIGHUP);
        collector.wait_for_log("configuration: spool.directory").await;

        // The workers know nothing of it, and go on.
        let snapshots = fleet::snapshots(&repository, server).await;
        wait_for_snapshots(&repository, server, snapshots + 1).await;
        let position = manager.count();
        wait_for_snapshots(&repository, server, snapshots + 2).await;
        let messages = manager.messages();
        assert_eq!(messages.len(), position, "{messages:?}");
        let reloading = messages.iter().position(|message| message.has("RELOADING", "1")).expect("a reload");
        assert!(!messages[reloading..].iter().any(|message| message.has("READY", "1")), "{messages:?}");

        fs::OpenOptions::new().write(true).open(folder.join("lock")).unwrap();
        manager.wait_for_feeding(position).await;
        manager.wait_for("READY", position, |message| message.has("READY", "1")).await;
    }
}

#[tokio::test]
async fn a_start_is_over_although_the_repository_is_away() {
    let (manager, mut collector) = Manager::without_repository(&[]);
    let (at, ready) = manager.wait_for("READY", 0, |message| message.has("READY", "1")).await;
    assert_eq!(at, 0);
    let status = ready.field("STATUS").unwrap();
    assert!(status.starts_with("0 servers; waiting for the repository 127.0.0.1:"), "{status}");

    // Why it could not be asked is part of how a reload has gone.
    let before = monotonic_usec();
    collector.signal(Signal::SIGHUP);
    let ready = manager.wait_for_reload(1, before).await;
    assert!(ready.field("STATUS").unwrap().contains("the last reload failed: "), "{ready:?}");

    let position = manager.count();
    assert!(collector.stop().await.success());
    let (_, stopping) = manager.wait_for("STOPPING", position, |message| message.has("STOPPING", "1")).await;
    assert!(stopping.field("STATUS").unwrap().starts_with("stopping: "), "{stopping:?}");
    assert!(!manager.messages().iter().any(|message| message.0.contains("xyzzy42")));
}

#[tokio::test]
async fn a_configuration_that_cannot_be_used_is_no_start() {
    let manager = Manager::start();
    let output = manager.collector(json!({})).run().await;
    assert_eq!(output.status.code(), Some(2));
    assert!(manager.messages().is_empty());
}

#[tokio::test]
async fn the_watchdog_is_fed_at_least_twice_in_its_time() {
    const WATCHDOG: Duration = Duration::from_secs(6);
    let usec = WATCHDOG.as_micros().to_string();
    let (manager, _collector) = Manager::without_repository(&[("WATCHDOG_USEC", &usec)]);
    let mut at = manager.wait_for_feeding(0).await;
    for _ in 0..3 {
        let fed = Instant::now();
        at = manager.wait_for_feeding(at + 1).await;
        assert!(fed.elapsed() <= WATCHDOG / 2, "{:?}", fed.elapsed());
    }
}

#[tokio::test]
async fn a_watchdog_of_another_process_is_left_alone() {
    // The shell becomes the program.
    let own = ["sh", "-c", "export WATCHDOG_PID=$$; exec \"$@\"", "sh"];
    let others = ["sh", "-c", "export WATCHDOG_PID=1; exec \"$@\"", "sh"];
    for (wrapper, is_fed) in [(own, true), (others, false)] {
        let manager = Manager::start();
        let mut collector =
            manager.collector(nowhere()).wrapper(&wrapper).environment("WATCHDOG_USEC", "30000000").start();
        let (at, _) = manager.wait_for("READY", 0, |message| message.has("READY", "1")).await;
        // Of its first feeding a watchdog would have been told by now.
        let before = monotonic_usec();
        collector.signal(Signal::SIGHUP);
        manager.wait_for_reload(at + 1, before).await;
        assert!(collector.stop().await.success());
        assert_eq!(manager.messages().iter().any(Message::feeds), is_fed);
    }
}

#[tokio::test]
async fn without_a_service_manager_there_is_nothing_to_say() {
    let mut collector = Collector::builder(nowhere()).environment("WATCHDOG_USEC", "1000").start();
    collector.wait_for_log("trying again until it works").await;
    assert!(collector.stop().await.success());
    assert!(!collector.log().contains("NOTIFY_SOCKET"), "{}", collector.log());
}

#[tokio::test]
async fn a_service_manager_that_is_gone_holds_nobody_up() {
    let mut collector = Collector::builder(nowhere())
        .environment("NOTIFY_SOCKET", "/nowhere/notify")
        .environment("WATCHDOG_USEC", "1000")
        .start();
    collector.wait_for_log("trying again until it works").await;
    assert!(collector.stop().await.success());
    let told = "the service manager cannot be told how it goes: NOTIFY_SOCKET: ";
    assert_eq!(collector.log().matches(told).count(), 1, "{}", collector.log());
}

#[test]
fn the_unit_leaves_the_program_little_that_could_be_misused() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/systemd/powa-collector.service");
    let mut analyze = systemd_analyze();
    // In tenths; 10.0 is a unit that may do everything.
    analyze.args(["security", "--offline=true", "--threshold=20"]).arg(unit);
    let output = analyze.output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}");
    assert!(told.contains("Overall exposure level for powa-collector.service: "), "{told}");
}

#[test]
fn the_unit_and_its_drop_in_are_understood_by_systemd() {
    let directory = TempDir::new().unwrap();
    // The program need not be installed for this.
    let installed = "ExecStart=/usr/local/bin/powa-collector\n";
    assert!(UNIT.contains(installed));
    let mut unit = UNIT.replace(installed, &format!("ExecStart={}\n", env!("CARGO_BIN_EXE_powa-collector")));
    let version = String::from_utf8(systemd_analyze().arg("--version").output().unwrap().stdout).unwrap();
    let version: u32 = version.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect(&version);
    if version < 253 {
        // As the unit says, it stays with the line before.
        assert!(unit.contains("Type=notify\nType=notify-reload\n"));
        unit = unit.replace("Type=notify-reload\n", "");
    }
    let file = directory.path().join("powa-collector.service");
    fs::write(&file, unit).unwrap();
    let drop_ins = directory.path().join("powa-collector.service.d");
    fs::create_dir(&drop_ins).unwrap();
    fs::copy(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/systemd/credentials.conf"),
        drop_ins.join("credentials.conf"),
    )
    .unwrap();
    let output = systemd_analyze().arg("verify").arg(&file).output().unwrap();
    let told = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&told);
    // Not every complaint makes it fail.
    let ours: Vec<&str> = told.lines().filter(|line| line.contains("powa-collector")).collect();
    assert!(output.status.success() && ours.is_empty(), "{told}");
}

/// Panics when it is missing: a test that did not run must not look like one that passed.
fn systemd_analyze() -> Command {
    let program = Path::new("/usr/bin/systemd-analyze");
    assert!(program.exists(), "systemd is not installed: run `make test`, which installs it");
    let mut command = Command::new(program);
    command.env("LC_ALL", "C.UTF-8").env("SYSTEMD_COLORS", "0").env("SYSTEMD_PAGER", "");
    command
}

/// A configuration whose repository is nowhere.
fn nowhere() -> Value {
    let port = net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    json!({ "repository": { "dsn": format!("host=127.0.0.1 port={port} user=u password=xyzzy42 dbname=powa") } })
}

/// What systemd's clock says.
fn monotonic_usec() -> i64 {
    let mut now = nix::libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes to the one structure that it is given.
    assert_eq!(0, unsafe { nix::libc::clock_gettime(nix::libc::CLOCK_MONOTONIC, &raw mut now) });
    now.tv_sec * 1_000_000 + now.tv_nsec / 1000
}

/// A service manager: the socket, and what has arrived there.
struct Manager {
    directory: TempDir,
    messages: Arc<Mutex<Vec<Message>>>,
    socket: UnixDatagram,
    reader: Option<JoinHandle<()>>,
}

/// What came at once: lines of `NAME=value`.
#[derive(Debug, Clone)]
struct Message(String);

impl Message {
    fn field(&self, name: &str) -> Option<&str> {
        self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
    }

    fn has(&self, name: &str, value: &str) -> bool {
        self.field(name) == Some(value)
    }

    fn feeds(&self) -> bool {
        self.has("WATCHDOG", "1")
    }
}

impl Manager {
    fn start() -> Manager {
        let directory = TempDir::new().expect("make a directory");
        let socket = UnixDatagram::bind(directory.path().join("notify")).expect("bind a socket");
        let messages: Arc<Mutex<Vec<Message>>> = Arc::default();
        let (incoming, list) = (socket.try_clone().expect("share a socket"), Arc::clone(&messages));
        let reader = thread::spawn(move || {
            let mut bytes = [0; 8192];
            loop {
                match incoming.recv(&mut bytes) {
                    Ok(0) => break,
                    Ok(length) => {
                        let text = String::from_utf8(bytes[..length].to_owned()).expect("UTF-8");
                        list.lock().expect("no panic while it is locked").push(Message(text));
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => panic!("receive a message: {error}"),
                }
            }
        });
        Manager { directory, messages, socket, reader: Some(reader) }
    }

    /// A collector that knows of it.
    fn collector(&self, config: Value) -> CollectorBuilder {
        Collector::builder(config).environment("NOTIFY_SOCKET", self.directory.path().join("notify"))
    }

    /// One at work on an idle server, whose id is 1.
    async fn of_fleet(powa: Powa, keys: Value, environment: &[(&str, &str)]) -> (Fleet, Manager) {
        let (cluster, repository) = cluster(powa).await;
        register_idle(&repository, monitored(&cluster, 1)).await;
        let mut config = config(&cluster, keys);
        let dsn = config["repository"]["dsn"].as_str().unwrap().to_owned();
        config["repository"]["dsn"] = format!("{dsn}?password=xyzzy42").into();
        let manager = Manager::start();
        let mut builder = manager.collector(config);
        for (name, value) in environment {
            builder = builder.environment(name, value);
        }
        let mut collector = builder.start();
        collector.wait_for_log(LISTENING).await;
        let control = Control::connect(&cluster, "powa").await;
        let mut fleet = Fleet { collector, control, repository, cluster };
        fleet.wait_for_states(r#"{"1": "running"}"#).await;
        (fleet, manager)
    }

    fn without_repository(environment: &[(&str, &str)]) -> (Manager, Collector) {
        let manager = Manager::start();
        let mut builder = manager.collector(nowhere());
        for (name, value) in environment {
            builder = builder.environment(name, value);
        }
        let collector = builder.start();
        (manager, collector)
    }

    fn messages(&self) -> Vec<Message> {
        self.messages.lock().expect("no panic while it is locked").clone()
    }

    fn count(&self) -> usize {
        self.messages().len()
    }

    /// The first message from a position on that fits, and its position.
    async fn wait_for(
        &self,
        what: &str,
        position: usize,
        fits: impl Fn(&Message) -> bool,
    ) -> (usize, Message) {
        let what = format!("the service manager is told {what}");
        wait_until(&what, DEADLINE, async || {
            self.messages().into_iter().enumerate().skip(position).find(|(_, message)| fits(message))
        })
        .await
    }

    async fn wait_for_feeding(&self, position: usize) -> usize {
        self.wait_for("WATCHDOG=1", position, Message::feeds).await.0
    }

    /// Of the first reload from a position on, which was asked for at a time of systemd's clock, how it has ended.
    async fn wait_for_reload(&self, position: usize, before: i64) -> Message {
        let (at, reloading) =
            self.wait_for("RELOADING", position, |message| message.field("RELOADING").is_some()).await;
        let began: i64 = reloading.field("MONOTONIC_USEC").expect("when it began").parse().unwrap();
        assert!(
            reloading.has("RELOADING", "1") && (before..=monotonic_usec()).contains(&began),
            "{reloading:?}"
        );
        let (end, ready) = self.wait_for("READY", position, |message| message.has("READY", "1")).await;
        assert!(end > at, "{:?}", self.messages());
        ready
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.socket.shutdown(net::Shutdown::Both).expect("close the socket");
        let reader = self.reader.take().expect("taken once").join();
        if thread::panicking() {
            eprintln!("What the service manager was told: {:#?}", self.messages());
        } else {
            reader.expect("no panic while reading");
        }
    }
}
