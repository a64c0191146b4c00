//! 100 servers every 60 s, from an empty repository: catalogs of everybody at once, and then the period.

use std::time::Duration;

use super::{Bench, Case, Outcome, Seen};
use crate::contestant::Who;
use crate::floor::{self, Floor};
use crate::plot::{Line, Plot};
use crate::report::{Bound, Result, median};
use crate::scene::{SHORT, Scene};
use crate::watched::{Watched, watch};

const PERIOD: i32 = 60;
/// The time in which the collectors are compared.
const FIRST: Duration = Duration::from_secs(150);
/// The time after that, in which the period must hold.
const THEN: Duration = Duration::from_secs(90);

pub async fn run(bench: &Bench) -> Outcome {
    let case = Case::FirstRound;
    // The short form has a short period: within half of one, only half of the servers are due.
    let (servers, period, first, then) = if bench.is_quick {
        (20, 10, Duration::from_secs(25), Duration::ZERO)
    } else {
        (100, PERIOD, FIRST, THEN)
    };
    let scene = Scene::new(SHORT).await;
    scene.register(servers, period).await;
    let mut seen = Seen::default();
    let (mut floors, mut floor_rates) = (Vec::new(), Vec::new());
    let mut best: Option<usize> = None;
    for run in 1..=bench.runs {
        if bench.with_floor {
            let (writers, floor, rate) = measure_floor(&scene, best).await;
            best = Some(writers);
            eprintln!(
                "  run {run}: floor {:.1} s by {writers} writers, then {rate:.0} a minute",
                floor.seconds()
            );
            floors.push(floor);
            floor_rates.push(rate);
        }
        for who in bench.contestants() {
            let client = scene.fresh().await;
            // The Python collector has not even had its first round by then.
            let time = if let Who::Ours = who { first + then } else { first };
            let watched = watch(who, &scene, &client, time).await;
            eprintln!(
                "  run {run}: {who}: {:.1} snapshots a minute, all servers after {:.0} s, {:.0} MB, stop {:.1} s",
                watched.per_minute(Duration::ZERO, first),
                watched.all_first(),
                watched.megabytes(),
                watched.stop_seconds(),
            );
            seen.add(who, watched);
        }
    }
    let rate = |watched: &Watched| watched.per_minute(Duration::ZERO, first);
    let mut results = Vec::new();
    if bench.is_quick {
        results.push(seen.result(case, "snapshots a minute", Bound::Shown, rate));
    } else {
        let what = "all servers have a snapshot after, s";
        let floor = median(floors.iter().map(Floor::seconds).collect());
        results.push(seen.result(case, what, Bound::OfFloor(1.25), Watched::all_first).floor(floor));
        results.push(seen.result(case, "snapshots a minute, over 150 s", Bound::TimesPython(10.0), rate));
        let (then, _) = seen.medians(|watched| watched.per_minute(first, first + then));
        let due = f64::from(60 / PERIOD) * servers as f64;
        let what = "snapshots a minute after that, of 100 due";
        let floor = median(floor_rates);
        let could_hold = floor.is_none_or(|floor| floor >= due);
        let bound = if could_hold { Bound::AtLeast(0.98 * due) } else { Bound::AtLeastFloor(0.9) };
        results.push(Result::alone(case, what, bound, then).floor(floor));
        let longest =
            |watched: &Watched| watched.longest_waits(first).last().copied().unwrap_or(f64::INFINITY);
        let what = "the longest that a server then waits for its next, s";
        let bound = if could_hold { Bound::AtMost(75.0) } else { Bound::Shown };
        results.push(Result::alone(case, what, bound, seen.medians(longest).0));
    }
    results.push(seen.result(case, "peak memory, MB", Bound::Shown, Watched::megabytes));
    results.extend(seen.answers(case));
    // Of these the catalogs are most, once.
    results.push(seen.cpu(case, Bound::Shown));

    #[allow(clippy::cast_precision_loss)]
    let mut lines = seen.lines(|watched| {
        let samples = watched.samples.iter().filter(|sample| sample.at <= first);
        samples.map(|sample| (sample.at.as_secs_f64(), sample.servers as f64)).collect()
    });
    lines.extend(floors.first().map(|floor| Line { name: "floor", points: floor.points() }));
    let title = "Servers that have their first snapshot: 100 every 60 s, from an empty repository".to_owned();
    Outcome { results, plot: Plot { title, x: "seconds", y: "servers", lines, bound: None } }
}

/// The best floor, and what it holds afterwards, in snapshots a minute. `writers`: how many were best before.
async fn measure_floor(scene: &Scene, writers: Option<usize>) -> (usize, Floor, f64) {
    let mut best: Option<(usize, Floor, f64)> = None;
    for writers in writers.map_or(floor::WRITERS.to_vec(), |writers| vec![writers]) {
        let client = scene.fresh().await;
        let floor = floor::round(scene, &client, writers).await;
        let rate = floor::rate(scene, &client, writers, Duration::from_secs(20)).await.per_minute();
        if best.as_ref().is_none_or(|(_, other, _)| floor.seconds() < other.seconds()) {
            best = Some((writers, floor, rate));
        }
    }
    best.expect("some number of writers")
}
