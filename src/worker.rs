//! One monitored server's worker: waits until a snapshot is due or asked for, takes it, and says how it is.
//! It never touches another worker, and whatever fails, it stays and tries again.

mod wishes;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use self::wishes::{Job, Wishes};
use crate::config::Settings;
use crate::descriptors;
use crate::figures::Failure;
use crate::postgres::conninfo::environment::Environment;
use crate::postgres::conninfo::{ConnInfo, ConnInfoError, Given};
use crate::postgres::repository::Repository;
use crate::postgres::session::application_name;
use crate::postgres::text::one_line;
use crate::repeated::{News, Repeated};
use crate::report::{Sheet, Way};
use crate::schedule;
use crate::server::{Server, ServerId};
use crate::snapshot::backlog::{Aside, Backlog, Ticket};
use crate::snapshot::fetch::{FetchError, Remote};
use crate::snapshot::plan::{Plan, Refresh};
use crate::snapshot::store::StoreError;
use crate::snapshot::turns::Turns;
use crate::snapshot::vacuum::Vacuum;
use crate::snapshot::versions::Change;
use crate::snapshot::{Fetched, SnapshotError, Subject, Taken};
use crate::telemetry;

/// How sessions with monitored servers are named, before the server's name.
pub const SESSION_PREFIX: &str = "PoWA collector - worker ";

/// What a worker works on, and with what.
#[derive(Clone)]
pub struct Assignment {
    pub server: Server,
    /// How to connect to it, as the row and the configuration say.
    pub given: Result<Given, Arc<ConnInfoError>>,
    /// The server's name in logs and sessions.
    pub name: String,
    pub settings: Arc<Settings>,
    pub repository: Repository,
    /// Who connects next.
    pub connects: Arc<Turns>,
    /// Who fetches next.
    pub fetches: Arc<Turns>,
    pub vacuum: Arc<Vacuum>,
    /// Where snapshots wait for the repository.
    pub backlog: Option<Arc<Backlog>>,
}

/// What a worker can be told.
#[derive(Debug)]
pub enum Command {
    /// Take a snapshot now.
    Force(oneshot::Sender<Forced>),
    /// Read catalogs with the next snapshot.
    Refresh(Refresh),
    /// Work on this from now on. Always followed by a look at the server's versions.
    Assign(Box<Assignment>),
}

/// What a worker says to [`Command::Force`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forced {
    Started,
    Scheduled,
    InProgress,
    AlreadyScheduled,
    TooSoon,
}

/// How a worker is. Its words are those that clients of the control channel know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Unknown,
    Running,
    NoRepository,
    NoRemote,
    Stopping,
    Stopped,
}

impl State {
    pub const ALL: [Self; 6] =
        [Self::Running, Self::NoRemote, Self::NoRepository, Self::Stopping, Self::Stopped, Self::Unknown];
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "Unknown",
            Self::Running => "running",
            Self::NoRepository => "no connection to repository server",
            Self::NoRemote => "no connection to remote server",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        })
    }
}

/// Why a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It was told to.
    Stopped,
    /// The server has no row in `powa_snapshot_metas`.
    NotRegistered,
}

impl fmt::Debug for Assignment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Assignment({})", self.name)
    }
}

impl Assignment {
    /// The snapshot's subject that this assignment makes.
    pub fn subject(&self) -> Subject<'_> {
        Subject {
            server: self.server.id,
            name: &self.name,
            repository: &self.repository,
            settings: &self.settings,
            fetches: &self.fetches,
            vacuum: &self.vacuum,
            backlog: self.backlog.as_deref(),
        }
    }

    /// How to connect to the monitored server, as service file and environment are now.
    ///
    /// # Errors
    /// When that cannot be.
    pub fn conninfo(&self) -> Result<ConnInfo, Arc<ConnInfoError>> {
        let given = self.given.as_ref().map_err(Arc::clone)?;
        ConnInfo::new(given, &Environment::of_process()).map_err(Arc::new)
    }

    /// Opens the session with the monitored server.
    ///
    /// # Errors
    /// What to say of it when that fails.
    pub async fn connect(&self) -> Result<Box<Remote>, String> {
        let conninfo = self.conninfo().map_err(|error| error.to_string())?;
        let name = application_name(SESSION_PREFIX, &self.name);
        let _turn = self.connects.wait(None).await;
        descriptors::are_left(self.settings.descriptors_in_reserve()).map_err(|error| error.to_string())?;
        let opening = Box::pin(Remote::open(&conninfo, name, self.settings.timeouts.connect));
        opening.await.map(Box::new).map_err(|error| error.to_string())
    }
}

