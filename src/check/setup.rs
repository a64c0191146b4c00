//! What a monitored server lacks, as a script for psql. Pure.
//!
//! psql's own commands let it be run in whatever database the superuser is connected to, and names are its variables:
//! they become part of a statement in psql only, which quotes them.

use std::fmt::Write as _;

use super::findings::Findings;
use crate::postgres::advice::Step;
use crate::postgres::extension::quote_identifier;
use crate::postgres::text::one_line;

/// PoWA itself, and what comes with it.
const BROUGHT_BY_POWA: [&str; 2] = ["powa", "pg_stat_statements"];

/// What to set up.
pub struct Setup<'a> {
    pub role: &'a str,
    pub database: &'a str,
    /// Whether the server must have PoWA. With PoWA 5 in the repository it need not.
    pub needs_powa: bool,
    /// What is to be read there.
    pub extensions: &'a [String],
}

impl Setup<'_> {
    /// What mends what was found. Where that has kept from view what else may be missing, the script makes all that is
    /// needed and leaves what is there. None: there is nothing that SQL can do.
    pub fn script(&self, findings: &Findings) -> Option<String> {
        let steps = findings.steps();
        let mut statements = steps.iter().filter_map(|step| match step {
            Step::Sql(text) => Some(text.as_str()),
            _ => None,
        });
        let mut script = String::from(
            "-- What powa-collector lacks on this server: to be run there by psql, as superuser, in any database.\n\
             \\set ON_ERROR_STOP on\n",
        );
        // Writing to a string does not fail.
        for step in &steps {
            if !matches!(step, Step::Sql(_)) {
                let _ = writeln!(
                    script,
                    "-- to do by hand: {}",
                    one_line(step.to_string().trim_start_matches("-- "))
                );
            }
        }
        if !findings.has_unseen() {
            let first = statements.next()?;
            let Some(connect) = self.connect() else {
                return Some(format!("{script}-- {}\n", self.cannot_connect()));
            };
            script.push_str(&connect);
            std::iter::once(first).chain(statements).for_each(|text| push_line(&mut script, text));
            return Some(script);
        }
        let _ = writeln!(
            script,
            "\\set role {}\n\\set database {}",
            psql_value(self.role),
            psql_value(self.database)
        );
        script.push_str(include_str!("../../sql/check/set_up_role.sql"));
        script.push_str("-- unless it gets in without a password, give it one: \\password and its name\n");
        let Some(connect) = self.connect() else {
            let _ = writeln!(script, "-- {}", self.cannot_connect());
            return Some(script);
        };
        script.push_str(&connect);
        script.push_str("-- shared_preload_libraries must have those of the following that are libraries\n");
        let base = if self.needs_powa { "powa CASCADE" } else { "pg_stat_statements" };
        push_line(&mut script, &format!("CREATE EXTENSION IF NOT EXISTS {base};"));
        for name in self.extensions.iter().filter(|name| !BROUGHT_BY_POWA.contains(&name.as_str())) {
            push_line(&mut script, &format!("CREATE EXTENSION IF NOT EXISTS {};", quote_identifier(name)));
        }
        script.push_str(include_str!("../../sql/check/set_up_grants.sql"));
        // What was seen beyond that can be granted twice.
        statements.filter(|text| text.starts_with("GRANT ")).for_each(|text| push_line(&mut script, text));
        Some(script)
    }

    /// The command that takes psql to the database. None: no command can.
    fn connect(&self) -> Option<String> {
        if self.database.contains(['\n', '\r']) {
            return None;
        }
        let value = self.database.replace('\\', "\\\\").replace('\'', "\\'");
        // As a connection string, as pg_dump writes it: by itself, a name may be taken for one.
        let string = quote_identifier(&format!("dbname='{value}'"));
        Some(format!("\\connect -reuse-previous=on {string}\n"))
    }

    fn cannot_connect(&self) -> String {
        let name = one_line(self.database);
        format!("psql has no command to connect to a name with a line break: {name}")
    }
}

fn push_line(script: &mut String, text: &str) {
    script.push_str(text);
    script.push('\n');
}

/// A text as the value of psql's `\set`.
fn psql_value(text: &str) -> String {
    let mut value = String::from("'");
    for c in text.chars() {
        match c {
            '\\' | '\'' => value.extend(['\\', c]),
            '\n' => value.push_str("\\n"),
            '\r' => value.push_str("\\r"),
            c => value.push(c),
        }
    }
    value.push('\'');
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup<'a>(database: &'a str, extensions: &'a [String]) -> Setup<'a> {
        Setup { role: "po'wa\n\\!", database, needs_powa: true, extensions }
    }

    #[test]
    fn what_is_seen_is_mended_statement_by_statement() {
        let mut findings = Findings::of("server");
        findings.good("connected");
        assert_eq!(setup("powa", &[]).script(&findings), None);
        findings.problem("odd", &[Step::remark("look at it\n\\! touch x")]);
        assert_eq!(setup("powa", &[]).script(&findings), None);
        findings.problem("closed", &[Step::sql("GRANT a TO b;"), Step::Pattern("host\tall".to_owned())]);
        findings.problem("closed, too", &[Step::sql("GRANT a TO b;")]);
        let script = setup(r#"a="b'c\"#, &[]).script(&findings).unwrap();
        assert_eq!(
            script.split_once("STOP on\n").unwrap().1,
            "-- to do by hand: look at it \\! touch x\n-- to do by hand: host all\n\
             \\connect -reuse-previous=on \"dbname='a=\"\"b\\'c\\\\'\"\nGRANT a TO b;\n"
        );
    }

    #[test]
    fn where_not_all_is_seen_all_is_set_up() {
        let mut findings = Findings::of("server");
        findings.problem(
            "gone",
            &[Step::sql("CREATE EXTENSION x;"), Step::sql("GRANT CONNECT ON DATABASE d TO r;")],
        );
        findings.note_unseen();
        let extensions = ["powa", "pg_stat_statements", "x\"y"].map(str::to_owned);
        let script = setup("powa", &extensions).script(&findings).unwrap();
        let place = |text: &str| script.find(text).unwrap_or_else(|| panic!("no {text}: {script}"));
        assert!(place("\\set role 'po\\'wa\\n\\\\!'\n\\set database 'powa'\n") < place("CREATE ROLE %I"));
        assert!(place("CREATE DATABASE %I") < place("\\connect"));
        assert!(
            place("\\connect")
                < place(
                    "CREATE EXTENSION IF NOT EXISTS powa CASCADE;\nCREATE EXTENSION IF NOT EXISTS \"x\"\"y\";\n"
                )
        );
        assert!(script.ends_with("\\gexec\nGRANT CONNECT ON DATABASE d TO r;\n"), "{script}");
    }

    #[test]
    fn nothing_is_done_in_another_database_than_the_one_that_is_meant() {
        let mut findings = Findings::of("server");
        findings.problem("closed", &[Step::sql("GRANT a TO b;")]);
        let script = setup("a\nDROP TABLE x;", &[]).script(&findings).unwrap();
        assert!(script.ends_with("line break: a DROP TABLE x;\n") && !script.contains("GRANT a"), "{script}");
        findings.note_unseen();
        let script = setup("a\nDROP TABLE x;", &[]).script(&findings).unwrap();
        assert!(
            script.ends_with("line break: a DROP TABLE x;\n") && !script.contains("EXTENSION"),
            "{script}"
        );
    }
}
