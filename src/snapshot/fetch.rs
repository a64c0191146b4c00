//! Reading one snapshot from a monitored server.
//!
//! What describes the whole server is read in one transaction whose statements are all sent before the first
//! answer is awaited. It ends with its last row and never waits for the repository. After each datasource the
//! transaction returns to a savepoint, failed or not, so that one that fails costs only itself.
//!
//! What describes single databases is read after that, over a connection to each, a few side by side.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_postgres::{SimpleQueryMessage, Statement};
use tokio_util::sync::CancellationToken;

use super::plan::{Plan, Refresh};
use super::reading::{self, Database, Reading};
use super::spool::{Spool, SpoolError};
use super::{BACK, SAVEPOINT};
use crate::config::{Settings, Timeouts};
use crate::postgres::conninfo::ConnInfo;
use crate::postgres::extension::{self, PowaVersion};
use crate::postgres::session::{Prepared, Session, SessionError, ends_connection, prepare, start};
use crate::postgres::text::{causes, one_line};

/// How much of a datasource is gathered before it goes to the spool, in bytes.
const CHUNK_BYTES: usize = 64 << 10;

/// The statement that lists a server's databases.
pub const DATABASES: &str = include_str!("../../sql/remote/databases.sql");

/// A session with a monitored server, with what is prepared there.
pub struct Remote {
    /// Dropped before the statements: each one that is dropped in a session is taken back there.
    pub session: Session,
    conninfo: ConnInfo,
    application_name: String,
    /// By their text: a few dozen, in each of a thousand sessions.
    prepared: Vec<(Box<str>, Statement)>,
}

/// Why a server could not be read. A datasource that fails is no such reason.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("read from the monitored server: {}", causes(.0))]
    Connection(#[from] tokio_postgres::Error),
    #[error("read from the monitored server: not done within {} s", .0.as_secs())]
    Deadline(Duration),
    #[error("read {what} from the monitored server: not done within {} s", deadline.as_secs())]
    DatasourceDeadline { what: String, deadline: Duration },
    #[error(
        "the monitored server has become {}: looking for it again among its hosts",
        if *is_standby { "a standby" } else if *is_read_only { "read-only" } else { "a primary that takes changes" }
    )]
    OtherRole { is_standby: bool, is_read_only: bool },
    #[error(
        "database {database} of the monitored server has no extension powa: CREATE EXTENSION powa CASCADE"
    )]
    NoPowa { database: String },
    #[error(
        "PoWA is {remote} on the monitored server and {repository} on the repository server: \
         both must be of the same major.minor version"
    )]
    Version { repository: PowaVersion, remote: PowaVersion },
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("broken off by a stop")]
    Stopped,
}

impl FetchError {
    /// Whether the server may still be at work on what nobody waits for any more.
    fn leaves_work_behind(&self) -> bool {
        matches!(self, Self::Deadline(_) | Self::DatasourceDeadline { .. } | Self::Stopped)
    }

    /// Whether the session can be used no more.
    pub fn ends_session(&self) -> bool {
        !matches!(self, Self::NoPowa { .. } | Self::Version { .. })
    }
}

