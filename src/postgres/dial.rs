//! From a [`ConnInfo`] to a connection that is logged in: which host, which of its addresses, with TLS or
//! without, which password. In the order and with the second tries of libpq.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use rand::seq::SliceRandom;
use tokio::time::timeout;
use tokio_postgres::{CancelToken, Client, Config, Connection, config};

use super::conninfo::passfile::{self, Lookup};
use super::conninfo::values::{ChannelBinding, Host, SslMode};
use super::conninfo::{ConnInfo, Password};
use super::failure::DialError;
use super::login::{LoginError, Progress, Ready, Wire};
use super::secret::Secret;
use super::socket::{self, Address};
use super::tls::{self, TlsError};

/// The least that libpq makes of `connect_timeout`.
const LEAST_TIMEOUT: Duration = Duration::from_secs(2);

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

    pub fn is_encrypted(&self) -> bool {
        self.is_encrypted
    }
}

/// Why a host does not serve.
#[derive(Debug)]
pub struct Failure {
    pub host: Host,
    pub error: DialError,
}

/// Decides about a connection before anybody else sees it.
pub type Accept<'a, T> = &'a (dyn Fn(Dialled) -> BoxFuture<'a, Result<T, DialError>> + Send + Sync);

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
    for address in within(deadline, socket::addresses(host, conninfo.balances_hosts)).await? {
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

/// How one address is tried.
struct Attempt<'a> {
    conninfo: &'a ConnInfo,
    host: &'a Host,
    address: &'a Address,
    application_name: &'a str,
    /// For all up to the end of the login, but not for the program that prints the password.
    deadline: Duration,
}

/// An attempt that failed.
struct Failed {
    error: DialError,
    was_encrypted: bool,
    /// Whether another password might do better.
    is_by_password: bool,
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
    let Failed { error, was_encrypted, .. } = match attempt.with_password(first).await {
        Ok(dialled) => return Ok(dialled),
        Err(failed) => failed,
    };
    match second {
        // A server that has no TLS has been tried without it already.
        Some(second) if error.may_depend_on_tls() && second != was_encrypted => {
            match attempt.with_password(second).await {
                Ok(dialled) => {
                    if let DialError::Tls(TlsError::Option { .. } | TlsError::File { .. }) = error {
                        // As libpq; but whoever names a certificate wants to know that it is of no use.
                        let mode = conninfo.tls.mode;
                        warn_once(format!("no TLS with {host}, as sslmode {mode} allows: {error}"));
                    }
                    Ok(dialled)
                }
                // The server has no TLS: there is no second way.
                Err(Failed { error: DialError::Tls(TlsError::Refused(_)), .. }) => Err(error),
                Err(other) if other.error.to_string() == error.to_string() => Err(error),
                Err(other) => {
                    let (first, second, ends_with_tls) = (Box::new(error), Box::new(other.error), second);
                    Err(DialError::Both { first, second, ends_with_tls })
                }
            }
        }
        _ => Err(error),
    }
}

impl Attempt<'_> {
    /// Connects, secures and logs in. A password that a command printed some time ago and that is refused now
    /// is asked for anew, once.
    async fn with_password(&self, with_tls: bool) -> Result<Dialled, Failed> {
        let Password::Command(command) = &self.conninfo.password else {
            let mut ignored = None;
            let password = match &self.conninfo.password {
                Password::Given(password) => Some(password.clone()),
                _ => match passfile::look_up(self.conninfo, self.host.passfile_name(), self.host.port) {
                    Lookup::Found(password) => Some(password),
                    Lookup::Nothing => None,
                    Lookup::Ignored { file, reason } => {
                        let told = format!("the password file {} is ignored: {reason}", file.display());
                        ignored = Some(format!(" ({told})"));
                        warn_once(told);
                        None
                    }
                },
            };
            return self.log_in(with_tls, password.as_ref()).await.map_err(|failed| match failed.error {
                DialError::NoPassword { .. } => Failed { error: DialError::NoPassword { ignored }, ..failed },
                _ => failed,
            });
        };
        loop {
            let printed = command.password(self.conninfo).await.map_err(|error| Failed {
                error: error.into(),
                was_encrypted: with_tls,
                is_by_password: false,
            })?;
            match self.log_in(with_tls, Some(&printed.password)).await {
                Err(failed) if failed.is_by_password => {
                    command.forget(&printed.password).await;
                    if !printed.is_kept {
                        return Err(failed);
                    }
                    tracing::debug!("the password that password_command printed is refused: it is run again");
                }
                outcome => return outcome,
            }
        }
    }

    async fn log_in(&self, with_tls: bool, password: Option<&Secret>) -> Result<Dialled, Failed> {
        let mut was_encrypted = with_tls;
        let progress = Arc::new(Progress::default());
        let logging_in =
            self.log_in_at_leisure(with_tls, password, &mut was_encrypted, Arc::clone(&progress));
        within(self.deadline, logging_in).await.map_err(|error| {
            // A server that lets nobody in by this way has not looked at the password.
            let is_by_password = progress.was_asked() && is_login_failure(&error);
            Failed { error, was_encrypted, is_by_password }
        })
    }

    async fn log_in_at_leisure(
        &self,
        with_tls: bool,
        password: Option<&Secret>,
        is_encrypted: &mut bool,
        progress: Arc<Progress>,
    ) -> Result<Dialled, DialError> {
        let conninfo = self.conninfo;
        let opened = socket::open(conninfo, self.host, self.address, with_tls).await?;
        *is_encrypted = opened.is_encrypted;
        let must_bind = conninfo.channel_binding == ChannelBinding::Require;
        if must_bind && opened.channel_binding.is_none() {
            return Err(DialError::NoBinding(match opened.is_encrypted {
                true => "the signature of the server's certificate names no digest to bind to",
                false => "there is no TLS to bind to",
            }));
        }
        let allowed = conninfo.require_auth.clone();
        let wire = Wire::new(opened.stream, opened.channel_binding, allowed, Arc::clone(&progress));
        match config(conninfo, self.application_name, password).connect_raw(wire, Ready).await {
            Ok((client, connection)) => {
                let line = Line {
                    host: self.host.clone(),
                    address: self.address.clone(),
                    is_encrypted: opened.is_encrypted,
                };
                Ok(Dialled { client, connection, line })
            }
            Err(error) => Err(login_error(error, progress.is_in(), must_bind)),
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

/// Warns of what is so with every connection, the first time.
fn warn_once(what: String) {
    static TOLD: LazyLock<Mutex<HashSet<String>>> = LazyLock::new(Mutex::default);
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    if !told.contains(&what) {
        tracing::warn!("{what}");
        told.insert(what);
    }
}

/// Whether the login failed: PAM, LDAP and clouds refuse an expired one in their own ways, all
/// of this class.
fn is_login_failure(error: &DialError) -> bool {
    let DialError::Server(error) = error else { return false };
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

/// Sends a cancel request the way the connection went that it is about.
///
/// # Errors
/// When the server cannot be reached that way.
pub async fn cancel(conninfo: &ConnInfo, line: &Line, token: &CancelToken) -> Result<(), DialError> {
    let opened = socket::open(conninfo, &line.host, &line.address, line.is_encrypted).await?;
    let wire = Wire::new(opened.stream, None, conninfo.require_auth.clone(), Arc::default());
    token.cancel_query_raw(wire, Ready).await.map_err(DialError::Server)
}
