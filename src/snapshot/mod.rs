//! One snapshot of one server, in the order in which its data travels: plan, fetch, spool, backlog, store.

pub mod backlog;
pub mod borrowed;
pub mod fetch;
pub mod file;
pub mod folders;
pub mod plan;
pub mod reading;
pub mod removed;
pub mod spool;
pub mod store;
pub mod turns;
pub mod vacuum;
pub mod versions;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use self::backlog::{Backlog, Ticket};
use self::fetch::{Fetch, FetchError, Remote};
use self::file::{Damage, Index};
use self::plan::{Plan, PlanError, Refresh};
use self::spool::{Spool, SpoolError};
use self::store::StoreError;
use self::turns::{Due, Turn, Turns};
use self::vacuum::Vacuum;
use crate::config::{Settings, temporary_directory};
use crate::postgres::extension::{self, Extension, Powa};
use crate::postgres::repository::{Object, Repository, RepositoryError};
use crate::postgres::session::application_name;
use crate::postgres::session::ends_connection;
use crate::server::{self, ServerId, Servers};

/// How sessions with the repository are named, before the server's name.
const REPOSITORY_PREFIX: &str = "PoWA collector - repo_conn for worker ";

/// Where a transaction returns to when one datasource fails, on either side, and how.
const SAVEPOINT: &str = "SAVEPOINT datasource";
const BACK: &str = "ROLLBACK TO SAVEPOINT datasource";

/// How long a fetch has its turn for itself. One that takes longer waits for its server, and nobody else is to wait
/// for that.
const TURN: Duration = Duration::from_secs(2);

/// A server whose snapshot is taken, and with what.
pub struct Subject<'a> {
    pub server: ServerId,
    /// The server's name in logs and sessions.
    pub name: &'a str,
    pub repository: &'a Repository,
    pub settings: &'a Settings,
    /// Who fetches next.
    pub fetches: &'a Arc<Turns>,
    pub vacuum: &'a Vacuum,
    /// Where what was read waits to be stored. None: nowhere.
    pub backlog: Option<&'a Backlog>,
}

/// A snapshot that has been read and is not stored yet.
pub struct Fetched {
    spool: Spool,
    /// The repository's PoWA that it was read for, and the repository as it names itself.
    powa: Powa,
    repository: String,
    /// Its place in the backlog. None: the disk did not take it.
    pub ticket: Option<Ticket>,
    /// What the repository has no query for, and what a server without PoWA lacks.
    pub skipped: Vec<String>,
    /// It was read by the repository's definitions: why.
    pub borrowed: Option<String>,
    /// Others may read when this one has come to its store.
    turn: Option<Turn>,
    fetch: Duration,
    /// Why the repository was not asked what is due, but an earlier plan taken.
    pub away: Option<String>,
}

/// A snapshot that is in the repository.
#[derive(Debug)]
pub struct Taken {
    pub rows: u64,
    /// Bytes of rows, as text.
    pub bytes: u64,
    /// What single datasources said; in `powa_snapshot_metas.errors` too.
    pub errors: Vec<String>,
    /// How many errors `powa_take_snapshot` met.
    pub repository_errors: i32,
    /// Whether an earlier attempt had stored it, whose answer was lost.
    pub was_there: bool,
    pub fetch: Duration,
    /// Waiting for a connection to the repository.
    pub wait: Duration,
    pub store: Duration,
}

impl Taken {
    /// How many errors it met, on either side.
    pub fn error_count(&self) -> u64 {
        self.errors.len() as u64 + u64::try_from(self.repository_errors).unwrap_or(0)
    }
}

/// Why a snapshot is not in the repository.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("ask the repository: no answer within {} s", .0.as_secs())]
    NoAnswer(Duration),
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It was away when it was asked what is due.
    #[error("{0}")]
    Away(String),
    #[error("broken off by a stop")]
    Stopped,
}

impl SnapshotError {
    /// Whether it is the repository that cannot be reached, so that nothing can be written there either and
    /// all may be well as soon as it is back.
    pub fn is_repository_away(&self) -> bool {
        match self {
            Self::Repository(_) | Self::NoAnswer(_) | Self::Away(_) => true,
            Self::Plan(PlanError::NoPowa | PlanError::Unsupported(_) | PlanError::ReadOnly) => true,
            Self::Plan(PlanError::Repository(error)) => ends_connection(error),
            Self::Store(error) => error.is_passing(),
            _ => false,
        }
    }

