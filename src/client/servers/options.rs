//! What the command line says of servers. What is here cannot be wrong in form.

use std::net::Ipv6Addr;

use clap::{Args, Subcommand, value_parser};

const DEFAULT_PORT: u16 = 5432;

/// The shortest period that PoWA allows, in seconds.
const SHORTEST: i32 = 5;

#[derive(Debug, Clone, Subcommand)]
pub enum Action {
    /// Show the servers that are registered, those that are switched off too
    ///
    /// Passwords are not read; the table says who has one stored.
    List {
        /// Print JSON, an array of servers
        #[arg(long)]
        json: bool,
    },
    /// Register a server, once the connection to it has been tried
    ///
    /// It is tried as the collector would connect to it, with what servers.defaults and servers.by_name say, and
    /// looked at as `check` does. When something is missing it is not registered, unless --force is given, and
    /// the SQL that mends it is printed to standard output, for psql; all else goes to standard error. So
    /// `powa-collector servers add db1 --no-password | psql -h db1 -U postgres -d postgres` sets the server up, and
    /// the same once more registers it.
    Add(Add),
    /// Change a server, once the connection to it has been tried
    ///
    /// Only what is given changes. Where that concerns the connection, or what is read, the server is tried
    /// first, as by `servers add`.
    Set(Box<Set>),
    /// Switch a server off, or delete it with its history
    ///
    /// Without --purge its history stays, and `servers set SERVER --frequency SECONDS` switches it on again.
    Remove(Remove),
}

#[derive(Debug, Clone, Args)]
pub struct Add {
    /// A host name, an address (IPv6 in brackets) or the directory of a socket, and a port. Default: 5432
    #[arg(value_name = "HOST[:PORT]", value_parser = place)]
    pub place: Place,
    /// Another name for it, as `status` and the collector's log show it
    #[arg(long, value_parser = filled)]
    pub alias: Option<String>,
    /// The role to connect as
    #[arg(long, value_name = "ROLE", default_value = "powa", value_parser = filled)]
    pub username: String,
    /// The database with PoWA
    #[arg(long, value_name = "NAME", default_value = "powa", value_parser = filled)]
    pub dbname: String,
    /// From one snapshot to the next; -1: switched off
    #[arg(
        long, value_name = "SECONDS", default_value_t = 300, value_parser = frequency, allow_negative_numbers = true
    )]
    pub frequency: i32,
    /// How long its history is kept, as in '7 days'. Default: PoWA's own, a day
    #[arg(long, value_name = "INTERVAL", value_parser = filled)]
    pub retention: Option<String>,
    /// An extension to read besides pg_stat_statements; may be given several times
    #[arg(long = "extension", value_name = "NAME", value_parser = filled)]
    pub extensions: Vec<String>,
    /// Take the password from the first line of standard input. Without this and --no-password it is asked for
    /// on the terminal; none is stored when it is empty
    #[arg(long, conflicts_with = "no_password")]
    pub password_stdin: bool,
    /// Store no password: none is needed, or it comes from password_command, servers.defaults, servers.by_name or
    /// the password file
    #[arg(long)]
    pub no_password: bool,
    /// Register it although something is missing, or it cannot be reached
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Clone, Args)]
pub struct Set {
    /// An id, an alias or host:port of powa_servers
    pub server: String,
    /// Another name for it
    #[arg(long, value_parser = filled, conflicts_with = "no_alias")]
    pub alias: Option<String>,
    /// Take the alias away
    #[arg(long)]
    pub no_alias: bool,
    /// A host name, an address or the directory of a socket
    #[arg(long, value_name = "HOST", value_parser = hostname)]
    pub hostname: Option<String>,
    #[arg(long, value_parser = value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// The role to connect as
    #[arg(long, value_name = "ROLE", value_parser = filled)]
    pub username: Option<String>,
    /// The database with PoWA
    #[arg(long, value_name = "NAME", value_parser = filled)]
    pub dbname: Option<String>,
    /// From one snapshot to the next; -1: switched off
    #[arg(long, value_name = "SECONDS", value_parser = frequency, allow_negative_numbers = true)]
    pub frequency: Option<i32>,
    /// How long its history is kept, as in '7 days'
    #[arg(long, value_name = "INTERVAL", value_parser = filled)]
    pub retention: Option<String>,
    /// Ask for a password on the terminal
    #[arg(long, conflicts_with_all = ["password_stdin", "no_password"])]
    pub password: bool,
    /// Take the password from the first line of standard input
    #[arg(long, conflicts_with = "no_password")]
    pub password_stdin: bool,
    /// Forget the password that is stored
    #[arg(long)]
    pub no_password: bool,
    /// An extension to read from now on; may be given several times
    #[arg(long = "activate-extension", value_name = "NAME", value_parser = filled)]
    pub extensions: Vec<String>,
    /// Change it although something is missing, or it cannot be reached
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Clone, Args)]
pub struct Remove {
    /// An id, an alias or host:port of powa_servers
    pub server: String,
    /// Delete it and its whole history
    #[arg(long)]
    pub purge: bool,
    /// Do not ask whether that is meant
    #[arg(long)]
    pub yes: bool,
}

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// As `powa_servers` has it: an IPv6 address without brackets.
    pub host: String,
    pub port: u16,
}