/// Works until told to stop.
pub fn run(
    assignment: Assignment,
    mut commands: mpsc::Receiver<Command>,
    state: watch::Sender<State>,
    sheet: Sheet,
    stop: CancellationToken,
) -> impl Future<Output = Exit> + Send {
    // Not in the future: one that moves its arguments has room for them twice, for as long as it lives.
    let mut worker = Worker {
        id: assignment.server.id,
        assignment,
        state,
        sheet,
        stop,
        remote: None,
        schedule: None,
        not_before: Instant::now(),
        attempt: 0,
        is_failing: false,
        is_recorded: false,
        known: None,
        storing: Storing::default(),
        errors: Errors::default(),
        has_worked_again: false,
    };
    worker.storing.at = worker.has_backlog().then(Instant::now);
    async move {
        let mut wishes = Wishes { versions: true, ..Wishes::default() };
        let taking = AtomicBool::new(false);
        let exit = loop {
            if let Some(assignment) = wishes.assignment.take() {
                worker.assign(*assignment);
            }
            worker.sheet.due(worker.schedule.map(|schedule| schedule.due));
            if worker.is_due(&wishes, Instant::now()) {
                let span = worker.span();
                let begun = worker.schedule.map(|schedule| schedule.began);
                let mut job = wishes.take_job();
                let exit = {
                    // On the heap, which a thousand workers that only wait do not need.
                    let mut acting = Box::pin(worker.act(&mut job, &taking).instrument(span));
                    loop {
                        tokio::select! {
                            exit = &mut acting => break exit,
                            Some(command) = commands.recv() => {
                                let is_taking = taking.load(Ordering::Relaxed);
                                wishes.note(command, is_taking, false, begun.flatten());
                            }
                        }
                    }
                };
                wishes.put_back(job);
                if let Some(exit) = exit {
                    break exit;
                }
                continue;
            }
            tokio::select! {
                biased;
                () = worker.stop.cancelled() => break Exit::Stopped,
                command = commands.recv() => match command {
                    Some(command) => {
                        let is_ready = worker.remote.is_some() && worker.attempt == 0;
                        let began = worker.schedule.and_then(|schedule| schedule.began);
                        if wishes.note(command, false, is_ready, began) {
                            worker.not_before = Instant::now();
                        }
                    }
                    None => break Exit::Stopped,
                },
                () = closed(worker.remote.as_deref()) => worker.lose("the connection was closed"),
                () = worker.assignment.repository.back(), if worker.storing.is_gone => worker.find_repository(),
                () = sleep_until(worker.wake(&wishes, Instant::now())) => {}
            }
        };
        worker.state.send_replace(State::Stopped);
        exit
    }
}

async fn closed(remote: Option<&Remote>) {
    match remote {
        Some(remote) => remote.session.closed().await,
        None => std::future::pending().await,
    }
}

struct Worker {
    id: ServerId,
    assignment: Assignment,
    state: watch::Sender<State>,
    sheet: Sheet,
    stop: CancellationToken,
    remote: Option<Box<Remote>>,
    /// `None` until the repository has said when the last snapshot was.
    schedule: Option<Schedule>,
    /// The end of a wait after a failure.
    not_before: Instant,
    /// Failures in a row.
    attempt: u32,
    /// Whether the present failure has been told.
    is_failing: bool,
    /// Whether the repository knows of it.
    is_recorded: bool,
    /// What was due last time, for while the repository is away.
    known: Option<Plan>,
    storing: Storing,
    errors: Errors,
    /// Whether it was said since the last failure to read that the server works again.
    has_worked_again: bool,
}

