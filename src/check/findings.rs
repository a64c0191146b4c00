//! What a check has found of one thing, and what to do about it.

use std::fmt::Write as _;

use crate::postgres::advice::Step;
use crate::postgres::text::one_line;

/// What was found of one thing, in the order in which it was looked at.
#[derive(Debug, Default)]
pub struct Findings {
    title: String,
    findings: Vec<Finding>,
    has_unseen: bool,
}

#[derive(Debug)]
struct Finding {
    what: String,
    kind: Kind,
    mend: Vec<Step>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Good,
    /// Worth knowing.
    Note,
    Problem,
}

impl Findings {
    pub fn of(what: &str) -> Self {
        Self { title: one_line(what), ..Self::default() }
    }

    pub fn good(&mut self, what: &str) {
        self.push(Kind::Good, what, &[]);
    }

    /// Something that is worth knowing, and may be as it should be.
    pub fn note(&mut self, what: &str) {
        self.push(Kind::Note, what, &[]);
    }

    /// Something is missing or wrong. `mend`: what to do about it, where that can be said.
    pub fn problem(&mut self, what: &str, mend: &[Step]) {
        self.push(Kind::Problem, what, mend);
    }

    fn push(&mut self, kind: Kind, what: &str, mend: &[Step]) {
        self.findings.push(Finding { what: one_line(what), kind, mend: mend.to_vec() });
    }

    /// Notes that what is missing has kept from view what else may be.
    pub fn note_unseen(&mut self) {
        self.has_unseen = true;
    }

    /// Whether more may be missing than was seen.
    pub fn has_unseen(&self) -> bool {
        self.has_unseen
    }

    pub fn is_good(&self) -> bool {
        self.findings.iter().all(|finding| finding.kind != Kind::Problem)
    }

    /// All of it, line by line.
    pub fn text(&self) -> String {
        self.told(|_| true)
    }

    /// The same, without the statements that can be run as they stand.
    pub fn text_without_sql(&self) -> String {
        self.told(|step| !matches!(step, Step::Sql(_)))
    }

    /// What is worth knowing also where nothing is wrong, line by line.
    pub fn notes(&self) -> String {
        let notes = self.findings.iter().filter(|finding| finding.kind == Kind::Note);
        notes.map(|finding| format!("note: {}\n", finding.what)).collect()
    }

    fn told(&self, is_told: impl Fn(&Step) -> bool) -> String {
        let mut text = format!("{}\n", self.title);
        // Writing to a string does not fail.
        for finding in &self.findings {
            let word = match finding.kind {
                Kind::Good => "ok     ",
                Kind::Note => "note   ",
                Kind::Problem => "PROBLEM",
            };
            let _ = writeln!(text, "  {word}  {}", finding.what);
            for step in finding.mend.iter().filter(|step| is_told(step)) {
                let _ = writeln!(text, "           {step}");
            }
        }
        text
    }

    /// What to do about all problems, each thing once.
    pub fn steps(&self) -> Vec<&Step> {
        let mut steps: Vec<&Step> = Vec::new();
        for step in self.findings.iter().flat_map(|finding| &finding.mend) {
            if !steps.contains(&step) {
                steps.push(step);
            }
        }
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_told_apart_from_what_a_person_must_do() {
        let mut findings = Findings::of("server 1\ndb1");
        findings.good("connected");
        findings.note("left out");
        assert!(findings.is_good() && !findings.has_unseen());
        assert_eq!(findings.notes(), "note: left out\n");
        let mend = [Step::sql("GRANT a TO b;"), Step::remark("restart it")];
        findings.problem("no rights", &mend);
        findings.problem("none\nhere", &mend[..1]);
        assert!(!findings.is_good());
        assert_eq!(
            findings.text(),
            "server 1 db1\n  ok       connected\n  note     left out\n  PROBLEM  no rights\n           GRANT a TO b;\n           \
             -- restart it\n  PROBLEM  none here\n           GRANT a TO b;\n"
        );
        assert!(!findings.text_without_sql().contains("GRANT"));
        assert_eq!(findings.steps(), mend.iter().collect::<Vec<_>>());
    }
}
