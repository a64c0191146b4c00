//! What `/metrics` offers, and what the alert rules and the dashboard make of it.
#![allow(dead_code, reason = "each test file uses a part of this module")]

use std::fs;

use powa_collector::worker::State;
use serde_json::Value;

use crate::markdown::checkout;

/// A metric.
pub struct Metric {
    /// With all of its prefix and its suffix.
    pub name: &'static str,
    pub kind: Kind,
    /// Besides `srvid` and `server`, which all of [`Metric::is_of_server`] have.
    pub labels: &'static [&'static str],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Gauge,
    Counter,
    Histogram,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter => "counter",
            Self::Histogram => "histogram",
        }
    }
}

/// All of them.
pub const METRICS: [Metric; 22] = [
    metric("powa_collector_build_info", Kind::Gauge, &["version"]),
    metric("powa_collector_repository_listening", Kind::Gauge, &[]),
    metric("powa_collector_reload_failed", Kind::Gauge, &[]),
    metric("powa_collector_spool_max_bytes", Kind::Gauge, &[]),
    metric("powa_collector_spool_usable", Kind::Gauge, &[]),
    metric("powa_collector_server_state", Kind::Gauge, &["state"]),
    metric("powa_collector_server_period_seconds", Kind::Gauge, &[]),
    metric("powa_collector_server_lag_seconds", Kind::Gauge, &[]),
    metric("powa_collector_server_last_snapshot_timestamp_seconds", Kind::Gauge, &[]),
    metric("powa_collector_server_snapshots_total", Kind::Counter, &[]),
    metric("powa_collector_server_failures_total", Kind::Counter, &["kind"]),
    metric("powa_collector_server_phase_seconds", Kind::Histogram, &["phase"]),
    metric("powa_collector_server_rows_total", Kind::Counter, &[]),
    metric("powa_collector_server_bytes_total", Kind::Counter, &[]),
    metric("powa_collector_server_backlog_snapshots", Kind::Gauge, &[]),
    metric("powa_collector_server_backlog_bytes", Kind::Gauge, &[]),
    metric("process_cpu_seconds_total", Kind::Counter, &[]),
    metric("process_resident_memory_bytes", Kind::Gauge, &[]),
    metric("process_open_fds", Kind::Gauge, &[]),
    metric("process_max_fds", Kind::Gauge, &[]),
    metric("process_start_time_seconds", Kind::Gauge, &[]),
    metric("process_threads", Kind::Gauge, &[]),
];

pub const KINDS: [&str; 7] = ["connect", "repository", "fetch", "datasource", "store", "lost", "fault"];
pub const PHASES: [&str; 3] = ["fetch", "wait", "store"];

pub fn states() -> [String; 6] {
    [State::Running, State::NoRemote, State::NoRepository, State::Stopping, State::Stopped, State::Unknown]
        .map(|state| state.to_string())
}

