//! `/metrics`: an [`Overview`] and the process as metrics, in Prometheus' text format or, for who asks for it, in
//! OpenMetrics 1.0.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, MetricEncoder, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use crate::figures::{Failure, Figures, Histogram};
use crate::overview::{Overview, Seen};
use crate::worker::State;

/// How metrics are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' own, version 0.0.4.
    Prometheus,
    OpenMetrics,
}

impl Format {
    /// What a client takes, by the values of its `Accept`.
    pub fn accepted<'a>(mut accept: impl Iterator<Item = &'a str>) -> Self {
        if accept.any(|value| value.contains("application/openmetrics-text")) {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// All metrics.
pub fn text(overview: Overview, format: Format) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Collected(overview)));
    let mut text = String::new();
    encode(&mut text, &registry).expect("memory takes anything");
    match format {
        Format::OpenMetrics => text,
        Format::Prometheus => prometheus(&text),
    }
}

/// OpenMetrics calls a counter by its name without the `_total` that its values have, knows units, and has an end.
fn prometheus(text: &str) -> String {
    let counters: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("UNIT" | "EOF"), ..) => {}
            (Some("#"), Some(about), Some(name), Some(rest)) if counters.contains(name) => {
                writeln!(out, "# {about} {name}_total {rest}").expect("memory takes anything");
            }
            _ => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
    out
}

#[derive(Debug)]
struct Collected(Overview);

/// The labels of one value.
type Labels<'a> = Vec<(&'static str, &'a str)>;

/// One metric, whose values are to be written.
struct Family<'a, 'e> {
    name: &'a str,
    help: &'a str,
    unit: Option<Unit>,
    encoder: &'a mut DescriptorEncoder<'e>,
}

impl Family<'_, '_> {
    fn with(self, kind: MetricType, write: impl FnOnce(&mut MetricEncoder) -> fmt::Result) -> fmt::Result {
        let Self { name, help, unit, encoder } = self;
        write(&mut encoder.encode_descriptor(name, help, unit.as_ref(), kind)?)
    }

    fn gauges<'v, T: EncodeGaugeValue>(self, values: impl Iterator<Item = (Labels<'v>, T)>) -> fmt::Result {
        self.with(MetricType::Gauge, |family| {
            for (labels, value) in values {
                family.encode_family(&labels)?.encode_gauge(&value)?;
            }
            Ok(())
        })
    }

    fn counters<'v>(self, values: impl Iterator<Item = (Labels<'v>, u64)>) -> fmt::Result {
        self.with(MetricType::Counter, |family| {
            for (labels, value) in values {
                family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(&value, None)?;
            }
            Ok(())
        })
    }

    fn gauge<T: EncodeGaugeValue>(self, value: T) -> fmt::Result {
        self.with(MetricType::Gauge, |family| family.encode_gauge(&value))
    }

    fn counter<T: EncodeCounterValue>(self, value: T) -> fmt::Result {
        self.with(MetricType::Counter, |family| family.encode_counter::<NoLabelSet, _, f64>(&value, None))
    }
}

fn family<'a, 'e>(
    encoder: &'a mut DescriptorEncoder<'e>,
    name: &'a str,
    help: &'a str,
    unit: Option<Unit>,
) -> Family<'a, 'e> {
    Family { name, help, unit, encoder }
}

impl prometheus_client::collector::Collector for Collected {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        collector(&self.0, &mut encoder)?;
        servers(&self.0.servers, &mut encoder)?;
        process(&self.0, &mut encoder)
    }
}

