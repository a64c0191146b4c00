//! The configuration: a JSON file, environment variables over it, and defaults below it.
//!
//! A [`Configuration`] that exists is valid. Everything that can be wrong is found here, at once, and said
//! with the file, the line where there is one, and the key.

pub mod log;
pub mod servers;

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use config::{Environment, File, FileFormat};
use serde::Deserialize;
use serde_json::Value;

use self::log::{Directives, Format, LogOptions};
use self::servers::{RawServers, ServerOptions};
use crate::http;
use crate::postgres::conninfo::environment::Environment as LibpqEnvironment;
use crate::postgres::conninfo::{ConnInfo, Given};
use crate::postgres::secret::Secret;

/// Environment variables: `POWA_COLLECTOR_` and the key, with `__` for each dot.
const ENVIRONMENT_PREFIX: &str = "POWA_COLLECTOR";

/// Every key, in the order of the documentation.
pub const KEYS: [&str; 27] = [
    "repository.dsn",
    "repository.password_command",
    "repository.max_connections",
    "repository.vacuum",
    "servers.defaults",
    "servers.by_name",
    "use_server_alias",
    "debug",
    "log.format",
    "log.level",
    "http.listen",
    "servers_refresh_interval",
    "shutdown_timeout",
    "fetch.database_connections",
    "fetch.connects_at_once",
    "fetch.at_once",
    "fetch.excluded_databases",
    "spool.memory_limit",
    "spool.directory",
    "spool.max_bytes",
    "timeouts.connect",
    "timeouts.password_command",
    "timeouts.query",
    "timeouts.datasource",
    "timeouts.fetch",
    "timeouts.store",
    "timeouts.close",
];

/// What precedes an option of libpq's that is a default for all servers.
const DEFAULTS: &str = "servers.defaults.";

/// A valid configuration.
#[derive(Debug, Clone)]
pub struct Configuration {
    /// Where the repository is.
    pub repository: ConnInfo,
    /// How to connect to servers, beyond what `powa_servers` says.
    pub servers: Arc<ServerOptions>,
    pub settings: Settings,
    /// Whether servers are named by their alias where they have one.
    pub use_server_alias: bool,
    /// Whether more is logged where `log.level` does not say it.
    pub debug: bool,
    pub log: LogOptions,
    /// Where pages are served. `None`: nowhere.
    pub http_listen: Option<SocketAddr>,
    /// How often the file and the servers are read again by themselves. `None`: only when asked.
    pub servers_refresh_interval: Option<Duration>,
    /// How long a store in progress may go on after a stop.
    pub shutdown_timeout: Duration,
    /// The file it came from, for the log.
    pub file: Option<PathBuf>,
}

/// What a snapshot needs to know of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Snapshots in the repository at once.
    pub max_connections: usize,
    /// Whether the tables that snapshots pass through are vacuumed.
    pub vacuums: bool,
    /// Databases of one server that are read side by side.
    pub database_connections: usize,
    /// Servers that are being connected to at once.
    pub connects_at_once: usize,
    /// Servers that are being read, or were and wait for the repository, at once.
    pub fetches_at_once: usize,
    /// Databases of servers that are never connected to.
    pub excluded_databases: Vec<String>,
    /// Bytes of one snapshot that are kept in memory; more goes to a file.
    pub spool_memory_limit: usize,
    /// Where snapshots are kept until they are stored.
    pub spool_directory: PathBuf,
    /// Bytes of all snapshots that wait for the repository; beyond, old ones are dropped.
    pub spool_max_bytes: u64,
    pub timeouts: Timeouts,
}

impl Settings {
    /// How many files and connections are not for the sessions that workers keep: stores with their files, questions,
    /// the listener, connections that are being made, fetches with their files and databases, and pages.
    pub fn descriptors_in_reserve(&self) -> usize {
        let fetch = 1 + self.database_connections;
        let pages = 1 + http::CONNECTIONS;
        2 * self.max_connections + 3 + pages + self.connects_at_once + self.fetches_at_once * fetch
    }
}

