//! The one connection that listens for control messages and answers them. It is made again whenever it
//! breaks; each time it stands, the dispatcher is told, since messages may have been missed meanwhile.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{OnceCell, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_postgres::{Client, Notification, Statement};
use tokio_util::sync::CancellationToken;

use super::permission::Permission;
use super::protocol::{Answer, CHANNEL, Message, Request, parse};
use crate::postgres::conninfo::ConnInfo;
use crate::postgres::extension::PowaVersion;
use crate::postgres::session::{Session, SessionError, application_name};
use crate::postgres::text::causes;
use crate::schedule;

/// An idle connection is tried this often, so that one whose peer vanished without a word is noticed.
const PROBE_INTERVAL: Duration = Duration::from_secs(30);

/// How the session that listens is named, before the program's version.
pub const SESSION_PREFIX: &str = "PoWA collector - main thread ";

/// What the listener tells the dispatcher.
#[derive(Debug)]
pub enum Incoming {
    /// Listening has begun, for the first time or again.
    Listening,
    /// A client who may ask asks.
    Request { request: Request, answer: oneshot::Sender<Answer> },
}

/// How the listener reaches the repository.
#[derive(Debug, Clone)]
pub struct Place {
    pub conninfo: ConnInfo,
    /// For making the connection.
    pub connect: Duration,
    /// For one question or answer.
    pub query: Duration,
    /// For the last answers, when the listener is told to end.
    pub close: Duration,
}

#[derive(Debug, thiserror::Error)]
enum ListenerError {
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("the database {0} has no extension powa: CREATE EXTENSION powa CASCADE")]
    NoPowa(String),
    #[error("{0} takes no changes: it is a standby, on which nobody can listen")]
    Standby(String),
    #[error("PoWA {0} cannot collect from other servers: version 4.0 or later is needed")]
    Unsupported(PowaVersion),
    #[error("the repository: {}", causes(.0))]
    Connection(#[from] tokio_postgres::Error),
    #[error("the repository does not answer within {} s", .0.as_secs())]
    Deadline(Duration),
    #[error("the connection was closed")]
    Closed,
    #[error("the server has taken another role; looking for one among the hosts that is as it should be")]
    OtherRole,
}

/// Listens until told to stop. `hears` is whether it does just now.
pub fn spawn(
    place: Place,
    incoming: mpsc::Sender<Incoming>,
    hears: watch::Sender<bool>,
    stop: CancellationToken,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut attempt = 0;
        loop {
            let was_failing = attempt > 0;
            let error = match listen(&place, &incoming, &hears, &stop, &mut attempt).await {
                Ok(()) => return,
                Err(error) => error,
            };
            hears.send_replace(false);
            if was_failing && attempt > 0 {
                tracing::debug!("not listening for control messages: {error}");
            } else {
                tracing::warn!("not listening for control messages: {error}; trying again until it works");
            }
            attempt = attempt.saturating_add(1);
            let wait = schedule::backoff(attempt, rand::random());
            if stop.run_until_cancelled(sleep(wait)).await.is_none() {
                return;
            }
        }
    })
}

/// Listens over one connection until it breaks (an error) or is told to stop.
async fn listen(
    place: &Place,
    incoming: &mpsc::Sender<Incoming>,
    hears: &watch::Sender<bool>,
    stop: &CancellationToken,
    attempt: &mut u32,
) -> Result<(), ListenerError> {
    let (sender, mut notifications) = mpsc::unbounded_channel();
    let name = application_name(SESSION_PREFIX, concat!("(", env!("CARGO_PKG_VERSION"), ")"));
    let opening = Session::open_listening(&place.conninfo, &name, place.connect, sender);
    let Some(session) = stop.run_until_cancelled(opening).await else {
        return Ok(());
    };
    let session = session?;
    if session.facts.is_standby {
        return Err(ListenerError::Standby(place.conninfo.describe()));
    }
    let Some(powa) = session.facts.powa.clone() else {
        return Err(ListenerError::NoPowa(place.conninfo.describe()));
    };
    if !powa.version.is_supported() {
        return Err(ListenerError::Unsupported(powa.version));
    }
    let client = &session.client;
    // Answers are not kept: none is to wait for the disk behind what everybody else has written.
    let listen = format!("SET synchronous_commit = off; LISTEN {CHANNEL}");
    within(place.query, client.batch_execute(&listen)).await?;
    tracing::info!("listening for control messages on {} (PoWA {})", place.conninfo.describe(), powa.version);
    *attempt = 0;
    hears.send_replace(true);
    if incoming.send(Incoming::Listening).await.is_err() {
        return Ok(());
    }

    let desk = Desk {
        client,
        query: place.query,
        permission: Permission::new(&powa),
        notify: OnceCell::new(),
        incoming,
    };
    let mut answering = FuturesUnordered::new();
    let mut probe = interval(PROBE_INTERVAL);
    probe.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => {
                let farewell = async { while answering.next().await.is_some() {} };
                let _ = timeout(place.close, farewell).await;
                return Ok(());
            }
            notification = notifications.recv() => {
                let Some(notification) = notification else {
                    return Err(ListenerError::Closed);
                };
                answering.push(desk.answer(notification));
            }
            Some(answered) = answering.next() => answered?,
            () = session.closed() => return Err(ListenerError::Closed),
            _ = probe.tick() => {
                if within(place.query, has_other_role(&session)).await? {
                    return Err(ListenerError::OtherRole);
                }
            }
        }
    }
}

