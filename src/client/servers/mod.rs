//! `powa-collector servers`: which servers there are to collect.
//!
//! PoWA's own functions change that, in one transaction, and a collector at work is told. A server is tried before, as the
//! collector would read it, and nothing is left behind of what did not come to its end, however it ended.
//!
//! What is said goes to standard error. Standard output is for data: the list, and the SQL that a server lacks.

mod add;
mod administration;
mod list;
pub mod options;
mod password;
mod remove;
mod set;

use std::io::{self, Write as _};
use std::time::Duration;

use self::options::Action;
use super::ClientError;
use crate::config::Configuration;
use crate::postgres::conninfo::environment::Environment;
use crate::postgres::conninfo::{ConnInfo, ConnInfoError, Given};
use crate::postgres::extension::PowaVersion;
use crate::postgres::repository::RepositoryError;
use crate::postgres::secret::Secret;
use crate::postgres::text::{causes, one_line};
use crate::server::{Name, Server};
use crate::snapshot::plan::PlanError;

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ServersError {
    #[error("--dsn: {0}")]
    Dsn(ConnInfoError),
    /// What the command line asks for cannot be.
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Unreachable(#[from] RepositoryError),
    #[error(transparent)]
    Unusable(#[from] PlanError),
    #[error(transparent)]
    NotFound(#[from] ClientError),
    #[error("the server was removed meanwhile")]
    Gone,
    #[error("the role {role} may not do this in the repository: {reason}; name one that may by --dsn: {who}")]
    Denied { role: String, reason: String, who: &'static str },
    #[error("the repository: {}", causes(.0))]
    Connection(tokio_postgres::Error),
    #[error("the repository does not answer within {} s", .0.as_secs())]
    Deadline(Duration),
    #[error("somebody else works on it, or a snapshot of it is being stored: try again")]
    Busy,
    #[error("{0}")]
    Taken(String),
    #[error("PoWA {version} does not know the extension {name:?}, or cannot read it")]
    Extension { name: String, version: PowaVersion },
    #[error("the repository's last answer was lost: `servers list` shows whether it is done")]
    InDoubt,
    #[error("no password: {0}")]
    Password(io::Error),
    #[error("write the output: {0}")]
    Output(#[from] io::Error),
}

impl ServersError {
    /// Whether it is that the command line cannot be used.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Dsn(_) | Self::Usage(_))
    }
}

/// Does it. `dsn`: how to connect to the repository, if not as the configuration says. True when it is done.
///
/// # Errors
/// When it is not, for another reason than what a server lacks.
pub async fn run(
    mut configuration: Configuration,
    dsn: Option<&Secret>,
    action: &Action,
) -> Result<bool, ServersError> {
    if let Some(dsn) = dsn {
        let given = Given::by_string(dsn).map_err(ServersError::Dsn)?;
        configuration.repository =
            ConnInfo::to_write(&given, &Environment::of_process()).map_err(ServersError::Dsn)?;
    }
    match action {
        Action::List { json } => list::list(&configuration, *json).await,
        Action::Add(wanted) => add::add(&configuration, wanted).await,
        Action::Set(wanted) => set::set(&configuration, wanted).await,
        Action::Remove(wanted) => remove::remove(&configuration, wanted).await,
    }
}

/// A server, for people.
fn called(server: &Server) -> String {
    let address = server.name(false);
    let names = server.alias.as_ref().map_or_else(|| address.clone(), |alias| format!("{alias}, {address}"));
    format!("server {} ({})", server.id, one_line(&names))
}

/// Makes sure that no other server is called as this one is to be.
fn check_names(server: &Server, names: &[Name]) -> Result<(), ServersError> {
    let address = server.name(false);
    for Name { id, alias, address: taken } in names.iter().filter(|name| name.id != server.id) {
        if *taken == address {
            let what =
                format!("{address:?} is registered already, as server {id}; `servers set {id}` changes it");
            return Err(ServersError::Taken(what));
        }
        if alias.is_some() && *alias == server.alias {
            let what =
                format!("the alias {:?} is taken by server {id}", alias.as_deref().unwrap_or_default());
            return Err(ServersError::Taken(what));
        }
    }
    Ok(())
}

/// Writes to standard output. That nobody reads it changes nothing of what is done.
fn hand_out(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}
