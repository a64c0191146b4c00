//! Where and how to connect, as libpq would from the same string, environment and files.
//!
//! The way of an option: [`parse`] or a row of `powa_servers` → [`Given`] → what is open from the
//! [`service`], then the [`environment`], then libpq's defaults → [`ConnInfo`], which cannot be wrong in form.
//! The password alone may come later, with each login: from a command, or else the [`passfile`].

pub mod environment;
pub mod options;
pub mod parse;
pub mod passfile;
pub mod service;
pub mod values;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::environment::Environment;
use self::options::{KEYWORDS, Options};
use self::values::{
    CertificateMode, ChannelBinding, Host, Keepalive, RequireAuth, SessionAttrs, SslMode, SslNegotiation,
    TlsVersion,
};
use super::password_command::PasswordCommand;
use super::secret::Secret;

/// What is wrong with how to connect. Never repeats what might be a password.
#[derive(Debug, thiserror::Error)]
pub enum ConnInfoError {
    #[error("character {character} of the connection string: {what}")]
    Syntax { character: usize, what: &'static str },
    #[error("character {character} of the connection string: {error}")]
    At { character: usize, error: Box<ConnInfoError> },
    #[error("there is no option {name:?}; the nearest is {nearest:?}")]
    Unknown { name: String, nearest: &'static str },
    #[error(
        "libpq has no option of the name that stands there, which is not shown: it may be part of a password \
         that is not quoted (in a URI: not percent-encoded); the nearest is {nearest:?}"
    )]
    UnknownHidden { nearest: &'static str },
    #[error("option {option}: {reason}")]
    Value { option: &'static str, reason: String },
    #[error("option {option}: {} cannot be read: {error}", file.display())]
    File { option: &'static str, file: PathBuf, error: io::Error },
    #[error("the port {0} is not between 1 and 65535")]
    Port(i32),
}

/// How much alike a wrong name and a right one must be for the wrong one to be shown.
const LIKENESS: f64 = 0.85;

impl ConnInfoError {
    fn unknown(name: &str) -> Self {
        let nearest = options::nearest(name, &[]);
        let is_word = name.chars().all(|c| c.is_ascii_alphabetic() || c == '_');
        if is_word && strsim::jaro_winkler(name, nearest) >= LIKENESS {
            Self::Unknown { name: name.to_owned(), nearest }
        } else {
            Self::UnknownHidden { nearest }
        }
    }

    /// The same, without the name that it shows, if it shows one.
    fn hidden(self) -> Self {
        match self {
            Self::Unknown { nearest, .. } => Self::UnknownHidden { nearest },
            error => error,
        }
    }

    pub(super) fn value(option: &'static str, reason: impl Into<String>) -> Self {
        Self::Value { option, reason: reason.into() }
    }
}

fn file_error(option: &'static str, file: &Path, error: io::Error) -> ConnInfoError {
    ConnInfoError::File { option, file: file.to_owned(), error }
}

/// What is said of a connection before service, environment and defaults fill in the rest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Given {
    pub options: Options,
    /// Where the password comes from when `options` has none.
    pub password_command: Option<Arc<PasswordCommand>>,
}

impl Given {
    /// What a connection string says.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn by_string(dsn: &Secret) -> Result<Self, ConnInfoError> {
        Ok(Self { options: parse::parse(dsn.reveal())?, password_command: None })
    }

    /// This, and what `other` says of what this leaves open.
    #[must_use]
    pub fn or(&self, other: &Given) -> Given {
        let mut both = self.clone();
        // A command is one more way to say the password: whoever is first says it.
        let has_password = self.options.filled("password").is_some();
        if both.password_command.is_none() && !has_password {
            both.password_command.clone_from(&other.password_command);
        }
        both.options.fill_from(&other.options);
        if self.password_command.is_some() && !has_password {
            both.options.remove("password");
        }
        both
    }

    /// The same, with a password of its own: what a command prints may differ from server to server.
    #[must_use]
    pub fn on_its_own(&self) -> Given {
        let command = self.password_command.as_ref().map(|command| Arc::new(command.on_its_own()));
        Given { options: self.options.clone(), password_command: command }
    }

    /// Fills in what is open, in libpq's order: service, environment, default.
    ///
    /// # Errors
    /// When the service cannot be found, or nothing tells the user.
    pub fn complete(&self, environment: &Environment) -> Result<Options, ConnInfoError> {
        let mut options = self.said(environment)?;
        if options.get("sslmode").is_none() && options.get("sslrootcert") == Some("system") {
            options.set("sslmode", "verify-full")?;
        }
        for keyword in &KEYWORDS {
            if let Some(default) = keyword.default {
                options.fill(keyword, default);
            }
        }
        if options.filled("user").is_none() {
            let Some(user) = environment.user() else {
                return Err(ConnInfoError::value("user", "not given, and the system has no name of ours"));
            };
            options.set("user", &user)?;
        }
        if options.filled("dbname").is_none() {
            let user = options.get("user").unwrap_or_default().to_owned();
            options.set("dbname", &user)?;
        }
        Ok(options)
    }

    /// What somebody has said: here, in the service or in the environment.
    fn said(&self, environment: &Environment) -> Result<Options, ConnInfoError> {
        let mut options = self.options.clone();
        let service = options.get("service").map(str::to_owned).or_else(|| {
            environment.variable("PGSERVICE").map(|service| service.to_string_lossy().into_owned())
        });
        if let Some(service) = service {
            options.fill_from(&service::read(&service, environment)?);
        }
        for keyword in &KEYWORDS {
            if options.get(keyword.name).is_some() {
                continue;
            }
            if let Some(value) = keyword.variable.and_then(|variable| environment.variable(variable)) {
                let value = value.into_string().map_err(|_| {
                    ConnInfoError::value(keyword.name, "the value in the environment is not UTF-8")
                })?;
                options.fill(keyword, &value);
            } else if keyword.name == "sslmode" {
                let requires = environment
                    .variable("PGREQUIRESSL")
                    .is_some_and(|value| value.as_encoded_bytes().starts_with(b"1"));
                if requires {
                    options.fill(keyword, "require");
                }
            }
        }
        Ok(options)
    }
}

/// A server to connect to, and how.
#[derive(Clone, PartialEq, Eq)]
pub struct ConnInfo {
    /// In the order in which they are tried, unless `balances_hosts`.
    pub hosts: Vec<Host>,
    pub balances_hosts: bool,
    pub session_attrs: SessionAttrs,
    pub user: String,
    pub dbname: String,
    pub password: Password,
    /// Where to look for a password when there is none.
    pub passfile: Option<PathBuf>,
    pub require_auth: RequireAuth,
    pub channel_binding: ChannelBinding,
    /// The operating system's user whom the server of a socket must belong to.
    pub peer: Option<String>,
    /// Seconds for each address, from the connection string.
    pub connect_timeout: Option<u32>,
    pub keepalive: Keepalive,
    /// What the server is sent as `options`.
    pub server_options: Option<String>,
    pub tls: Tls,
}

/// Where the password comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Password {
    /// Perhaps from the password file.
    Open,
    Given(Secret),
    Command(Arc<PasswordCommand>),
}