fn place(text: &str) -> Result<Place, String> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or("the bracket is not closed")?;
            if !is_ipv6(host) {
                return Err("brackets are for IPv6 addresses".to_owned());
            }
            match rest.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if rest.is_empty() => (host, None),
                None => return Err("only a colon and a port may follow the bracket".to_owned()),
            }
        }
        None => match text.split_once(':') {
            Some((_, rest)) if rest.contains(':') => {
                return Err("an IPv6 address goes into brackets, as in [::1]:5432".to_owned());
            }
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = match port {
        None => DEFAULT_PORT,
        Some(port) => {
            let port = port.parse::<u16>().ok().filter(|port| *port != 0);
            port.ok_or("the port is a number between 1 and 65535")?
        }
    };
    Ok(Place { host: filled(host)?, port })
}

fn hostname(text: &str) -> Result<String, String> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if bare.contains(':') && !bare.starts_with('/') && !is_ipv6(bare) {
        return Err("neither a name nor an address; a port is given by --port".to_owned());
    }
    filled(bare)
}

fn is_ipv6(text: &str) -> bool {
    let (address, _scope) = text.split_once('%').unwrap_or((text, ""));
    address.parse::<Ipv6Addr>().is_ok()
}

fn filled(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("it is empty".to_owned()) } else { Ok(text.to_owned()) }
}

fn frequency(text: &str) -> Result<i32, String> {
    let wrong = || format!("a number of seconds, at least {SHORTEST}, or -1 to switch it off");
    let frequency = text.parse::<i32>().map_err(|_| wrong())?;
    if frequency == -1 || frequency >= SHORTEST { Ok(frequency) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_host_and_perhaps_a_port() {
        for (text, host, port) in [
            ("db1", "db1", 5432),
            ("db1.example.org:5433", "db1.example.org", 5433),
            ("10.0.0.1:65535", "10.0.0.1", 65535),
            ("[::1]", "::1", 5432),
            ("[fe80::1%eth0]:1", "fe80::1%eth0", 1),
            ("/run/postgresql", "/run/postgresql", 5432),
            ("/run/postgresql:5433", "/run/postgresql", 5433),
            ("a'b; drop table", "a'b; drop table", 5432),
        ] {
            assert_eq!(place(text), Ok(Place { host: host.to_owned(), port }), "{text}");
        }
        for text in [
            "",
            ":5432",
            "db1:",
            "db1:0",
            "db1:65536",
            "db1:-1",
            "db1:x",
            "::1",
            "[::1",
            "[::1]5432",
            "[db1]",
            "[]",
        ] {
            assert!(place(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_host_name_has_no_port() {
        for (text, host) in [("db1", "db1"), ("[::1]", "::1"), ("::1", "::1"), ("/run/a:b", "/run/a:b")] {
            assert_eq!(hostname(text).as_deref(), Ok(host));
        }
        for text in ["", "[]", "db1:5432", "[db1:5432]"] {
            assert!(hostname(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_frequency_is_as_powa_allows_it() {
        for (text, seconds) in [("5", 5), ("-1", -1), ("2147483647", i32::MAX)] {
            assert_eq!(frequency(text), Ok(seconds));
        }
        for text in ["4", "0", "-2", "", "1m", "5.5", "2147483648"] {
            assert!(frequency(text).unwrap_err().starts_with("a number of seconds"), "{text}");
        }
    }
}
