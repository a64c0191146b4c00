//! The documents say what the program does: its keys, lines, errors and metrics are there, and no others.

mod markdown;
mod monitoring;

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use markdown::{Document, checkout, rows};
use monitoring::{METRICS, alerts, dashboard, queries, states, unknown};
use powa_collector::config::{self, Configuration, ConfigurationError, KEYS, Loaded};
use serde_json::{Value, json};

const OPERATION: &str = "docs/operation.md";
const CONFIGURATION: &str = "docs/configuration.md";

// --- keys of the configuration

/// A row of the table of keys.
struct Key<'a> {
    name: &'a str,
    /// With its limits.
    kind: &'a str,
    default: &'a str,
}

fn keys(document: &Document) -> Vec<Key<'_>> {
    let mut keys = Vec::new();
    for (name, cells) in rows(&document.section("Keys")) {
        assert_eq!(cells.len(), 4, "{name}: {cells:?}");
        assert!(cells.iter().all(|cell| !cell.is_empty()), "{name}: {cells:?}");
        keys.push(Key { name, kind: cells[0], default: cells[1] });
    }
    keys
}

#[test]
fn every_key_is_documented_and_no_other() {
    let document = Document::read(CONFIGURATION);
    let names: Vec<&str> = keys(&document).iter().map(|key| key.name).collect();
    assert_eq!(names, KEYS);
}

#[test]
fn the_defaults_are_those_of_the_program() {
    let document = Document::read(CONFIGURATION);
    let unsaid = load(&json!({})).unwrap().configuration;
    for key in keys(&document) {
        if key.name == "spool.directory" {
            assert_eq!(unsaid.settings.spool_directory, documented_directory(key.default));
            continue;
        }
        if key.default == "none" {
            continue;
        }
        let default = key.default.strip_prefix('`').and_then(|text| text.strip_suffix('`')).expect(key.name);
        let default = serde_json::from_str(default).unwrap_or_else(|_| Value::from(default));
        let differences =
            |value: &Value| config::differences(&unsaid, &with(key.name, value).unwrap().configuration);
        assert_eq!(differences(&default), Vec::<String>::new(), "{}", key.name);
        // And the comparison looks at this key.
        let other = other(&default);
        assert!(!differences(&other).is_empty(), "{}: {default} and {other}", key.name);
    }
    let error = load_text("{}").unwrap_err().to_string();
    assert!(error.contains("repository.dsn: missing"), "{error}");
}

/// What the document says of `spool.directory`, with this process's variables.
fn documented_directory(text: &str) -> PathBuf {
    let said = "`$STATE_DIRECTORY`, or `$XDG_STATE_HOME/powa-collector`, or `~/.local/state/powa-collector`";
    assert_eq!(text, said);
    let variable = |name| env::var_os(name).map(PathBuf::from);
    variable("STATE_DIRECTORY")
        .or_else(|| Some(variable("XDG_STATE_HOME")?.join("powa-collector")))
        .or_else(|| Some(variable("HOME")?.join(".local/state/powa-collector")))
        .expect("a home")
}

/// Another value of the same type.
fn other(value: &Value) -> Value {
    match value {
        Value::Bool(value) => json!(!value),
        Value::Number(value) => json!(value.as_u64().expect("a whole number") + 1),
        Value::String(value) if value == "text" => json!("json"),
        Value::String(_) => json!("warn"),
        Value::Array(_) => json!(["other"]),
        Value::Object(_) => json!({ "name": { "sslmode": "require" }, "sslmode": "require" }),
        _ => panic!("{value} has no type of a key"),
    }
}

