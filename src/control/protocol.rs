//! What clients say on the control channel and what they are told. Pure.
//!
//! A message is `COMMAND CHANNEL [ARGUMENT …]`, its words separated by one space. An answer is
//! `COMMAND STATUS DATA`. powa-web takes the first answer whose status is `OK` and reads `WORKERS_STATUS`'
//! data as JSON.

use serde::{Deserialize, Serialize};

use crate::report::Detail;
use crate::server::ServerId;
use crate::snapshot::plan::Refresh;
use crate::worker::Forced;

/// The channel that collectors listen on.
pub const CHANNEL: &str = "powa_collector";

/// NOTIFY takes payloads below 8000 bytes.
const PAYLOAD_BYTES: usize = 7999;

/// A message, parsed.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    pub command: String,
    /// Where to answer. `None` when the sender wants none.
    pub channel: Option<String>,
    /// What to do, or what to answer at once because it cannot be understood.
    pub request: Result<Request, Answer>,
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    Reload,
    WorkersStatus(Of),
    /// Of these, or of all when there are none.
    WorkersDetail(Vec<ServerId>),
    ForceSnapshot(ServerId),
    RefreshCatalogs(ServerId, Refresh),
}

/// Whose status is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    All,
    One(ServerId),
    /// A number that cannot be a server's.
    Nobody,
}

/// How a request went, before it is put into words for the channel.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    Ok(String),
    Error(String),
    Unknown,
    /// The state of each server, in the order of their ids.
    Workers(Vec<(ServerId, String)>),
    /// How the collection of each server goes.
    Details(Vec<Detail>),
}

impl From<Forced> for Answer {
    /// The words, their spelling included, are those that clients know.
    fn from(forced: Forced) -> Self {
        match forced {
            Forced::Started => Self::Ok("Snapshot in progress".into()),
            Forced::Scheduled => Self::Ok("Snapshot wil begin shortly".into()),
            Forced::InProgress => Self::Error("A snapshot is already in progress".into()),
            Forced::AlreadyScheduled => Self::Error("A forced snapshot is already scheduled".into()),
            Forced::TooSoon => Self::Error("Last snapshot was less than 10s. ago".into()),
        }
    }
}

/// Reads a message. `None` for one without a single word.
pub fn parse(payload: &str) -> Option<Message> {
    // powa-web ends a message without arguments with a space.
    let payload = payload.strip_suffix(' ').unwrap_or(payload);
    let mut words = payload.split(' ');
    let command = words.next().filter(|word| !word.is_empty())?;
    let channel = words.next().filter(|channel| !channel.is_empty() && *channel != "-");
    let arguments: Vec<&str> = words.collect();
    let request = match command {
        "RELOAD" => Ok(Request::Reload),
        "WORKERS_STATUS" => Ok(Request::WorkersStatus(of(arguments.first()))),
        "WORKERS_DETAIL" => {
            let servers: Result<Vec<ServerId>, Answer> =
                arguments.iter().map(|word| server_id(word)).collect();
            servers.map(Request::WorkersDetail)
        }
        "FORCE_SNAPSHOT" => match arguments[..] {
            [server] => server_id(server).map(Request::ForceSnapshot),
            _ => Err(malformed(payload, "FORCE_SNAPSHOT CHANNEL SRVID")),
        },
        "REFRESH_DB_CAT" => match &arguments[..] {
            [server, count, names @ ..] => server_id(server)
                .and_then(|server| Ok(Request::RefreshCatalogs(server, databases(count, names)?))),
            _ => Err(malformed(payload, "REFRESH_DB_CAT CHANNEL SRVID COUNT [DBNAME ...]")),
        },
        _ => Err(Answer::Unknown),
    };
    Some(Message { command: command.to_owned(), channel: channel.map(str::to_owned), request })
}

fn of(argument: Option<&&str>) -> Of {
    match argument {
        Some(word) if !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit()) => {
            word.parse().map_or(Of::Nobody, |id| Of::One(ServerId(id)))
        }
        _ => Of::All,
    }
}

fn server_id(word: &str) -> Result<ServerId, Answer> {
    word.parse().map(ServerId).map_err(|_| Answer::Error(format!("invalid remote server id {word}")))
}

fn databases(count: &str, names: &[&str]) -> Result<Refresh, Answer> {
    let asked: usize =
        count.parse().map_err(|_| Answer::Error(format!("invalid number of databases {count}")))?;
    if asked != names.len() {
        return Err(Answer::Error(format!(
            "Caller asked for {asked} db, but found {}: {}",
            names.len(),
            names.join(", ")
        )));
    }
    if asked == 0 {
        return Ok(Refresh::All);
    }
    Ok(Refresh::Named(names.iter().map(|name| (*name).to_owned()).collect()))
}

fn malformed(payload: &str, expected: &str) -> Answer {
    Answer::Error(format!("malformed command \"{payload}\", expected {expected}"))
}

impl Answer {
    /// The answer to a caller who may not ask.
    pub fn permission_denied() -> Self {
        Self::Error("Permission denied".into())
    }

