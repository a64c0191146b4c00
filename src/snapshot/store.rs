//! Putting one snapshot into the repository: its rows and `powa_take_snapshot`, in one transaction. All of it
//! or nothing.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::{CopyInSink, Error};

use super::file::Mark;
use super::spool::{Part, Spool, SpoolError};
use super::{BACK, SAVEPOINT};
use crate::config::Timeouts;
use crate::postgres::extension::{Powa, Table, in_schema};
use crate::postgres::repository::Object;
use crate::postgres::session::{ends_connection, start};
use crate::postgres::text::causes;
use crate::server::ServerId;

/// Why a snapshot could not be stored. Nothing of it is in the repository then.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("store in the repository: {}", causes(.0))]
    Connection(#[from] Error),
    #[error("powa_take_snapshot({server}): {}", causes(source))]
    TakeSnapshot { server: ServerId, source: Error },
    /// The server refused a `COPY` that it should have taken; the connection does not survive that.
    #[error("copy into {}: {}", table.quoted(), causes(source))]
    Refused { table: Table, source: Error },
    #[error("the repository takes no changes: it is a standby or read-only")]
    ReadOnly,
    /// It waits for another repository than this one.
    #[error("it is for the repository {expected}, and not for {found}")]
    OtherRepository { expected: String, found: String },
    #[error("another snapshot of server {0} is being stored")]
    Busy(ServerId),
    /// Whether an earlier attempt has stored it is not settled yet.
    #[error("the transaction of an earlier attempt is still in progress")]
    InDoubt,
    #[error("store in the repository: no answer within {} s", .0.as_secs())]
    NoAnswer(Duration),
    #[error("store in the repository: not done within {} s", .0.as_secs())]
    Deadline(Duration),
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

/// How a store went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Errors that `powa_take_snapshot` met and wrote down.
    pub errors: i32,
    /// Whether an earlier attempt had stored it, whose answer was lost.
    pub was_there: bool,
}

/// Where a snapshot goes.
#[derive(Debug, Clone, Copy)]
pub struct Destination<'a> {
    pub powa: &'a Powa,
    pub server: ServerId,
    /// The repository that it is for.
    pub repository: &'a str,
    pub application_name: &'a str,
}

impl StoreError {
    /// Whether it says nothing of the snapshot, but of the repository as it is now: the same may succeed later.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Connection(error) | Self::TakeSnapshot { source: error, .. } => {
                ends_connection(error) || is_passing(error)
            }
            Self::ReadOnly | Self::Busy(_) | Self::InDoubt | Self::NoAnswer(_) | Self::Deadline(_) => true,
            Self::Refused { .. } | Self::OtherRepository { .. } | Self::Spool(_) => false,
        }
    }
}

/// Whether the server lacks something just now: room on its disk, memory, its peace.
fn is_passing(error: &Error) -> bool {
    const CLASSES: [&str; 4] = ["40", "53", "57", "58"];
    error.as_db_error().is_some_and(|told| {
        let code = told.code().code();
        CLASSES.iter().any(|class| code.starts_with(class))
    })
}

/// Stores a snapshot. `parts`: all of the spool's. Gives the connection back, for what follows.
///
/// # Errors
/// When the snapshot is not stored. The connection then goes back by itself, if it is good for another.
pub async fn store(
    mut client: Object,
    destination: Destination<'_>,
    spool: &mut Spool,
    parts: Vec<Part>,
    timeouts: Timeouts,
) -> Result<(Stored, Object), StoreError> {
    let deadline = timeouts.store;
    let storing = transaction(&mut client, destination, spool, parts, timeouts.query);
    let error = match timeout(deadline, storing).await {
        Ok(Ok(stored)) => return Ok((stored, client)),
        Ok(Err(error)) => error,
        Err(_) => StoreError::Deadline(deadline),
    };
    let is_clean = match &error {
        StoreError::TakeSnapshot { .. } | StoreError::Busy(_) => {
            matches!(timeout(deadline, client.batch_execute("ROLLBACK")).await, Ok(Ok(())))
        }
        _ => false,
    };
    if !is_clean {
        // Closing the connection is the surest rollback.
        drop(Object::take(client));
    }
    Err(error)
}

