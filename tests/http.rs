//! What is served by HTTP: to monitoring systems, to who asks whether the collector works, and to clients that are slow,
//! many or hostile.

mod fleet;
mod support;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use fleet::{Fleet, Gate, cluster, config, monitored, register_idle};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use support::http::{self, Page};
use support::{
    Collector, DEADLINE, Powa, Registration, Signal, Spool, on_both_versions, register_server, wait_until,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What the log says before the address.
const SERVES: &str = "http: serves pages at http://";

on_both_versions! {
    async fn metrics_tell_how_each_server_is_collected(powa: Powa) {
        let (cluster, repository) = cluster(powa).await;
        register_idle(&repository, monitored(&cluster, 1)).await;
        let nowhere = Registration::new("127.0.1.2", 1).dbname("monitored").frequency(5).alias("a \"b\"\\\n<c>");
        register_server(&repository, &nowhere).await;
        let mut fleet = Fleet::of(cluster, repository, json!({ "http": { "listen": "127.0.0.1:0" }, "use_server_alias": true })).await;
        let address = address(&mut fleet.collector, 0).await;
        fleet.wait_for_states(r#"{"1": "running", "2": "no connection to remote server"}"#).await;
        fleet.force(1).await;
        fleet.collector.wait_for_log("snapshot: ").await;

        let first = format!(r#"srvid="1",server="127.0.1.1:{}""#, fleet.cluster.port());
        let second = r#"srvid="2",server="a \"b\"\\ <c>""#;
        let page = get(&address, "/metrics").await;
        assert!(page.header("content-type").starts_with("text/plain; version=0.0.4"), "{page:?}");
        let of = |name: &str, labels: &str| value(&page.body, &format!("powa_collector_server_{name}{{{labels}}}"));
        assert_eq!(of("snapshots_total", &first), Some(1.0), "{}", page.body);
        assert_eq!(of("snapshots_total", second), Some(0.0), "{}", page.body);
        let (rows, bytes) = fleet.collector.log().lines().find_map(told_snapshot).expect("it is logged");
        assert_eq!((of("rows_total", &first), of("bytes_total", &first)), (Some(rows), Some(bytes)));
        for phase in ["fetch", "wait", "store"] {
            let labels = format!(r#"{first},phase="{phase}""#);
            assert_eq!(of("phase_seconds_count", &labels), Some(1.0), "{}", page.body);
        }
        assert!(of("phase_seconds_sum", &format!(r#"{first},phase="fetch""#)).is_some_and(|sum| sum > 0.0));
        assert_eq!(of("state", &format!(r#"{first},state="running""#)), Some(1.0));
        assert_eq!(of("state", &format!(r#"{second},state="running""#)), Some(0.0));
        assert_eq!(of("state", &format!(r#"{second},state="no connection to remote server""#)), Some(1.0));
        assert!(of("failures_total", &format!(r#"{second},kind="connect""#)).is_some_and(|failures| failures > 0.0));
        assert_eq!(of("failures_total", &format!(r#"{first},kind="connect""#)), Some(0.0));
        assert_eq!(of("period_seconds", second), Some(5.0));
        assert_eq!(of("lag_seconds", &first), Some(0.0));
        assert_eq!(value(&page.body, "powa_collector_repository_listening"), Some(1.0));
        assert_eq!(value(&page.body, "powa_collector_spool_usable"), Some(1.0));

        // Its snapshots are due and cannot be taken.
        wait_until("the second server lags", DEADLINE, async || {
            let page = get(&address, "/metrics").await;
            value(&page.body, &format!("powa_collector_server_lag_seconds{{{second}}}")).is_some_and(|lag| lag > 1.0)
        })
        .await;

        let (is_valid, complaints) = run(Command::new(promtool()).args(["check", "metrics"]), &page.body);
        assert!(is_valid && complaints.is_empty(), "{complaints}");
        let accept = [("accept", "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5")];
        let open = http::get(&address, "/metrics", &accept).await.unwrap();
        assert!(open.header("content-type").starts_with("application/openmetrics-text; version=1.0.0"), "{open:?}");
        let script = "import sys\nfrom prometheus_client.openmetrics.parser import text_string_to_metric_families as parse\n\
                      print(*(sample.name for family in parse(sys.stdin.read()) for sample in family.samples))";
        let (is_valid, samples) = run(Command::new("/usr/bin/python3").args(["-c", script]), &open.body);
        assert!(is_valid && samples.contains("powa_collector_server_snapshots_total"), "{samples}");
        fleet.collector.stop().await;
    }

    async fn a_snapshot_that_cannot_be_stored_is_counted_and_seen_to_wait(powa: Powa) {
        let mut fleet = serving(powa).await;
        let address = address(&mut fleet.collector, 0).await;
        let labels = format!(r#"{{srvid="1",server="127.0.1.1:{}""#, fleet.cluster.port());
        let gate = Gate::in_store(&fleet.cluster).await;
        fleet.force(1).await;
        gate.reached().await;
        fleet.cluster.stop_immediately();
        let metrics = wait_until("a snapshot waits", DEADLINE, async || {
            let page = get(&address, "/metrics").await;
            let of = |name: &str| value(&page.body, &format!("powa_collector_server_backlog_{name}{labels}}}"));
            // One that is about to be stored has its place there, and no bytes yet.
            (of("snapshots") == Some(1.0) && of("bytes").is_some_and(|bytes| bytes > 0.0)).then_some(page.body)
        })
        .await;
        let of = |name: &str| value(&metrics, &format!("powa_collector_server_{name}"));
        assert!(of(&format!(r#"failures_total{labels},kind="store"}}"#)).is_some_and(|times| times >= 1.0), "{metrics}");
        assert_eq!(of(&format!(r#"failures_total{labels},kind="lost"}}"#)), Some(0.0));
        fleet.collector.stop().await;
    }

    async fn it_is_ready_while_it_listens_and_alive_all_the_same(powa: Powa) {
        let mut fleet = serving(powa).await;
        let address = address(&mut fleet.collector, 0).await;
        let seen = async |path: &str| {
            let page = get(&address, path).await;
            (page.status.as_u16(), page.body)
        };
        assert_eq!(seen("/readyz").await, (200, "ready\n".to_owned()));
        assert_eq!(seen("/healthz").await, (200, "ok\n".to_owned()));
        fleet.cluster.stop();
        wait_until("it is not ready", DEADLINE, async || seen("/readyz").await.0 == 503).await;
        let (_, reason) = seen("/readyz").await;
        assert!(reason.starts_with("waiting for the repository ") && reason.contains("/powa"), "{reason}");
        assert_eq!(seen("/healthz").await, (200, "ok\n".to_owned()));
        assert_eq!(get(&address, "/status").await.json()["listening"], json!(false));
        fleet.cluster.start_again();
        wait_until("it is ready again", DEADLINE, async || seen("/readyz").await.0 == 200).await;

        // A stop that waits for a store: nobody should count on it any more.
        let gate = Gate::in_store(&fleet.cluster).await;
        let mut control = support::Control::connect(&fleet.cluster, "powa").await;
        let repository = fleet.cluster.client("powa").await;
        fleet::age_snapshot(&repository, 1).await;
        wait_until("a snapshot is taken", DEADLINE, async || {
            control.ask("FORCE_SNAPSHOT", "1").await.starts_with("FORCE_SNAPSHOT OK")
        })
        .await;
        gate.reached().await;
        fleet.collector.signal(Signal::SIGTERM);
        wait_until("it says that it stops", DEADLINE, async || seen("/readyz").await == (503, "stopping\n".to_owned())).await;
        gate.open();
        assert!(fleet.collector.wait_exit(2 * DEADLINE).await.success());
    }
}

#[tokio::test]
async fn pages_move_and_end_with_the_configuration() {
    let mut fleet = serving(Powa::V4).await;
    let first = address(&mut fleet.collector, 0).await;
    assert_eq!(get(&first, "/healthz").await.status, StatusCode::OK);

    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let second = taken.local_addr().unwrap().to_string();
    let position = fleet.collector.log_position();
    fleet.collector.write_config(&config(&fleet.cluster, json!({ "http": { "listen": second } })));
    assert_eq!(fleet.ask("RELOAD", "").await, "RELOAD OK OK");
    let line = fleet.collector.wait_for_log_after(position, "ERROR").await;
    assert!(line.contains(&format!("http.listen: {second}: Address already in use")), "{line}");
    wait_until("nothing is served at the former address", DEADLINE, async || {
        http::get(&first, "/healthz", &[]).await.is_err()
    })
    .await;
    drop(taken);
    assert_eq!(address(&mut fleet.collector, position).await, second);
    assert_eq!(get(&second, "/healthz").await.status, StatusCode::OK);

    fleet.collector.write_config(&config(&fleet.cluster, json!({})));
    assert_eq!(fleet.ask("RELOAD", "").await, "RELOAD OK OK");
    wait_until("nothing is served", DEADLINE, async || http::get(&second, "/healthz", &[]).await.is_err())
        .await;
    let log = fleet.collector.log();
    assert_eq!(1, log.matches("Address already in use").count(), "{log}");
    fleet.collector.stop().await;
}

/// A file system that does not answer: to open its file takes until somebody opens the other end.
#[tokio::test]
async fn a_collector_that_stands_still_is_not_alive() {
    let mut fleet = serving(Powa::V4).await;
    let address = address(&mut fleet.collector, 0).await;
    assert_eq!(health(&address).await, (Some(0), "ok\n".to_owned()));
    let spool = Spool::new();
    let folder = spool.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    nix::unistd::mkfifo(&folder.join("lock"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let keys = json!({ "http": { "listen": "127.0.0.1:0" }, "spool": { "directory": spool.path() } });
    fleet.collector.write_config(&config(&fleet.cluster, keys));
    fleet.collector.signal(Signal::SIGHUP);
    fleet.collector.wait_for_log("configuration: spool.directory").await;
    for path in ["/healthz", "/readyz", "/status", "/metrics"] {
        let page = get(&address, path).await;
        assert_eq!(page.status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert_eq!(page.body, "the collector does not answer within 5 s\n", "{path}");
    }
    let (code, told) = health(&address).await;
    assert_eq!(code, Some(1), "{told}");
    assert!(told.ends_with("HTTP status 503, \"the collector does not answer within 5 s\"\n"), "{told}");
    std::fs::OpenOptions::new().write(true).open(folder.join("lock")).unwrap();
    wait_until("it is alive again", DEADLINE, async || {
        get(&address, "/healthz").await.status == StatusCode::OK
    })
    .await;
    fleet.collector.stop().await;
    let (code, told) = health(&address).await;
    assert!(code == Some(1) && told.contains(&format!("no collector answers at {address}: ")), "{told}");
}

#[tokio::test]
async fn nothing_is_served_unless_it_is_asked_for() {
    let mut fleet = Fleet::start(Powa::V4).await;
    let inodes = format!("/proc/{}/fd", fleet.collector.pid());
    let sockets: Vec<String> = std::fs::read_dir(inodes)
        .unwrap()
        .filter_map(|entry| Some(std::fs::read_link(entry.ok()?.path()).ok()?.to_string_lossy().into_owned()))
        .collect();
    const LISTEN: &str = "0A";
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        for line in std::fs::read_to_string(table).unwrap().lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let is_ours = sockets.contains(&format!("socket:[{}]", words[9]));
            assert!(!(is_ours && words[3] == LISTEN), "{line}");
        }
    }
    fleet.collector.stop().await;
}

#[tokio::test]
async fn what_is_not_there_is_refused_and_nothing_can_be_changed() {
    let mut fleet = serving(Powa::V4).await;
    let address = address(&mut fleet.collector, 0).await;
    for path in ["/", "/page.js", "/page.css", "/status", "/metrics", "/healthz", "/readyz"] {
        let page = get(&address, path).await;
        assert_eq!(page.status, StatusCode::OK, "{path}");
        assert_eq!(page.header("cache-control"), "no-store", "{path}");
        assert_eq!(page.header("x-content-type-options"), "nosniff", "{path}");
        assert!(
            page.header("content-security-policy").starts_with("default-src 'none'; script-src 'self'"),
            "{path}"
        );
        let head = http::request(Method::HEAD, &address, path, &[], String::new()).await.unwrap();
        assert_eq!((head.status, head.body.as_str()), (StatusCode::OK, ""), "{path}");
        for method in [Method::POST, Method::PUT, Method::DELETE] {
            let page = http::request(method, &address, path, &[], "{}".to_owned()).await.unwrap();
            assert_eq!(page.status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
        }
    }
    for path in ["/nothing", "/../etc/passwd", "/page/index.html", "//"] {
        assert_eq!(get(&address, path).await.status, StatusCode::NOT_FOUND, "{path}");
    }
    fleet.collector.stop().await;
}

#[tokio::test]
async fn clients_that_are_many_silent_or_talkative_keep_nobody_from_being_served() {
    let mut fleet = serving(Powa::V4).await;
    let address = address(&mut fleet.collector, 0).await;
    let asking: Vec<_> = (0..200)
        .map(|_| {
            let address = address.clone();
            tokio::spawn(async move { http::get(&address, "/metrics", &[]).await.unwrap().status })
        })
        .collect();
    for answer in asking {
        assert_eq!(answer.await.unwrap(), StatusCode::OK);
    }

    let mut talkative = TcpStream::connect(&address).await.unwrap();
    let header = format!("GET / HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "x".repeat(1 << 20));
    // It may be closed before all of that is read.
    let _ = talkative.write_all(header.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = talkative.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");

    // More than are served at a time, of which each says a little and no more.
    let mut silent = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\n").await.unwrap();
        silent.push(stream);
    }
    let page = tokio::time::timeout(DEADLINE, http::get(&address, "/healthz", &[])).await;
    assert_eq!(page.expect("silent clients are sent away").unwrap().status, StatusCode::OK);
    drop(silent);
    // Meanwhile the collector has worked.
    assert_eq!(fleet.ask("WORKERS_STATUS", "").await, r#"WORKERS_STATUS OK {"1": "running"}"#);
    fleet.collector.stop().await;
}

#[tokio::test]
async fn neither_secrets_nor_statements_are_on_any_page() {
    const SECRET: &str = "xyzzy42";
    let (cluster, repository) = cluster(Powa::V5).await;
    repository
        .batch_execute("CREATE ROLE with_password SUPERUSER LOGIN PASSWORD 'xyzzy42-of-row'")
        .await
        .unwrap();
    let server = monitored(&cluster, 1).credentials("with_password", Some("xyzzy42-of-row"));
    register_idle(&repository, server).await;
    let wrong =
        Registration::new("127.0.1.2", 1).dbname("monitored").credentials("nobody", Some("xyzzy42-too"));
    register_server(&repository, &wrong).await;
    // A statement that an error quotes, as when a row is not as it should be.
    let monitored = cluster.client("monitored").await;
    monitored
        .batch_execute(
            "CREATE FUNCTION public.fail() RETURNS void LANGUAGE plpgsql AS $$
             BEGIN RAISE EXCEPTION 'this is not right: \"select xyzzy42 from t\"'; END $$",
        )
        .await
        .expect("make a function that fails");
    fleet::prepend(&monitored, "powa_databases_src", "SELECT public.fail()").await;
    let mut keys = json!({ "http": { "listen": "127.0.0.1:0" }, "servers": { "defaults": { "password": "xyzzy42-of-file" } } });
    keys = config(&cluster, keys);
    let mut collector = Collector::start(keys);
    collector.wait_for_log(fleet::LISTENING).await;
    let address = address(&mut collector, 0).await;
    let mut control = support::Control::connect(&cluster, "powa").await;
    wait_until("the first server has a worker", DEADLINE, async || {
        control.ask("FORCE_SNAPSHOT", "1").await.starts_with("FORCE_SNAPSHOT OK")
    })
    .await;
    let failed = |status: &Value, at: usize| status["servers"][at]["last_error"]["message"].is_string();
    wait_until("both servers have an error", DEADLINE, async || {
        let status = get(&address, "/status").await.json();
        failed(&status, 0) && failed(&status, 1)
    })
    .await;
    let status = get(&address, "/status").await;
    assert!(status.body.contains("this is not right"), "{}", status.body);
    for path in ["/", "/page.js", "/page.css", "/status", "/metrics", "/healthz", "/readyz"] {
        let page = get(&address, path).await;
        assert!(!page.body.contains(SECRET), "{path}: {}", page.body);
    }
    collector.stop().await;
}

/// Where `tests/support/postgresql prometheus` has put it.
fn promtool() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("prometheus").join("promtool")
}

/// How `powa-collector health` ends, and what it says, of the collector there.
async fn health(address: &str) -> (Option<i32>, String) {
    let keys =
        json!({ "repository": { "dsn": "host=127.0.0.1 dbname=powa" }, "http": { "listen": address } });
    let output = Collector::builder(keys).argument("health").run().await;
    let told = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&told).into_owned())
}

async fn serving(powa: Powa) -> Fleet {
    Fleet::with(powa, json!({ "http": { "listen": "127.0.0.1:0" } })).await
}

/// Where pages are served, as the log says after so many lines.
async fn address(collector: &mut Collector, position: usize) -> String {
    let line = collector.wait_for_log_after(position, SERVES).await;
    line.split_once(SERVES).unwrap().1.trim_end_matches('/').to_owned()
}

async fn get(address: &str, path: &str) -> Page {
    let getting = http::get(address, path, &[]);
    tokio::time::timeout(Duration::from_secs(10), getting).await.expect("an answer").expect("an answer")
}

fn value(metrics: &str, series: &str) -> Option<f64> {
    metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

/// The rows and bytes of a line of the log that tells of a snapshot.
fn told_snapshot(line: &str) -> Option<(f64, f64)> {
    let told = line.split_once("snapshot: ")?.1;
    let (rows, rest) = told.split_once(" rows, ")?;
    Some((rows.parse().ok()?, rest.split_once(" bytes")?.0.parse().ok()?))
}

/// Whether a program takes what it is given to read, and what it says.
fn run(command: &mut Command, input: &str) -> (bool, String) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writing = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap().ok();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}
