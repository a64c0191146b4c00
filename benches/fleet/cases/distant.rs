//! One server behind a relay that holds everything back for 25 ms in each direction.

use std::time::{Duration, Instant};

use super::{Bench, Case, Outcome, SINCE_SENDING, UNANSWERED, WITHIN};
use crate::contestant::{Contestant, Who};
use crate::measure::{Questions, Transactions};
use crate::plot::{Line, Plot};
use crate::relay::{Burst, Relay};
use crate::report::{Bound, Result, median};
use crate::scene::{REPOSITORY, SHORT, Scene};
use crate::support::Registration;

const DELAY: Duration = Duration::from_millis(25);
const PERIOD: i32 = 15;

/// What was seen of one contestant, run by run.
#[derive(Default)]
struct Seen {
    bursts: Vec<Burst>,
    transactions: Vec<f64>,
    answers: Vec<f64>,
    since_sending: Vec<f64>,
    unanswered: Vec<f64>,
}

pub async fn run(bench: &Bench) -> Outcome {
    let case = Case::Distant;
    let scene = Scene::new(SHORT).await;
    let relay = Relay::start(scene.monitored.port(), DELAY).await;
    let server = |_| Registration::new("127.0.0.1", relay.port);
    scene.register_at(1, PERIOD, server).await;
    let (mut ours, mut python) = (Seen::default(), Seen::default());
    for run in 1..=bench.runs {
        for who in bench.contestants() {
            let seen = if let Who::Ours = who { &mut ours } else { &mut python };
            measure(who, &scene, &relay, if bench.is_quick { 10 } else { 20 }, seen).await;
            let (burst, transaction) = (&seen.bursts[run - 1], seen.transactions[run - 1]);
            eprintln!(
                "  run {run}: {who}: {:.2} s, {} waits, {} of them in the session; longest transaction {transaction:.2} s",
                burst.time.as_secs_f64(),
                burst.turns,
                burst.session_turns,
            );
        }
    }
    let of = |values: &dyn Fn(&Seen) -> Vec<f64>| {
        (median(values(&ours)).unwrap_or(f64::NAN), median(values(&python)))
    };
    #[allow(clippy::cast_precision_loss)]
    let turns = |count: fn(&Burst) -> usize| {
        move |seen: &Seen| -> Vec<f64> { seen.bursts.iter().map(|burst| count(burst) as f64).collect() }
    };
    let time = |seen: &Seen| seen.bursts.iter().map(|burst| burst.time.as_secs_f64()).collect();
    let result = |what, bound, values: &dyn Fn(&Seen) -> Vec<f64>| {
        let (ours, python) = of(values);
        Result::new(case, what, bound, ours, python)
    };
    let session = turns(|burst| burst.session_turns);
    let results = vec![
        result("a fetch, all databases included, s", Bound::OfPython(0.1), &time),
        result("round trips for all global datasources", Bound::AtMost(6.0), &session),
        result("waits for the server in a fetch, in all", Bound::Shown, &turns(|burst| burst.turns)),
        result("the longest transaction on the server, s", Bound::AtMost(0.3), &|seen| {
            seen.transactions.clone()
        }),
        result(WITHIN, Bound::AtMost(50.0), &|seen| seen.answers.clone()),
        result(SINCE_SENDING, Bound::Shown, &|seen| seen.since_sending.clone()),
        result(UNANSWERED, Bound::AtMost(0.0), &|seen| seen.unanswered.clone()),
    ];
    let line =
        |name, seen: &Seen| seen.bursts.first().map(|burst| Line { name, points: burst.steps.clone() });
    let lines = [line("powa-collector", &ours), line("Python collector", &python)];
    let title = "Waits for the server in one fetch, behind a round trip of 50 ms".to_owned();
    let lines = lines.into_iter().flatten().collect();
    let plot = Plot { title, x: "seconds", y: "waits so far", lines, bound: None };
    Outcome { results, plot }
}

/// The second snapshot of a collector: catalogs are there, the session is open.
async fn measure(who: Who<'_>, scene: &Scene, relay: &Relay, questions_seconds: u64, seen: &mut Seen) {
    let client = scene.fresh().await;
    relay.clear();
    let _contestant = Contestant::start(who, &scene.repository);
    let snapshots = async || -> i64 {
        let statement = "SELECT sum(coalesce_seq - 1)::bigint FROM powa_snapshot_metas WHERE srvid > 0";
        client.query_one(statement, &[]).await.expect("count the snapshots").get(0)
    };
    let until = async |count: i64| {
        let began = Instant::now();
        while snapshots().await < count {
            assert!(began.elapsed() < Duration::from_secs(180), "no snapshot {count}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    until(1).await;
    // What the first one leaves to be done is not the second one's.
    tokio::time::sleep(Duration::from_secs(2)).await;
    relay.forget();
    let transactions = Transactions::watch(&scene.monitored).await;
    let until_then = Instant::now() + Duration::from_secs(questions_seconds);
    let asking = Questions::ask(&scene.repository, REPOSITORY, until_then);
    let ((), questions) = tokio::join!(
        async {
            until(2).await;
            tokio::time::sleep(Duration::from_secs(2)).await;
        },
        asking
    );
    let burst = relay.bursts().into_iter().max_by_key(|burst| burst.time).expect("a snapshot was read");
    seen.bursts.push(burst);
    seen.transactions.push(transactions.longest().await.as_secs_f64());
    seen.answers.push(questions.within_ms());
    seen.since_sending.push(questions.since_sending_ms());
    #[allow(clippy::cast_precision_loss)]
    seen.unanswered.push(questions.unanswered as f64);
}
