//! The log: a line an event on standard error, whatever the event holds.
//!
//! As text it has time, level and, for what concerns one server, its name; as JSON it is an object with these as
//! fields. Where standard error is the journal, text has the prefixes of sd-daemon(3) in place of the time, so that the
//! journal knows each line's priority. Its own protocol could do no more for us, and what is said while the journal is
//! away would be lost; standard error is kept by systemd.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal, Write as _};
use std::panic;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::stat::fstat;
use serde::Serializer;
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{Full, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, reload};

use crate::config::log::{Directives, Format, LogOptions};

/// The log's switches.
#[derive(Clone)]
pub struct Log {
    filter: reload::Handle<Targets, Registry>,
    lines: Lines,
}

impl Log {
    pub fn set(&self, options: &LogOptions) {
        self.lines.is_json.store(options.format == Format::Json, Ordering::Relaxed);
        // Fails only when the subscriber is gone, and then nobody reads the log.
        let _ = self.filter.reload(options.level.filter());
    }

    /// Says why the program ends, whatever the level.
    pub fn tell_end(&self, reason: &str) {
        self.lines.say(&format!("powa-collector: {reason}"));
    }
}

/// Starts the log, with the defaults. Call once, first of all.
pub fn start() -> Log {
    let is_journal = std::env::var("JOURNAL_STREAM").is_ok_and(|stream| is_stderr(&stream));
    let lines = Lines::new(is_journal, io::stderr().is_terminal());
    let (log, subscriber) = subscriber(lines, io::stderr);
    subscriber.init();
    let (lines, default) = (log.lines.clone(), panic::take_hook());
    panic::set_hook(Box::new(
        move |fault| {
            if lines.is_plain() { default(fault) } else { lines.say(&told_fault(fault)) }
        },
    ));
    log
}

/// The time as the log writes it, to the second.
pub fn now() -> String {
    let mut now = time();
    if let Some(point) = now.find('.') {
        now.replace_range(point..now.len() - 1, "");
    }
    now
}

/// RFC 3339, in UTC.
fn time() -> String {
    let mut time = String::new();
    // Writing to a string does not fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut time));
    time
}

fn subscriber<W>(lines: Lines, writer: W) -> (Log, impl Subscriber + for<'a> LookupSpan<'a> + Send + Sync)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(Directives::unsaid(false).filter());
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(lines.is_coloured)
        // That nobody reads the log any more must not end who writes to it.
        .log_internal_errors(false)
        .event_format(lines.clone());
    (Log { filter: handle, lines }, tracing_subscriber::registry().with(filter).with(SpanFields).with(layer))
}

/// What standard error is, in the words of systemd: `DEVICE:INODE`.
fn is_stderr(stream: &str) -> bool {
    let Some((device, inode)) = stream.split_once(':') else { return false };
    let (Ok(device), Ok(inode)) = (device.parse(), inode.parse()) else { return false };
    fstat(io::stderr()).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (device, inode))
}

fn told_fault(fault: &panic::PanicHookInfo<'_>) -> String {
    let backtrace = Backtrace::capture();
    match backtrace.status() {
        BacktraceStatus::Captured => format!("a fault of the collector: {fault}\n{backtrace}"),
        _ => format!("a fault of the collector: {fault}"),
    }
}

/// What lines look like.
#[derive(Clone)]
struct Lines {
    is_json: Arc<AtomicBool>,
    is_journal: bool,
    is_coloured: bool,
}

impl Lines {
    fn new(is_journal: bool, is_coloured: bool) -> Self {
        Self { is_json: Arc::default(), is_journal, is_coloured }
    }

    fn is_json(&self) -> bool {
        self.is_json.load(Ordering::Relaxed)
    }

    /// Whether nobody reads lines as something else than lines.
    fn is_plain(&self) -> bool {
        !self.is_json() && !self.is_journal
    }

    /// Writes an error past the log's levels.
    fn say(&self, what: &str) {
        // Perhaps nobody reads it any more.
        let _ = writeln!(io::stderr(), "{}", self.error(what));
    }