/// What goes wrong with one snapshot after another.
#[derive(Debug, Default)]
struct Errors {
    /// Why there is nothing to be stored.
    reading: Repeated,
    /// Datasources that the repository says too little of.
    skipped: Repeated,
    /// Why something is not stored.
    storing: Repeated,
    /// Of single datasources, and of `powa_take_snapshot`.
    parts: Repeated,
}

/// How it goes with the repository.
#[derive(Debug, Default)]
struct Storing {
    /// When to try again what waits there.
    at: Option<Instant>,
    /// Failures in a row.
    attempt: u32,
    /// Whether it was not there, as against one that would not take what it was given.
    is_gone: bool,
    /// The one that has failed last, and how often.
    last: Option<(Ticket, u32)>,
}

/// A snapshot that could not be stored so many times, while the repository answered, is given up.
const MOST_ATTEMPTS: u32 = 10;

#[derive(Debug, Clone, Copy)]
struct Schedule {
    /// When the last snapshot began.
    began: Option<Instant>,
    due: Instant,
}

impl Worker {
    fn span(&self) -> tracing::Span {
        span(&self.assignment.name, self.id)
    }

    /// When to act next, if nobody asks for anything.
    fn wake(&self, wishes: &Wishes, now: Instant) -> Instant {
        let wanted = match (self.schedule, &self.remote) {
            (Some(schedule), Some(_)) if !wishes.is_forced && !wishes.versions => schedule.due,
            _ => now,
        };
        let wanted = wanted.max(self.not_before);
        self.storing.at.map_or(wanted, |at| at.min(wanted))
    }

    fn is_snapshot_due(&self) -> bool {
        self.schedule.is_some_and(|schedule| schedule.due <= Instant::now())
    }

    fn has_backlog(&self) -> bool {
        self.assignment.backlog.as_ref().is_some_and(|backlog| backlog.of(self.id).0 > 0)
    }

    /// Somebody has found the repository again.
    fn find_repository(&mut self) {
        self.storing.is_gone = false;
        self.storing.at = self.has_backlog().then(Instant::now);
        self.state.send_replace(self.rest());
    }

    /// How it is while nothing is being tried.
    fn rest(&self) -> State {
        match &self.remote {
            _ if self.storing.is_gone => State::NoRepository,
            Some(_) => State::Running,
            None => State::NoRemote,
        }
    }

    fn is_due(&self, wishes: &Wishes, now: Instant) -> bool {
        !self.stop.is_cancelled() && self.wake(wishes, now) <= now
    }

    fn assign(&mut self, new: Assignment) {
        let old = std::mem::replace(&mut self.assignment, new);
        let new = &mut self.assignment;
        let connects_alike = matches!((&old.given, &new.given), (Ok(old), Ok(new)) if old == new);
        if connects_alike {
            // With the password that a command has printed.
            new.given = old.given;
        }
        // What a service file says may have changed under the same words.
        let has_other_service = self
            .remote
            .as_ref()
            .is_some_and(|remote| new.conninfo().is_ok_and(|conninfo| !remote.is_reached_by(&conninfo)));
        let is_elsewhere = !connects_alike || has_other_service || old.name != new.name;
        let has_other_repository =
            old.repository.conninfo().describe() != new.repository.conninfo().describe();
        let place = |backlog: &Option<Arc<Backlog>>| backlog.as_ref().map(Arc::as_ptr);
        let has_other_backlog = place(&old.backlog) != place(&new.backlog);
        if let Some(schedule) = &mut self.schedule {
            if old.server.frequency != new.server.frequency {
                let age = schedule.began.map(|began| began.elapsed());
                let delay = schedule::first_delay(age, new.server.frequency, rand::random());
                schedule.due = Instant::now() + delay;
            }
        }
        if is_elsewhere {
            self.remote = None;
        }
        if has_other_repository {
            self.schedule = None;
            self.known = None;
            self.storing = Storing::default();
            self.errors = Errors::default();
        }
        if has_other_repository || has_other_backlog {
            self.storing.last = None;
            self.storing.at = self.has_backlog().then(Instant::now);
        }
        if is_elsewhere || has_other_repository {
            self.retry_now();
        }
    }