/// How long each kind of wait may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Opening a connection, for each address that is tried: TCP, TLS and login, and again for its name and
    /// for the first question.
    pub connect: Duration,
    /// A run of a `password_command`.
    pub password_command: Duration,
    /// One short question, to either side.
    pub query: Duration,
    /// One datasource of a server; its `statement_timeout` too, unless that is shorter already.
    pub datasource: Duration,
    /// All that is read from one database of a server.
    pub fetch: Duration,
    /// Storing one snapshot.
    pub store: Duration,
    /// Taking back what is under way, and the last answers, before a connection is closed.
    pub close: Duration,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    #[error("no configuration file: looked for {}; use -c FILE or set POWA_COLLECTOR_REPOSITORY__DSN", list(.0))]
    NoFile(Vec<PathBuf>),
    #[error("{}: cannot be read: {source}", file.display())]
    Unreadable { file: PathBuf, source: std::io::Error },
    #[error("{}: line {line}, column {column}: not valid JSON: {reason}", file.display())]
    Json { file: PathBuf, line: usize, column: usize, reason: String },
    #[error("{}: line {line}: key {key}: {reason}", file.display())]
    WrongType { file: PathBuf, line: usize, key: String, reason: String },
    #[error("{place}: key {key}: {reason}")]
    Value { place: String, key: String, reason: String },
    #[error("environment variable {variable}: {reason}")]
    Environment { variable: String, reason: String },
}

fn list(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    paths.join(", ")
}

/// A configuration and what is odd about it without being wrong.
#[derive(Debug)]
pub struct Loaded {
    pub configuration: Configuration,
    pub warnings: Vec<String>,
}

