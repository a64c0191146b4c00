//! Opening a session: the only place where connections are made. Each one has its name, its settings and
//! what the server is before anybody else sees it, and a deadline over all of that.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::{AsyncMessage, Client, Connection, Notification, Statement};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::advice::{Step, advice};
use super::conninfo::ConnInfo;
use super::conninfo::values::{CertificateMode, SessionAttrs};
use super::dial::{self, Dialled, Failure, Line};
use super::extension::{Powa, PowaVersion};
use super::failure::DialError;
use super::login::Wire;
use super::text::causes;

/// PostgreSQL keeps 63 bytes of `application_name`.
const APPLICATION_NAME_BYTES: usize = 63;

/// Why a session could not be opened.
#[derive(Debug)]
pub struct SessionError {
    what: String,
    advice: Vec<Step>,
    is_refusal: bool,
}

impl SessionError {
    /// `failures`: of each host that was tried.
    fn new(conninfo: &ConnInfo, failures: &[Failure]) -> Self {
        let hosts = failures.iter().map(|failure| failure.host.clone()).collect();
        let server = ConnInfo { hosts, ..conninfo.clone() }.describe();
        let reasons: Vec<String> = match failures {
            [failure] => vec![failure.error.to_string()],
            several => several.iter().map(|failure| format!("{}: {}", failure.host, failure.error)).collect(),
        };
        let mut advised: Vec<Step> = Vec::new();
        for step in failures.iter().flat_map(|failure| advice(&failure.error, conninfo)) {
            if !advised.contains(&step) {
                advised.push(step);
            }
        }
        let what = format!("connect to {server}: {}", reasons.join("; "));
        let is_refusal = failures.iter().any(|failure| failure.error.is_refusal());
        Self { what, advice: advised, is_refusal }
    }

    /// What happened, without what to do about it.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// What to do about it.
    pub fn advice(&self) -> &[Step] {
        &self.advice
    }

    /// Whether a server has answered and does not let us in, as [`DialError::is_refusal`].
    pub fn is_refusal(&self) -> bool {
        self.is_refusal
    }
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if self.advice.is_empty() {
            return Ok(());
        }
        // The remarks of SQL mean nothing in a sentence.
        let sentence = |step: &Step| {
            step.to_string().trim_start_matches("-- ").trim_end_matches(';').replace(";   -- ", ", ")
        };
        let advice: Vec<String> = self.advice.iter().map(sentence).collect();
        write!(f, " (what to do: {})", advice.join(" "))
    }
}

impl std::error::Error for SessionError {}

/// What a server says of itself when a session opens.
#[derive(Debug, Clone)]
pub struct ServerFacts {
    /// `server_version`, as in `15.14 (Debian 15.14-0+deb12u1)`.
    pub version: String,
    /// `server_version_num`, as in 150014.
    pub version_num: i32,
    /// Whether the server hands out bytes of no known encoding.
    pub is_sql_ascii: bool,
    /// Whether it replays another server's changes.
    pub is_standby: bool,
    /// Whether its transactions write nothing unless they ask to.
    pub is_read_only: bool,
    /// PoWA in the connected database.
    pub powa: Option<Powa>,
}

impl ServerFacts {
    fn fit(&self, attrs: SessionAttrs) -> bool {
        let is_read_only = self.is_standby || self.is_read_only;
        match attrs {
            SessionAttrs::Any | SessionAttrs::PreferStandby => true,
            SessionAttrs::ReadWrite => !is_read_only,
            SessionAttrs::ReadOnly => is_read_only,
            SessionAttrs::Primary => !self.is_standby,
            SessionAttrs::Standby => self.is_standby,
        }
    }
}

/// What became of preparing one statement.
pub type Prepared = Result<Statement, tokio_postgres::Error>;

/// A session with a server. Dropping it closes the connection.
pub struct Session {
    pub client: Client,
    pub facts: ServerFacts,
    conninfo: ConnInfo,
    line: Line,
    closed: CancellationToken,
    /// Ends the task that drives the connection, in case the peer no longer reads our farewell.
    _connection: DropGuard,
}

impl Session {
    /// Opens a session with `application_name` PREFIX NAME within the deadline.
    ///
    /// # Errors
    /// When the server cannot be reached, refuses, or does not answer in time.
    pub async fn open(
        conninfo: &ConnInfo,
        application_name: &str,
        deadline: Duration,
    ) -> Result<Self, SessionError> {
        let opened = Self::open_with(conninfo, application_name, deadline, &[], None).await?;
        Ok(opened.0)
    }