    fn error(&self, what: &str) -> String {
        if self.is_json() {
            object(Level::ERROR, vec![("message", what.into())])
        } else if self.is_journal {
            format!("{}{}", priority(Level::ERROR), OneLine(what))
        } else {
            what.to_owned()
        }
    }
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if self.is_json() {
            return writeln!(writer, "{}", object(*event.metadata().level(), fields(context, event)));
        }
        let text = tracing_subscriber::fmt::format().with_target(false).with_ansi(self.is_coloured);
        let mut line = String::new();
        if self.is_journal {
            write_text(&text.without_time(), context, &mut line, event)?;
            writer.write_str(priority(*event.metadata().level()))?;
        } else {
            write_text(&text, context, &mut line, event)?;
        }
        writeln!(writer, "{}", OneLine(line.trim()))
    }
}

fn write_text<S, N, T>(
    text: &tracing_subscriber::fmt::format::Format<Full, T>,
    context: &FmtContext<'_, S, N>,
    line: &mut String,
    event: &Event<'_>,
) -> fmt::Result
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    T: FormatTime,
{
    text.format_event(context, Writer::new(line), event)
}

/// What the journal calls a level: sd-daemon(3).
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        _ => "<7>",
    }
}

/// A text with what would end a line written as an escape.
struct OneLine<'a>(&'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '\n' => f.write_str("\\n"),
            '\r' => f.write_str("\\r"),
            '\0' => f.write_str("\\0"),
            c => f.write_char(c),
        })
    }
}

type Fields = Vec<(&'static str, Value)>;

/// A line of JSON: time, level, and then what is given, in this order.
fn object(level: Level, fields: Fields) -> String {
    let head = [("time", Value::from(time())), ("level", level.as_str().into())];
    let mut line = Vec::new();
    // Neither such keys nor such values can be refused.
    let _ = serde_json::Serializer::new(&mut line).collect_map(head.into_iter().chain(fields));
    String::from_utf8_lossy(&line).into_owned()
}

/// An event's fields, its message first, and after them those of the spans that it is in.
fn fields<S, N>(context: &FmtContext<'_, S, N>, event: &Event<'_>) -> Fields
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    let mut own = Collect::default();
    event.record(&mut own);
    let mut fields = vec![("message", own.message.unwrap_or_default().into())];
    let mut add = |more: &Fields| {
        for (name, value) in more {
            if !["time", "level"].contains(name) && fields.iter().all(|(known, _)| known != name) {
                fields.push((name, value.clone()));
            }
        }
    };
    for span in context.event_scope().into_iter().flatten() {
        if let Some(of_span) = span.extensions().get::<Fields>() {
            add(of_span);
        }
    }
    add(&own.fields);
    fields
}

/// Keeps the fields of spans as values; as text they are kept already.
struct SpanFields;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for SpanFields {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut collect = Collect::default();
        attributes.record(&mut collect);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(collect.fields);
        }
    }
}

#[derive(Default)]
struct Collect {
    message: Option<String>,
    fields: Fields,
}

impl Collect {
    fn add(&mut self, field: &Field, value: Value) {
        // What the `log` crate's events are given on their way says nothing more.
        if !field.name().starts_with("log.") {
            self.fields.push((field.name(), value));
        }
    }
}