    /// The answer as payloads, each below the limit of NOTIFY. More than one only for many servers: each is then
    /// complete by itself.
    pub fn payloads(&self, command: &str) -> Vec<String> {
        let payload = match self {
            Self::Ok(data) => format!("{command} OK {data}"),
            Self::Error(reason) => format!("{command} ERROR {reason}"),
            Self::Unknown => {
                format!("{command} UNKNOWN Message \"{command}\" invalid, command ignored")
            }
            Self::Workers(workers) => return workers_payloads(command, workers),
            Self::Details(details) => return details_payloads(command, details),
        };
        if payload.len() <= PAYLOAD_BYTES {
            return vec![payload];
        }
        const TOO_LONG: &str = " KO {ANSWER TOO LONG}";
        let mut end = command.len().min(PAYLOAD_BYTES - TOO_LONG.len());
        while !command.is_char_boundary(end) {
            end -= 1;
        }
        vec![format!("{}{TOO_LONG}", &command[..end])]
    }
}

fn workers_payloads(command: &str, workers: &[(ServerId, String)]) -> Vec<String> {
    let begin = format!("{command} OK {{");
    let mut payloads = Vec::new();
    let mut payload = begin.clone();
    for (server, state) in workers {
        let state = serde_json::Value::from(state.as_str());
        let entry = format!("\"{server}\": {state}");
        let is_first = payload.len() == begin.len();
        if !is_first && payload.len() + ", ".len() + entry.len() + "}".len() > PAYLOAD_BYTES {
            payload.push('}');
            payloads.push(std::mem::replace(&mut payload, begin.clone()));
        } else if !is_first {
            payload.push_str(", ");
        }
        payload.push_str(&entry);
    }
    payload.push('}');
    payloads.push(payload);
    payloads
}

/// One message of an answer to `WORKERS_DETAIL`.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct DetailPart {
    /// Counted from 1.
    pub part: usize,
    pub parts: usize,
    pub servers: Vec<Detail>,
}