    fn retry_now(&mut self) {
        self.not_before = Instant::now();
        self.attempt = 0;
    }

    /// Waits longer after each failure in a row.
    fn back_off(&mut self, state: State) {
        self.state.send_replace(state);
        self.attempt = self.attempt.saturating_add(1);
        self.not_before = Instant::now() + schedule::backoff(self.attempt, rand::random());
    }

    fn succeed(&mut self) {
        self.state.send_replace(self.rest());
        if self.remote.is_none() {
            // What has waited is stored, and the monitored server is still away. The repository has forgotten that with the
            // snapshot that it took.
            self.is_recorded = false;
            return;
        }
        self.attempt = 0;
        self.is_recorded = false;
        if std::mem::take(&mut self.is_failing) {
            self.has_worked_again = true;
            tracing::info!("works again");
        }
    }

    /// Tells of a failure that lasts only when it begins.
    fn tell(&mut self, kind: Failure, what: &str, reason: &str) {
        self.sheet.failed(kind, &format!("{what}: {reason}"));
        if std::mem::replace(&mut self.is_failing, true) {
            tracing::debug!("{what}: {reason}");
        } else {
            tracing::warn!("{what}: {reason}; trying again until it works");
        }
    }

    fn lose(&mut self, reason: &str) {
        let span = self.span();
        let _entered = span.enter();
        self.remote = None;
        self.tell(Failure::Connect, "no connection to the monitored server", reason);
        self.back_off(State::NoRemote);
    }

    /// Does what is due: finds its place in the schedule, stores what waits, connects, looks at versions, takes a
    /// snapshot. What is large is on the heap: a thousand may wait with one of them, and none needs the room of the others.
    async fn act(&mut self, job: &mut Job, taking: &AtomicBool) -> Option<Exit> {
        // In this order: what waits becomes the repository's last snapshot, but the last one that was taken is older.
        if self.schedule.is_none() {
            if self.not_before > Instant::now() {
                self.storing.at = self.storing.at.map(|at| at.max(self.not_before));
                return None;
            }
            let stop = self.stop.clone();
            let subject = self.assignment.subject();
            match stop.run_until_cancelled(subject.last_snapshot()).await? {
                Ok(Some(age)) => self.schedule = Some(self.first(age)),
                Ok(None) => {
                    tracing::error!(
                        "the server has no row in powa_snapshot_metas: it was not registered with \
                         powa_register_server(); no snapshots are taken of it"
                    );
                    self.sheet.failed(Failure::Repository, "the server has no row in powa_snapshot_metas");
                    return Some(Exit::NotRegistered);
                }
                Err(error) => {
                    self.tell(Failure::Repository, "no connection to the repository", &error.to_string());
                    self.back_off(State::NoRepository);
                    return None;
                }
            }
        }
        if self.storing.at.is_some_and(|at| at <= Instant::now()) {
            Box::pin(self.store(None)).await;
        }
        if self.stop.is_cancelled() || self.not_before > Instant::now() {
            return None;
        }
        if self.remote.is_none() {
            Box::pin(self.connect()).await;
        }
        let remote = self.remote.as_ref()?;
        if std::mem::take(&mut job.versions) {
            let subject = self.assignment.subject();
            match self.stop.run_until_cancelled(subject.update_versions(remote)).await? {
                Ok(changes) => changes.iter().for_each(tell_change),
                Err(error) => tracing::warn!("the versions in the repository are not up to date: {error}"),
            }
        }
        if self.is_snapshot_due() || job.is_forced {
            taking.store(true, Ordering::Relaxed);
            Box::pin(self.snapshot(job)).await;
            taking.store(false, Ordering::Relaxed);
        }
        None
    }

    fn first(&self, age: Option<Duration>) -> Schedule {
        let now = Instant::now();
        let delay = schedule::first_delay(age, self.assignment.server.frequency, rand::random());
        tracing::debug!("first snapshot in {:.1} s", delay.as_secs_f64());
        Schedule { began: age.and_then(|age| now.checked_sub(age)), due: now + delay }
    }

