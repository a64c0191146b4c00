//! `servers.defaults` and `servers.by_name`: how to connect to servers, beyond what `powa_servers` says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::postgres::conninfo::environment::Environment;
use crate::postgres::conninfo::{ConnInfo, ConnInfoError, Given, options};
use crate::postgres::password_command::PasswordCommand;
use crate::server::Server;

/// What only `powa_servers` says.
const OF_THE_ROW: [&str; 4] = ["host", "port", "dbname", "user"];

/// The key that is no option of libpq's.
const PASSWORD_COMMAND: &str = "password_command";

/// The keys as they stand in the file.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct RawServers {
    pub defaults: Map<String, Value>,
    pub by_name: BTreeMap<String, Map<String, Value>>,
}

/// What is wrong with a key below `servers`.
#[derive(Debug)]
pub struct Wrong {
    pub key: String,
    pub reason: String,
}

/// How to connect to servers, beyond what `powa_servers` says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ServerOptions {
    defaults: Given,
    /// By alias or `host:port`.
    by_name: BTreeMap<String, Given>,
}

impl ServerOptions {
    /// `deadline` is for each run of a `password_command`.
    pub fn read(raw: &RawServers, deadline: Duration) -> Result<Self, Wrong> {
        let defaults = given("servers.defaults", &raw.defaults, deadline)?;
        let named = |(name, options): (&String, &Map<String, Value>)| {
            Ok((name.clone(), given(&format!("servers.by_name.{name:?}"), options, deadline)?))
        };
        Ok(Self { defaults, by_name: raw.by_name.iter().map(named).collect::<Result<_, _>>()? })
    }

    /// All that is said of how to connect to a server: by its row, by its names, and by the defaults, in this
    /// order.
    ///
    /// # Errors
    /// When the row cannot be right.
    pub fn given(&self, server: &Server) -> Result<Given, Arc<ConnInfoError>> {
        let row = server.given().map_err(Arc::new)?;
        let named = names(server).filter_map(|name| self.by_name.get(&name));
        Ok(named.fold(row, |given, named| given.or(named)).or(&self.defaults).on_its_own())
    }

    /// The names that no server has.
    pub fn unused<'a>(&'a self, servers: &[Server]) -> Vec<&'a str> {
        let used: BTreeSet<String> = servers.iter().flat_map(names).collect();
        self.by_name.keys().filter(|name| !used.contains(*name)).map(String::as_str).collect()
    }

    /// What `new` has otherwise; of what is a secret, only that it differs.
    pub fn differences(&self, new: &Self) -> Vec<String> {
        let mut told = Vec::new();
        let mut compare = |key: String, old: Option<&Given>, new: Option<&Given>| {
            let nothing = Given::default();
            let (old, new) = (old.unwrap_or(&nothing), new.unwrap_or(&nothing));
            let mut names: Vec<&str> = old.options.differences(&new.options).collect();
            if old.password_command != new.password_command {
                names.push(PASSWORD_COMMAND);
            }
            if !names.is_empty() {
                told.push(format!("{key}: {} changes", names.join(", ")));
            }
        };
        compare("servers.defaults".to_owned(), Some(&self.defaults), Some(&new.defaults));
        let names: BTreeSet<&String> = self.by_name.keys().chain(new.by_name.keys()).collect();
        for name in names {
            compare(format!("servers.by_name.{name:?}"), self.by_name.get(name), new.by_name.get(name));
        }
        told
    }
}

/// What a server may be called by, the more particular first.
fn names(server: &Server) -> impl Iterator<Item = String> {
    server.alias.clone().into_iter().chain([format!("{}:{}", server.hostname, server.port)])
}

fn given(key: &str, raw: &Map<String, Value>, deadline: Duration) -> Result<Given, Wrong> {
    let mut given = Given::default();
    for (name, value) in raw {
        let wrong = |reason: String| Wrong { key: format!("{key}.{name}"), reason };
        if OF_THE_ROW.contains(&name.as_str()) {
            return Err(wrong(format!(
                "comes from powa_servers; leave it out, or change the server's row: {name}"
            )));
        }
        if name == PASSWORD_COMMAND {
            given.password_command = password_command(value, deadline).map_err(wrong)?;
            continue;
        }
        if options::keyword(name).is_none() {
            let nearest = options::nearest(name, &[PASSWORD_COMMAND]);
            return Err(wrong(format!("no option of libpq; the nearest is {nearest}")));
        }
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Number(number) if !number.is_f64() => number.to_string(),
            Value::Bool(is_on) => if *is_on { "1" } else { "0" }.to_owned(),
            Value::Null => continue,
            _ => return Err(wrong("must be a string, an integer or a boolean".to_owned())),
        };
        given.options.set(name, &text).map_err(|error| wrong(error.to_string()))?;
    }
    if given.password_command.is_some() && given.options.filled("password").is_some() {
        let reason = "there is a password besides; leave one of the two out".to_owned();
        return Err(Wrong { key: format!("{key}.{PASSWORD_COMMAND}"), reason });
    }
    // Values are found wrong now; files, and services, which are files, only when a server is connected to.
    let mut probe = given.clone();
    probe.options.remove("service");
    for (name, value) in [("host", "localhost"), ("port", "5432"), ("user", "user"), ("dbname", "dbname")] {
        let set = probe.options.set(name, value);
        set.map_err(|error| Wrong { key: key.to_owned(), reason: error.to_string() })?;
    }
    ConnInfo::new(&probe, &Environment::of(&[])).map_err(|error| match error {
        ConnInfoError::Value { option, reason } => Wrong { key: format!("{key}.{option}"), reason },
        error => Wrong { key: key.to_owned(), reason: error.to_string() },
    })?;
    Ok(given)
}

