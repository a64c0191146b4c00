//! What is measured, case by case. Each one is run by everybody on the same clusters, one after the other.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::contestant::{Contestant, Rival, Who};
use crate::floor;
use crate::measure::{Questions, Stored, check_rows, stored};
use crate::relay::Relay;
use crate::report::{Bound, Result, median};
use crate::scene::Scene;
use crate::support::Registration;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Case {
    FirstRound,
    Overload,
    Distant,
    Text,
    Idle,
}

/// Statement texts as short as they come, and as long as they make 6 MB of text.
const SHORT: usize = 0;
const LONG: usize = 1560;

impl Case {
    pub const ALL: [Case; 5] = [Case::FirstRound, Case::Overload, Case::Distant, Case::Text, Case::Idle];

    pub fn name(self) -> &'static str {
        match self {
            Case::FirstRound => "first-round",
            Case::Overload => "overload",
            Case::Distant => "distant",
            Case::Text => "text",
            Case::Idle => "idle",
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Case::FirstRound => "100 servers every 60 s, from an empty repository",
            Case::Overload => "50 servers every 10 s, more than the repository can take",
            Case::Distant => "one server behind a round trip of 50 ms",
            Case::Text => "100 servers with 6 MB of query text each, repository saturated",
            Case::Idle => "1000 servers, idle between snapshots",
        }
    }

    /// Whether `make bench-quick` runs it.
    pub fn is_quick(self) -> bool {
        matches!(self, Case::FirstRound | Case::Distant)
    }

    pub async fn run(self, rival: &Rival, runs: usize, is_quick: bool) -> Vec<Result> {
        match self {
            Case::FirstRound => first_round(rival, runs, is_quick).await,
            Case::Overload => overload(rival, runs).await,
            Case::Distant => distant(rival, runs).await,
            Case::Text => text(rival, runs).await,
            Case::Idle => idle(rival, runs).await,
        }
    }
}

/// A collector at work for a time, and what came of it.
struct Watched {
    stored: Stored,
    /// When all servers had their first snapshot.
    all_first: Option<Duration>,
    questions: Questions,
    peak_memory: u64,
    cpu: Duration,
    stop: Option<Duration>,
    /// Snapshots of each server.
    by_server: Vec<i64>,
}

impl Watched {
    #[allow(clippy::cast_precision_loss)]
    fn per_minute(&self, time: Duration) -> f64 {
        self.stored.snapshots as f64 * 60.0 / time.as_secs_f64()
    }

    #[allow(clippy::cast_precision_loss)]
    fn megabytes(&self) -> f64 {
        self.peak_memory as f64 / f64::from(1 << 20)
    }

    #[allow(clippy::cast_precision_loss)]
    fn cpu_ms_per_snapshot(&self) -> f64 {
        self.cpu.as_secs_f64() * 1000.0 / self.stored.snapshots.max(1) as f64
    }
}

