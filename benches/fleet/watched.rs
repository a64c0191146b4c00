//! A collector at work for a time, and what came of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::contestant::{Contestant, Who};
use crate::measure::{self, Questions, check_rows};
use crate::scene::{REPOSITORY, Scene};

/// How often it is looked at.
const INTERVAL: Duration = Duration::from_millis(500);

/// How long it is waited for after SIGTERM.
const STOP: Duration = Duration::from_secs(20);

pub struct Watched {
    pub samples: Vec<Sample>,
    /// By server: when its snapshots were seen to be there.
    seen: BTreeMap<i32, Vec<Duration>>,
    time: Duration,
    pub questions: Questions,
    peak_memory: u64,
    cpu: Duration,
    /// None: it had not ended after [`STOP`].
    pub stop: Option<Duration>,
}

/// How things were at one moment.
#[derive(Clone, Copy)]
pub struct Sample {
    pub at: Duration,
    pub snapshots: usize,
    /// Servers that have at least one.
    pub servers: usize,
    pub memory: u64,
}

/// A server's snapshots, as the repository counts them.
struct Counted {
    server: i32,
    snapshots: i64,
    errors: String,
}

async fn count(client: &Client) -> Vec<Counted> {
    let statement = "SELECT srvid, coalesce_seq - 1, coalesce(array_to_string(errors, '; '), '') FROM \
                     powa_snapshot_metas WHERE srvid > 0 ORDER BY srvid";
    let rows = client.query(statement, &[]).await.expect("count the snapshots");
    rows.iter().map(|row| Counted { server: row.get(0), snapshots: row.get(1), errors: row.get(2) }).collect()
}

/// Runs a collector for a time on the repository as it is.
pub async fn watch(who: Who<'_>, scene: &Scene, client: &Client, time: Duration) -> Watched {
    let before: BTreeMap<i32, i64> =
        count(client).await.into_iter().map(|counted| (counted.server, counted.snapshots)).collect();
    let began = Instant::now();
    let contestant = Contestant::start(who, &scene.repository);
    let mut seen: BTreeMap<i32, Vec<Duration>> = before.keys().map(|server| (*server, Vec::new())).collect();
    let mut samples = Vec::new();
    let looking = async {
        while began.elapsed() < time {
            let now = count(client).await;
            let at = began.elapsed();
            for counted in &now {
                let times = seen.get_mut(&counted.server).expect("a server that was registered");
                let there = counted.snapshots - before[&counted.server];
                times.resize(usize::try_from(there).expect("it only grows"), at);
            }
            samples.push(Sample {
                at,
                snapshots: seen.values().map(Vec::len).sum(),
                servers: seen.values().filter(|times| !times.is_empty()).count(),
                memory: contestant.memory(),
            });
            tokio::time::sleep(INTERVAL).await;
        }
    };
    let asking = Questions::ask(&scene.repository, REPOSITORY, began + time);
    let ((), questions) = tokio::join!(looking, asking);
    let (peak_memory, cpu) = (contestant.peak_memory(), contestant.cpu());
    let failed: Vec<String> = count(client)
        .await
        .into_iter()
        .filter(|counted| !counted.errors.is_empty())
        .map(|counted| format!("{}: {}", counted.server, counted.errors))
        .collect();
    if !failed.is_empty() {
        eprintln!("  {who}: errors with the last snapshots of {} servers:", failed.len());
        failed.iter().take(5).for_each(|errors| eprintln!("    {errors}"));
    }
    let servers = seen.values().filter(|times| !times.is_empty()).count();
    check_rows(client, servers).await;
    let stop = contestant.stop(STOP).await;
    Watched { samples, seen, time, questions, peak_memory, cpu, stop }
}

impl Watched {
    pub fn snapshots(&self) -> usize {
        self.snapshots_between(Duration::ZERO, self.time)
    }

    fn snapshots_between(&self, begin: Duration, end: Duration) -> usize {
        self.seen.values().flatten().filter(|at| begin <= **at && **at < end).count()
    }

    /// Snapshots a minute, from `begin` to `end`.
    #[allow(clippy::cast_precision_loss)]
    pub fn per_minute(&self, begin: Duration, end: Duration) -> f64 {
        self.snapshots_between(begin, end) as f64 * 60.0 / (end - begin).as_secs_f64()
    }

    /// When all servers had their first snapshot, in seconds.
    pub fn all_first(&self) -> f64 {
        let first = |times: &Vec<Duration>| times.first().map_or(f64::INFINITY, Duration::as_secs_f64);
        self.seen.values().map(first).fold(0.0, f64::max)
    }

    /// The longest time that each server was without a new snapshot, from `begin` to the end, in seconds; in
    /// order.
    pub fn longest_waits(&self, begin: Duration) -> Vec<f64> {
        let longest = |times: &Vec<Duration>| {
            let mut last = begin;
            let mut longest = Duration::ZERO;
            for at in times.iter().filter(|at| **at >= begin).chain([&self.time]) {
                longest = longest.max(*at - last);
                last = *at;
            }
            longest.as_secs_f64()
        };
        let mut waits: Vec<f64> = self.seen.values().map(longest).collect();
        waits.sort_by(f64::total_cmp);
        waits
    }

    pub fn megabytes(&self) -> f64 {
        measure::megabytes(self.peak_memory)
    }

    /// Computing for a snapshot, in milliseconds.
    #[allow(clippy::cast_precision_loss)]
    pub fn cpu_ms(&self) -> f64 {
        self.cpu.as_secs_f64() * 1000.0 / self.snapshots() as f64
    }

    /// How long the end took, in seconds.
    pub fn stop_seconds(&self) -> f64 {
        self.stop.map_or(f64::INFINITY, |stop| stop.as_secs_f64())
    }
}
