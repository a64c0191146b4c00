//! What is logged, and how: `log.format`, `log.level` and `debug`. Pure.

use std::cmp::min;
use std::str::FromStr;

use tracing_subscriber::filter::{LevelFilter, Targets};

/// How an event is called that is ours.
const OURS: &str = "powa_collector";

/// At most so much of what libraries say is shown unasked: beyond, they may show what passes over a connection.
const OF_LIBRARIES: LevelFilter = LevelFilter::WARN;

/// Libraries of whose words even less is shown unasked: what they warn of, we say ourselves.
const QUIET: [&str; 1] = ["deadpool"];

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// How the log is written.
#[derive(Debug, Clone, PartialEq)]
pub struct LogOptions {
    pub format: Format,
    pub level: Directives,
}

/// What a line of the log looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    #[default]
    Text,
    /// An object a line.
    Json,
}

impl Format {
    /// As it stands in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let all = [Self::Text, Self::Json];
        all.into_iter()
            .find(|format| format.name() == text)
            .ok_or_else(|| format!("{text:?} is neither \"text\" nor \"json\""))
    }
}

/// Which events are shown, by level and by who says them.
#[derive(Debug, Clone, PartialEq)]
pub struct Directives {
    /// As it stands in the configuration.
    given: String,
    filter: Targets,
}

impl Directives {
    /// What counts when nothing is said: the level of `debug`.
    pub fn unsaid(debug: bool) -> Self {
        let (given, level) = if debug { ("debug", LevelFilter::DEBUG) } else { ("info", LevelFilter::INFO) };
        Self { given: given.to_owned(), filter: of_level(level) }
    }

    pub fn given(&self) -> &str {
        &self.given
    }

    pub fn filter(&self) -> Targets {
        self.filter.clone()
    }
}

impl FromStr for Directives {
    type Err = String;

    /// Directives as of `tracing`, separated by commas: `LEVEL` or `TARGET=LEVEL`. A level alone is that of our own
    /// events.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut own = LevelFilter::INFO;
        let mut named = Vec::new();
        for directive in text.split(',').map(str::trim) {
            let wrong = || {
                format!(
                    "{directive:?} in {text:?} is not possible: it is made of LEVEL and TARGET=LEVEL, separated by \
                     commas, as in \"info\" or \"warn,{OURS}=debug\"; a LEVEL is one of {}",
                    LEVELS.join(", ")
                )
            };
            match directive.split_once('=') {
                None => own = level(directive).ok_or_else(wrong)?,
                Some((target, level)) => {
                    let level = self::level(level).filter(|_| is_target(target)).ok_or_else(wrong)?;
                    named.push((target.to_owned(), level));
                }
            }
        }
        Ok(Self { given: text.to_owned(), filter: of_level(own).with_targets(named) })
    }
}

/// What a level shows when nobody is named.
fn of_level(level: LevelFilter) -> Targets {
    let quiet = QUIET.map(|library| (library, min(level, LevelFilter::ERROR)));
    Targets::new().with_default(min(level, OF_LIBRARIES)).with_target(OURS, level).with_targets(quiet)
}

fn level(text: &str) -> Option<LevelFilter> {
    let is_level = LEVELS.iter().any(|level| level.eq_ignore_ascii_case(text));
    text.parse().ok().filter(|_| is_level)
}

/// Whether it can be where an event comes from, a path of Rust. One that is misspelt cannot be told from others.
fn is_target(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "_:-".contains(c))
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    /// The levels that are shown of us, of a library, and of one that is quiet.
    fn shown(text: &str) -> [Option<Level>; 3] {
        let filter = text.parse::<Directives>().unwrap().filter();
        let levels = [Level::TRACE, Level::DEBUG, Level::INFO, Level::WARN, Level::ERROR];
        ["powa_collector::worker", "tokio_postgres::prepare", "deadpool::managed"]
            .map(|target| levels.into_iter().find(|level| filter.would_enable(target, level)))
    }

    #[test]
    fn a_level_alone_is_ours_and_never_lets_libraries_show_more() {
        let [debug, info, warn, error] = [Level::DEBUG, Level::INFO, Level::WARN, Level::ERROR].map(Some);
        assert_eq!(shown("info"), [info, warn, error]);
        assert_eq!(shown("debug"), [debug, warn, error]);
        assert_eq!(shown("TRACE"), [Some(Level::TRACE), warn, error]);
        assert_eq!(shown("error"), [error, error, error]);
        assert_eq!(shown("off"), [None, None, None]);
    }

    #[test]
    fn who_is_named_shows_what_is_asked_for() {
        let [debug, info, warn, error] = [Level::DEBUG, Level::INFO, Level::WARN, Level::ERROR].map(Some);
        assert_eq!(shown("powa_collector=debug,warn"), [debug, warn, error]);
        assert_eq!(shown("warn, powa_collector=debug"), [debug, warn, error]);
        assert_eq!(shown("tokio_postgres=debug"), [info, debug, error]);
        assert_eq!(shown("error,powa_collector::worker=debug,deadpool=info"), [debug, error, info]);
    }

    #[test]
    fn what_is_unsaid_depends_on_debug() {
        for (debug, level) in [(false, "info"), (true, "debug")] {
            assert_eq!(Directives::unsaid(debug), level.parse().unwrap());
        }
    }

    /// Misspelt levels would otherwise be targets, and spans would let out what libraries say within them.
    #[test]
    fn what_is_no_directive_is_refused_with_what_is_possible() {
        for text in [
            "debgu",
            "",
            "info,",
            "5",
            "tokio_postgres",
            "a=b",
            "=debug",
            "a=",
            "[worker]=debug",
            "a=b=debug",
        ] {
            let error = text.parse::<Directives>().unwrap_err();
            assert!(error.contains(&format!("{text:?}")), "{error}");
            assert!(error.contains("TARGET=LEVEL") && error.contains("error, warn, info"), "{error}");
        }
        let error = "JSON".parse::<Format>().unwrap_err();
        assert_eq!(error, r#""JSON" is neither "text" nor "json""#);
    }
}
