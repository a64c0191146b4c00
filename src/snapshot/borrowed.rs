//! Datasources of a server that has no PoWA: the repository's own definitions, put so that they can be run there.
//!
//! A definition is the body of a function in PL/pgSQL that, called with 0, returns the rows of the server that it runs
//! on. On a server where nothing is to be created, and on a standby nothing can be, it becomes a `DO` block. That cannot return
//! rows, so that it opens a cursor where the function would `RETURN QUERY`; what the cursors ([`CURSORS`]) hold is
//! fetched in the same transaction. What the body wants of PoWA's own schema is put in its place: a setting, and tables that
//! have no row on such a server.
//!
//! A body is read token by token. Whatever is not understood is refused by its name: nothing is changed by guess. Pure.

use crate::postgres::tokens::{Kind, Token, TokenError, tokens};

/// The definition of one datasource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    pub name: String,
    pub language: String,
    /// The name of its one parameter, the server's id.
    pub parameter: String,
    pub body: String,
}

/// How many cursors are there after a block has run. What returns rows more often is refused by the server.
pub const CURSORS: usize = 2;

/// What a cursor's name begins with; its number follows.
pub const CURSOR: &str = "powa_rows_";

/// Variables of ours in a block.
const OPENED: &str = "powa_rows_opened";
const VARIABLE: &str = "powa_rows_cursor";

/// Key words of statements that change something, or in which a query may be repeated or taken back.
const REFUSED: [&str; 24] = [
    "alter", "call", "commit", "copy", "create", "delete", "drop", "foreach", "grant", "insert", "listen",
    "lock", "loop", "merge", "notify", "open", "perform", "refresh", "revoke", "rollback", "truncate",
    "unlisten", "update", "while",
];

/// Key words that can follow a table where no other name is given to it.
const AFTER_TABLE: [&str; 25] = [
    "cross",
    "except",
    "fetch",
    "for",
    "full",
    "group",
    "having",
    "inner",
    "intersect",
    "into",
    "join",
    "left",
    "limit",
    "loop",
    "natural",
    "offset",
    "on",
    "order",
    "right",
    "tablesample",
    "then",
    "union",
    "using",
    "where",
    "window",
];

/// PoWA's tables that are read, and nothing in their place.
const EMPTY: [(&str, &str); 2] = [
    (
        "powa_databases",
        "(SELECT NULL::pg_catalog.int4 AS srvid, NULL::pg_catalog.oid AS oid, NULL::pg_catalog.name AS datname, \
         NULL::pg_catalog.timestamptz AS dropped WHERE false)",
    ),
    (
        "powa_statements",
        "(SELECT NULL::pg_catalog.int4 AS srvid, NULL::pg_catalog.int8 AS queryid, NULL::pg_catalog.oid AS dbid, \
         NULL::pg_catalog.oid AS userid, NULL::pg_catalog.text AS query, NULL::pg_catalog.timestamptz AS last_present_ts \
         WHERE false)",
    ),
];

/// The statement that gives rows of one of the cursors: `ALL` or so many.
pub fn fetch(cursor: usize, rows: &str) -> String {
    format!("FETCH {rows} FROM {CURSOR}{cursor}")
}

/// Why a definition cannot be run elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("it is written in {0}, and not in plpgsql")]
    Language(String),
    #[error(transparent)]
    Text(#[from] TokenError),
    #[error("it uses {0}, which is PoWA's own")]
    Own(String),
    #[error("it uses {0} in a way that is not known")]
    Use(String),
    #[error("it returns rows in another way than by RETURN QUERY")]
    Return,
    #[error("it has a {0}")]
    Statement(String),
    #[error("a string constant speaks of PoWA's schema")]
    Constant,
}

