//! The dispatcher: one task that owns all state. Signals, control messages, freshly read configurations and
//! the ends of workers reach it as events. It never waits for a server itself.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{Id, JoinError, JoinHandle};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::config::{self, Configuration, ConfigurationError, Loaded};
use crate::control::listener::{self, Incoming, Place};
use crate::control::protocol::{Answer, Request};
use crate::fleet::{Fleet, Means, Untold};
use crate::http::{Pages, Question};
use crate::overview::{Overview, Spool};
use crate::postgres::repository::Repository;
use crate::postgres::text::without_quotations;
use crate::schedule;
use crate::server::{ServerId, Servers};
use crate::signals::Signal;
use crate::snapshot::folders::Folders;
use crate::snapshot::{self, SnapshotError};
use crate::systemd::ServiceManager;
use crate::telemetry::Log;
use crate::worker::{Command, Exit};

/// How the collector ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// After a stop, with nothing left undone that was given time to finish.
    Stopped,
    /// By a second signal, at once.
    Forced,
}

/// Runs until a signal stops it. `file` is where the configuration was asked to come from, to read it again.
pub async fn run(
    file: Option<PathBuf>,
    configuration: Configuration,
    log: Log,
    mut signals: impl Stream<Item = Signal> + Unpin,
) -> Ending {
    let (incoming, mut requests) = mpsc::channel(64);
    let (read, mut readings) = mpsc::channel(1);
    let (ask, mut questions) = mpsc::channel(1);
    let mut collector = Collector::new(file, configuration, log, Ends { incoming, read, ask });
    let condition = collector.condition();
    collector.manager.ready(&condition);
    loop {
        let (refresh, end) = (collector.next_refresh, collector.end());
        let telling = collector.manager.due();
        let restart = collector.fleet.next_restart().unwrap_or_else(far_future);
        let opening = collector.folders.next_try().unwrap_or_else(far_future);
        tokio::select! {
            signal = signals.next() => match signal {
                Some(Signal::Reload) if !collector.is_stopping() => {
                    tracing::info!("reload: SIGHUP");
                    collector.reload(None);
                }
                Some(Signal::Reload) => {}
                Some(Signal::Stop) if collector.is_stopping() => {
                    tracing::warn!("second signal: ending at once");
                    return Ending::Forced;
                }
                Some(Signal::Stop) | None => collector.stop(),
            },
            Some(incoming) = requests.recv() => collector.handle(incoming),
            Some(reading) = readings.recv() => collector.apply(reading),
            Some(question) = questions.recv() => collector.show(question),
            Some(ended) = collector.fleet.tasks.join_next_with_id() => collector.reap(ended),
            () = sleep_until(restart) => collector.fleet.restart(),
            () = sleep_until(opening), if !collector.is_stopping() => collector.open_backlog(false),
            () = sleep_until(refresh) => collector.read_again(Reason::Time, None),
            () = sleep_until(telling) => collector.tell(),
            () = sleep_until(end) => {
                collector.farewell();
                return Ending::Stopped;
            }
        }
    }
}

/// Why the configuration and the servers are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    /// A person or a client wants it.
    Asked,
    /// The listener has (again) a connection.
    Listening,
    /// `servers_refresh_interval` is over.
    Time,
}

/// What a read brought.
struct Reading {
    reason: Reason,
    loaded: Result<Loaded, ConfigurationError>,
    /// The repository that the servers were read from.
    repository: Repository,
    /// With the repository's own name.
    servers: Result<(Servers, String), SnapshotError>,
}

/// Where others put what the dispatcher is to see.
struct Ends {
    incoming: mpsc::Sender<Incoming>,
    read: mpsc::Sender<Reading>,
    ask: mpsc::Sender<Question>,
}

struct Collector {
    started: Timestamp,
    file: Option<PathBuf>,
    configuration: Arc<Configuration>,
    log: Log,

    ends: Ends,
    listener: CancellationToken,
    /// Whether control messages are heard.
    hears: watch::Receiver<bool>,
    pages: Option<Pages>,

    is_reading: bool,
    /// Asked for while a read was under way: that one may have begun too early.
    read_next: Option<Reason>,
    /// Who is to be told of the read under way, and of the one after it.
    waiting: Vec<oneshot::Sender<Answer>>,
    waiting_next: Vec<oneshot::Sender<Answer>>,
    next_refresh: Instant,
    /// How many reads of the servers have failed in a row.
    failed_reads: u32,
    /// Why not all of the last read could be applied.
    problem: Option<String>,

