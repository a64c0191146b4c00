//! What a worker was asked for and has not done yet.

use std::time::Duration;

use tokio::time::Instant;

use super::{Assignment, Command, Forced};
use crate::snapshot::plan::Refresh;

/// A forced snapshot is refused when the last one is younger.
const FORCE_INTERVAL: Duration = Duration::from_secs(10);

/// What a worker was asked for and has not done yet.
#[derive(Default)]
pub(super) struct Wishes {
    pub(super) is_forced: bool,
    pub(super) refresh: Option<Refresh>,
    pub(super) versions: bool,
    pub(super) assignment: Option<Box<Assignment>>,
}

/// What one turn of a worker is to do. Each wish is taken out when it is done.
#[derive(Default)]
pub(super) struct Job {
    pub(super) is_forced: bool,
    was_forced: bool,
    pub(super) refresh: Option<Refresh>,
    pub(super) versions: bool,
}

impl Wishes {
    /// Notes a command. True when it wants the worker to stop waiting.
    pub(super) fn note(
        &mut self,
        command: Command,
        is_taking: bool,
        is_ready: bool,
        began: Option<Instant>,
    ) -> bool {
        match command {
            Command::Force(answer) => {
                let forced = self.force(is_taking, is_ready, began);
                // The client may have gone; the snapshot is taken all the same.
                let _ = answer.send(forced);
                return matches!(forced, Forced::Started | Forced::Scheduled);
            }
            Command::Refresh(refresh) => {
                self.refresh = Some(match self.refresh.take() {
                    Some(earlier) => earlier.and(refresh),
                    None => refresh,
                });
            }
            Command::Assign(assignment) => {
                self.assignment = Some(assignment);
                self.versions = true;
            }
        }
        false
    }

    fn force(&mut self, is_taking: bool, is_ready: bool, began: Option<Instant>) -> Forced {
        if is_taking {
            return Forced::InProgress;
        }
        if self.is_forced {
            return Forced::AlreadyScheduled;
        }
        if began.is_some_and(|began| began.elapsed() < FORCE_INTERVAL) {
            return Forced::TooSoon;
        }
        self.is_forced = true;
        if is_ready { Forced::Started } else { Forced::Scheduled }
    }

    pub(super) fn take_job(&mut self) -> Job {
        Job {
            // It stays noted until it is done: a second one is refused meanwhile.
            is_forced: self.is_forced,
            was_forced: self.is_forced,
            refresh: self.refresh.take(),
            versions: std::mem::take(&mut self.versions),
        }
    }

    /// Keeps what a turn could not do.
    pub(super) fn put_back(&mut self, job: Job) {
        // One that was asked for meanwhile stays.
        if job.was_forced {
            self.is_forced = job.is_forced;
        }
        self.versions |= job.versions;
        if let Some(refresh) = job.refresh {
            self.note(Command::Refresh(refresh), false, false, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_forced_snapshot_is_refused_for_the_reasons_that_clients_know() {
        let now = Instant::now();
        let mut wishes = Wishes::default();
        assert_eq!(wishes.force(true, true, None), Forced::InProgress);
        assert_eq!(wishes.force(false, true, Some(now)), Forced::TooSoon);
        assert_eq!(wishes.force(false, false, None), Forced::Scheduled);
        assert_eq!(wishes.force(false, true, None), Forced::AlreadyScheduled);
        let mut job = wishes.take_job();
        assert!(job.is_forced);
        assert_eq!(wishes.force(false, true, None), Forced::AlreadyScheduled);
        job.is_forced = false;
        wishes.put_back(job);
        assert_eq!(wishes.force(false, true, None), Forced::Started);
    }

    #[test]
    fn wishes_that_could_not_be_done_are_kept_with_later_ones() {
        let named = |name: &str| Refresh::Named(vec![name.to_owned()]);
        let mut wishes = Wishes::default();
        wishes.note(Command::Refresh(named("a")), false, false, None);
        let job = wishes.take_job();
        wishes.note(Command::Refresh(named("b")), false, false, None);
        wishes.put_back(job);
        assert_eq!(wishes.refresh, Some(Refresh::Named(vec!["a".to_owned(), "b".to_owned()])));
        wishes.note(Command::Refresh(Refresh::All), false, false, None);
        assert_eq!(wishes.take_job().refresh, Some(Refresh::All));
    }
}
