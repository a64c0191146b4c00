//! The parser of connection strings side by side with the real libpq: what libpq accepts has the same meaning
//! here, and what libpq refuses is refused.
//!
//! What differs on purpose stands in [`DIFFERENCES`], and must differ.

mod connection_strings;
#[allow(unused_macros, reason = "one libpq is asked, not both versions of PoWA")]
mod support;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use connection_strings::{PAIRS, URIS};
use powa_collector::postgres::conninfo::environment::Environment;
use powa_collector::postgres::conninfo::options::{KEYWORDS, Keyword, Options};
use powa_collector::postgres::conninfo::passfile::{self, Lookup};
use powa_collector::postgres::conninfo::{ConnInfo, ConnInfoError, Given, Password, parse};
use powa_collector::postgres::secret::Secret;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestRunner};
use support::{Connected, Libpq, LibpqKeyword, LibpqParser, Pairs};
use tempfile::TempDir;

/// All passwords here that an error could hold contain this.
const PASSWORD: &str = "hunter2";

/// What only libpq 18 has: libpq 17, which is asked here, refuses it.
const NEW_IN_18: [&str; 9] = [
    "max_protocol_version",
    "min_protocol_version",
    "oauth_client_id",
    "oauth_client_secret",
    "oauth_issuer",
    "oauth_scope",
    "scram_client_key",
    "scram_server_key",
    "sslkeylogfile",
];

fn keywords_of_17() -> impl Iterator<Item = &'static Keyword> {
    KEYWORDS.iter().filter(|keyword| !NEW_IN_18.contains(&keyword.name))
}

// ---- Strings alone ----

/// Where both differ about what a string says. The error of ours must not hold a password.
fn parse_difference(parser: &mut LibpqParser, string: &str) -> Option<String> {
    let theirs = parser.parse(string);
    let ours = parse::parse(string);
    let difference = match (&theirs, &ours) {
        (Ok(theirs), Ok(ours)) => (*theirs != pairs(ours)).then(|| "other options".to_owned()),
        (Err(_), Err(error)) => leak(error),
        (Ok(_), Err(_)) => Some("only libpq accepts it".to_owned()),
        (Err(_), Ok(_)) => Some("only libpq refuses it".to_owned()),
    }?;
    let (theirs, ours) = (theirs.as_ref().map(readable), ours.as_ref().map(pairs_of_text));
    Some(format!("{string:?}: {difference}:\n  libpq: {theirs:?}\n  ours:  {ours:?}"))
}

/// The options with their values; what `Debug` of the options hides is what is compared.
fn pairs_of_text(options: &Options) -> Vec<(&str, &str)> {
    options.names().map(|name| (name, options.get(name).expect("it is set"))).collect()
}

fn pairs(options: &Options) -> Pairs {
    let pairs = pairs_of_text(options).into_iter();
    pairs.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec())).collect()
}

fn readable(options: &Pairs) -> Vec<(&str, String)> {
    options.iter().map(|(name, value)| (name.as_str(), value.escape_ascii().to_string())).collect()
}

/// How an error shows a password, if it does.
fn leak(error: &ConnInfoError) -> Option<String> {
    [format!("{error}"), format!("{error:?}"), format!("{error:#?}")]
        .into_iter()
        .find(|text| text.contains(PASSWORD))
        .map(|text| format!("the error holds the password: {text}"))
}

fn assert_no_differences(count: usize, differences: &[String]) {
    assert!(differences.is_empty(), "{} of {count} cases:\n{}", differences.len(), differences.join("\n"));
}

// ---- Strings in an environment ----

/// A string, and all else that libpq looks at. `{home}` in any of it is a directory of the case's own.
#[derive(Debug, Clone, Default)]
struct Case {
    string: String,
    variables: Vec<(String, String)>,
    /// Name below the directory, contents, mode.
    files: Vec<(String, Vec<u8>, u32)>,
}

fn case(string: impl Into<String>) -> Case {
    Case { string: string.into(), ..Case::default() }
}

impl Case {
    fn var(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// What only the user himself may read.
    fn file(self, name: &str, contents: impl Into<Vec<u8>>) -> Self {
        self.file_with_mode(name, contents, 0o600)
    }

    fn file_with_mode(mut self, name: &str, contents: impl Into<Vec<u8>>, mode: u32) -> Self {
        self.files.push((name.to_owned(), contents.into(), mode));
        self
    }

    fn services(self, contents: &str) -> Self {
        self.file(".pg_service.conf", contents)
    }

    fn passwords(self, contents: &str) -> Self {
        self.file(".pgpass", contents)
    }

    /// The home directory with the files, and the rest with its name.
    fn set_up(&self) -> (TempDir, Case) {
        let home = TempDir::new().expect("make a directory");
        let path = home.path().to_str().expect("a name in UTF-8");
        let fill_in = |text: &str| text.replace("{home}", path);
        let mut real = Case { string: fill_in(&self.string), ..Case::default() };
        if !self.variables.iter().any(|(name, _)| name == "HOME") {
            real.variables.push(("HOME".to_owned(), path.to_owned()));
        }
        real.variables.extend(self.variables.iter().map(|(name, value)| (name.clone(), fill_in(value))));
        for (name, contents, mode) in &self.files {
            let file = home.path().join(name);
            fs::create_dir_all(file.parent().expect("a folder")).expect("make a folder");
            let contents = match std::str::from_utf8(contents) {
                Ok(text) => fill_in(text).into_bytes(),
                Err(_) => contents.clone(),
            };
            fs::write(&file, contents).expect("write a file");
            fs::set_permissions(&file, Permissions::from_mode(*mode)).expect("set a file's mode");
        }
        (home, real)
    }
}

/// What this makes of a case: the options, and all that a connection takes.
fn ours(case: &Case) -> Result<(Options, ConnInfo), ConnInfoError> {
    let variables: Vec<(&str, &str)> =
        case.variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let environment = Environment::of(&variables);
    let given = Given::by_string(&Secret::new(case.string.as_str()))?;
    let options = given.complete(&environment)?;
    Ok((options, ConnInfo::new(&given, &environment)?))
}

/// Where both differ about a case.
fn difference(libpq: &Libpq, case: &Case) -> Option<String> {
    let (_home, case) = case.set_up();
    let theirs = libpq.connect(&case.string, &case.variables);
    let ours = ours(&case);
    let difference = match (theirs.refusal(), &ours) {
        (Some(_), Err(error)) => leak(error),
        (Some(refusal), Ok(_)) => Some(format!("only libpq refuses it: {refusal}")),
        (None, Err(error)) => Some(format!("only libpq accepts it: {error}")),
        (None, Ok((options, conninfo))) => differences_of_accepted(&theirs, options, conninfo),
    }?;
    Some(format!("{case:?}:\n  {difference}"))
}

fn differences_of_accepted(theirs: &Connected, options: &Options, conninfo: &ConnInfo) -> Option<String> {
    let mut found = Vec::new();
    for keyword in keywords_of_17() {
        let name = keyword.name;
        let ours = match name {
            // libpq does not tell its service.
            "service" => continue,
            // libpq sets it only when it needs it.
            "passfile" if conninfo.password == Password::Open => {
                conninfo.passfile.as_ref().map(|file| file.to_str().expect("a name in UTF-8"))
            }
            _ => options.get(name),
        };
        let theirs = theirs.options.get(name).map(|value| String::from_utf8_lossy(value));
        let is_same = match name {
            "passfile" => ours.map(Path::new) == theirs.as_deref().map(Path::new),
            _ => ours == theirs.as_deref(),
        };
        if !is_same {
            found.push(format!("{name} is {theirs:?}, not {ours:?}"));
        }
    }
    let host = conninfo.hosts.last().expect("a host");
    if host.place() != theirs.host {
        found.push(format!("the last host is {:?}, not {:?}", theirs.host, host.place()));
    }
    let port = if theirs.port.is_empty() { "5432" } else { theirs.port.trim() };
    if port.parse() != Ok(host.port) {
        found.push(format!("its port is {:?}, not {}", theirs.port, host.port));
    }
    let password = password(conninfo);
    if password.as_bytes() != theirs.password {
        found.push(format!(
            "its password is {:?}, not {password:?}",
            theirs.password.escape_ascii().to_string()
        ));
    }
    (!found.is_empty()).then(|| found.join("; "))
}

/// The password for the last host, where libpq stands when it has tried all.
fn password(conninfo: &ConnInfo) -> String {
    let host = conninfo.hosts.last().expect("a host");
    match &conninfo.password {
        Password::Given(password) => password.reveal().to_owned(),
        Password::Command(_) => unreachable!("a connection string has no command"),
        Password::Open => match passfile::look_up(conninfo, host.passfile_name(), host.port) {
            Lookup::Found(password) => password.reveal().to_owned(),
            Lookup::Nothing | Lookup::Ignored { .. } => String::new(),
        },
    }
}

/// A string that has this value, quoted.
fn assignment(name: &str, value: &str) -> String {
    format!("{name}='{}'", value.replace('\\', r"\\").replace('\'', r"\'"))
}

/// Two good values of an option.
fn samples(name: &str) -> [&'static str; 2] {
    match name {
        "channel_binding" => ["disable", "require"],
        "client_encoding" => ["LATIN1", "UTF8"],
        "connect_timeout" => ["3", "4"],
        "gssdelegation" | "keepalives" | "sslcompression" | "sslsni" => ["1", "0"],
        "gssencmode" => ["disable", "prefer"],
        "host" => ["127.0.0.1", "localhost"],
        "hostaddr" => ["127.0.0.1", "127.0.0.2"],
        "keepalives_count" | "keepalives_idle" | "keepalives_interval" | "tcp_user_timeout" => ["5", "6"],
        "load_balance_hosts" => ["random", "disable"],
        "port" => ["1", "2"],
        "replication" => ["false", "off"],
        "require_auth" => ["password", "!md5"],
        "ssl_max_protocol_version" => ["TLSv1.2", "TLSv1.3"],
        "ssl_min_protocol_version" => ["TLSv1", "TLSv1.1"],
        "sslcertmode" => ["disable", "require"],
        "sslmode" => ["require", "verify-ca"],
        "sslnegotiation" => ["direct", "postgres"],
        "target_session_attrs" => ["primary", "standby"],
        "passfile" => ["{home}/first", "{home}/second"],
        "password" => ["hunter2", "hunter2 other"],
        _ => ["one", "other thing"],
    }
}

/// What the case of one option needs besides, so that nothing else decides it: a closed port at a known place, and
/// TLS where it is asked for.
fn rest_of(name: &str) -> Vec<(&'static str, &'static str)> {
    let mut rest = vec![("host", "127.0.0.1"), ("port", "1")];
    if name == "sslnegotiation" {
        rest.push(("sslmode", "require"));
    }
    rest.retain(|(other, _)| *other != name);
    rest
}

fn string_of(pairs: &[(&str, &str)]) -> String {
    pairs.iter().map(|(name, value)| assignment(name, value)).collect::<Vec<_>>().join(" ")
}

/// For each option: string before service before environment before default.
fn precedence_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for keyword in keywords_of_17().filter(|keyword| keyword.name != "service") {
        let name = keyword.name;
        let [first, second] = samples(name);
        let rest = string_of(&rest_of(name));
        let in_string = |value| format!("{} {rest}", assignment(name, value));
        let with_service = |case: Case, value| {
            case.var("PGSERVICE", "s")
                .services(&format!("[s]\n{name}={value}\nfallback_application_name=s\n"))
        };
        let files =
            |case: Case| case.file("first", "*:*:*:*:hunter2 first").file("second", "*:*:*:*:hunter2 second");
        let default = case(rest.clone());
        cases.push(files(case(in_string(first))));
        cases.push(files(case(in_string(""))));
        cases.push(files(with_service(default.clone(), first)));
        cases.push(files(with_service(default.clone(), "")));
        cases.push(files(with_service(case(in_string(first)), second)));
        cases.push(files(with_service(case(in_string("")), second)));
        if let Some(variable) = keyword.variable {
            cases.push(files(default.clone().var(variable, first)));
            cases.push(files(default.clone().var(variable, "")));
            cases.push(files(case(in_string(first)).var(variable, second)));
            cases.push(files(case(in_string("")).var(variable, second)));
            cases.push(files(with_service(default.clone(), first).var(variable, second)));
            cases.push(files(with_service(default.clone(), "").var(variable, second)));
            cases.push(files(with_service(case(in_string(first)), second).var(variable, "third")));
        }
    }
    cases
}