impl Remote {
    /// Opens the session that a worker keeps.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn open(
        conninfo: ConnInfo,
        application_name: String,
        deadline: Duration,
    ) -> Result<Self, SessionError> {
        let (remote, _) = Self::open_preparing(conninfo, application_name, deadline, &[]).await?;
        Ok(remote)
    }

    /// The same, as [`Session::open_preparing`].
    async fn open_preparing(
        conninfo: ConnInfo,
        application_name: String,
        deadline: Duration,
        statements: &[&str],
    ) -> Result<(Self, Vec<Prepared>), SessionError> {
        let (session, prepared) =
            Session::open_preparing(&conninfo, &application_name, deadline, statements).await?;
        let mut remote = Self { session, conninfo, application_name, prepared: Vec::new() };
        remote.keep(statements, &prepared);
        Ok((remote, prepared))
    }

    async fn reopen(&mut self, deadline: Duration) -> Result<(), SessionError> {
        *self = Self::open(self.conninfo.clone(), self.application_name.clone(), deadline).await?;
        Ok(())
    }

    /// Whether this is how one would connect today.
    pub fn is_reached_by(&self, conninfo: &ConnInfo) -> bool {
        self.conninfo == *conninfo
    }

    fn database(&self) -> String {
        self.conninfo.dbname.clone()
    }

    /// Prepares statements that are not prepared yet, in one round trip. Gives what became of each, in their
    /// order.
    async fn prepare(&mut self, statements: &[&str]) -> Vec<Prepared> {
        let known = |sql: &str| self.statement(sql).cloned();
        let new: Vec<&str> = statements.iter().copied().filter(|sql| known(sql).is_none()).collect();
        let mut new = prepare(&self.session.client, &new).await.into_iter();
        let all = statements.iter().filter_map(|sql| known(sql).map(Ok).or_else(|| new.next()));
        let all: Vec<Prepared> = all.collect();
        self.keep(statements, &all);
        all
    }

    fn keep(&mut self, statements: &[&str], prepared: &[Prepared]) {
        for (sql, prepared) in statements.iter().zip(prepared) {
            if let (Ok(statement), None) = (prepared, self.statement(sql)) {
                self.prepared.push(((*sql).into(), statement.clone()));
            }
        }
        self.prepared.shrink_to_fit();
    }

    fn statement(&self, sql: &str) -> Option<&Statement> {
        self.prepared.iter().find(|(text, _)| **text == *sql).map(|(_, statement)| statement)
    }
}

/// Reads a snapshot into `spool`: everything that `plan` names, catalogs that are due or that `refresh` asks for.
///
/// # Errors
/// When the server as a whole cannot be read. What single datasources say is in the spool's errors.
pub async fn fetch(
    remote: &mut Remote,
    plan: &Plan,
    refresh: Option<&Refresh>,
    settings: &Settings,
    spool: Spool,
    stop: &CancellationToken,
) -> Result<Spool, FetchError> {
    let spool = Mutex::new(spool);
    spool.lock().await.errors.extend(plan.errors.iter().cloned());
    let deadline = settings.timeouts.fetch;
    let reading = read_server(remote, plan, settings, &spool);
    let (time, databases) = match until(deadline, stop, reading).await {
        Err(error) if error.leaves_work_behind() => {
            remote.session.cancel(settings.timeouts.close).await;
            return Err(error);
        }
        read => read?,
    };
    read_databases(remote, plan, refresh, settings, stop, &time, databases, &spool).await?;
    let mut spool = spool.into_inner();
    spool.finish().await?;
    spool.time = time;
    Ok(spool)
}

/// Reads what describes the whole server. Gives the snapshot's time, as the server says it, and its databases.
async fn read_server(
    remote: &mut Remote,
    plan: &Plan,
    settings: &Settings,
    spool: &Mutex<Spool>,
) -> Result<(String, Vec<Database>), FetchError> {
    let reads_databases = !plan.db_modules.is_empty() || !plan.catalogs.is_empty();
    let mut prepared = remote.prepare(&[extension::INSTALLED, DATABASES]).await.into_iter();
    let (Some(installed), Some(list)) = (prepared.next().transpose()?, prepared.next().transpose()?) else {
        unreachable!("each statement is prepared or refused")
    };
    let client = &remote.session.client;
    let installed = extension::installed(client, &installed);
    let (extensions, databases) = futures_util::try_join!(installed, async {
        if reads_databases { client.query(&list, &[]).await } else { Ok(Vec::new()) }
    })?;
    let powa = extension::powa(&extensions);
    if powa != remote.session.facts.powa {
        // It was created or upgraded since: the session's settings are those for another version.
        remote.reopen(settings.timeouts.connect).await?;
    }
    let powa = powa.ok_or_else(|| FetchError::NoPowa { database: remote.database() })?;
    if !powa.version.is_compatible(&plan.powa.version) {
        return Err(FetchError::Version { repository: plan.powa.version.clone(), remote: powa.version });
    }

    let mut wanted = Vec::new();
    for datasource in plan.datasources.iter() {
        match reading::of_server(plan, datasource, &powa.schema, &extensions) {
            Ok(reading) => wanted.push(reading),
            Err(reason) => spool.lock().await.errors.push(format!("{}: {reason}", datasource.name)),
        }
    }
    let prepared = remote.prepare(&copies(&wanted)).await;
    let time = read(&remote.session, &wanted, prepared, settings.timeouts, spool).await?;
    let databases =
        databases.iter().map(|row| Database { oid: row.get("oid"), name: row.get("datname") }).collect();
    Ok((time, databases))
}

