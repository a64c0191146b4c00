//! Extensions: which PoWA a database has and where it lives, and the one place where a name or a value
//! becomes part of a statement's text.

use std::collections::HashMap;
use std::fmt;

use tokio_postgres::{Client, Error, ToStatement};

/// A version of the `powa` extension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PowaVersion {
    text: String,
    major: u32,
    minor: u32,
}

impl PowaVersion {
    /// Reads `5.0.2`, `4.1.4`, `5.1beta1`. What cannot be read counts as 0 and is thereby refused.
    pub fn parse(text: &str) -> Self {
        let number = |part: Option<&str>| {
            let digits: String = part.unwrap_or_default().chars().take_while(char::is_ascii_digit).collect();
            digits.parse().unwrap_or(0)
        };
        let mut parts = text.split('.');
        Self { major: number(parts.next()), minor: number(parts.next()), text: text.to_owned() }
    }

    /// PoWA 5 put each module's functions behind the extension's own schema and brought per-database modules
    /// and catalogs.
    pub fn is_5(&self) -> bool {
        self.major >= 5
    }

    /// PoWA 4.0 keeps its parameters in a library that each session must load.
    pub fn needs_load(&self) -> bool {
        self.major == 4 && self.minor == 0
    }

    /// Before PoWA 4 there was no collecting from elsewhere.
    pub fn is_supported(&self) -> bool {
        self.major >= 4
    }

    /// Whether two versions can work together: rows have the same shape within a major.minor.
    pub fn is_compatible(&self, other: &Self) -> bool {
        (self.major, self.minor) == (other.major, other.minor)
    }
}

impl fmt::Display for PowaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The `powa` extension of one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Powa {
    pub version: PowaVersion,
    pub schema: String,
}

/// An installed extension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extension {
    pub schema: String,
    pub version: String,
}

/// The statement of [`installed`], for those who prepare it.
pub const INSTALLED: &str = include_str!("../../sql/extensions.sql");

/// The extensions that the connected database has, by name. `statement` is [`INSTALLED`], prepared or not.
///
/// # Errors
/// Those of the connection.
pub async fn installed<T>(client: &Client, statement: &T) -> Result<HashMap<String, Extension>, Error>
where
    T: ?Sized + ToStatement,
{
    let rows = client.query(statement, &[]).await?;
    Ok(rows
        .iter()
        .map(|row| (row.get("extname"), Extension { schema: row.get("schema"), version: row.get("version") }))
        .collect())
}

/// The database's own PoWA, when it has one.
pub fn powa(extensions: &HashMap<String, Extension>) -> Option<Powa> {
    extensions.get("powa").map(|extension| Powa {
        version: PowaVersion::parse(&extension.version),
        schema: extension.schema.clone(),
    })
}

/// Puts the schema of `powa` into a statement of ours that names it `{powa}`.
pub fn in_schema(statement: &str, schema: &str) -> String {
    statement.replace("{powa}", &quote_identifier(schema))
}

/// A table's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Table {
    pub schema: Option<String>,
    pub name: String,
}

impl Table {
    /// Reads a name as SQL writes it: `powa_x`, `"Odd schema".powa_x`. `None` when the text is anything else
    /// than one name or two.
    pub fn parse(text: &str) -> Option<Self> {
        let (first, rest) = parse_identifier(text)?;
        if rest.is_empty() {
            return Some(Self { schema: None, name: first });
        }
        let (second, rest) = parse_identifier(rest.strip_prefix('.')?)?;
        rest.is_empty().then_some(Self { schema: Some(first), name: second })
    }

    /// The name, quoted, for a statement.
    pub fn quoted(&self) -> String {
        match &self.schema {
            Some(schema) => format!("{}.{}", quote_identifier(schema), quote_identifier(&self.name)),
            None => quote_identifier(&self.name),
        }
    }
}

/// One identifier at the beginning of a text, and what follows it.
fn parse_identifier(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
        let end = text.find(|c| !is_part(c)).unwrap_or(text.len());
        let is_name = text[..end].starts_with(|c: char| c.is_alphabetic() || c == '_');
        return is_name.then(|| (text[..end].to_lowercase(), &text[end..]));
    };
    let mut name = String::new();
    let mut rest = quoted;
    loop {
        let end = rest.find('"')?;
        name.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(after) => {
                name.push('"');
                rest = after;
            }
            None => return (!name.is_empty()).then_some((name, rest)),
        }
    }
}

/// Writes a name so that the server reads it as exactly that name.
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Writes a text as a string constant, for the few statements (`COPY`) that take no parameters. Holds for
/// both settings of `standard_conforming_strings`.
pub fn quote_literal(text: &str) -> String {
    if text.contains('\\') {
        format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
    } else {
        format!("'{}'", text.replace('\'', "''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn versions_are_read_by_their_numbers() {
        let version = PowaVersion::parse("5.1.3");
        assert!(version.is_5() && version.is_supported() && !version.needs_load());
        assert!(version.is_compatible(&PowaVersion::parse("5.1beta1")));
        assert!(!version.is_compatible(&PowaVersion::parse("5.0.3")));
        assert!(PowaVersion::parse("4.0.1").needs_load());
        assert!(!PowaVersion::parse("4.1.4").needs_load());
        assert!(!PowaVersion::parse("3.2.0").is_supported());
        assert!(!PowaVersion::parse("").is_supported());
        assert_eq!(version.to_string(), "5.1.3");
    }

    #[test]
    fn names_and_values_cannot_end_their_quotes() {
        assert_eq!(quote_identifier(r#"a"b.c"#), r#""a""b.c""#);
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal(r"a\' or"), r"E'a\\'' or'");
    }

    #[test]
    fn table_names_are_read_as_sql_writes_them() {
        let table = |schema: Option<&str>, name: &str| {
            Some(Table { schema: schema.map(str::to_owned), name: name.to_owned() })
        };
        assert_eq!(Table::parse("powa_x_src_tmp"), table(None, "powa_x_src_tmp"));
        assert_eq!(Table::parse("Public.T1"), table(Some("public"), "t1"));
        assert_eq!(Table::parse(r#""PoWA – 5.x"."a""b""#), table(Some("PoWA – 5.x"), "a\"b"));
        for wrong in ["", ".", "a.", "a.b.c", "a b", "a;drop", "1a", r#""a"#, r#""""#, r#""a"b"#] {
            assert_eq!(Table::parse(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_quoted_table_is_read_back(schema in "\\PC{1,9}", name in "\\PC{1,9}") {
            let table = Table { schema: Some(schema), name };
            prop_assert_eq!(Table::parse(&table.quoted()), Some(table));
        }

        #[test]
        fn a_quoted_name_has_no_lone_quote(name in "\\PC*") {
            let quoted = quote_identifier(&name);
            let inner = &quoted[1..quoted.len() - 1];
            prop_assert_eq!(inner.replace("\"\"", "").matches('"').count(), 0);
            prop_assert_eq!(inner.replace("\"\"", "\""), name);
        }
    }
}
