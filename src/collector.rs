//! The dispatcher: one task that owns all state. Signals, control messages, freshly read configurations and
//! the ends of workers reach it as events; it compares the servers that should be collected with the workers
//! that are, and changes only what differs. It never waits for a server itself.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::config::{self, Configuration, ConfigurationError, Loaded};
use crate::control::listener::{self, Incoming, Place};
use crate::control::protocol::{Answer, Of, Request};
use crate::postgres::conninfo::one_line;
use crate::postgres::repository::Repository;
use crate::server::{Server, ServerId};
use crate::signals::Signal;
use crate::snapshot::{self, SnapshotError};
use crate::telemetry::Verbosity;
use crate::worker::{self, Assignment, Command, Exit, State};

/// How many commands a worker may have before it.
const COMMANDS: usize = 16;

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
    verbosity: Verbosity,
    mut signals: impl Stream<Item = Signal> + Unpin,
) -> Ending {
    let (incoming, mut requests) = mpsc::channel(64);
    let (read, mut readings) = mpsc::channel(1);
    let mut collector = Collector::new(file, configuration, verbosity, incoming, read);
    loop {
        let (refresh, end) = (collector.next_refresh, collector.end());
        tokio::select! {
            signal = signals.next() => match signal {
                Some(Signal::Reload) if !collector.is_stopping() => {
                    tracing::info!("reload: SIGHUP");
                    collector.read_again(Reason::Asked, None);
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
            Some(ended) = collector.tasks.join_next_with_id() => collector.reap(ended),
            () = sleep_until(refresh) => collector.read_again(Reason::Time, None),
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
    servers: Result<Vec<Server>, SnapshotError>,
}

struct Collector {
    file: Option<PathBuf>,
    configuration: Arc<Configuration>,
    settings: Arc<config::Settings>,
    verbosity: Verbosity,
    repository: Repository,
    connects: Arc<Semaphore>,

    incoming: mpsc::Sender<Incoming>,
    listener: CancellationToken,

    read: mpsc::Sender<Reading>,
    is_reading: bool,
    /// Asked for while a read was under way: that one may have begun too early.
    read_next: Option<Reason>,
    /// Who is to be told of the read under way, and of the one after it.
    waiting: Vec<oneshot::Sender<Answer>>,
    waiting_next: Vec<oneshot::Sender<Answer>>,
    next_refresh: Instant,

    /// The servers that should be collected.
    wanted: BTreeMap<ServerId, Server>,
    workers: BTreeMap<ServerId, Worker>,
    tasks: JoinSet<Exit>,
    task_ids: HashMap<Id, ServerId>,
    /// When a stop ends, whoever is still at work.
    deadline: Option<Instant>,
}

/// A worker, seen from here.
struct Worker {
    server: Server,
    commands: mpsc::Sender<Command>,
    state: watch::Receiver<State>,
    stop: CancellationToken,
    life: Life,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Working,
    /// Told to stop, and finishing.
    Stopping,
    /// Ended by itself. It stays in the list, and is started again when that may help.
    Ended,
    /// Ended by a fault of ours.
    Failed,
}

impl Worker {
    fn state(&self) -> State {
        match self.life {
            Life::Working => *self.state.borrow(),
            Life::Stopping => State::Stopping,
            Life::Ended | Life::Failed => State::Stopped,
        }
    }
}

fn far_future() -> Instant {
    Instant::now() + Duration::from_secs(10 * 365 * 86_400)
}

impl Collector {
    fn new(
        file: Option<PathBuf>,
        configuration: Configuration,
        verbosity: Verbosity,
        incoming: mpsc::Sender<Incoming>,
        read: mpsc::Sender<Reading>,
    ) -> Self {
        let settings = Arc::new(configuration.settings.clone());
        let mut collector = Self {
            repository: repository(&configuration),
            connects: Arc::new(Semaphore::new(settings.connects_at_once)),
            settings,
            file,
            configuration: Arc::new(configuration),
            verbosity,
            incoming,
            listener: CancellationToken::new(),
            read,
            is_reading: false,
            read_next: None,
            waiting: Vec::new(),
            waiting_next: Vec::new(),
            next_refresh: far_future(),
            wanted: BTreeMap::new(),
            workers: BTreeMap::new(),
            tasks: JoinSet::new(),
            task_ids: HashMap::new(),
            deadline: None,
        };
        collector.listen();
        collector
    }

    fn is_stopping(&self) -> bool {
        self.deadline.is_some()
    }

    /// Starts listening on the present repository in place of where it listened before.
    fn listen(&mut self) {
        self.listener.cancel();
        self.listener = CancellationToken::new();
        let timeouts = self.settings.timeouts;
        let place = Place {
            conninfo: self.repository.conninfo().clone(),
            connect: timeouts.connect,
            query: timeouts.query,
        };
        listener::spawn(place, self.incoming.clone(), self.listener.clone());
    }

    fn handle(&mut self, incoming: Incoming) {
        match incoming {
            Incoming::Listening if self.is_stopping() => {}
            Incoming::Listening => self.read_again(Reason::Listening, None),
            Incoming::Request { request, answer } => self.serve(request, answer),
        }
    }

    fn serve(&mut self, request: Request, answer: oneshot::Sender<Answer>) {
        let reply = match request {
            Request::WorkersStatus(of) => self.status(of),
            _ if self.is_stopping() => Answer::Error("the collector is stopping".to_owned()),
            Request::Reload => {
                tracing::info!("reload: asked for over the control channel");
                self.read_again(Reason::Asked, Some(answer));
                return;
            }
            Request::ForceSnapshot(server) => match self.working(server) {
                Some(worker) => {
                    let (reply, forced) = oneshot::channel();
                    if worker.commands.try_send(Command::Force(reply)).is_ok() {
                        tracing::info!(srvid = %server, "snapshot asked for over the control channel");
                        tokio::spawn(async move {
                            let reply = forced.await.map_or_else(|_| not_found(server), Answer::from);
                            let _ = answer.send(reply);
                        });
                        return;
                    }
                    busy(server)
                }
                None => not_found(server),
            },
            Request::RefreshCatalogs(server, refresh) => match self.working(server) {
                Some(worker) if worker.commands.try_send(Command::Refresh(refresh)).is_ok() => {
                    tracing::info!(srvid = %server, "catalogs asked for over the control channel");
                    Answer::Ok("Catalogs will be refreshed during the next snapshot".to_owned())
                }
                Some(_) => busy(server),
                None => not_found(server),
            },
        };
        // Who asked may have gone.
        let _ = answer.send(reply);
    }

    fn status(&self, of: Of) -> Answer {
        let one = |id| self.workers.get(&id).map(|worker| (id, worker.state().to_string()));
        Answer::Workers(match of {
            Of::All => self.workers.keys().filter_map(|id| one(*id)).collect(),
            Of::One(id) => one(id).into_iter().collect(),
            Of::Nobody => Vec::new(),
        })
    }

    fn working(&self, server: ServerId) -> Option<&Worker> {
        self.workers.get(&server).filter(|worker| worker.life == Life::Working)
    }

    /// Reads the configuration and the servers, in a task of its own.
    fn read_again(&mut self, reason: Reason, waiting: Option<oneshot::Sender<Answer>>) {
        self.next_refresh = far_future();
        if self.is_stopping() {
            return;
        }
        if self.is_reading {
            self.read_next = Some(reason);
            self.waiting_next.extend(waiting);
            return;
        }
        self.is_reading = true;
        self.waiting.extend(waiting);
        let file = self.file.clone();
        let configuration = Arc::clone(&self.configuration);
        let present = self.repository.clone();
        let read = self.read.clone();
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
            Ok(servers) if !self.is_stopping() => {
                let servers: BTreeMap<_, _> = servers.into_iter().map(|server| (server.id, server)).collect();
                if reading.reason != Reason::Time || self.wanted.len() != servers.len() {
                    tracing::info!("{} servers to collect", servers.len());
                }
                self.wanted = servers;
                self.reconcile(reading.reason == Reason::Asked);
            }
            Ok(_) => {}
            Err(error) => {
                tracing::error!("the servers could not be read again: {error}");
                problems.push(error.to_string());
            }
        }
        let answer = match &problems[..] {
            [] => Answer::Ok("OK".to_owned()),
            problems => Answer::Error(problems.join("; ")),
        };
        for waiting in self.waiting.drain(..) {
            let _ = waiting.send(answer.clone());
        }
        let refresh = self.configuration.servers_refresh_interval;
        self.next_refresh = refresh.map_or_else(far_future, |interval| Instant::now() + interval);
        if let Some(reason) = self.read_next.take() {
            let waiting = std::mem::take(&mut self.waiting_next);
            self.read_again(reason, None);
            self.waiting.extend(waiting);
        }
    }

    fn configure(&mut self, loaded: Loaded, repository: Repository, reason: Reason) {
        let Loaded { configuration: new, warnings } = loaded;
        if reason == Reason::Asked {
            warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        }
        let differences = config::differences(&self.configuration, &new);
        if differences.is_empty() {
            return;
        }
        for difference in differences {
            tracing::info!("configuration: {difference}");
        }
        self.verbosity.set_debug(new.debug);
        let old = std::mem::replace(&mut self.configuration, Arc::new(new));
        let new = Arc::clone(&self.configuration);
        self.settings = Arc::new(new.settings.clone());
        if old.settings.connects_at_once != new.settings.connects_at_once {
            self.connects = Arc::new(Semaphore::new(new.settings.connects_at_once));
        }
        if needs_new_pools(&old, &new) {
            self.repository.close();
            self.repository = repository;
        }
        if old.differs_in_repository(&new) || old.settings.timeouts != new.settings.timeouts {
            self.listen();
        }
        // Everybody works with the new one from now on.
        self.assign_all();
    }

    fn assignment(&self, server: &Server) -> Assignment {
        Assignment {
            server: server.clone(),
            name: server.name(self.configuration.use_server_alias),
            settings: Arc::clone(&self.settings),
            repository: self.repository.clone(),
            connects: Arc::clone(&self.connects),
        }
    }

    fn assign_all(&mut self) {
        let working = self.workers.values().filter(|worker| worker.life == Life::Working);
        for worker in working {
            self.assign(worker);
        }
    }

    fn assign(&self, worker: &Worker) {
        let assignment = Box::new(self.assignment(&worker.server));
        if worker.commands.try_send(Command::Assign(assignment)).is_err() {
            tracing::warn!(srvid = %worker.server.id, "the worker is too busy to be told of the change");
        }
    }

    /// Starts, stops and changes workers until they are those that are wanted. `is_asked`: somebody wants
    /// everything looked at again, also what has not changed.
    fn reconcile(&mut self, is_asked: bool) {
        for (id, worker) in &mut self.workers {
            if !self.wanted.contains_key(id) && worker.life == Life::Working {
                tracing::info!(srvid = %id, "the server is not to be collected any more: its worker stops");
                worker.stop.cancel();
                worker.life = Life::Stopping;
            }
        }
        let wanted = &self.wanted;
        self.workers.retain(|id, worker| match worker.life {
            Life::Ended | Life::Failed => wanted.contains_key(id),
            Life::Working | Life::Stopping => true,
        });
        for (id, server) in self.wanted.clone() {
            let Some(worker) = self.workers.get_mut(&id) else {
                self.start(server);
                continue;
            };
            let differences = worker.server.differences(&server);
            for difference in &differences {
                tracing::info!(srvid = %id, "the server is registered otherwise: {difference}");
            }
            worker.server = server;
            match worker.life {
                Life::Working if is_asked || !differences.is_empty() => {
                    let worker = &self.workers[&id];
                    self.assign(worker);
                }
                Life::Failed => self.restart(id),
                Life::Ended if is_asked || !differences.is_empty() => self.restart(id),
                // One that is stopping is started again once it has stopped.
                Life::Working | Life::Ended | Life::Stopping => {}
            }
        }
    }

    fn restart(&mut self, id: ServerId) {
        if let Some(worker) = self.workers.remove(&id) {
            self.start(worker.server);
        }
    }

    fn start(&mut self, server: Server) {
        let id = server.id;
        let assignment = self.assignment(&server);
        tracing::info!(srvid = %id, "worker for {} starts, every {} s", one_line(&assignment.name), server.frequency.as_secs());
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let (sender, state) = watch::channel(State::Unknown);
        let stop = CancellationToken::new();
        let task = self.tasks.spawn(worker::run(assignment, receiver, sender, stop.clone()));
        self.task_ids.insert(task.id(), id);
        let worker = Worker { server, commands, state, stop, life: Life::Working };
        self.workers.insert(id, worker);
    }

    /// Notes the end of a worker.
    fn reap(&mut self, ended: Result<(Id, Exit), JoinError>) {
        let (task, exit) = match ended {
            Ok((task, exit)) => (task, Ok(exit)),
            Err(error) => (error.id(), Err(error)),
        };
        let Some(id) = self.task_ids.remove(&task) else { return };
        let Some(worker) = self.workers.get_mut(&id) else { return };
        match exit {
            _ if worker.life == Life::Stopping => {
                self.workers.remove(&id);
                tracing::info!(srvid = %id, "the worker has stopped");
                if !self.is_stopping() && self.wanted.contains_key(&id) {
                    self.reconcile(false);
                }
            }
            Ok(_) => worker.life = Life::Ended,
            Err(error) => {
                tracing::error!(
                    srvid = %id,
                    "the worker ended by a fault of the collector: {error}; it starts again with the next \
                     refresh of the servers"
                );
                worker.life = Life::Failed;
            }
        }
    }

    fn stop(&mut self) {
        let timeout = self.configuration.shutdown_timeout;
        tracing::info!("stopping: stores in progress have {} s", timeout.as_secs());
        self.deadline = Some(Instant::now() + timeout);
        self.next_refresh = far_future();
        for worker in self.workers.values_mut().filter(|worker| worker.life == Life::Working) {
            worker.stop.cancel();
            worker.life = Life::Stopping;
        }
        self.workers.retain(|_, worker| worker.life == Life::Stopping);
    }

    /// When to end: never while nobody said so, at once when nobody is left at work.
    fn end(&self) -> Instant {
        match self.deadline {
            None => far_future(),
            Some(_) if self.workers.is_empty() => Instant::now(),
            Some(deadline) => deadline,
        }
    }

    fn farewell(&self) {
        for worker in self.workers.values() {
            let name = one_line(&worker.server.name(self.configuration.use_server_alias));
            tracing::warn!(srvid = %worker.server.id, "{name}: the store in progress was broken off");
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

fn busy(server: ServerId) -> Answer {
    Answer::Error(format!("the worker of server id {server} has too many commands before it"))
}
