//! 100 servers with 6 MB of query text each, every 10 s: what waits for the repository must not be in memory.

use std::time::Duration;

use super::{Bench, Case, Outcome, Seen};
use crate::measure::megabytes;
use crate::plot::Plot;
use crate::report::Bound;
use crate::scene::{LONG, Scene};
use crate::watched::{Watched, watch};

const TIME: Duration = Duration::from_secs(60);
const MOST: f64 = 96.0;

pub async fn run(bench: &Bench) -> Outcome {
    let case = Case::Text;
    let scene = Scene::new(LONG).await;
    scene.register(100, 10).await;
    let mut seen = Seen::default();
    for run in 1..=bench.runs {
        for who in bench.contestants() {
            let client = scene.fresh().await;
            let watched = watch(who, &scene, &client, TIME).await;
            eprintln!("  run {run}: {who}: {:.0} MB, {} snapshots", watched.megabytes(), watched.snapshots());
            seen.add(who, watched);
        }
    }
    let rate = |watched: &Watched| watched.per_minute(Duration::ZERO, TIME);
    let mut results = vec![
        seen.result(case, "peak memory, MB", Bound::AtMost(MOST), Watched::megabytes),
        seen.result(case, "snapshots a minute", Bound::Shown, rate),
    ];
    results.extend(seen.answers(case));
    let lines = seen.lines(|watched| {
        let samples = watched.samples.iter();
        samples.map(|sample| (sample.at.as_secs_f64(), megabytes(sample.memory))).collect()
    });
    let title = "Memory: 100 servers with 6 MB of query text each, every 10 s".to_owned();
    let bound = Some((format!("{MOST} MB"), MOST));
    Outcome { results, plot: Plot { title, x: "seconds", y: "MB resident", lines, bound } }
}