    /// The same, and prepares statements, which takes no round trip of its own. Gives what became of each, in
    /// their order.
    ///
    /// They are prepared after the session's settings are made, but before the library of PoWA 4.0 is loaded,
    /// where it must be: to a `COPY`, which is looked at only when it is executed, that is all the same.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub async fn open_preparing(
        conninfo: &ConnInfo,
        application_name: &str,
        deadline: Duration,
        statements: &[&str],
    ) -> Result<(Self, Vec<Prepared>), SessionError> {
        Self::open_with(conninfo, application_name, deadline, statements, None).await
    }

    /// Opens a session that listens: notifications are handed to the channel.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub async fn open_listening(
        conninfo: &ConnInfo,
        application_name: &str,
        deadline: Duration,
        notifications: mpsc::UnboundedSender<Notification>,
    ) -> Result<Self, SessionError> {
        let opened = Self::open_with(conninfo, application_name, deadline, &[], Some(notifications)).await?;
        Ok(opened.0)
    }

    async fn open_with(
        conninfo: &ConnInfo,
        application_name: &str,
        deadline: Duration,
        statements: &[&str],
        notifications: Option<mpsc::UnboundedSender<Notification>>,
    ) -> Result<(Self, Vec<Prepared>), SessionError> {
        let opened = open(conninfo, application_name, deadline, statements, notifications).await?;
        let closed = CancellationToken::new();
        let (task, told) = (opened.task, closed.clone().drop_guard());
        tokio::spawn(async move {
            let _told = told;
            let _ = task.await;
        });
        let (client, facts, line) = (opened.client, opened.facts, opened.line);
        let conninfo = conninfo.clone();
        let session = Self { client, facts, conninfo, line, closed, _connection: opened.guard };
        Ok((session, opened.prepared))
    }

    /// How it was opened.
    pub fn conninfo(&self) -> &ConnInfo {
        &self.conninfo
    }

    /// Another database of the very server that this session is with.
    pub fn database(&self, dbname: &str) -> ConnInfo {
        let mut conninfo = self.conninfo.with_database(dbname);
        conninfo.hosts = vec![self.line.host()];
        // A try that is in vain costs round trips, with each database anew.
        conninfo.tls.mode = conninfo.tls.mode.after(self.line.is_encrypted());
        conninfo
    }

    /// Whether the server is no longer what it was when the session began, and that matters: there may be another
    /// one by now that is as it should be.
    pub fn has_other_role(&self, is_standby: bool, is_read_only: bool) -> bool {
        self.conninfo.session_attrs != SessionAttrs::Any
            && (is_standby, is_read_only) != (self.facts.is_standby, self.facts.is_read_only)
    }

    /// Completes when the connection has ended, whoever ended it.
    pub fn closed(&self) -> impl Future<Output = ()> + Send + 'static {
        self.closed.clone().cancelled_owned()
    }

    /// Asks the server to give up what it is doing for this session, so that nothing of ours goes on there.
    /// That may take until the deadline; what it takes back is given up either way.
    pub async fn cancel(&self, deadline: Duration) {
        let token = self.client.cancel_token();
        match timeout(deadline, dial::cancel(&self.conninfo, &self.line, &token)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!("cancel request: {error}"),
            Err(_) => tracing::debug!("cancel request: no answer"),
        }
    }
}

/// `PREFIX NAME`, with the name shortened to what PostgreSQL keeps. The prefix is what people search for in
/// `pg_stat_activity`.
pub fn application_name(prefix: &str, name: &str) -> String {
    let room = APPLICATION_NAME_BYTES.saturating_sub(prefix.len());
    let mut end = name.len().min(room);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{prefix}{}", &name[..end])
}

/// Opens a session for deadpool, which keeps the task that drives the connection and aborts it with the client.
pub(super) async fn open_pooled(
    conninfo: &ConnInfo,
    application_name: &str,
    deadline: Duration,
) -> Result<(Client, JoinHandle<()>), SessionError> {
    let opened = open(conninfo, application_name, deadline, &[], None).await?;
    opened.guard.disarm();
    Ok((opened.client, opened.task))
}

/// A session, and the task that drives its connection.
struct Opened {
    client: Client,
    facts: ServerFacts,
    prepared: Vec<Prepared>,
    line: Line,
    task: JoinHandle<()>,
    guard: DropGuard,
}

async fn open(
    conninfo: &ConnInfo,
    application_name: &str,
    deadline: Duration,
    statements: &[&str],
    notifications: Option<mpsc::UnboundedSender<Notification>>,
) -> Result<Opened, SessionError> {
    // A standby first, and if there is none, any.
    let wishes: &[SessionAttrs] = match &conninfo.session_attrs {
        SessionAttrs::PreferStandby => &[SessionAttrs::Standby, SessionAttrs::Any],
        wish => std::slice::from_ref(wish),
    };
    let mut failures = Vec::new();
    for wish in wishes {
        let (wish, certificate_mode) = (*wish, conninfo.tls.certificate_mode);
        let accept =
            |dialled| accept(dialled, wish, certificate_mode, statements, notifications.clone()).boxed();
        match dial::dial(conninfo, application_name, deadline, &accept).await {
            Ok(opened) => return Ok(opened),
            Err(failed) => failures = failed,
        }
    }
    Err(SessionError::new(conninfo, &failures))
}

