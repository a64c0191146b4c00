//! The workers, and the servers that there should be workers for. Whatever changes, only what differs is
//! started, stopped or told.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::servers::ServerOptions;
use crate::config::{Configuration, Settings};
use crate::control::protocol::Of;
use crate::figures::Failure;
use crate::overview::Seen;
use crate::postgres::repository::Repository;
use crate::postgres::text::one_line;
use crate::report::{Detail, Sheet, Waiting};
use crate::schedule;
use crate::server::{Server, ServerId};
use crate::snapshot::backlog::Backlog;
use crate::snapshot::turns::Turns;
use crate::snapshot::vacuum::Vacuum;
use crate::worker::{self, Assignment, Command, Exit, State};

/// How many commands a worker may have before it.
const COMMANDS: usize = 16;

/// A worker that fails after it has worked for so long fails for the first time again.
const STEADY: Duration = Duration::from_secs(600);

/// What every worker works with.
pub struct Means {
    pub settings: Arc<Settings>,
    pub repository: Repository,
    pub connects: Arc<Turns>,
    pub fetches: Arc<Turns>,
    pub vacuum: Arc<Vacuum>,
    pub backlog: Option<Arc<Backlog>>,
    pub use_server_alias: bool,
    pub servers: Arc<ServerOptions>,
}

impl Means {
    /// `backlog`: where snapshots wait for this repository, if they can.
    pub fn new(configuration: &Configuration, repository: Repository, backlog: Option<Arc<Backlog>>) -> Self {
        Self {
            backlog,
            settings: Arc::new(configuration.settings.clone()),
            connects: Turns::new(configuration.settings.connects_at_once),
            fetches: Turns::new(configuration.settings.fetches_at_once),
            vacuum: Arc::default(),
            use_server_alias: configuration.use_server_alias,
            servers: Arc::clone(&configuration.servers),
            repository,
        }
    }

    /// What lines of the log that concern a server stand in.
    fn span(&self, server: &Server) -> tracing::Span {
        worker::span(&server.name(self.use_server_alias), server.id)
    }

    /// What a worker needs for one server.
    pub fn assignment(&self, server: Server) -> Assignment {
        Assignment {
            name: server.name(self.use_server_alias),
            given: self.servers.given(&server),
            server,
            settings: Arc::clone(&self.settings),
            repository: self.repository.clone(),
            connects: Arc::clone(&self.connects),
            fetches: Arc::clone(&self.fetches),
            vacuum: Arc::clone(&self.vacuum),
            backlog: self.backlog.clone(),
        }
    }
}

/// Why a worker was not told something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Untold {
    /// There is none for that server.
    NotFound(ServerId),
    /// It has too many commands before it.
    Busy(ServerId),
}

/// All workers.
pub struct Fleet {
    means: Means,
    /// The servers that should be collected.
    wanted: BTreeMap<ServerId, Server>,
    workers: BTreeMap<ServerId, Worker>,
    /// Every one of its ends is to be handed to [`Fleet::reap`].
    pub tasks: JoinSet<Exit>,
    task_ids: HashMap<Id, ServerId>,
    /// The workers that have failed, by when they are to be started again.
    restarts: BTreeSet<(Instant, ServerId)>,
    is_stopping: bool,
}

/// A worker, seen from here.
struct Worker {
    server: Server,
    commands: mpsc::Sender<Command>,
    state: watch::Receiver<State>,
    sheet: Sheet,
    stop: CancellationToken,
    life: Life,
    started: Instant,
    /// How many times in a row it has failed.
    faults: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Working,
    /// Told to stop, and finishing.
    Stopping,
    /// Ended by itself. It stays in the list, and is started again when that may help.
    Ended,
    /// Ended by a fault of ours. It is started again.
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

impl Fleet {
    pub fn new(means: Means) -> Self {
        Self {
            means,
            wanted: BTreeMap::new(),
            workers: BTreeMap::new(),
            tasks: JoinSet::new(),
            task_ids: HashMap::new(),
            restarts: BTreeSet::new(),
            is_stopping: false,
        }
    }

    /// The repository that the workers store in.
    pub fn repository(&self) -> &Repository {
        &self.means.repository
    }

    /// Where snapshots wait for the repository.
    pub fn backlog(&self) -> Option<Arc<Backlog>> {
        self.means.backlog.clone()
    }

    /// Whether there is a worker for a server, be it one that is stopping.
    pub fn has_worker(&self, server: ServerId) -> bool {
        self.workers.contains_key(&server)
    }

