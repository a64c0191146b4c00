//! How all goes at one moment: what the dispatcher tells whoever shows it to people and to machines that anybody may
//! ask. Neither passwords nor statements are in it.

use std::collections::VecDeque;

use jiff::Timestamp;
use serde::Serialize;

use crate::figures::Figures;
use crate::postgres::text::without_quotations;
use crate::report::Detail;

/// The collector and its servers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Overview {
    pub version: &'static str,
    /// When it was so.
    pub time: Timestamp,
    /// When the collector started.
    pub started: Timestamp,
    /// Host, port and database.
    pub repository: String,
    /// Whether control messages are heard there.
    pub listening: bool,
    pub stopping: bool,
    /// Why not all of the last reload could be applied.
    pub problem: Option<String>,
    pub spool: Spool,
    /// In the order of their ids.
    pub servers: Vec<Seen>,
}

/// Where snapshots wait for the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Spool {
    pub max_bytes: u64,
    /// Whether they can.
    pub usable: bool,
}

/// One server.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Seen {
    /// As the log calls it.
    pub name: String,
    /// Whether nothing is wrong with it.
    pub well: bool,
    /// How long the next snapshot has been due.
    pub lag_seconds: f64,
    #[serde(flatten)]
    pub detail: Detail,
    /// What the last snapshots took in all, the latest at the end.
    pub recent_seconds: VecDeque<f64>,
    #[serde(skip)]
    pub figures: Figures,
}

impl Overview {
    /// Why nobody can be sure that the collector does its work, in one line. `None`: it does.
    pub fn unready(&self) -> Option<String> {
        if self.stopping {
            Some("stopping".to_owned())
        } else if !self.listening {
            Some(format!("waiting for the repository {}: see the log", self.repository))
        } else {
            None
        }
    }
}

impl Seen {
    pub fn new(name: String, mut detail: Detail, figures: Figures, now: Timestamp) -> Self {
        if let Some(error) = &mut detail.report.last_error {
            // What servers say may quote what they were given.
            error.message = without_quotations(&error.message);
        }
        let lag = detail.report.next_due.map(|due| now.duration_since(due).as_secs_f64());
        Self {
            name,
            well: detail.is_well(),
            lag_seconds: lag.unwrap_or_default().max(0.0),
            recent_seconds: figures.recent.clone(),
            detail,
            figures,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{LastError, Report, Waiting};

    fn seen(next_due: Option<i64>) -> Seen {
        let detail = Detail {
            srvid: 1,
            server: "db1:5432".to_owned(),
            alias: None,
            state: "running".to_owned(),
            frequency: 60,
            report: Report {
                next_due: next_due.map(|due| Timestamp::from_second(due).unwrap()),
                last_error: Some(LastError {
                    time: Timestamp::UNIX_EPOCH,
                    message: r#"invalid input syntax for type integer: "select secret from t""#.to_owned(),
                }),
                ..Report::default()
            },
            backlog: Waiting::default(),
        };
        Seen::new("db1".to_owned(), detail, Figures::default(), Timestamp::from_second(1_000).unwrap())
    }

    #[test]
    #[allow(clippy::float_cmp, reason = "whole seconds")]
    fn a_server_lags_by_as_long_as_its_snapshot_has_been_due() {
        assert_eq!(seen(Some(985)).lag_seconds, 15.0);
        assert_eq!(seen(Some(1_060)).lag_seconds, 0.0);
        assert_eq!(seen(None).lag_seconds, 0.0);
    }

    #[test]
    fn no_statement_that_an_error_quotes_is_shown() {
        let shown = serde_json::to_string(&seen(None)).unwrap();
        assert!(shown.contains("invalid input syntax") && !shown.contains("secret"), "{shown}");
    }

    #[test]
    fn it_is_ready_while_it_listens_and_does_not_stop() {
        let overview = |listening, stopping| Overview {
            version: "1",
            time: Timestamp::UNIX_EPOCH,
            started: Timestamp::UNIX_EPOCH,
            repository: "db:5432/powa".to_owned(),
            listening,
            stopping,
            problem: None,
            spool: Spool { max_bytes: 0, usable: true },
            servers: Vec::new(),
        };
        assert_eq!(overview(true, false).unready(), None);
        assert_eq!(overview(true, true).unready().unwrap(), "stopping");
        assert!(overview(false, false).unready().unwrap().contains("db:5432/powa"));
    }
}
