//! How the collection of each server goes: what its worker writes down, and whoever is asked reads.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::figures::{Failure, Figures, Phases};
use crate::postgres::text::one_line;
use crate::snapshot::Taken;
use crate::worker::State;

/// The most that is kept of one error, in characters.
const ERROR_LENGTH: usize = 1000;

/// How the collection of one server has gone since its worker started.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Snapshots stored.
    pub snapshots: u64,
    /// Attempts that have failed: to connect, to read, to store.
    pub failures: u64,
    /// The snapshot that was stored last.
    pub last_snapshot: Option<LastSnapshot>,
    /// When the next snapshot is due, or since when. None while nobody knows when the last one was.
    pub next_due: Option<Timestamp>,
    pub last_error: Option<LastError>,
    #[serde(flatten)]
    pub way: Way,
}

/// How a server is read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Way {
    /// By the repository's definitions: why not by the server's own PoWA.
    #[serde(default)]
    pub borrowed: Option<String>,
    /// What is left out.
    #[serde(default)]
    pub skipped: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LastSnapshot {
    /// When it was stored.
    pub time: Timestamp,
    pub fetch_seconds: f64,
    /// Waiting for a connection to the repository.
    pub wait_seconds: f64,
    pub store_seconds: f64,
    pub rows: u64,
    /// Of rows, as text.
    pub bytes: u64,
    /// How many of its datasources failed.
    pub errors: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LastError {
    pub time: Timestamp,
    pub message: String,
}

/// How one server is collected, as it is told to who asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Detail {
    pub srvid: i32,
    /// `host:port`.
    pub server: String,
    pub alias: Option<String>,
    pub state: String,
    /// From one snapshot to the next, in seconds.
    pub frequency: u64,
    #[serde(flatten)]
    pub report: Report,
    pub backlog: Waiting,
}

/// What waits on disk for the repository.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    pub snapshots: u64,
    pub bytes: u64,
}

impl Detail {
    /// Whether nothing is wrong with the server.
    pub fn is_well(&self) -> bool {
        let is_at_work = [State::Running, State::Unknown].iter().any(|state| state.to_string() == self.state);
        is_at_work && self.present_error().is_none()
    }

    /// The error that the last snapshot met, or that has come after it.
    pub fn present_error(&self) -> Option<&LastError> {
        let error = self.report.last_error.as_ref()?;
        let is_over = self.report.last_snapshot.as_ref().is_some_and(|last| last.time > error.time);
        (!is_over).then_some(error)
    }

    /// The same, with no text longer than so many characters.
    pub fn shortened(&self, most: usize) -> Self {
        let cut = |text: &str| text.chars().take(most).collect::<String>();
        let mut short = self.clone();
        short.server = cut(&self.server);
        short.alias = self.alias.as_deref().map(cut);
        if let Some(error) = &mut short.report.last_error {
            error.message = cut(&error.message);
        }
        let way = &mut short.report.way;
        way.borrowed = way.borrowed.as_deref().map(cut);
        // They are as many as an extension list is long: a few.
        way.skipped = way.skipped.iter().take(most).map(|skipped| cut(skipped)).collect();
        short
    }
}

impl LastSnapshot {
    /// What it took in all.
    pub fn seconds(&self) -> f64 {
        self.fetch_seconds + self.wait_seconds + self.store_seconds
    }
}

/// A report, and the figures beside it, that one writes and others read.
#[derive(Debug, Clone, Default)]
pub struct Sheet(Arc<Mutex<(Report, Figures)>>);

impl Sheet {
    pub fn read(&self) -> Report {
        self.with(|report, _| report.clone())
    }

    pub fn figures(&self) -> Figures {
        self.with(|_, figures| figures.clone())
    }

    /// A snapshot is in the repository.
    pub fn stored(&self, taken: &Taken) {
        let now = Timestamp::now();
        let phases = Phases {
            fetch: taken.fetch.as_secs_f64(),
            wait: taken.wait.as_secs_f64(),
            store: taken.store.as_secs_f64(),
        };
        self.with(|report, figures| {
            figures.stored(phases, taken.rows, taken.bytes);
            figures.failed(Failure::Datasource, taken.error_count());
            report.snapshots += 1;
            report.last_snapshot = Some(LastSnapshot {
                time: now,
                fetch_seconds: seconds(taken.fetch),
                wait_seconds: seconds(taken.wait),
                store_seconds: seconds(taken.store),
                rows: taken.rows,
                bytes: taken.bytes,
                errors: taken.error_count(),
            });
            let message = match (&taken.errors[..], taken.repository_errors) {
                ([first, ..], _) => Some(first.clone()),
                ([], 1..) => Some("powa_take_snapshot met errors: see powa_snapshot_metas.errors".to_owned()),
                _ => None,
            };
            if let Some(message) = message {
                report.last_error = Some(LastError { time: now, message: shortened(&message) });
            }
        });
    }

