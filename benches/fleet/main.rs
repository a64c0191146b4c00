//! The fleet benchmark: this collector, the Python collector and a floor, on the same clusters, in turn.
//!
//! `make bench` runs all cases and writes `benches/RESULTS.md`; `make bench-quick` two of them, short. What each
//! case is, and what a floor is, stands in `benches/README.md`.

#[allow(unused_macros, reason = "the benchmark is about one version of PoWA")]
#[path = "../../tests/support/mod.rs"]
mod support;

mod cases;
mod contestant;
mod floor;
mod measure;
mod plot;
mod relay;
mod report;
mod scene;
mod watched;

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use cases::{Bench, Case};
use futures_util::FutureExt;
use serde_json::{Value, json};

/// What the command line asks for.
struct Wishes {
    is_quick: bool,
    runs: usize,
    only: Vec<Case>,
    with_python: bool,
    with_floor: bool,
    /// What our configuration file says besides the repository.
    settings: Value,
    /// How long the overload lasts, if not as usual.
    overload: Option<Duration>,
}

fn wishes() -> Wishes {
    let mut wishes = Wishes {
        is_quick: false,
        runs: 3,
        only: Vec::new(),
        with_python: true,
        with_floor: true,
        settings: json!({}),
        overload: None,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => (wishes.is_quick, wishes.runs) = (true, 1),
            "--without-python" => wishes.with_python = false,
            "--without-floor" => wishes.with_floor = false,
            "--settings" => {
                let settings = arguments.next().and_then(|text| serde_json::from_str(&text).ok());
                wishes.settings = settings.filter(Value::is_object).expect("--settings wants a JSON object");
            }
            "--runs" => {
                let runs = arguments.next().and_then(|runs| runs.parse().ok()).filter(|runs| *runs > 0);
                wishes.runs = runs.expect("--runs wants a number");
            }
            "--overload-seconds" => {
                let seconds =
                    arguments.next().and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
                wishes.overload = Some(seconds.expect("--overload-seconds wants a number"));
            }
            // Cargo's own.
            "--bench" => {}
            name => match Case::ALL.into_iter().find(|case| case.name() == name) {
                Some(case) => wishes.only.push(case),
                None => {
                    let names = Case::ALL.map(Case::name).join(", ");
                    panic!(
                        "{name}: not --quick, --without-python, --without-floor, --runs N, --settings JSON, \
                         --overload-seconds N or one of {names}"
                    );
                }
            },
        }
    }
    wishes
}

#[tokio::main]
async fn main() {
    let wishes = wishes();
    let began = Instant::now();
    let rival = wishes.with_python.then(contestant::install_rival);
    contestant::SETTINGS.set(wishes.settings.clone()).expect("said once");
    let bench = Bench {
        rival,
        runs: wishes.runs,
        with_floor: wishes.with_floor && !wishes.is_quick,
        is_quick: wishes.is_quick,
        overload: wishes.overload,
    };
    let cases: Vec<Case> = match (wishes.is_quick, wishes.only.is_empty()) {
        (true, true) => Case::ALL.into_iter().filter(|case| case.is_quick()).collect(),
        (false, true) => Case::ALL.to_vec(),
        (_, false) => wishes.only.clone(),
    };
    // What is written is about everything, or nothing.
    let is_odd = wishes.is_quick
        || !wishes.with_python
        || !wishes.with_floor
        || wishes.overload.is_some()
        || wishes.settings != json!({});
    let is_whole = !is_odd && wishes.only.is_empty();
    let mut outcomes = Vec::new();
    let mut failed = Vec::new();
    for case in cases {
        let short = if bench.is_quick { " (shortened: fewer of them, for less time)" } else { "" };
        eprintln!("=== {}: {}{short}", case.name(), case.title());
        // One that breaks off is not to cost the hour that the others take.
        let Ok(outcome) = AssertUnwindSafe(case.run(&bench)).catch_unwind().await else {
            failed.push(case);
            continue;
        };
        eprintln!("{}", report::table(&outcome.results));
        outcomes.push((case, outcome));
    }
    let results: Vec<_> = outcomes.iter().flat_map(|(_, outcome)| &outcome.results).cloned().collect();
    println!("{}", report::table(&results));
    if is_whole {
        report::write(&outcomes, &failed, bench.runs, began.elapsed());
    }
    let names: Vec<_> = failed.into_iter().map(Case::name).collect();
    assert!(names.is_empty(), "broken off: {}", names.join(", "));
}
