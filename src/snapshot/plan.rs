//! What a snapshot of one server is made of, as the repository says: which queries, into which tables.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::About;
use super::borrowed::{self, Definition};
use crate::postgres::extension::{self, Extension, Powa, Table, in_schema};
use crate::postgres::repository::Object;
use crate::postgres::text::causes;
use crate::server::ServerId;

/// The parts of one snapshot.
#[derive(Debug, Clone)]
pub struct Plan {
    pub server: ServerId,
    /// The `server_version_num` that it is for.
    pub version_num: i32,
    /// The repository's PoWA.
    pub powa: Powa,
    /// The repository, as it names itself.
    pub repository: String,
    /// What is read once per server, in order.
    pub datasources: Arc<[Datasource]>,
    /// What is read in each database.
    pub db_modules: Arc<[DbModule]>,
    pub catalogs: Vec<Catalog>,
    /// What cannot be had already by what the repository lacks.
    pub errors: Vec<String>,
    /// What is left out because the repository has no query for it, which may be as it should be.
    pub skipped: Vec<String>,
    /// How datasources are read on a server whose PoWA is another one, or that has none. `None`: the repository's PoWA does
    /// not allow it.
    pub borrowed: Option<Blocks>,
}

/// By the function that is a datasource's own: the statement that takes its place, or why there is none.
pub type Blocks = Arc<HashMap<String, Result<String, String>>>;

/// A set of rows that describes the whole server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datasource {
    pub name: String,
    /// The extension that the monitored server must have for it.
    pub extension: Option<String>,
    /// Whether the function lives in that extension's schema, not in PoWA's.
    pub is_external: bool,
    /// The function that gives the rows.
    pub function: String,
    /// A statement to run on the monitored server once the rows are read. PoWA 5 writes extensions' schemas
    /// as `{extension}`.
    pub cleanup: Option<String>,
    pub target: Table,
}

/// A set of rows that describes one database's use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DbModule {
    pub name: String,
    pub query: String,
    pub target: Table,
    /// `None`: every database.
    pub databases: Option<Vec<String>>,
}

/// A system catalog that is copied once in a while.
#[derive(Debug, Clone)]
pub struct Catalog {
    pub name: String,
    pub query: String,
    pub target: Table,
    /// Databases whose copy is recent enough.
    pub excluded: Vec<String>,
}

/// The databases whose catalogs are to be read whatever their age.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refresh {
    All,
    Named(Vec<String>),
}

impl Refresh {
    pub fn includes(&self, database: &str) -> bool {
        match self {
            Self::All => true,
            Self::Named(names) => names.iter().any(|name| name == database),
        }
    }

    /// Both wishes in one.
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Named(mut names), Self::Named(more)) => {
                names.extend(more);
                names.sort();
                names.dedup();
                Self::Named(names)
            }
            _ => Self::All,
        }
    }
}

/// What plans have in common: a thousand servers are read by a few different lists, and each keeps its last one.
type Shared<T> = Mutex<Vec<Weak<[T]>>>;

static DATASOURCES: Shared<Datasource> = Mutex::new(Vec::new());
static DB_MODULES: Shared<DbModule> = Mutex::new(Vec::new());

/// The same list as others have it, if anybody has.
fn shared<T: PartialEq>(list: Vec<T>, all: &Shared<T>) -> Arc<[T]> {
    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
    all.retain(|known| known.strong_count() > 0);
    if let Some(known) = all.iter().filter_map(Weak::upgrade).find(|known| **known == *list) {
        return known;
    }
    let list = Arc::from(list);
    all.push(Arc::downgrade(&list));
    list
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("read from the repository: {}", causes(.0))]
    Repository(#[from] tokio_postgres::Error),
    #[error("the repository takes no changes: it is a standby or read-only")]
    ReadOnly,
    #[error("the repository has no extension powa: CREATE EXTENSION powa CASCADE")]
    NoPowa,
    #[error(
        "the repository's PoWA is {0}, which cannot collect from other servers: version 4.0 or later is needed"
    )]
    Unsupported(extension::PowaVersion),
}

/// Asks the repository what is due for a server of the given `server_version_num`.
///
/// # Errors
/// When the repository cannot be asked.
pub async fn plan(
    client: &Object,
    about: About,
    server: ServerId,
    server_version_num: i32,
) -> Result<Plan, PlanError> {
    let About { powa, extensions, repository } = about;
    let mut plan = Plan {
        server,
        version_num: server_version_num,
        datasources: Arc::new([]),
        db_modules: Arc::new([]),
        catalogs: Vec::new(),
        errors: Vec::new(),
        skipped: Vec::new(),
        borrowed: None,
        powa,
        repository,
    };
    let sql = |text| in_schema(text, &plan.powa.schema);
    if !plan.powa.version.is_5() {
        let statement = sql(include_str!("../../sql/repository/datasources_powa4.sql"));
        let rows = client.query(&statement, &[&server.0]).await?;
        plan.add_datasources(&rows, &extensions);
        return Ok(plan);
    }
    let datasources = sql(include_str!("../../sql/repository/datasources_powa5.sql"));
    let db_modules = sql(include_str!("../../sql/repository/db_modules.sql"));
    let catalogs = sql(include_str!("../../sql/repository/catalogs.sql"));
    let (datasources, db_modules, catalogs) = (
        client.prepare_cached(&datasources).await?,
        client.prepare_cached(&db_modules).await?,
        client.prepare_cached(&catalogs).await?,
    );
    let of_server: [&(dyn ToSql + Sync); 2] = [&server.0, &server_version_num];
    let (datasources, db_modules, catalogs) = futures_util::try_join!(
        client.query(&datasources, &of_server[..1]),
        client.query(&db_modules, &of_server),
        client.query(&catalogs, &of_server),
    )?;
    plan.add_datasources(&datasources, &extensions);
    plan.add_db_modules(&db_modules);
    plan.add_catalogs(&catalogs);
    // For every server: one that has PoWA now may have none when it is read.
    plan.borrowed = Some(plan.blocks(client).await?);
    Ok(plan)
}