fn copies(readings: &[Reading]) -> Vec<&str> {
    readings.iter().map(|reading| reading.copy.as_str()).collect()
}

/// Reads in one transaction and one round trip. Gives the transaction's time. `prepared`: what became of the
/// readings' statements.
async fn read(
    session: &Session,
    readings: &[Reading],
    prepared: Vec<Prepared>,
    timeouts: Timeouts,
    spool: &Mutex<Spool>,
) -> Result<String, FetchError> {
    let mut wanted = Vec::with_capacity(readings.len());
    for (reading, prepared) in readings.iter().zip(prepared) {
        match prepared {
            Ok(statement) => wanted.push((reading, statement)),
            Err(error) => {
                let reason = refusal(error)?;
                spool.lock().await.errors.push(format!("{}: {reason}", reading.name));
            }
        }
    }

    let client = &session.client;
    let seconds = timeouts.datasource.as_secs().to_string();
    let begin = include_str!("../../sql/remote/begin.sql").replace("{seconds}", &seconds);
    let begin = start(client.simple_query(&begin));
    let mut pending = Vec::with_capacity(wanted.len());
    for (reading, statement) in &wanted {
        let copy = start(client.copy_out(statement));
        let back = start(client.batch_execute(BACK));
        // A cleanup may change something: what it did must stay, and if it fails the transaction must go on.
        // A second savepoint of the same name does that: it is made only when the cleanup succeeded, and the
        // way back leads to it, or else to the first.
        let cleanup = match &reading.cleanup {
            Some(Ok(cleanup)) => Some((
                start(client.batch_execute(cleanup)),
                start(client.batch_execute(SAVEPOINT)),
                start(client.batch_execute(BACK)),
            )),
            _ => None,
        };
        pending.push((reading, copy, back, cleanup));
    }
    let commit = start(client.batch_execute("COMMIT"));

    let begun = timeout(timeouts.query, begin).await.map_err(|_| FetchError::Deadline(timeouts.query))??;
    let begun = begun.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let said = |column| begun.and_then(|row| row.get(column)).unwrap_or_default();
    let (is_standby, is_read_only) = (said(1) == "t", said(2) == "t");
    if session.has_other_role(is_standby, is_read_only) {
        return Err(FetchError::OtherRole { is_standby, is_read_only });
    }
    let time = said(0).to_owned();
    for (reading, copy, back, cleanup) in pending {
        let section = spool.lock().await.begin(reading.target.clone());
        // The server itself ends a statement that takes too long. What does not come then either does not come at all.
        let deadline = timeouts.datasource + timeouts.close;
        let draining = async {
            match copy.await {
                Ok(rows) => drain(rows, session.facts.is_sql_ascii, spool, section).await,
                Err(error) => Err(error.into()),
            }
        };
        let outcome = timeout(deadline, draining)
            .await
            .map_err(|_| FetchError::DatasourceDeadline { what: reading.name.clone(), deadline })?;
        if let Err(error) = outcome {
            let FetchError::Connection(error) = error else {
                return Err(error);
            };
            let reason = refusal(error)?;
            let mut spool = spool.lock().await;
            spool.discard(section);
            spool.errors.push(format!("{}: {reason}", reading.name));
        }
        back.await?;
        if let Some((cleanup, savepoint, back)) = cleanup {
            if let Err(error) = cleanup.await {
                let reason = refusal(error)?;
                spool.lock().await.errors.push(format!("{}: cleanup: {reason}", reading.name));
            }
            // Refused after a cleanup that failed, as it should be.
            let _ = savepoint.await;
            back.await?;
        }
        if let Some(Err(reason)) = &reading.cleanup {
            spool.lock().await.errors.push(format!("{}: cleanup: {reason}", reading.name));
        }
    }
    commit.await?;
    Ok(time)
}