/// How TLS is wanted. Files that have a default are `None` when nobody names them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tls {
    pub mode: SslMode,
    pub negotiation: SslNegotiation,
    pub sends_name: bool,
    pub roots: Roots,
    pub crl: Option<PathBuf>,
    pub crl_directory: Option<PathBuf>,
    pub certificate: Option<PathBuf>,
    pub certificate_mode: CertificateMode,
    pub key: Option<PathBuf>,
    pub key_password: Option<Secret>,
    pub minimum: Option<TlsVersion>,
    pub maximum: Option<TlsVersion>,
    /// Where the files are that nobody names: `~/.postgresql`.
    pub directory: Option<PathBuf>,
}

/// Whom to trust.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Roots {
    /// `root.crt` in libpq's directory, if it is there.
    Default,
    File(PathBuf),
    /// Whom the operating system trusts.
    System,
}

impl fmt::Debug for ConnInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

impl ConnInfo {
    /// Reads a URI (`postgresql://…`) or a keyword/value string; what it leaves open comes from where libpq
    /// looks for it.
    ///
    /// # Errors
    /// When the string or what it refers to is wrong.
    pub fn parse(dsn: &Secret) -> Result<Self, ConnInfoError> {
        Self::new(&Given::by_string(dsn)?, &Environment::of_process())
    }