/// Where the closed port is.
const CLOSED: &str = "host=127.0.0.1 port=1";

/// What the environment does besides giving values.
fn environment_cases() -> Vec<Case> {
    let closed = || case(CLOSED);
    let require = |value| closed().var("PGREQUIRESSL", value);
    vec![
        // Nothing given: user, database, socket and files by default.
        case(""),
        case("port=1"),
        case("user=''"),
        case("dbname=''"),
        case("user=somebody"),
        case("user=somebody dbname=''"),
        case("dbname=somewhere"),
        case("").var("PGUSER", "somebody"),
        case("").var("PGUSER", ""),
        case("").var("PGDATABASE", "somewhere").var("PGUSER", "somebody"),
        case("").var("PGDATABASE", "").var("PGUSER", "somebody"),
        // The daemon's own name of its user does not count.
        case("port=1").var("USER", "nobody").var("LOGNAME", "nobody"),
        case("postgresql://").var("PGPORT", "1"),
        case("postgresql:///").var("PGHOST", "127.0.0.1").var("PGPORT", "1"),
        case("postgresql://127.0.0.1").var("PGPORT", "1"),
        case("postgresql://127.0.0.1,127.0.0.2").var("PGPORT", "1"),
        case("postgresql://127.0.0.1,127.0.0.2").var("PGPORT", "1,2"),
        case("postgresql://127.0.0.1,127.0.0.2").var("PGPORT", "1,2,3"),
        case("postgresql://127.0.0.1:1/?user=").var("PGUSER", "somebody"),
        case("postgresql://127.0.0.1:1/?host=").var("PGHOST", "localhost"),
        case("host='' port=1").var("PGHOST", "127.0.0.1"),
        case("host=127.0.0.1 port=''").var("PGPORT", "1"),
        case("host=localhost port=1").var("PGHOSTADDR", "127.0.0.1"),
        case("host=localhost port=1").var("PGHOSTADDR", "127.0.0.1,127.0.0.2"),
        case("hostaddr=127.0.0.1 port=1").var("PGHOST", "a,b"),
        case("hostaddr=127.0.0.1 port=1").var("PGHOST", "a"),
        case("").var("PGHOST", "127.0.0.1,localhost").var("PGPORT", "1,2"),
        case("").var("PGHOST", "127.0.0.1,localhost").var("PGPORT", "1,2,3"),
        case("port=1").var("PGHOST", "/nowhere"),
        case("port=1").var("PGHOST", "@nowhere"),
        // Wrong, though the string does not say it, and though it does not matter then.
        case("").var("PGHOST", "127.0.0.1").var("PGPORT", "x"),
        closed().var("PGPORT", "x"),
        closed().var("PGSSLMODE", "sometimes"),
        closed().var("PGSSLMODE", "require "),
        case("host=127.0.0.1 port=1 sslmode=require").var("PGSSLMODE", "sometimes"),
        closed().var("PGCONNECT_TIMEOUT", "soon"),
        closed().var("PGTARGETSESSIONATTRS", "best"),
        closed().var("PGREQUIREAUTH", "password,!md5"),
        closed().var("PGSSLMINPROTOCOLVERSION", "TLSv1.3").var("PGSSLMAXPROTOCOLVERSION", "TLSv1.2"),
        // What came before PGSSLMODE.
        require("1"),
        require("10"),
        require("0"),
        require(""),
        require("true"),
        require(" 1"),
        require("1").var("PGSSLMODE", "disable"),
        require("1").var("PGSSLMODE", ""),
        require("1").var("PGSSLROOTCERT", "system"),
        require("0").var("PGSSLROOTCERT", "system"),
        case("host=127.0.0.1 port=1 sslmode=allow").var("PGREQUIRESSL", "1"),
        case("host=127.0.0.1 port=1 requiressl=0").var("PGREQUIRESSL", "1"),
        closed().var("PGREQUIRESSL", "1").var("PGSERVICE", "s").services("[s]\nsslmode=allow\n"),
        // sslrootcert=system is a default for sslmode, and nothing else will do with it.
        case("host=127.0.0.1 port=1 sslrootcert=system"),
        case("host=127.0.0.1 port=1 sslrootcert=system").var("PGSSLMODE", "verify-full"),
        case("host=127.0.0.1 port=1 sslrootcert=system").var("PGSSLMODE", "verify-ca"),
        case("host=127.0.0.1 port=1 sslrootcert=system").var("PGSSLMODE", "prefer"),
        case("host=127.0.0.1 port=1 sslrootcert=system sslmode=require"),
        case("host=127.0.0.1 port=1 sslrootcert=system sslmode=verify-full"),
        case("host=127.0.0.1 port=1 sslrootcert=System"),
        case("host=127.0.0.1 port=1 sslrootcert=./system"),
        case("host=127.0.0.1 port=1 sslrootcert=file").var("PGSSLROOTCERT", "system"),
        case("host=127.0.0.1 port=1 sslrootcert=''").var("PGSSLROOTCERT", "system"),
        closed().var("PGSSLROOTCERT", "system"),
        closed().var("PGSSLROOTCERT", "system").var("PGSSLMODE", "disable"),
        closed().var("PGSERVICE", "s").services("[s]\nsslrootcert=system\n"),
        closed().var("PGSERVICE", "s").services("[s]\nsslrootcert=system\nsslmode=require\n"),
        case("postgresql://127.0.0.1:1?sslrootcert=system"),
        case("postgresql://127.0.0.1:1?sslrootcert=system&ssl=true"),
        // Home.
        closed().var("HOME", "/nowhere"),
        closed().var("HOME", "nowhere"),
        closed().var("HOME", "{home}/"),
        closed().var("HOME", "{home}/moved").file("moved/.pgpass", "*:*:*:*:hunter2").passwords("*:*:*:*:x"),
    ]
}