    async fn connect(&mut self) {
        let stop = self.stop.clone();
        match stop.run_until_cancelled(self.assignment.connect()).await {
            None => {}
            Some(Ok(remote)) => {
                self.remote = Some(remote);
                self.succeed();
            }
            Some(Err(reason)) => {
                self.tell(Failure::Connect, "no connection to the monitored server", &reason);
                self.back_off(State::NoRemote);
                if !self.is_recorded {
                    let errors = vec![format!("no connection to the monitored server: {reason}")];
                    self.is_recorded = self.record(errors).await;
                }
            }
        }
    }

    async fn snapshot(&mut self, job: &mut Job) {
        let Some(mut remote) = self.remote.take() else { return };
        let began = Instant::now();
        let due = began + self.assignment.server.frequency;
        let refresh = job.refresh.take();
        // Somebody waits for one that was asked for: it goes first.
        let was_due = self.schedule.map(|schedule| schedule.due).filter(|_| !job.is_forced);
        let is_away = self.storing.is_gone;
        let subject = self.assignment.subject();
        let reading =
            subject.read(&mut remote, refresh.as_ref(), was_due, &mut self.known, is_away, &self.stop);
        match reading.await {
            Ok(fetched) => {
                self.remote = Some(remote);
                self.schedule = Some(Schedule { began: Some(began), due });
                job.is_forced = false;
                let now = telemetry::now();
                let is_said = std::mem::take(&mut self.has_worked_again);
                for news in self.errors.reading.met(&[], &now) {
                    match news {
                        News::Over { times: 1, .. } if is_said => tracing::debug!("{news}"),
                        _ => tell_failure(&news),
                    }
                }
                self.errors.skipped.met(&fetched.skipped, &now).iter().for_each(tell_skipped);
                self.tell_way(&fetched);
                Box::pin(self.store(Some(fetched))).await;
            }
            Err(error) if error.is_stop() => tracing::debug!("no snapshot: {error}"),
            Err(error) if error.is_repository_away() => {
                // It stays due: the next attempt follows as soon as the repository is back.
                self.remote = Some(remote);
                job.refresh = refresh;
                self.tell(Failure::Repository, "no snapshot", &error.to_string());
                self.back_off(State::NoRepository);
            }
            Err(error) => {
                job.is_forced = false;
                job.refresh = refresh;
                self.schedule = Some(Schedule { began: Some(began), due });
                let news = self.errors.reading.failed(&format!("no snapshot: {error}"), &telemetry::now());
                tell_failure(&news);
                self.has_worked_again = false;
                self.sheet.failed(Failure::Fetch, &format!("no snapshot: {error}"));
                match &error {
                    SnapshotError::Fetch(reason) if reason.ends_session() => {
                        // That nothing can be spooled is not over when the server can be connected to.
                        let is_ours = matches!(reason, FetchError::Spool(_));
                        // What was not told does not work again either.
                        self.is_failing = !is_ours && !matches!(news, News::Same(_));
                        self.back_off(if is_ours { State::Running } else { State::NoRemote });
                    }
                    _ => self.remote = Some(remote),
                }
                self.record(vec![error.to_string()]).await;
            }
        }
    }

    /// Stores what waits for the repository, the oldest first, and at last what was just read.
    async fn store(&mut self, mut latest: Option<Fetched>) {
        self.storing.at = None;
        loop {
            let is_ready = self.remote.is_some() && self.not_before <= Instant::now();
            if latest.is_none() && is_ready && self.is_snapshot_due() && self.has_backlog() {
                // Much waits. The next one is not to be missed for it.
                self.storing.at = Some(Instant::now());
                return;
            }
            let Some(mut fetched) = self.next_to_store(&mut latest).await else { return };
            let outcome = match fetched.away.take() {
                Some(reason) => Err(SnapshotError::Away(reason)),
                None => self.assignment.subject().put(&mut fetched, &self.stop).await,
            };
            match outcome {
                Ok(taken) => {
                    self.forget(fetched.ticket);
                    if std::mem::take(&mut self.storing).attempt > 0 {
                        tracing::info!("the repository takes snapshots again");
                    }
                    self.succeed();
                    self.sheet.stored(&taken);
                    self.tell_taken(&taken);
                }
                Err(error) => {
                    let is_kept = self.keep(fetched, &error).await;
                    if is_kept {
                        if let Some(latest) = latest.take() {
                            self.assignment.subject().wait(latest).await;
                        }
                        return;
                    }
                }
            }
        }
    }