#[test]
fn the_types_and_limits_are_those_of_the_program() {
    let document = Document::read(CONFIGURATION);
    for key in keys(&document) {
        // A list is no value of any key but one, and no list is of numbers.
        let wrong = match with(key.name, &json!([])) {
            Err(error) => error,
            Ok(_) => with(key.name, &json!([1])).expect_err(key.name),
        };
        let wrong = wrong.to_string();
        let possible: &[&str] = match wrong.rsplit_once("expected ").map(|(_, expected)| expected) {
            Some("u64") => &["integer", "seconds", "bytes"],
            Some("a boolean") => &["boolean"],
            Some("a string" | "path string") => &["string"],
            Some("a map") => &["object"],
            _ if wrong.ends_with("must be a list of strings, the program first, or a line for the shell") => {
                &["string or list"]
            }
            _ if wrong.ends_with("neither a list of names nor names with commas between them") => {
                &["string or list"]
            }
            _ => panic!("what type is this? {wrong}"),
        };
        let (kind, limits) = match key.kind.split_once(", ") {
            Some((kind, limits)) => (kind, Some(limits)),
            None => (key.kind, None),
        };
        assert!(possible.contains(&kind), "{}: {kind}, and the program says: {wrong}", key.name);
        if possible.contains(&"integer") {
            let told =
                with(key.name, &json!(9_000_000_000_000_000_000_u64)).err().map(|error| error.to_string());
            let told = told.as_deref().and_then(|told| Some(told.split_once(" is not between ")?.1));
            assert_eq!(limits.map(|limits| limits.replace(" to ", " and ")).as_deref(), told, "{}", key.name);
        }
    }
}

/// A configuration with this value of a key, and else what it must have.
fn with(key: &str, value: &Value) -> Result<Loaded, ConfigurationError> {
    let keys = match (key, key.split_once('.')) {
        ("servers.by_name", _) => {
            let named = value.as_object().is_some_and(|value| !value.is_empty());
            json!({ "servers": { "by_name": if named { json!({ "name": value["name"] }) } else { value.clone() } } })
        }
        ("servers.defaults", _) => {
            let filled = value.as_object().is_some_and(|value| !value.is_empty());
            let options = if filled { json!({ "sslmode": value["sslmode"] }) } else { value.clone() };
            json!({ "servers": { "defaults": options } })
        }
        (_, Some((section, name))) => json!({ section: { name: value } }),
        (_, None) => json!({ key: value }),
    };
    load(&keys)
}

/// These keys, and the one that must be there.
fn load(keys: &Value) -> Result<Loaded, ConfigurationError> {
    let mut keys = keys.clone();
    let repository = &mut keys["repository"];
    if repository.is_null() {
        *repository = json!({});
    }
    if repository["dsn"].is_null() {
        repository["dsn"] = json!("host=h user=u dbname=d");
    }
    load_text(&keys.to_string())
}

fn load_text(text: &str) -> Result<Loaded, ConfigurationError> {
    let file = tempfile::NamedTempFile::new().expect("make a file");
    fs::write(file.path(), text).expect("write a file");
    config::load(Some(file.path()))
}

#[test]
fn every_example_is_json_and_every_whole_configuration_is_accepted() {
    let mut whole = 0;
    for document in Document::all() {
        for block in document.blocks().iter().filter(|block| block.language == "json") {
            let place = format!("{}, {}", document.path.display(), block.section);
            let value: Value =
                serde_json::from_str(&block.text).unwrap_or_else(|error| panic!("{place}: {error}"));
            if value.get("repository").is_some() {
                let loaded = load_text(&block.text).unwrap_or_else(|error| panic!("{place}: {error}"));
                assert_eq!(loaded.warnings, Vec::<String>::new(), "{place}");
                whole += 1;
            }
        }
    }
    assert!(whole >= 3, "only {whole} were found");
}

/// So that the comparison of defaults means something.
#[test]
fn a_configuration_does_not_differ_from_itself() {
    let one: Configuration = load(&json!({})).unwrap().configuration;
    assert_eq!(config::differences(&one, &load(&json!({})).unwrap().configuration), Vec::<String>::new());
}

// --- states, lines of the log, errors

#[test]
fn every_state_is_documented_and_no_other() {
    let document = Document::read(OPERATION);
    let documented: Vec<&str> = rows(&document.section("States")).iter().map(|(state, _)| *state).collect();
    assert_eq!(sorted(documented), sorted(states()));
}