/// Service files. Each case names the service `s`, unless it says otherwise.
fn service_cases() -> Vec<Case> {
    let with = |services: &str| case("service=s").services(services);
    let closed = "host=127.0.0.1\nport=1\n";
    let long = |length: usize| {
        let begin = "application_name=";
        format!("[s]\nhost=127.0.0.1\nport=1\n{begin}{}\nuser=u\n", "x".repeat(length - begin.len()))
    };
    let long_comment = |length: usize| format!("#{}\n[s]\n{closed}user=u\n", "x".repeat(length - 1));
    vec![
        // Who says which service.
        with(&format!("[s]\n{closed}user=u\n")),
        case("").var("PGSERVICE", "s").services(&format!("[s]\n{closed}user=u\n")),
        case("service=s").var("PGSERVICE", "t").services(&format!("[s]\n{closed}user=s\n[t]\nuser=t\n")),
        case("service=s").var("PGSERVICE", "nowhere").services(&format!("[s]\n{closed}user=s\n")),
        case("service=nowhere").var("PGSERVICE", "s").services(&format!("[s]\n{closed}user=s\n")),
        case("service=''").var("PGSERVICE", "s").services(&format!("[s]\n{closed}user=s\n")),
        case("service=''").services(&format!("[]\n{closed}user=s\n")),
        case("").var("PGSERVICE", "").services(&format!("[]\n{closed}user=s\n")),
        case("").var("PGSERVICE", "").services(&format!("[s]\n{closed}user=s\n")),
        case("host=127.0.0.1 port=1").var("PGSERVICE", ""),
        case("postgresql:///?service=s").services(&format!("[s]\n{closed}user=u\n")),
        case("postgresql://u@/d?service=s").services(&format!("[s]\n{closed}user=v\ndbname=e\n")),
        case("service=s host=127.0.0.1 port=1").services("[s]\nhost=nowhere.invalid\nport=x\nuser=u\n"),
        case("service='s t' host=127.0.0.1 port=1").services("[s t]\nuser=u\n"),
        case("service=' s' host=127.0.0.1 port=1").services("[s]\nuser=u\n"),
        case("service=s host=127.0.0.1 port=1").services("[ s ]\nuser=u\n"),
        case("service=S host=127.0.0.1 port=1").services("[s]\nuser=u\n"),
        case("service=ü host=127.0.0.1 port=1").services("[ü]\nuser=ä\n"),
        // Which file.
        case("service=s"),
        case("service=s host=127.0.0.1 port=1").var("PGSERVICEFILE", "{home}/nowhere"),
        with(&format!("[s]\n{closed}")).var("PGSERVICEFILE", "{home}/nowhere"),
        with(&format!("[s]\n{closed}")).var("PGSERVICEFILE", ""),
        with(&format!("[s]\n{closed}user=home\n"))
            .var("PGSERVICEFILE", "{home}/mine")
            .file("mine", format!("[s]\n{closed}user=mine\n")),
        with(&format!("[s]\n{closed}user=home\n"))
            .var("PGSERVICEFILE", "{home}/mine")
            .file("mine", format!("[t]\n{closed}user=mine\n")),
        with(&format!("[s]\n{closed}user=home\n"))
            .var("PGSYSCONFDIR", "{home}/etc")
            .file("etc/pg_service.conf", format!("[s]\n{closed}user=system\n")),
        with(&format!("[t]\n{closed}user=home\n"))
            .var("PGSYSCONFDIR", "{home}/etc")
            .file("etc/pg_service.conf", format!("[s]\n{closed}user=system\n")),
        case("service=s")
            .var("PGSYSCONFDIR", "{home}/etc")
            .file("etc/pg_service.conf", format!("[s]\n{closed}user=system\n")),
        case("service=s")
            .var("PGSYSCONFDIR", "{home}/etc/")
            .file("etc/pg_service.conf", format!("[s]\n{closed}user=system\n")),
        case("service=s")
            .var("PGSERVICEFILE", "{home}/nowhere")
            .var("PGSYSCONFDIR", "{home}/etc")
            .file("etc/pg_service.conf", format!("[s]\n{closed}user=system\n")),
        case("service=s")
            .var("PGSERVICEFILE", "{home}/etc")
            .var("PGSYSCONFDIR", "{home}/etc")
            .file("etc/pg_service.conf", format!("[s]\n{closed}user=system\n")),
        case("service=s")
            .var("PGSERVICEFILE", "{home}/etc/pg_service.conf/x")
            .var("PGSYSCONFDIR", "{home}/etc")
            .file("etc/pg_service.conf", format!("[s]\n{closed}user=system\n")),
        case("service=s")
            .var("HOME", "{home}/etc/pg_service.conf")
            .var("PGSYSCONFDIR", "{home}/etc")
            .file("etc/pg_service.conf", format!("[s]\n{closed}user=system\n")),
        case("service=s").var("PGSYSCONFDIR", "{home}/nowhere"),
        case("service=s").var("PGSYSCONFDIR", ""),
        with("[t]\nhost=127.0.0.1\n[s")
            .var("PGSYSCONFDIR", "{home}/etc")
            .file("etc/pg_service.conf", format!("[s]\n{closed}")),
        with("[s]\nwrong\n")
            .var("PGSYSCONFDIR", "{home}/etc")
            .file("etc/pg_service.conf", format!("[s]\n{closed}")),
        with(&format!("[s]\n{closed}")).file_with_mode(".pg_service.conf", format!("[s]\n{closed}"), 0o666),
        // Groups.
        with(""),
        with("[s]\n").var("PGHOST", "127.0.0.1").var("PGPORT", "1"),
        with("[s]").var("PGHOST", "127.0.0.1").var("PGPORT", "1"),
        with(&format!("{closed}user=u\n")),
        with(&format!("user=outside\n[s]\n{closed}")),
        with(&format!("[s]\n{closed}user=first\n[s]\nuser=second\ndbname=second\n")),
        with(&format!("[s]\n{closed}[s]\nuser=second\n")),
        with(&format!("[s]\n{closed}[t]\nuser=t\n[s]\nuser=second\n")),
        with(&format!("[t]\nuser=t\n[s]\n{closed}")),
        with(&format!("[ss]\nuser=ss\n[s]\n{closed}")),
        with(&format!("[s]x\n{closed}user=u\n")),
        with(&format!("[s]]\n{closed}user=u\n")),
        with(&format!("[s\n{closed}user=u\n")),
        with(&format!("[[s]\n{closed}user=u\n")),
        with(&format!("[S]\n{closed}user=u\n")),
        with(&format!("  [s]  \n{closed}user=u\n")),
        with(&format!("[s] # comment\n{closed}user=u\n")),
        with(&format!("[s]\n{closed}user=u\n[t")),
        // Lines.
        with(&format!("# comment\n\n   \n[s]\n# comment\n  # comment\n\n\t\n{closed}#user=no\nuser=u\n")),
        with("[s]\n  host=127.0.0.1  \n\tport=1\t\n \u{b}\u{c}user=u\u{b}\u{c} \n"),
        with("[s]\r\nhost=127.0.0.1\r\nport=1\r\nuser=u\r\n"),
        with("[s]\rhost=127.0.0.1\rport=1\r"),
        with("[s]\nhost=127.0.0.1\nport=1\nuser=u"),
        with(&format!("[s]\n{closed}user=u # comment\n")),
        with(&format!("[s]\n{closed}user=a b\n")),
        with(&format!("[s]\n{closed}user= u\n")),
        with(&format!("[s]\n{closed}user =u\n")),
        with(&format!("[s]\n{closed}user='u'\n")),
        with(&format!("[s]\n{closed}user=\\u\n")),
        with(&format!("[s]\n{closed}user=a=b\n")),
        with(&format!("[s]\n{closed}user=\n")),
        with(&format!("[s]\n{closed}user=\u{a0}u\u{a0}\n")),
        with(&format!("[s]\n{closed}user=first\nuser=second\n")),
        with(&format!("[s]\n{closed}user=\nuser=second\n")),
        with(&format!("[s]\n{closed}=x\n")),
        with(&format!("[s]\n{closed}user\n")),
        with(&format!("[s]\n{closed}hunter2\n")),
        with(&format!("[s]\n{closed}password=x\nhunter2=x\n")),
        with(&format!("[s]\n{closed}pasword=hunter2\n")),
        with(&format!("[s]\n{closed}password=hunter2 x\n")),
        with(&format!("[s]\n{closed}USER=u\n")),
        with(&format!("[s]\n{closed}requiressl=1\n")),
        with(&format!("[s]\n{closed}ssl=true\n")),
        with(&format!("[s]\n{closed}unknown=1\n")),
        with(&format!("[t]\nunknown=1\nwrong\n[s]\n{closed}")),
        with(&format!("[s]\n{closed}[t]\nunknown=1\nwrong\n")),
        with(&format!("[s]\n{closed}service=t\n[t]\nuser=t\n")),
        with(&format!("[s]\n{closed}service=\n")),
        with("[s]\nldap://\n"),
        with("[s]\nport=x\nhost=127.0.0.1\n"),
        with(&format!("[s]\n{closed}sslmode=sometimes\n")),
        // Long lines. With its end, one may have 1022 bytes.
        with(&long(1000)),
        with(&long(1020)),
        with(&long(1021)),
        with(&long(1022)),
        with(&long(1023)),
        with(&long(2000)),
        with(long(1022).trim_end_matches("\nuser=u\n")),
        with(long(1023).trim_end_matches("\nuser=u\n")),
        with(&long(1020).replace('\n', "\r\n")),
        with(&long(1021).replace('\n', "\r\n")),
        with(&long_comment(1021)),
        with(&long_comment(1022)),
        with(&format!("[s]\n{closed}[t]\n#{}\n", "x".repeat(2000))),
        with(&format!("[s]\n{closed}user={}\n", "ü".repeat(508))),
        with(&format!("[s]\n{closed}user={}\n", "ü".repeat(509))),
        // A password of the service, and one of the file.
        with(&format!("[s]\n{closed}password=hunter2\n")).passwords("*:*:*:*:hunter2 file\n"),
        with(&format!("[s]\n{closed}passfile={{home}}/other\n")).file("other", "*:*:*:*:hunter2 other\n"),
        with(&format!("[s]\n{closed}password=hunter2\n")).var("PGPASSWORD", "hunter2 environment"),
    ]
}

