//! One snapshot of one server, in the order in which its data travels: plan, fetch, spool, store.

pub mod fetch;
pub mod plan;
pub mod reading;
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

use self::fetch::{FetchError, Remote};
use self::plan::{Plan, PlanError, Refresh};
use self::spool::SpoolError;
use self::store::{Access, StoreError};
use self::turns::{Due, Turns};
use self::vacuum::Vacuum;
use crate::config::Settings;
use crate::postgres::extension::{self, Extension, Powa};
use crate::postgres::repository::{Object, Repository, RepositoryError};
use crate::postgres::session::application_name;
use crate::postgres::session::ends_connection;
use crate::server::{self, Server, ServerId};

/// How sessions with the repository are named, before the server's name.
const REPOSITORY_PREFIX: &str = "PoWA collector - repo_conn for worker ";

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
    pub fetch: Duration,
    /// Waiting for a connection to the repository.
    pub wait: Duration,
    pub store: Duration,
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
    #[error("broken off by a stop")]
    Stopped,
}

impl SnapshotError {
    /// Whether it is the repository that cannot be reached, so that nothing can be written there either and
    /// all may be well as soon as it is back.
    pub fn is_repository_away(&self) -> bool {
        match self {
            Self::Repository(_) | Self::NoAnswer(_) => true,
            Self::Plan(PlanError::NoPowa | PlanError::Unsupported(_) | PlanError::ReadOnly) => true,
            Self::Plan(PlanError::Repository(error)) => ends_connection(error),
            Self::Store(StoreError::Connection(error)) => ends_connection(error),
            Self::Store(StoreError::ReadOnly) => true,
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

    /// Takes a snapshot, when it is its turn. `stop` breaks off everything but a store in progress.
    ///
    /// # Errors
    /// When nothing of the snapshot is in the repository.
    pub async fn take(
        &self,
        remote: &mut Remote,
        refresh: Option<&Refresh>,
        due: Due,
        stop: &CancellationToken,
    ) -> Result<Taken, SnapshotError> {
        // What is fetched is stored soon after: a repository that is behind is not handed more than it can take.
        tracing::debug!("waits for its turn");
        let mut turn = match stop.run_until_cancelled(self.fetches.wait(due)).await {
            None => return Err(SnapshotError::Stopped),
            Some(turn) => Some(turn),
        };
        let version = remote.session.facts.version_num;
        let plan = match stop.run_until_cancelled(self.plan(version)).await {
            None => return Err(SnapshotError::Stopped),
            Some(plan) => plan?,
        };
        let fetch_began = Instant::now();
        let mut spool = {
            // On the heap, like what follows: who waits for its turn does not need the room yet.
            let mut fetching = Box::pin(fetch::fetch(remote, &plan, refresh, self.settings, stop));
            match timeout(TURN, &mut fetching).await {
                Ok(fetched) => fetched?,
                Err(_) => {
                    turn = None;
                    fetching.await?
                }
            }
        };
        let fetch = fetch_began.elapsed();

        // Who waits for the repository holds no rows in memory.
        let wait_began = Instant::now();
        if !self.repository.has_free_store_connection() && spool.rows() > 0 {
            tracing::debug!("waits for the repository");
            spool.move_to_file().await?;
            spool.finish().await?;
        }
        let connection = match stop.run_until_cancelled(self.repository.store_connection()).await {
            None => return Err(SnapshotError::Stopped),
            Some(connection) => connection?,
        };
        drop(turn);
        let wait = wait_began.elapsed();

        let store_began = Instant::now();
        let session = self.repository_session();
        let deadline = self.settings.timeouts.store;
        self.vacuum.note(&spool.parts());
        let storing = store::store(connection, &plan.powa, self.server, &session, &mut spool, deadline);
        let (stored, connection) = Box::pin(storing).await?;
        let store = store_began.elapsed();
        if self.settings.vacuums {
            self.vacuum.run(connection, deadline, stop).await;
        }
        Ok(Taken {
            rows: spool.rows(),
            bytes: spool.bytes(),
            errors: spool.errors,
            repository_errors: stored.errors,
            fetch,
            wait,
            store,
        })
    }

    /// What is due for this server.
    ///
    /// # Errors
    /// When the repository cannot be asked.
    pub async fn plan(&self, server_version_num: i32) -> Result<Plan, SnapshotError> {
        self.ask(async |client, powa, extensions| {
            plan::plan(client, powa, extensions, self.server, server_version_num).await
        })
        .await
    }

    /// How long ago the last snapshot began: `Some(None)` when there was none, `None` when the server has no
    /// row in `powa_snapshot_metas`.
    ///
    /// # Errors
    /// When the repository cannot be asked.
    pub async fn last_snapshot(&self) -> Result<Option<Option<Duration>>, SnapshotError> {
        self.ask(async |client, powa, _| {
            let statement = include_str!("../../sql/repository/last_snapshot.sql");
            let statement = extension::in_schema(statement, &powa.schema);
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
        self.ask(async |client, powa, _| Ok(versions::update(client, &powa, self.server, &versions).await?))
            .await
    }

    /// Writes into `powa_snapshot_metas.errors` why there is no snapshot.
    ///
    /// # Errors
    /// When the repository cannot be written.
    pub async fn record_failure(&self, errors: &[String]) -> Result<(), SnapshotError> {
        self.ask(async |client, powa, _| Ok(store::record_failure(client, &powa, self.server, errors).await?))
            .await
    }

    async fn ask<T>(&self, question: impl Question<T>) -> Result<T, SnapshotError> {
        let deadline = self.settings.timeouts.query;
        ask(self.repository, &self.repository_session(), deadline, question).await
    }
}

/// The servers to collect, as the repository lists them.
///
/// # Errors
/// When the repository cannot be asked.
pub async fn servers(repository: &Repository, deadline: Duration) -> Result<Vec<Server>, SnapshotError> {
    ask(repository, "PoWA collector", deadline, async |client, powa, _| {
        Ok(server::list(client, &powa.schema).await?)
    })
    .await
}

/// What is asked, given the repository's PoWA and its extensions.
trait Question<T>: AsyncFnOnce(&Object, Powa, &HashMap<String, Extension>) -> Result<T, PlanError> {}

impl<T, F> Question<T> for F where
    F: AsyncFnOnce(&Object, Powa, &HashMap<String, Extension>) -> Result<T, PlanError>
{
}

/// Asks the repository something short, over the connection that is kept for that.
async fn ask<T>(
    repository: &Repository,
    session: &str,
    deadline: Duration,
    question: impl Question<T>,
) -> Result<T, SnapshotError> {
    let client = repository.question_connection().await?;
    let asking = async {
        if store::name_session(&client, session).await? == Access::ReadOnly {
            return Err(PlanError::ReadOnly);
        }
        let installed = client.prepare_cached(extension::INSTALLED).await?;
        let extensions = extension::installed(&client, &installed).await?;
        let powa = plan::repository_powa(&extensions)?;
        question(&client, powa, &extensions).await
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
    answer
}