/// A line of the log whose text comes from elsewhere in the source, and from where.
struct HandedOn {
    /// Where the line is written, its level, and what stands there.
    place: (&'static str, &'static str, &'static str),
    /// The files and what precedes the texts there.
    origins: &'static [(&'static str, &'static str)],
    /// What follows them in the line.
    end: &'static str,
}

const HANDED_ON: &[HandedOn] = &[
    HandedOn {
        place: ("src/main.rs", "warn", "…"),
        origins: &[("src/config/mod.rs", "warnings.push(format!(")],
        end: "",
    },
    HandedOn {
        place: ("src/collector.rs", "warn", "…"),
        origins: &[("src/config/mod.rs", "warnings.push(format!(")],
        end: "",
    },
    HandedOn {
        place: ("src/postgres/dial.rs", "warn", "…"),
        origins: &[
            ("src/postgres/dial.rs", "warn_once(format!("),
            ("src/postgres/dial.rs", "let told = format!("),
        ],
        end: "",
    },
    HandedOn {
        place: ("src/worker.rs", "warn", "…: …; trying again until it works"),
        origins: &[("src/worker.rs", "self.tell(")],
        end: ": …; trying again until it works",
    },
    HandedOn {
        place: ("src/worker.rs", "error", "…"),
        origins: &[
            ("src/worker.rs", "errors.reading.failed(&format!("),
            ("src/worker.rs", "errors.storing.failed(&format!("),
        ],
        end: "",
    },
    HandedOn {
        place: ("src/worker.rs", "warn", "…"),
        origins: &[
            ("src/worker.rs", "errors.push(format!("),
            ("src/repeated.rs", "let error = format!("),
            ("src/snapshot/fetch.rs", "errors.push(format!("),
            ("src/snapshot/fetch.rs", "skipped.push(format!("),
            ("src/snapshot/plan.rs", "errors.push(format!("),
            ("src/snapshot/plan.rs", "let told = format!("),
            ("src/snapshot/store.rs", "errors.push(format!("),
        ],
        end: "",
    },
    HandedOn {
        place: ("src/worker.rs", "info", "…"),
        origins: &[("src/repeated.rs", "=> write!(f, ")],
        end: "",
    },
    HandedOn {
        place: ("src/once.rs", "warn", "…"),
        origins: &[
            ("src/snapshot/plan.rs", "let told = format!("),
            ("src/snapshot/fetch.rs", "skipped.push(format!("),
        ],
        end: "",
    },
    HandedOn {
        place: ("src/check/one_server.rs", "warn", "…"),
        origins: &[("src/snapshot/plan.rs", "let told = format!(")],
        end: "",
    },
];

/// What is written past the log's levels, as an error.
const PAST_THE_LOG: (&str, &str) = ("src/telemetry.rs", "_ => format!(");

#[test]
fn every_line_of_the_log_that_warns_is_documented_and_no_other() {
    let sources = sources();
    let logged = logged(&sources);
    let document = Document::read(OPERATION);
    let rows = rows(&document.section("Lines of the log"));
    for (line, cells) in &rows {
        assert_eq!(cells.len(), 3, "{line}: level, what it means, what to do");
        assert!(["info", "warn", "error"].contains(&cells[0]), "{line}: the level {}", cells[0]);
    }
    for level in ["error", "warn"] {
        let of_level = |line: &&(&str, Vec<&str>)| line.1[0] == level;
        let documented: BTreeSet<&str> = rows.iter().filter(of_level).map(|(line, _)| *line).collect();
        let said: BTreeSet<&str> =
            logged.iter().filter(|(other, _)| *other == level).map(|(_, line)| line.as_str()).collect();
        assert_same(&format!("lines of level {level}"), &said, &documented);
    }
    // Of those that only inform, the table has what matters.
    for (line, _) in rows.iter().filter(|(_, cells)| cells[0] == "info") {
        let is_said = logged.iter().any(|(level, other)| *level == "info" && other == line);
        assert!(is_said, "documented, and not in the source: {line}");
    }
}

/// Levels and texts of all lines, with `…` for what differs.
fn logged(sources: &[(String, String)]) -> Vec<(&'static str, String)> {
    let mut logged = Vec::new();
    for (path, source) in sources {
        for (level, bare, call) in [
            ("error", "error!(", "tracing::error!("),
            ("warn", "warn!(", "tracing::warn!("),
            ("info", "info!(", "tracing::info!("),
        ] {
            let calls = source.matches(call).count();
            assert_eq!(
                source.matches(bare).count(),
                calls,
                "{path}: {bare} without tracing:: is not seen here"
            );
            let texts = texts_after(source, call, false);
            assert_eq!(texts.len(), calls, "{path}: a line of the log without a text");
            for text in texts {
                let place = (path.as_str(), level, text.as_str());
                match HANDED_ON.iter().find(|handed| handed.place == place) {
                    Some(handed) => {
                        let origins = handed.origins.iter();
                        let texts = origins.flat_map(|(path, needle)| texts_in(sources, path, needle));
                        logged.extend(texts.map(|text| (level, text + handed.end)));
                    }
                    None => {
                        assert!(says_something(&text), "{path}: what {text:?} says comes from elsewhere");
                        logged.push((level, text));
                    }
                }
            }
        }
    }
    let (path, needle) = PAST_THE_LOG;
    logged.extend(texts_in(sources, path, needle).into_iter().map(|text| ("error", text)));
    // A datasource's name and what the server says: no table can have them.
    logged.retain(|(_, text)| says_something(text));
    logged
}

#[test]
fn every_error_is_documented_and_no_other() {
    let sources = sources();
    let mut said: BTreeSet<String> = BTreeSet::new();
    for (_, source) in &sources {
        said.extend(texts_after(source, "#[error(", true));
    }
    said.extend(texts_in(&sources, "src/snapshot/reading.rs", "ok_or_else(|| format!("));
    said.retain(|text| says_something(text));
    let said: BTreeSet<&str> = said.iter().map(String::as_str).collect();
    let document = Document::read(OPERATION);
    let rows = rows(&document.section("Errors"));
    let documented: BTreeSet<&str> = rows.iter().map(|(error, _)| *error).collect();
    assert_eq!(documented.len(), rows.len(), "an error is there twice");
    for (error, cells) in &rows {
        assert!(cells.len() == 2 && cells.iter().all(|cell| !cell.is_empty()), "{error}: {cells:?}");
    }
    assert_same("errors", &said, &documented);
}

/// The program's source without its tests, by path.
fn sources() -> Vec<(String, String)> {
    fn collect(directory: &Path, sources: &mut Vec<(String, String)>) {
        for entry in fs::read_dir(directory).expect("read a directory") {
            let path = entry.expect("read a directory").path();
            if path.is_dir() {
                collect(&path, sources);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("read a source");
                let program = text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default().to_owned();
                let name = path.strip_prefix(checkout()).expect("a path of the checkout");
                sources.push((name.display().to_string(), program));
            }
        }
    }
    let mut sources = Vec::new();
    collect(&checkout().join("src"), &mut sources);
    sources
}

/// Those of one file. Panics when there are none.
fn texts_in(sources: &[(String, String)], path: &str, needle: &str) -> Vec<String> {
    let source = sources.iter().find(|(other, _)| other == path).unwrap_or_else(|| panic!("no {path}"));
    let texts = texts_after(&source.1, needle, false);
    assert!(!texts.is_empty(), "{path}: nothing stands after {needle}");
    texts
}

/// The texts that come after a needle, with `…` for what differs. `at_once`: only where nothing is between.
fn texts_after(source: &str, needle: &str, at_once: bool) -> Vec<String> {
    let mut texts = Vec::new();
    for (at, _) in source.match_indices(needle) {
        let rest = source[at + needle.len()..].trim_start();
        let begin = if at_once { rest.starts_with('"').then_some(0) } else { rest.find('"') };
        texts.extend(begin.map(|begin| with_gaps(&literal(&rest[begin + 1..]))));
    }
    texts
}

/// A text of Rust's, as it is when it runs. Begins behind its first quote.
fn literal(code: &str) -> String {
    let mut text = String::new();
    let mut chars = code.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' => break,
            '\\' => match chars.next() {
                Some('\n') => while chars.next_if(|c| c.is_whitespace()).is_some() {},
                Some('n') => text.push('\n'),
                Some(escaped) => text.push(escaped),
                None => break,
            },
            c => text.push(c),
        }
    }
    text
}

