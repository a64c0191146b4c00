//! Opening a session: the only place where connections are made. Each one has its name, its settings and
//! what the server is before anybody else sees it, and a deadline over all of that.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, Config, Connection, NoTls, Notification};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::conninfo::{ConnInfo, causes};
use super::extension::{Powa, PowaVersion};
use super::tls;

/// PostgreSQL keeps 63 bytes of `application_name`.
const APPLICATION_NAME_BYTES: usize = 63;

/// A peer that is gone is noticed after some 60 s of silence, where the system's default is two hours.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 3;

/// How long a request to cancel may take; what it cancels is given up either way.
const CANCEL_DEADLINE: Duration = Duration::from_secs(2);

/// Why a session could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("connect to {server}: {reason}")]
    Connect {
        server: String,
        reason: String,
        #[source]
        source: Box<tokio_postgres::Error>,
    },
    #[error("connect to {server}: no answer within {} s", deadline.as_secs())]
    Deadline { server: String, deadline: Duration },
}

impl SessionError {
    /// The server's own refusal, where there was one.
    pub fn sql_state(&self) -> Option<&SqlState> {
        match self {
            Self::Connect { source, .. } => source.code(),
            Self::Deadline { .. } => None,
        }
    }
}

/// What a server says of itself when a session opens.
#[derive(Debug, Clone)]
pub struct ServerFacts {
    /// `server_version`, as in `15.14 (Debian 15.14-0+deb12u1)`.
    pub version: String,
    /// `server_version_num`, as in 150014.
    pub version_num: i32,
    /// Whether the server hands out bytes of no known encoding.
    pub is_sql_ascii: bool,
    /// PoWA in the connected database.
    pub powa: Option<Powa>,
}

/// A session with a server. Dropping it closes the connection.
pub struct Session {
    pub client: Client,
    pub facts: ServerFacts,
    closed: CancellationToken,
    encrypted: bool,
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
        Self::open_with(conninfo, application_name, deadline, None).await
    }

    /// The same, for a session that listens: notifications are handed to the channel.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub async fn open_listening(
        conninfo: &ConnInfo,
        application_name: &str,
        deadline: Duration,
        notifications: mpsc::UnboundedSender<Notification>,
    ) -> Result<Self, SessionError> {
        Self::open_with(conninfo, application_name, deadline, Some(notifications)).await
    }

    async fn open_with(
        conninfo: &ConnInfo,
        application_name: &str,
        deadline: Duration,
        notifications: Option<mpsc::UnboundedSender<Notification>>,
    ) -> Result<Self, SessionError> {
        let opening = async {
            let end = CancellationToken::new();
            let opened = connect(conninfo, application_name, notifications, end.clone()).await?;
            let guard = end.drop_guard();
            let facts = set_up(&opened.client).await?;
            let closed = CancellationToken::new();
            let task = opened.task;
            let told = closed.clone().drop_guard();
            tokio::spawn(async move {
                let _told = told;
                let _ = task.await;
            });
            Ok(Self { client: opened.client, facts, closed, encrypted: opened.encrypted, _connection: guard })
        };
        match timeout(deadline, opening).await {
            Ok(result) => result.map_err(|error| connect_error(conninfo, error)),
            Err(_) => Err(SessionError::Deadline { server: conninfo.describe(), deadline }),
        }
    }

    /// Completes when the connection has ended, whoever ended it.
    pub fn closed(&self) -> impl Future<Output = ()> + Send + 'static {
        self.closed.clone().cancelled_owned()
    }

    /// Asks the server to give up what it is doing for this session, so that nothing of ours goes on there.
    pub async fn cancel(&self) {
        let token = self.client.cancel_token();
        let request = async {
            if self.encrypted {
                token.cancel_query(tls::unverified()).await
            } else {
                token.cancel_query(NoTls).await
            }
        };
        match timeout(CANCEL_DEADLINE, request).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!("cancel request: {}", causes(&error)),
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
pub(super) async fn connect_pooled(
    conninfo: &ConnInfo,
    application_name: &str,
) -> Result<(Client, JoinHandle<()>), tokio_postgres::Error> {
    let opened = connect(conninfo, application_name, None, CancellationToken::new()).await?;
    set_up(&opened.client).await?;
    Ok((opened.client, opened.task))
}

fn connect_error(conninfo: &ConnInfo, error: tokio_postgres::Error) -> SessionError {
    SessionError::Connect { server: conninfo.describe(), reason: causes(&error), source: Box::new(error) }
}

/// Gives a new session its settings and asks what the server is, in one round trip.
async fn set_up(client: &Client) -> Result<ServerFacts, tokio_postgres::Error> {
    let row = client.query_one(include_str!("../../sql/open_session.sql"), &[]).await?;
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
        powa,
    })
}

struct Opened {
    client: Client,
    task: JoinHandle<()>,
    encrypted: bool,
}

/// `sslmode=prefer` goes on without TLS when the server has none, and also when TLS fails or the server's
/// `pg_hba.conf` allows this client only without it.
async fn connect(
    conninfo: &ConnInfo,
    application_name: &str,
    notifications: Option<mpsc::UnboundedSender<Notification>>,
    end: CancellationToken,
) -> Result<Opened, tokio_postgres::Error> {
    let mut config = conninfo.config().clone();
    config
        .application_name(application_name)
        .keepalives_idle(KEEPALIVE_IDLE)
        .keepalives_interval(KEEPALIVE_INTERVAL)
        .keepalives_retries(KEEPALIVE_RETRIES);
    let mode = conninfo.ssl_mode();
    if mode != SslMode::Disable {
        config.ssl_mode(mode);
        match config.connect(tls::unverified()).await {
            Ok((client, connection)) => {
                let task = drive(connection, notifications, end);
                return Ok(Opened { client, task, encrypted: true });
            }
            Err(error) if mode == SslMode::Prefer && may_work_without_tls(&error) => {}
            Err(error) => return Err(error),
        }
    }
    config.ssl_mode(SslMode::Disable);
    connect_plain(&config, notifications, end).await
}

async fn connect_plain(
    config: &Config,
    notifications: Option<mpsc::UnboundedSender<Notification>>,
    end: CancellationToken,
) -> Result<Opened, tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    let task = drive(connection, notifications, end);
    Ok(Opened { client, task, encrypted: false })
}

fn may_work_without_tls(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION)
        || error.to_string().starts_with("error performing TLS")
}

/// Drives a connection until it ends or is told to.
fn drive<S, T>(
    mut connection: Connection<S, T>,
    notifications: Option<mpsc::UnboundedSender<Notification>>,
    end: CancellationToken,
) -> JoinHandle<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
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
