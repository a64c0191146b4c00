//! The commands that speak to a collector at work: they reach it by way of its repository, over the control channel, but
//! for [`health`]. And those that change which servers it collects ([`servers`]), which tell it so in the same way.

mod channel;
pub mod health;
pub mod servers;
mod status;
mod table;

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::time::Duration;

use tokio::time::sleep;

use self::channel::Channel;
use crate::config::Configuration;
use crate::postgres::extension::PowaVersion;
use crate::postgres::session::SessionError;
use crate::postgres::text::causes;
use crate::report::Detail;
use crate::server::{Name, ServerId};

/// How the sessions of commands are named.
const SESSION: &str = "PoWA collector - command";

/// How often `status --watch` and `snapshot --wait` ask.
const INTERVAL: Duration = Duration::from_secs(1);

/// What to say of a server that is registered and not collected.
const NO_WORKER: &str = "it is not collected: it is switched off (frequency -1), or was registered since the collector has read powa_servers \
     (powa-collector reload)";

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("the repository: {}", causes(.0))]
    Connection(#[from] tokio_postgres::Error),
    #[error("the repository does not answer within {} s", .0.as_secs())]
    Deadline(Duration),
    #[error("the database {0} has no extension powa: CREATE EXTENSION powa CASCADE")]
    NoPowa(String),
    #[error("PoWA {0} cannot collect from other servers: version 4.0 or later is needed")]
    Unsupported(PowaVersion),
    #[error("no collector is connected to {0}: start it, or see its log")]
    NoCollector(String),
    #[error("the connection to the repository was closed")]
    Lost,
    #[error("the collector does not answer within {} s: see its log", .0.as_secs())]
    NoAnswer(Duration),
    #[error("the collector refuses: {0}")]
    Refused(String),
    #[error("the collector that answers does not know {0}: it is an older one than this program")]
    Unknown(String),
    #[error("the collector's answer cannot be read: {0}")]
    Malformed(String),
    #[error("no server is called {0:?}: give an id, an alias or host:port, as powa_servers has them")]
    NoSuchServer(String),
    #[error("several servers are called {name:?}: give one of their ids, {}", ids.join(", "))]
    Ambiguous { name: String, ids: Vec<String> },
    #[error("the name {0:?} cannot be sent: words of a message end at spaces")]
    Space(String),
    #[error("write the output: {0}")]
    Output(#[from] io::Error),
}

impl ClientError {
    /// Whether it is that nobody is there to ask.
    pub fn is_nobody_there(&self) -> bool {
        matches!(self, Self::NoCollector(_) | Self::NoAnswer(_))
    }
}

/// How servers' status is shown.
#[derive(Debug, Clone, Copy)]
pub struct Display {
    pub json: bool,
    /// Again and again.
    pub watch: bool,
}

/// Shows how the collection of servers goes. True when all is well with them.
///
/// # Errors
/// When the collector cannot be asked.
pub async fn status(
    configuration: &Configuration,
    servers: &[String],
    display: Display,
) -> Result<bool, ClientError> {
    let mut channel = Channel::open(configuration).await?;
    let ids = channel.servers(servers).await?;
    let mut details = channel.details(&ids).await?;
    let is_terminal = io::stdout().is_terminal();
    loop {
        let text = show(&details, display.json)?;
        if !display.watch {
            print(&text)?;
            let absent = without_worker(&ids, &details);
            absent.iter().for_each(|id| eprintln!("powa-collector: {id}: {NO_WORKER}"));
            return Ok(absent.is_empty() && details.iter().all(Detail::is_well));
        }
        print(&if is_terminal && !display.json { status::in_place(&text) } else { text })?;
        sleep(INTERVAL).await;
        details = match channel.details(&ids).await {
            Ok(details) => details,
            Err(error) => look_again(configuration, &mut channel, &ids, error).await?,
        };
    }
}

fn show(details: &[Detail], json: bool) -> Result<String, ClientError> {
    if json {
        let text =
            serde_json::to_string(details).map_err(|error| ClientError::Malformed(error.to_string()))?;
        return Ok(text + "\n");
    }
    Ok(status::table(
        details,
        jiff::Timestamp::now(),
        terminal_size::terminal_size().map(|(width, _)| width.0),
    ))
}

/// Waits for a collector that has gone away, saying so.
async fn look_again(
    configuration: &Configuration,
    channel: &mut Channel,
    ids: &[ServerId],
    mut error: ClientError,
) -> Result<Vec<Detail>, ClientError> {
    let mut told = String::new();
    loop {
        if matches!(error, ClientError::Refused(_) | ClientError::Unknown(_)) {
            return Err(error);
        }
        let reason = error.to_string();
        if reason != told {
            eprintln!("powa-collector: {reason}; looking again");
            told = reason;
        }
        sleep(INTERVAL).await;
        error = match Channel::open(configuration).await {
            Ok(opened) => {
                *channel = opened;
                match channel.details(ids).await {
                    Ok(details) => return Ok(details),
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
    }
}

/// Lets the collector read its configuration and the servers again.
///
/// # Errors
/// When it cannot, or cannot be asked.
pub async fn reload(configuration: &Configuration) -> Result<bool, ClientError> {
    let mut channel = Channel::open(configuration).await?;
    channel.ask("RELOAD", "").await?;
    print("reloaded\n")?;
    Ok(true)
}

/// Asks for a snapshot of each of these servers; `wait`: until they are stored. True when all were, or will be.
///
/// # Errors
/// When the collector cannot be asked.
pub async fn snapshot(
    configuration: &Configuration,
    servers: &[String],
    wait: bool,
) -> Result<bool, ClientError> {
    let mut channel = Channel::open(configuration).await?;
    let ids = channel.servers(servers).await?;
    let before = if wait { channel.details(&ids).await? } else { Vec::new() };
    let mut waiting = Vec::new();
    let mut is_good = true;
    for id in ids {
        match channel.ask("FORCE_SNAPSHOT", &id.to_string()).await {
            Ok(_) if wait => waiting.push(id),
            Ok(told) => print(&format!("{id}: {told}\n"))?,
            Err(ClientError::Refused(reason)) => {
                eprintln!("powa-collector: {id}: {reason}");
                is_good = false;
            }
            Err(error) => return Err(error),
        }
    }
    while !waiting.is_empty() {
        sleep(INTERVAL).await;
        let details = channel.details(&waiting).await?;
        for id in without_worker(&waiting, &details) {
            eprintln!("powa-collector: {id}: {NO_WORKER}");
            is_good = false;
            waiting.retain(|waiting| *waiting != id);
        }
        for now in details {
            let Some(then) = before.iter().find(|then| then.srvid == now.srvid) else { continue };
            let Some(outcome) = outcome(then, &now) else { continue };
            is_good &= outcome.is_ok();
            match outcome {
                Ok(told) => print(&format!("{}: {told}\n", now.srvid))?,
                Err(reason) => eprintln!("powa-collector: {}: {reason}", now.srvid),
            }
            waiting.retain(|id| id.0 != now.srvid);
        }
    }
    Ok(is_good)
}

/// Those of `ids` that nobody collects.
fn without_worker(ids: &[ServerId], details: &[Detail]) -> Vec<ServerId> {
    ids.iter().copied().filter(|id| details.iter().all(|detail| detail.srvid != id.0)).collect()
}

/// What has become of a snapshot that was asked for after `then`. None: nothing yet.
fn outcome(then: &Detail, now: &Detail) -> Option<Result<String, String>> {
    let (then, report) = (&then.report, &now.report);
    if report.snapshots > then.snapshots {
        let last = report.last_snapshot.as_ref()?;
        let mut told = format!("{} rows, {} bytes, {:.3} s", last.rows, last.bytes, last.seconds());
        if last.errors > 0 {
            let _ = write!(told, ", errors: {}", last.errors);
        }
        return Some(Ok(told));
    }
    let error = report.last_error.as_ref().filter(|_| report.failures > then.failures)?;
    Some(Err(error.message.clone()))
}

/// Has catalogs read with the next snapshot of a server.
///
/// # Errors
/// When the collector does not, or cannot be asked.
pub async fn refresh_catalogs(
    configuration: &Configuration,
    server: &str,
    databases: &[String],
) -> Result<bool, ClientError> {
    if let Some(name) = databases.iter().find(|name| name.is_empty() || name.contains(' ')) {
        return Err(ClientError::Space(name.clone()));
    }
    let mut channel = Channel::open(configuration).await?;
    for id in channel.servers(&[server.to_owned()]).await? {
        let mut arguments = format!("{id} {}", databases.len());
        for database in databases {
            let _ = write!(arguments, " {database}");
        }
        let told = channel.ask("REFRESH_DB_CAT", &arguments).await?;
        print(&format!("{id}: {told}\n"))?;
    }
    Ok(true)
}

/// The server that somebody means by an id, an alias or `host:port`.
fn find(name: &str, names: &[Name]) -> Result<ServerId, ClientError> {
    if let Some(known) = names.iter().find(|known| name.parse() == Ok(known.id.0)) {
        return Ok(known.id);
    }
    let with = |is_meant: &dyn Fn(&Name) -> bool| -> Vec<ServerId> {
        names.iter().filter(|known| is_meant(known)).map(|known| known.id).collect()
    };
    let mut found = with(&|known| known.alias.as_deref() == Some(name));
    if found.is_empty() {
        // An IPv6 address is registered without the brackets that it is written in.
        let bare = name.strip_prefix('[').map(|rest| rest.replacen(']', "", 1));
        found = with(&|known| known.address == name || Some(&known.address) == bare.as_ref());
    }
    match found[..] {
        [] => Err(ClientError::NoSuchServer(name.to_owned())),
        [id] => Ok(id),
        _ => {
            let ids = found.iter().map(ServerId::to_string).collect();
            Err(ClientError::Ambiguous { name: name.to_owned(), ids })
        }
    }
}

/// Writes to standard output. That its reader has gone is no failure: it has seen enough.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        written => written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_meant_by_its_id_its_alias_or_its_address() {
        let name = |id, alias: Option<&str>, address: &str| Name {
            id: ServerId(id),
            alias: alias.map(str::to_owned),
            address: address.to_owned(),
        };
        let names = [
            name(1, Some("main"), "db1:5432"),
            name(2, Some("1"), "db2:5432"),
            name(3, Some("twin"), "[::1]:5432"),
            name(4, Some("twin"), "db4:5432"),
            name(5, None, "twin"),
            name(6, None, "::2:5432"),
        ];
        let meant = [("1", 1), ("main", 1), ("db2:5432", 2), ("[::1]:5432", 3), ("4", 4), ("[::2]:5432", 6)];
        for (meant, id) in meant {
            assert_eq!(find(meant, &names).unwrap(), ServerId(id), "{meant}");
        }
        for meant in ["", "0", "7", "db2", "Main", "db1:5433", "01x"] {
            assert!(matches!(find(meant, &names), Err(ClientError::NoSuchServer(_))), "{meant}");
        }
        let error = find("twin", &names).unwrap_err().to_string();
        assert!(error.ends_with("give one of their ids, 3, 4"), "{error}");
    }
}
