//! What a process takes, and what a repository has.

use std::fs;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::support::{Cluster, Control};

/// What a process has resident, in bytes.
pub fn memory(pid: u32) -> u64 {
    status(pid, "VmRSS:")
}

/// The most that it has had resident, in bytes.
pub fn peak_memory(pid: u32) -> u64 {
    status(pid, "VmHWM:")
}

fn status(pid: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kilobytes: Option<u64> = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    kilobytes.unwrap_or(0) * 1024
}

#[allow(clippy::cast_precision_loss)]
pub fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The time that a process has been computing.
pub fn cpu(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before it may have spaces and parentheses in it.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|ticks| ticks.parse::<u64>().ok()).unwrap_or(0);
    // Linux counts them a hundred to the second for everyone, whatever the kernel does inside.
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

/// What every server that has a snapshot must have rows in: statements, the databases' own statistics, the whole
/// server's, the catalogs.
const TABLES: [&str; 6] = [
    "powa_statements",
    "powa_statements_history_current",
    "powa_kcache_metrics_current",
    "powa_all_tables_history_current",
    "powa_stat_bgwriter_history_current",
    "powa_catalog_class",
];

/// That rows of so many servers are there, or of more by now: a snapshot that is only counted is none.
pub async fn check_rows(client: &Client, servers: usize) {
    for table in TABLES {
        let statement = format!("SELECT count(DISTINCT srvid) FROM {table} WHERE srvid > 0");
        let row = client.query_one(&statement, &[]).await.expect("count the servers of a table");
        let there: i64 = row.get(0);
        assert!(
            usize::try_from(there).is_ok_and(|there| there >= servers),
            "{table} has rows of {there} servers, and not of {servers}"
        );
    }
}

/// Looks at the transactions that a collector has open on a monitored server.
pub struct Transactions {
    longest: JoinHandle<Duration>,
    stop: CancellationToken,
}

impl Transactions {
    pub async fn watch(server: &Cluster) -> Transactions {
        let client = server.client("postgres").await;
        let stop = CancellationToken::new();
        let is_over = stop.clone();
        let longest = tokio::spawn(async move {
            let statement = "SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)::float8 \
                             FROM pg_stat_activity WHERE application_name LIKE 'PoWA collector%'";
            let statement = client.prepare(statement).await.expect("prepare");
            let mut longest = 0.0_f64;
            while !is_over.is_cancelled() {
                let row = client.query_one(&statement, &[]).await.expect("ask for the transactions");
                longest = longest.max(row.get(0));
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Duration::from_secs_f64(longest)
        });
        Transactions { longest, stop }
    }

    /// The longest that was seen.
    pub async fn longest(self) -> Duration {
        self.stop.cancel();
        self.longest.await.expect("nothing failed")
    }
}

/// Asks a collector again and again how its workers are, as powa-web does.
pub struct Questions {
    /// How long each answer took, from when the question was there: its transaction had been committed.
    answered: Vec<Duration>,
    /// The same, from when the question was sent.
    since_sending: Vec<Duration>,
    /// Within three seconds.
    pub unanswered: usize,
}

impl Questions {
    pub async fn ask(repository: &Cluster, dbname: &str, until: Instant) -> Questions {
        let mut questions = Questions { answered: Vec::new(), since_sending: Vec::new(), unanswered: 0 };
        let mut control = Control::connect(repository, dbname).await;
        // It is asked from its first answer on: before, nobody listens.
        loop {
            control.send("WORKERS_STATUS", "").await;
            if control.next(Duration::from_millis(500)).await.is_some() || Instant::now() >= until {
                break;
            }
        }
        control.received();
        while Instant::now() < until {
            let sent = Instant::now();
            control.send("WORKERS_STATUS", "").await;
            let committed = Instant::now();
            match control.next(Duration::from_secs(3)).await {
                Some(_) => {
                    questions.answered.push(committed.elapsed());
                    questions.since_sending.push(sent.elapsed());
                }
                None => questions.unanswered += 1,
            }
            // An answer of several messages is one answer.
            tokio::time::sleep(Duration::from_millis(200)).await;
            control.received();
        }
        questions.answered.sort();
        questions.since_sending.sort();
        questions
    }

    /// The time within which 99 of a hundred answers came, in milliseconds, from when their question was there.
    pub fn within_ms(&self) -> f64 {
        most(&self.answered)
    }

    /// The same, from when their question was sent.
    pub fn since_sending_ms(&self) -> f64 {
        most(&self.since_sending)
    }
}

/// What 99 of a hundred do not exceed, in milliseconds. `times`: in order.
fn most(times: &[Duration]) -> f64 {
    let at = (times.len() * 99).div_ceil(100);
    at.checked_sub(1).map_or(f64::INFINITY, |at| times[at].as_secs_f64() * 1000.0)
}
