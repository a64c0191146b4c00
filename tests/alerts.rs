//! The alert rules and the dashboard, as Prometheus' own `promtool` reads them.

mod markdown;
mod monitoring;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use markdown::{Document, checkout};
use monitoring::{ALERTS, ALERTS_TEST, alerts, dashboard, panels, queries};
use serde_json::json;

#[test]
fn prometheus_takes_the_rules() {
    let told = promtool(&["check", "rules", ALERTS]);
    assert!(told.contains(&format!("SUCCESS: {} rules found", alerts().len())), "{told}");
}

#[test]
fn every_alert_fires_when_it_should_and_not_when_it_should_not() {
    let told = promtool(&["test", "rules", ALERTS_TEST]);
    assert!(told.contains("SUCCESS"), "{told}");
    let tests = fs::read_to_string(checkout().join(ALERTS_TEST)).expect("read the tests");
    let of = |name: &str, ends: &str| {
        tests.split("- alertname: ").skip(1).any(|test| {
            let mut lines = test.lines();
            lines.next() == Some(name) && lines.nth(1).is_some_and(|line| line.trim() == ends)
        })
    };
    for alert in alerts() {
        assert!(of(&alert.name, "exp_alerts:"), "{} is not seen firing", alert.name);
        assert!(of(&alert.name, "exp_alerts: []"), "{} is not seen at rest", alert.name);
    }
}

#[test]
fn every_alert_says_how_bad_it_is_and_where_to_read_what_to_do() {
    let operation = Document::read("docs/operation.md");
    let alerts = alerts();
    for alert in &alerts {
        let name = &alert.name;
        assert_eq!(alert.value("runbook"), Some(&*format!("docs/operation.md#{}", name.to_lowercase())));
        let severity = alert.value("severity").expect(name);
        let word = match severity {
            "critical" => "Critical. ",
            "warning" => "Warning. ",
            other => panic!("{name}: severity {other}"),
        };
        let section = operation.section(name).join(" ");
        assert!(section.trim_start().starts_with(word), "{name}: {section}");
        assert!(alert.value("summary").is_some_and(|summary| summary.contains(['{', ' '])), "{name}");
        assert!(alert.text.contains("          description: >-\n"), "{name}");
    }
    let names: BTreeSet<&str> = alerts.iter().map(|alert| alert.name.as_str()).collect();
    assert_eq!(names.len(), alerts.len(), "a name is there twice");
    for heading in operation.anchors().iter().filter(|anchor| anchor.starts_with("powa")) {
        assert!(names.iter().any(|name| name.to_lowercase() == *heading), "there is no alert {heading}");
    }
}

#[test]
fn prometheus_takes_the_queries_of_the_dashboard() {
    let dashboard = dashboard();
    let rules: Vec<_> = queries(&dashboard)
        .iter()
        .enumerate()
        .map(|(number, (_, query))| {
            // What Grafana puts in.
            let query = query.replace("$__rate_interval", "1m").replace("$window", "30m");
            json!({ "record": format!("dashboard:query_{number}"), "expr": query })
        })
        .collect();
    let count = rules.len();
    assert!(count > 30, "only {count} were found");
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("make a directory");
    let file = directory.path().join("queries.yml");
    // JSON is YAML.
    let groups = json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    fs::write(&file, groups.to_string()).expect("write the rules");
    let told = promtool(&["check", "rules", file.to_str().expect("UTF-8")]);
    assert!(told.contains(&format!("SUCCESS: {count} rules found")), "{told}");
}

#[test]
fn the_dashboard_can_be_imported_anywhere() {
    let dashboard = dashboard();
    assert!(dashboard["id"].is_null(), "Grafana gives it one");
    let variables = dashboard["templating"]["list"].as_array().expect("variables");
    let names: Vec<&str> =
        variables.iter().map(|variable| variable["name"].as_str().expect("a name")).collect();
    assert_eq!(names, ["datasource", "collector", "server", "window"]);
    let (mut ids, mut places) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels(&dashboard) {
        let title = panel["title"].as_str().expect("a title");
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{title}: its id is there twice");
        let side = |name: &str| panel["gridPos"][name].as_u64().expect("a number");
        assert!(side("x") + side("w") <= 24, "{title} is wider than the screen");
        for x in side("x")..side("x") + side("w") {
            for y in side("y")..side("y") + side("h") {
                assert!(places.insert((x, y)), "{title} lies over another one");
            }
        }
        let targets = panel["targets"].as_array().map(Vec::as_slice).unwrap_or_default();
        assert_eq!(panel["type"] == "row", targets.is_empty(), "{title}");
        for target in targets {
            // Nobody else's data source has our id.
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            let query = target["expr"].as_str().expect("an expression");
            for variable in query.split('$').skip(1) {
                let name: String =
                    variable.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                assert!(names.contains(&name.as_str()) || name == "__rate_interval", "{title}: ${name}");
            }
        }
    }
}

/// What it says. Panics when it is not content, or not there: a test that did not run must not look like one that
/// passed.
fn promtool(arguments: &[&str]) -> String {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target/tmp has a parent");
    let program = target.join("prometheus/promtool");
    assert!(program.exists(), "{} is missing: run `make test`, which fetches it", program.display());
    let output =
        Command::new(program).args(arguments).current_dir(checkout()).output().expect("run promtool");
    let told = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&told).into_owned();
    assert!(output.status.success(), "{told}");
    told
}