    /// The oldest that waits, or what was just read, which is the last one. What is damaged is put aside.
    async fn next_to_store(&self, latest: &mut Option<Fetched>) -> Option<Fetched> {
        let Some(backlog) = &self.assignment.backlog else { return latest.take() };
        while let Some(ticket) = backlog.oldest(self.id) {
            if latest.as_ref().is_some_and(|latest| latest.ticket == Some(ticket)) {
                break;
            }
            match self.assignment.subject().reopen(backlog, ticket).await {
                Ok(fetched) => return Some(fetched),
                Err(damage) => {
                    let aside = backlog.set_aside(ticket, Aside::Damaged);
                    let message = format!("a snapshot that waited for the repository is lost: {damage}");
                    self.sheet.failed(Failure::Lost, &message);
                    tracing::error!(
                        "a snapshot that waited for the repository is lost: {damage}; the file is now {}",
                        aside.display()
                    );
                }
            }
        }
        latest.take()
    }

    /// Sees to what could not be stored. True when it waits for the repository now, and everything after it must.
    async fn keep(&mut self, fetched: Fetched, error: &SnapshotError) -> bool {
        let ticket = fetched.ticket;
        if error.is_stop() {
            let is_kept = self.assignment.subject().wait(fetched).await;
            tracing::debug!(
                "not stored: {error}; it {}",
                if is_kept { "waits for the next start" } else { "is lost" }
            );
            return true;
        }
        if error.is_repository_away() {
            let failures = match self.storing.last {
                Some((last, failures)) if Some(last) == ticket => failures + 1,
                _ => 1,
            };
            self.storing.last = ticket.map(|ticket| (ticket, failures));
            let is_hopeless = failures > MOST_ATTEMPTS && error.is_of_this_snapshot();
            if !is_hopeless {
                let message = format!("the repository does not take snapshots: {error}");
                self.sheet.failed(Failure::Store, &message);
                if !self.assignment.subject().wait(fetched).await {
                    self.sheet.lost();
                    tracing::error!(
                        "a snapshot is lost: it was not stored ({error}), and could not wait on disk"
                    );
                }
                if self.storing.attempt == 0 {
                    tracing::warn!(
                        "the repository does not take snapshots, which wait until it does: {error}"
                    );
                } else {
                    tracing::debug!("the repository does not take snapshots: {error}");
                }
                self.storing.is_gone = !error.is_of_this_snapshot();
                self.storing.attempt = self.storing.attempt.saturating_add(1);
                let wait = schedule::backoff(self.storing.attempt, rand::random());
                self.storing.at = self.has_backlog().then(|| Instant::now() + wait);
                if self.storing.is_gone {
                    self.state.send_replace(State::NoRepository);
                }
                return true;
            }
        }
        if let (SnapshotError::Store(StoreError::OtherRepository { .. }), Some(backlog), Some(ticket)) =
            (error, &self.assignment.backlog, ticket)
        {
            let aside = backlog.set_aside(ticket, Aside::Foreign);
            self.sheet.failed(Failure::Store, &format!("a snapshot is not stored: {error}"));
            tracing::error!("a snapshot is not stored: {error}; the file is now {}", aside.display());
            return false;
        }
        tell_failure(&self.errors.storing.failed(&format!("no snapshot: {error}"), &telemetry::now()));
        self.sheet.failed(Failure::Store, &format!("no snapshot: {error}"));
        self.sheet.lost();
        self.forget(ticket);
        self.record(vec![error.to_string()]).await;
        false
    }

    /// Tells how a snapshot was read, when that is news.
    fn tell_way(&mut self, fetched: &Fetched) {
        let way = Way { borrowed: fetched.borrowed.clone(), skipped: fetched.skipped.clone() };
        let before = self.sheet.reads(way);
        if before.borrowed == fetched.borrowed {
            return;
        }
        match &fetched.borrowed {
            Some(reason) => tracing::info!("{reason}: read by the repository's own definitions"),
            None => tracing::info!("read by the server's own PoWA"),
        }
    }