    /// Whether nobody is at work any more.
    pub fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    /// Who is at work, for the log.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.workers.values().map(|worker| one_line(&worker.server.name(self.means.use_server_alias)))
    }

    /// The states of workers, in the order of their servers' ids.
    pub fn status(&self, of: Of) -> Vec<(ServerId, String)> {
        let state = |(id, worker): (&ServerId, &Worker)| (*id, worker.state().to_string());
        match of {
            Of::All => self.workers.iter().map(state).collect(),
            Of::One(id) => self.workers.get_key_value(&id).map(state).into_iter().collect(),
            Of::Nobody => Vec::new(),
        }
    }

    /// How the collection of servers goes, in the order of their ids; of all when `of` is empty.
    pub fn details(&self, of: &[ServerId]) -> Vec<Detail> {
        let wanted = self.workers.iter().filter(|(id, _)| of.is_empty() || of.contains(id));
        wanted.map(|(id, worker)| self.detail(*id, worker)).collect()
    }

    fn detail(&self, id: ServerId, worker: &Worker) -> Detail {
        let (snapshots, bytes) = self.means.backlog.as_ref().map_or((0, 0), |backlog| backlog.of(id));
        Detail {
            srvid: id.0,
            server: worker.server.name(false),
            alias: worker.server.alias.clone(),
            state: worker.state().to_string(),
            frequency: worker.server.frequency.as_secs(),
            report: worker.sheet.read(),
            backlog: Waiting { snapshots: snapshots as u64, bytes },
        }
    }

    /// How the collection of every server goes, with figures.
    pub fn seen(&self, now: Timestamp) -> Vec<Seen> {
        let seen = |(id, worker): (&ServerId, &Worker)| {
            let mut figures = worker.sheet.figures();
            let dropped = self.means.backlog.as_ref().map_or(0, |backlog| backlog.dropped(*id));
            figures.failed(Failure::Lost, dropped);
            let name = one_line(&worker.server.name(self.means.use_server_alias));
            Seen::new(name, self.detail(*id, worker), figures, now)
        };
        self.workers.iter().map(seen).collect()
    }

    /// How they are, in a few words.
    pub fn summary(&self) -> String {
        summary(self.workers.values().map(Worker::state))
    }

    /// Tells a worker to do something.
    ///
    /// # Errors
    /// When there is no such worker, or it does not come to its commands.
    pub fn tell(&self, server: ServerId, command: Command) -> Result<(), Untold> {
        let worker = self.workers.get(&server).filter(|worker| worker.life == Life::Working);
        let worker = worker.ok_or(Untold::NotFound(server))?;
        worker.commands.try_send(command).map_err(|_| Untold::Busy(server))?;
        let _span = self.means.span(&worker.server).entered();
        tracing::info!("a command came over the control channel");
        Ok(())
    }

    /// Makes everybody work with this from now on.
    pub fn equip(&mut self, means: Means) {
        // Who has a turn keeps it, and who waits for one keeps its place.
        self.means.connects.set_places(means.settings.connects_at_once);
        self.means.fetches.set_places(means.settings.fetches_at_once);
        let (connects, fetches) = (Arc::clone(&self.means.connects), Arc::clone(&self.means.fetches));
        let old = std::mem::replace(&mut self.means, Means { connects, fetches, ..means });
        if !old.repository.is_same(&self.means.repository) {
            old.repository.close();
        }
        for worker in self.workers.values().filter(|worker| worker.life == Life::Working) {
            self.assign(worker);
        }
    }

    /// Starts, stops and changes workers until they are those that are wanted. `is_asked`: somebody wants
    /// everything looked at again, also what has not changed.
    pub fn reconcile(&mut self, servers: Vec<Server>, is_asked: bool) {
        let count = servers.len();
        if is_asked || count != self.wanted.len() {
            tracing::info!("{count} {} to collect", if count == 1 { "server" } else { "servers" });
        }
        if is_asked || self.wanted.is_empty() {
            for name in self.means.servers.unused(&servers) {
                tracing::warn!(
                    "servers.by_name.{name:?} in the configuration: no server has that alias or host:port"
                );
            }
        }
        self.wanted = servers.into_iter().map(|server| (server.id, server)).collect();
        for (id, worker) in &mut self.workers {
            if !self.wanted.contains_key(id) && worker.life == Life::Working {
                let _span = self.means.span(&worker.server).entered();
                tracing::info!("the server is not to be collected any more: its worker stops");
                worker.stop();
            }
        }
        let wanted = &self.wanted;
        self.workers.retain(|id, worker| match worker.life {
            Life::Ended | Life::Failed => wanted.contains_key(id),
            Life::Working | Life::Stopping => true,
        });
        for (id, server) in self.wanted.clone() {
            self.want(id, server, is_asked);
        }
    }

