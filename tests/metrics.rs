//! The list of metrics that documents, alert rules and dashboard are tested against is that of a collector at work.

mod fleet;
mod markdown;
mod monitoring;
mod support;

use std::collections::{BTreeMap, BTreeSet};

use fleet::Fleet;
use monitoring::{KINDS, METRICS, PHASES, states};
use serde_json::json;
use support::{Powa, http, on_both_versions};

/// What the log says before the address.
const SERVES: &str = "http: serves pages at http://";

on_both_versions! {
    async fn a_collector_offers_the_metrics_that_are_documented_and_no_others(powa: Powa) {
        let mut fleet = Fleet::with(powa, json!({ "http": { "listen": "127.0.0.1:0" } })).await;
        let line = fleet.collector.wait_for_log(SERVES).await;
        let address = line.split_once(SERVES).unwrap().1.trim_end_matches('/').to_owned();
        // Before its first snapshot, a server has no time of the last one.
        fleet.force(1).await;
        fleet.collector.wait_for_log("snapshot: ").await;
        let page = http::get(&address, "/metrics", &[]).await.unwrap().body;

        let (offered, labels) = (types(&page), labels(&page));
        let listed: BTreeMap<&str, &str> =
            METRICS.iter().map(|metric| (metric.name, metric.kind.name())).collect();
        assert_eq!(offered, listed);
        for metric in METRICS {
            let of_server = if metric.is_of_server() { &["srvid", "server"][..] } else { &[] };
            let expected: BTreeSet<&str> = of_server.iter().chain(metric.labels).copied().collect();
            assert_eq!(labels[metric.name].keys().copied().collect::<BTreeSet<_>>(), expected, "{}", metric.name);
        }
        let values = |metric: &str, label: &str| labels[metric][label].clone();
        assert_eq!(values("powa_collector_server_failures_total", "kind"), BTreeSet::from(KINDS));
        assert_eq!(values("powa_collector_server_phase_seconds", "phase"), BTreeSet::from(PHASES));
        let states = states();
        let states: BTreeSet<&str> = states.iter().map(String::as_str).collect();
        assert_eq!(values("powa_collector_server_state", "state"), states);
        fleet.collector.stop().await;
    }
}

/// The type of each metric.
fn types(page: &str) -> BTreeMap<&str, &str> {
    page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect()
}

/// The labels of each metric, and the values of each. A histogram's `le` is left out.
fn labels(page: &str) -> BTreeMap<&str, BTreeMap<&str, BTreeSet<&str>>> {
    let names = types(page);
    let mut labels: BTreeMap<&str, BTreeMap<&str, BTreeSet<&str>>> = BTreeMap::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let series = line.split(['{', ' ']).next().expect("a name");
        let whole = ["_bucket", "_sum", "_count"].iter().find_map(|part| series.strip_suffix(part));
        let name = whole.filter(|name| names.get(name) == Some(&"histogram")).unwrap_or(series);
        let of_metric = labels.entry(name).or_default();
        let pairs =
            line.split_once('{').and_then(|(_, rest)| Some(rest.rsplit_once('}')?.0)).unwrap_or_default();
        for (label, value) in pairs.split(',').filter_map(|pair| pair.split_once('=')) {
            if label != "le" {
                of_metric.entry(label).or_default().insert(value.trim_matches('"'));
            }
        }
    }
    labels
}