    /// Whether the repository answers, so that it may be this snapshot that it cannot take.
    pub fn is_of_this_snapshot(&self) -> bool {
        match self {
            Self::Store(StoreError::Connection(error) | StoreError::TakeSnapshot { source: error, .. }) => {
                !ends_connection(error)
            }
            Self::Store(StoreError::Deadline(_) | StoreError::Busy(_) | StoreError::InDoubt) => true,
            _ => false,
        }
    }

    /// Whether it comes from a stop and from nothing else.
    pub fn is_stop(&self) -> bool {
        matches!(self, Self::Stopped | Self::Fetch(FetchError::Stopped))
    }
}

impl Subject<'_> {
    /// The name of this server's sessions with the repository.
    pub fn repository_session(&self) -> String {
        application_name(REPOSITORY_PREFIX, self.name)
    }

    /// Reads a snapshot, when it is its turn, and puts it into the backlog. `known` is what was due last time, which is
    /// taken while the repository is away; `is_away`: it need not be asked.
    ///
    /// # Errors
    /// When there is nothing to store.
    pub async fn read(
        &self,
        remote: &mut Remote,
        refresh: Option<&Refresh>,
        due: Due,
        known: &mut Option<Plan>,
        is_away: bool,
        stop: &CancellationToken,
    ) -> Result<Fetched, SnapshotError> {
        // What is fetched is stored soon after: a repository that is behind is not handed more than it can take.
        tracing::debug!("waits for its turn");
        let mut turn = match stop.run_until_cancelled(self.fetches.wait(due)).await {
            None => return Err(SnapshotError::Stopped),
            Some(turn) => Some(turn),
        };
        let version = remote.session.facts.version_num;
        let mut away = None;
        let plan = match known.as_ref().filter(|plan| is_away && plan.version_num == version) {
            Some(plan) => plan.clone(),
            None => match stop.run_until_cancelled(self.plan(version)).await {
                None => return Err(SnapshotError::Stopped),
                Some(Ok(plan)) => {
                    *known = Some(plan.without_catalogs());
                    plan
                }
                Some(Err(error)) => match known.as_ref().filter(|plan| plan.version_num == version) {
                    Some(plan) if error.is_repository_away() => {
                        away = Some(error.to_string());
                        plan.clone()
                    }
                    _ => return Err(error),
                },
            },
        };
        let fetch_began = Instant::now();
        let Fetch { mut spool, skipped, borrowed } = {
            // On the heap, like what follows: who waits for its turn does not need the room yet.
            let mut fetching =
                Box::pin(fetch::fetch(remote, &plan, refresh, self.settings, self.spool(), stop));
            match timeout(TURN, &mut fetching).await {
                Ok(fetched) => fetched?,
                Err(_) => {
                    turn = None;
                    fetching.await?
                }
            }
        };
        let fetch = fetch_began.elapsed();
        let ticket = self.seal(&mut spool, &plan).await;
        if ticket.is_some() {
            tracing::debug!("fetched: the snapshot of {}", spool.time);
        }
        let Plan { powa, repository, skipped: mut left_out, .. } = plan;
        left_out.extend(skipped);
        Ok(Fetched { spool, powa, repository, ticket, skipped: left_out, borrowed, turn, fetch, away })
    }

    /// An empty spool, on the backlog's disk.
    fn spool(&self) -> Spool {
        let directory =
            self.backlog.map_or_else(temporary_directory, |backlog| backlog.directory().to_owned());
        Spool::new(self.settings.spool_memory_limit, directory)
    }

    /// Makes a file of what was read. Without one it can be stored all the same, but not wait.
    async fn seal(&self, spool: &mut Spool, plan: &Plan) -> Option<Ticket> {
        let backlog = self.backlog?;
        let ticket = backlog.reserve(self.server);
        let index = Index {
            repository: plan.repository.clone(),
            server: self.server.0,
            time: spool.time.clone(),
            powa_version: plan.powa.version.to_string(),
            powa_schema: plan.powa.schema.clone(),
            errors: Vec::new(),
            tables: Vec::new(),
        };
        match spool.seal(backlog.path(ticket), index).await {
            Ok(()) => {
                if backlog.note_writable(true) {
                    tracing::info!("snapshots can wait for the repository again");
                }
                Some(ticket)
            }
            Err(error) => {
                if backlog.note_writable(false) {
                    tracing::error!(
                        "this snapshot could not wait for the repository if it had to, nor could others: {error}"
                    );
                } else {
                    tracing::debug!("this snapshot could not wait for the repository if it had to: {error}");
                }
                backlog.remove(ticket);
                None
            }
        }
    }

    /// Takes a snapshot out of the backlog's file.
    ///
    /// # Errors
    /// When it is damaged.
    pub async fn reopen(&self, backlog: &Backlog, ticket: Ticket) -> Result<Fetched, Damage> {
        let (index, spool) = Spool::open(backlog.path(ticket)).await?;
        Ok(Fetched {
            powa: index.powa(),
            repository: index.repository,
            spool,
            ticket: Some(ticket),
            skipped: Vec::new(),
            borrowed: None,
            turn: None,
            fetch: Duration::ZERO,
            away: None,
        })
    }

    /// Stores a snapshot that was read. `stop` breaks off the wait, but not a store in progress.
    ///
    /// # Errors
    /// When nothing of the snapshot is in the repository, as far as one can tell.
    pub async fn put(&self, fetched: &mut Fetched, stop: &CancellationToken) -> Result<Taken, SnapshotError> {
        let Fetched { spool, powa, repository, ticket, turn, fetch, .. } = fetched;
        let wait_began = Instant::now();
        if !self.repository.has_free_store_connection() && spool.rows() > 0 {
            tracing::debug!("waits for the repository");
            // Who waits for it holds no rows in memory, unless the disk has not taken them.
            if ticket.is_some() || self.backlog.is_none() {
                spool.release().await?;
            }
        }
        let connection = match stop.run_until_cancelled(self.repository.store_connection()).await {
            None => return Err(SnapshotError::Stopped),
            Some(Ok(connection)) => connection,
            Some(Err(error)) => return Err(noted(self.repository, error.into())),
        };
        drop(turn.take());
        let wait = wait_began.elapsed();

        let store_began = Instant::now();
        let session = self.repository_session();
        let timeouts = self.settings.timeouts;
        let parts = spool.parts();
        self.vacuum.note(&parts);
        let place = store::Destination { powa, server: self.server, repository, application_name: &session };
        let storing = store::store(connection, place, spool, parts, timeouts);
        let (stored, connection) = match Box::pin(storing).await {
            Ok(stored) => stored,
            Err(error) => return Err(noted(self.repository, error.into())),
        };
        self.repository.note_back();
        let store = store_began.elapsed();
        if self.settings.vacuums {
            self.vacuum.run(connection, timeouts.store, stop).await;
        }
        Ok(Taken {
            rows: spool.rows(),
            bytes: spool.bytes(),
            errors: std::mem::take(&mut spool.errors),
            repository_errors: stored.errors,
            was_there: stored.was_there,
            fetch: *fetch,
            wait,
            store,
        })
    }

    /// Lets a snapshot wait for the repository, if it can. False: it is lost.
    pub async fn wait(&self, mut fetched: Fetched) -> bool {
        let (Some(backlog), Some(ticket)) = (self.backlog, fetched.ticket) else { return false };
        if let Err(error) = fetched.spool.sync().await {
            tracing::warn!(
                "a snapshot waits for the repository, but would not survive a loss of power: {error}"
            );
        }
        drop(fetched);
        backlog.wait(ticket);
        true
    }

    /// What is due for this server.
    ///
    /// # Errors
    /// When the repository cannot be asked.
    pub async fn plan(&self, server_version_num: i32) -> Result<Plan, SnapshotError> {
        self.ask(async |client, about| plan::plan(client, about, self.server, server_version_num).await).await
    }

    /// How long ago the last snapshot began: `Some(None)` when there was none, `None` when the server has no
    /// row in `powa_snapshot_metas`.
    ///
    /// # Errors
    /// When the repository cannot be asked.
    pub async fn last_snapshot(&self) -> Result<Option<Option<Duration>>, SnapshotError> {
        self.ask(async |client, about| {
            let statement = include_str!("../../sql/repository/last_snapshot.sql");
            let statement = extension::in_schema(statement, &about.powa.schema);
            let row = client.query_opt(&statement, &[&self.server.0]).await?;
            Ok(row.map(|row| {
                let age: Option<f64> = row.get(0);
                age.map(|age| Duration::try_from_secs_f64(age).unwrap_or_default())
            }))
        })
        .await
    }

    /// Brings the versions that the repository keeps of this server up to date.
    ///
    /// # Errors
    /// When one side cannot be asked, or the repository's refuses to be written.
    pub async fn update_versions(&self, remote: &Remote) -> Result<Vec<versions::Change>, SnapshotError> {
        let deadline = self.settings.timeouts.query;
        let versions = timeout(deadline, Box::pin(versions::ask(remote)))
            .await
            .map_err(|_| FetchError::Deadline(deadline))?
            .map_err(FetchError::Connection)?;
        self.ask(async |client, about| {
            Ok(versions::update(client, &about.powa, self.server, &versions).await?)
        })
        .await
    }

    /// Writes into `powa_snapshot_metas.errors` why there is no snapshot.
    ///
    /// # Errors
    /// When the repository cannot be written.
    pub async fn record_failure(&self, errors: &[String]) -> Result<(), SnapshotError> {
        self.ask(async |client, about| {
            Ok(store::record_failure(client, &about.powa, self.server, errors).await?)
        })
        .await
    }

    async fn ask<T>(&self, question: impl Question<T>) -> Result<T, SnapshotError> {
        let deadline = self.settings.timeouts.query;
        ask(self.repository, &self.repository_session(), deadline, question).await
    }
}