    fn tell_taken(&mut self, taken: &Taken) {
        let now = telemetry::now();
        self.errors.storing.met(&[], &now).iter().for_each(tell_failure);
        if taken.was_there {
            tracing::info!(
                "the snapshot was stored already, though the repository's answer to that was lost"
            );
            return;
        }
        let mut errors = taken.errors.clone();
        if taken.repository_errors > 0 {
            errors.push(format!(
                "errors met by powa_take_snapshot: {}; see powa_snapshot_metas.errors",
                taken.repository_errors
            ));
        }
        self.errors.parts.met(&errors, &now).iter().for_each(tell_part);
        tracing::info!(
            "snapshot: {} rows, {} bytes; fetched in {:.3} s, waited {:.3} s, stored in {:.3} s",
            taken.rows,
            taken.bytes,
            taken.fetch.as_secs_f64(),
            taken.wait.as_secs_f64(),
            taken.store.as_secs_f64()
        );
    }

    fn forget(&self, ticket: Option<Ticket>) {
        if let (Some(backlog), Some(ticket)) = (&self.assignment.backlog, ticket) {
            backlog.remove(ticket);
        }
    }

    /// Writes into the repository why there is no snapshot. False when that is away, so that it is worth another try.
    async fn record(&self, errors: Vec<String>) -> bool {
        let subject = self.assignment.subject();
        // On the heap: it is hardly ever needed, and everybody who calls would have room for it.
        let recording = Box::pin(subject.record_failure(&errors));
        match self.stop.run_until_cancelled(recording).await {
            Some(Err(error)) if error.is_repository_away() => {
                tracing::debug!("the failure is not written to powa_snapshot_metas: {error}");
                false
            }
            Some(Err(error)) => {
                tracing::warn!("the failure could not be written to powa_snapshot_metas: {error}");
                true
            }
            Some(Ok(())) | None => true,
        }
    }
}

/// What a worker's lines of the log stand in, be they of any level.
pub fn span(name: &str, server: ServerId) -> tracing::Span {
    tracing::error_span!("worker", server = %one_line(name), srvid = server.0)
}

/// Tells of a failure that costs a snapshot.
fn tell_failure(news: &News) {
    match news {
        News::New(_) | News::Again { .. } => tracing::error!("{news}"),
        News::Same(_) => tracing::debug!("{news}"),
        News::Over { .. } => tracing::info!("{news}"),
    }
}

/// Tells of one that costs a part of it.
fn tell_part(news: &News) {
    match news {
        News::New(_) | News::Again { .. } => tracing::warn!("{news}"),
        News::Same(_) => tracing::debug!("{news}"),
        News::Over { .. } => tracing::info!("{news}"),
    }
}

/// Tells once of what is left out, which may be as it should be.
fn tell_skipped(news: &News) {
    match news {
        News::New(_) => tracing::warn!("{news}"),
        News::Again { .. } | News::Same(_) => tracing::debug!("{news}"),
        News::Over { .. } => tracing::info!("{news}"),
    }
}

fn tell_change(change: &Change) {
    match change {
        Change::Server(version) => tracing::info!("the server's version is now {version}"),
        Change::Extension { name, version: Some(version) } => {
            tracing::info!("the version of extension {name} is now {version}");
        }
        Change::Extension { name, version: None } => {
            tracing::warn!("the extension {name} is not installed on the monitored server");
        }
        Change::AddHypopg(version) => tracing::info!("hypopg {version} is available"),
        Change::RemoveHypopg => tracing::info!("hypopg is not available any more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room<A, B, C, F: Future>(_: impl Fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    /// There are a thousand of them, and all may wait for the repository at once.
    #[test]
    fn a_worker_that_waits_needs_little_room() {
        let work =
            room(|assignment, commands, (state, sheet, stop)| run(assignment, commands, state, sheet, stop));
        assert!(work <= 2560, "{work} bytes from one snapshot to the next");
        let act = room(Worker::act);
        assert!(act <= 2048, "{act} bytes more in the line for the repository or a turn");
    }
}
