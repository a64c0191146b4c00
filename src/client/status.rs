//! The table of `powa-collector status`.

use jiff::Timestamp;

use super::table::laid_out;
use crate::postgres::text::one_line;
use crate::report::Detail;

const COLUMNS: [&str; 10] =
    ["ID", "SERVER", "STATE", "LAST SNAPSHOT", "TOOK", "ROWS", "BYTES", "NEXT DUE", "BACKLOG", "LAST ERROR"];
/// Of so many servers at most, it is said what is left out.
const NOTES_OF: usize = 10;
/// The columns of numbers, which end at the same place.
const NUMBERS: [usize; 4] = [0, 4, 5, 6];

/// A table of servers, those with a problem first. `width`: of the terminal, in characters.
pub fn table(details: &[Detail], now: Timestamp, width: Option<u16>) -> String {
    let mut details: Vec<&Detail> = details.iter().collect();
    details.sort_by_key(|detail| (detail.is_well(), detail.srvid));
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    rows.extend(details.iter().map(|detail| row(detail, now)));
    let lines = laid_out(&rows, &NUMBERS, width);
    let bad = details.iter().filter(|detail| !detail.is_well()).count();
    let servers = if details.len() == 1 { "server" } else { "servers" };
    format!("{lines}{}{} {servers}, {bad} with a problem\n", notes(&details), details.len())
}

/// What is left out, of servers that are few enough to be looked at one by one.
fn notes(details: &[&Detail]) -> String {
    let shown = if details.len() > NOTES_OF { &[] } else { details };
    let notes = shown.iter().flat_map(|detail| {
        let name = one_line(detail.alias.as_ref().unwrap_or(&detail.server));
        detail.report.way.skipped.iter().map(move |skipped| format!("note: {name}: {}\n", one_line(skipped)))
    });
    notes.collect()
}

fn row(detail: &Detail, now: Timestamp) -> [String; 10] {
    let none = || "-".to_owned();
    let name = detail.alias.as_ref().unwrap_or(&detail.server);
    let last = detail.report.last_snapshot.as_ref();
    let of_last = |text: &dyn Fn(&crate::report::LastSnapshot) -> String| last.map_or_else(none, text);
    let ago = |time: Timestamp| format!("{} ago", span(seconds(now, time)));
    let due = detail.report.next_due.map_or_else(none, |due| match seconds(due, now) {
        wait if wait > 0 => format!("in {}", span(wait)),
        wait => format!("{} late", span(-wait)),
    });
    let backlog = match detail.backlog.snapshots {
        0 => none(),
        waiting => format!("{waiting} ({})", bytes(detail.backlog.bytes)),
    };
    let error = detail.present_error();
    [
        detail.srvid.to_string(),
        one_line(name),
        match detail.report.way.borrowed {
            Some(_) => format!("{}, without PoWA", one_line(&detail.state)),
            None => one_line(&detail.state),
        },
        of_last(&|last| ago(last.time)),
        of_last(&|last| format!("{:.1} s", last.seconds())),
        of_last(&|last| last.rows.to_string()),
        of_last(&|last| bytes(last.bytes)),
        due,
        backlog,
        error.map_or_else(none, |error| format!("{}: {}", ago(error.time), one_line(&error.message))),
    ]
}

/// From `earlier` to `later`, in seconds.
fn seconds(later: Timestamp, earlier: Timestamp) -> i64 {
    later.as_second() - earlier.as_second()
}