impl Visit for Collect {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" { self.message = Some(text) } else { self.add(field, text.into()) }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message = Some(value.to_owned());
        } else {
            self.add(field, value.into());
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value.into());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// What is logged by `work` with these options.
    fn logged(lines: Lines, options: &LogOptions, work: impl FnOnce()) -> Vec<String> {
        let written = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&written);
        let (log, subscriber) = subscriber(lines, move || Sink(Arc::clone(&sink)));
        tracing::subscriber::with_default(subscriber, || {
            log.set(options);
            work();
        });
        let written = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        written.lines().map(str::to_owned).collect()
    }

    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn options(format: Format, level: &str) -> LogOptions {
        LogOptions { format, level: level.parse().unwrap() }
    }

    fn json(line: &str) -> serde_json::Map<String, Value> {
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    #[test]
    fn an_object_has_the_fields_of_its_event_and_of_the_spans_around_it() {
        let lines = logged(Lines::new(true, true), &options(Format::Json, "info"), || {
            let _worker = tracing::error_span!("worker", server = "a \"b\"", srvid = 7).entered();
            tracing::warn!(rows = 3_u64, "two\nlines\u{1b}[31m");
        });
        let [line] = &lines[..] else { panic!("{lines:?}") };
        assert!(line.starts_with(r#"{"time":"2"#) && !line.contains('\u{1b}'), "{line}");
        let mut object = json(line);
        let time = object.remove("time").unwrap();
        assert_eq!(time.as_str().unwrap().len(), "2026-11-21T01:02:14.950060Z".len());
        let expected = serde_json::json!({
            "level": "WARN", "message": "two\nlines\u{1b}[31m", "server": "a \"b\"", "srvid": 7, "rows": 3
        });
        assert_eq!(Value::Object(object), expected);
    }

    #[test]
    fn each_level_has_the_journals_priority_and_stays_in_its_line() {
        let lines = logged(Lines::new(true, false), &options(Format::Text, "trace"), || {
            let _worker = tracing::error_span!("worker", server = "a\nb").entered();
            tracing::error!("one\r\ntwo\0");
            tracing::warn!("w");
            tracing::info!("i");
            tracing::debug!("d");
            tracing::trace!("t");
        });
        let heads = ["<3>ERROR", "<4>WARN", "<6>INFO", "<7>DEBUG", "<7>TRACE"];
        let told = [r"one\r\ntwo\0", "w", "i", "d", "t"];
        let expected =
            heads.iter().zip(told).map(|(head, told)| format!(r#"{head} worker{{server="a\nb"}}: {told}"#));
        assert_eq!(lines, expected.collect::<Vec<_>>());
    }

    #[test]
    fn text_has_the_time_and_stays_in_its_line() {
        let lines = logged(Lines::new(false, false), &options(Format::Text, "info"), || {
            tracing::info!("one\ntwo");
            tracing::debug!("hidden");
        });
        let [line] = &lines[..] else { panic!("{lines:?}") };
        assert!(line.starts_with("2") && line.ends_with(r"Z  INFO one\ntwo"), "{line}");
        let colours = logged(Lines::new(false, true), &options(Format::Text, "info"), || tracing::info!("x"));
        assert!(colours[0].contains("\u{1b}["), "{colours:?}");
    }

    #[test]
    fn a_fault_is_a_line_where_lines_are_counted() {
        let told = Arc::new(Mutex::new(String::new()));
        let (hook, sink) = (panic::take_hook(), Arc::clone(&told));
        panic::set_hook(Box::new(move |fault| *sink.lock().unwrap() = told_fault(fault)));
        assert!(panic::catch_unwind(|| panic!("one\ntwo")).is_err());
        panic::set_hook(hook);
        let told = told.lock().unwrap();
        let lines = Lines::new(true, false);
        let line = lines.error(&told);
        let head = "<3>a fault of the collector: panicked at src/telemetry.rs:";
        assert!(line.starts_with(head) && line.contains(r"one\ntwo") && !line.contains('\n'), "{line}");
        lines.is_json.store(true, Ordering::Relaxed);
        let object = json(&lines.error(&told));
        assert!(object["level"] == "ERROR" && object["message"] == **told, "{object:?}");
        assert!(!lines.is_plain() && Lines::new(false, false).is_plain());
    }

    #[test]
    fn the_time_is_given_to_the_second() {
        let now = now();
        assert!(now.len() == "2026-11-21T01:02:14Z".len() && now.ends_with('Z'), "{now}");
    }

    #[test]
    fn only_the_stream_that_standard_error_is_makes_it_the_journal() {
        let stat = fstat(io::stderr()).unwrap();
        assert!(is_stderr(&format!("{}:{}", stat.st_dev, stat.st_ino)));
        for other in
            [format!("{}:{}", stat.st_dev, stat.st_ino + 1), format!("{}:{}", stat.st_dev + 1, stat.st_ino)]
        {
            assert!(!is_stderr(&other));
        }
        assert!(!is_stderr("") && !is_stderr("8") && !is_stderr("a:b"));
    }
}
