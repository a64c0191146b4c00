//! The repository's connections: a few for stores, and one for short questions that must not wait behind
//! them. The listener's own is made by the listener.
//!
//! When the repository is away, the first who notices it spares the others the wait: until somebody has found it back,
//! there are no connections, but for one try now and then.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deadpool::managed::{self, Metrics, PoolError, RecycleError, RecycleResult};
use deadpool_postgres::ClientWrapper;
use tokio::sync::watch;
use tokio::time::Instant;

use super::conninfo::ConnInfo;
use super::session::{self, SessionError};
use super::text::causes;
use crate::schedule;

/// Why there is no connection to the repository.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    #[error("the repository: {0}")]
    Session(SessionError),
    #[error("the repository: {0}")]
    Pool(String),
    #[error("the repository does not answer")]
    Away,
}

/// A connection that goes back to where it came from when it is dropped.
pub type Object = managed::Object<Sessions>;

/// The repository, with the connections that are open to it.
#[derive(Clone)]
pub struct Repository {
    conninfo: ConnInfo,
    stores: managed::Pool<Sessions>,
    questions: managed::Pool<Sessions>,
    health: Arc<Health>,
}

/// Whether the repository answers, as far as anybody knows.
#[derive(Debug)]
struct Health {
    is_away: watch::Sender<bool>,
    next: Mutex<Next>,
}

/// When a repository that is away is tried again, and how often that was in vain.
#[derive(Debug)]
struct Next {
    at: Instant,
    attempt: u32,
    is_being_tried: bool,
}

/// A repository that is away is tried again after this at the latest.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

impl Repository {
    /// Connections are made when they are first needed: at most `max_connections` for stores and one for
    /// questions. `deadline` is for making one.
    pub fn new(conninfo: ConnInfo, max_connections: usize, deadline: Duration) -> Self {
        Self {
            stores: pool(&conninfo, max_connections, deadline),
            questions: pool(&conninfo, 1, deadline),
            health: Arc::new(Health {
                is_away: watch::Sender::new(false),
                next: Mutex::new(Next { at: Instant::now(), attempt: 0, is_being_tried: false }),
            }),
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
    /// When a connection cannot be made, or the repository is away.
    pub async fn store_connection(&self) -> Result<Object, RepositoryError> {
        self.connection(&self.stores).await
    }

    /// A store connection if one is free at once, without waiting in line.
    pub fn has_free_store_connection(&self) -> bool {
        let status = self.stores.status();
        status.waiting == 0 && (status.available > 0 || status.size < status.max_size)
    }

    /// The connection for short questions.
    ///
    /// # Errors
    /// When it cannot be made, or the repository is away.
    pub async fn question_connection(&self) -> Result<Object, RepositoryError> {
        self.connection(&self.questions).await
    }

    async fn connection(&self, pool: &managed::Pool<Sessions>) -> Result<Object, RepositoryError> {
        let mut is_away = self.health.is_away.subscribe();
        let is_try = *is_away.borrow_and_update();
        if is_try && !self.may_try() {
            return Err(RepositoryError::Away);
        }
        tokio::select! {
            // On the heap: whoever waits here would have room for it at each level above.
            connection = Box::pin(pool.get()) => connection.map_err(error),
            // Who has waited in line does not go on with what somebody else has found to be in vain.
            Ok(_) = is_away.wait_for(|is_away| *is_away), if !is_try => Err(RepositoryError::Away),
        }
    }

    /// Whether it is time to try a repository that is away; for one at a time.
    fn may_try(&self) -> bool {
        let now = Instant::now();
        let mut next = self.next();
        let may_try = next.at <= now;
        if may_try {
            // For somebody else, should nothing come of this try.
            next.at = now + LONGEST_WAIT;
            next.is_being_tried = true;
        }
        may_try
    }

    /// Notes that the repository did not answer.
    pub fn note_away(&self) {
        let mut next = self.next();
        let was_away = self.health.is_away.send_replace(true);
        // Several bring the same news, but only one has tried again.
        if !was_away || std::mem::take(&mut next.is_being_tried) {
            next.attempt = if was_away { next.attempt.saturating_add(1) } else { 1 };
            next.at = Instant::now() + schedule::backoff(next.attempt, rand::random()).min(LONGEST_WAIT);
        }
    }

    /// Notes that the repository has answered.
    pub fn note_back(&self) {
        self.health.is_away.send_if_modified(std::mem::take);
    }

    /// Completes when the repository answers, as far as anybody knows.
    pub async fn back(&self) {
        // It cannot fail while we are here.
        let _ = self.health.is_away.subscribe().wait_for(|is_away| !is_away).await;
    }

    fn next(&self) -> MutexGuard<'_, Next> {
        self.health.next.lock().unwrap_or_else(PoisonError::into_inner)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::conninfo::Given;
    use crate::postgres::conninfo::environment::Environment;
    use crate::postgres::secret::Secret;

    #[tokio::test(start_paused = true)]
    async fn one_that_is_away_is_tried_by_one_at_a_time_and_less_often_each_time() {
        let given = Given::by_string(&Secret::new("host=/nowhere dbname=powa user=powa")).unwrap();
        let conninfo = ConnInfo::new(&given, &Environment::of(&[("HOME", "/nonexistent")])).unwrap();
        let repository = Repository::new(conninfo, 1, Duration::from_secs(1));
        let away = async || matches!(repository.store_connection().await, Err(RepositoryError::Away));
        repository.note_away();
        for most in [1, 2, 4, 8, 10, 10] {
            // Many bring the news.
            (0..3).for_each(|_| repository.note_away());
            let wait = repository.next().at - Instant::now();
            assert!(
                wait <= Duration::from_secs(most) && wait >= Duration::from_secs(most).min(LONGEST_WAIT) / 2
            );
            assert!(away().await);
            tokio::time::advance(wait).await;
            assert!(repository.may_try());
            assert!(away().await && !repository.may_try(), "somebody tries already");
            repository.note_away();
        }
        repository.note_back();
        repository.back().await;
        assert!(!away().await);
    }
}