/// Makes a session of a connection, if the server is as it should be.
async fn accept(
    dialled: Dialled,
    wish: SessionAttrs,
    certificate_mode: CertificateMode,
    statements: &[&str],
    notifications: Option<mpsc::UnboundedSender<Notification>>,
) -> Result<Opened, DialError> {
    let Dialled { client, connection, line } = dialled;
    let end = CancellationToken::new();
    let task = drive(connection, notifications, end.clone());
    let guard = end.drop_guard();
    // In this order on the wire, and so at the server: the settings hold for the statements.
    let (facts, prepared) = (start(set_up(&client)), start(prepare(&client, statements)));
    let (facts, prepared) = (facts.await.map_err(DialError::Admission)?, prepared.await);
    if !facts.fit(wish) {
        return Err(DialError::Attrs(wish));
    }
    if certificate_mode == CertificateMode::Require {
        let statement = "SELECT client_dn IS NOT NULL FROM pg_catalog.pg_stat_ssl WHERE pid = \
                         pg_catalog.pg_backend_pid()";
        let asked = client.query_one(statement, &[]).await.map_err(DialError::Admission)?;
        if !asked.get::<_, bool>(0) {
            return Err(DialError::CertificateUnasked);
        }
    }
    Ok(Opened { client, facts, prepared, line, task, guard })
}

/// Gives a new session its settings and asks what the server is, in one round trip.
async fn set_up(client: &Client) -> Result<ServerFacts, tokio_postgres::Error> {
    // In one round trip: nothing is prepared that is asked once.
    let row = client.query_typed_one(include_str!("../../sql/open_session.sql"), &[]).await?;
    let powa_version: Option<String> = row.get("powa_version");
    let powa_schema: Option<String> = row.get("powa_schema");
    let powa = powa_version
        .zip(powa_schema)
        .map(|(version, schema)| Powa { version: PowaVersion::parse(&version), schema });
    if powa.as_ref().is_some_and(|powa| powa.version.needs_load()) {
        client.batch_execute("LOAD 'powa'").await?;
    }
    let encoding: String = row.get("encoding");
    Ok(ServerFacts {
        version: row.get("version"),
        version_num: row.get("version_num"),
        is_sql_ascii: encoding == "SQL_ASCII",
        is_standby: row.get("is_standby"),
        is_read_only: row.get("is_read_only"),
        powa,
    })
}

/// Drives a connection until it ends or is told to.
fn drive(
    mut connection: Connection<Wire, Wire>,
    notifications: Option<mpsc::UnboundedSender<Notification>>,
    end: CancellationToken,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let driven = async {
            while let Some(message) = poll_fn(|cx| connection.poll_message(cx)).await {
                match message {
                    Ok(AsyncMessage::Notification(notification)) => {
                        if let Some(channel) = &notifications {
                            // Nobody listens any more only when the session is being closed.
                            let _ = channel.send(notification);
                        }
                    }
                    Ok(AsyncMessage::Notice(notice)) => {
                        tracing::debug!("notice: {}", notice.message());
                    }
                    Ok(_) => {}
                    Err(error) => {
                        tracing::debug!("connection: {}", causes(&error));
                        return;
                    }
                }
            }
        };
        end.run_until_cancelled(driven).await;
    })
}

/// Whether an error means that the connection is gone, as against a refusal of one statement. A server that
/// ends a session says so with an error of its own: class 57P, `terminating connection`.
pub fn ends_connection(error: &tokio_postgres::Error) -> bool {
    match error.as_db_error() {
        Some(told) => error.is_closed() || told.code().code().starts_with("57P"),
        None => true,
    }
}

/// Prepares statements, in one round trip. Gives what became of each, in their order.
pub async fn prepare(client: &Client, statements: &[&str]) -> Vec<Prepared> {
    let pending: Vec<_> = statements.iter().map(|sql| start(client.prepare(sql))).collect();
    let mut prepared = Vec::with_capacity(pending.len());
    for statement in pending {
        prepared.push(statement.await);
    }
    prepared
}

/// Sends the request of a future now and gives the future back, to be awaited for the answer.
///
/// tokio-postgres puts a request on the wire when its future is first polled. Starting several before
/// awaiting the first makes one round trip of them, in the order in which they were started.
pub fn start<'a, T>(
    future: impl Future<Output = T> + Send + 'a,
) -> Pin<Box<dyn Future<Output = T> + Send + 'a>>
where
    T: Send + 'a,
{
    let mut future = future.boxed();
    match (&mut future).now_or_never() {
        Some(output) => std::future::ready(output).boxed(),
        None => future,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn application_names_keep_their_prefix_and_whole_characters() {
        let prefix = "PoWA collector - repo_conn for worker ";
        let name = application_name(prefix, &"é".repeat(40));
        assert!(name.starts_with(prefix) && name.len() <= 63);
        assert_eq!(name.len(), prefix.len() + 24);
        assert_eq!(application_name("PoWA collector - worker ", "a:1"), "PoWA collector - worker a:1");
    }
}