/// A program and its arguments, or a line for the shell.
pub fn password_command(value: &Value, deadline: Duration) -> Result<Option<Arc<PasswordCommand>>, String> {
    let words: Option<Vec<String>> = match value {
        Value::Null => return Ok(None),
        Value::String(line) if !line.trim().is_empty() => {
            Some(vec!["/bin/sh".to_owned(), "-c".to_owned(), line.clone()])
        }
        Value::Array(words) => words.iter().map(|word| word.as_str().map(str::to_owned)).collect(),
        _ => None,
    };
    let command = words.and_then(|words| PasswordCommand::new(&words, deadline));
    let expected = "must be a list of strings, the program first, or a line for the shell";
    command.map(|command| Some(Arc::new(command))).ok_or_else(|| expected.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::postgres::secret::Secret;
    use crate::server::ServerId;

    const DEADLINE: Duration = Duration::from_secs(10);

    fn read(servers: Value) -> Result<ServerOptions, Wrong> {
        ServerOptions::read(&serde_json::from_value(servers).unwrap(), DEADLINE)
    }

    fn server(password: Option<&str>) -> Server {
        Server {
            id: ServerId(1),
            hostname: "DB1.example.org".into(),
            port: 5433,
            username: "powa".into(),
            password: password.map(Secret::new),
            dbname: "powa".into(),
            frequency: Duration::from_secs(300),
            alias: Some("main".into()),
            is_registered: true,
        }
    }

    #[test]
    fn the_row_stands_over_the_names_and_these_over_the_defaults() {
        let options = read(json!({
            "defaults": {"sslmode": "require", "password": "d", "connect_timeout": 5, "keepalives": false},
            "by_name": {
                "main": {"sslmode": "verify-full"},
                "DB1.example.org:5433": {"sslmode": "verify-ca", "sslsni": true, "password": "n"},
                "other": {"sslcert": "/c"},
            },
        }))
        .unwrap();
        let given = options.given(&server(Some("r"))).unwrap().options;
        let get = |name| given.get(name).unwrap();
        assert_eq!((get("sslmode"), get("password"), get("host")), ("verify-full", "r", "DB1.example.org"));
        assert_eq!((get("connect_timeout"), get("keepalives"), get("sslsni")), ("5", "0", "1"));
        assert_eq!(given.get("sslcert"), None);
        assert_eq!(options.given(&server(None)).unwrap().options.get("password"), Some("n"));
        assert_eq!(options.unused(&[server(None)]), ["other"]);
    }

    #[test]
    fn a_command_and_a_password_are_two_ways_to_say_the_same() {
        let options = read(json!({
            "defaults": {"password": "d"},
            "by_name": {"main": {"password_command": ["vault", "read"]}},
        }))
        .unwrap();
        let given = options.given(&server(None)).unwrap();
        assert!(given.password_command.is_some() && given.options.get("password").is_none());
        // In powa_servers, the password counts.
        let given = options.given(&server(Some("r"))).unwrap();
        assert!(given.password_command.is_none() && given.options.get("password") == Some("r"));

        let options = read(json!({
            "defaults": {"password_command": "vault read"},
            "by_name": {"main": {"password": "n"}},
        }))
        .unwrap();
        let given = options.given(&server(None)).unwrap();
        assert!(given.password_command.is_none() && given.options.get("password") == Some("n"));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_key() {
        for (servers, key, reason) in [
            (json!({"defaults": {"sslmod": "x"}}), "servers.defaults.sslmod", "the nearest is sslmode"),
            (
                json!({"defaults": {"password_comand": "x"}}),
                "servers.defaults.password_comand",
                "password_command",
            ),
            (json!({"defaults": {"host": "x"}}), "servers.defaults.host", "comes from powa_servers"),
            (json!({"defaults": {"sslmode": "on"}}), "servers.defaults.sslmode", "none of disable, allow"),
            (json!({"by_name": {"a.b:1": {"port": 1}}}), r#"servers.by_name."a.b:1".port"#, "powa_servers"),
            (
                json!({"by_name": {"a": {"sslcert": []}}}),
                r#"servers.by_name."a".sslcert"#,
                "must be a string",
            ),
            (
                json!({"defaults": {"password_command": []}}),
                "servers.defaults.password_command",
                "list of strings",
            ),
            (
                json!({"defaults": {"password_command": " "}}),
                "servers.defaults.password_command",
                "list of strings",
            ),
            (
                json!({"defaults": {"password_command": "x", "password": "y"}}),
                "servers.defaults.password_command",
                "leave one of the two out",
            ),
        ] {
            let wrong = read(servers).unwrap_err();
            assert_eq!(wrong.key, key);
            assert!(wrong.reason.contains(reason), "{}", wrong.reason);
        }
    }

    #[test]
    fn a_change_is_told_by_its_options_and_never_by_their_values() {
        let old = read(json!({"defaults": {"sslpassword": "hunter2"}, "by_name": {"a": {"sslcert": "/c"}}}));
        let new = read(json!({
            "defaults": {"sslpassword": "hunter3", "password_command": "cat hunter4"},
            "by_name": {"b": {"sslcert": "/c"}},
        }));
        let (old, new) = (old.unwrap(), new.unwrap());
        let told = old.differences(&new).join("; ");
        assert_eq!(
            told,
            "servers.defaults: sslpassword, password_command changes; servers.by_name.\"a\": sslcert changes; \
             servers.by_name.\"b\": sslcert changes"
        );
        assert!(!format!("{old:?} {new:?}").contains("hunter"));
        assert!(old.differences(&old).is_empty());
    }
}