/// The block that opens the cursors of a datasource.
///
/// # Errors
/// When something in the definition is not understood.
pub fn block(definition: &Definition, powa_schema: &str) -> Result<String, Refusal> {
    if definition.language != "plpgsql" {
        return Err(Refusal::Language(definition.language.clone()));
    }
    let parameter = &definition.parameter;
    let is_plain = tokens(parameter)?.iter().map(|token| token.kind).eq([Kind::Word]);
    if !is_plain {
        return Err(Refusal::Use(parameter.clone()));
    }
    let mut body = Rewriting { powa_schema, out: Vec::new() }.body(&definition.body)?;
    if !body.trim_end().ends_with(';') {
        body.push(';');
    }
    let block = format!(
        "DECLARE\n\
         {parameter} CONSTANT pg_catalog.int4 := 0;\n\
         {OPENED} pg_catalog.int4 := 0;\n\
         {VARIABLE} pg_catalog.refcursor;\n\
         BEGIN\n\
         PERFORM pg_catalog.set_config('search_path', 'pg_catalog', true);\n\
         {body}\n\
         IF {OPENED} > {CURSORS} THEN\n\
         RAISE EXCEPTION 'rows are returned % times, and {CURSORS} times at most can be read', {OPENED};\n\
         END IF;\n\
         WHILE {OPENED} < {CURSORS} LOOP\n\
         {OPENED} := {OPENED} + 1;\n\
         {VARIABLE} := '{CURSOR}' || {OPENED};\n\
         OPEN {VARIABLE} FOR SELECT WHERE false;\n\
         END LOOP;\n\
         END"
    );
    Ok(format!("DO {}", dollar_quoted(&block)))
}

/// A text between dollar signs that it does not have itself.
fn dollar_quoted(text: &str) -> String {
    let tag = (0_u32..).map(|number| format!("$powa{number}$")).find(|tag| !text.contains(tag.as_str()));
    let tag = tag.expect("a text has an end");
    format!("{tag}\n{text}\n{tag}")
}

/// One text on its way.
struct Rewriting<'a> {
    powa_schema: &'a str,
    /// With what kind each piece counts for those that follow.
    out: Vec<(Kind, String)>,
}

impl<'a> Rewriting<'a> {
    /// The body of a function.
    fn body(self, text: &str) -> Result<String, Refusal> {
        self.rewrite(text, false)
    }

    /// `is_query`: the text is not a function's body but a query that it composes.
    fn rewrite(mut self, text: &str, is_query: bool) -> Result<String, Refusal> {
        let all = tokens(text)?;
        let mut at = 0;
        while at < all.len() {
            at = self.step(&all, at, is_query)?;
        }
        Ok(self.out.into_iter().map(|(_, text)| text).collect())
    }

