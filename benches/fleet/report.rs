//! The figures: a table for the terminal, and `benches/RESULTS.md`.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::cases::Case;
use crate::contestant::RIVAL_VERSION;

/// What is to be reached.
#[derive(Debug, Clone, Copy)]
pub enum Bound {
    AtMost(f64),
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

#[derive(Debug)]
pub struct Result {
    case: Case,
    what: &'static str,
    bound: Bound,
    ours: f64,
    python: Option<f64>,
    floor: Option<f64>,
}

impl Result {
    pub fn new(case: Case, what: &'static str, bound: Bound, ours: f64, python: f64) -> Self {
        Self { case, what, bound, ours, python: Some(python), floor: None }
    }

    pub fn ours_alone(case: Case, what: &'static str, bound: Bound, ours: f64) -> Self {
        Self { case, what, bound, ours, python: None, floor: None }
    }

    pub fn floor(self, floor: f64) -> Self {
        Self { floor: Some(floor), ..self }
    }

    fn ratio(&self) -> Option<f64> {
        Some(self.ours / self.python?)
    }

    /// What was to be reached, and whether it was.
    fn verdict(&self) -> (String, Option<bool>) {
        let (floor, python) = (self.floor.unwrap_or(f64::NAN), self.python.unwrap_or(f64::NAN));
        match self.bound {
            Bound::AtMost(most) => (format!("≤ {most}"), Some(self.ours <= most)),
            Bound::OfFloor(times) => (format!("≤ {times} × floor"), Some(self.ours <= times * floor)),
            Bound::AtLeastFloor(part) => (format!("≥ {part} × floor"), Some(self.ours >= part * floor)),
            Bound::OfPython(part) => (format!("≤ {part} × Python's"), Some(self.ours <= part * python)),
            Bound::TimesPython(times) => (format!("≥ {times} × Python's"), Some(self.ours >= times * python)),
            Bound::Shown => (String::new(), None),
        }
    }
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
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

pub fn write(results: &[Result], runs: usize, time: Duration) {
    let text = format!(
        "# Results\n\nWritten by `make bench` in {} min; medians of {runs} runs. What the cases are stands in \
         [README.md](README.md).\n\n{}\n- powa-collector {}, Python collector {RIVAL_VERSION}\n- {}\n- PostgreSQL 17 \
         and PoWA 5.0 of Debian 13, repository and monitored servers on the same machine\n",
        time.as_secs() / 60,
        table(results),
        env!("CARGO_PKG_VERSION"),
        machine(),
    );
    fs::write("benches/RESULTS.md", text).expect("write benches/RESULTS.md");
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