/// Password files.
fn password_cases() -> Vec<Case> {
    let string = "host=127.0.0.1 port=1 user=u dbname=d";
    let with = |passwords: &str| case(string).passwords(passwords);
    let at = |string: &str, passwords: &str| case(string).passwords(passwords);
    let mode = |mode| case(string).file_with_mode(".pgpass", "*:*:*:*:hunter2\n", mode);
    let nothing_listens = "user=u dbname=d port=1";
    vec![
        // Fields.
        with("127.0.0.1:1:d:u:hunter2\n"),
        with("*:*:*:*:hunter2"),
        with("*:1:d:u:hunter2\n"),
        with("127.0.0.1:*:d:u:hunter2\n"),
        with("127.0.0.1:1:*:u:hunter2\n"),
        with("127.0.0.1:1:d:*:hunter2\n"),
        with("127.0.0.2:1:d:u:hunter2\n"),
        with("127.0.0.1:2:d:u:hunter2\n"),
        with("127.0.0.1:1:e:u:hunter2\n"),
        with("127.0.0.1:1:d:v:hunter2\n"),
        with("localhost:1:d:u:hunter2\n"),
        with("127.0.0.1:01:d:u:hunter2\n"),
        with("127.0.0.1:1 :d:u:hunter2\n"),
        with("127.0.0.:1:d:u:hunter2\n"),
        with("127.0.0.11:1:d:u:hunter2\n"),
        with("127.0.0.*:*:*:*:hunter2\n"),
        with("**:*:*:*:hunter2\n"),
        with(r"\*:*:*:*:hunter2"),
        with(" *:*:*:*:hunter2\n"),
        with(":1:d:u:hunter2\n"),
        with("127.0.0.1:1:d:u\n"),
        with("127.0.0.1:1:d:u:\n"),
        with("127.0.0.1:1:d:u:\n*:*:*:*:hunter2\n"),
        with("127.0.0.1:1:d:u\n*:*:*:*:hunter2\n"),
        with("*:*:*:hunter2\n"),
        with(""),
        with("\n\n*:*:*:*:hunter2\n"),
        // The password.
        with("*:*:*:*:hunter2 \n"),
        with("*:*:*:*: hunter2\n"),
        with("*:*:*:*:hunter2:more\n"),
        with(r"*:*:*:*:hunter2\:more"),
        with(r"*:*:*:*:hunter2\\:more"),
        with(r"*:*:*:*:hunter2\x"),
        with(r"*:*:*:*:hunter2\"),
        with("*:*:*:*:hunter2\\\n"),
        with(r"*:*:*:*:hunter2\\"),
        with("*:*:*:*:hunter2#x\n"),
        with("*:*:*:*:*\n"),
        with("*:*:*:*:hunter2ü\u{1f980}\n"),
        with("*:*:*:*:hunter2\r\n"),
        with("*:*:*:*:hunter2\r\r\n"),
        with("*:*:*:*:hunter2\r"),
        with("*:*:*:*:hunter2\rx\n"),
        with("*:*:*:*:hunter2\u{b}\n"),
        with(&format!("*:*:*:*:{}\n", "hunter2".repeat(1000))),
        with(&format!("{}\n*:*:*:*:hunter2\n", "x".repeat(5000))),
        // Order and comments.
        with("*:*:*:*:hunter2 first\n*:*:*:*:hunter2 second\n"),
        with("*:*:*:v:hunter2 first\n*:*:*:u:hunter2 second\n*:*:*:*:hunter2 third\n"),
        with("# comment\n#*:*:*:*:hunter2 first\n*:*:*:*:hunter2 second\n"),
        with(" # comment\n*:*:*:*:hunter2\n"),
        at("host=#h.invalid port=1 user=u dbname=d", "#h.invalid:*:*:*:hunter2\n"),
        at("host=#h.invalid port=1 user=u dbname=d", "\\#h.invalid:*:*:*:hunter2\n"),
        at("host=' #h.invalid' port=1 user=u dbname=d", " #h.invalid:*:*:*:hunter2\n"),
        // Escapes.
        at("host=127.0.0.1 port=1 user=a:b dbname=d", r"*:*:d:a\:b:hunter2"),
        at("host=127.0.0.1 port=1 user=a:b dbname=d", "*:*:d:a:b:hunter2"),
        at(r"host=127.0.0.1 port=1 user='a\\b' dbname=d", r"*:*:d:a\\b:hunter2"),
        at(r"host=127.0.0.1 port=1 user='a\\b' dbname=d", r"*:*:d:a\b:hunter2"),
        at("host=127.0.0.1 port=1 user=ab dbname=d", r"*:*:d:a\b:hunter2"),
        at("host=127.0.0.1 port=1 user=ab dbname=d", r"*:*:d:ab\:hunter2"),
        at("host=127.0.0.1 port=1 user=* dbname=d", "*:*:d:*:hunter2"),
        at("host=127.0.0.1 port=1 user=* dbname=d", r"*:*:d:\*:hunter2"),
        at("host=127.0.0.1 port=1 user=ü dbname=é", r"*:*:é:\ü:hunter2"),
        at("hostaddr=::1 port=1 user=u dbname=d", r"\:\:1:*:*:*:hunter2"),
        at("hostaddr=::1 port=1 user=u dbname=d", "::1:*:*:*:hunter2"),
        at("host=::1 port=1 user=u dbname=d", r"\:\:1:*:*:*:hunter2"),
        at("postgresql://u@[::1]:1/d", r"\:\:1:1:d:u:hunter2"),
        // Where the server is.
        at(nothing_listens, "localhost:1:d:u:hunter2\n"),
        at(nothing_listens, "/var/run/postgresql:1:d:u:hunter2 directory\n*:*:*:*:hunter2\n"),
        at(&format!("{nothing_listens} host=/var/run/postgresql"), "localhost:1:d:u:hunter2\n"),
        at(
            &format!("{nothing_listens} host=/var/run/postgresql"),
            "/var/run/postgresql:1:d:u:hunter2 directory\n*:*:*:*:hunter2\n",
        ),
        at(&format!("{nothing_listens} host=/var/run/postgresql/"), "localhost:1:d:u:hunter2\n"),
        at(&format!("{nothing_listens} host={{home}}"), "localhost:1:d:u:hunter2\n"),
        at(&format!("{nothing_listens} host={{home}}"), "{home}:1:d:u:hunter2\n"),
        at(&format!("{nothing_listens} host=@nowhere"), "@nowhere:1:d:u:hunter2\n"),
        at(&format!("{nothing_listens} host=localhost"), "localhost:1:d:u:hunter2\n"),
        at(&format!("{nothing_listens} host=localhost"), "127.0.0.1:1:d:u:hunter2\n"),
        at(&format!("{nothing_listens} host=LocalHost"), "localhost:1:d:u:hunter2\n"),
        at(
            &format!("{nothing_listens} host=name hostaddr=127.0.0.1"),
            "127.0.0.1:1:d:u:hunter2 address\nname:1:d:u:hunter2 name\n",
        ),
        at(&format!("{nothing_listens} host=name hostaddr=127.0.0.1"), "127.0.0.1:1:d:u:hunter2 address\n"),
        at(&format!("{nothing_listens} hostaddr=127.0.0.1"), "127.0.0.1:1:d:u:hunter2 address\n"),
        at(&format!("{nothing_listens} hostaddr=127.0.0.1"), "localhost:1:d:u:hunter2 address\n"),
        at(
            "user=u dbname=d host=,name hostaddr=127.0.0.1,127.0.0.1 port=1",
            "127.0.0.1:1:d:u:hunter2 address\nname:1:d:u:hunter2 name\n",
        ),
        at(
            "user=u dbname=d host=name, hostaddr=127.0.0.1,127.0.0.1 port=1",
            "127.0.0.1:1:d:u:hunter2 address\nname:1:d:u:hunter2 name\n",
        ),
        at(
            "user=u dbname=d host=127.0.0.1,localhost port=1,2",
            "127.0.0.1:1:d:u:hunter2 first\nlocalhost:2:d:u:hunter2 second\n",
        ),
        at("user=u dbname=d host=127.0.0.1,localhost port=1", "localhost:1:d:u:hunter2 second\n"),
        at("user=u dbname=d host=localhost,127.0.0.1 port=1,2", "*:1:*:*:hunter2 first\n"),
        at("user=u dbname=d host=/nowhere", "/nowhere:5432:d:u:hunter2\n"),
        at("user=u dbname=d host=/tmp", "localhost:*:*:*:hunter2\n"),
        at("user=u dbname=d host=/tmp", "/tmp:*:*:*:hunter2\n"),
        at("user=u dbname=d host=/nowhere port=''", "/nowhere:5432:d:u:hunter2\n"),
        at("user=u dbname=d host=/nowhere,/nowhere port=1,", "/nowhere:5432:d:u:hunter2\n"),
        // The database and the user that nobody gives.
        at("host=127.0.0.1 port=1 user=u", "*:*:u:u:hunter2\n"),
        at("host=127.0.0.1 port=1 user=u dbname=''", "*:*:u:*:hunter2\n"),
        at("host=127.0.0.1 port=1 dbname=d", "*:*:d:*:hunter2\n"),
        at("host=127.0.0.1 port=1", "*:*:*:root:hunter2 root\n*:*:*:*:hunter2 other\n"),
        case("host=127.0.0.1 port=1")
            .var("PGUSER", "u")
            .var("PGDATABASE", "d")
            .passwords("*:*:d:u:hunter2\n"),
        // Which file.
        with("*:*:*:*:hunter2\n").var("PGPASSFILE", "{home}/nowhere"),
        with("*:*:*:*:hunter2\n").var("PGPASSFILE", ""),
        with("*:*:*:*:hunter2\n").var("PGPASSFILE", "{home}/mine").file("mine", "*:*:*:*:hunter2 mine\n"),
        with("*:*:*:*:hunter2\n").var("PGPASSFILE", "{home}/mine").file("mine", "*:*:*:v:hunter2 mine\n"),
        case(format!("{string} passfile={{home}}/mine")).file("mine", "*:*:*:*:hunter2 mine\n"),
        case(format!("{string} passfile={{home}}/mine"))
            .var("PGPASSFILE", "{home}/other")
            .file("mine", "*:*:*:*:hunter2 mine\n")
            .file("other", "*:*:*:*:hunter2 other\n"),
        case(format!("{string} passfile=''")).passwords("*:*:*:*:hunter2\n"),
        case(format!("{string} passfile=''"))
            .var("PGPASSFILE", "{home}/mine")
            .file("mine", "*:*:*:*:hunter2\n"),
        case(format!("{string} passfile={{home}}")),
        case(format!("{string} passfile=/dev/null")).passwords("*:*:*:*:hunter2\n"),
        case(format!("{string} passfile=~/.pgpass")).passwords("*:*:*:*:hunter2\n"),
        case(string).var("HOME", "/nowhere").passwords("*:*:*:*:hunter2\n"),
        // Others must not read it.
        mode(0o600),
        mode(0o400),
        mode(0o700),
        mode(0o640),
        mode(0o604),
        mode(0o620),
        mode(0o602),
        mode(0o610),
        mode(0o601),
        mode(0o644),
        case(format!("{string} passfile={{home}}/mine"))
            .file_with_mode("mine", "*:*:*:*:hunter2\n", 0o640)
            .passwords("*:*:*:*:hunter2 home\n"),
        // A password that is given.
        case(format!("{string} password=hunter2")).passwords("*:*:*:*:hunter2 file\n"),
        case(format!("{string} password=''")).passwords("*:*:*:*:hunter2 file\n"),
        case("postgresql://u:@127.0.0.1:1/d").passwords("*:*:*:*:hunter2 file\n"),
        with("*:*:*:*:hunter2 file\n").var("PGPASSWORD", "hunter2 environment"),
        with("*:*:*:*:hunter2 file\n").var("PGPASSWORD", ""),
        case(format!("{string} password=''"))
            .var("PGPASSWORD", "hunter2")
            .passwords("*:*:*:*:hunter2 file\n"),
    ]
}

/// Values of each option; the string is otherwise right.
const VALUES: &[(&str, &[&str])] = &[
    ("channel_binding", &["", "disable", "prefer", "require", "Require", "required", " require", "1"]),
    ("client_encoding", &["", "UTF8", "SQL_ASCII", "LATIN1"]),
    (
        "connect_timeout",
        &["", "0", "1", "2", "10", "-1", "+3", " 3 ", "\t3\n", "3s", "x", "0x10", "010", "1.5", "1e3", "- 3"],
    ),
    ("connect_timeout", &["2147483647", "2147483648", "-2147483648", "-2147483649", "99999999999999999999"]),
    ("dbname", &["x", "a b", "host=x", "postgres://x", "ü"]),
    ("gssdelegation", &["", "0", "1", "2", "x"]),
    ("gssencmode", &["", "disable", "prefer", "Prefer", "allow", "requires", "1"]),
    ("gsslib", &["", "gssapi", "sspi", "x"]),
    ("keepalives", &["", "0", "1", "2", "-1", " 1 ", "on", "x", "99999999999"]),
    ("keepalives_count", &["", "0", "3", "-3", " 3 ", "x", "3.0", "99999999999"]),
    ("keepalives_idle", &["", "0", "30", "-30", " 30 ", "x", "30s", "99999999999"]),
    ("keepalives_interval", &["", "0", "30", "-30", " 30 ", "x", "30s", "99999999999"]),
    ("tcp_user_timeout", &["", "0", "30", "-30", " 30 ", "x", "30s", "99999999999"]),
    ("krbsrvname", &["", "postgres", "x"]),
    ("load_balance_hosts", &["", "disable", "random", "Random", "1", "true", "random "]),
    ("options", &["", "-c geqo=off", "nonsense"]),
    (
        "require_auth",
        &[
            "",
            "password",
            "md5",
            "gss",
            "sspi",
            "scram-sha-256",
            "none",
            "creds",
            "password,md5",
            "password,md5,gss,sspi,scram-sha-256,none",
            "!password",
            "!md5",
            "!gss",
            "!sspi",
            "!scram-sha-256",
            "!none",
            "!password,!md5,!gss,!sspi,!scram-sha-256",
            "!password,!md5,!gss,!sspi,!scram-sha-256,!none",
            "password,none",
            "none,password",
            "!password,!none",
            "!none,!password",
        ],
    ),
    (
        "require_auth",
        &[
            "password,password",
            "none,none",
            "!none,!none",
            "!md5,!md5",
            "password,!md5",
            "!md5,password",
            "none,!md5",
            "!none,md5",
            "!md5,none",
            "password,!none",
            "password,!password",
            "Password",
            "scram",
            "SCRAM-SHA-256",
            "scram-sha-256-plus",
            "cert",
            "peer",
            "trust",
            "ldap",
            "password,",
            ",password",
            ",",
            "!",
            "!,!md5",
            "!!md5",
            "! md5",
            "password, md5",
            " password",
            "password ",
            "password;md5",
        ],
    ),
    ("requirepeer", &["", "root", "nobody at all"]),
    (
        "ssl_min_protocol_version",
        &[
            "", "TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3", "tlsv1.2", "TLSV1.3", "TLSv1.0", "TLSv1.4",
            "SSLv3", "1.2",
        ],
    ),
    (
        "ssl_max_protocol_version",
        &[
            "", "TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3", "tlsv1.2", "TLSV1.3", "TLSv1.0", "TLSv1.4",
            "SSLv3", "1.2",
        ],
    ),
    ("sslcertmode", &["", "disable", "allow", "require", "Allow", "prefer", "require "]),
    ("sslcompression", &["", "0", "1", "2", "x"]),
    ("sslkey", &["", "/nowhere", "nowhere", "engine", "/engine:a:b"]),
    (
        "sslmode",
        &[
            "",
            "disable",
            "allow",
            "prefer",
            "require",
            "verify-ca",
            "verify-full",
            "Disable",
            "REQUIRE",
            "require ",
            " require",
            "verify_ca",
            "verify",
            "full",
            "on",
            "true",
            "1",
            "r",
        ],
    ),
    ("sslnegotiation", &["", "postgres", "direct", "Postgres", "requiredirect", "tls"]),
    ("sslrootcert", &["", "/nowhere", "nowhere", "system", "System", "system "]),
    ("sslsni", &["", "0", "1", "2", "x"]),
    (
        "target_session_attrs",
        &[
            "",
            "any",
            "read-write",
            "read-only",
            "primary",
            "standby",
            "prefer-standby",
            "Any",
            "read_write",
            "master",
            "secondary",
            "any ",
            "any,primary",
        ],
    ),
    (
        "port",
        &[
            "",
            "1",
            "01",
            " 1",
            "1 ",
            "\t1\u{b}",
            "+1",
            "-1",
            "0",
            "65535",
            "65536",
            "99999",
            "4294967297",
            "99999999999999999999",
            "x",
            "1x",
            "0x1",
            "1.0",
            "1 2",
            " ",
            "+",
            "-",
            "1,",
            ",1",
            ",",
            "1,1",
            "1,x",
            "１",
        ],
    ),
    (
        "hostaddr",
        &[
            "",
            "127.0.0.1",
            "127.0.0.2",
            "::1",
            "::ffff:127.0.0.1",
            "0:0:0:0:0:0:0:1",
            "localhost",
            "nowhere.invalid",
            "[::1]",
            "127.0.0.1:1",
            "127.0.0.1/8",
            " 127.0.0.1",
            "127.0.0.1 ",
            "/tmp",
            "x",
            "300.0.0.1",
            "1.2.3.4.5",
            ":::1",
            "127.0.0.1,",
            ",127.0.0.1",
            ",",
            "127.0.0.1,127.0.0.2",
            "127.0.0.1,x",
        ],
    ),
];

/// Values of several options that must go together.
const COMBINATIONS: &[&str] = &[
    // As many names as addresses, and ports.
    "host=127.0.0.1 port=1",
    "host=127.0.0.1,127.0.0.2 port=1",
    "host=127.0.0.1,127.0.0.2 port=1,2",
    "host=127.0.0.1,127.0.0.2 port=1,",
    "host=127.0.0.1,127.0.0.2 port=,1",
    "host=127.0.0.1,127.0.0.2 port=,",
    "host=127.0.0.1,127.0.0.2 port=''",
    "host=127.0.0.1,127.0.0.2 port=1,2,3",
    "host=127.0.0.1,127.0.0.2,127.0.0.3 port=1,2",
    "host=127.0.0.1,127.0.0.2 port=1,x",
    "host=127.0.0.1,127.0.0.2 port=x,1",
    "host=127.0.0.1,127.0.0.2 port=1,0",
    "host=127.0.0.1,127.0.0.2 port=1,65536",
    "host=127.0.0.1 port=1,2",
    "host='' port=1,2",
    "port=1,2",
    "host=, port=1,2",
    "host=, port=1",
    "host=,, port=1,2,3",
    "host=127.0.0.1, port=1",
    "host=,127.0.0.1 port=1",
    "host=127.0.0.1,,127.0.0.2 port=1",
    "host=127.0.0.1,/nowhere,@nowhere port=1",
    "hostaddr=127.0.0.1 port=1",
    "hostaddr=127.0.0.1 host=name port=1",
    "hostaddr=127.0.0.1 host=a,b port=1",
    "hostaddr=127.0.0.1,127.0.0.2 host=a port=1",
    "hostaddr=127.0.0.1,127.0.0.2 host=a,b port=1",
    "hostaddr=127.0.0.1,127.0.0.2 host=a, port=1",
    "hostaddr=127.0.0.1,127.0.0.2 host=, port=1",
    "hostaddr=127.0.0.1,127.0.0.2 host=,, port=1",
    "hostaddr=127.0.0.1,127.0.0.2 port=1,2",
    "hostaddr=127.0.0.1,127.0.0.2 port=1,2,3",
    "hostaddr=127.0.0.1, host=a,127.0.0.1 port=1",
    "hostaddr=127.0.0.1, host=127.0.0.1,/nowhere port=1",
    "hostaddr=,127.0.0.1 host=127.0.0.1,a port=1",
    "hostaddr=, host=127.0.0.1,127.0.0.2 port=1",
    "hostaddr='' host=127.0.0.1,127.0.0.2 port=1",
    "hostaddr=, port=1",
    "hostaddr=127.0.0.1,x port=1",
    "hostaddr=x,127.0.0.1 port=1",
    "hostaddr=127.0.0.1 host='' port=1",
    "hostaddr=127.0.0.1 host=/nowhere port=1",
    "hostaddr=localhost port=1",
    "hostaddr=::1%1 port=1",
    "host=::1 port=1",
    "host=[::1] port=1",
    "host='127.0.0.1 ' port=1",
    "host='127.0.0.1, 127.0.0.2' port=1",
    "host=127.0.0.1:1 port=1",
    "host=nowhere.invalid port=1",
    "host=ü.invalid port=1",
    "host=/nowhere",
    "host=/nowhere port=65535",
    "host=/nowhere port=65536",
    "host=/nowhere port=0",
    "host=/nowhere port=x",
    "host=@nowhere port=1",
    "host=@ port=1",
    "host=/ port=1",
    "postgresql://127.0.0.1:1,127.0.0.2:2/d",
    "postgresql://127.0.0.1,127.0.0.2:2/d",
    "postgresql://127.0.0.1:1,127.0.0.2/d",
    "postgresql://127.0.0.1,127.0.0.2?port=1",
    "postgresql://127.0.0.1:1,127.0.0.2:2/d?port=3",
    "postgresql://127.0.0.1:1,127.0.0.2:2/d?port=1,2,3",
    "postgresql://127.0.0.1:1,127.0.0.2:2/d?host=127.0.0.3",
    "postgresql://127.0.0.1:x/d",
    "postgresql://127.0.0.1:99999/d",
    "postgresql://127.0.0.1:hunter2/d",
    "postgresql://127.0.0.1:1:2/d",
    "postgresql://127.0.0.1: 1 /d",
    "postgresql://[::1]:1/d",
    "postgresql://u:hunter2/x@127.0.0.1:1/d",
    "postgresql://u:1/hunter2@127.0.0.1:1/d",
    "postgresql://u:hunter2,x/y@127.0.0.1:1/d",
    "postgresql://%2Fnowhere:1/d",
    "postgresql://@%40nowhere:1/d",
    // sslnegotiation, and TLS that is not sure.
    "host=127.0.0.1 port=1 sslnegotiation=direct sslmode=disable",
    "host=127.0.0.1 port=1 sslnegotiation=direct sslmode=allow",
    "host=127.0.0.1 port=1 sslnegotiation=direct sslmode=prefer",
    "host=127.0.0.1 port=1 sslnegotiation=direct sslmode=require",
    "host=127.0.0.1 port=1 sslnegotiation=direct sslmode=verify-ca",
    "host=127.0.0.1 port=1 sslnegotiation=direct sslmode=verify-full",
    "host=127.0.0.1 port=1 sslnegotiation=direct requiressl=1",
    "host=127.0.0.1 port=1 sslnegotiation=direct sslrootcert=system",
    "host=127.0.0.1 port=1 sslnegotiation=postgres sslmode=disable",
    "host=/nowhere sslnegotiation=direct sslmode=require",
    "host=/nowhere sslnegotiation=direct",
    "host=127.0.0.1 port=1 sslmode=prefer sslrootcert=system",
    "host=127.0.0.1 port=1 sslmode=verify-ca sslrootcert=system",
    "host=/nowhere sslmode=prefer sslrootcert=system",
    // Versions of TLS.
    "host=127.0.0.1 port=1 ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.3",
    "host=127.0.0.1 port=1 ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2",
    "host=127.0.0.1 port=1 ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1",
    "host=127.0.0.1 port=1 ssl_min_protocol_version=TLSv1 ssl_max_protocol_version=TLSv1.1",
    "host=127.0.0.1 port=1 ssl_max_protocol_version=TLSv1.1",
    "host=127.0.0.1 port=1 ssl_min_protocol_version='' ssl_max_protocol_version=TLSv1.1",
    "host=127.0.0.1 port=1 ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=''",
    "host=127.0.0.1 port=1 ssl_min_protocol_version=tlsv1.3 ssl_max_protocol_version=TLSV1.2",
    // Ways to be let in.
    "host=127.0.0.1 port=1 channel_binding=require require_auth=password",
    "host=127.0.0.1 port=1 channel_binding=require sslmode=disable",
    "host=127.0.0.1 port=1 sslcertmode=require sslmode=disable",
    "host=127.0.0.1 port=1 gssencmode=disable sslmode=disable",
    // Timeouts and probes.
    "host=127.0.0.1 port=1 keepalives=0",
    "host=/nowhere connect_timeout=3",
    "host=127.0.0.1,/nowhere port=1 keepalives_idle=x",
    "host=/nowhere,127.0.0.1 port=1 keepalives_idle=x",
    // Several wrong.
    "host=127.0.0.1 port=x sslmode=sometimes hosst=a",
    "host=127.0.0.1 port=x sslmode=sometimes",
];

/// Where this is not like libpq, on purpose.
struct Difference {
    case: fn() -> Case,
    kind: Kind,
    reason: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Only libpq accepts it.
    Theirs,
    /// Only this accepts it.
    Ours,
    /// Both accept it, and it means something else.
    Meaning,
}

const fn differs(kind: Kind, reason: &'static str, case: fn() -> Case) -> Difference {
    Difference { case, kind, reason }
}

const NO_GSSAPI: &str = "GSSAPI is not supported, and to go on without would be to go on unencrypted";
const NO_REPLICATION: &str = "a replication connection cannot take snapshots";
const NO_ENGINE: &str = "engines are not supported, and to go on without would be to go on as somebody else";
const NOT_UTF8: &str = "all that is given is text";
const LATE: &str = "libpq does not look at it, or not before a server listens; a wrong value is wrong here";
const FORMS: &str = "an address in one of the forms of inet_aton is probably a slip";
const BY_DIALLING: &str = "whether there is such a place turns out when it is tried";

/// What differs, and must differ.
const DIFFERENCES: &[Difference] = &[
    differs(Kind::Theirs, NO_GSSAPI, || case("host=127.0.0.1 port=1 gssencmode=require")),
    differs(Kind::Theirs, NO_GSSAPI, || case(CLOSED).var("PGGSSENCMODE", "require")),
    differs(Kind::Theirs, NO_REPLICATION, || case("host=127.0.0.1 port=1 replication=database")),
    differs(Kind::Theirs, NO_REPLICATION, || case("host=127.0.0.1 port=1 replication=true")),
    differs(Kind::Theirs, NO_REPLICATION, || case("host=127.0.0.1 port=1 replication=on")),
    differs(Kind::Theirs, NO_REPLICATION, || case("host=127.0.0.1 port=1 replication=1")),
    differs(Kind::Theirs, NO_REPLICATION, || case("host=127.0.0.1 port=1 replication=hunter2")),
    differs(Kind::Theirs, NO_ENGINE, || case("host=127.0.0.1 port=1 sslkey=engine:hunter2")),
    differs(Kind::Theirs, NO_ENGINE, || case(CLOSED).var("PGSSLKEY", "engine:a:b")),
    differs(Kind::Theirs, NOT_UTF8, || case("postgresql://%ff@127.0.0.1:1/d")),
    differs(Kind::Theirs, NOT_UTF8, || case("postgresql://u:hunter2%ff@127.0.0.1:1/d")),
    differs(Kind::Theirs, NOT_UTF8, || case("postgresql://127.0.0.1:1/%C3")),
    differs(Kind::Theirs, NOT_UTF8, || case("postgresql://127.0.0.1:1/%A9%C3")),
    differs(Kind::Theirs, NOT_UTF8, || case("postgresql://127.0.0.1:1?application_name=%f0%9f%a6")),
    differs(Kind::Theirs, NOT_UTF8, || case("postgresql://127.0.0.1:1?user=%ff&user=u")),
    differs(Kind::Theirs, LATE, || case("host=/nowhere connect_timeout=x")),
    differs(Kind::Theirs, LATE, || case("host=/nowhere connect_timeout=''")),
    differs(Kind::Theirs, LATE, || case("host=/nowhere keepalives=x")),
    differs(Kind::Theirs, LATE, || case("host=/nowhere keepalives_idle=x")),
    differs(Kind::Theirs, LATE, || case("host=/nowhere keepalives_interval=''")),
    differs(Kind::Theirs, LATE, || case("host=/nowhere keepalives_count=3x")),
    differs(Kind::Theirs, LATE, || case("host=/nowhere tcp_user_timeout=x")),
    differs(Kind::Theirs, LATE, || case("host=127.0.0.1 port=1 keepalives=0 keepalives_idle=x")),
    differs(Kind::Theirs, FORMS, || case("hostaddr=127.1 port=1")),
    differs(Kind::Theirs, FORMS, || case("hostaddr=0x7f000001 port=1")),
    differs(Kind::Theirs, FORMS, || case("hostaddr=2130706433 port=1")),
    differs(Kind::Theirs, FORMS, || case("hostaddr=127.0.0.01 port=1")),
    differs(Kind::Ours, BY_DIALLING, || case("hostaddr=fe80::1%nowhere port=1")),
    differs(Kind::Ours, BY_DIALLING, || case(format!("host=/{}", "x".repeat(200)))),
    differs(Kind::Meaning, "this speaks UTF-8, whatever the locale", || {
        case("host=127.0.0.1 port=1 client_encoding=auto")
    }),
    differs(Kind::Meaning, "the number counts, not how it is written", || {
        case("host=127.0.0.1 port=01").passwords("*:1:*:*:hunter2\n")
    }),
];

/// How both differ about a case, if they do in a way that can be on purpose.
fn kind_of_difference(libpq: &Libpq, case: &Case) -> Option<Kind> {
    let (_home, case) = case.set_up();
    let theirs = libpq.connect(&case.string, &case.variables);
    match (theirs.refusal(), ours(&case)) {
        (None, Err(error)) => {
            assert_eq!(leak(&error), None);
            Some(Kind::Theirs)
        }
        (Some(_), Ok(_)) => Some(Kind::Ours),
        (None, Ok((options, conninfo))) => {
            differences_of_accepted(&theirs, &options, &conninfo).map(|_| Kind::Meaning)
        }
        (Some(_), Err(_)) => None,
    }
}

/// Whether a string has the one difference that a string alone can have: [`NOT_UTF8`].
fn is_not_utf8(string: &str) -> bool {
    let refused = parse::parse(string).is_err_and(|error| error.to_string().contains("is not UTF-8"));
    let mut decoded = Vec::new();
    let mut rest = string.as_bytes();
    while let [first, after @ ..] = rest {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match byte {
            Some(byte) if *first == b'%' => {
                decoded.push(byte);
                rest = &after[2..];
            }
            _ => {
                decoded.push(*first);
                rest = after;
            }
        }
    }
    refused && String::from_utf8(decoded).is_err()
}

// ---- Strings at random ----

fn any_of(pieces: &'static [&'static str]) -> BoxedStrategy<String> {
    proptest::sample::select(pieces).prop_map(str::to_owned).boxed()
}