const fn metric(name: &'static str, kind: Kind, labels: &'static [&'static str]) -> Metric {
    Metric { name, kind, labels }
}

impl Metric {
    pub fn is_of_server(&self) -> bool {
        self.name.starts_with("powa_collector_server_")
    }

    /// The names by which it is asked for.
    fn series(&self) -> Vec<String> {
        match self.kind {
            Kind::Histogram => ["bucket", "sum", "count"].map(|part| format!("{}_{part}", self.name)).into(),
            Kind::Gauge | Kind::Counter => vec![self.name.to_owned()],
        }
    }

    fn has_label(&self, label: &str) -> bool {
        let of_server = self.is_of_server() && ["srvid", "server"].contains(&label);
        let of_bucket = self.kind == Kind::Histogram && label == "le";
        // What Prometheus adds.
        of_server || of_bucket || self.labels.contains(&label) || ["job", "instance"].contains(&label)
    }
}

/// What an expression of PromQL asks for that there is not.
pub fn unknown(expression: &str) -> Vec<String> {
    let mut unknown = Vec::new();
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut rest = expression;
    while let Some(begin) = rest.find(|c: char| c.is_ascii_alphabetic() || c == '"' || c == '_') {
        rest = &rest[begin..];
        if let Some(text) = rest.strip_prefix('"') {
            rest = text.split_once('"').expect("a text ends").1;
            continue;
        }
        let (name, after) = rest.split_at(rest.find(|c: char| !is_of_name(c)).unwrap_or(rest.len()));
        rest = after;
        let is_ours = ["powa_", "process_"].iter().any(|prefix| name.starts_with(prefix));
        let metric = METRICS.iter().find(|metric| metric.series().iter().any(|series| series == name));
        match metric {
            Some(metric) => {
                let selector = after.strip_prefix('{').and_then(|after| after.split_once('}'));
                let Some((selector, after)) = selector else { continue };
                rest = after;
                unknown.extend(selector.split(", ").filter_map(|matcher| unknown_in(matcher, metric)));
            }
            None if is_ours => unknown.push(name.to_owned()),
            None => {}
        }
    }
    unknown
}

/// A label that the metric does not have, or a value that the label does not have.
fn unknown_in(matcher: &str, metric: &Metric) -> Option<String> {
    let (label, rest) = matcher.split_at(matcher.find(['=', '!']).expect("a matcher has an operator"));
    let values = rest.trim_start_matches(['=', '!', '~']).trim_matches('"');
    let possible = match label {
        "state" => states().to_vec(),
        "kind" => KINDS.map(str::to_owned).to_vec(),
        "phase" => PHASES.map(str::to_owned).to_vec(),
        _ => Vec::new(),
    };
    let is_possible =
        possible.is_empty() || values.split('|').all(|value| possible.iter().any(|one| one == value));
    (!metric.has_label(label) || !is_possible).then(|| format!("{}{{{matcher}}}", metric.name))
}

pub const ALERTS: &str = "contrib/prometheus/alerts.yml";
pub const ALERTS_TEST: &str = "contrib/prometheus/alerts_test.yml";
pub const DASHBOARD: &str = "contrib/grafana/powa-collector.json";

/// An alert rule.
pub struct Alert {
    pub name: String,
    /// Its lines of the file.
    pub text: String,
}

/// Those of the file, which is not read as YAML, but as what stands there.
pub fn alerts() -> Vec<Alert> {
    let text = read(ALERTS);
    let alert = |text: &str| {
        let name = text.lines().next().expect("a name").to_owned();
        Alert { name, text: text.to_owned() }
    };
    text.split("- alert: ").skip(1).map(alert).collect()
}

impl Alert {
    /// The value of a key in one line.
    pub fn value(&self, key: &str) -> Option<&str> {
        let line = self.text.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(": "))?;
        Some(line.trim_matches('\''))
    }

    pub fn expression(&self) -> String {
        let begin = self.text.find("expr: ").expect("an expression") + "expr: ".len();
        let end = ["\n        for: ", "\n        labels:"].iter().filter_map(|end| self.text.find(end)).min();
        self.text[begin..end.expect("labels")].trim_start_matches("|-").trim().trim_matches('\'').to_owned()
    }
}

pub fn dashboard() -> Value {
    serde_json::from_str(&read(DASHBOARD)).expect("JSON")
}

/// The queries of the dashboard, with the titles of their panels.
pub fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let mut queries = Vec::new();
    for panel in panels(dashboard) {
        let title = panel["title"].as_str().expect("a title");
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().expect("an expression");
            queries.push((title.to_owned(), expression.to_owned()));
        }
    }
    for variable in dashboard["templating"]["list"].as_array().expect("variables") {
        let definition = variable["definition"].as_str().and_then(|text| text.strip_prefix("label_values("));
        if let Some((series, _)) = definition.and_then(|text| text.rsplit_once(", ")) {
            queries.push((variable["name"].as_str().expect("a name").to_owned(), series.to_owned()));
        }
    }
    queries
}

pub fn panels(dashboard: &Value) -> &Vec<Value> {
    dashboard["panels"].as_array().expect("panels")
}

fn read(path: &str) -> String {
    fs::read_to_string(checkout().join(path)).unwrap_or_else(|error| panic!("read {path}: {error}"))
}
