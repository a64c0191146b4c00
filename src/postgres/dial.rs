//! From a [`ConnInfo`] to a connection that is logged in: which host, which of its addresses, with TLS or
//! without, which password. In the order and with the second tries of libpq.

use std::io;
use std::net::SocketAddr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net as unix;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use nix::unistd::{Uid, User};
use rand::seq::SliceRandom;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::{CancelToken, Client, Config, Connection, config};

use super::conninfo::passfile::{self, Lookup};
use super::conninfo::values::{ChannelBinding, Host, Keepalive, SessionAttrs, SslMode, SslNegotiation};
use super::conninfo::{ConnInfo, Password};
use super::login::{Duplex, LoginError, Ready, Wire};
use super::password_command::PasswordCommandError;
use super::secret::Secret;
use super::text::causes;
use super::tls::{self, TlsError};

/// A peer that is gone is noticed after some 60 s of silence, where the system's default is two hours.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_COUNT: u32 = 3;

/// The least that libpq makes of `connect_timeout`.
const LEAST_TIMEOUT: Duration = Duration::from_secs(2);

/// What a client sends to ask for TLS: the length, and a number that no version of the protocol has.
const TLS_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// Why there is no connection with one address of one host.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("no address: {0}")]
    Resolve(io::Error),
    #[error("{0}")]
    Connect(io::Error),
    #[error("no answer within {} s", .0.as_secs())]
    Deadline(Duration),
    #[error("option requirepeer: the server runs as {found:?}, and not as {wanted:?}")]
    Peer { wanted: String, found: String },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Login(LoginError),
    /// The login failed.
    #[error("{}", causes(.0))]
    Server(tokio_postgres::Error),
    /// The login did not fail, but what comes after: the database, the number of connections.
    #[error("{}", causes(.0))]
    Admission(tokio_postgres::Error),
    #[error("the server asks for a password, and none is given{}", ignored.as_deref().unwrap_or_default())]
    NoPassword { ignored: Option<String> },
    #[error("option channel_binding: require, and {0}")]
    NoBinding(&'static str),
    #[error(transparent)]
    Command(#[from] PasswordCommandError),
    #[error("option target_session_attrs: the server is not {0}")]
    Attrs(SessionAttrs),
    #[error("option sslcertmode: require, and the server has not asked for our certificate")]
    CertificateUnasked,
    /// With TLS and without, neither way was good.
    #[error("{first}; and {} TLS: {second}", if *ends_with_tls { "with" } else { "without" })]
    Both { first: Box<DialError>, second: Box<DialError>, ends_with_tls: bool },
}

impl DialError {
    /// The server's own refusal, where there was one.
    pub fn sql_state(&self) -> Option<&SqlState> {
        match self {
            Self::Server(error) | Self::Admission(error) => error.code(),
            Self::Both { first, second, .. } => first.sql_state().or(second.sql_state()),
            _ => None,
        }
    }

    /// Whether libpq goes on to the next host: one that answers and lets nobody in is the last one tried.
    fn tries_next_host(&self) -> bool {
        match self {
            Self::Resolve(_) | Self::Connect(_) | Self::Deadline(_) | Self::Attrs(_) => true,
            Self::Server(_) | Self::Admission(_) => self.sql_state() == Some(&SqlState::CANNOT_CONNECT_NOW),
            _ => false,
        }
    }

    /// Whether nobody has answered.
    fn is_silence(&self) -> bool {
        matches!(self, Self::Resolve(_) | Self::Connect(_) | Self::Deadline(_))
    }

    /// Whether the other of TLS and no TLS may do better.
    fn may_depend_on_tls(&self) -> bool {
        match self {
            Self::Tls(error) => {
                !matches!(error, TlsError::Option { .. } | TlsError::File { .. } | TlsError::Early)
            }
            Self::Server(error) => error.code().is_some_and(|state| *state != SqlState::CANNOT_CONNECT_NOW),
            Self::Login(_) => true,
            _ => false,
        }
    }
}

/// A connection that is logged in.
pub struct Dialled {
    pub client: Client,
    pub connection: Connection<Wire, Wire>,
    pub line: Line,
}

/// How a connection was made, to make another one like it.
#[derive(Debug, Clone)]
pub struct Line {
    host: Host,
    address: Address,
    is_encrypted: bool,
}

impl Line {
    /// The host, with the very address that was connected to: its name may stand for several servers.
    pub fn host(&self) -> Host {
        let address = match self.address {
            Address::Tcp(SocketAddr::V4(address)) => Some(address.ip().to_string()),
            Address::Tcp(SocketAddr::V6(address)) if address.scope_id() == 0 => {
                Some(address.ip().to_string())
            }
            Address::Tcp(SocketAddr::V6(address)) => Some(format!("{}%{}", address.ip(), address.scope_id())),
            Address::Unix(_) => None,
        };
        Host { address, ..self.host.clone() }
    }
}

#[derive(Debug, Clone)]
enum Address {
    Tcp(SocketAddr),
    Unix(unix::SocketAddr),
}

/// Why a host does not serve.
#[derive(Debug)]
pub struct Failure {
    pub host: Host,
    pub error: DialError,
}

/// Decides about a connection before anybody else sees it.
pub type Accept<'a, T> = &'a (dyn Fn(Dialled) -> BoxFuture<'static, Result<T, DialError>> + Send + Sync);

/// Connects and logs in: to the first host that answers and that `accept` takes. `deadline` is for finding a
/// host's addresses, for each of them, and again for `accept`.
///
/// # Errors
/// What each host said that was tried: at least one.
pub async fn dial<T>(
    conninfo: &ConnInfo,
    application_name: &str,
    deadline: Duration,
    accept: Accept<'_, T>,
) -> Result<T, Vec<Failure>> {
    let deadline = match conninfo.connect_timeout {
        Some(seconds) => Duration::from_secs(seconds.into()).max(LEAST_TIMEOUT),
        None => deadline,
    };
    let mut hosts: Vec<&Host> = conninfo.hosts.iter().collect();
    if conninfo.balances_hosts {
        hosts.shuffle(&mut rand::rng());
    }
    let mut failures = Vec::new();
    for host in hosts {
        let error = match try_host(conninfo, host, application_name, deadline, accept).await {
            Ok(accepted) => return Ok(accepted),
            Err(error) => error,
        };
        let is_last = !error.tries_next_host();
        failures.push(Failure { host: host.clone(), error });
        if is_last {
            break;
        }
    }
    Err(failures)
}

/// One host, by all its addresses. Of several failures, the one that says most.
async fn try_host<T>(
    conninfo: &ConnInfo,
    host: &Host,
    application_name: &str,
    deadline: Duration,
    accept: Accept<'_, T>,
) -> Result<T, DialError> {
    let mut worst: Option<DialError> = None;
    for address in within(deadline, addresses(host, conninfo.balances_hosts)).await? {
        let attempt = async {
            let dialled = try_address(conninfo, host, &address, application_name, deadline).await?;
            within(deadline, accept(dialled)).await
        };
        let error = match attempt.await {
            Ok(accepted) => return Ok(accepted),
            Err(error) => error,
        };
        if !error.tries_next_host() {
            return Err(error);
        }
        // A server that answers tells more than one that is not there.
        if worst.as_ref().is_none_or(|worst| !error.is_silence() || worst.is_silence()) {
            worst = Some(error);
        }
    }
    Err(worst.expect("a host without addresses is an error by itself"))
}

async fn within<T>(
    deadline: Duration,
    doing: impl Future<Output = Result<T, DialError>>,
) -> Result<T, DialError> {
    timeout(deadline, doing).await.unwrap_or(Err(DialError::Deadline(deadline)))
}

/// Where a host is. A name may stand for several addresses.
async fn addresses(host: &Host, shuffles: bool) -> Result<Vec<Address>, DialError> {
    if host.is_socket() {
        let file = format!("{}/.s.PGSQL.{}", host.name, host.port);
        let address = match file.strip_prefix('@') {
            Some(name) => unix::SocketAddr::from_abstract_name(name),
            None => unix::SocketAddr::from_pathname(&file),
        };
        return Ok(vec![Address::Unix(address.map_err(DialError::Connect)?)]);
    }
    let name = host.address.as_deref().unwrap_or(&host.name);
    let found = lookup_host((name, host.port)).await.map_err(DialError::Resolve)?;
    let mut found: Vec<Address> = found.map(Address::Tcp).collect();
    if shuffles {
        found.shuffle(&mut rand::rng());
    }
    if found.is_empty() {
        return Err(DialError::Resolve(io::Error::other("the name has none")));
    }
    Ok(found)
}

/// How one address is tried.
struct Attempt<'a> {
    conninfo: &'a ConnInfo,
    host: &'a Host,
    address: &'a Address,
    application_name: &'a str,
    /// For all up to the end of the login, but not for the program that prints the password.
    deadline: Duration,
}

/// One address, with TLS and without in the order that `sslmode` says.
async fn try_address(
    conninfo: &ConnInfo,
    host: &Host,
    address: &Address,
    application_name: &str,
    deadline: Duration,
) -> Result<Dialled, DialError> {
    let attempt = Attempt { conninfo, host, address, application_name, deadline };
    let (first, second) = match (address, conninfo.tls.mode) {
        // libpq never tries TLS on a Unix socket, whatever sslmode says.
        (Address::Unix(_), _) | (_, SslMode::Disable) => (false, None),
        (_, SslMode::Allow) => (false, Some(true)),
        (_, SslMode::Prefer) => (true, Some(false)),
        (_, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => (true, None),
    };
    let (error, was_encrypted) = match attempt.with_password(first).await {
        Ok(dialled) => return Ok(dialled),
        Err(failed) => failed,
    };
    match second {
        // A server that has no TLS has been tried without it already.
        Some(second) if error.may_depend_on_tls() && second != was_encrypted => {
            attempt.with_password(second).await.map_err(|(other, _)| {
                if other.to_string() == error.to_string() {
                    return error;
                }
                let (first, second, ends_with_tls) = (Box::new(error), Box::new(other), second);
                DialError::Both { first, second, ends_with_tls }
            })
        }
        _ => Err(error),
    }
}

impl Attempt<'_> {
    /// Connects, secures and logs in. A password that a command printed some time ago and that is refused now
    /// is asked for anew, once. A failure comes with whether it was one with TLS.
    async fn with_password(&self, with_tls: bool) -> Result<Dialled, (DialError, bool)> {
        let Password::Command(command) = &self.conninfo.password else {
            let mut ignored = None;
            let password = match &self.conninfo.password {
                Password::Given(password) => Some(password.clone()),
                _ => match passfile::look_up(self.conninfo, self.host.passfile_name(), self.host.port) {
                    Lookup::Found(password) => Some(password),
                    Lookup::Nothing => None,
                    Lookup::Ignored { file, reason } => {
                        ignored =
                            Some(format!(" (the password file {} is ignored: {reason})", file.display()));
                        None
                    }
                },
            };
            return self.log_in(with_tls, password.as_ref()).await.map_err(
                |(error, was_encrypted)| match error {
                    DialError::NoPassword { .. } => (DialError::NoPassword { ignored }, was_encrypted),
                    error => (error, was_encrypted),
                },
            );
        };
        loop {
            let printed = command.password(self.conninfo).await.map_err(|error| (error.into(), with_tls))?;
            match self.log_in(with_tls, Some(&printed.password)).await {
                Err((DialError::Server(error), was_encrypted)) if is_login_failure(&error) => {
                    command.forget(&printed.password).await;
                    if !printed.is_kept {
                        return Err((DialError::Server(error), was_encrypted));
                    }
                    tracing::debug!("the password that password_command printed is refused: it is run again");
                }
                outcome => return outcome,
            }
        }
    }

    async fn log_in(&self, with_tls: bool, password: Option<&Secret>) -> Result<Dialled, (DialError, bool)> {
        let mut is_encrypted = with_tls;
        let logging_in = self.log_in_at_leisure(with_tls, password, &mut is_encrypted);
        within(self.deadline, logging_in).await.map_err(|error| (error, is_encrypted))
    }

    async fn log_in_at_leisure(
        &self,
        with_tls: bool,
        password: Option<&Secret>,
        is_encrypted: &mut bool,
    ) -> Result<Dialled, DialError> {
        let conninfo = self.conninfo;
        let opened = open(conninfo, self.host, self.address, with_tls).await?;
        *is_encrypted = opened.is_encrypted;
        let must_bind = conninfo.channel_binding == ChannelBinding::Require;
        if must_bind && opened.channel_binding.is_none() {
            return Err(DialError::NoBinding(match opened.is_encrypted {
                true => "the signature of the server's certificate names no digest to bind to",
                false => "there is no TLS to bind to",
            }));
        }
        let is_in = Arc::new(AtomicBool::new(false));
        let allowed = conninfo.require_auth.clone();
        let wire = Wire::new(opened.stream, opened.channel_binding, allowed, Arc::clone(&is_in));
        match config(conninfo, self.application_name, password).connect_raw(wire, Ready).await {
            Ok((client, connection)) => {
                let line = Line {
                    host: self.host.clone(),
                    address: self.address.clone(),
                    is_encrypted: opened.is_encrypted,
                };
                Ok(Dialled { client, connection, line })
            }
            Err(error) => Err(login_error(error, is_in.load(Ordering::Relaxed), must_bind)),
        }
    }
}

/// What tokio-postgres is told: what belongs to the login.
fn config(conninfo: &ConnInfo, application_name: &str, password: Option<&Secret>) -> Config {
    let mut config = Config::new();
    config
        .user(&conninfo.user)
        .dbname(&conninfo.dbname)
        .application_name(application_name)
        .channel_binding(match conninfo.channel_binding {
            ChannelBinding::Disable => config::ChannelBinding::Disable,
            ChannelBinding::Prefer => config::ChannelBinding::Prefer,
            ChannelBinding::Require => config::ChannelBinding::Require,
        })
        // TLS has been seen to: this makes tokio-postgres take the connection as it is.
        .ssl_mode(config::SslMode::Require)
        .ssl_negotiation(config::SslNegotiation::Direct);
    if let Some(options) = &conninfo.server_options {
        config.options(options);
    }
    if let Some(password) = password {
        config.password(password.reveal());
    }
    config
}

/// Whether another password might do better: PAM, LDAP and clouds refuse an expired one in their own ways, all
/// of this class.
fn is_login_failure(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|state| state.code().starts_with("28"))
}