/// The collector as a whole.
fn collector(overview: &Overview, encoder: &mut DescriptorEncoder) -> fmt::Result {
    family(encoder, "powa_collector_build_info", "The program's version.", None)
        .gauges([(vec![("version", overview.version)], 1)].into_iter())?;
    family(
        encoder,
        "powa_collector_repository_listening",
        "Whether it is connected to the repository and listening for control messages.",
        None,
    )
    .gauge(i64::from(overview.listening))?;
    family(
        encoder,
        "powa_collector_reload_failed",
        "Whether the configuration or powa_servers could not be read the last time.",
        None,
    )
    .gauge(i64::from(overview.problem.is_some()))?;
    family(
        encoder,
        "powa_collector_spool_usable",
        "Whether snapshots can wait on disk for the repository.",
        None,
    )
    .gauge(i64::from(overview.spool.usable))?;
    family(
        encoder,
        "powa_collector_spool_max",
        "What all snapshots that wait may have, spool.max_bytes.",
        Some(Unit::Bytes),
    )
    .gauge(overview.spool.max_bytes)
}

/// Each server.
fn servers(servers: &[Seen], encoder: &mut DescriptorEncoder) -> fmt::Result {
    let ids: Vec<String> = servers.iter().map(|seen| seen.detail.srvid.to_string()).collect();
    let all = || servers.iter().zip(ids.iter().map(String::as_str));
    let states = State::ALL.map(|state| state.to_string());
    family(
        encoder,
        "powa_collector_server_state",
        "1 for the state that the server's worker is in, as WORKERS_STATUS calls it.",
        None,
    )
    .gauges(all().flat_map(|(seen, id)| {
        states.iter().map(move |state| {
            let labels = of_server(id, seen, Some(("state", state.as_str())));
            (labels, i64::from(*state == seen.detail.state))
        })
    }))?;
    family(encoder, "powa_collector_server_period", "From one snapshot to the next.", Some(Unit::Seconds))
        .gauges(all().map(|(seen, id)| (of_server(id, seen, None), seen.detail.frequency)))?;
    family(
        encoder,
        "powa_collector_server_lag",
        "How long the next snapshot has been due, 0 while it is not.",
        Some(Unit::Seconds),
    )
    .gauges(all().map(|(seen, id)| (of_server(id, seen, None), seen.lag_seconds)))?;
    family(
        encoder,
        "powa_collector_server_last_snapshot_timestamp",
        "When the last snapshot was stored, since the epoch.",
        Some(Unit::Seconds),
    )
    .gauges(all().filter_map(|(seen, id)| {
        let last = seen.detail.report.last_snapshot.as_ref()?;
        Some((of_server(id, seen, None), last.time.as_duration().as_secs_f64()))
    }))?;
    family(encoder, "powa_collector_server_snapshots", "Snapshots that were stored.", None)
        .counters(all().map(|(seen, id)| (of_server(id, seen, None), seen.detail.report.snapshots)))?;
    family(encoder, "powa_collector_server_failures", "What has failed, by kind.", None).counters(
        all().flat_map(|(seen, id)| {
            Failure::ALL
                .map(|kind| (of_server(id, seen, Some(("kind", kind.word()))), seen.figures.failures(kind)))
        }),
    )?;
    family(encoder, "powa_collector_server_rows", "Rows that were stored.", None)
        .counters(all().map(|(seen, id)| (of_server(id, seen, None), seen.figures.rows)))?;
    family(encoder, "powa_collector_server", "Bytes of rows that were stored, as text.", Some(Unit::Bytes))
        .counters(all().map(|(seen, id)| (of_server(id, seen, None), seen.figures.bytes)))?;
    family(
        encoder,
        "powa_collector_server_backlog_snapshots",
        "Snapshots that wait on disk for the repository.",
        None,
    )
    .gauges(all().map(|(seen, id)| (of_server(id, seen, None), seen.detail.backlog.snapshots)))?;
    family(
        encoder,
        "powa_collector_server_backlog",
        "What snapshots that wait have on disk.",
        Some(Unit::Bytes),
    )
    .gauges(all().map(|(seen, id)| (of_server(id, seen, None), seen.detail.backlog.bytes)))?;
    family(encoder, "powa_collector_server_phase", "How long snapshots took, by phase.", Some(Unit::Seconds))
        .with(MetricType::Histogram, |family| {
            for (seen, id) in all() {
                for (phase, histogram) in phases(&seen.figures) {
                    let labels = of_server(id, seen, Some(("phase", phase)));
                    family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(
                        histogram.sum(),
                        histogram.count(),
                        &histogram.classes(),
                        None,
                    )?;
                }
            }
            Ok(())
        })
}

