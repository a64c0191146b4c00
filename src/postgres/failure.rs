//! Why there is no connection, and what that means for the next try.

use std::io;
use std::time::Duration;

use tokio_postgres::error::SqlState;

use super::conninfo::values::SessionAttrs;
use super::login::LoginError;
use super::password_command::PasswordCommandError;
use super::text::causes;
use super::tls::TlsError;

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

    /// Whether the server has answered and does not let this role into this database. Perhaps there is no such role, no
    /// such database, or no right: it may not say which, and asks also a role for its password that is not there.
    pub fn is_refusal(&self) -> bool {
        let states = [
            SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
            SqlState::INVALID_PASSWORD,
            SqlState::INVALID_CATALOG_NAME,
            SqlState::INSUFFICIENT_PRIVILEGE,
        ];
        match self {
            Self::NoPassword { .. } => true,
            Self::Both { first, second, .. } => first.is_refusal() || second.is_refusal(),
            _ => self.sql_state().is_some_and(|state| states.contains(state)),
        }
    }

    /// Whether libpq goes on to the next host: one that answers and lets nobody in is the last one tried.
    pub fn tries_next_host(&self) -> bool {
        match self {
            Self::Resolve(_) | Self::Connect(_) | Self::Deadline(_) | Self::Attrs(_) => true,
            Self::Server(_) | Self::Admission(_) => self.sql_state() == Some(&SqlState::CANNOT_CONNECT_NOW),
            _ => false,
        }
    }

    /// Whether nobody has answered.
    pub fn is_silence(&self) -> bool {
        matches!(self, Self::Resolve(_) | Self::Connect(_) | Self::Deadline(_))
    }

    /// Whether the other of TLS and no TLS may do better.
    pub fn may_depend_on_tls(&self) -> bool {
        match self {
            // What comes after the handshake is as final to libpq as bytes before it; a file is not.
            Self::Tls(error) => !matches!(error, TlsError::Alert(_) | TlsError::Early),
            Self::Server(error) => error.code().is_some_and(|state| *state != SqlState::CANNOT_CONNECT_NOW),
            _ => false,
        }
    }
}