    /// Sees to what stands at one place, and gives the next one.
    fn step(&mut self, all: &[Token<'_>], at: usize, is_query: bool) -> Result<usize, Refusal> {
        let token = &all[at];
        match token.kind {
            Kind::Text if self.speaks_of_powa(&token.content().unwrap_or_default()) => {
                return Err(Refusal::Constant);
            }
            Kind::Dollar => {
                let (tag, content) = (token.tag().unwrap_or_default(), token.content().unwrap_or_default());
                let inner = Rewriting { powa_schema: self.powa_schema, out: Vec::new() };
                let rewritten = inner.rewrite(&content, true)?;
                if rewritten.contains(tag) {
                    return Err(Refusal::Constant);
                }
                self.push(Kind::Dollar, format!("{tag}{rewritten}{tag}"));
                return Ok(at + 1);
            }
            Kind::Word | Kind::Quoted if !self.is_after(&["."]) => {
                if let Some((object, next)) = self.of_powa(all, at) {
                    return self.in_place_of(&object, all, next, is_query);
                }
                if token.kind == Kind::Word {
                    if let Some(next) = self.key_word(all, at, is_query)? {
                        return Ok(next);
                    }
                }
            }
            _ => {}
        }
        self.push(token.kind, token.text.to_owned());
        Ok(at + 1)
    }

    /// An object of PoWA's schema that is named at this place, and the place behind its name.
    fn of_powa(&self, all: &[Token<'_>], at: usize) -> Option<(String, usize)> {
        let dot = significant(all, at + 1).filter(|dot| all[*dot].is_sign("."))?;
        let name = significant(all, dot + 1)?;
        let object = all[name].name()?;
        if all[at].name()? != self.powa_schema {
            return None;
        }
        // Something in a query may have the schema's name: then its columns are called so.
        let is_function = significant(all, name + 1).is_some_and(|next| all[next].is_sign("("));
        let is_of_schema =
            is_function || self.is_after(&["from", "join", ":"]) || object.starts_with("powa_");
        is_of_schema.then_some((object, name + 1))
    }

    /// Puts something in the place of an object of PoWA's.
    fn in_place_of(
        &mut self,
        object: &str,
        all: &[Token<'_>],
        next: usize,
        is_query: bool,
    ) -> Result<usize, Refusal> {
        let is_table = self.is_after(&["from", "join"]);
        if object == "powa_get_guc" {
            let (setting, next) = setting(all, next).ok_or_else(|| Refusal::Use(object.to_owned()))?;
            self.push(Kind::Word, setting);
            return Ok(next);
        }
        if object == "qual_type" {
            // Its rows look the same without that name.
            let is_array = significant(all, next).is_some_and(|next| all[next].is_sign("["));
            if is_array || !(self.take_back(":") && self.take_back(":")) || !self.is_after(&[")"]) {
                return Err(Refusal::Use(object.to_owned()));
            }
            return Ok(next);
        }
        if let Some((_, nothing)) = EMPTY.iter().find(|(table, _)| *table == object) {
            if !is_table {
                return Err(Refusal::Use(object.to_owned()));
            }
            self.push(Kind::Sign, (*nothing).to_owned());
            if !is_named(all, next) {
                self.push(Kind::Word, format!(" AS {object}"));
            }
            return Ok(next);
        }
        // Where a repository keeps the rows of other servers. It is read for those alone, never with 0.
        if object.ends_with("_src_tmp") && is_table && !is_query {
            self.push(Kind::Word, format!("pg_temp.{object}"));
            return Ok(next);
        }
        Err(Refusal::Own(object.to_owned()))
    }

    /// Sees to a key word that means something here. Gives the next place if it has put something in its place.
    fn key_word(&mut self, all: &[Token<'_>], at: usize, is_query: bool) -> Result<Option<usize>, Refusal> {
        let word = all[at].text.to_lowercase();
        let next = significant(all, at + 1);
        let is_called = next.is_some_and(|next| all[next].is_sign("("));
        match word.as_str() {
            "return" if !is_query => {
                let query = next.filter(|next| all[*next].is_word("query")).ok_or(Refusal::Return)?;
                self.push(
                    Kind::Sign,
                    format!(
                        "{OPENED} := {OPENED} + 1; {VARIABLE} := '{CURSOR}' || {OPENED}; OPEN {VARIABLE} FOR"
                    ),
                );
                Ok(Some(self.execute(all, query + 1)))
            }
            "execute" | "exit" | "continue" => Err(Refusal::Statement(word.to_uppercase())),
            "exception" if !self.is_after(&["raise"]) => Err(Refusal::Statement(word.to_uppercase())),
            OPENED | VARIABLE => Err(Refusal::Use(word)),
            // PoWA's functions and tables have this beginning; without a schema they could be anybody's.
            _ if word.starts_with("powa_") && (is_called || self.is_after(&["from", "join"])) => {
                Err(Refusal::Own(word))
            }
            _ if REFUSED.contains(&word.as_str()) && !is_called => {
                Err(Refusal::Statement(word.to_uppercase()))
            }
            _ => Ok(None),
        }
    }

    /// The `EXECUTE` that may follow `RETURN QUERY`.
    fn execute(&mut self, all: &[Token<'_>], at: usize) -> usize {
        match significant(all, at).filter(|next| all[*next].is_word("execute")) {
            Some(next) => {
                self.push(Kind::Word, " EXECUTE".to_owned());
                next + 1
            }
            None => at,
        }
    }

    fn speaks_of_powa(&self, constant: &str) -> bool {
        let Ok(all) = tokens(constant) else { return constant.contains(self.powa_schema) };
        (0..all.len()).any(|at| {
            let dot = significant(&all, at + 1).filter(|dot| all[*dot].is_sign("."));
            dot.is_some() && all[at].name().as_deref() == Some(self.powa_schema)
        })
    }

    fn push(&mut self, kind: Kind, text: String) {
        self.out.push((kind, text));
    }

    /// Whether the last thing before this, but for white space, is one of these words or signs.
    fn is_after(&self, words: &[&str]) -> bool {
        let last = self.out.iter().rev().find(|(kind, _)| *kind != Kind::Space);
        last.is_some_and(|(_, text)| words.iter().any(|word| text.trim().eq_ignore_ascii_case(word)))
    }

    /// Takes back the last thing, if it is this sign.
    fn take_back(&mut self, sign: &str) -> bool {
        let is_there = self.is_after(&[sign]);
        if is_there {
            let last = self.out.iter().rposition(|(kind, _)| *kind != Kind::Space);
            self.out.truncate(last.unwrap_or_default());
        }
        is_there
    }
}

/// The next place from `at` on that has something else than white space and comments.
fn significant(all: &[Token<'_>], at: usize) -> Option<usize> {
    (at..all.len()).find(|at| all[*at].kind != Kind::Space)
}

/// Whether a table that is named before this place gets another name here.
fn is_named(all: &[Token<'_>], at: usize) -> bool {
    significant(all, at).is_some_and(|at| match all[at].kind {
        Kind::Quoted => true,
        Kind::Word => !AFTER_TABLE.contains(&all[at].text.to_lowercase().as_str()),
        _ => false,
    })
}

/// What `powa_get_guc('NAME')` or `powa_get_guc('NAME', 'DEFAULT')` gives, and the place behind it. `at`: behind the
/// function's name.
fn setting(all: &[Token<'_>], at: usize) -> Option<(String, usize)> {
    let begin = significant(all, at).filter(|at| all[*at].is_sign("("))?;
    let name = significant(all, begin + 1).filter(|at| all[*at].kind == Kind::Text)?;
    let ask = format!("pg_catalog.current_setting({}, true)", all[name].text);
    let next = significant(all, name + 1)?;
    if all[next].is_sign(")") {
        return Some((ask, next + 1));
    }
    let default =
        significant(all, next + 1).filter(|at| all[next].is_sign(",") && all[*at].kind == Kind::Text)?;
    let end = significant(all, default + 1).filter(|at| all[*at].is_sign(")"))?;
    Some((format!("COALESCE({ask}, {})", all[default].text), end + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(body: &str) -> Definition {
        Definition {
            name: "powa_things_src".to_owned(),
            language: "plpgsql".to_owned(),
            parameter: "_srvid".to_owned(),
            body: body.to_owned(),
        }
    }

    fn rewritten(body: &str) -> Result<String, Refusal> {
        Rewriting { powa_schema: "PoWA 5", out: Vec::new() }.body(body)
    }

    const OPEN: &str = "powa_rows_opened := powa_rows_opened + 1; powa_rows_cursor := 'powa_rows_' || powa_rows_opened; \
                        OPEN powa_rows_cursor FOR";

    #[test]
    fn a_body_becomes_a_block_that_opens_cursors() {
        let body = "BEGIN IF _srvid = 0 THEN RETURN QUERY SELECT 1; ELSE RETURN QUERY EXECUTE 'SELECT 2'; END IF; END";
        let block = block(&definition(body), "PoWA 5").unwrap();
        assert!(block.starts_with("DO $powa0$\nDECLARE\n_srvid CONSTANT pg_catalog.int4 := 0;\n"), "{block}");
        assert!(block.ends_with("END\n$powa0$"), "{block}");
        let inner = format!(
            "BEGIN IF _srvid = 0 THEN {OPEN} SELECT 1; ELSE {OPEN} EXECUTE 'SELECT 2'; END IF; END;\n"
        );
        assert!(block.contains(&inner), "{block}");
    }

    #[test]
    fn what_is_powas_own_has_something_in_its_place() {
        for (body, becomes) in [
            (r#""PoWA 5".powa_get_guc('a.b', '')"#, "COALESCE(pg_catalog.current_setting('a.b', true), '')"),
            (r#""PoWA 5" . powa_get_guc ( 'a.b' )"#, "pg_catalog.current_setting('a.b', true)"),
            (r#"array_agg(ROW(a, b)::"PoWA 5".qual_type) AS q"#, "array_agg(ROW(a, b)) AS q"),
            (r#"FROM "PoWA 5".powa_x_src_tmp x"#, "FROM pg_temp.powa_x_src_tmp x"),
            (r#"a.powa_x, "powa 5".powa_y"#, r#"a.powa_x, "powa 5".powa_y"#),
            ("SELECT s.slot_name -- \"PoWA 5\".powa_x", "SELECT s.slot_name -- \"PoWA 5\".powa_x"),
        ] {
            assert_eq!(rewritten(body).as_deref(), Ok(becomes), "{body}");
        }
        let (databases, statements) = (EMPTY[0].1, EMPTY[1].1);
        assert_eq!(
            rewritten(r#"FROM "PoWA 5".powa_databases WHERE dropped IS NOT NULL"#).unwrap(),
            format!("FROM {databases} AS powa_databases WHERE dropped IS NOT NULL")
        );
        for alias in ["s2", "AS s2", "\"s2\""] {
            let body = format!(r#"x JOIN "PoWA 5".powa_statements {alias} ON true"#);
            assert_eq!(rewritten(&body).unwrap(), format!("x JOIN {statements} {alias} ON true"));
        }
        // Also where a query is composed.
        assert_eq!(
            rewritten(r#"format($$SELECT %I.f() FROM "PoWA 5".powa_databases d$$, n)"#).unwrap(),
            format!("format($$SELECT %I.f() FROM {databases} d$$, n)")
        );
    }

    #[test]
    fn something_in_a_query_may_have_the_schemas_name() {
        let rewrite = |body: &str| Rewriting { powa_schema: "s", out: Vec::new() }.body(body);
        let body = "SELECT s.slot_name, s.xmin FROM pg_catalog.pg_replication_slots AS s";
        assert_eq!(rewrite(body).as_deref(), Ok(body));
        assert_eq!(rewrite("SELECT s.other()"), Err(Refusal::Own("other".to_owned())));
        assert_eq!(rewrite("SELECT 1 FROM s.other"), Err(Refusal::Own("other".to_owned())));
    }

    #[test]
    fn what_is_not_understood_is_refused_by_its_name() {
        let own = |name: &str| Refusal::Own(name.to_owned());
        let used = |name: &str| Refusal::Use(name.to_owned());
        let statement = |name: &str| Refusal::Statement(name.to_owned());
        for (body, refusal) in [
            (r#"SELECT "PoWA 5".powa_other(1)"#, own("powa_other")),
            (r#"SELECT 1 FROM "PoWA 5".powa_servers"#, own("powa_servers")),
            (r#"x := $$SELECT 1 FROM "PoWA 5".powa_x_src_tmp$$"#, own("powa_x_src_tmp")),
            ("SELECT 1 FROM powa_databases", own("powa_databases")),
            (r#"SELECT "PoWA 5".powa_get_guc(name)"#, used("powa_get_guc")),
            (r#"SELECT "PoWA 5".powa_get_guc('a', 'b', 'c')"#, used("powa_get_guc")),
            (r#"SELECT x::"PoWA 5".qual_type"#, used("qual_type")),
            (r#"SELECT f(x)::"PoWA 5".qual_type[]"#, used("qual_type")),
            (r#"SELECT "PoWA 5".powa_databases.oid"#, used("powa_databases")),
            ("powa_rows_opened := 1", used("powa_rows_opened")),
            ("RETURN NEXT", Refusal::Return),
            ("RETURN;", Refusal::Return),
            ("EXECUTE 'SELECT 1'", statement("EXECUTE")),
            ("x := $$DELETE FROM t$$", statement("DELETE")),
            ("FOR r IN SELECT 1 LOOP", statement("LOOP")),
            ("BEGIN NULL; EXCEPTION WHEN others THEN NULL; END", statement("EXCEPTION")),
            (r#"x := 'SELECT 1 FROM "PoWA 5".powa_databases'"#, Refusal::Constant),
            (r"x := 'a\' b'", Refusal::Text(TokenError::Backslash)),
        ] {
            assert_eq!(rewritten(body), Err(refusal), "{body}");
        }
        assert!(rewritten("RAISE EXCEPTION 'this is a bug'").is_ok());
        let sql = Definition { language: "sql".to_owned(), ..definition("SELECT 1") };
        assert_eq!(block(&sql, "powa"), Err(Refusal::Language("sql".to_owned())));
        let odd = Definition { parameter: "a b".to_owned(), ..definition("BEGIN END") };
        assert_eq!(block(&odd, "powa"), Err(used("a b")));
    }

    #[test]
    fn a_body_that_has_the_blocks_quotes_gets_others() {
        let block = block(&definition("BEGIN x := $powa0$SELECT 1$powa0$; END;"), "powa").unwrap();
        assert!(block.starts_with("DO $powa1$") && block.ends_with("$powa1$"), "{block}");
    }
}
