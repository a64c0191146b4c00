//! What is counted of one server since its worker began, for whoever measures: how often what failed, how long snapshots
//! took, and what they held.

use std::collections::VecDeque;

/// What can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// To connect to the monitored server, or the connection was lost.
    Connect,
    /// To ask the repository what is due.
    Repository,
    /// To read a snapshot as a whole.
    Fetch,
    /// To read one datasource of a snapshot, or to take it over in the repository.
    Datasource,
    /// An attempt to store a snapshot.
    Store,
    /// A snapshot that was read is lost.
    Lost,
    /// The collector itself.
    Fault,
}

impl Failure {
    pub const ALL: [Self; 7] = [
        Self::Connect,
        Self::Repository,
        Self::Fetch,
        Self::Datasource,
        Self::Store,
        Self::Lost,
        Self::Fault,
    ];

    /// As metrics call it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Repository => "repository",
            Self::Fetch => "fetch",
            Self::Datasource => "datasource",
            Self::Store => "store",
            Self::Lost => "lost",
            Self::Fault => "fault",
        }
    }
}

/// Up to how many seconds the classes of a [`Histogram`] go. What takes longer is in the last one.
pub const BOUNDS: [f64; 7] = [0.05, 0.2, 1.0, 5.0, 20.0, 60.0, 300.0];

/// How many durations are kept for a plot.
const RECENT: usize = 30;

/// How often something took how long.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Histogram {
    classes: [u64; BOUNDS.len() + 1],
    sum: f64,
}

impl Histogram {
    fn add(&mut self, seconds: f64) {
        let class = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        self.classes[class] += 1;
        self.sum += seconds;
    }

    /// Of all, in seconds.
    pub fn sum(&self) -> f64 {
        self.sum
    }

    pub fn count(&self) -> u64 {
        self.classes.iter().sum()
    }

    /// The upper bound of each class in seconds, the last one's being infinity, and how many are in that class alone.
    pub fn classes(&self) -> Vec<(f64, u64)> {
        BOUNDS.into_iter().chain([f64::INFINITY]).zip(self.classes).collect()
    }
}

/// The seconds of one snapshot by phase.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Phases {
    pub fetch: f64,
    /// For a connection to the repository.
    pub wait: f64,
    pub store: f64,
}

impl Phases {
    pub fn sum(self) -> f64 {
        self.fetch + self.wait + self.store
    }
}

/// The figures of one server.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figures {
    failures: [u64; Failure::ALL.len()],
    pub fetch: Histogram,
    pub wait: Histogram,
    pub store: Histogram,
    /// Stored.
    pub rows: u64,
    /// Of rows that were stored, as text.
    pub bytes: u64,
    /// What the last snapshots took in all, in seconds, the latest at the end.
    pub recent: VecDeque<f64>,
}

impl Figures {
    pub fn failed(&mut self, what: Failure, times: u64) {
        self.failures[what as usize] += times;
    }

    pub fn failures(&self, what: Failure) -> u64 {
        self.failures[what as usize]
    }

    pub fn stored(&mut self, phases: Phases, rows: u64, bytes: u64) {
        self.fetch.add(phases.fetch);
        self.wait.add(phases.wait);
        self.store.add(phases.store);
        self.rows += rows;
        self.bytes += bytes;
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(phases.sum());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_in_one_class_and_one_on_a_bound_belongs_below() {
        let mut histogram = Histogram::default();
        for seconds in [0.0, 0.05, 0.050_1, 300.0, 300.1, 1e9] {
            histogram.add(seconds);
        }
        assert_eq!(histogram.count(), 6);
        let counts: Vec<u64> = histogram.classes().iter().map(|(_, count)| *count).collect();
        assert_eq!(counts, [2, 1, 0, 0, 0, 0, 1, 2]);
        assert!((histogram.sum() - (1e9 + 600.2)).abs() < 1e-3, "{}", histogram.sum());
        assert!(histogram.classes().last().unwrap().0.is_infinite());
    }

    #[test]
    fn every_kind_of_failure_is_counted_by_itself() {
        let mut figures = Figures::default();
        for (times, what) in (1..).zip(Failure::ALL) {
            figures.failed(what, times);
        }
        let counted = Failure::ALL.map(|what| figures.failures(what));
        assert_eq!(counted, [1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn of_many_snapshots_the_last_ones_are_kept_for_the_plot_and_all_are_summed_up() {
        let mut figures = Figures::default();
        for number in 0..100 {
            figures.stored(Phases { fetch: f64::from(number), wait: 0.25, store: 0.5 }, 2, 10);
        }
        assert_eq!(figures.recent.len(), RECENT);
        assert_eq!((figures.recent.front(), figures.recent.back()), (Some(&70.75), Some(&99.75)));
        assert_eq!((figures.rows, figures.bytes), (200, 1000));
        assert_eq!((figures.fetch.count(), figures.wait.count(), figures.store.count()), (100, 100, 100));
    }
}