fn of_server<'a>(id: &'a str, seen: &'a Seen, more: Option<(&'static str, &'a str)>) -> Labels<'a> {
    [("srvid", id), ("server", seen.name.as_str())].into_iter().chain(more).collect()
}

fn phases(figures: &Figures) -> [(&'static str, &Histogram); 3] {
    [("fetch", &figures.fetch), ("wait", &figures.wait), ("store", &figures.store)]
}

/// The process, by the names that Prometheus' own libraries give. What cannot be read is left out.
fn process(overview: &Overview, encoder: &mut DescriptorEncoder) -> fmt::Result {
    family(encoder, "process_start_time", "When it started, since the epoch.", Some(Unit::Seconds))
        .gauge(overview.started.as_duration().as_secs_f64())?;
    let Ok(process) = procfs::process::Process::myself() else { return Ok(()) };
    if let Ok(stat) = process.stat() {
        #[allow(clippy::cast_precision_loss, reason = "a sum of seconds")]
        let seconds = |ticks: u64| ticks as f64 / procfs::ticks_per_second() as f64;
        family(encoder, "process_cpu", "User and system time.", Some(Unit::Seconds))
            .counter(seconds(stat.utime + stat.stime))?;
        family(encoder, "process_resident_memory", "What is in memory.", Some(Unit::Bytes))
            .gauge(stat.rss * procfs::page_size())?;
        family(encoder, "process_threads", "Threads.", None).gauge(stat.num_threads)?;
    }
    if let Ok(open) = process.fd_count() {
        family(encoder, "process_open_fds", "Files and connections that are open.", None).gauge(open)?;
    }
    if let Ok((most, _)) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE) {
        family(encoder, "process_max_fds", "How many may be.", None).gauge(most)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;

    use super::*;
    use crate::figures::Phases;
    use crate::overview::Spool;
    use crate::report::{Detail, LastSnapshot, Report, Waiting};

    fn overview() -> Overview {
        let last = LastSnapshot {
            time: Timestamp::from_second(1_000).unwrap(),
            fetch_seconds: 0.1,
            wait_seconds: 0.0,
            store_seconds: 2.0,
            rows: 3,
            bytes: 20,
            errors: 0,
        };
        let mut figures = Figures::default();
        figures.stored(Phases { fetch: 0.1, wait: 0.0, store: 2.0 }, 3, 20);
        figures.failed(Failure::Connect, 2);
        let detail = Detail {
            srvid: 7,
            server: "db1:5432".to_owned(),
            alias: Some("a \"b\" \\ c".to_owned()),
            state: State::NoRemote.to_string(),
            frequency: 300,
            report: Report {
                snapshots: 1,
                failures: 2,
                last_snapshot: Some(last),
                next_due: Some(Timestamp::from_second(1_300).unwrap()),
                last_error: None,
                ..Report::default()
            },
            backlog: Waiting { snapshots: 2, bytes: 99 },
        };
        let now = Timestamp::from_second(1_310).unwrap();
        let name = detail.alias.clone().unwrap();
        let never = Detail { srvid: 8, report: Report::default(), ..detail.clone() };
        Overview {
            version: "2.0.0",
            time: now,
            started: now.checked_sub(Duration::from_secs(60)).unwrap(),
            repository: "db:5432/powa".to_owned(),
            listening: true,
            stopping: false,
            problem: None,
            spool: Spool { max_bytes: 1 << 28, usable: true },
            servers: vec![
                Seen::new(name, detail, figures, now),
                Seen::new("db2".to_owned(), never, Figures::default(), now),
            ],
        }
    }

    fn value(text: &str, series: &str) -> Option<f64> {
        text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
    }

    #[test]
    #[allow(clippy::float_cmp, reason = "what was put in")]
    fn each_value_is_there_in_both_formats() {
        let one = r#"srvid="7",server="a \"b\" \\ c""#;
        for format in [Format::Prometheus, Format::OpenMetrics] {
            let text = text(overview(), format);
            let of = |name: &str, more: &str| value(&text, &format!("powa_collector_{name}{{{one}{more}}}"));
            assert_eq!(value(&text, r#"powa_collector_build_info{version="2.0.0"}"#), Some(1.0), "{text}");
            assert_eq!(value(&text, "powa_collector_repository_listening"), Some(1.0));
            assert_eq!(value(&text, "powa_collector_spool_max_bytes"), Some(f64::from(1 << 28)));
            assert_eq!(of("server_lag_seconds", ""), Some(10.0), "{text}");
            assert_eq!(of("server_period_seconds", ""), Some(300.0));
            assert_eq!(of("server_last_snapshot_timestamp_seconds", ""), Some(1_000.0));
            assert_eq!(of("server_state", r#",state="no connection to remote server""#), Some(1.0));
            assert_eq!(of("server_state", r#",state="running""#), Some(0.0));
            assert_eq!(of("server_snapshots_total", ""), Some(1.0));
            assert_eq!(of("server_failures_total", r#",kind="connect""#), Some(2.0));
            assert_eq!(of("server_rows_total", ""), Some(3.0));
            assert_eq!(of("server_bytes_total", ""), Some(20.0));
            assert_eq!(of("server_backlog_snapshots", ""), Some(2.0));
            assert_eq!(of("server_backlog_bytes", ""), Some(99.0));
            assert_eq!(of("server_phase_seconds_sum", r#",phase="store""#), Some(2.0));
            let bucket =
                format!(r#"powa_collector_server_phase_seconds_bucket{{le="5.0",{one},phase="store"}}"#);
            assert_eq!(value(&text, &bucket), Some(1.0), "{text}");
            assert!(text.contains(r#"le="+Inf""#));
            // A server that has no snapshot yet has no time of one.
            assert_eq!(text.matches("last_snapshot_timestamp_seconds{").count(), 1);
            assert!(value(&text, "process_cpu_seconds_total").is_some(), "{text}");
            for name in ["resident_memory_bytes", "open_fds", "max_fds", "threads"] {
                assert!(
                    value(&text, &format!("process_{name}")).is_some_and(|value| value > 0.0),
                    "{name}: {text}"
                );
            }
            assert_eq!(value(&text, "process_start_time_seconds"), Some(1_250.0));
        }
    }

    #[test]
    fn the_formats_differ_in_how_they_call_counters_and_end() {
        let open = text(overview(), Format::OpenMetrics);
        assert!(open.ends_with("# EOF\n"));
        assert!(open.contains("# TYPE powa_collector_server_rows counter\n"));
        assert!(open.contains("# UNIT powa_collector_server_lag_seconds seconds\n"));
        let plain = text(overview(), Format::Prometheus);
        assert!(plain.contains("# TYPE powa_collector_server_rows_total counter\n"));
        assert!(plain.contains("# HELP powa_collector_server_rows_total Rows that were stored.\n"));
        assert!(!plain.contains("# EOF") && !plain.contains("# UNIT"));
        assert!(plain.contains("# TYPE powa_collector_server_lag_seconds gauge\n"));
    }

    #[test]
    fn who_asks_for_openmetrics_gets_it() {
        let prometheus =
            "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(Format::accepted([prometheus].into_iter()), Format::OpenMetrics);
        assert_eq!(Format::accepted(["text/plain"].into_iter()), Format::Prometheus);
        assert_eq!(Format::accepted([].into_iter()), Format::Prometheus);
    }
}