fn details_payloads(command: &str, details: &[Detail]) -> Vec<String> {
    const MOST_PARTS: usize = 999_999_999;
    // Texts are shortened until a server fits into a message.
    const LENGTHS: [usize; 4] = [usize::MAX, 300, 100, 10];
    let payload = |part, parts, servers: &[String]| {
        format!(r#"{command} OK {{"part":{part},"parts":{parts},"servers":[{}]}}"#, servers.join(","))
    };
    let room = PAYLOAD_BYTES.saturating_sub(payload(MOST_PARTS, MOST_PARTS, &[]).len());
    let mut parts: Vec<Vec<String>> = vec![Vec::new()];
    let mut left = room;
    for detail in details {
        let texts = LENGTHS.iter().filter_map(|most| serde_json::to_string(&detail.shortened(*most)).ok());
        let Some(text) = texts.into_iter().find(|text| text.len() < room) else { continue };
        if text.len() + 1 > left {
            parts.push(Vec::new());
            left = room;
        }
        left = left.saturating_sub(text.len() + 1);
        parts.last_mut().expect("there is at least one").push(text);
    }
    let count = parts.len();
    parts.iter().enumerate().map(|(number, servers)| payload(number + 1, count, servers)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{LastError, Report, Waiting};
    use jiff::Timestamp;
    use proptest::prelude::*;

    fn request(payload: &str) -> Result<Request, Answer> {
        parse(payload).unwrap().request
    }

    fn answer(payload: &str) -> String {
        let message = parse(payload).unwrap();
        let payloads = message.request.unwrap_err().payloads(&message.command);
        assert_eq!(payloads.len(), 1);
        payloads[0].clone()
    }

    #[test]
    fn the_commands_of_powa_web_are_understood() {
        assert_eq!(
            parse("RELOAD r123 ").unwrap(),
            Message { command: "RELOAD".into(), channel: Some("r123".into()), request: Ok(Request::Reload) }
        );
        assert_eq!(request("WORKERS_STATUS c"), Ok(Request::WorkersStatus(Of::All)));
        assert_eq!(request("WORKERS_STATUS c 12 13 x"), Ok(Request::WorkersStatus(Of::One(ServerId(12)))));
        assert_eq!(request("WORKERS_STATUS c 1x"), Ok(Request::WorkersStatus(Of::All)));
        assert_eq!(request("WORKERS_STATUS c 99999999999999999999"), Ok(Request::WorkersStatus(Of::Nobody)));
        assert_eq!(request("FORCE_SNAPSHOT c 7"), Ok(Request::ForceSnapshot(ServerId(7))));
        assert_eq!(request("REFRESH_DB_CAT c 7 0 "), Ok(Request::RefreshCatalogs(ServerId(7), Refresh::All)));
        assert_eq!(
            request("REFRESH_DB_CAT c 7 2 a b"),
            Ok(Request::RefreshCatalogs(ServerId(7), Refresh::Named(vec!["a".into(), "b".into()])))
        );
    }

    #[test]
    fn details_are_of_all_or_of_those_that_are_named() {
        assert_eq!(request("WORKERS_DETAIL c"), Ok(Request::WorkersDetail(vec![])));
        assert_eq!(request("WORKERS_DETAIL c "), Ok(Request::WorkersDetail(vec![])));
        let both = vec![ServerId(2), ServerId(11)];
        assert_eq!(request("WORKERS_DETAIL c 2 11"), Ok(Request::WorkersDetail(both)));
        assert_eq!(answer("WORKERS_DETAIL c 2 db1"), "WORKERS_DETAIL ERROR invalid remote server id db1");
    }

    #[test]
    fn details_come_in_numbered_parts_and_no_server_is_left_out() {
        let detail = |srvid, text: &str| {
            let message = text.to_owned();
            let last_error = Some(LastError { time: Timestamp::UNIX_EPOCH, message });
            Detail {
                srvid,
                server: format!("{text}:5432"),
                alias: Some(text.to_owned()),
                state: "running".to_owned(),
                frequency: 300,
                report: Report { last_error, ..Report::default() },
                backlog: Waiting::default(),
            }
        };
        // Texts that take six bytes a character, and so many that they do not fit.
        let long = "\u{1}".repeat(5000);
        let mut details = vec![detail(1, &long)];
        details.extend((2..=300).map(|srvid| detail(srvid, "db")));
        let payloads = Answer::Details(details.clone()).payloads("WORKERS_DETAIL");
        let mut seen = Vec::new();
        for (number, payload) in payloads.iter().enumerate() {
            assert!(payload.len() <= PAYLOAD_BYTES);
            let data = payload.strip_prefix("WORKERS_DETAIL OK ").unwrap();
            let part: DetailPart = serde_json::from_str(data).unwrap();
            assert_eq!((part.part, part.parts), (number + 1, payloads.len()));
            seen.extend(part.servers);
        }
        assert!(payloads.len() > 1);
        assert_eq!(seen[0], details[0].shortened(300));
        assert_eq!(seen[1..], details[1..]);
        let none = Answer::Details(vec![]).payloads("WORKERS_DETAIL");
        assert_eq!(none, [r#"WORKERS_DETAIL OK {"part":1,"parts":1,"servers":[]}"#]);
    }

    #[test]
    fn a_dash_or_nothing_means_no_answer() {
        for payload in ["RELOAD -", "RELOAD", "RELOAD ", "RELOAD - x"] {
            let message = parse(payload).unwrap();
            assert_eq!(message.channel, None, "{payload:?}");
            assert_eq!(message.request, Ok(Request::Reload));
        }
        assert_eq!(parse(""), None);
        assert_eq!(parse(" "), None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(
            answer("MAKE_COFFEE c now"),
            "MAKE_COFFEE UNKNOWN Message \"MAKE_COFFEE\" invalid, command ignored"
        );
        assert_eq!(answer("FORCE_SNAPSHOT c one"), "FORCE_SNAPSHOT ERROR invalid remote server id one");
        assert_eq!(
            answer("FORCE_SNAPSHOT c"),
            "FORCE_SNAPSHOT ERROR malformed command \"FORCE_SNAPSHOT c\", expected FORCE_SNAPSHOT CHANNEL SRVID"
        );
        assert_eq!(
            answer("REFRESH_DB_CAT c 1 many"),
            "REFRESH_DB_CAT ERROR invalid number of databases many"
        );
        assert_eq!(
            answer("REFRESH_DB_CAT c 1 2 a"),
            "REFRESH_DB_CAT ERROR Caller asked for 2 db, but found 1: a"
        );
    }

    #[test]
    fn an_answer_that_does_not_fit_is_said_to_be_too_long() {
        let command = "X".repeat(3990);
        assert_eq!(Answer::Unknown.payloads(&command), [format!("{command} KO {{ANSWER TOO LONG}}")]);
    }

    #[test]
    fn the_state_of_a_fleet_comes_in_pieces_that_are_each_complete() {
        let workers: Vec<_> = (1..=600).map(|id| (ServerId(id), "running".to_owned())).collect();
        let payloads = Answer::Workers(workers).payloads("WORKERS_STATUS");
        assert_eq!(payloads.len(), 2);
        let mut seen = 0;
        for payload in payloads {
            assert!(payload.len() <= PAYLOAD_BYTES);
            let data = payload.strip_prefix("WORKERS_STATUS OK ").unwrap();
            let data: serde_json::Map<_, _> = serde_json::from_str(data).unwrap();
            seen += data.len();
        }
        assert_eq!(seen, 600);
        assert_eq!(Answer::Workers(vec![]).payloads("WORKERS_STATUS"), ["WORKERS_STATUS OK {}"]);
        assert_eq!(
            Answer::Workers(vec![(ServerId(1), "running".into()), (ServerId(2), "stopped".into())])
                .payloads("WORKERS_STATUS"),
            [r#"WORKERS_STATUS OK {"1": "running", "2": "stopped"}"#]
        );
    }

    proptest! {
        #[test]
        fn any_message_is_read_and_any_answer_fits(payload in "\\PC{0,8000}") {
            let Some(message) = parse(&payload) else { return Ok(()) };
            let Err(answer) = message.request else { return Ok(()) };
            for payload in answer.payloads(&message.command) {
                prop_assert!(payload.len() <= PAYLOAD_BYTES);
            }
        }
    }
}