    folders: Folders,
    /// What removes snapshots of servers that were removed.
    clearing: Option<JoinHandle<()>>,
    fleet: Fleet,
    /// When a stop ends, whoever is still at work.
    deadline: Option<Instant>,
    manager: ServiceManager,
}

fn far_future() -> Instant {
    Instant::now() + Duration::from_secs(10 * 365 * 86_400)
}

impl Collector {
    fn new(file: Option<PathBuf>, configuration: Configuration, log: Log, ends: Ends) -> Self {
        let mut folders = Folders::default();
        let backlog = folders.open(&configuration);
        let means = Means::new(&configuration, repository(&configuration), backlog);
        let mut collector = Self {
            started: Timestamp::now(),
            file,
            configuration: Arc::new(configuration),
            log,
            ends,
            listener: CancellationToken::new(),
            hears: watch::channel(false).1,
            pages: None,
            is_reading: false,
            read_next: None,
            waiting: Vec::new(),
            waiting_next: Vec::new(),
            next_refresh: far_future(),
            failed_reads: 0,
            problem: None,
            folders,
            clearing: None,
            fleet: Fleet::new(means),
            deadline: None,
            manager: ServiceManager::of_process(),
        };
        collector.listen();
        collector.serve_pages();
        collector
    }

    fn is_stopping(&self) -> bool {
        self.deadline.is_some()
    }

    /// Starts listening on the present repository in place of where it listened before.
    fn listen(&mut self) {
        self.listener.cancel();
        self.listener = CancellationToken::new();
        let timeouts = self.configuration.settings.timeouts;
        let place = Place {
            conninfo: self.configuration.repository.clone(),
            connect: timeouts.connect,
            query: timeouts.query,
            close: timeouts.close,
        };
        let (hears, heard) = watch::channel(false);
        self.hears = heard;
        listener::spawn(place, self.ends.incoming.clone(), hears, self.listener.clone());
    }

    /// Serves pages where the present configuration wants them, in place of where they were served before.
    fn serve_pages(&mut self) {
        let before = self.pages.take();
        self.pages = match self.configuration.http_listen {
            Some(address) => Some(Pages::serve(address, self.ends.ask.clone(), before)),
            None => {
                before.into_iter().for_each(Pages::end);
                None
            }
        };
    }

    /// Tells how all goes.
    fn show(&self, question: Question) {
        let now = Timestamp::now();
        let overview = Overview {
            version: env!("CARGO_PKG_VERSION"),
            time: now,
            started: self.started,
            repository: self.configuration.repository.place(),
            listening: *self.hears.borrow(),
            stopping: self.is_stopping(),
            problem: self.problem.as_deref().map(without_quotations),
            spool: Spool {
                max_bytes: self.configuration.settings.spool_max_bytes,
                usable: self.fleet.backlog().is_some_and(|backlog| backlog.is_writable()),
            },
            servers: self.fleet.seen(now),
        };
        // Who asked may have gone.
        let _ = question.send(overview);
    }

    /// How it goes, in a few words for people.
    fn condition(&self) -> String {
        let (servers, repository) = (self.fleet.summary(), self.configuration.repository.place());
        if self.is_stopping() {
            let seconds = self.configuration.shutdown_timeout.as_secs();
            return format!("stopping: stores in progress have {seconds} s; {servers}");
        }
        let hears = *self.hears.borrow();
        let does = if hears { "listening on" } else { "waiting for the repository" };
        let problem = self.problem.as_ref().map(|problem| format!("; the last reload failed: {problem}"));
        format!("{servers}; {does} {repository}{}", problem.unwrap_or_default())
    }

    /// Tells the service manager what there is to tell.
    fn tell(&mut self) {
        let condition = self.condition();
        self.manager.tick(&condition);
    }

    fn handle(&mut self, incoming: Incoming) {
        match incoming {
            Incoming::Listening if self.is_stopping() => {}
            Incoming::Listening => {
                self.fleet.repository().note_back();
                self.read_again(Reason::Listening, None);
            }
            Incoming::Request { request, answer } => self.serve(request, answer),
        }
    }