/// What a failed login means. `is_in`: it was not the login that failed, but what comes after.
fn login_error(error: tokio_postgres::Error, is_in: bool, must_bind: bool) -> DialError {
    if let Some(source) = std::error::Error::source(&error) {
        if let Some(inner) = source.downcast_ref::<io::Error>() {
            if let Some(login) = inner.get_ref().and_then(|inner| inner.downcast_ref::<LoginError>()) {
                return DialError::Login(login.clone());
            }
            if let Some(alert) = tls::alert(inner) {
                return DialError::Tls(alert);
            }
        }
        let source = source.to_string();
        if source == "password missing" {
            return DialError::NoPassword { ignored: None };
        }
        if must_bind && source == "server did not use channel binding" {
            return DialError::NoBinding("the server does not bind its login to TLS (scram-sha-256 does)");
        }
    }
    if is_in && error.code().is_some() {
        return DialError::Admission(error);
    }
    DialError::Server(error)
}

/// A connection on which PostgreSQL's own protocol may begin.
struct Opened {
    stream: Box<dyn Duplex>,
    is_encrypted: bool,
    channel_binding: Option<Vec<u8>>,
}

async fn open(
    conninfo: &ConnInfo,
    host: &Host,
    address: &Address,
    with_tls: bool,
) -> Result<Opened, DialError> {
    let plain = |stream| Opened { stream, is_encrypted: false, channel_binding: None };
    let address = match address {
        Address::Tcp(address) => address,
        Address::Unix(address) => {
            let stream =
                UnixStream::connect_addr(&address.clone().into()).await.map_err(DialError::Connect)?;
            if let Some(wanted) = &conninfo.peer {
                check_peer(&stream, wanted)?;
            }
            return Ok(plain(Box::new(stream)));
        }
    };
    let mut stream = TcpStream::connect(address).await.map_err(DialError::Connect)?;
    keep_alive(&stream, &conninfo.keepalive).map_err(DialError::Connect)?;
    if !with_tls {
        return Ok(plain(Box::new(stream)));
    }
    if conninfo.tls.negotiation == SslNegotiation::Postgres {
        stream.write_all(&TLS_REQUEST).await.map_err(DialError::Connect)?;
        match stream.read_u8().await.map_err(DialError::Connect)? {
            b'S' => {}
            // Without TLS, this same connection serves.
            b'N' if conninfo.tls.mode <= SslMode::Prefer => return Ok(plain(Box::new(stream))),
            b'N' => return Err(TlsError::Refused(conninfo.tls.mode).into()),
            answer => return Err(TlsError::Answer(answer).into()),
        }
        // Bytes that somebody on the line put before the handshake would be taken for what comes after it.
        if stream.try_read(&mut [0]).is_ok_and(|read| read > 0) {
            return Err(TlsError::Early.into());
        }
    }
    let secured = tls::secure(stream, host, &conninfo.tls).await?;
    Ok(Opened {
        stream: Box::new(secured.stream),
        is_encrypted: true,
        channel_binding: secured.channel_binding,
    })
}

