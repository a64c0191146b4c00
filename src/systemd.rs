//! What the service manager is told: systemd, or whoever else has set `NOTIFY_SOCKET` (sd_notify(3)). Nothing is done
//! when nobody has.
//!
//! There is no task and no thread here. [`ServiceManager::tick`] is to be called when it is due, by the dispatcher's own
//! loop and nobody else: the watchdog is fed only as long as that loop goes round.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::Instant;

use crate::postgres::text::one_line;

/// How often it is looked whether there is a new status to tell.
const STATUS_INTERVAL: Duration = Duration::from_secs(2);

/// How long a stop may go on from when this is told; it is told again every [`STATUS_INTERVAL`].
const EXTENSION: Duration = Duration::from_secs(15);

/// systemd drops a message of 4096 bytes or more as a whole.
const STATUS_BYTES: usize = 1000;

/// Sleeps that are never to end.
const FAR: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Who is told.
#[derive(Debug)]
pub struct ServiceManager {
    is_there: bool,
    /// How often its watchdog is fed, if it has one.
    feeding: Option<Duration>,
    next_feeding: Instant,
    next_status: Instant,
    /// The status that it was told last.
    status: String,
    is_reloading: bool,
    is_stopping: bool,
    /// Whether the last message did not reach it.
    is_failing: bool,
}

/// What there is to tell at one moment.
#[derive(Debug, PartialEq, Eq)]
struct Due {
    feeds: bool,
    extends: bool,
    /// Only when it differs from what was told.
    status: Option<String>,
}

impl ServiceManager {
    /// The one that has started this process, as the environment says.
    pub fn of_process() -> Self {
        // For another process's watchdog (WATCHDOG_PID) there is none here.
        let watchdog = sd_notify::watchdog_enabled().filter(|watchdog| !watchdog.is_zero());
        let is_there = std::env::var_os("NOTIFY_SOCKET").is_some_and(|socket| !socket.is_empty());
        Self::new(is_there, watchdog, Instant::now())
    }

    fn new(is_there: bool, watchdog: Option<Duration>, now: Instant) -> Self {
        Self {
            is_there,
            // Half of it is what sd_watchdog_enabled(3) asks for; a busy machine may be late.
            feeding: watchdog.map(|watchdog| watchdog / 3),
            next_feeding: now,
            next_status: now + STATUS_INTERVAL,
            status: String::new(),
            is_reloading: false,
            is_stopping: false,
            is_failing: false,
        }
    }

    /// When to call [`Self::tick`] next.
    pub fn due(&self) -> Instant {
        if !self.is_there {
            return Instant::now() + FAR;
        }
        match self.feeding {
            Some(_) => self.next_feeding.min(self.next_status),
            None => self.next_status,
        }
    }

    /// Feeds the watchdog, and tells a status that is new, as far as it is time for either.
    pub fn tick(&mut self, status: &str) {
        let due = self.take_due(Instant::now(), status);
        let mut states = Vec::new();
        if due.feeds {
            states.push(NotifyState::Watchdog);
        }
        if due.extends {
            states.push(extension());
        }
        states.extend(due.status.as_deref().map(NotifyState::Status));
        if !states.is_empty() {
            self.send(&states);
        }
    }

    fn take_due(&mut self, now: Instant, status: &str) -> Due {
        let mut due = Due { feeds: false, extends: false, status: None };
        if let Some(feeding) = self.feeding.filter(|_| self.next_feeding <= now) {
            due.feeds = true;
            self.next_feeding = now + feeding;
        }
        if self.next_status <= now {
            self.next_status = now + STATUS_INTERVAL;
            due.extends = self.is_stopping;
            due.status = self.note(status);
        }
        due
    }

    /// The work begins.
    pub fn ready(&mut self, status: &str) {
        self.note(status);
        self.send(&[NotifyState::Ready, NotifyState::Status(&self.status.clone())]);
    }