async fn watch(
    who: Who,
    rival: &Rival,
    scene: &Scene,
    dbname: &str,
    client: &Client,
    time: Duration,
) -> Watched {
    let began = Instant::now();
    let contestant = Contestant::start(who, rival, &scene.repository, dbname);
    let servers: i64 = {
        let row = client.query_one("SELECT count(*) FROM powa_servers WHERE id > 0", &[]).await;
        row.expect("count the servers").get(0)
    };
    let asking = Questions::ask(&scene.repository, dbname, began + time);
    let looking = async {
        let mut all_first = None;
        while began.elapsed() < time {
            if all_first.is_none() && stored(client).await.servers == servers {
                all_first = Some(began.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        all_first
    };
    let (questions, all_first) = tokio::join!(asking, looking);
    let stored = stored(client).await;
    let statement =
        "SELECT (coalesce_seq - 1)::bigint FROM powa_snapshot_metas WHERE srvid > 0 ORDER BY srvid";
    let rows = client.query(statement, &[]).await.expect("count the snapshots of each");
    let (peak_memory, cpu) = (contestant.peak_memory(), contestant.cpu());
    if who == Who::Ours && stored.with_errors > 0 {
        let statement = "SELECT srvid, errors::text FROM powa_snapshot_metas WHERE cardinality(errors) > 0";
        let rows = client.query(statement, &[]).await.expect("read the errors");
        let errors: Vec<String> =
            rows.iter().map(|row| format!("{}: {}", row.get::<_, i32>(0), row.get::<_, String>(1))).collect();
        eprintln!("  errors with the last snapshots of {} servers:\n  {}", errors.len(), errors.join("\n  "));
    }
    check_rows(client, stored.servers).await;
    let stop = contestant.stop(Duration::from_secs(40)).await;
    let by_server = rows.iter().map(|row| row.get(0)).collect();
    Watched { stored, all_first, questions, peak_memory, cpu, stop, by_server }
}

/// What both collectors are asked for in every case.
fn common(case: Case, ours: &[Watched], python: &[Watched]) -> Vec<Result> {
    let of = |runs: &[Watched], value: &dyn Fn(&Watched) -> f64| median(runs.iter().map(value).collect());
    let answered = |watched: &Watched| watched.questions.quantile(0.99).as_secs_f64() * 1000.0;
    #[allow(clippy::cast_precision_loss)]
    let unanswered = |watched: &Watched| watched.questions.unanswered as f64;
    let mut results = vec![
        Result::new(
            case,
            "peak memory, MB",
            Bound::Shown,
            of(ours, &Watched::megabytes),
            of(python, &Watched::megabytes),
        ),
        Result::new(
            case,
            "WORKERS_STATUS, 99 % within, ms",
            Bound::AtMost(50.0),
            of(ours, &answered),
            of(python, &answered),
        ),
        Result::new(
            case,
            "WORKERS_STATUS, unanswered in 3 s",
            Bound::AtMost(0.0),
            of(ours, &unanswered),
            of(python, &unanswered),
        ),
        Result::new(
            case,
            "CPU of the collector a snapshot, ms",
            Bound::OfPython(0.25),
            of(ours, &Watched::cpu_ms_per_snapshot),
            of(python, &Watched::cpu_ms_per_snapshot),
        ),
    ];
    let stop = |watched: &Watched| watched.stop.map_or(f64::INFINITY, |stop| stop.as_secs_f64());
    results.push(Result::new(case, "stop, s", Bound::AtMost(30.0), of(ours, &stop), of(python, &stop)));
    results
}

async fn first_round(rival: &Rival, runs: usize, is_quick: bool) -> Vec<Result> {
    let case = Case::FirstRound;
    let (servers, time) = if is_quick { (20, 30) } else { (100, 150) };
    let time = Duration::from_secs(time);
    let scene = Scene::new(SHORT).await;
    let (mut ours, mut python, mut floors) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..runs {
        if !is_quick {
            let mut best = Duration::MAX;
            for writers in floor::WRITERS {
                let client = scene.register("powa", servers, 60).await;
                best = best.min(floor::round(&scene, "powa", &client, writers).await);
            }
            eprintln!("  run {}: floor {:.1} s", run + 1, best.as_secs_f64());
            floors.push(best.as_secs_f64());
        }
        for who in [Who::Ours, Who::Python] {
            let client = scene.register("powa", servers, 60).await;
            let watched = watch(who, rival, &scene, "powa", &client, time).await;
            eprintln!(
                "  run {}: {who:?}: {:.1} snapshots a minute, all servers after {:?}, {:.0} MB",
                run + 1,
                watched.per_minute(time),
                watched.all_first,
                watched.megabytes()
            );
            if who == Who::Ours { ours.push(watched) } else { python.push(watched) }
        }
    }
    let first = |watched: &Watched| watched.all_first.map_or(f64::INFINITY, |first| first.as_secs_f64());
    let rate = |watched: &Watched| watched.per_minute(time);
    let of = |runs: &[Watched], value: &dyn Fn(&Watched) -> f64| median(runs.iter().map(value).collect());
    let (our_rate, their_rate) = (of(&ours, &rate), of(&python, &rate));
    let mut results = if is_quick {
        vec![Result::new(case, "snapshots a minute", Bound::Shown, our_rate, their_rate)]
    } else {
        let (our_first, their_first) = (of(&ours, &first), of(&python, &first));
        vec![
            Result::new(
                case,
                "all servers have a snapshot after, s",
                Bound::OfFloor(1.25),
                our_first,
                their_first,
            )
            .floor(median(floors)),
            Result::new(case, "snapshots a minute", Bound::TimesPython(10.0), our_rate, their_rate),
        ]
    };
    results.extend(common(case, &ours, &python));
    results
}

async fn overload(rival: &Rival, runs: usize) -> Vec<Result> {
    let case = Case::Overload;
    let time = Duration::from_secs(120);
    let scene = Scene::new(SHORT).await;
    let (mut ours, mut python, mut floors) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..runs {
        let mut best = 0.0_f64;
        for writers in floor::WRITERS {
            let client = scene.register("powa", 50, 10).await;
            floor::round(&scene, "powa", &client, writers).await;
            best = best.max(floor::rate(&scene, "powa", &client, writers, Duration::from_secs(60)).await);
        }
        floors.push(best);
        for who in [Who::Ours, Who::Python] {
            let client = scene.register("powa", 50, 10).await;
            floor::round(&scene, "powa", &client, 2).await;
            client
                .batch_execute("UPDATE powa_snapshot_metas SET coalesce_seq = 1")
                .await
                .expect("count from here");
            let watched = watch(who, rival, &scene, "powa", &client, time).await;
            eprintln!("  run {}: floor {best:.1}, {who:?} {:.1} a minute", run + 1, watched.per_minute(time));
            if who == Who::Ours { ours.push(watched) } else { python.push(watched) }
        }
    }
    let of = |runs: &[Watched], value: &dyn Fn(&Watched) -> f64| median(runs.iter().map(value).collect());
    let rate = |watched: &Watched| watched.per_minute(time);
    #[allow(clippy::cast_precision_loss)]
    let fairness = |watched: &Watched| {
        let mut counts = watched.by_server.clone();
        counts.sort_unstable();
        counts[counts.len() / 2] as f64 / counts[0].max(1) as f64
    };
    let mut results = vec![
        Result::new(
            case,
            "snapshots a minute",
            Bound::AtLeastFloor(0.9),
            of(&ours, &rate),
            of(&python, &rate),
        )
        .floor(median(floors)),
        Result::new(
            case,
            "snapshots of the median server to those of the last",
            Bound::AtMost(2.0),
            of(&ours, &fairness),
            of(&python, &fairness),
        ),
    ];
    results.extend(common(case, &ours, &python));
    results
}

async fn distant(rival: &Rival, runs: usize) -> Vec<Result> {
    let case = Case::Distant;
    let scene = Scene::new(SHORT).await;
    let relay = Relay::start(scene.monitored.port(), Duration::from_millis(25)).await;
    let (mut times, mut turns) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for run in 0..runs {
        for (at, who) in [Who::Ours, Who::Python].into_iter().enumerate() {
            let server = |_| Registration::new("127.0.0.1", relay.port);
            let client = scene.register_at("powa", 1, 15, server).await;
            let _contestant = Contestant::start(who, rival, &scene.repository, "powa");
            until(&client, 1).await;
            // What follows is warm: catalogs are there, the session is open.
            tokio::time::sleep(Duration::from_secs(2)).await;
            relay.clear();
            until(&client, 2).await;
            tokio::time::sleep(Duration::from_secs(2)).await;
            let burst =
                relay.bursts().into_iter().max_by_key(|burst| burst.time).expect("a snapshot was read");
            eprintln!("  run {}: {who:?}: {:.2} s, {} turns", run + 1, burst.time.as_secs_f64(), burst.turns);
            times[at].push(burst.time.as_secs_f64());
            #[allow(clippy::cast_precision_loss)]
            turns[at].push(burst.turns as f64);
        }
    }
    let [ours, python] = times.map(median);
    let [our_turns, python_turns] = turns.map(median);
    vec![
        Result::new(case, "a fetch, all databases included, s", Bound::OfPython(0.1), ours, python),
        Result::new(case, "waits for the server in a fetch", Bound::Shown, our_turns, python_turns),
    ]
}

async fn until(client: &Client, snapshots: i64) {
    let began = Instant::now();
    while stored(client).await.snapshots < snapshots {
        assert!(began.elapsed() < Duration::from_secs(180), "no snapshot {snapshots}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn text(rival: &Rival, runs: usize) -> Vec<Result> {
    let case = Case::Text;
    let time = Duration::from_secs(120);
    let scene = Scene::new(LONG).await;
    let (mut ours, mut python) = (Vec::new(), Vec::new());
    for run in 0..runs {
        for who in [Who::Ours, Who::Python] {
            let client = scene.register("powa", 100, 10).await;
            let watched = watch(who, rival, &scene, "powa", &client, time).await;
            eprintln!("  run {}: {who:?}: {:.0} MB", run + 1, watched.megabytes());
            if who == Who::Ours { ours.push(watched) } else { python.push(watched) }
        }
    }
    let of = |runs: &[Watched]| median(runs.iter().map(Watched::megabytes).collect());
    let mut results = vec![Result::new(case, "peak memory, MB", Bound::AtMost(96.0), of(&ours), of(&python))];
    results.extend(common(case, &ours, &python).into_iter().skip(1));
    results
}

/// The rival is not asked: it opens a connection to the repository for each server.
async fn idle(rival: &Rival, runs: usize) -> Vec<Result> {
    let case = Case::Idle;
    let scene = Scene::new(SHORT).await;
    let (mut memory, mut cores, mut connections) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..runs {
        let client = scene.register("powa", 1000, 86_400).await;
        // Each had its snapshot a moment ago, and none is due: what is left is being there.
        client
            .batch_execute("UPDATE powa_snapshot_metas SET snapts = now() WHERE srvid > 0")
            .await
            .expect("update");
        let contestant = Contestant::start(Who::Ours, rival, &scene.repository, "powa");
        let began = Instant::now();
        let sessions = async || -> i64 {
            let statement = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'PoWA collector - worker %'";
            let server = scene.monitored.client("postgres").await;
            server.query_one(statement, &[]).await.expect("count the sessions").get(0)
        };
        while sessions().await < 1000 {
            assert!(began.elapsed() < Duration::from_secs(120), "not all sessions are there");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        let (before, at) = (contestant.cpu(), Instant::now());
        tokio::time::sleep(Duration::from_secs(60)).await;
        let core = (contestant.cpu() - before).as_secs_f64() / at.elapsed().as_secs_f64();
        let statement = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'PoWA collector%'";
        let open: i64 = client.query_one(statement, &[]).await.expect("count the sessions").get(0);
        #[allow(clippy::cast_precision_loss)]
        let (megabytes, open) = (contestant.peak_memory() as f64 / f64::from(1 << 20), open as f64);
        eprintln!(
            "  run {}: {megabytes:.0} MB, {:.2} % of a core, {open} connections",
            run + 1,
            core * 100.0
        );
        memory.push(megabytes);
        cores.push(core * 100.0);
        connections.push(open);
    }
    vec![
        Result::ours_alone(case, "peak memory, MB", Bound::AtMost(64.0), median(memory)),
        Result::ours_alone(case, "CPU, % of a core", Bound::AtMost(1.0), median(cores)),
        Result::ours_alone(case, "connections to the repository", Bound::AtMost(10.0), median(connections)),
    ]
}
