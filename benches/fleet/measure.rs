//! What a process takes, and what a repository has.

use std::fs;
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::support::{Cluster, Control};

/// The most memory that a process has had resident, in bytes.
pub fn peak_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes: Option<u64> = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    kilobytes.unwrap_or(0) * 1024
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

/// What is in the repository.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stored {
    pub snapshots: i64,
    /// Servers that have at least one.
    pub servers: i64,
    pub with_errors: i64,
}

pub async fn stored(client: &Client) -> Stored {
    let statement = "SELECT coalesce(sum(coalesce_seq - 1), 0)::bigint, count(*) FILTER (WHERE coalesce_seq > 1), \
                     count(*) FILTER (WHERE cardinality(errors) > 0) FROM powa_snapshot_metas WHERE srvid > 0";
    let row = client.query_one(statement, &[]).await.expect("count the snapshots");
    Stored { snapshots: row.get(0), servers: row.get(1), with_errors: row.get(2) }
}

/// That statements and catalogs of so many servers are there, or of more by now: a snapshot that is only counted
/// is none.
pub async fn check_rows(client: &Client, servers: i64) {
    for table in ["powa_statements", "powa_catalog_class"] {
        let statement = format!("SELECT count(DISTINCT srvid) FROM {table} WHERE srvid > 0");
        let row = client.query_one(&statement, &[]).await.expect("count the servers of a table");
        let there: i64 = row.get(0);
        assert!(there >= servers, "{table} has rows of {there} servers, and not of {servers}");
    }
}

/// Asks a collector again and again how its workers are, as powa-web does.
pub struct Questions {
    pub answered: Vec<Duration>,
    /// Within three seconds.
    pub unanswered: usize,
}

impl Questions {
    pub async fn ask(repository: &Cluster, dbname: &str, until: Instant) -> Questions {
        let mut questions = Questions { answered: Vec::new(), unanswered: 0 };
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
            let asked = Instant::now();
            control.send("WORKERS_STATUS", "").await;
            match control.next(Duration::from_secs(3)).await {
                Some(_) => questions.answered.push(asked.elapsed()),
                None => questions.unanswered += 1,
            }
            // An answer of several messages is one answer.
            tokio::time::sleep(Duration::from_millis(200)).await;
            control.received();
        }
        questions.answered.sort();
        questions
    }

    /// The time within which this part of the answers came.
    pub fn quantile(&self, part: f64) -> Duration {
        let count = self.answered.len();
        if count == 0 {
            return Duration::MAX;
        }
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let at = (count as f64 * part).ceil() as usize;
        self.answered[at.clamp(1, count) - 1]
    }
}