/// The keys as they stand in the file, with their defaults.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Raw {
    repository: RawRepository,
    servers: RawServers,
    use_server_alias: bool,
    debug: bool,
    log: RawLog,
    http: RawHttp,
    servers_refresh_interval: Option<u64>,
    shutdown_timeout: Option<u64>,
    fetch: RawFetch,
    spool: RawSpool,
    timeouts: RawTimeouts,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawRepository {
    dsn: Option<Secret>,
    password_command: Option<Value>,
    max_connections: Option<u64>,
    vacuum: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawLog {
    format: Option<String>,
    level: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawHttp {
    listen: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawFetch {
    database_connections: Option<u64>,
    connects_at_once: Option<u64>,
    at_once: Option<u64>,
    excluded_databases: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawSpool {
    memory_limit: Option<u64>,
    directory: Option<PathBuf>,
    max_bytes: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawTimeouts {
    connect: Option<u64>,
    password_command: Option<u64>,
    query: Option<u64>,
    datasource: Option<u64>,
    fetch: Option<u64>,
    store: Option<u64>,
    close: Option<u64>,
}

/// Reads the configuration: the given file or else the first one that exists, then the environment.
///
/// # Errors
/// When there is no usable configuration; the message is for the person who wrote it.
pub fn load(file: Option<&Path>) -> Result<Loaded, ConfigurationError> {
    let file = match file {
        Some(file) => Some(file.to_owned()),
        None => search_path().into_iter().find(|path| path.exists()),
    };
    let text = match &file {
        Some(path) => Some(
            fs::read_to_string(path)
                .map_err(|source| ConfigurationError::Unreadable { file: path.clone(), source })?,
        ),
        None => None,
    };
    let variables = env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| name.starts_with(ENVIRONMENT_PREFIX))
        .collect();
    read(file, text.as_deref(), variables)
}

/// The places of the configuration file, in order.
fn search_path() -> Vec<PathBuf> {
    let mut places = vec![PathBuf::from("/etc/powa-collector.conf")];
    if let Some(home) = env::var_os("HOME").map(PathBuf::from) {
        places.push(home.join(".config/powa-collector.conf"));
        places.push(home.join(".powa-collector.conf"));
    }
    places.push(PathBuf::from("./powa-collector.conf"));
    places
}

fn read(
    file: Option<PathBuf>,
    text: Option<&str>,
    variables: Vec<(String, String)>,
) -> Result<Loaded, ConfigurationError> {
    let mut warnings = Vec::new();
    if let (Some(file), Some(text)) = (&file, text) {
        let value = check_file(file, text)?;
        for key in keys_of(&value) {
            if let Some(advice) = unknown_key(&key) {
                warnings.push(format!("{}: unknown key {key}: {advice}", file.display()));
            }
        }
    }
    for (name, _) in &variables {
        let key = key_of_variable(name);
        if let Some(advice) = unknown_key(&key) {
            warnings.push(format!("environment variable {name}: unknown key {key}: {advice}"));
        }
    }
    // The values of options are texts, also where they look like numbers: they are not parsed.
    let (options, variables): (Vec<_>, Vec<_>) =
        variables.into_iter().partition(|(name, _)| key_of_variable(name).starts_with(DEFAULTS));
    let mut raw = merge(text, &variables)?;
    for (name, value) in options {
        let option = key_of_variable(&name)[DEFAULTS.len()..].to_owned();
        raw.servers.defaults.insert(option, Value::String(value));
    }
    let place = match &file {
        Some(file) => file.display().to_string(),
        None => "environment".to_owned(),
    };
    if file.is_none() && raw.repository.dsn.is_none() {
        return Err(ConfigurationError::NoFile(search_path()));
    }
    let configuration = validate(raw, &place, file)?;
    Ok(Loaded { configuration, warnings })
}

/// Reads the file by itself, for errors that know their line.
fn check_file(file: &Path, text: &str) -> Result<Value, ConfigurationError> {
    let value: Value = serde_json::from_str(text).map_err(|error| ConfigurationError::Json {
        file: file.to_owned(),
        line: error.line(),
        column: error.column(),
        reason: without_position(&error),
    })?;
    let deserializer = &mut serde_json::Deserializer::from_str(text);
    let raw: Result<Raw, _> = serde_path_to_error::deserialize(deserializer);
    raw.map_err(|error| ConfigurationError::WrongType {
        file: file.to_owned(),
        line: error.inner().line(),
        key: error.path().to_string(),
        reason: without_value(&without_position(error.inner())),
    })?;
    Ok(value)
}

fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// serde repeats a value of the wrong type; one that stands where a password belongs must not be repeated.
fn without_value(reason: &str) -> String {
    match (reason.find(" \""), reason.rfind("\", expected")) {
        (Some(start), Some(end)) if start < end => {
            format!("{}{}", &reason[..start], &reason[end + 1..])
        }
        _ => reason.to_owned(),
    }
}

/// The file with the environment over it.
fn merge(text: Option<&str>, variables: &[(String, String)]) -> Result<Raw, ConfigurationError> {
    let build = |variables: &[(String, String)]| {
        let environment = Environment::with_prefix(ENVIRONMENT_PREFIX)
            .prefix_separator("_")
            .separator("__")
            .try_parsing(true)
            .source(Some(variables.iter().cloned().collect()));
        config::Config::builder()
            .add_source(File::from_str(text.unwrap_or("{}"), FileFormat::Json))
            .add_source(environment)
            .build()
            .and_then(config::Config::try_deserialize::<Raw>)
    };
    build(variables).map_err(|_| {
        // The file was good by itself: find the variable that is not.
        let wrong = variables.iter().find(|variable| build(std::slice::from_ref(variable)).is_err());
        let (name, _) = wrong.or(variables.first()).expect("the environment is what failed");
        ConfigurationError::Environment {
            variable: name.clone(),
            reason: format!("not a value that key {} can have", key_of_variable(name)),
        }
    })
}

fn key_of_variable(name: &str) -> String {
    name[ENVIRONMENT_PREFIX.len()..].trim_start_matches('_').to_lowercase().replace("__", ".")
}

fn validate(raw: Raw, place: &str, file: Option<PathBuf>) -> Result<Configuration, ConfigurationError> {
    let wrong = |key: &str, reason: String| {
        let (place, key) = (place.to_owned(), key.to_owned());
        ConfigurationError::Value { place, key, reason }
    };
    let count = |key, value: Option<u64>, default: u64, least: u64, most: u64| {
        let value = value.unwrap_or(default);
        if (least..=most).contains(&value) {
            Ok(value)
        } else {
            Err(wrong(key, format!("{value} is not between {least} and {most}")))
        }
    };
    let size = |key, value, default, least, most| {
        count(key, value, default, least, most).map(|value| usize::try_from(value).expect("bounded above"))
    };
    let seconds =
        |key, value, default, least| count(key, value, default, least, 86_400).map(Duration::from_secs);

    let dsn = raw.repository.dsn.ok_or_else(|| {
        wrong(
            "repository.dsn",
            "missing; give the repository's libpq connection string, as in \
             \"postgresql://powa_user@localhost:5432/powa\""
                .to_owned(),
        )
    })?;
    let connect = seconds("timeouts.connect", raw.timeouts.connect, 10, 1)?;
    let password_command = seconds("timeouts.password_command", raw.timeouts.password_command, 10, 1)?;
    let repository = repository(&dsn, raw.repository.password_command.as_ref(), password_command)
        .map_err(|(key, reason)| wrong(key, reason))?;
    let servers = ServerOptions::read(&raw.servers, password_command)
        .map_err(|error| wrong(&error.key, error.reason))?;
    let log = log(&raw.log, raw.debug).map_err(|(key, reason)| wrong(key, reason))?;
    let http_listen = address(raw.http.listen.as_deref()).map_err(|reason| wrong("http.listen", reason))?;
    let refresh = seconds("servers_refresh_interval", raw.servers_refresh_interval, 60, 0)?;
    Ok(Configuration {
        repository,
        servers: Arc::new(servers),
        settings: Settings {
            max_connections: size("repository.max_connections", raw.repository.max_connections, 3, 1, 100)?,
            vacuums: raw.repository.vacuum.unwrap_or(true),
            database_connections: size(
                "fetch.database_connections",
                raw.fetch.database_connections,
                4,
                1,
                100,
            )?,
            connects_at_once: size("fetch.connects_at_once", raw.fetch.connects_at_once, 16, 1, 1000)?,
            fetches_at_once: size("fetch.at_once", raw.fetch.at_once, 6, 1, 1000)?,
            excluded_databases: excluded_databases(raw.fetch.excluded_databases.as_ref())
                .map_err(|reason| wrong("fetch.excluded_databases", reason))?,
            spool_memory_limit: size("spool.memory_limit", raw.spool.memory_limit, 2 << 20, 0, 1 << 30)?,
            spool_directory: raw.spool.directory.unwrap_or_else(state_directory),
            spool_max_bytes: raw.spool.max_bytes.unwrap_or(256 << 20),
            timeouts: Timeouts {
                connect,
                password_command,
                query: seconds("timeouts.query", raw.timeouts.query, 30, 1)?,
                datasource: seconds("timeouts.datasource", raw.timeouts.datasource, 120, 1)?,
                fetch: seconds("timeouts.fetch", raw.timeouts.fetch, 300, 1)?,
                store: seconds("timeouts.store", raw.timeouts.store, 900, 1)?,
                close: seconds("timeouts.close", raw.timeouts.close, 2, 1)?,
            },
        },
        use_server_alias: raw.use_server_alias,
        debug: raw.debug,
        log,
        http_listen,
        servers_refresh_interval: (!refresh.is_zero()).then_some(refresh),
        shutdown_timeout: seconds("shutdown_timeout", raw.shutdown_timeout, 30, 0)?,
        file,
    })
}

/// How to connect to the repository; what is wrong comes with its key.
fn repository(
    dsn: &Secret,
    command: Option<&Value>,
    deadline: Duration,
) -> Result<ConnInfo, (&'static str, String)> {
    let mut given = Given::by_string(dsn).map_err(|error| ("repository.dsn", error.to_string()))?;
    if let Some(command) = command {
        let key = "repository.password_command";
        if given.options.filled("password").is_some() {
            return Err((key, "repository.dsn has a password besides; leave one of the two out".to_owned()));
        }
        given.password_command =
            servers::password_command(command, deadline).map_err(|reason| (key, reason))?;
    }
    ConnInfo::to_write(&given, &LibpqEnvironment::of_process())
        .map_err(|error| ("repository.dsn", error.to_string()))
}

/// How the log is written; what is wrong comes with its key.
fn log(raw: &RawLog, debug: bool) -> Result<LogOptions, (&'static str, String)> {
    let format = raw.format.as_deref().map_or(Ok(Format::default()), str::parse);
    let level = raw.level.as_deref().map_or_else(|| Ok(Directives::unsaid(debug)), str::parse);
    Ok(LogOptions {
        format: format.map_err(|reason| ("log.format", reason))?,
        level: level.map_err(|reason| ("log.level", reason))?,
    })
}

/// An address of this machine, and a port.
fn address(text: Option<&str>) -> Result<Option<SocketAddr>, String> {
    let parse = |text: &str| {
        text.parse().map_err(|_| {
            format!("{text:?} is not an IP address and a port, as in \"127.0.0.1:9188\" or \"[::]:9188\"")
        })
    };
    text.map(parse).transpose()
}

/// Databases of managed services that are the provider's own: nobody else may connect to them, or has anything there.
const OF_PROVIDERS: [&str; 6] =
    ["rdsadmin", "cloudsqladmin", "alloydbadmin", "alloydbmetadata", "azure_maintenance", "azure_sys"];

/// A list of names, or names with commas between them.
fn excluded_databases(given: Option<&Value>) -> Result<Vec<String>, String> {
    let wrong = || "neither a list of names nor names with commas between them".to_owned();
    match given {
        None | Some(Value::Null) => Ok(OF_PROVIDERS.map(str::to_owned).to_vec()),
        Some(Value::String(names)) => {
            Ok(names.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect())
        }
        Some(Value::Array(names)) => {
            names.iter().map(|name| name.as_str().map(str::to_owned).ok_or_else(wrong)).collect()
        }
        Some(_) => Err(wrong()),
    }
}

/// Where files are made that nobody looks for later. `/tmp` may be memory; these are there to save memory.
pub fn temporary_directory() -> PathBuf {
    env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

/// Where a service, or else a user, keeps what is to outlast a restart.
fn state_directory() -> PathBuf {
    let absolute = |variable| env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    // systemd gives several, if a unit asks for several.
    let of_service = env::var("STATE_DIRECTORY").ok();
    let of_service =
        of_service.as_deref().and_then(|all| all.split(':').next()).filter(|path| !path.is_empty());
    let of_user = || {
        let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")));
        state.map(|state| state.join("powa-collector"))
    };
    of_service
        .map(PathBuf::from)
        .or_else(of_user)
        .unwrap_or_else(|| temporary_directory().join("powa-collector"))
}

/// The keys of a document, dotted; objects that we know nothing of count as one key.
fn keys_of(value: &Value) -> BTreeSet<String> {
    fn collect(value: &Value, prefix: &str, keys: &mut BTreeSet<String>) {
        let Value::Object(fields) = value else { return };
        for (name, value) in fields {
            let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            let is_section = KEYS
                .iter()
                .any(|known| known.strip_prefix(key.as_str()).is_some_and(|rest| rest.starts_with('.')));
            if is_section && value.is_object() {
                collect(value, &key, keys);
            } else {
                keys.insert(key);
            }
        }
    }
    let mut keys = BTreeSet::new();
    collect(value, "", &mut keys);
    keys
}

/// What to say of a key that is not known.
fn unknown_key(key: &str) -> Option<String> {
    if KEYS.contains(&key) || key.starts_with(DEFAULTS) {
        return None;
    }
    if key.starts_with("servers.by_name.") {
        return Some("ignored; a server's name can have a dot: give its options in the file".to_owned());
    }
    let nearest = KEYS
        .into_iter()
        .max_by(|a, b| strsim::jaro(a, key).total_cmp(&strsim::jaro(b, key)))
        .expect("there are keys");
    Some(format!("ignored; the nearest known key is {nearest}"))
}

/// What differs between two configurations, for the log; never the values of secrets.
pub fn differences(old: &Configuration, new: &Configuration) -> Vec<String> {
    fn changed<T: PartialEq + std::fmt::Debug>(key: &str, old: &T, new: &T) -> Option<String> {
        (old != new).then(|| format!("{key}: {old:?} becomes {new:?}"))
    }
    let (was, is) = (&old.settings, &new.settings);
    let repository = old.differs_in_repository(new).then(|| {
        match (old.repository.describe(), new.repository.describe()) {
            (old, new) if old == new => format!("repository.dsn: the way to connect to {new} changes"),
            (old, new) => format!("repository.dsn: {old} becomes {new}"),
        }
    });
    let mut told: Vec<String> = [
        repository,
        changed("repository.max_connections", &was.max_connections, &is.max_connections),
        changed("repository.vacuum", &was.vacuums, &is.vacuums),
        changed("use_server_alias", &old.use_server_alias, &new.use_server_alias),
        changed("debug", &old.debug, &new.debug),
        changed("log.format", &old.log.format.name(), &new.log.format.name()),
        changed("log.level", &old.log.level.given(), &new.log.level.given()),
        changed("http.listen", &old.http_listen, &new.http_listen),
        changed("servers_refresh_interval", &old.servers_refresh_interval, &new.servers_refresh_interval),
        changed("shutdown_timeout", &old.shutdown_timeout, &new.shutdown_timeout),
        changed("fetch.database_connections", &was.database_connections, &is.database_connections),
        changed("fetch.connects_at_once", &was.connects_at_once, &is.connects_at_once),
        changed("fetch.at_once", &was.fetches_at_once, &is.fetches_at_once),
        changed("fetch.excluded_databases", &was.excluded_databases, &is.excluded_databases),
        changed("spool.memory_limit", &was.spool_memory_limit, &is.spool_memory_limit),
        changed("spool.directory", &was.spool_directory, &is.spool_directory),
        changed("spool.max_bytes", &was.spool_max_bytes, &is.spool_max_bytes),
        changed("timeouts", &was.timeouts, &is.timeouts),
    ]
    .into_iter()
    .flatten()
    .collect();
    told.extend(old.servers.differences(&new.servers));
    told
}

impl Configuration {
    /// Whether the repository is another one, or is reached in another way.
    pub fn differs_in_repository(&self, other: &Self) -> bool {
        self.repository != other.repository
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_file(text: &str) -> Result<Loaded, ConfigurationError> {
        read(Some(PathBuf::from("f.conf")), Some(text), vec![])
    }

    fn message(text: &str) -> String {
        from_file(text).unwrap_err().to_string()
    }

    #[test]
    fn the_shipped_file_is_valid_and_shows_the_defaults() {
        let shipped = include_str!("../../powa-collector.conf-dist");
        let loaded = from_file(shipped).unwrap();
        assert_eq!(loaded.warnings, Vec::<String>::new());
        let minimal = from_file(r#"{"repository": {"dsn": "postgresql:///powa"}}"#).unwrap();
        assert_eq!(loaded.configuration.settings.timeouts, minimal.configuration.settings.timeouts);
        assert_eq!(
            loaded.configuration.settings.max_connections,
            minimal.configuration.settings.max_connections
        );
    }

    #[test]
    fn the_files_of_the_package_and_the_image_are_valid() {
        for text in [
            include_str!("../../packaging/debian/powa-collector.conf"),
            include_str!("../../docker/collector/powa-collector.conf"),
        ] {
            assert_eq!(from_file(text).unwrap().warnings, Vec::<String>::new());
        }
    }

    /// Neither its dot nor its capital has a meaning in a server's name.
    #[test]
    fn names_of_servers_stay_as_they_are() {
        let text = r#"{"repository": {"dsn": ""}, "servers": {"by_name": {"DB1.Example.org:5433": {"sslmode": "require"}}}}"#;
        let variable = ("POWA_COLLECTOR_SERVERS__DEFAULTS__PASSWORD".to_owned(), "007".to_owned());
        let loaded = read(Some(PathBuf::from("f.conf")), Some(text), vec![variable]).unwrap();
        assert_eq!(loaded.warnings, Vec::<String>::new());
        let servers = &loaded.configuration.servers;
        assert_eq!(servers.unused(&[]), ["DB1.Example.org:5433"]);
        let server = crate::server::Server {
            id: crate::server::ServerId(1),
            hostname: "DB1.Example.org".into(),
            port: 5433,
            username: "u".into(),
            password: None,
            dbname: "d".into(),
            frequency: Duration::from_secs(5),
            alias: None,
            is_registered: true,
        };
        let given = servers.given(&server).unwrap().options;
        assert_eq!((given.get("sslmode"), given.get("password")), (Some("require"), Some("007")));
    }

    #[test]
    fn a_file_of_the_python_collector_works_as_it_is() {
        let loaded = from_file(
            r#"{"repository": {"dsn": "postgresql://powa_user@localhost:5432/powa"},
                "use_server_alias": true, "debug": true}"#,
        )
        .unwrap();
        let configuration = loaded.configuration;
        assert!(configuration.use_server_alias && configuration.debug);
        assert_eq!(configuration.settings.max_connections, 3);
        assert_eq!(configuration.servers_refresh_interval, Some(Duration::from_secs(60)));
        assert_eq!(configuration.shutdown_timeout, Duration::from_secs(30));
        assert!(loaded.warnings.is_empty());
    }

    #[test]
    fn every_key_can_be_set_and_a_wrong_type_is_named_with_its_line() {
        // What may be of several types is looked at later, without the line.
        let of_several = ["repository.password_command", "fetch.excluded_databases"];
        for key in KEYS.into_iter().filter(|key| !of_several.contains(key)) {
            let wrong = if key.starts_with("servers.") { "1" } else { "[]" };
            let text = match key.split_once('.') {
                Some((section, name)) => format!("{{\n\"{section}\": {{\n\"{name}\": {wrong}}}}}"),
                None => format!("{{\n\n\"{key}\": {wrong}}}"),
            };
            let message = message(&text);
            assert!(message.starts_with(&format!("f.conf: line 3: key {key}: ")), "{message}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_file_and_place() {
        assert!(message("{\n\"debug\": tru}").starts_with("f.conf: line 2, column 13: not valid JSON"));
        assert!(message("{}").starts_with("f.conf: key repository.dsn: missing"));
        assert!(
            message(r#"{"repository": {"dsn": "host=a nonsense=1"}}"#).starts_with(
                "f.conf: key repository.dsn: character 8 of the connection string: libpq has no"
            )
        );
        assert!(
            message(r#"{"repository": {"dsn": "", "max_connections": 0}}"#)
                .contains("key repository.max_connections: 0 is not between 1 and 100")
        );
        let unreadable = load(Some(Path::new("/nonexistent/f.conf"))).unwrap_err().to_string();
        assert!(unreadable.starts_with("/nonexistent/f.conf: cannot be read: No such file"));
    }

    #[test]
    fn an_unknown_key_is_a_warning_that_names_the_nearest() {
        let loaded =
            from_file(r#"{"repository": {"dsn": "", "max_conections": 4}, "Debug": true, "x": {"y": 1}}"#)
                .unwrap();
        assert_eq!(loaded.warnings.len(), 3);
        assert!(loaded.warnings[0].contains("unknown key Debug"));
        assert!(loaded.warnings[0].ends_with("nearest known key is debug"));
        assert!(loaded.warnings[1].ends_with("nearest known key is repository.max_connections"));
    }

    #[test]
    fn the_environment_stands_over_the_file() {
        let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let text = r#"{"repository": {"dsn": "host=a dbname=d"}, "debug": false}"#;
        let loaded = read(
            Some(PathBuf::from("f.conf")),
            Some(text),
            vec![
                variable("POWA_COLLECTOR_REPOSITORY__DSN", "host=b dbname=d"),
                variable("POWA_COLLECTOR_DEBUG", "true"),
                variable("POWA_COLLECTOR_REPOSITORY__MAX_CONNECTIONS", "7"),
                variable("POWA_COLLECTOR_DEBUGG", "true"),
            ],
        )
        .unwrap();
        assert_eq!(loaded.configuration.repository.hosts[0].to_string(), "b:5432");
        assert!(loaded.configuration.debug);
        assert_eq!(loaded.configuration.settings.max_connections, 7);
        assert_eq!(loaded.warnings.len(), 1);
        assert!(loaded.warnings[0].contains("POWA_COLLECTOR_DEBUGG"));

        let alone = read(None, None, vec![variable("POWA_COLLECTOR_REPOSITORY__DSN", "host=c")]);
        assert_eq!(alone.unwrap().configuration.repository.hosts[0].to_string(), "c:5432");

        let wrong = read(
            Some(PathBuf::from("f.conf")),
            Some(text),
            vec![variable("POWA_COLLECTOR_DEBUG", "perhaps")],
        );
        let message = wrong.unwrap_err().to_string();
        assert!(message.contains("POWA_COLLECTOR_DEBUG") && !message.contains("perhaps"));
    }

    #[test]
    fn the_log_is_set_by_the_file_and_the_environment_and_its_level_counts_before_debug() {
        let log = |text: &str, variables: &[(&str, &str)]| {
            let variables =
                variables.iter().map(|(name, value)| (format!("POWA_COLLECTOR_{name}"), (*value).to_owned()));
            let text = format!(r#"{{"repository": {{"dsn": ""}}{text}}}"#);
            let loaded = read(Some(PathBuf::from("f.conf")), Some(&text), variables.collect());
            let log = loaded.map_err(|error| error.to_string())?.configuration.log;
            Ok::<_, String>((log.format.name(), log.level.given().to_owned()))
        };
        let is = |format, level: &str| Ok((format, level.to_owned()));
        assert_eq!(log("", &[]), is("text", "info"));
        assert_eq!(log(r#", "debug": true"#, &[]), is("text", "debug"));
        assert_eq!(log(r#", "debug": true, "log": {"level": "warn"}"#, &[]), is("text", "warn"));
        let both = r#", "log": {"level": "warn", "format": "json"}"#;
        assert_eq!(log(both, &[]), is("json", "warn"));
        assert_eq!(log(both, &[("LOG__LEVEL", "off"), ("LOG__FORMAT", "text")]), is("text", "off"));

        let wrong = log(r#", "log": {"level": "debgu"}"#, &[]).unwrap_err();
        assert!(
            wrong.starts_with(r#"f.conf: key log.level: "debgu" in "debgu" is not possible: "#),
            "{wrong}"
        );
        let wrong = log("", &[("LOG__FORMAT", "xml")]).unwrap_err();
        assert!(wrong.ends_with(r#"key log.format: "xml" is neither "text" nor "json""#), "{wrong}");
    }

    #[test]
    fn pages_are_served_at_an_address_that_is_given_and_else_nowhere() {
        let listen = |value: &str| {
            let loaded =
                from_file(&format!(r#"{{"repository": {{"dsn": ""}}, "http": {{"listen": {value}}}}}"#));
            loaded.map(|loaded| loaded.configuration.http_listen).map_err(|error| error.to_string())
        };
        assert_eq!(listen("null"), Ok(None));
        assert_eq!(listen(r#""[::1]:9188""#), Ok(Some("[::1]:9188".parse().unwrap())));
        for wrong in ["9188", "localhost:9188", "127.0.0.1", "127.0.0.1:99999", ""] {
            let message = listen(&format!("{wrong:?}")).unwrap_err();
            assert!(message.starts_with("f.conf: key http.listen: "), "{message}");
            assert!(message.contains(&format!("{wrong:?} is not an IP address and a port")), "{message}");
        }
    }

    #[test]
    fn the_databases_of_providers_are_left_out_unless_others_are() {
        let excluded = |value: &str| {
            let text =
                format!(r#"{{"repository": {{"dsn": ""}}, "fetch": {{"excluded_databases": {value}}}}}"#);
            let loaded = from_file(&text).map_err(|error| error.to_string());
            loaded.map(|loaded| loaded.configuration.settings.excluded_databases.join("|"))
        };
        assert_eq!(excluded("null").unwrap(), OF_PROVIDERS.join("|"));
        assert_eq!(excluded("[]").unwrap(), "");
        assert_eq!(excluded(r#"["a, b", "c"]"#).unwrap(), "a, b|c");
        assert_eq!(excluded(r#""a, b,""#).unwrap(), "a|b");
        for wrong in ["1", "[1]", "{}"] {
            let message = excluded(wrong).unwrap_err();
            assert!(message.starts_with("f.conf: key fetch.excluded_databases: neither a list"), "{message}");
        }
    }

    #[test]
    fn a_password_is_in_no_message() {
        for text in [
            r#"{"repository": "host=a password=hunter2"}"#,
            r#"{"repository": {"dsn": "host=a password=hunter2 nonsense=1"}}"#,
            r#"{"debug": "hunter2\", expected"}"#,
        ] {
            let error = from_file(text).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
    }
}