fn space() -> BoxedStrategy<String> {
    any_of(&["", "", "", " ", " ", "  ", "\t", "\n", "\u{b}", "\u{c}", "\r", "\u{a0}", "\u{85}", "\u{1f}"])
}

fn name() -> BoxedStrategy<String> {
    let known: Vec<String> = keywords_of_17().map(|keyword| keyword.name.to_owned()).collect();
    prop_oneof![
        16 => proptest::sample::select(known),
        2 => any_of(&["requiressl", "ssl"]),
        1 => any_of(&["", "hosst", "HOST", "ho st", "host ", "é", "dbname\\", "'host'", "password'"]),
    ]
    .boxed()
}

/// Any text without a zero byte, which C's strings do not have.
fn unicode() -> BoxedStrategy<String> {
    proptest::collection::vec(any::<char>().prop_filter("not zero", |c| *c != '\0'), 1..4)
        .prop_map(String::from_iter)
        .boxed()
}

fn text() -> BoxedStrategy<String> {
    any_of(&[
        "",
        "a",
        "1",
        "x,y",
        "true",
        "require",
        "/tmp",
        "::1",
        "é",
        "\u{1f980}",
        "=",
        "'",
        "\\",
        ":",
        "%",
        "@",
    ])
}

/// All that has a meaning in either form.
fn piece() -> BoxedStrategy<String> {
    prop_oneof![
        3 => any_of(&["=", "=", "'", "\\", "\\'", "\\\\", "''", "= '", "' "]),
        3 => any_of(&[":", "/", "?", "&", "@", ",", "[", "]", "[::1]", "://", "#", "%", "%2", "&&", "?&"]),
        2 => escape(),
        2 => space(),
        2 => name(),
        2 => text(),
        1 => unicode(),
        1 => any_of(&["postgres://", "postgresql://", "postgres:/", "Postgres://", "postgresql:"]),
    ]
    .boxed()
}