fn check_peer(stream: &UnixStream, wanted: &str) -> Result<(), DialError> {
    let uid = stream.peer_cred().map_err(DialError::Connect)?.uid();
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    let found = user.map_or_else(|| format!("user {uid}"), |user| user.name);
    if found == wanted { Ok(()) } else { Err(DialError::Peer { wanted: wanted.to_owned(), found }) }
}

fn keep_alive(stream: &TcpStream, keepalive: &Keepalive) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    if keepalive.is_on {
        let settings = TcpKeepalive::new()
            .with_time(keepalive.idle.unwrap_or(KEEPALIVE_IDLE))
            .with_interval(keepalive.interval.unwrap_or(KEEPALIVE_INTERVAL))
            .with_retries(keepalive.count.unwrap_or(KEEPALIVE_COUNT));
        socket.set_tcp_keepalive(&settings)?;
    }
    if keepalive.user_timeout.is_some() {
        socket.set_tcp_user_timeout(keepalive.user_timeout)?;
    }
    Ok(())
}

/// Sends a cancel request the way the connection went that it is about.
///
/// # Errors
/// When the server cannot be reached that way.
pub async fn cancel(conninfo: &ConnInfo, line: &Line, token: &CancelToken) -> Result<(), DialError> {
    let opened = open(conninfo, &line.host, &line.address, line.is_encrypted).await?;
    let nobody = Arc::new(AtomicBool::new(false));
    let wire = Wire::new(opened.stream, None, conninfo.require_auth.clone(), nobody);
    token.cancel_query_raw(wire, Ready).await.map_err(DialError::Server)
}