/// A span of time in its largest unit that leaves two digits.
fn span(seconds: i64) -> String {
    match seconds.max(0) {
        seconds @ 0..100 => format!("{seconds} s"),
        seconds @ 100..6_000 => format!("{} min", seconds / 60),
        seconds @ 6_000..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

#[allow(clippy::cast_precision_loss, reason = "two digits are shown")]
fn bytes(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// A text that takes the place of what the terminal shows.
pub fn in_place(text: &str) -> String {
    const HOME: &str = "\x1b[H";
    const REST_OF_LINE: &str = "\x1b[K";
    const REST_OF_SCREEN: &str = "\x1b[J";
    format!("{HOME}{}{REST_OF_SCREEN}", text.replace('\n', &format!("{REST_OF_LINE}\n")))
}

#[cfg(test)]
mod tests {
    use unicode_width::UnicodeWidthStr;

    use super::*;
    use crate::report::{LastError, LastSnapshot, Report, Waiting, Way};
    use crate::worker::State;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn details() -> [Detail; 2] {
        let well = Detail {
            srvid: 1,
            server: "db1:5432".to_owned(),
            alias: None,
            state: "running".to_owned(),
            frequency: 300,
            report: Report {
                snapshots: 7,
                failures: 1,
                last_snapshot: Some(LastSnapshot {
                    time: at(1_000),
                    fetch_seconds: 1.0,
                    wait_seconds: 0.25,
                    store_seconds: 2.0,
                    rows: 16_049,
                    bytes: 1_967_190,
                    errors: 0,
                }),
                next_due: Some(at(1_300)),
                last_error: Some(LastError { time: at(900), message: "is over".to_owned() }),
                way: Way::default(),
            },
            backlog: Waiting::default(),
        };
        let ill = Detail {
            srvid: 2,
            alias: Some("main\x1b[31m".to_owned()),
            state: State::NoRemote.to_string(),
            report: Report {
                last_error: Some(LastError { time: at(1_050), message: "no\nconnection".to_owned() }),
                next_due: Some(at(1_000)),
                ..Report::default()
            },
            backlog: Waiting { snapshots: 3, bytes: 12_345 },
            ..well.clone()
        };
        [well, ill]
    }

    #[test]
    fn problems_come_first_and_nothing_steers_the_terminal() {
        insta::assert_snapshot!(table(&details(), at(1_060), None));
    }

    #[test]
    fn the_last_column_is_folded_where_it_does_not_fit() {
        let mut details = details();
        let message =
            "a reason of many words, and aWordThatIsLongerThanAllTheRoomThatThereIsForIt".to_owned();
        details[1].report.last_error.as_mut().unwrap().message = message;
        let text = table(&details, at(1_060), Some(136));
        assert!(text.lines().all(|line| line.width() <= 136), "{text}");
        assert!(text.lines().count() > 4, "{text}");
        let bare = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
        assert!(bare(&text).contains(&bare("reason of many words, and aWord")), "{text}");
        // Where hardly anything is left for it, the terminal itself folds the line.
        assert_eq!(table(&details, at(1_060), Some(90)), table(&details, at(1_060), None));
    }

    #[test]
    fn what_is_left_out_is_said_of_a_few_servers() {
        let [mut well, _] = details();
        well.report.way.borrowed = Some("the server has no PoWA".to_owned());
        well.report.way.skipped = vec!["a is left out:\nit is not there".to_owned()];
        let text = table(std::slice::from_ref(&well), at(1_060), None);
        assert!(text.contains(" running, without PoWA "), "{text}");
        assert!(
            text.ends_with("\nnote: db1:5432: a is left out: it is not there\n1 server, 0 with a problem\n"),
            "{text}"
        );
        assert!(!table(&vec![well; NOTES_OF + 1], at(1_060), None).contains("note: "));
    }

    #[test]
    fn an_error_is_present_until_a_snapshot_has_come_after_it() {
        let [well, ill] = details();
        assert!(well.is_well());
        assert!(!ill.is_well());
        let mut met = well.clone();
        met.report.last_error.as_mut().unwrap().time = at(1_000);
        assert!(!met.is_well());
        assert!(!Detail { state: State::Stopped.to_string(), ..well }.is_well());
    }

    #[test]
    fn spans_and_bytes_have_a_unit() {
        let spans = [-5, 0, 99, 100, 5_999, 6_000, 172_799, 172_800].map(span);
        assert_eq!(spans, ["0 s", "0 s", "99 s", "1 min", "99 min", "1 h", "47 h", "2 d"]);
        let sizes = [999, 1_000, 999_949, 2_500_000, 3_000_000_000].map(bytes);
        assert_eq!(sizes, ["999 B", "1.0 kB", "999.9 kB", "2.5 MB", "3.0 GB"]);
    }
}
