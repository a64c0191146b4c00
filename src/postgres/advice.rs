//! What to do about a connection that cannot be opened.

use std::fmt;
use std::io;

use nix::errno::Errno;
use tokio_postgres::error::SqlState;

use super::conninfo::ConnInfo;
use super::conninfo::values::SessionAttrs;
use super::extension::quote_identifier;
use super::failure::DialError;
use super::login::LoginError;
use super::text::causes;
use crate::descriptors;

/// One thing to do about what is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A statement to be run as it stands, where something is missing.
    Sql(String),
    /// What is to be completed first, or belongs elsewhere: a statement with a gap, a line of `pg_hba.conf`.
    Pattern(String),
    Remark(String),
}

impl Step {
    pub fn sql(text: impl Into<String>) -> Self {
        Self::Sql(text.into())
    }

    pub fn remark(text: impl Into<String>) -> Self {
        Self::Remark(text.into())
    }
}

/// As a line: SQL, a line of `pg_hba.conf`, or a remark behind `--`.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sql(text) | Self::Pattern(text) => f.write_str(text),
            Self::Remark(text) => write!(f, "-- {text}"),
        }
    }
}

/// The steps to take, in their order. None where the error says all.
pub fn advice(error: &DialError, conninfo: &ConnInfo) -> Vec<Step> {
    let remark = |text: &str| vec![Step::remark(text)];
    match error {
        DialError::Resolve(error) | DialError::Connect(error) if is_scarce(error) => {
            remark(descriptors::ADVICE)
        }
        DialError::Resolve(_) => remark("is the name right? hostaddr gives an address without asking for it"),
        DialError::Connect(_) | DialError::Deadline(_) => remark(
            "is the server running there, does listen_addresses include that address, does a firewall let the \
             connection through?",
        ),
        DialError::Tls(error) => error.advice(&conninfo.tls).iter().flat_map(|it| remark(it)).collect(),
        DialError::Login(LoginError::Unsupported(_)) => {
            remark("let it in by scram-sha-256 in the server's pg_hba.conf, or by cert")
        }
        DialError::Login(_) => remark("change the method in the server's pg_hba.conf, or require_auth"),
        DialError::NoPassword { ignored: None } => remark(
            "give it by password_command in the configuration, in the password file ~/.pgpass, or in powa_servers",
        ),
        DialError::NoBinding(_) => {
            remark("let it in by scram-sha-256 over TLS, or be content with channel_binding=prefer")
        }
        DialError::Server(error) | DialError::Admission(error) => match error.code() {
            Some(state) => of_refusal(state, &causes(error), conninfo),
            None => remark("is it a PostgreSQL server? its log may say more"),
        },
        DialError::Both { first, second, .. } => {
            let first = advice(first, conninfo);
            if first.is_empty() { advice(second, conninfo) } else { first }
        }
        DialError::Attrs(SessionAttrs::ReadWrite) => remark(
            "it is a standby, or default_transaction_read_only is on there: the host that takes changes must be \
             among those that are named",
        ),
        DialError::Attrs(_)
        | DialError::Command(_)
        | DialError::NoPassword { .. }
        | DialError::Peer { .. }
        | DialError::CertificateUnasked => Vec::new(),
    }
}

/// Whether this process, or the system, may not open any more files.
fn is_scarce(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|code| code == Errno::EMFILE as i32 || code == Errno::ENFILE as i32)
}

/// What the server itself says is known by its code; its words are for the details.
fn of_refusal(state: &SqlState, message: &str, conninfo: &ConnInfo) -> Vec<Step> {
    let user = quote_identifier(&conninfo.user);
    let database = quote_identifier(&conninfo.dbname);
    if *state == SqlState::INVALID_AUTHORIZATION_SPECIFICATION {
        if message.contains("pg_hba.conf") {
            let address = message.split("host \"").nth(1).and_then(|rest| rest.split('"').next());
            let from = match address {
                Some(address) if address.contains(':') => format!("{address}/128"),
                Some(address) => format!("{address}/32"),
                None => "ADDRESS".to_owned(),
            };
            return vec![
                Step::remark("add to the server's pg_hba.conf, then SELECT pg_reload_conf();"),
                Step::Pattern(format!("host  {database}  {user}  {from}  scram-sha-256")),
            ];
        }
        if message.contains("requires a valid client certificate") {
            return vec![Step::remark("name a certificate that the server trusts by sslcert and sslkey")];
        }
        if message.contains("certificate authentication failed") {
            return vec![Step::remark(format!(
                "the certificate's common name must be {user}, or pg_ident.conf must map it to that"
            ))];
        }
        let verb = if message.contains("not permitted to log in") { "ALTER" } else { "CREATE" };
        return vec![Step::sql(format!("{verb} ROLE {user} LOGIN;"))];
    }
    if *state == SqlState::INVALID_PASSWORD {
        let statement = format!("ALTER ROLE {user} PASSWORD '…';   -- or correct the one that is configured");
        return vec![Step::Pattern(statement)];
    }
    if *state == SqlState::INVALID_CATALOG_NAME {
        return vec![Step::sql(format!("CREATE DATABASE {database};"))];
    }
    if *state == SqlState::INSUFFICIENT_PRIVILEGE {
        return vec![Step::sql(format!("GRANT CONNECT ON DATABASE {database} TO {user};"))];
    }
    if *state == SqlState::TOO_MANY_CONNECTIONS {
        return vec![Step::remark(
            "max_connections of the server, or of the role or the database, is reached",
        )];
    }
    Vec::new()
}