    /// Sees to it that one server that is wanted is collected as it is registered.
    fn want(&mut self, id: ServerId, server: Server, is_asked: bool) {
        let Some(worker) = self.workers.get_mut(&id) else {
            self.start(server);
            return;
        };
        let differences = worker.server.differences(&server);
        let span = self.means.span(&worker.server);
        for difference in &differences {
            let _entered = span.enter();
            tracing::info!("the server is registered otherwise: {difference}");
        }
        let is_different = is_asked || !differences.is_empty();
        match worker.life {
            Life::Working => {
                worker.server = server;
                if is_different {
                    self.assign(&self.workers[&id]);
                }
            }
            Life::Ended if is_different => self.start(server),
            // One that has failed is started again in a while, and one that is stopping once it has stopped.
            Life::Ended | Life::Failed | Life::Stopping => worker.server = server,
        }
    }

    fn assign(&self, worker: &Worker) {
        let assignment = Box::new(self.means.assignment(worker.server.clone()));
        if worker.commands.try_send(Command::Assign(assignment)).is_err() {
            let _span = self.means.span(&worker.server).entered();
            tracing::warn!("the worker is too busy to be told of the change");
        }
    }

    fn start(&mut self, server: Server) {
        let id = server.id;
        let assignment = self.means.assignment(server.clone());
        let (name, seconds) = (one_line(&assignment.name), server.frequency.as_secs());
        let _span = self.means.span(&server).entered();
        tracing::info!("worker for {name} starts, every {seconds} s");
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let (sender, state) = watch::channel(State::Unknown);
        let stop = CancellationToken::new();
        // What is known of a server outlasts a worker that failed.
        let sheet = self.workers.get(&id).map(|worker| worker.sheet.clone()).unwrap_or_default();
        let task = self.tasks.spawn(worker::run(assignment, receiver, sender, sheet.clone(), stop.clone()));
        self.task_ids.insert(task.id(), id);
        let started = Instant::now();
        self.workers.insert(
            id,
            Worker { server, commands, state, sheet, stop, life: Life::Working, started, faults: 0 },
        );
    }

    /// Notes the end of a worker. Gives the server that it has stopped for.
    pub fn reap(&mut self, ended: Result<(Id, Exit), JoinError>) -> Option<ServerId> {
        let (task, fault) = match ended {
            Ok((task, _)) => (task, None),
            Err(error) => (error.id(), Some(error)),
        };
        let id = self.task_ids.remove(&task)?;
        let worker = self.workers.get_mut(&id)?;
        if let Some(error) = &fault {
            let is_in_a_row = worker.started.elapsed() < STEADY;
            worker.faults = if is_in_a_row { worker.faults.saturating_add(1) } else { 1 };
            let wait = schedule::backoff(worker.faults, rand::random());
            let _span = self.means.span(&worker.server).entered();
            tracing::error!(
                "the worker ended by a fault of the collector, which is worth a report: {error}; it starts again in \
                 {:.1} s",
                wait.as_secs_f64()
            );
            let message = "the worker ended by a fault of the collector: see the log";
            worker.sheet.failed(Failure::Fault, message);
            self.restarts.insert((Instant::now() + wait, id));
        }
        if worker.life != Life::Stopping {
            worker.life = if fault.is_some() { Life::Failed } else { Life::Ended };
            return None;
        }
        self.means.span(&worker.server).in_scope(|| tracing::info!("the worker has stopped"));
        self.workers.remove(&id);
        if !self.is_stopping {
            if let Some(server) = self.wanted.get(&id).cloned() {
                self.start(server);
            }
        }
        Some(id)
    }

    /// When the next worker that has failed is to be started again.
    pub fn next_restart(&self) -> Option<Instant> {
        self.restarts.first().map(|(at, _)| *at)
    }

    /// Starts those again whose time has come.
    pub fn restart(&mut self) {
        let now = Instant::now();
        while self.restarts.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, id)) = self.restarts.pop_first() else { return };
            // It may have been stopped, removed or registered otherwise since.
            let Some(worker) = self.workers.get(&id).filter(|worker| worker.life == Life::Failed) else {
                continue;
            };
            let (server, faults) = (worker.server.clone(), worker.faults);
            self.start(server);
            if let Some(worker) = self.workers.get_mut(&id) {
                worker.faults = faults;
            }
        }
    }

    /// Tells everybody to stop, for good.
    pub fn stop(&mut self) {
        self.is_stopping = true;
        self.workers.values_mut().filter(|worker| worker.life == Life::Working).for_each(Worker::stop);
        self.workers.retain(|_, worker| worker.life == Life::Stopping);
    }
}

