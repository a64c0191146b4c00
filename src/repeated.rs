//! Failures that come again with each snapshot: told when they begin, when they have come 10, 100, 1000 … times, and
//! when they are over. Pure: the time is handed in, as the log writes it.

use std::collections::HashSet;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

/// How many kinds of errors are told apart.
const MOST_KINDS: usize = 32;

/// How many characters of an error are kept, to say later that it is over.
const MOST_CHARS: usize = 200;

/// The errors of one sort of work that is done again and again.
#[derive(Debug, Default)]
pub struct Repeated {
    /// Those that have not come for longest are first.
    known: Vec<Known>,
    /// That there were more in one go than are told apart.
    further: Option<Known>,
}

#[derive(Debug)]
struct Known {
    kind: u64,
    /// How it was put when it came first, or the beginning of that.
    text: String,
    since: String,
    times: u64,
}

/// What there is to say of an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// It was not there before.
    New(String),
    /// It has been there so often that it is worth saying again.
    Again { error: String, times: u64, since: String },
    /// It is there as before.
    Same(String),
    /// It did not come any more.
    Over { error: String, times: u64, since: String },
}

impl fmt::Display for News {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::New(error) | Self::Same(error) => f.write_str(error),
            Self::Again { error, times, since } => {
                write!(f, "{error}; the same error again, {times} times since {since}")
            }
            Self::Over { error, times: 1, since } => write!(f, "over: {error} (once, at {since})"),
            Self::Over { error, times, since } => write!(f, "over: {error} ({times} times since {since})"),
        }
    }
}

impl Repeated {
    /// The work was done, and met these errors: all others are over.
    pub fn met(&mut self, errors: &[String], now: &str) -> Vec<News> {
        let kinds: Vec<u64> = errors.iter().map(|error| kind(error)).collect();
        let present: HashSet<u64> = kinds.iter().copied().collect();
        let mut news = Vec::new();
        self.known.retain(|known| {
            let stays = present.contains(&known.kind);
            if !stays {
                news.push(known.over());
            }
            stays
        });
        let mut counted = HashSet::new();
        let mut left_out = 0;
        for (error, kind) in errors.iter().zip(kinds) {
            let is_first = counted.insert(kind);
            let has_room = self.known.len() < MOST_KINDS;
            match self.known.iter_mut().find(|known| known.kind == kind) {
                Some(known) if is_first => news.push(known.again(error)),
                // Two that begin together and differ in a number are perhaps not the same.
                Some(known) if known.times == 1 && known.text != beginning(error) => {
                    news.push(News::New(error.clone()));
                }
                Some(_) => news.push(News::Same(error.clone())),
                None if has_room => {
                    self.known.push(Known::new(kind, error, now));
                    news.push(News::New(error.clone()));
                }
                None => left_out += 1,
            }
        }
        if left_out > 0 {
            let error = format!("{left_out} further errors: see powa_snapshot_metas.errors");
            news.push(match &mut self.further {
                Some(known) => known.again(&error),
                further @ None => {
                    *further = Some(Known::new(kind(&error), &error, now));
                    News::New(error)
                }
            });
        } else if let Some(known) = self.further.take() {
            news.push(known.over());
        }
        news
    }

    /// The work could not be done, for this reason. Of others that were known nothing is said by that.
    pub fn failed(&mut self, error: &str, now: &str) -> News {
        let kind = kind(error);
        let place = self.known.iter().position(|known| known.kind == kind);
        let Some(place) = place else {
            if self.known.len() == MOST_KINDS {
                self.known.remove(0);
            }
            self.known.push(Known::new(kind, error, now));
            return News::New(error.to_owned());
        };
        self.known[place..].rotate_left(1);
        let known = self.known.last_mut().expect("one was found");
        known.again(error)
    }
}

impl Known {
    fn new(kind: u64, error: &str, now: &str) -> Self {
        Self { kind, text: beginning(error), since: now.to_owned(), times: 1 }
    }

    fn again(&mut self, error: &str) -> News {
        self.times = self.times.saturating_add(1);
        let (error, times) = (error.to_owned(), self.times);
        if is_power_of_ten(times) {
            News::Again { error, times, since: self.since.clone() }
        } else {
            News::Same(error)
        }
    }

    fn over(&self) -> News {
        News::Over { error: self.text.clone(), times: self.times, since: self.since.clone() }
    }
}

fn beginning(error: &str) -> String {
    error.chars().take(MOST_CHARS).collect()
}

fn is_power_of_ten(number: u64) -> bool {
    10_u64.checked_pow(number.max(1).ilog10()) == Some(number)
}