/// With `…` for each placeholder.
fn with_gaps(format: &str) -> String {
    let mut text = String::new();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '{' if chars.next_if_eq(&'{').is_some() => text.push('{'),
            '}' if chars.next_if_eq(&'}').is_some() => text.push('}'),
            '{' => {
                while chars.next().is_some_and(|c| c != '}') {}
                text.push('…');
            }
            c => text.push(c),
        }
    }
    text
}

/// Whether it is more than gaps.
fn says_something(text: &str) -> bool {
    text.contains(char::is_alphabetic)
}

fn assert_same(what: &str, said: &BTreeSet<&str>, documented: &BTreeSet<&str>) {
    let missing: Vec<_> = said.difference(documented).collect();
    let stale: Vec<_> = documented.difference(said).collect();
    assert!(
        missing.is_empty() && stale.is_empty(),
        "{what} that are in the source and not in {OPERATION}: {missing:#?}\nthe other way round: {stale:#?}"
    );
}

#[test]
fn texts_are_read_as_the_compiler_does() {
    let source = "f!(\n  id = %id,\n  \"a {x:?} \\\"b\\\" \\\n     c {{d}}\", x)";
    assert_eq!(texts_after(source, "f!(", false), ["a … \"b\" c {d}"]);
    assert_eq!(texts_after(source, "f!(", true), Vec::<String>::new());
}

