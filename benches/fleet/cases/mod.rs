//! What is measured, case by case. Each one is run by everybody on the same clusters, one after the other.

mod distant;
mod first_round;
mod idle;
mod overload;
mod text;

use std::time::Duration;

use crate::contestant::{Rival, Who};
use crate::plot::{Line, Plot};
use crate::report::{Bound, Result, median};
use crate::watched::Watched;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Case {
    FirstRound,
    Overload,
    Distant,
    Text,
    Idle,
}

/// How the benchmark is run.
pub struct Bench {
    /// None: it is left out.
    pub rival: Option<Rival>,
    pub runs: usize,
    pub with_floor: bool,
    pub is_quick: bool,
    /// How long the overload lasts, in place of its own time.
    pub overload: Option<Duration>,
}

/// What a case has shown.
pub struct Outcome {
    pub results: Vec<Result>,
    pub plot: Plot,
}

/// What is told of the answers in every case.
const WITHIN: &str = "WORKERS_STATUS: 99 % answered within, ms";
const SINCE_SENDING: &str = "the same with the question's own commit, ms";
const UNANSWERED: &str = "WORKERS_STATUS: without an answer in 3 s";

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

    pub async fn run(self, bench: &Bench) -> Outcome {
        match self {
            Case::FirstRound => first_round::run(bench).await,
            Case::Overload => overload::run(bench).await,
            Case::Distant => distant::run(bench).await,
            Case::Text => text::run(bench).await,
            Case::Idle => idle::run(bench).await,
        }
    }
}

impl Bench {
    /// Who takes part.
    fn contestants(&self) -> Vec<Who<'_>> {
        std::iter::once(Who::Ours).chain(self.rival.as_ref().map(Who::Python)).collect()
    }
}

/// What was seen of both, run by run.
#[derive(Default)]
struct Seen {
    ours: Vec<Watched>,
    python: Vec<Watched>,
}

impl Seen {
    fn add(&mut self, who: Who<'_>, watched: Watched) {
        match who {
            Who::Ours => self.ours.push(watched),
            Who::Python(_) => self.python.push(watched),
        }
    }

    /// The medians of both.
    fn medians(&self, value: impl Fn(&Watched) -> f64) -> (f64, Option<f64>) {
        let of = |runs: &[Watched]| median(runs.iter().map(&value).collect());
        (of(&self.ours).unwrap_or(f64::NAN), of(&self.python))
    }

    fn result(
        &self,
        case: Case,
        what: &'static str,
        bound: Bound,
        value: impl Fn(&Watched) -> f64,
    ) -> Result {
        let (ours, python) = self.medians(value);
        Result::new(case, what, bound, ours, python)
    }

    /// What the collectors compute for a snapshot.
    fn cpu(&self, case: Case, bound: Bound) -> Result {
        self.result(case, "CPU of the collector a snapshot, ms", bound, Watched::cpu_ms)
    }

    fn answers(&self, case: Case) -> Vec<Result> {
        let within = |watched: &Watched| watched.questions.within_ms();
        let since_sending = |watched: &Watched| watched.questions.since_sending_ms();
        #[allow(clippy::cast_precision_loss)]
        let unanswered = |watched: &Watched| watched.questions.unanswered as f64;
        vec![
            self.result(case, WITHIN, Bound::AtMost(50.0), within),
            self.result(case, SINCE_SENDING, Bound::Shown, since_sending),
            self.result(case, UNANSWERED, Bound::AtMost(0.0), unanswered),
        ]
    }

    /// A line for each, of the first run.
    fn lines(&self, points: impl Fn(&Watched) -> Vec<(f64, f64)>) -> Vec<Line> {
        let named = [("powa-collector", &self.ours), ("Python collector", &self.python)];
        let first = |(name, runs): (&'static str, &Vec<Watched>)| {
            runs.first().map(|watched| Line { name, points: points(watched) })
        };
        named.into_iter().filter_map(first).collect()
    }
}
