//! The repository's connections: a few for stores, and one for short questions that must not wait behind
//! them. The listener's own is made by the listener.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{Connect, Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use super::conninfo::{ConnInfo, causes};
use super::session;

/// Why there is no connection to the repository.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    #[error("connect to the repository {server}: {reason}")]
    Connect { server: String, reason: String },
    #[error("connect to the repository {server}: no connection within {} s", deadline.as_secs())]
    Deadline { server: String, deadline: Duration },
}

/// The repository, with the connections that are open to it.
#[derive(Clone)]
pub struct Repository {
    conninfo: ConnInfo,
    stores: Pool,
    questions: Pool,
    deadline: Duration,
}

impl Repository {
    /// Connections are made when they are first needed: at most `max_connections` for stores and one for
    /// questions. `deadline` is for making one.
    pub fn new(conninfo: ConnInfo, max_connections: usize, deadline: Duration) -> Self {
        Self {
            stores: pool(&conninfo, max_connections, deadline),
            questions: pool(&conninfo, 1, deadline),
            conninfo,
            deadline,
        }
    }

    pub fn conninfo(&self) -> &ConnInfo {
        &self.conninfo
    }

    /// Whether both are the same connections.
    pub fn is_same(&self, other: &Self) -> bool {
        std::ptr::eq(self.stores.manager(), other.stores.manager())
    }

    /// One of the connections for stores. Waits for as long as all are busy, in the order of asking: what
    /// limits the wait is the work before it, and that has deadlines.
    ///
    /// # Errors
    /// When a connection cannot be made.
    pub async fn store_connection(&self) -> Result<Object, RepositoryError> {
        self.stores.get().await.map_err(|error| self.error(error))
    }

    /// A store connection if one is free at once, without waiting in line.
    pub fn has_free_store_connection(&self) -> bool {
        let status = self.stores.status();
        status.waiting == 0 && (status.available > 0 || status.size < status.max_size)
    }

    /// The connection for short questions.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn question_connection(&self) -> Result<Object, RepositoryError> {
        self.questions.get().await.map_err(|error| self.error(error))
    }

    /// Lets connections end once their present users are done.
    pub fn close(&self) {
        self.stores.close();
        self.questions.close();
    }

    fn error(&self, error: PoolError) -> RepositoryError {
        let server = self.conninfo.describe();
        let reason = match error {
            PoolError::Timeout(_) => {
                return RepositoryError::Deadline { server, deadline: self.deadline };
            }
            PoolError::Backend(error) => causes(&error),
            other => causes(&other),
        };
        RepositoryError::Connect { server, reason }
    }
}

fn pool(conninfo: &ConnInfo, max_size: usize, deadline: Duration) -> Pool {
    let manager = Manager::from_connect(
        conninfo.config().clone(),
        Dial(Arc::new(conninfo.clone())),
        ManagerConfig { recycling_method: RecyclingMethod::Fast },
    );
    Pool::builder(manager)
        .max_size(max_size)
        .runtime(Runtime::Tokio1)
        .create_timeout(Some(deadline))
        .recycle_timeout(Some(deadline))
        .build()
        .expect("a pool with timeouts has a runtime")
}

/// deadpool's way to our connecting.
struct Dial(Arc<ConnInfo>);

type Dialled<'a> =
    Pin<Box<dyn Future<Output = Result<(Client, JoinHandle<()>), tokio_postgres::Error>> + Send + 'a>>;

impl Connect for Dial {
    fn connect(&self, _config: &tokio_postgres::Config) -> Dialled<'_> {
        Box::pin(session::connect_pooled(&self.0, "PoWA collector"))
    }
}