async fn transaction(
    client: &mut Object,
    destination: Destination<'_>,
    spool: &mut Spool,
    parts: Vec<Part>,
    first_answer: Duration,
) -> Result<Stored, StoreError> {
    let Destination { powa, server, repository, application_name } = destination;
    // One that does not even answer this is not waited for as long as a store may take.
    let session = match timeout(first_answer, name_session(client, application_name)).await {
        Ok(session) => session?,
        Err(_) => return Err(StoreError::NoAnswer(first_answer)),
    };
    if session.is_read_only {
        return Err(StoreError::ReadOnly);
    }
    if session.repository != repository {
        let (expected, found) = (repository.to_owned(), session.repository);
        return Err(StoreError::OtherRepository { expected, found });
    }
    if let Some(mark) = spool.mark() {
        if was_stored(client, powa, server, mark).await? {
            return Ok(Stored { errors: 0, was_there: true });
        }
    }
    let statement = in_schema(include_str!("../../sql/repository/lock_server.sql"), &powa.schema);
    let statement = client.prepare_cached(&statement).await?;
    let begun = start(client.batch_execute("BEGIN"));
    let locked = client.query_opt(&statement, &[&server.0]).await;
    begun.await?;
    if let Err(error) = locked {
        let is_busy = error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE);
        return Err(if is_busy { StoreError::Busy(server) } else { error.into() });
    }
    let mut targets = Vec::new();
    for part in lock_tables(client, parts, spool).await? {
        let target = part.target.quoted();
        match copy(client, part, spool).await {
            Ok(()) => targets.push(target),
            Err(StoreError::Connection(error)) => go_without(client, &target, error, spool).await?,
            Err(error) => return Err(error),
        }
    }
    let statement = in_schema(include_str!("../../sql/repository/take_snapshot.sql"), &powa.schema);
    let statement = client.prepare_cached(&statement).await?;
    let row = client.query_one(&statement, &[&server.0]).await.map_err(|source| {
        if ends_connection(&source) {
            StoreError::Connection(source)
        } else {
            StoreError::TakeSnapshot { server, source }
        }
    })?;
    // What PoWA could not take over would stay for good, more of it with each snapshot.
    let errors: i32 = row.get("errors");
    if errors > 0 {
        for target in &targets {
            client.execute(&format!("DELETE FROM {target} WHERE srvid = $1"), &[&server.0]).await?;
        }
    }
    if !spool.errors.is_empty() {
        let statement = in_schema(include_str!("../../sql/repository/append_errors.sql"), &powa.schema);
        client.execute(&statement, &[&server.0, &spool.errors]).await?;
    }
    // powa_take_snapshot leaves a name of its own. Who sees the snapshot sees the right name again.
    let named = start(name_session(client, application_name));
    // If its answer does not reach us, this tells afterwards what has become of it.
    let sequence = row.get::<_, Option<i64>>("sequence").unwrap_or_default();
    spool.set_mark(Mark { transaction: row.get("transaction"), sequence }).await?;
    let committed = start(client.batch_execute("COMMIT"));
    named.await?;
    committed.await?;
    Ok(Stored { errors, was_there: false })
}