fn escape() -> BoxedStrategy<String> {
    prop_oneof![
        4 => (0x20..0x7f_u8).prop_map(|byte| format!("%{byte:02x}")),
        2 => (0x20..0x7f_u8).prop_map(|byte| format!("%{byte:02X}")),
        1 => (1..0x20_u8).prop_map(|byte| format!("%{byte:02x}")),
        1 => any_of(&["%C3%A9", "%e2%82%ac", "%25", "%20"]),
        1 => any_of(&["%00", "%", "%0", "%g0", "%0g", "%c3", "%ff", "%é", "%+1", "% 1"]),
    ]
    .boxed()
}

fn any_pieces(most: usize) -> BoxedStrategy<String> {
    proptest::collection::vec(piece(), 0..most).prop_map(|pieces| pieces.concat()).boxed()
}

/// Mostly right pairs, and now and then something between them.
fn pairs_string() -> BoxedStrategy<String> {
    let quoted = proptest::collection::vec(
        prop_oneof![4 => text(), 2 => space(), 1 => any_of(&["\\'", "\\\\", "\\x", "="]), 1 => unicode()],
        0..4,
    );
    let quoted = quoted.prop_map(|parts| format!("'{}'", parts.concat()));
    let value = prop_oneof![4 => text(), 3 => quoted, 1 => any_pieces(4), 1 => unicode()];
    let pair = (name(), space(), space(), value)
        .prop_map(|(name, before, after, value)| format!("{name}{before}={after}{value}"));
    let between = prop_oneof![8 => Just(" ".to_owned()), 4 => space(), 1 => piece()];
    let row = proptest::collection::vec((pair, between), 0..5)
        .prop_map(|parts| parts.into_iter().map(|(pair, between)| pair + &between).collect::<String>());
    prop_oneof![5 => (space(), row).prop_map(|(space, row)| space + &row), 1 => any_pieces(12)].boxed()
}

