//! Reading one snapshot from a monitored server.
//!
//! What describes the whole server is read in one transaction whose statements are all sent before the first
//! answer is awaited. It ends with its last row and never waits for the repository. After each datasource the
//! transaction returns to a savepoint, failed or not, so that one that fails costs only itself.
//!
//! What describes single databases is read after that, over a connection to each, a few side by side.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt, future, stream};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_postgres::{CopyOutStream, SimpleQueryMessage, SimpleQueryRow, SimpleQueryStream, Statement};
use tokio_util::sync::CancellationToken;

use super::borrowed;
use super::plan::{Plan, Refresh};
use super::reading::{self, Database, Functions, Reading, Rows};
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
        "database {database} of the monitored server has no extension powa: CREATE EXTENSION powa CASCADE, as \
         {repository} on the repository server; with PoWA 5 there, none would be needed"
    )]
    NoPowa { database: String, repository: PowaVersion },
    #[error(
        "PoWA is {remote} on the monitored server and {repository} on the repository server: \
         both must be of the same major.minor version, unless that of the repository is 5"
    )]
    Version { repository: PowaVersion, remote: PowaVersion },
    /// What a cursor gives is text; other bytes only `COPY` can hand out.
    #[error("rows have bytes that are no UTF-8 text, which can only be read with PoWA on the server")]
    NotText,
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
        conninfo: &ConnInfo,
        application_name: String,
        deadline: Duration,
    ) -> Result<Self, SessionError> {
        let (remote, _) = Self::open_preparing(conninfo, application_name, deadline, &[]).await?;
        Ok(remote)
    }

    /// The same, as [`Session::open_preparing`].
    async fn open_preparing(
        conninfo: &ConnInfo,
        application_name: String,
        deadline: Duration,
        statements: &[&str],
    ) -> Result<(Self, Vec<Prepared>), SessionError> {
        let (session, prepared) =
            Session::open_preparing(conninfo, &application_name, deadline, statements).await?;
        let mut remote = Self { session, application_name, prepared: Vec::new() };
        remote.keep(statements, &prepared);
        Ok((remote, prepared))
    }

    async fn reopen(&mut self, deadline: Duration) -> Result<(), SessionError> {
        *self = Self::open(self.session.conninfo(), self.application_name.clone(), deadline).await?;
        Ok(())
    }

    /// Whether this is how one would connect today.
    pub fn is_reached_by(&self, conninfo: &ConnInfo) -> bool {
        self.session.conninfo() == conninfo
    }

    fn database(&self) -> String {
        self.session.conninfo().dbname.clone()
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

/// What was read, and how.
pub struct Fetch {
    pub spool: Spool,
    /// What was left out because the server does not have it, where nobody said that it should.
    pub skipped: Vec<String>,
    /// By the repository's definitions: why not by the server's own.
    pub borrowed: Option<String>,
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
) -> Result<Fetch, FetchError> {
    let spool = Mutex::new(spool);
    spool.lock().await.errors.extend(plan.errors.iter().cloned());
    let deadline = settings.timeouts.fetch;
    let reading = read_server(remote, plan, settings, &spool);
    let Whole { time, databases, skipped, borrowed } = match until(deadline, stop, reading).await {
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
    Ok(Fetch { spool, skipped, borrowed })
}

/// What is known of a server once what describes it as a whole is read.
struct Whole {
    /// The snapshot's, as the server says it.
    time: String,
    databases: Vec<Database>,
    skipped: Vec<String>,
    borrowed: Option<String>,
}

/// Reads what describes the whole server.
async fn read_server(
    remote: &mut Remote,
    plan: &Plan,
    settings: &Settings,
    spool: &Mutex<Spool>,
) -> Result<Whole, FetchError> {
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
    let functions = match (&powa, &plan.borrowed) {
        (Some(powa), _) if powa.version.is_compatible(&plan.powa.version) => Functions::Own(&powa.schema),
        (_, Some(blocks)) => Functions::Borrowed(blocks),
        (Some(powa), None) => {
            let (repository, remote) = (plan.powa.version.clone(), powa.version.clone());
            return Err(FetchError::Version { repository, remote });
        }
        (None, None) => {
            let repository = plan.powa.version.clone();
            return Err(FetchError::NoPowa { database: remote.database(), repository });
        }
    };

    let mut wanted = Vec::new();
    let mut skipped = Vec::new();
    for datasource in plan.datasources.iter() {
        let name = &datasource.name;
        match reading::of_server(plan, datasource, &functions, &extensions) {
            Ok(reading) => wanted.push(reading),
            Err(lack) if lack.is_allowed(&functions) => skipped.push(format!("{name} is left out: {lack}")),
            Err(lack) => spool.lock().await.errors.push(format!("{name}: {lack}")),
        }
    }
    let prepared = remote.prepare(&copies(&wanted)).await;
    let time = read(&remote.session, &wanted, prepared, settings.timeouts, spool).await?;
    let databases = databases.iter().map(|row| Database { oid: row.get("oid"), name: row.get("datname") });
    let databases =
        databases.filter(|database| !settings.excluded_databases.contains(&database.name)).collect();
    let borrowed = match (functions, &powa) {
        (Functions::Own(_), _) => None,
        (Functions::Borrowed(_), None) => Some("the server has no PoWA".to_owned()),
        (Functions::Borrowed(_), Some(powa)) => Some(format!("the server's PoWA is {}", powa.version)),
    };
    Ok(Whole { time, databases, skipped, borrowed })
}

/// What is to be prepared.
fn copies(readings: &[Reading]) -> Vec<&str> {
    let copies = readings.iter().filter_map(|reading| match &reading.rows {
        Rows::Copy(copy) => Some(copy.as_str()),
        Rows::Block { .. } => None,
    });
    copies.collect()
}

/// An answer that was asked for.
type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T, tokio_postgres::Error>> + Send + 'a>>;

/// The rows of one datasource, asked for.
enum Asked<'a> {
    Copy(Pending<'a, CopyOutStream>),
    Cursors { opened: Pending<'a, ()>, rows: Vec<Pending<'a, SimpleQueryStream>>, prefix: &'a str },
}

impl<'a> Asked<'a> {
    fn of(session: &'a Session, rows: &'a Rows, statement: Option<&'a Statement>) -> Self {
        let client = &session.client;
        match (rows, statement) {
            (Rows::Block { block, prefix }, _) => {
                let opened = start(client.batch_execute(block));
                let fetch = |cursor| {
                    let fetch = borrowed::fetch(cursor, "ALL");
                    start(async move { client.simple_query_raw(&fetch).await })
                };
                Self::Cursors { opened, rows: (1..=borrowed::CURSORS).map(fetch).collect(), prefix }
            }
            (Rows::Copy(_), Some(statement)) => Self::Copy(start(client.copy_out(statement))),
            (Rows::Copy(copy), None) => Self::Copy(start(client.copy_out(copy.as_str()))),
        }
    }

    /// Brings them to the spool.
    async fn drain(
        self,
        is_sql_ascii: bool,
        spool: &Mutex<Spool>,
        section: super::spool::SectionId,
    ) -> Result<(), FetchError> {
        match self {
            Self::Copy(rows) => {
                let rows = rows.await?.map_err(FetchError::from);
                drain(rows, is_sql_ascii, spool, section).await
            }
            Self::Cursors { opened, rows, prefix } => {
                opened.await?;
                for rows in rows {
                    let lines = rows.await?.map_err(FetchError::from).try_filter_map(|message| {
                        future::ready(match message {
                            SimpleQueryMessage::Row(row) => line(prefix, &row).map(Some),
                            _ => Ok(None),
                        })
                    });
                    drain(lines, false, spool, section).await?;
                }
                Ok(())
            }
        }
    }
}

/// A row as `COPY` writes it, behind other columns.
fn line(prefix: &str, row: &SimpleQueryRow) -> Result<Bytes, FetchError> {
    let mut line = Vec::with_capacity(256);
    line.extend_from_slice(prefix.as_bytes());
    for column in 0..row.len() {
        line.push(b'\t');
        push_value(&mut line, row.try_get(column).map_err(|_| FetchError::NotText)?);
    }
    line.push(b'\n');
    Ok(line.into())
}

/// A value as `COPY` writes it in text format.
fn push_value(line: &mut Vec<u8>, value: Option<&str>) {
    let Some(value) = value else {
        line.extend_from_slice(b"\\N");
        return;
    };
    for byte in value.bytes() {
        let letter = match byte {
            b'\\' => b'\\',
            b'\t' => b't',
            b'\n' => b'n',
            b'\r' => b'r',
            0x08 => b'b',
            0x0c => b'f',
            0x0b => b'v',
            _ => {
                line.push(byte);
                continue;
            }
        };
        line.extend_from_slice(&[b'\\', letter]);
    }
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
    let mut prepared = prepared.into_iter();
    for reading in readings {
        let prepared = match &reading.rows {
            Rows::Copy(_) => prepared.next().transpose(),
            Rows::Block { .. } => Ok(None),
        };
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
        let rows = Asked::of(session, &reading.rows, statement.as_ref());
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
        pending.push((reading, rows, back, cleanup));
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
    for (reading, rows, back, cleanup) in pending {
        let section = spool.lock().await.begin(reading.target.clone());
        // The server itself ends a statement that takes too long. What does not come then either does not come at all.
        let deadline = timeouts.datasource + timeouts.close;
        let draining = rows.drain(session.facts.is_sql_ascii, spool, section);
        let outcome = timeout(deadline, draining)
            .await
            .map_err(|_| FetchError::DatasourceDeadline { what: reading.name.clone(), deadline })?;
        if let Err(error) = outcome {
            let reason = match error {
                FetchError::Connection(error) => refusal(error)?,
                FetchError::NotText => error.to_string(),
                error => return Err(error),
            };
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
    rows: impl Stream<Item = Result<Bytes, FetchError>>,
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
    let opening = Remote::open_preparing(&conninfo, name, settings.timeouts.connect, &copies);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_as_copy_writes_them() {
        let mut line = Vec::new();
        push_value(&mut line, None);
        push_value(&mut line, Some("a\\N\tb\nc\rd\u{8}\u{b}\u{c}é\u{1}"));
        push_value(&mut line, Some(""));
        assert_eq!(String::from_utf8(line).unwrap(), "\\Na\\\\N\\tb\\nc\\rd\\b\\v\\fé\u{1}");
    }
}