// --- metrics

#[test]
fn every_metric_is_documented_and_no_other() {
    let document = Document::read(OPERATION);
    let rows = rows(&document.section("Metrics"));
    let documented: Vec<(&str, &str)> = rows.iter().map(|(metric, cells)| (*metric, cells[0])).collect();
    let labelled = METRICS.iter().map(|metric| match metric.labels {
        [] => metric.name.to_owned(),
        labels => format!("{}{{{}}}", metric.name, labels.join(",")),
    });
    let labelled: Vec<String> = labelled.collect();
    let offered: Vec<(&str, &str)> =
        labelled.iter().map(String::as_str).zip(METRICS.iter().map(|metric| metric.kind.name())).collect();
    assert_eq!(sorted(documented), sorted(offered));
}

#[test]
fn alerts_and_dashboard_ask_for_metrics_that_there_are() {
    for alert in alerts() {
        assert_eq!(unknown(&alert.expression()), Vec::<String>::new(), "{}", alert.name);
    }
    let queries = queries(&dashboard());
    for (title, query) in &queries {
        assert_eq!(unknown(query), Vec::<String>::new(), "{title}");
    }
    // And the dashboard shows all of them.
    for metric in METRICS {
        assert!(queries.iter().any(|(_, query)| query.contains(metric.name)), "{} is not shown", metric.name);
    }
}