/// What an error has in common with those of its kind: everything but numbers that stand by themselves, such as that of a
/// process or a line. One that is part of a name, of an address or of a version makes a difference.
fn kind(error: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    for word in error.split(' ') {
        let bare = word.trim_matches(|c| "(),;.".contains(c));
        if !bare.is_empty() && bare.bytes().all(|byte| byte.is_ascii_digit()) {
            "#".hash(&mut hasher);
        } else {
            word.hash(&mut hasher);
        }
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(errors: &[&str]) -> Vec<String> {
        errors.iter().map(|error| (*error).to_owned()).collect()
    }

    /// What is worth a line, of these errors that are met together.
    fn told(repeated: &mut Repeated, errors: &[&str], now: &str) -> Vec<String> {
        let news = repeated.met(&texts(errors), now);
        let is_told = |news: &&News| !matches!(news, News::Same(_));
        news.iter().filter(is_told).map(ToString::to_string).collect()
    }

    #[test]
    fn an_error_is_told_once_then_counted_and_at_last_over() {
        let mut repeated = Repeated::default();
        let mut lines = Vec::new();
        for snapshot in 1..=1234 {
            for line in told(&mut repeated, &["a: broken"], &format!("T{snapshot}")) {
                lines.push((snapshot, line));
            }
        }
        let again = |times| (times, format!("a: broken; the same error again, {times} times since T1"));
        assert_eq!(lines, [(1, "a: broken".to_owned()), again(10), again(100), again(1000)]);
        assert_eq!(told(&mut repeated, &[], "T"), ["over: a: broken (1234 times since T1)"]);
        assert_eq!(told(&mut repeated, &[], "T"), Vec::<String>::new());
        assert_eq!(told(&mut repeated, &["a: broken"], "T2"), ["a: broken"]);
        assert_eq!(told(&mut repeated, &[], "T"), ["over: a: broken (once, at T2)"]);
    }

    #[test]
    fn each_error_is_counted_by_itself() {
        let mut repeated = Repeated::default();
        assert_eq!(told(&mut repeated, &["a", "b"], "T1"), ["a", "b"]);
        assert_eq!(told(&mut repeated, &["c", "a"], "T2"), ["over: b (once, at T1)", "c"]);
        assert_eq!(
            told(&mut repeated, &["b"], "T3"),
            ["over: a (2 times since T1)", "over: c (once, at T2)", "b"]
        );
    }

    #[test]
    fn several_of_a_kind_in_one_snapshot_count_once() {
        let mut repeated = Repeated::default();
        assert_eq!(
            told(&mut repeated, &["row 5 is bad", "row 6 is bad", "row 5 is bad"], "T"),
            ["row 5 is bad", "row 6 is bad"]
        );
        for _ in 2..=9 {
            assert_eq!(told(&mut repeated, &["row 7 is bad", "row 8 is bad"], "T"), Vec::<String>::new());
        }
        let again = "row 1 is bad; the same error again, 10 times since T";
        assert_eq!(told(&mut repeated, &["row 1 is bad", "row 2 is bad"], "T"), [again]);
    }

    #[test]
    fn only_numbers_by_themselves_make_no_difference() {
        for (one, other) in [
            ("process 12 waits (line 3)", "process 9999 waits (line 4)"),
            ("errors met: 1; see there", "errors met: 2; see there"),
            ("after 5.", "after 6."),
        ] {
            assert_eq!(kind(one), kind(other), "{one}");
        }
        for (one, other) in [
            ("database app1: refused", "database app2: refused"),
            ("database 1: refused", "database 2: refused"),
            ("relation \"1\"", "relation \"2\""),
            ("10.0.0.1:5432", "10.0.0.2:5432"),
            ("PoWA is 4.1.4", "PoWA is 4.2.0"),
            ("waits 1 s", "waited 1 s"),
        ] {
            assert_ne!(kind(one), kind(other), "{one}");
        }
    }

    #[test]
    fn a_failure_says_nothing_of_others() {
        let mut repeated = Repeated::default();
        assert_eq!(repeated.failed("a", "T1"), News::New("a".to_owned()));
        assert_eq!(repeated.failed("b", "T2"), News::New("b".to_owned()));
        assert_eq!(repeated.failed("a", "T3"), News::Same("a".to_owned()));
        assert_eq!(told(&mut repeated, &[], "T4"), ["over: b (once, at T2)", "over: a (2 times since T1)"]);
    }

    #[test]
    fn no_more_is_kept_than_some_dozens() {
        let errors: Vec<String> =
            (1..=1000).map(|number| format!("database d{number}: {}", "é".repeat(5000))).collect();
        let mut repeated = Repeated::default();
        let is_told = |news: &&News| !matches!(news, News::Same(_));
        let news = repeated.met(&errors, "T1");
        assert_eq!(news.len(), MOST_KINDS + 1);
        assert_eq!(news[MOST_KINDS].to_string(), "968 further errors: see powa_snapshot_metas.errors");
        assert_eq!(repeated.met(&errors, "T2").iter().filter(is_told).count(), 0);
        assert!(repeated.known.iter().all(|known| known.text.chars().count() == MOST_CHARS));
        let over = repeated.met(&[], "T3");
        assert_eq!(over.len(), MOST_KINDS + 1);
        let further = "over: 968 further errors: see powa_snapshot_metas.errors (2 times since T1)";
        assert_eq!(over[MOST_KINDS].to_string(), further);

        for error in &errors {
            repeated.failed(error, "T4");
        }
        assert_eq!(repeated.known.len(), MOST_KINDS);
        // Those that came last are known.
        assert_eq!(repeated.failed(&errors[999], "T5"), News::Same(errors[999].clone()));
        assert_eq!(repeated.failed(&errors[0], "T5"), News::New(errors[0].clone()));
    }
}
