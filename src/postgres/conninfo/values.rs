//! What the values of single options mean. Pure.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use super::ConnInfoError;
use super::environment::Environment;
use super::options::Options;

/// In order of strength.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl SslMode {
    pub const WORDS: [(&'static str, Self); 6] = [
        ("disable", Self::Disable),
        ("allow", Self::Allow),
        ("prefer", Self::Prefer),
        ("require", Self::Require),
        ("verify-ca", Self::VerifyCa),
        ("verify-full", Self::VerifyFull),
    ];

    /// The mode that allows the same ways, and tries first the one that has led to the server.
    #[must_use]
    pub fn after(self, was_encrypted: bool) -> Self {
        match self {
            Self::Allow | Self::Prefer if was_encrypted => Self::Prefer,
            Self::Allow | Self::Prefer => Self::Allow,
            strict => strict,
        }
    }
}

impl fmt::Display for SslMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, _) = Self::WORDS.iter().find(|(_, mode)| mode == self).expect("every mode has its word");
        f.write_str(word)
    }
}

/// Who begins with TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SslNegotiation {
    /// The server, once asked.
    Postgres,
    /// The client, at once. PostgreSQL 17 and later.
    Direct,
}

impl SslNegotiation {
    pub const WORDS: [(&'static str, Self); 2] = [("postgres", Self::Postgres), ("direct", Self::Direct)];
}

/// Whether the client shows a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CertificateMode {
    Disable,
    Allow,
    Require,
}

impl CertificateMode {
    pub const WORDS: [(&'static str, Self); 3] =
        [("disable", Self::Disable), ("allow", Self::Allow), ("require", Self::Require)];
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelBinding {
    Disable,
    Prefer,
    Require,
}

impl ChannelBinding {
    pub const WORDS: [(&'static str, Self); 3] =
        [("disable", Self::Disable), ("prefer", Self::Prefer), ("require", Self::Require)];
}

/// What a server must be like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionAttrs {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

impl SessionAttrs {
    pub const WORDS: [(&'static str, Self); 6] = [
        ("any", Self::Any),
        ("read-write", Self::ReadWrite),
        ("read-only", Self::ReadOnly),
        ("primary", Self::Primary),
        ("standby", Self::Standby),
        ("prefer-standby", Self::PreferStandby),
    ];
}

impl fmt::Display for SessionAttrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, _) = Self::WORDS.iter().find(|(_, attrs)| attrs == self).expect("each has its word");
        f.write_str(word)
    }
}

pub const BALANCE_WORDS: [(&str, bool); 2] = [("disable", false), ("random", true)];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TlsVersion {
    V1_0,
    V1_1,
    V1_2,
    V1_3,
}

const TLS_WORDS: [(&str, TlsVersion); 4] = [
    ("TLSv1", TlsVersion::V1_0),
    ("TLSv1.1", TlsVersion::V1_1),
    ("TLSv1.2", TlsVersion::V1_2),
    ("TLSv1.3", TlsVersion::V1_3),
];

/// One of the servers that a connection string names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// A name, an address, or the directory of a socket (`@` before one that is in no directory). What a
    /// certificate must be for. Empty when only `address` is given.
    pub name: String,
    /// Where to connect instead of looking the name up.
    pub address: Option<String>,
    pub port: u16,
}

impl Host {
    pub fn is_socket(&self) -> bool {
        self.address.is_none() && self.name.starts_with(['/', '@'])
    }

    /// What the password file calls it.
    pub fn passfile_name(&self) -> &str {
        if self.name == Environment::socket_directory() { "localhost" } else { self.place() }
    }

    /// What people call it, without the port.
    pub fn place(&self) -> &str {
        match &self.address {
            Some(address) if self.name.is_empty() => address,
            _ => &self.name,
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.place(), self.port)
    }
}

/// The servers: as many as there are addresses, or else names, with a port each or one for all.
pub fn hosts(options: &Options) -> Result<Vec<Host>, ConnInfoError> {
    let list = |name| options.filled(name).map(|value| value.split(',').collect::<Vec<_>>());
    let (names, addresses) = (list("host"), list("hostaddr"));
    let count = addresses.as_ref().or(names.as_ref()).map_or(1, Vec::len);
    let names = names.unwrap_or_else(|| vec![""; count]);
    if names.len() != count {
        let reason = format!("{count} addresses, and {} names in host", names.len());
        return Err(ConnInfoError::value("hostaddr", reason));
    }
    let ports = list("port").unwrap_or_else(|| vec![""]);
    if ports.len() != 1 && ports.len() != count {
        let reason = format!("{} ports for {count} hosts; give one for all, or one each", ports.len());
        return Err(ConnInfoError::value("port", reason));
    }
    let host = |at: usize| {
        let address = addresses.as_ref().map(|addresses| addresses[at]).filter(|it| !it.is_empty());
        if address.is_some_and(|address| !is_address(address)) {
            return Err(ConnInfoError::value("hostaddr", "not an IP address; a name belongs to host"));
        }
        let name = match names[at] {
            "" if address.is_none() => Environment::socket_directory(),
            name => name,
        };
        let port = ports.get(at).unwrap_or(&ports[0]);
        Ok(Host { name: name.to_owned(), address: address.map(str::to_owned), port: self::port(port)? })
    };
    (0..count).map(host).collect()
}

fn is_address(text: &str) -> bool {
    let (address, _scope) = text.split_once('%').unwrap_or((text, ""));
    address.parse::<IpAddr>().is_ok()
}

/// The value is not repeated: it may be what follows a colon in a password that is not percent-encoded.
fn port(text: &str) -> Result<u16, ConnInfoError> {
    if text.is_empty() {
        return Ok(5432);
    }
    let port = integer("port", text)?;
    u16::try_from(port)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| ConnInfoError::value("port", "not between 1 and 65535"))
}

/// An integer as C's `strtol` reads it, space around it included.
fn integer(option: &'static str, text: &str) -> Result<i32, ConnInfoError> {
    let trimmed = text.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\u{b}');
    trimmed.parse().map_err(|_| ConnInfoError::value(option, "not an integer"))
}

/// A count that means something when it is above 0 only.
pub fn count(options: &Options, name: &'static str) -> Result<Option<u32>, ConnInfoError> {
    let Some(text) = options.get(name) else { return Ok(None) };
    Ok(u32::try_from(integer(name, text)?).ok().filter(|count| *count > 0))
}

/// The value of an option that is one of a few words.
pub fn choose<T: Copy>(
    options: &Options,
    name: &'static str,
    words: &[(&'static str, T)],
) -> Result<T, ConnInfoError> {
    let value = options.get(name).unwrap_or_default();
    if let Some((_, meaning)) = words.iter().find(|(word, _)| *word == value) {
        return Ok(*meaning);
    }
    let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
    Err(ConnInfoError::value(name, format!("{value:?} is none of {}", words.join(", "))))
}

pub fn tls_version(options: &Options, name: &'static str) -> Result<Option<TlsVersion>, ConnInfoError> {
    let Some(value) = options.filled(name) else { return Ok(None) };
    let version = TLS_WORDS.iter().find(|(word, _)| word.eq_ignore_ascii_case(value));
    let Some((_, version)) = version else {
        let words: Vec<&str> = TLS_WORDS.iter().map(|(word, _)| *word).collect();
        return Err(ConnInfoError::value(name, format!("{value:?} is none of {}", words.join(", "))));
    };
    Ok(Some(*version))
}

/// When a silent TCP connection counts as dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    pub is_on: bool,
    /// Of silence, before the first probe.
    pub idle: Option<Duration>,
    pub interval: Option<Duration>,
    pub count: Option<u32>,
    /// How long what was sent may stay unacknowledged.
    pub user_timeout: Option<Duration>,
}

impl Keepalive {
    pub fn of(options: &Options) -> Result<Self, ConnInfoError> {
        let seconds = |name| Ok(count(options, name)?.map(|seconds| Duration::from_secs(seconds.into())));
        let is_on = match options.get("keepalives") {
            Some(text) => integer("keepalives", text)? != 0,
            None => true,
        };
        Ok(Self {
            is_on,
            idle: seconds("keepalives_idle")?,
            interval: seconds("keepalives_interval")?,
            count: count(options, "keepalives_count")?,
            user_timeout: count(options, "tcp_user_timeout")?.map(|ms| Duration::from_millis(ms.into())),
        })
    }
}

/// A way in which a server lets a client in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMethod {
    Password,
    Md5,
    Gss,
    Sspi,
    Scram,
    OAuth,
}

impl AuthMethod {
    const WORDS: [(&'static str, Self); 6] = [
        ("password", Self::Password),
        ("md5", Self::Md5),
        ("gss", Self::Gss),
        ("sspi", Self::Sspi),
        ("scram-sha-256", Self::Scram),
        ("oauth", Self::OAuth),
    ];
}

impl fmt::Display for AuthMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, _) = Self::WORDS.iter().find(|(_, method)| method == self).expect("each has its word");
        f.write_str(word)
    }
}