/// The blocks of one repository, for all servers that are read by them.
struct Known {
    repository: String,
    /// Of its PoWA.
    version: String,
    blocks: Weak<HashMap<String, Result<String, String>>>,
}

static BLOCKS: Mutex<Vec<Known>> = Mutex::new(Vec::new());

/// The repository's PoWA, if it can be collected for.
///
/// # Errors
/// When there is none, or it is too old.
pub fn repository_powa(extensions: &HashMap<String, Extension>) -> Result<Powa, PlanError> {
    let powa = extension::powa(extensions).ok_or(PlanError::NoPowa)?;
    if !powa.version.is_supported() {
        return Err(PlanError::Unsupported(powa.version));
    }
    Ok(powa)
}

impl Plan {
    /// How its datasources are read elsewhere.
    async fn blocks(&self, client: &Object) -> Result<Blocks, PlanError> {
        let own = self.datasources.iter().filter(|datasource| !datasource.is_external);
        let functions: Vec<&str> = own.map(|datasource| datasource.function.as_str()).collect();
        let (repository, version) = (&self.repository, self.powa.version.to_string());
        let known = {
            let mut all = BLOCKS.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|known| known.blocks.strong_count() > 0);
            let known = all.iter().find(|known| known.repository == *repository && known.version == version);
            known.and_then(|known| known.blocks.upgrade())
        };
        if let Some(blocks) = known.filter(|known| functions.iter().all(|name| known.contains_key(*name))) {
            return Ok(blocks);
        }
        let statement = client.prepare_cached(include_str!("../../sql/repository/definitions.sql")).await?;
        let rows = client.query(&statement, &[&self.powa.schema, &functions]).await?;
        let mut blocks = HashMap::new();
        for row in &rows {
            let definition = Definition {
                name: row.get("name"),
                language: row.get("language"),
                parameter: row.get::<_, Option<String>>("parameter").unwrap_or_default(),
                body: row.get("body"),
            };
            let block = borrowed::block(&definition, &self.powa.schema);
            let block = block.map_err(|refusal| {
                format!(
                    "the repository's definition of {} cannot be run on a server without PoWA {version}: {refusal}",
                    definition.name
                )
            });
            blocks.insert(definition.name, block);
        }
        for name in functions {
            let missing = || Err(format!("the repository has no function {name}(integer)"));
            blocks.entry(name.to_owned()).or_insert_with(missing);
        }
        let blocks = Arc::new(blocks);
        let mut all = BLOCKS.lock().unwrap_or_else(PoisonError::into_inner);
        let repository = repository.clone();
        all.push(Known { repository, version, blocks: Arc::downgrade(&blocks) });
        Ok(blocks)
    }

    /// What can be read by this plan later, when the repository cannot be asked: which catalogs are due it alone knows.
    pub fn without_catalogs(&self) -> Self {
        Self { catalogs: Vec::new(), ..self.clone() }
    }

    fn add_datasources(&mut self, rows: &[Row], extensions: &HashMap<String, Extension>) {
        let mut datasources = Vec::new();
        for row in rows {
            let name: String = row.get("name");
            let extension: Option<String> = row.get("extension");
            let is_external: bool = row.get("external");
            let Some(function) = row.get::<_, Option<String>>("query_source") else {
                let told = format!("datasource {name} has no query_source in the repository: skipped");
                self.skipped.push(told);
                continue;
            };
            let schema = if is_external {
                let home = extension.as_ref().and_then(|extension| extensions.get(extension));
                let Some(home) = home else {
                    self.errors.push(format!(
                        "{name}: the extension {name} is not installed on the repository server"
                    ));
                    continue;
                };
                home.schema.clone()
            } else {
                self.powa.schema.clone()
            };
            datasources.push(Datasource {
                target: Table { schema: Some(schema), name: format!("{function}_tmp") },
                cleanup: row.get("query_cleanup"),
                name,
                extension,
                is_external,
                function,
            });
        }
        self.datasources = shared(datasources, &DATASOURCES);
    }

    fn add_db_modules(&mut self, rows: &[Row]) {
        let mut modules = Vec::new();
        for row in rows {
            let name: String = row.get("name");
            if let Some((query, target)) = self.query_and_target(&name, row) {
                modules.push(DbModule { name, query, target, databases: row.get("dbnames") });
            }
        }
        self.db_modules = shared(modules, &DB_MODULES);
    }

    fn add_catalogs(&mut self, rows: &[Row]) {
        for row in rows {
            let name: String = row.get("name");
            if let Some((query, target)) = self.query_and_target(&name, row) {
                self.catalogs.push(Catalog { name, query, target, excluded: row.get("excluded_dbnames") });
            }
        }
    }

    fn query_and_target(&mut self, name: &str, row: &Row) -> Option<(String, Table)> {
        let Some(query) = row.get::<_, Option<String>>("query_source") else {
            let told = format!("{name} has no query for this server's version in the repository: skipped");
            self.skipped.push(told);
            return None;
        };
        let written: Option<String> = row.get("tmp_table");
        let Some(target) = written.as_deref().and_then(Table::parse) else {
            self.errors.push(format!(
                "{name}: the repository names the target table {written:?}, which is no table name"
            ));
            return None;
        };
        Some((query, target))
    }
}
