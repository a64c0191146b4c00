//! The options that libpq knows, and a set of values for them.

use std::collections::BTreeMap;
use std::fmt;

use super::ConnInfoError;

/// One of libpq's connection options. Source: the table in "Database Connection Control Functions" of
/// PostgreSQL's manual, as of version 18.
#[derive(Debug, PartialEq, Eq)]
pub struct Keyword {
    pub name: &'static str,
    /// The environment variable that gives it where nothing else does.
    pub variable: Option<&'static str>,
    /// What it is where nothing at all gives it.
    pub default: Option<&'static str>,
    /// Whether its value must never be seen.
    pub is_secret: bool,
}

const fn option(
    name: &'static str,
    variable: Option<&'static str>,
    default: Option<&'static str>,
) -> Keyword {
    Keyword { name, variable, default, is_secret: false }
}

const fn secret(name: &'static str, variable: Option<&'static str>) -> Keyword {
    Keyword { name, variable, default: None, is_secret: true }
}

/// Every option, by name.
pub const KEYWORDS: [Keyword; 50] = [
    option("application_name", Some("PGAPPNAME"), None),
    option("channel_binding", Some("PGCHANNELBINDING"), Some("prefer")),
    option("client_encoding", Some("PGCLIENTENCODING"), None),
    option("connect_timeout", Some("PGCONNECT_TIMEOUT"), None),
    option("dbname", Some("PGDATABASE"), None),
    option("fallback_application_name", None, None),
    option("gssdelegation", Some("PGGSSDELEGATION"), Some("0")),
    option("gssencmode", Some("PGGSSENCMODE"), Some("prefer")),
    option("gsslib", Some("PGGSSLIB"), None),
    option("host", Some("PGHOST"), None),
    option("hostaddr", Some("PGHOSTADDR"), None),
    option("keepalives", None, None),
    option("keepalives_count", None, None),
    option("keepalives_idle", None, None),
    option("keepalives_interval", None, None),
    option("krbsrvname", Some("PGKRBSRVNAME"), Some("postgres")),
    option("load_balance_hosts", Some("PGLOADBALANCEHOSTS"), Some("disable")),
    option("max_protocol_version", Some("PGMAXPROTOCOLVERSION"), None),
    option("min_protocol_version", Some("PGMINPROTOCOLVERSION"), None),
    option("oauth_client_id", None, None),
    secret("oauth_client_secret", None),
    option("oauth_issuer", None, None),
    option("oauth_scope", None, None),
    option("options", Some("PGOPTIONS"), Some("")),
    option("passfile", Some("PGPASSFILE"), None),
    secret("password", Some("PGPASSWORD")),
    option("port", Some("PGPORT"), Some("5432")),
    option("replication", None, None),
    option("require_auth", Some("PGREQUIREAUTH"), None),
    option("requirepeer", Some("PGREQUIREPEER"), None),
    secret("scram_client_key", None),
    secret("scram_server_key", None),
    option("service", Some("PGSERVICE"), None),
    option("ssl_max_protocol_version", Some("PGSSLMAXPROTOCOLVERSION"), None),
    option("ssl_min_protocol_version", Some("PGSSLMINPROTOCOLVERSION"), Some("TLSv1.2")),
    option("sslcert", Some("PGSSLCERT"), None),
    option("sslcertmode", Some("PGSSLCERTMODE"), Some("allow")),
    option("sslcompression", Some("PGSSLCOMPRESSION"), Some("0")),
    option("sslcrl", Some("PGSSLCRL"), None),
    option("sslcrldir", Some("PGSSLCRLDIR"), None),
    option("sslkey", Some("PGSSLKEY"), None),
    option("sslkeylogfile", None, None),
    option("sslmode", Some("PGSSLMODE"), Some("prefer")),
    option("sslnegotiation", Some("PGSSLNEGOTIATION"), Some("postgres")),
    secret("sslpassword", None),
    option("sslrootcert", Some("PGSSLROOTCERT"), None),
    option("sslsni", Some("PGSSLSNI"), Some("1")),
    option("target_session_attrs", Some("PGTARGETSESSIONATTRS"), Some("any")),
    option("tcp_user_timeout", None, None),
    option("user", Some("PGUSER"), None),
];

/// The option of that name.
pub fn keyword(name: &str) -> Option<&'static Keyword> {
    KEYWORDS.iter().find(|keyword| keyword.name == name)
}

/// The name that was probably meant, of options and of what else may stand in their place.
pub fn nearest(name: &str, others: &[&'static str]) -> &'static str {
    let likeness = |known: &&str| strsim::jaro_winkler(known, name);
    let known = KEYWORDS.iter().map(|keyword| keyword.name).chain(others.iter().copied());
    known.max_by(|a, b| likeness(a).total_cmp(&likeness(b))).expect("there are keywords")
}

/// Values of options. What is not set is open, which is not the same as empty.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Options(BTreeMap<&'static str, String>);

impl Options {
    pub fn get(&self, name: &str) -> Option<&str> {
        debug_assert!(keyword(name).is_some(), "{name}");
        self.0.get(name).map(String::as_str)
    }

    /// The value, where there is one and it is not empty: what libpq tells apart only while it looks for one.
    pub fn filled(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.is_empty())
    }

    /// Sets an option, over what it was.
    ///
    /// # Errors
    /// When there is no such option, or the value cannot be one.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), ConnInfoError> {
        // What came before sslmode; libpq still takes it.
        let (name, value) = match name {
            "requiressl" if value.starts_with('1') => ("sslmode", "require"),
            "requiressl" => ("sslmode", "prefer"),
            _ => (name, value),
        };
        let keyword = keyword(name).ok_or_else(|| ConnInfoError::unknown(name))?;
        if value.contains('\0') {
            return Err(ConnInfoError::value(keyword.name, "a zero byte cannot be part of it"));
        }
        self.0.insert(keyword.name, value.to_owned());
        Ok(())
    }

    /// Sets an option that is still open.
    pub fn fill(&mut self, keyword: &'static Keyword, value: &str) {
        self.0.entry(keyword.name).or_insert_with(|| value.to_owned());
    }

    /// Sets what is still open to what `other` has.
    pub fn fill_from(&mut self, other: &Options) {
        for (name, value) in &other.0 {
            self.0.entry(name).or_insert_with(|| value.clone());
        }
    }

    /// Leaves an option open again.
    pub fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// Whether one is set whose value must never be seen.
    pub fn has_secret(&self) -> bool {
        self.0.keys().any(|name| keyword(name).is_some_and(|keyword| keyword.is_secret))
    }

    /// The names of the options that are set.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.keys().copied()
    }

    /// The names of the options that differ.
    pub fn differences<'a>(&'a self, other: &'a Options) -> impl Iterator<Item = &'static str> + 'a {
        KEYWORDS.iter().map(|keyword| keyword.name).filter(|name| self.get(name) != other.get(name))
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_secret = |name: &str| keyword(name).is_none_or(|keyword| keyword.is_secret);
        let shown = self.0.iter().map(|(name, value)| (name, if is_secret(name) { "…" } else { value }));
        f.debug_map().entries(shown).finish()
    }
}