    /// # Errors
    /// When what is given, or what it refers to, is wrong.
    pub fn new(given: &Given, environment: &Environment) -> Result<Self, ConnInfoError> {
        let options = given.complete(environment)?;
        let mut conninfo = Self::of_complete(&options, environment)?;
        if given.options.filled("password").is_none() {
            if let Some(command) = &given.password_command {
                conninfo.password = Password::Command(Arc::clone(command));
            }
        }
        Ok(conninfo)
    }

    /// To a server that is to be written to. Of several hosts it is one that takes changes, unless somebody says what
    /// it is to be like: libpq takes the first that answers. One host is taken as it is, since there is no other.
    ///
    /// # Errors
    /// As [`ConnInfo::new`].
    pub fn to_write(given: &Given, environment: &Environment) -> Result<Self, ConnInfoError> {
        let mut conninfo = Self::new(given, environment)?;
        let is_open = given.said(environment)?.get("target_session_attrs").is_none();
        if is_open && conninfo.hosts.len() > 1 {
            conninfo.session_attrs = SessionAttrs::ReadWrite;
        }
        Ok(conninfo)
    }

    fn of_complete(options: &Options, environment: &Environment) -> Result<Self, ConnInfoError> {
        values::refuse_unsupported(options)?;
        let path = |name| options.filled(name).map(PathBuf::from);
        let minimum = values::tls_version(options, "ssl_min_protocol_version")?;
        let maximum = values::tls_version(options, "ssl_max_protocol_version")?;
        if minimum.zip(maximum).is_some_and(|(minimum, maximum)| minimum > maximum) {
            let reason = "it is below ssl_min_protocol_version".to_owned();
            return Err(ConnInfoError::value("ssl_max_protocol_version", reason));
        }
        let mode = values::choose(options, "sslmode", &SslMode::WORDS)?;
        let roots = match options.filled("sslrootcert") {
            None => Roots::Default,
            Some("system") => Roots::System,
            Some(file) => Roots::File(file.into()),
        };
        if roots == Roots::System && mode != SslMode::VerifyFull {
            let reason = "sslrootcert=system needs verify-full: below it, anyone whom the system trusts could \
                          take the server's place";
            return Err(ConnInfoError::value("sslmode", reason));
        }
        let negotiation = values::choose(options, "sslnegotiation", &SslNegotiation::WORDS)?;
        if negotiation == SslNegotiation::Direct && mode < SslMode::Require {
            let reason = "direct needs sslmode require, verify-ca or verify-full";
            return Err(ConnInfoError::value("sslnegotiation", reason));
        }
        Ok(Self {
            hosts: values::hosts(options)?,
            balances_hosts: values::choose(options, "load_balance_hosts", &values::BALANCE_WORDS)?,
            session_attrs: values::choose(options, "target_session_attrs", &SessionAttrs::WORDS)?,
            user: options.get("user").unwrap_or_default().to_owned(),
            dbname: options.get("dbname").unwrap_or_default().to_owned(),
            password: options
                .filled("password")
                .map_or(Password::Open, |it| Password::Given(Secret::new(it))),
            passfile: path("passfile").or_else(|| environment.home_file(".pgpass")),
            require_auth: RequireAuth::of(options)?,
            channel_binding: values::choose(options, "channel_binding", &ChannelBinding::WORDS)?,
            peer: options.filled("requirepeer").map(str::to_owned),
            connect_timeout: values::count(options, "connect_timeout")?,
            keepalive: Keepalive::of(options)?,
            server_options: options.filled("options").map(str::to_owned),
            tls: Tls {
                mode,
                negotiation,
                sends_name: options.get("sslsni").is_some_and(|value| value.starts_with('1')),
                roots,
                crl: path("sslcrl"),
                crl_directory: path("sslcrldir"),
                certificate: path("sslcert"),
                certificate_mode: values::choose(options, "sslcertmode", &CertificateMode::WORDS)?,
                key: path("sslkey"),
                key_password: options.filled("sslpassword").map(Secret::new),
                minimum,
                maximum,
                directory: environment.home_file(".postgresql"),
            },
        })
    }

