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
mod relay;
mod report;
mod scene;

use std::time::Instant;

use cases::Case;

/// What the command line asks for.
struct Wishes {
    is_quick: bool,
    runs: usize,
    only: Vec<String>,
}

fn wishes() -> Wishes {
    let mut wishes = Wishes { is_quick: false, runs: 3, only: Vec::new() };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => (wishes.is_quick, wishes.runs) = (true, 1),
            "--runs" => {
                let runs = arguments.next().and_then(|runs| runs.parse().ok()).filter(|runs| *runs > 0);
                wishes.runs = runs.expect("--runs wants a number");
            }
            // Cargo's own.
            "--bench" => {}
            name if Case::ALL.iter().any(|case| case.name() == name) => wishes.only.push(name.to_owned()),
            other => {
                let names: Vec<&str> = Case::ALL.iter().map(|case| case.name()).collect();
                panic!("{other}: not --quick, --runs N or one of {}", names.join(", "));
            }
        }
    }
    wishes
}

#[tokio::main]
async fn main() {
    let wishes = wishes();
    let began = Instant::now();
    let rival = contestant::install_rival();
    let mut results = Vec::new();
    for case in Case::ALL {
        let is_wanted = match wishes.is_quick {
            true => case.is_quick(),
            false => wishes.only.is_empty() || wishes.only.iter().any(|name| name == case.name()),
        };
        if is_wanted {
            let short = if wishes.is_quick { " (shortened: fewer of them, for less time)" } else { "" };
            eprintln!("=== {}: {}{short}", case.name(), case.title());
            results.extend(case.run(&rival, wishes.runs, wishes.is_quick).await);
        }
    }
    println!("{}", report::table(&results));
    if !wishes.is_quick && wishes.only.is_empty() {
        report::write(&results, wishes.runs, began.elapsed());
    }
}