/// Whether the server is no longer what it was when the session began, and another one may be: who has something to
/// say to us says it there.
async fn has_other_role(session: &Session) -> Result<bool, tokio_postgres::Error> {
    let statement = "SELECT pg_catalog.pg_is_in_recovery(), \
                     pg_catalog.current_setting('default_transaction_read_only')::pg_catalog.bool";
    let row = session.client.query_typed_one(statement, &[]).await?;
    Ok(session.has_other_role(row.get(0), row.get(1)))
}

/// Where messages are answered.
struct Desk<'a> {
    client: &'a Client,
    /// For one question or answer.
    query: Duration,
    permission: Permission,
    /// Sends an answer.
    notify: OnceCell<Statement>,
    incoming: &'a mpsc::Sender<Incoming>,
}

impl Desk<'_> {
    /// Handles one message from its arrival to its answer. Fails only when the connection does.
    async fn answer(&self, notification: Notification) -> Result<(), ListenerError> {
        let Some(Message { command, channel, request }) = parse(notification.payload()) else {
            tracing::debug!("an empty control message was ignored");
            return Ok(());
        };
        let sender = notification.process_id();
        let allowed = match within(self.query, self.permission.is_held_by(self.client, sender)).await {
            Err(ListenerError::Connection(error)) if error.as_db_error().is_some() => {
                tracing::error!("cannot tell who may send {command:?}, so nobody may: {}", causes(&error));
                false
            }
            allowed => allowed?,
        };
        let answer = if !allowed {
            tracing::warn!(
                "{command:?} from backend {sender} was refused: its role may not steer the collector"
            );
            Answer::permission_denied()
        } else {
            match request {
                Ok(Request::WorkersStatus(_) | Request::WorkersDetail(_)) if channel.is_none() => {
                    return Ok(());
                }
                Ok(request) => {
                    tracing::debug!("{command} from backend {sender}");
                    let (reply, answer) = oneshot::channel();
                    if self.incoming.send(Incoming::Request { request, answer: reply }).await.is_err() {
                        return Ok(());
                    }
                    let Ok(answer) = answer.await else { return Ok(()) };
                    answer
                }
                Err(answer) => {
                    tracing::warn!("control message from backend {sender} not understood: {answer:?}");
                    answer
                }
            }
        };
        let Some(channel) = channel else { return Ok(()) };
        let payloads = answer.payloads(&command);
        match within(self.query, self.send(&channel, &payloads)).await {
            Err(ListenerError::Connection(error)) if error.as_db_error().is_some() => {
                tracing::warn!(
                    "the answer to {command:?} could not be sent to {channel:?}: {}",
                    causes(&error)
                );
                Ok(())
            }
            sent => sent.map(|_| ()),
        }
    }

    async fn send(&self, channel: &str, payloads: &[String]) -> Result<(), tokio_postgres::Error> {
        let notify = "SELECT pg_catalog.pg_notify($1, payload) FROM pg_catalog.unnest($2::pg_catalog.text[]) AS payload";
        let statement = self.notify.get_or_try_init(|| self.client.prepare(notify)).await?;
        self.client.execute(statement, &[&channel, &payloads]).await?;
        Ok(())
    }
}

async fn within<T>(
    deadline: Duration,
    asking: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, ListenerError> {
    match timeout(deadline, asking).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(ListenerError::Deadline(deadline)),
    }
}