    /// The same server, another database.
    #[must_use]
    pub fn with_database(&self, dbname: &str) -> Self {
        Self { dbname: dbname.to_owned(), ..self.clone() }
    }

    /// `user@host:port/database`, for people: without the password.
    pub fn describe(&self) -> String {
        format!("{}@{}", self.user, self.place())
    }

    /// The same, whoever connects.
    pub fn place(&self) -> String {
        let places: Vec<String> = self.hosts.iter().map(Host::to_string).collect();
        format!("{}/{}", places.join(","), self.dbname)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn an_unknown_option_is_named_with_the_nearest() {
        let told = error("host=a sslmod=require");
        assert_eq!(
            told,
            r#"character 8 of the connection string: there is no option "sslmod"; the nearest is "sslmode""#
        );
        assert!(error("postgresql://h/d?sslmod=require").contains(r#""sslmod"; the nearest is "sslmode""#));
    }

    #[test]
    fn what_is_written_to_must_take_changes_where_there_is_a_choice() {
        let attrs = |dsn: &str, variables: &[(&str, &str)]| {
            let home = tempfile::tempdir().unwrap();
            let services = home.path().join("services");
            std::fs::write(&services, "[plain]\nport=1\n[said]\ntarget_session_attrs=any\n").unwrap();
            let services = services.to_str().unwrap().to_owned();
            let mut all = vec![("HOME", "/nonexistent"), ("PGSERVICEFILE", &services)];
            all.extend(variables);
            let given = Given::by_string(&Secret::new(dsn)).unwrap();
            ConnInfo::to_write(&given, &Environment::of(&all)).unwrap().session_attrs
        };
        for (dsn, expected) in [
            ("user=u host=a", SessionAttrs::Any),
            ("user=u host=a,b", SessionAttrs::ReadWrite),
            ("user=u hostaddr=127.0.0.1,127.0.0.2", SessionAttrs::ReadWrite),
            ("user=u host=a,b service=plain", SessionAttrs::ReadWrite),
            ("user=u host=a,b service=said", SessionAttrs::Any),
            ("user=u host=a,b target_session_attrs=any", SessionAttrs::Any),
            ("user=u host=a,b target_session_attrs=primary", SessionAttrs::Primary),
            ("user=u host=a target_session_attrs=read-write", SessionAttrs::ReadWrite),
        ] {
            assert_eq!(attrs(dsn, &[]), expected, "{dsn}");
        }
        assert_eq!(attrs("user=u", &[("PGHOST", "a,b")]), SessionAttrs::ReadWrite);
        assert_eq!(attrs("user=u host=a,b", &[("PGTARGETSESSIONATTRS", "any")]), SessionAttrs::Any);
    }

    #[test]
    fn what_may_be_the_rest_of_a_password_is_not_shown() {
        for text in [
            "password=the s3cr3t=x",
            "password=the sslmod=x",
            "host=h s3rvice=x",
            "postgresql://u:pa/s?sslmod=1@h/d",
        ] {
            let told = error(text);
            assert!(told.contains("which is not shown"), "{told}");
            for part in ["s3cr3t", "\"sslmod\"", "s3rvice"] {
                assert!(!told.contains(part), "{told}");
            }
        }
    }
}