/// Mostly right URIs, and now and then something in them.
fn uri_string() -> BoxedStrategy<String> {
    fn word() -> BoxedStrategy<String> {
        let part = prop_oneof![
            6 => any_of(&["", "a", "b", "1", "true", "é", "+", "'", "\\"]),
            3 => escape(),
            1 => any_of(&[" ", "  ", "\t", "\u{a0}"]),
            1 => piece(),
        ];
        proptest::collection::vec(part, 0..3).prop_map(|parts| parts.concat()).boxed()
    }
    fn maybe(sign: &'static str, word: BoxedStrategy<String>) -> BoxedStrategy<String> {
        prop_oneof![Just(String::new()), word.prop_map(move |word| format!("{sign}{word}"))].boxed()
    }
    let prefix = prop_oneof![
        12 => any_of(&["postgres://", "postgresql://"]),
        1 => any_of(&["postgres:/", "Postgres://", " postgres://", "postgresql:", "pg://"]),
    ];
    let user = prop_oneof![
        Just(String::new()),
        (word(), maybe(":", word())).prop_map(|(user, password)| format!("{user}{password}@")),
    ];
    let host = prop_oneof![4 => word(), 1 => any_of(&["[::1]", "[::1]", "[]", "[", "[a]b"])];
    let host = (host, maybe(":", word())).prop_map(|(host, port)| host + &port);
    let hosts = proptest::collection::vec(host, 1..4).prop_map(|hosts| hosts.join(","));
    let parameter = prop_oneof![
        10 => (name(), word()).prop_map(|(name, value)| format!("{name}={value}")),
        1 => any_of(&["ssl=true", "%73sl=true", "ssl=%74rue", "ssl=true=", "host", "", "="]),
    ];
    let parameters = proptest::collection::vec(parameter, 0..4).prop_map(|all| all.join("&"));
    (prefix, user, hosts, maybe("/", word()), maybe("?", parameters.boxed()))
        .prop_map(|(prefix, user, hosts, name, parameters)| prefix + &user + &hosts + &name + &parameters)
        .boxed()
}