/// The servers, and the repository that lists them, as it names itself.
///
/// # Errors
/// When the repository cannot be asked.
pub async fn servers(
    repository: &Repository,
    deadline: Duration,
) -> Result<(Servers, String), SnapshotError> {
    ask(repository, "PoWA collector", deadline, async |client, about| {
        Ok((server::list(client, &about.powa.schema).await?, about.repository))
    })
    .await
}

/// What a repository is, for those who ask it something.
#[derive(Clone)]
pub struct About {
    pub powa: Powa,
    pub extensions: HashMap<String, Extension>,
    /// As it names itself.
    pub repository: String,
}

/// What is asked.
trait Question<T>: AsyncFnOnce(&Object, About) -> Result<T, PlanError> {}

impl<T, F> Question<T> for F where F: AsyncFnOnce(&Object, About) -> Result<T, PlanError> {}

/// Names a session with a repository, and asks what that is.
///
/// # Errors
/// When it cannot be asked, or nothing can be collected into it.
pub async fn about(client: &Object, session: &str) -> Result<About, PlanError> {
    let place = store::name_session(client, session).await?;
    if place.is_read_only {
        return Err(PlanError::ReadOnly);
    }
    let installed = client.prepare_cached(extension::INSTALLED).await?;
    let extensions = extension::installed(client, &installed).await?;
    let powa = plan::repository_powa(&extensions)?;
    Ok(About { powa, extensions, repository: place.repository })
}

