//! Connection strings, service files and password files of any bytes: nothing panics, no error repeats the
//! password, and what was understood is understood again when it is written down.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use powa_collector::postgres::conninfo::environment::Environment;
use powa_collector::postgres::conninfo::options::Options;
use powa_collector::postgres::conninfo::{ConnInfo, Given, parse, passfile, service};
use powa_collector::postgres::secret::Secret;

const PASSWORD: &str = "hunter2";

fuzz_target!(|text: &str| {
    if let Ok(options) = parse::parse(text) {
        let written: Vec<String> = options.names().map(|name| pair(&options, name)).collect();
        let again = parse::parse(&written.join(" ")).expect("what is written down can be read");
        assert_eq!(options, again);
        let quiet = Environment::of(&[("HOME", "/nonexistent"), ("PGSYSCONFDIR", "/nonexistent")]);
        if let Ok(conninfo) = ConnInfo::new(&Given { options, password_command: None }, &quiet) {
            assert!(!conninfo.hosts.is_empty() && conninfo.hosts.iter().all(|host| host.port > 0));
        }
    }

    // A password that stands where a password belongs is repeated by no error, whatever follows.
    let with_password = format!("password={PASSWORD} {text}");
    let given = Given::by_string(&Secret::new(&with_password));
    if !text.contains(PASSWORD) {
        assert!(!format!("{given:?}").contains(PASSWORD));
        if let Err(error) = &given {
            assert!(!error.to_string().contains(PASSWORD));
        }
    }

    let _ = service::parse(text, "name", Path::new("file"));
    let _ = passfile::find(text, ["host", "5432", "database", "user"]);
});

fn pair(options: &Options, name: &str) -> String {
    let value = options.get(name).expect("it is set");
    format!("{name}='{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}