/// In which ways a server may let us in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequireAuth {
    Any,
    /// These, and perhaps without any question.
    Only {
        methods: Vec<AuthMethod>,
        or_none: bool,
    },
    /// None of these, and perhaps not without a question.
    Not {
        methods: Vec<AuthMethod>,
        nor_none: bool,
    },
}

impl RequireAuth {
    pub fn of(options: &Options) -> Result<Self, ConnInfoError> {
        const OPTION: &str = "require_auth";
        let wrong = |reason: String| Err(ConnInfoError::value(OPTION, reason));
        let Some(list) = options.filled(OPTION) else { return Ok(Self::Any) };
        let is_negative = list.starts_with('!');
        let (mut methods, mut none) = (Vec::new(), false);
        for part in list.split(',') {
            let word = part.strip_prefix('!');
            if word.is_some() != is_negative {
                return wrong("methods with and without a ! cannot be mixed".to_owned());
            }
            let word = word.unwrap_or(part);
            let known = AuthMethod::WORDS.iter().find(|(known, _)| *known == word);
            let is_repeated = match known {
                Some((_, method)) if methods.contains(method) => true,
                Some((_, method)) => {
                    methods.push(*method);
                    false
                }
                None if word == "none" => std::mem::replace(&mut none, true),
                None => {
                    let words: Vec<&str> = AuthMethod::WORDS.iter().map(|(word, _)| *word).collect();
                    return wrong(format!("{word:?} is none of {}, none", words.join(", ")));
                }
            };
            if is_repeated {
                return wrong(format!("{word:?} stands there twice"));
            }
        }
        Ok(match is_negative {
            true => Self::Not { methods, nor_none: none },
            false => Self::Only { methods, or_none: none },
        })
    }

