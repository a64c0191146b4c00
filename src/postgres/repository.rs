//! The repository's connections: a few for stores, and one for short questions that must not wait behind
//! them. The listener's own is made by the listener.

use std::time::Duration;

use deadpool::managed::{self, Metrics, PoolError, RecycleError, RecycleResult};
use deadpool_postgres::ClientWrapper;

use super::conninfo::ConnInfo;
use super::session::{self, SessionError};
use super::text::causes;

/// Why there is no connection to the repository.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    #[error("the repository: {0}")]
    Session(SessionError),
    #[error("the repository: {0}")]
    Pool(String),
}

/// A connection that goes back to where it came from when it is dropped.
pub type Object = managed::Object<Sessions>;

/// The repository, with the connections that are open to it.
#[derive(Clone)]
pub struct Repository {
    conninfo: ConnInfo,
    stores: managed::Pool<Sessions>,
    questions: managed::Pool<Sessions>,
}

impl Repository {
    /// Connections are made when they are first needed: at most `max_connections` for stores and one for
    /// questions. `deadline` is for making one.
    pub fn new(conninfo: ConnInfo, max_connections: usize, deadline: Duration) -> Self {
        Self {
            stores: pool(&conninfo, max_connections, deadline),
            questions: pool(&conninfo, 1, deadline),
            conninfo,
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
        self.stores.get().await.map_err(error)
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
        self.questions.get().await.map_err(error)
    }

    /// Lets connections end once their present users are done.
    pub fn close(&self) {
        self.stores.close();
        self.questions.close();
    }
}

fn error(error: PoolError<SessionError>) -> RepositoryError {
    match error {
        PoolError::Backend(error) => RepositoryError::Session(error),
        other => RepositoryError::Pool(causes(&other)),
    }
}

fn pool(conninfo: &ConnInfo, max_size: usize, deadline: Duration) -> managed::Pool<Sessions> {
    let sessions = Sessions { conninfo: conninfo.clone(), deadline };
    managed::Pool::builder(sessions)
        .max_size(max_size)
        .build()
        .expect("a pool without timeouts needs no runtime")
}

/// How deadpool comes by sessions with the repository.
#[derive(Debug)]
pub struct Sessions {
    conninfo: ConnInfo,
    /// For each address.
    deadline: Duration,
}

impl managed::Manager for Sessions {
    type Type = ClientWrapper;
    type Error = SessionError;

    async fn create(&self) -> Result<ClientWrapper, SessionError> {
        // On the heap: everybody who waits for a connection would have the room for making one.
        let opening = session::open_pooled(&self.conninfo, "PoWA collector", self.deadline);
        let (client, task) = Box::pin(opening).await?;
        Ok(ClientWrapper::new(client, task))
    }

    async fn recycle(&self, client: &mut ClientWrapper, _: &Metrics) -> RecycleResult<SessionError> {
        if client.is_closed() { Err(RecycleError::message("the connection was closed")) } else { Ok(()) }
    }
}