    /// A reload begins, or another one is wanted before the last is done.
    pub fn reloading(&mut self) {
        self.is_reloading = true;
        // systemd compares it with when it has sent the signal, by the same clock.
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.send(&[NotifyState::Reloading, now]),
            Err(error) => tracing::warn!("the monotonic clock cannot be read: {error}"),
        }
    }

    /// What was wanted of reloads is done, or has failed as the status says.
    pub fn reloaded(&mut self, status: &str) {
        if std::mem::take(&mut self.is_reloading) && !self.is_stopping {
            self.ready(status);
        }
    }

    /// A stop begins. It is given more time for as long as it is not over.
    pub fn stopping(&mut self, status: &str) {
        self.is_stopping = true;
        self.note(status);
        self.send(&[NotifyState::Stopping, extension(), NotifyState::Status(&self.status.clone())]);
    }

    /// Notes a status. Gives it, as it may be told, when it differs from the last one.
    fn note(&mut self, status: &str) -> Option<String> {
        let mut status = one_line(status);
        let end = (0..=STATUS_BYTES.min(status.len())).rev().find(|end| status.is_char_boundary(*end));
        status.truncate(end.unwrap_or(0));
        if status == self.status {
            return None;
        }
        self.status.clone_from(&status);
        Some(status)
    }

    fn send(&mut self, states: &[NotifyState<'_>]) {
        if !self.is_there {
            return;
        }
        match sd_notify::notify(states) {
            Ok(()) => self.is_failing = false,
            Err(error) => {
                // What was not told is told again.
                self.status.clear();
                if !std::mem::replace(&mut self.is_failing, true) {
                    tracing::warn!("the service manager cannot be told how it goes: NOTIFY_SOCKET: {error}");
                }
            }
        }
    }
}

fn extension() -> NotifyState<'static> {
    NotifyState::ExtendTimeoutUsec(u32::try_from(EXTENSION.as_micros()).expect("less than an hour"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manager(watchdog: Option<Duration>, now: Instant) -> ServiceManager {
        ServiceManager::new(true, watchdog, now)
    }

    #[test]
    fn nothing_is_ever_due_when_nobody_is_there() {
        let now = Instant::now();
        let manager = ServiceManager::new(false, Some(Duration::from_secs(1)), now);
        assert!(manager.due() > now + Duration::from_secs(86_400));
    }

    #[test]
    fn the_watchdog_is_fed_thrice_in_its_time_and_the_status_told_when_it_is_another_one() {
        let start = Instant::now();
        let mut manager = manager(Some(Duration::from_secs(9)), start);
        let mut told = Vec::new();
        for seconds in 0..10 {
            let now = start + Duration::from_secs(seconds);
            let status = if seconds < 5 { "well" } else { "not well" };
            if manager.due() <= now {
                let due = manager.take_due(now, status);
                told.push((seconds, due.feeds, due.status));
            }
        }
        let (well, ill) = (Some("well".to_owned()), Some("not well".to_owned()));
        assert_eq!(
            told,
            [
                (0, true, None),
                (2, false, well),
                (3, true, None),
                (4, false, None),
                (6, true, ill),
                (8, false, None),
                (9, true, None)
            ]
        );
    }

    #[test]
    fn who_is_late_feeds_once() {
        let start = Instant::now();
        let mut manager = manager(Some(Duration::from_secs(3)), start);
        let late = start + Duration::from_secs(60);
        assert!(manager.take_due(late, "").feeds);
        assert!(!manager.take_due(late, "").feeds);
        assert_eq!(manager.due(), late + Duration::from_secs(1));
    }

    #[test]
    fn more_time_is_asked_for_during_a_stop_only() {
        let start = Instant::now();
        let mut manager = manager(None, start);
        assert!(!manager.take_due(start + STATUS_INTERVAL, "").extends);
        manager.is_stopping = true;
        let due = manager.take_due(start + 2 * STATUS_INTERVAL, "");
        assert_eq!(due, Due { feeds: false, extends: true, status: None });
        assert!(STATUS_INTERVAL * 2 < EXTENSION);
    }

    #[test]
    fn a_status_is_one_line_that_systemd_takes() {
        let mut manager = manager(None, Instant::now());
        assert_eq!(manager.note("a\nREADY=1"), Some("a READY=1".to_owned()));
        assert_eq!(manager.note("a\n READY=1"), None);
        let long = manager.note(&"ä€".repeat(1000)).unwrap();
        assert!((STATUS_BYTES - 2..=STATUS_BYTES).contains(&long.len()), "{}", long.len());
        assert_eq!(manager.note(&"ä€".repeat(2000)), None);
    }
}
