//! Putting one snapshot into the repository: its rows and `powa_take_snapshot`, in one transaction. All of it
//! or nothing.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt;
use tokio::time::timeout;
use tokio_postgres::{CopyInSink, Error};

use super::spool::{Part, Spool, SpoolError};
use crate::postgres::extension::{Powa, Table, in_schema};
use crate::postgres::repository::Object;
use crate::postgres::session::ends_connection;
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
}

/// Stores a snapshot. Gives the connection back, for what follows.
///
/// # Errors
/// When the snapshot is not stored. The connection then goes back by itself, if it is good for another.
pub async fn store(
    mut client: Object,
    powa: &Powa,
    server: ServerId,
    application_name: &str,
    spool: &mut Spool,
    deadline: Duration,
) -> Result<(Stored, Object), StoreError> {
    let storing = transaction(&mut client, powa, server, application_name, spool);
    let error = match timeout(deadline, storing).await {
        Ok(Ok(stored)) => return Ok((stored, client)),
        Ok(Err(error)) => error,
        Err(_) => StoreError::Deadline(deadline),
    };
    let is_clean = match &error {
        StoreError::TakeSnapshot { .. } => {
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
    powa: &Powa,
    server: ServerId,
    application_name: &str,
    spool: &mut Spool,
) -> Result<Stored, StoreError> {
    if name_session(client, application_name).await? == Access::ReadOnly {
        return Err(StoreError::ReadOnly);
    }
    client.batch_execute("BEGIN").await?;
    let mut targets = Vec::new();
    for part in spool.parts() {
        let target = part.target.quoted();
        match copy(client, part, spool).await {
            Ok(()) => targets.push(target),
            Err(StoreError::Connection(error)) if !ends_connection(&error) && !client.is_closed() => {
                client.batch_execute("ROLLBACK TO SAVEPOINT datasource").await?;
                spool.errors.push(format!("{target}: {}", causes(&error)));
            }
            Err(error) => return Err(error),
        }
    }
    let statement = in_schema("SELECT {powa}.powa_take_snapshot($1)", &powa.schema);
    let statement = client.prepare_cached(&statement).await?;
    let row = client.query_one(&statement, &[&server.0]).await.map_err(|source| {
        if ends_connection(&source) {
            StoreError::Connection(source)
        } else {
            StoreError::TakeSnapshot { server, source }
        }
    })?;
    // What PoWA could not take over would stay for good, more of it with each snapshot.
    if row.get::<_, i32>(0) > 0 {
        for target in &targets {
            client.execute(&format!("DELETE FROM {target} WHERE srvid = $1"), &[&server.0]).await?;
        }
    }
    if !spool.errors.is_empty() {
        let statement = in_schema(include_str!("../../sql/repository/append_errors.sql"), &powa.schema);
        client.execute(&statement, &[&server.0, &spool.errors]).await?;
    }
    // powa_take_snapshot leaves a name of its own. Who sees the snapshot sees the right name again.
    name_session(client, application_name).await?;
    client.batch_execute("COMMIT").await?;
    Ok(Stored { errors: row.get(0) })
}

/// Copies the rows of one table, behind a savepoint to return to when that fails.
///
/// The lock comes first because tokio-postgres loses the connection when the server refuses a `COPY` before it
/// reads from it: two Syncs are sent where the server then expects one
/// (<https://github.com/rust-postgres/rust-postgres/pull/1337>). What a `COPY` is refused for, a table that is
/// not there, a missing grant, a lock that is not to be had in time, the lock is refused for as well.
async fn copy(client: &Object, mut part: Part, spool: &mut Spool) -> Result<(), StoreError> {
    let target = part.target.quoted();
    let prepare = format!("SAVEPOINT datasource; LOCK TABLE {target} IN ROW EXCLUSIVE MODE");
    client.batch_execute(&prepare).await?;
    let statement = client.prepare_cached(&format!("COPY {target} FROM STDIN")).await?;
    let sink: CopyInSink<Bytes> = match client.copy_in(&statement).await {
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

/// What a session lets one do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    ReadWrite,
    ReadOnly,
}

/// Gives a pooled session the name of who uses it now, and says what it lets one do: a server may have become a standby,
/// or read-only, since the session began.
///
/// # Errors
/// Those of the connection.
pub async fn name_session(client: &Object, application_name: &str) -> Result<Access, Error> {
    let statement = client.prepare_cached(include_str!("../../sql/repository/name_session.sql")).await?;
    let row = client.query_one(&statement, &[&application_name]).await?;
    Ok(if row.get("is_read_only") { Access::ReadOnly } else { Access::ReadWrite })
}