#[test]
fn what_is_asked_for_and_not_there_is_noticed() {
    for (expression, expected) in [
        ("sum(rate(powa_collector_server_rows[5m]))", vec!["powa_collector_server_rows"]),
        ("process_fds > 1 and up == 1", vec!["process_fds"]),
        ("powa_collector_server_phase_seconds > 1", vec!["powa_collector_server_phase_seconds"]),
        (
            r#"powa_collector_server_state{state="Running"} == 1"#,
            vec![r#"powa_collector_server_state{state="Running"}"#],
        ),
        (
            r#"powa_collector_repository_listening{server=~"a"}"#,
            vec![r#"powa_collector_repository_listening{server=~"a"}"#],
        ),
        (
            r#"increase(powa_collector_server_failures_total{kind=~"fetch|store", server=~"$server"}[1h])"#,
            vec![],
        ),
    ] {
        assert_eq!(unknown(expression), expected);
    }
}

// --- figures

#[test]
fn the_figures_of_the_readme_are_those_of_the_benchmark() {
    let (readme, results) = (Document::read("README.md"), Document::read("benches/RESULTS.md"));
    let figure = |case: &str, what: &str, column: usize| -> f64 {
        let rows = results.prose().into_iter().map(|line| line.split('|').map(str::trim).collect::<Vec<_>>());
        let mut rows = rows.filter(|cells| cells.get(1..3) == Some(&[case, what]));
        rows.next()
            .and_then(|cells| cells[2 + column].parse().ok())
            .unwrap_or_else(|| panic!("{case}, {what}"))
    };
    let ours_and_theirs = |told: &dyn Fn(usize) -> String| format!("| {} | {} |", told(1), told(2));
    let seconds = |value: f64| if value < 1.0 { format!("{value:.2}") } else { format!("{value:.1}") };
    let (minute, memory) = ("snapshots a minute", "peak memory, MB");
    let first = "snapshots a minute, over 150 s";
    let (fetch, longest) = ("a fetch, all databases included, s", "the longest transaction on the server, s");
    let (idle, connections) = ("peak memory, first snapshots included, MB", "connections to the repository");
    let rows = [
        ("100 servers every 60 s", ours_and_theirs(&|of| format!("{:.0}", figure("first-round", first, of)))),
        ("50 servers every 10 s", ours_and_theirs(&|of| format!("{:.0}", figure("overload", minute, of)))),
        ("100 servers with 6 MB", ours_and_theirs(&|of| format!("{:.0} MB", figure("text", memory, of)))),
        (
            "a server behind",
            ours_and_theirs(&|of| {
                format!(
                    "{} s, {} s",
                    seconds(figure("distant", fetch, of)),
                    seconds(figure("distant", longest, of))
                )
            }),
        ),
        (
            "1000 servers",
            format!("| {:.0} MB, {:.0} |", figure("idle", idle, 1), figure("idle", connections, 1)),
        ),
    ];
    for (beginning, figures) in rows {
        let prose = readme.prose();
        let row = prose.iter().find(|line| line.starts_with(&format!("| {beginning}")));
        let row = row.unwrap_or_else(|| panic!("the README has no row {beginning}"));
        assert!(row.contains(&figures), "{row} has not {figures}");
    }
}

// --- links and targets

#[test]
fn every_link_leads_somewhere() {
    let mut count = 0;
    for document in Document::all() {
        for link in document.links() {
            if link.contains("://") {
                continue;
            }
            count += 1;
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let place = format!("{}: {link}", document.path.display());
            let target = match path {
                "" => document.path.clone(),
                path => document.path.parent().expect("a file has a directory").join(path),
            };
            assert!(checkout().join(&target).exists(), "{place}: there is no such file");
            if !anchor.is_empty() {
                let anchors = Document::read(&target).anchors();
                assert!(anchors.iter().any(|other| other == anchor), "{place}: there is no such heading");
            }
        }
    }
    assert!(count > 50, "only {count} were found");
}

#[test]
fn every_make_target_that_is_named_exists() {
    let makefile = fs::read_to_string(checkout().join("Makefile")).expect("read the Makefile");
    for document in Document::all() {
        for target in document.codes().iter().filter_map(|code| code.strip_prefix("make ")) {
            let target = target.split(' ').next().unwrap_or_default();
            let exists = makefile.lines().any(|line| line.starts_with(&format!("{target}:")));
            assert!(exists, "{}: make {target}", document.path.display());
        }
    }
}

fn sorted<T: Ord>(list: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut list: Vec<T> = list.into_iter().collect();
    list.sort();
    list
}
