//! What is to be read from one server, in that server's own terms: the statements of a fetch.

use std::collections::HashMap;

use super::borrowed;
use super::plan::{Blocks, Datasource, Plan, Refresh};
use crate::postgres::extension::{Extension, Table, quote_identifier, quote_literal};

/// What is to be read, in terms of one server.
pub struct Reading {
    /// What it is called in errors.
    pub name: String,
    pub rows: Rows,
    pub target: Table,
    /// What to run after it, or what the server lacks for that.
    pub cleanup: Option<Result<String, String>>,
}

/// What gives the rows.
pub enum Rows {
    /// A `COPY`.
    Copy(String),
    /// A block that opens cursors ([`borrowed`]), whose rows follow these columns, as `COPY` writes them.
    Block { block: String, prefix: String },
}

/// Where the functions are that give the rows of datasources.
pub enum Functions<'a> {
    /// In the server's own PoWA, whose schema this is.
    Own(&'a str),
    /// In the repository's.
    Borrowed(&'a Blocks),
}

/// Why a datasource is not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lack {
    /// The server does not have the extension that it is about.
    Extension(String),
    Other(String),
}

/// The one extension that every server must have.
const REQUIRED: &str = "pg_stat_statements";

impl Lack {
    /// Whether it may be as it should be that a server without PoWA lacks this.
    pub fn is_allowed(&self, functions: &Functions<'_>) -> bool {
        matches!((self, functions), (Self::Extension(name), Functions::Borrowed(_)) if name != REQUIRED)
    }
}

impl std::fmt::Display for Lack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Extension(name) => {
                write!(f, "the extension {name} is not installed on the monitored server")
            }
            Self::Other(reason) => f.write_str(reason),
        }
    }
}

/// A database of a monitored server.
pub struct Database {
    pub oid: u32,
    pub name: String,
}

/// Puts a datasource into the server's own terms.
///
/// # Errors
/// What the server lacks for it.
pub fn of_server(
    plan: &Plan,
    datasource: &Datasource,
    functions: &Functions<'_>,
    extensions: &HashMap<String, Extension>,
) -> Result<Reading, Lack> {
    let rows = match source(datasource, functions, extensions)? {
        Source::Function(function) => {
            Rows::Copy(format!("COPY (SELECT {}, * FROM {function}(0)) TO STDOUT", plan.server))
        }
        Source::Block(block) => Rows::Block { block: block.to_owned(), prefix: plan.server.to_string() },
    };
    let cleanup = datasource.cleanup.as_deref().map(|text| {
        if plan.powa.version.is_5() { with_extension_schemas(text, extensions) } else { Ok(text.to_owned()) }
    });
    Ok(Reading { name: datasource.name.clone(), rows, target: datasource.target.clone(), cleanup })
}

/// What gives a datasource's rows on one server.
enum Source<'a> {
    /// As it is called there.
    Function(String),
    Block(&'a str),
}

fn source<'a>(
    datasource: &Datasource,
    functions: &Functions<'a>,
    extensions: &HashMap<String, Extension>,
) -> Result<Source<'a>, Lack> {
    let home = match &datasource.extension {
        Some(name) => Some(extensions.get(name).ok_or_else(|| Lack::Extension(name.clone()))?),
        None => None,
    };
    let schema = match (home, functions) {
        (Some(home), _) if datasource.is_external => &home.schema,
        (_, Functions::Own(schema)) => *schema,
        (_, Functions::Borrowed(blocks)) => {
            let function = &datasource.function;
            let unknown = || Err(format!("the repository's definition of {function} is not known"));
            let block =
                blocks.get(function).map_or_else(unknown, |block| block.as_deref().map_err(Clone::clone));
            return block.map(Source::Block).map_err(Lack::Other);
        }
    };
    Ok(Source::Function(format!("{}.{}", quote_identifier(schema), quote_identifier(&datasource.function))))
}