impl Worker {
    fn stop(&mut self) {
        self.stop.cancel();
        self.life = Life::Stopping;
    }
}

/// Counts states.
fn summary(states: impl Iterator<Item = State>) -> String {
    let states: Vec<State> = states.collect();
    let mut words = format!("{} {}", states.len(), if states.len() == 1 { "server" } else { "servers" });
    for (state, told) in [
        (State::Running, "running"),
        (State::NoRemote, "without connection"),
        (State::NoRepository, "without the repository"),
        (State::Unknown, "not tried yet"),
        (State::Stopping, "stopping"),
        (State::Stopped, "stopped"),
    ] {
        let count = states.iter().filter(|other| **other == state).count();
        if count > 0 {
            words.push_str(&format!(", {count} {told}"));
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: ServerId = ServerId(1);

    /// One worker, for a server and a repository that are nowhere.
    fn fleet() -> Fleet {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), r#"{"repository": {"dsn": "host=/nowhere"}}"#).unwrap();
        let configuration = crate::config::load(Some(file.path())).unwrap().configuration;
        let timeouts = configuration.settings.timeouts;
        let repository = Repository::new(configuration.repository.clone(), 1, timeouts.connect);
        let mut fleet = Fleet::new(Means::new(&configuration, repository, None));
        fleet.reconcile(vec![server()], false);
        fleet
    }

    fn server() -> Server {
        Server {
            id: ID,
            hostname: "/nowhere".to_owned(),
            port: 5432,
            username: "powa".to_owned(),
            password: None,
            dbname: "powa".to_owned(),
            frequency: Duration::from_secs(60),
            alias: None,
            is_registered: true,
        }
    }

    /// Lets the worker fail, and gives how long it is to stay so.
    async fn fail(fleet: &mut Fleet) -> Duration {
        fleet.tasks.abort_all();
        while fleet.tasks.join_next().await.is_some() {}
        fleet.task_ids.clear();
        let task = fleet.tasks.spawn(async { panic!("this worker is to fail") });
        fleet.task_ids.insert(task.id(), ID);
        let ended = fleet.tasks.join_next_with_id().await.unwrap();
        fleet.reap(ended);
        fleet.next_restart().unwrap() - Instant::now()
    }

    fn status(fleet: &Fleet) -> String {
        fleet.status(Of::One(ID)).pop().unwrap().1
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_fails_is_started_again_later_each_time() {
        let mut fleet = fleet();
        for most in [1u32, 2, 4, 8, 16, 32, 60, 60] {
            let wait = fail(&mut fleet).await.as_secs_f64();
            assert!((f64::from(most) / 2.0..=f64::from(most)).contains(&wait), "{wait} s of {most}");
            assert_eq!(status(&fleet), "stopped");
            // What is read of the servers meanwhile does not make it come sooner.
            fleet.reconcile(vec![server()], true);
            fleet.restart();
            assert_eq!(status(&fleet), "stopped");
            tokio::time::advance(Duration::from_secs(most.into())).await;
            fleet.restart();
            assert_eq!(status(&fleet), "Unknown");
            assert_eq!(fleet.next_restart(), None);
        }
        tokio::time::advance(STEADY).await;
        assert!(fail(&mut fleet).await <= Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_has_failed_and_is_not_wanted_any_more_stays_away() {
        let mut fleet = fleet();
        fail(&mut fleet).await;
        fleet.reconcile(Vec::new(), false);
        tokio::time::advance(Duration::from_secs(60)).await;
        fleet.restart();
        assert!(fleet.is_empty());
    }

    #[test]
    fn servers_are_summed_up_in_a_few_words() {
        let told = |states: &[State]| summary(states.iter().copied());
        assert_eq!(told(&[]), "0 servers");
        assert_eq!(told(&[State::Running]), "1 server, 1 running");
        assert_eq!(
            told(&[State::NoRemote, State::Running, State::Unknown, State::Running, State::NoRepository]),
            "5 servers, 2 running, 1 without connection, 1 without the repository, 1 not tried yet"
        );
        assert_eq!(told(&[State::Stopped, State::Stopping]), "2 servers, 1 stopping, 1 stopped");
    }
}