    pub fn allows(&self, method: AuthMethod) -> bool {
        match self {
            Self::Any => true,
            Self::Only { methods, .. } => methods.contains(&method),
            Self::Not { methods, .. } => !methods.contains(&method),
        }
    }

    /// Whether the server may let us in without asking anything.
    pub fn allows_none(&self) -> bool {
        match self {
            Self::Any => true,
            Self::Only { or_none, .. } => *or_none,
            Self::Not { nor_none, .. } => !nor_none,
        }
    }
}

/// What libpq can do and this cannot is refused, not ignored, where ignoring it would change who may listen or
/// who is let in.
pub fn refuse_unsupported(options: &Options) -> Result<(), ConnInfoError> {
    let refuse = |name, reason: &str| Err(ConnInfoError::value(name, reason));
    match options.get("gssencmode").unwrap_or_default() {
        "disable" | "prefer" => {}
        "require" => {
            return refuse(
                "gssencmode",
                "GSSAPI is not supported; encrypt by TLS (sslmode) and leave this out",
            );
        }
        _ => return refuse("gssencmode", "none of disable, prefer, require"),
    }
    for name in ["min_protocol_version", "max_protocol_version"] {
        match options.filled(name) {
            None | Some("3.0") => {}
            Some("latest") if name == "max_protocol_version" => {}
            Some(_) => return refuse(name, "only version 3.0 of the protocol is spoken; leave it out"),
        }
    }
    if options.filled("replication").is_some_and(|value| !matches!(value, "false" | "off" | "no" | "0")) {
        return refuse("replication", "not for a collector, which needs ordinary sessions; leave it out");
    }
    if options.filled("sslkeylogfile").is_some() {
        return refuse("sslkeylogfile", "not supported: keys are not written down");
    }
    if options.filled("sslkey").is_some_and(|key| !key.starts_with('/') && key.starts_with("engine:")) {
        return refuse("sslkey", "a key of an OpenSSL engine is not supported; give a file");
    }
    for name in ["scram_client_key", "scram_server_key"] {
        if options.filled(name).is_some() {
            return refuse(name, "not supported; give a password");
        }
    }
    for name in ["oauth_issuer", "oauth_client_id", "oauth_client_secret", "oauth_scope"] {
        if options.filled(name).is_some() {
            return refuse(name, "OAuth is not supported; use a password, password_command or a certificate");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_worked_changes_the_order_of_the_ways_and_not_which_there_are() {
        use SslMode::{Allow, Disable, Prefer, Require, VerifyCa, VerifyFull};
        let after = |was_encrypted| SslMode::WORDS.map(|(_, mode)| mode.after(was_encrypted));
        assert_eq!(after(false), [Disable, Allow, Allow, Require, VerifyCa, VerifyFull]);
        assert_eq!(after(true), [Disable, Prefer, Prefer, Require, VerifyCa, VerifyFull]);
    }
}