/// Whether the transaction that was about to store a snapshot has done so. When it is so long ago that the server no
/// longer knows, or unknown to a server that has taken over, the number of snapshots tells.
async fn was_stored(client: &Object, powa: &Powa, server: ServerId, mark: Mark) -> Result<bool, StoreError> {
    let statement = in_schema(include_str!("../../sql/repository/earlier_store.sql"), &powa.schema);
    let row = match client.query_one(&statement, &[&server.0, &mark.transaction, &mark.sequence]).await {
        Ok(row) => row,
        // This server has not had as many transactions: it is not the one that began it, and did not receive it.
        Err(error) if error.code() == Some(&SqlState::INVALID_PARAMETER_VALUE) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    let is_later = row.get::<_, Option<bool>>("is_later").unwrap_or(false);
    match row.get::<_, Option<&str>>("state") {
        Some("in progress") => Err(StoreError::InDoubt),
        Some("aborted") => Ok(false),
        _ => Ok(is_later),
    }
}

/// Locks the tables that rows are copied into. Gives those parts whose table is there and may be written.
///
/// The locks come first because tokio-postgres loses the connection when the server refuses a `COPY` before it
/// reads from it: two Syncs are sent where the server then expects one
/// (<https://github.com/rust-postgres/rust-postgres/pull/1337>). What a `COPY` is refused for, a table that is
/// not there, a missing grant, a lock that is not to be had in time, the lock is refused for as well.
async fn lock_tables(client: &Object, parts: Vec<Part>, spool: &mut Spool) -> Result<Vec<Part>, StoreError> {
    if parts.is_empty() {
        return Ok(parts);
    }
    let lock = |targets: &str| format!("{SAVEPOINT}; LOCK TABLE {targets} IN ROW EXCLUSIVE MODE");
    let targets: Vec<String> = parts.iter().map(|part| part.target.quoted()).collect();
    match client.batch_execute(&lock(&targets.join(", "))).await {
        Ok(()) => return Ok(parts),
        Err(error) if is_of_one_table(client, &error) => client.batch_execute(BACK).await?,
        Err(error) => return Err(error.into()),
    }
    // One of them cannot be had. All but that one, then.
    let mut locked = Vec::with_capacity(parts.len());
    for (part, target) in parts.into_iter().zip(targets) {
        match client.batch_execute(&lock(&target)).await {
            Ok(()) => locked.push(part),
            Err(error) => go_without(client, &target, error, spool).await?,
        }
    }
    Ok(locked)
}

/// Goes on without what one table does not take, if it is no more than that.
async fn go_without(
    client: &Object,
    target: &str,
    error: Error,
    spool: &mut Spool,
) -> Result<(), StoreError> {
    if !is_of_one_table(client, &error) {
        return Err(error.into());
    }
    client.batch_execute(BACK).await?;
    spool.errors.push(format!("{target}: {}", causes(&error)));
    Ok(())
}

fn is_of_one_table(client: &Object, error: &Error) -> bool {
    !ends_connection(error) && !is_passing(error) && !client.is_closed()
}

/// Copies the rows of one table, which is locked, behind a savepoint to return to when that fails.
async fn copy(client: &Object, mut part: Part, spool: &mut Spool) -> Result<(), StoreError> {
    let target = part.target.quoted();
    let statement = client.prepare_cached(&format!("COPY {target} FROM STDIN")).await?;
    let saved = start(client.batch_execute(SAVEPOINT));
    let begun = client.copy_in(&statement).await;
    saved.await?;
    let sink: CopyInSink<Bytes> = match begun {
        Ok(sink) => sink,
        Err(source) if !ends_connection(&source) => {
            return Err(StoreError::Refused { table: part.target, source });
        }
        Err(error) => return Err(error.into()),
    };
    let mut sink = pin!(sink);
    while let Some(data) = spool.read(&mut part).await? {
        if sink.send(data).await.is_err() {
            // The server has already said why: the answer tells.
            break;
        }
    }
    sink.finish().await?;
    Ok(())
}

/// Writes down why there is no snapshot, in place of what was written there before.
///
/// # Errors
/// Those of the connection.
pub async fn record_failure(
    client: &Object,
    powa: &Powa,
    server: ServerId,
    errors: &[String],
) -> Result<(), Error> {
    let statement = in_schema(include_str!("../../sql/repository/replace_errors.sql"), &powa.schema);
    client.execute(&statement, &[&server.0, &errors]).await?;
    Ok(())
}

/// What a session is with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Whether it takes no changes: a server may have become a standby, or read-only, since the session began.
    pub is_read_only: bool,
    /// The repository, as it names itself: the cluster's own number and the database.
    pub repository: String,
}

/// Gives a pooled session the name of who uses it now, and says what it is with.
///
/// # Errors
/// Those of the connection.
pub async fn name_session(client: &Object, application_name: &str) -> Result<Place, Error> {
    let statement = client.prepare_cached(include_str!("../../sql/repository/name_session.sql")).await?;
    let row = client.query_one(&statement, &[&application_name]).await?;
    Ok(Place { is_read_only: row.get("is_read_only"), repository: row.get("repository") })
}