/// How many strings of a form are compared, unless `PROPTEST_CASES` says more.
const RANDOM_STRINGS: u32 = 20_000;

/// The same strings each time, unless `PROPTEST_RNG_SEED` says which: what a test finds must not depend on the dice.
fn assert_the_same_of_all(strings: &BoxedStrategy<String>) {
    let config = Config::default();
    let config = Config {
        cases: config.cases.max(RANDOM_STRINGS),
        failure_persistence: None,
        rng_seed: match config.rng_seed {
            RngSeed::Random => RngSeed::Fixed(17),
            seed @ RngSeed::Fixed(_) => seed,
        },
        ..config
    };
    let cases = config.cases;
    let parser = RefCell::new(Libpq::find().parser());
    let accepted = Cell::new(0);
    let result = TestRunner::new(config).run(strings, |string| {
        if is_not_utf8(&string) {
            return Ok(());
        }
        let parser = &mut *parser.borrow_mut();
        accepted.set(accepted.get() + u32::from(parser.parse(&string).is_ok()));
        parse_difference(parser, &string).map_or(Ok(()), |difference| Err(TestCaseError::fail(difference)))
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    // Otherwise the strings are too good or too bad to tell much.
    let accepted = accepted.get();
    eprintln!("{accepted} of {cases} accepted");
    assert!((cases / 4..cases * 3 / 4).contains(&accepted), "libpq accepts {accepted} of {cases} strings");
}

mod powa5 {
    use super::*;

    #[test]
    fn every_option_of_libpq_is_known_with_its_variable_and_default() {
        // libpq fills these in only when it connects.
        let late = ["sslcertmode"];
        let mut theirs = Libpq::find().keywords();
        theirs.sort_by(|a, b| a.name.cmp(&b.name));
        let ours: Vec<LibpqKeyword> = keywords_of_17()
            .map(|keyword| LibpqKeyword {
                name: keyword.name.to_owned(),
                variable: keyword.variable.map(str::to_owned),
                default: keyword.default.filter(|_| !late.contains(&keyword.name)).map(str::to_owned),
            })
            .collect();
        assert_eq!(ours, theirs);
    }

    #[test]
    fn strings_mean_what_libpq_says() {
        let mut parser = Libpq::find().parser();
        let strings: BTreeSet<&str> = PAIRS.iter().chain(URIS).copied().collect();
        assert_eq!(strings.len(), PAIRS.len() + URIS.len(), "a string stands there twice");
        assert!(strings.len() >= 400, "{} strings", strings.len());
        let differences: Vec<String> =
            strings.iter().filter_map(|string| parse_difference(&mut parser, string)).collect();
        assert_no_differences(strings.len(), &differences);
    }

    #[test]
    fn options_come_from_string_service_environment_and_defaults_in_libpqs_order() {
        assert_no_case_differs(&precedence_cases(), 400);
    }

    #[test]
    fn variables_and_defaults_mean_what_libpq_says() {
        assert_no_case_differs(&environment_cases(), 60);
    }

    #[test]
    fn service_files_mean_what_libpq_says() {
        assert_no_case_differs(&service_cases(), 90);
    }

    #[test]
    fn password_files_mean_what_libpq_says() {
        assert_no_case_differs(&password_cases(), 100);
    }

    #[test]
    fn values_are_as_good_as_libpq_finds_them() {
        let mut cases = Vec::new();
        for (name, values) in VALUES {
            for value in *values {
                cases.push(case(string_of(&rest_of(name)) + " " + &assignment(name, value)));
            }
        }
        cases.extend(COMBINATIONS.iter().map(|string| case(*string)));
        assert_no_case_differs(&cases, 350);
    }

    #[test]
    fn what_differs_on_purpose_differs() {
        let libpq = Libpq::find();
        let changed = |Difference { case, kind, reason }: &Difference| {
            let found = kind_of_difference(&libpq, &case());
            (found != Some(*kind)).then(|| format!("{:?}: {found:?}, not {kind:?}: {reason}", case()))
        };
        let changed: Vec<String> = DIFFERENCES.iter().filter_map(changed).collect();
        assert_no_differences(DIFFERENCES.len(), &changed);
    }

    #[test]
    fn random_pairs_mean_what_libpq_says() {
        assert_the_same_of_all(&pairs_string());
    }

    #[test]
    fn random_uris_mean_what_libpq_says() {
        assert_the_same_of_all(&uri_string());
    }

    fn assert_no_case_differs(cases: &[Case], least: usize) {
        assert!(cases.len() >= least, "{} cases", cases.len());
        let libpq = Libpq::find();
        let differences: Vec<String> = cases.iter().filter_map(|case| difference(&libpq, case)).collect();
        assert_no_differences(cases.len(), &differences);
    }
}
