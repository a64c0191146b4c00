//! The figures: a table for the terminal, and `benches/RESULTS.md`.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::cases::{Case, Outcome};
use crate::contestant::RIVAL_VERSION;

/// What is to be reached.
#[derive(Debug, Clone, Copy)]
pub enum Bound {
    AtMost(f64),
    AtLeast(f64),
    /// Times the floor, at most.
    OfFloor(f64),
    /// Of the floor, at least.
    AtLeastFloor(f64),
    /// Of the Python collector's, at most.
    OfPython(f64),
    /// Times the Python collector's, at least.
    TimesPython(f64),
    /// Only told.
    Shown,
}

#[derive(Debug, Clone)]
pub struct Result {
    case: Case,
    what: &'static str,
    bound: Bound,
    ours: f64,
    python: Option<f64>,
    floor: Option<f64>,
}

impl Result {
    pub fn new(case: Case, what: &'static str, bound: Bound, ours: f64, python: Option<f64>) -> Self {
        Self { case, what, bound, ours, python, floor: None }
    }

    pub fn alone(case: Case, what: &'static str, bound: Bound, ours: f64) -> Self {
        Self::new(case, what, bound, ours, None)
    }

    pub fn floor(self, floor: Option<f64>) -> Self {
        Self { floor, ..self }
    }

    fn ratio(&self) -> Option<f64> {
        Some(self.ours / self.python?)
    }

    /// What was to be reached, and whether it was.
    fn verdict(&self) -> (String, Option<bool>) {
        let ours = self.ours;
        match self.bound {
            Bound::AtMost(most) => (format!("≤ {most}"), Some(ours <= most)),
            Bound::AtLeast(least) => (format!("≥ {least}"), Some(ours >= least)),
            Bound::OfFloor(times) => {
                (format!("≤ {times} × floor"), self.floor.map(|floor| ours <= times * floor))
            }
            Bound::AtLeastFloor(part) => {
                (format!("≥ {part} × floor"), self.floor.map(|floor| ours >= part * floor))
            }
            Bound::OfPython(part) => {
                (format!("≤ {part} × Python's"), self.python.map(|python| ours <= part * python))
            }
            Bound::TimesPython(times) => {
                (format!("≥ {times} × Python's"), self.python.map(|python| ours >= times * python))
            }
            Bound::Shown => (String::new(), None),
        }
    }
}

/// The value in the middle; of an even number, the lower one of the two there.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len().checked_sub(1)? / 2).copied()
}

fn number(value: Option<f64>) -> String {
    match value {
        None => String::new(),
        Some(value) if value.is_infinite() => "never".to_owned(),
        Some(value) if value >= 100.0 => format!("{value:.0}"),
        Some(value) if value >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}

/// A table in Markdown, which can be read as it is.
pub fn table(results: &[Result]) -> String {
    let mut rows = vec![
        ["case", "", "powa-collector", "Python", "floor", "ratio to Python", "to reach", ""]
            .map(str::to_owned),
    ];
    for result in results {
        let (bound, is_reached) = result.verdict();
        rows.push([
            result.case.name().to_owned(),
            result.what.to_owned(),
            number(Some(result.ours)),
            number(result.python),
            number(result.floor),
            number(result.ratio().filter(|ratio| ratio.is_finite())),
            bound,
            is_reached.map_or("", |is_reached| if is_reached { "reached" } else { "MISSED" }).to_owned(),
        ]);
    }
    let widths: Vec<usize> = (0..rows[0].len())
        .map(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(text, "| {cell:width$} ");
        }
        text.push_str("|\n");
        if number == 0 {
            for width in &widths {
                let _ = write!(text, "|{}", "-".repeat(width + 2));
            }
            text.push_str("|\n");
        }
    }
    text
}

/// Writes `benches/RESULTS.md` and a plot for each case beside it.
pub fn write(outcomes: &[(Case, Outcome)], failed: &[Case], runs: usize, time: Duration) {
    let mut text = format!(
        "# Results\n\nWritten by `make bench` in {} min; medians of {runs} runs. What the cases are, and what the floor \
         is, stands in [README.md](README.md). The plots show the first run.\n\n- powa-collector {} (commit {}), Python \
         collector {RIVAL_VERSION}\n- {}\n- PostgreSQL 17 and PoWA 5.0 of Debian 13, repository and monitored servers \
         on the same machine\n",
        time.as_secs() / 60,
        env!("CARGO_PKG_VERSION"),
        commit(),
        machine(),
    );
    fs::create_dir_all("benches/plots").expect("make benches/plots");
    for (case, outcome) in outcomes {
        let (name, title) = (case.name(), case.title());
        let _ = write!(text, "\n## {name}: {title}\n\n{}\n", table(&outcome.results));
        let file = format!("plots/{name}.svg");
        outcome.plot.write(&Path::new("benches").join(&file));
        let _ = writeln!(text, "![{}]({file})", outcome.plot.title);
    }
    for case in failed {
        let _ = write!(
            text,
            "\n## {}: {}\n\nBroken off by an error; there are no figures.\n",
            case.name(),
            case.title()
        );
    }
    fs::write("benches/RESULTS.md", text).expect("write benches/RESULTS.md");
}

/// What was measured, as Git names it; with a `+` when something was changed since.
fn commit() -> String {
    let output = Command::new("git").args(["describe", "--always", "--dirty=+", "--abbrev=10"]).output();
    output.map_or_else(|_| "unknown".to_owned(), |it| String::from_utf8_lossy(&it.stdout).trim().to_owned())
}

fn machine() -> String {
    let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let read = |file| fs::read_to_string(file).unwrap_or_default();
    let model = read("/proc/cpuinfo");
    let model = model
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1))
        .unwrap_or("?")
        .to_owned();
    let memory = read("/proc/meminfo");
    let memory: u64 =
        memory.split_whitespace().nth(1).and_then(|kilobytes| kilobytes.parse().ok()).unwrap_or(0)
            / (1 << 20);
    let kernel = Command::new("uname")
        .arg("-r")
        .output()
        .map(|it| String::from_utf8_lossy(&it.stdout).trim().to_owned());
    format!("{cpus} cores ({model}), {memory} GB, Linux {}", kernel.unwrap_or_default())
}