/// Asks the repository something short, over the connection that is kept for that.
async fn ask<T>(
    repository: &Repository,
    session: &str,
    deadline: Duration,
    question: impl Question<T>,
) -> Result<T, SnapshotError> {
    let client = match repository.question_connection().await {
        Ok(client) => client,
        Err(error) => return Err(noted(repository, error.into())),
    };
    let asking = async {
        let about = about(&client, session).await?;
        question(&client, about).await
    };
    let answer = match timeout(deadline, Box::pin(asking)).await {
        Ok(answer) => answer.map_err(SnapshotError::Plan),
        Err(_) => Err(SnapshotError::NoAnswer(deadline)),
    };
    // What is under way there must not be taken for the next answer, a session that was opened before PoWA was there
    // has the settings for none, and where nothing can be written another server may have taken over.
    if matches!(
        answer,
        Err(SnapshotError::NoAnswer(_) | SnapshotError::Plan(PlanError::NoPowa | PlanError::ReadOnly))
    ) {
        drop(Object::take(client));
    }
    match answer {
        Ok(answer) => {
            repository.note_back();
            Ok(answer)
        }
        Err(error) => Err(noted(repository, error)),
    }
}

/// Lets everybody know when it is the repository that has failed.
fn noted(repository: &Repository, error: SnapshotError) -> SnapshotError {
    let is_news = !matches!(error, SnapshotError::Repository(RepositoryError::Away));
    if is_news && error.is_repository_away() && !error.is_of_this_snapshot() {
        repository.note_away();
    }
    error
}