/// Brings the rows of one datasource to the spool.
async fn drain(
    rows: impl Stream<Item = Result<Bytes, tokio_postgres::Error>>,
    is_sql_ascii: bool,
    spool: &Mutex<Spool>,
    section: super::spool::SectionId,
) -> Result<(), FetchError> {
    let mut rows = std::pin::pin!(rows);
    let mut chunk = Vec::new();
    let mut count = 0;
    while let Some(row) = rows.next().await {
        let row = row?;
        if is_sql_ascii {
            // Here come bytes as they are; the repository takes only UTF-8.
            chunk.extend_from_slice(String::from_utf8_lossy(&row).as_bytes());
        } else {
            chunk.extend_from_slice(&row);
        }
        count += 1;
        if chunk.len() >= CHUNK_BYTES {
            spool.lock().await.append(section, &chunk, count).await?;
            chunk.clear();
            count = 0;
        }
    }
    spool.lock().await.append(section, &chunk, count).await?;
    Ok(())
}

/// What the server says against one statement; an error when it is the connection that failed.
fn refusal(error: tokio_postgres::Error) -> Result<String, FetchError> {
    match error.as_db_error() {
        Some(told) if !ends_connection(&error) => Ok(one_line(told.message())),
        _ => Err(error.into()),
    }
}

#[expect(clippy::too_many_arguments, reason = "the whole of one fetch, in one place")]
async fn read_databases(
    remote: &Remote,
    plan: &Plan,
    refresh: Option<&Refresh>,
    settings: &Settings,
    stop: &CancellationToken,
    time: &str,
    databases: Vec<Database>,
    spool: &Mutex<Spool>,
) -> Result<(), FetchError> {
    // One that ends the snapshot ends all, but each is waited for: it takes back its query.
    let stop = &stop.child_token();
    let mut ending = Ok(());
    let mut reading = stream::iter(databases)
        .map(|database| {
            let readings = reading::of_database(plan, refresh, time, &database);
            async move {
                if readings.is_empty() {
                    return Ok(());
                }
                match read_database(remote, &database, readings, settings, stop, spool).await {
                    Err(error @ (FetchError::Stopped | FetchError::Spool(_))) => Err(error),
                    Err(error) => {
                        spool.lock().await.errors.push(format!("database {}: {error}", database.name));
                        Ok(())
                    }
                    Ok(()) => Ok(()),
                }
            }
        })
        .buffer_unordered(settings.database_connections);
    while let Some(outcome) = reading.next().await {
        if outcome.is_err() {
            stop.cancel();
            ending = ending.and(outcome);
        }
    }
    ending
}

async fn read_database(
    remote: &Remote,
    database: &Database,
    readings: Vec<Reading>,
    settings: &Settings,
    stop: &CancellationToken,
    spool: &Mutex<Spool>,
) -> Result<(), FetchError> {
    let conninfo = remote.session.database(&database.name);
    let (name, copies) = (remote.application_name.clone(), copies(&readings));
    let opening = Remote::open_preparing(conninfo, name, settings.timeouts.connect, &copies);
    let (here, prepared) = match stop.run_until_cancelled(opening).await {
        None => return Err(FetchError::Stopped),
        Some(Ok(opened)) => opened,
        Some(Err(error)) => {
            spool.lock().await.errors.push(format!("database {}: {error}", database.name));
            return Ok(());
        }
    };
    let reading = read(&here.session, &readings, prepared, settings.timeouts, spool);
    match until(settings.timeouts.fetch, stop, reading).await {
        Err(error) if error.leaves_work_behind() => {
            here.session.cancel(settings.timeouts.close).await;
            Err(error)
        }
        read => read.map(|_| ()),
    }
}

/// Awaits a reading for as long as it may take and nobody stops it.
async fn until<T>(
    deadline: Duration,
    stop: &CancellationToken,
    reading: impl Future<Output = Result<T, FetchError>>,
) -> Result<T, FetchError> {
    match stop.run_until_cancelled(timeout(deadline, reading)).await {
        None => Err(FetchError::Stopped),
        Some(Err(_)) => Err(FetchError::Deadline(deadline)),
        Some(Ok(read)) => read,
    }
}
