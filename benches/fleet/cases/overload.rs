//! 50 servers every 10 s: more than the repository can take.

use std::time::Duration;

use super::{Bench, Case, Outcome, Seen};
use crate::floor::{self, Floor};
use crate::plot::{Line, Plot};
use crate::report::{Bound, median};
use crate::scene::{SHORT, Scene};
use crate::watched::{Watched, watch};

const SERVERS: usize = 50;
const TIME: Duration = Duration::from_secs(90);
/// How long the floor is measured.
const FLOOR: Duration = Duration::from_secs(45);

pub async fn run(bench: &Bench) -> Outcome {
    let case = Case::Overload;
    let time = bench.overload.unwrap_or(TIME);
    let scene = Scene::new(SHORT).await;
    scene.register(SERVERS, 10).await;
    // Everybody begins after a first round: that one has a case of its own.
    let client = scene.fresh().await;
    floor::round(&scene, &client, floor::WRITERS[0]).await;
    scene.keep(client).await;
    let mut seen = Seen::default();
    let mut floors: Vec<Floor> = Vec::new();
    let mut writers = if bench.with_floor { floor::WRITERS.to_vec() } else { Vec::new() };
    for run in 1..=bench.runs {
        let mut best: Option<(usize, Floor)> = None;
        for writers in writers.iter().copied() {
            let client = scene.fresh().await;
            let floor = floor::rate(&scene, &client, writers, FLOOR).await;
            eprintln!("  run {run}: floor: {:.1} a minute by {writers} writers", floor.per_minute());
            if best.as_ref().is_none_or(|(_, other)| floor.per_minute() > other.per_minute()) {
                best = Some((writers, floor));
            }
        }
        if let Some((best, floor)) = best {
            writers = vec![best];
            floors.push(floor);
        }
        for who in bench.contestants() {
            let client = scene.fresh().await;
            let watched = watch(who, &scene, &client, time).await;
            eprintln!(
                "  run {run}: {who}: {:.1} a minute, {:.0} MB, stop {:.1} s",
                watched.per_minute(Duration::ZERO, time),
                watched.megabytes(),
                watched.stop_seconds(),
            );
            seen.add(who, watched);
        }
    }
    let rate = |watched: &Watched| watched.per_minute(Duration::ZERO, time);
    let behind = |watched: &Watched| {
        let waits = watched.longest_waits(Duration::ZERO);
        waits[waits.len() - 1] / waits[waits.len() / 2]
    };
    let floor = median(floors.iter().map(Floor::per_minute).collect());
    let mut results = vec![
        seen.result(case, "snapshots a minute", Bound::AtLeastFloor(0.9), rate).floor(floor),
        seen.result(case, "longest wait of the last server, to the median's", Bound::AtMost(2.0), behind),
        seen.result(case, "stop, with stores in progress, s", Bound::AtMost(2.0), Watched::stop_seconds),
        seen.result(case, "peak memory, MB", Bound::Shown, Watched::megabytes),
    ];
    results.extend(seen.answers(case));
    results.push(seen.cpu(case, Bound::OfPython(0.25)));

    #[allow(clippy::cast_precision_loss)]
    let mut lines = seen.lines(|watched| {
        let samples = watched.samples.iter();
        samples.map(|sample| (sample.at.as_secs_f64(), sample.snapshots as f64)).collect()
    });
    lines.extend(floors.first().map(|floor| Line { name: "floor", points: floor.points() }));
    let title = "Snapshots in the repository: 50 servers every 10 s".to_owned();
    Outcome { results, plot: Plot { title, x: "seconds", y: "snapshots", lines, bound: None } }
}