/// Statements that show whether a datasource can be read and cleaned up after, without keeping or changing
/// anything. A cleanup is only explained, which is enough for the server to look at the rights to it.
///
/// # Errors
/// What the server lacks.
pub fn probes(
    plan: &Plan,
    datasource: &Datasource,
    functions: &Functions<'_>,
    extensions: &HashMap<String, Extension>,
) -> Result<Vec<String>, Lack> {
    let reading = of_server(plan, datasource, functions, extensions)?;
    let mut probes = match source(datasource, functions, extensions)? {
        Source::Function(function) => vec![format!("SELECT FROM {function}(0) LIMIT 1")],
        // In one transaction, of which nothing is left.
        Source::Block(block) => {
            let fetches: String =
                (1..=borrowed::CURSORS).map(|cursor| format!("{}; ", borrowed::fetch(cursor, "1"))).collect();
            vec![format!("BEGIN; {block}; {fetches}ROLLBACK")]
        }
    };
    if let Some(cleanup) = reading.cleanup {
        probes.push(format!("EXPLAIN {}", cleanup.map_err(Lack::Other)?));
    }
    Ok(probes)
}

/// Replaces `{extension}` by that extension's schema on the server. Braces around anything else than a name
/// stay as they are.
fn with_extension_schemas(text: &str, extensions: &HashMap<String, Extension>) -> Result<String, String> {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(begin) = rest.find('{') {
        let (before, after) = rest.split_at(begin);
        result.push_str(before);
        let name = after[1..].split('}').next().unwrap_or_default();
        let is_name = after[1..].len() > name.len()
            && !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
        if is_name {
            let extension = extensions
                .get(name)
                .ok_or_else(|| format!("the extension {name} is not installed on the monitored server"))?;
            result.push_str(&quote_identifier(&extension.schema));
            rest = &after[name.len() + 2..];
        } else {
            result.push('{');
            rest = &after[1..];
        }
    }
    result.push_str(rest);
    Ok(result)
}

/// What is to be read in one database: modules that it is not left out of, and catalogs that are due or that
/// `refresh` asks for. `time` is the snapshot's.
pub fn of_database(plan: &Plan, refresh: Option<&Refresh>, time: &str, database: &Database) -> Vec<Reading> {
    let Database { oid, name } = database;
    let (server, time) = (plan.server, quote_literal(time));
    let modules = plan
        .db_modules
        .iter()
        .filter(|module| module.databases.as_ref().is_none_or(|names| names.contains(name)))
        .map(|module| (&module.name, &module.target, &module.query, format!("{server}, {time}, {oid}")));
    let catalogs = plan
        .catalogs
        .iter()
        .filter(|catalog| {
            !catalog.excluded.contains(name) || refresh.is_some_and(|refresh| refresh.includes(name))
        })
        .map(|catalog| (&catalog.name, &catalog.target, &catalog.query, format!("{server}, {oid}")));
    modules
        .chain(catalogs)
        .map(|(module, target, query, prefix)| Reading {
            name: format!("database {name}: {module}"),
            // The query may end in a comment.
            rows: Rows::Copy(format!(
                "COPY (SELECT {prefix}, source.* FROM ({query}\n) AS source) TO STDOUT"
            )),
            target: target.clone(),
            cleanup: None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleanups_name_the_servers_own_schemas() {
        let extensions = HashMap::from([(
            "pg_qualstats".to_owned(),
            Extension { schema: "Odd \"one\"".to_owned(), version: "2".to_owned() },
        )]);
        let put = |text| with_extension_schemas(text, &extensions);
        assert_eq!(
            put("SELECT {pg_qualstats}.pg_qualstats_reset()").unwrap(),
            r#"SELECT "Odd ""one""".pg_qualstats_reset()"#
        );
        assert_eq!(put("SELECT '{}', '{1,2}', '{").unwrap(), "SELECT '{}', '{1,2}', '{");
        assert!(put("SELECT {pg_other}.f()").unwrap_err().contains("pg_other"));
    }
}