    /// An attempt has failed.
    pub fn failed(&self, what: Failure, message: &str) {
        let last = LastError { time: Timestamp::now(), message: shortened(message) };
        self.with(|report, figures| {
            figures.failed(what, 1);
            report.failures += 1;
            report.last_error = Some(last);
        });
    }

    /// A snapshot that was read is lost, by a failure that was told by itself.
    pub fn lost(&self) {
        self.with(|_, figures| figures.failed(Failure::Lost, 1));
    }

    /// How it is read. Gives how it was read before.
    pub fn reads(&self, way: Way) -> Way {
        self.with(|report, _| std::mem::replace(&mut report.way, way))
    }

    /// When the next snapshot is due.
    pub fn due(&self, due: Option<Instant>) {
        let due = due.and_then(|due| timestamp(due, Instant::now(), Timestamp::now()));
        self.with(|report, _| report.next_due = due);
    }

    fn with<T>(&self, work: impl FnOnce(&mut Report, &mut Figures) -> T) -> T {
        // A report is whole at any moment, whoever has panicked.
        let mut sheet = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (report, figures) = &mut *sheet;
        work(report, figures)
    }
}

/// What the clock on the wall shows at a moment.
fn timestamp(moment: Instant, now: Instant, time: Timestamp) -> Option<Timestamp> {
    match moment.checked_duration_since(now) {
        Some(wait) => time.checked_add(wait).ok(),
        None => time.checked_sub(now.duration_since(moment)).ok(),
    }
}

/// To the millisecond.
fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}

fn shortened(message: &str) -> String {
    one_line(message).chars().take(ERROR_LENGTH).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(errors: &[&str], repository_errors: i32) -> Taken {
        Taken {
            rows: 3,
            bytes: 20,
            errors: errors.iter().map(|error| (*error).to_owned()).collect(),
            repository_errors,
            was_there: false,
            fetch: Duration::from_micros(1_234_567),
            wait: Duration::ZERO,
            store: Duration::from_millis(5),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let sheet = Sheet::default();
        let reader = sheet.clone();
        assert_eq!(reader.read(), Report::default());
        sheet.failed(Failure::Connect, "no\nconnection");
        sheet.stored(&taken(&[], 0));
        let report = reader.read();
        assert_eq!((report.snapshots, report.failures), (1, 1));
        assert_eq!(report.last_error.unwrap().message, "no connection");
        let last = report.last_snapshot.unwrap();
        assert_eq!((last.fetch_seconds, last.store_seconds, last.errors), (1.235, 0.005, 0));
        let figures = reader.figures();
        assert_eq!((figures.rows, figures.bytes, figures.fetch.count()), (3, 20, 1));
        assert_eq!((figures.failures(Failure::Connect), figures.failures(Failure::Store)), (1, 0));
    }

    #[test]
    fn errors_of_datasources_are_told_with_the_snapshot_that_met_them() {
        let sheet = Sheet::default();
        sheet.stored(&taken(&["a: one", "b: two"], 1));
        let report = sheet.read();
        let last = report.last_snapshot.unwrap();
        assert_eq!((last.errors, report.failures), (3, 0));
        assert_eq!(sheet.figures().failures(Failure::Datasource), 3);
        assert_eq!(report.last_error, Some(LastError { time: last.time, message: "a: one".to_owned() }));
        sheet.stored(&taken(&[], 2));
        assert!(sheet.read().last_error.unwrap().message.contains("powa_snapshot_metas"));
    }

    #[test]
    fn an_error_of_any_length_keeps_little() {
        let sheet = Sheet::default();
        sheet.failed(Failure::Fetch, &"é".repeat(100_000));
        assert_eq!(sheet.read().last_error.unwrap().message.chars().count(), ERROR_LENGTH);
    }

    #[test]
    fn what_is_overdue_says_since_when() {
        let (now, time) = (Instant::now() + Duration::from_secs(100), Timestamp::from_second(1_000).unwrap());
        let at = |moment| timestamp(moment, now, time).unwrap().as_second();
        assert_eq!(at(now), 1_000);
        assert_eq!(at(now + Duration::from_secs(30)), 1_030);
        assert_eq!(at(now.checked_sub(Duration::from_secs(30)).unwrap()), 970);
    }
}