    fn serve(&mut self, request: Request, answer: oneshot::Sender<Answer>) {
        let reply = match request {
            Request::WorkersStatus(of) => Answer::Workers(self.fleet.status(of)),
            Request::WorkersDetail(of) => Answer::Details(self.fleet.details(&of)),
            _ if self.is_stopping() => Answer::Error("the collector is stopping".to_owned()),
            Request::Reload => {
                tracing::info!("reload: asked for over the control channel");
                self.reload(Some(answer));
                return;
            }
            Request::ForceSnapshot(server) => {
                let (reply, forced) = oneshot::channel();
                match self.fleet.tell(server, Command::Force(reply)) {
                    Ok(()) => {
                        tokio::spawn(async move {
                            let reply = forced.await.map_or_else(|_| not_found(server), Answer::from);
                            let _ = answer.send(reply);
                        });
                        return;
                    }
                    Err(untold) => untold.into(),
                }
            }
            Request::RefreshCatalogs(server, refresh) => {
                match self.fleet.tell(server, Command::Refresh(refresh)) {
                    Ok(()) => Answer::Ok("Catalogs will be refreshed during the next snapshot".to_owned()),
                    Err(untold) => untold.into(),
                }
            }
        };
        // Who asked may have gone.
        let _ = answer.send(reply);
    }

    /// Somebody wants all to be read again, and perhaps to be told when that is done.
    fn reload(&mut self, waiting: Option<oneshot::Sender<Answer>>) {
        self.manager.reloading();
        self.read_again(Reason::Asked, waiting);
    }

    /// Reads the configuration and the servers, in a task of its own.
    fn read_again(&mut self, reason: Reason, waiting: Option<oneshot::Sender<Answer>>) {
        self.next_refresh = far_future();
        if self.is_stopping() {
            return;
        }
        if self.is_reading {
            let is_asked = self.read_next == Some(Reason::Asked);
            self.read_next = Some(if is_asked { Reason::Asked } else { reason });
            self.waiting_next.extend(waiting);
            return;
        }
        self.is_reading = true;
        self.waiting.extend(waiting);
        let file = self.file.clone();
        let configuration = Arc::clone(&self.configuration);
        let present = self.fleet.repository().clone();
        let read = self.ends.read.clone();
        tokio::spawn(async move {
            let loaded = config::load(file.as_deref());
            let (repository, deadline) = match &loaded {
                Ok(loaded) if needs_new_pools(&configuration, &loaded.configuration) => {
                    (self::repository(&loaded.configuration), loaded.configuration.settings.timeouts.query)
                }
                _ => (present, configuration.settings.timeouts.query),
            };
            let servers = snapshot::servers(&repository, deadline).await;
            // Nobody waits for it only when the collector has ended.
            let _ = read.send(Reading { reason, loaded, repository, servers }).await;
        });
    }

    /// Makes true what was read.
    fn apply(&mut self, reading: Reading) {
        self.is_reading = false;
        let mut problems = Vec::new();
        match reading.loaded {
            Ok(loaded) => self.configure(loaded, reading.repository, reading.reason),
            Err(error) => {
                tracing::error!("the new configuration cannot be used, the old one stays: {error}");
                problems.push(error.to_string());
            }
        }
        match reading.servers {
            Ok((servers, repository)) if !self.is_stopping() => {
                self.failed_reads = 0;
                self.fleet.reconcile(servers.collected, reading.reason == Reason::Asked);
                self.clear(&servers.registered, repository);
            }
            Ok(_) => {}
            Err(error) => {
                self.failed_reads = self.failed_reads.saturating_add(1);
                if self.failed_reads == 1 || reading.reason == Reason::Asked {
                    tracing::error!("the servers could not be read: {error}; trying again until it works");
                } else {
                    tracing::debug!("the servers could not be read: {error}");
                }
                problems.push(error.to_string());
            }
        }
        self.problem = (!problems.is_empty()).then(|| problems.join("; "));
        let answer = match &self.problem {
            None => Answer::Ok("OK".to_owned()),
            Some(problem) => Answer::Error(problem.clone()),
        };
        for waiting in self.waiting.drain(..) {
            let _ = waiting.send(answer.clone());
        }
        let wait = match self.failed_reads {
            0 => self.configuration.servers_refresh_interval,
            attempt => Some(schedule::backoff(attempt, rand::random())),
        };
        self.next_refresh = wait.map_or_else(far_future, |wait| Instant::now() + wait);
        if let Some(reason) = self.read_next.take() {
            let waiting = std::mem::take(&mut self.waiting_next);
            self.read_again(reason, None);
            self.waiting.extend(waiting);
        } else {
            let condition = self.condition();
            self.manager.reloaded(&condition);
        }
    }

    fn configure(&mut self, loaded: Loaded, repository: Repository, reason: Reason) {
        let Loaded { configuration: new, warnings } = loaded;
        if reason == Reason::Asked {
            warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        }
        let differences = config::differences(&self.configuration, &new);
        if differences.is_empty() {
            if reason == Reason::Asked {
                self.open_backlog(true);
            }
            return;
        }
        // First, so that one who wants to see more sees this already.
        self.log.set(&new.log);
        for difference in differences {
            tracing::info!("configuration: {difference}");
        }
        let old = std::mem::replace(&mut self.configuration, Arc::new(new));
        let new = Arc::clone(&self.configuration);
        if old.differs_in_repository(&new) {
            // The ids there are other servers'. Nobody may go on before they are read.
            self.fleet.reconcile(Vec::new(), false);
        }
        let is_elsewhere = old.repository.place() != new.repository.place()
            || old.settings.spool_directory != new.settings.spool_directory;
        let backlog = match self.fleet.backlog() {
            _ if is_elsewhere => self.folders.open(&new),
            None => self.folders.try_again(&new, reason == Reason::Asked),
            Some(backlog) => {
                backlog.set_max_bytes(new.settings.spool_max_bytes);
                Some(backlog)
            }
        };
        self.fleet.equip(Means::new(&new, repository, backlog));
        if old.differs_in_repository(&new) || old.settings.timeouts != new.settings.timeouts {
            self.listen();
        }
        if old.http_listen != new.http_listen {
            self.serve_pages();
        }
    }

    /// Removes what waits for servers that are not there any more.
    fn clear(&mut self, registered: &BTreeSet<ServerId>, repository: String) {
        let Some(backlog) = self.fleet.backlog() else { return };
        let mut servers = snapshot::removed::servers(&backlog.servers(), registered);
        // A store in progress is waited for.
        servers.retain(|server| !self.fleet.has_worker(*server));
        if !servers.is_empty() && self.clearing.as_ref().is_none_or(JoinHandle::is_finished) {
            self.clearing = Some(tokio::spawn(snapshot::removed::clear(backlog, repository, servers)));
        }
    }

    fn reap(&mut self, ended: Result<(Id, Exit), JoinError>) {
        let stopped = self.fleet.reap(ended);
        let waits = |server| self.fleet.backlog().is_some_and(|backlog| backlog.of(server).0 > 0);
        if stopped.is_some_and(waits) {
            // Only the repository knows whether the server was removed.
            self.read_again(Reason::Time, None);
        }
    }

    /// Tries again to find a place where snapshots can wait, if there is none.
    fn open_backlog(&mut self, is_asked: bool) {
        if self.fleet.backlog().is_none() {
            let backlog = self.folders.try_again(&self.configuration, is_asked);
            if backlog.is_some() {
                let repository = self.fleet.repository().clone();
                self.fleet.equip(Means::new(&self.configuration, repository, backlog));
            }
        }
    }

    fn stop(&mut self) {
        let timeout = self.configuration.shutdown_timeout;
        tracing::info!("stopping: stores in progress have {} s", timeout.as_secs());
        self.deadline = Some(Instant::now() + timeout);
        self.next_refresh = far_future();
        self.fleet.stop();
        let condition = self.condition();
        self.manager.stopping(&condition);
    }

    /// When to end: never while nobody said so, at once when nobody is left at work.
    fn end(&self) -> Instant {
        match self.deadline {
            None => far_future(),
            Some(_) if self.fleet.is_empty() => Instant::now(),
            Some(deadline) => deadline,
        }
    }

    fn farewell(&self) {
        for name in self.fleet.names() {
            tracing::warn!("{name}: the store in progress was broken off");
        }
        self.listener.cancel();
        tracing::info!("stopped");
    }
}

fn needs_new_pools(old: &Configuration, new: &Configuration) -> bool {
    old.differs_in_repository(new)
        || old.settings.max_connections != new.settings.max_connections
        || old.settings.timeouts.connect != new.settings.timeouts.connect
}

fn repository(configuration: &Configuration) -> Repository {
    Repository::new(
        configuration.repository.clone(),
        configuration.settings.max_connections,
        configuration.settings.timeouts.connect,
    )
}

fn not_found(server: ServerId) -> Answer {
    Answer::Error(format!("Server id {server} not found"))
}

impl From<Untold> for Answer {
    fn from(untold: Untold) -> Self {
        match untold {
            Untold::NotFound(server) => not_found(server),
            Untold::Busy(server) => {
                Self::Error(format!("the worker of server id {server} has too many commands before it"))
            }
        }
    }
}
