//! PoWA repositories and monitored databases.

use tokio_postgres::Client;

use super::cluster::Cluster;

/// The extensions that PoWA can read besides pg_stat_statements, as Debian has them for both versions.
pub const EXTENSIONS: &[&str] =
    &["pg_stat_kcache", "pg_qualstats", "pg_wait_sampling", "pg_track_settings", "hypopg"];

impl Cluster {
    /// A repository: PoWA and all [`EXTENSIONS`], where they are by default.
    pub async fn create_repository(&self, dbname: &str) {
        self.create_powa_database(dbname, None, EXTENSIONS).await;
    }

    /// A database to be monitored: PoWA and the given extensions, where they are by default.
    pub async fn create_monitored(&self, dbname: &str, extensions: &[&str]) {
        self.create_powa_database(dbname, None, extensions).await;
    }

    /// The same in a copy of another database, which has an encoding of its own.
    pub async fn create_copy(&self, dbname: &str, template: &str, extensions: &[&str]) {
        self.create_database(dbname, &format!("TEMPLATE {}", quote_identifier(template))).await;
        self.create_extensions(dbname, None, extensions).await;
    }

    async fn create_database(&self, dbname: &str, options: &str) {
        let admin = self.client("postgres").await;
        let statement = format!("CREATE DATABASE {} {options}", quote_identifier(dbname));
        admin.batch_execute(&statement).await.expect("create a database");
    }

    /// A database with PoWA, what PoWA requires, and `extensions`, all in `schema`, which is made. The
    /// extension powa of version 4 can only be in `public`: there, the schema is for the other extensions.
    ///
    /// PostgreSQL allows none of `"`, `$`, `'` and `\` in the schema of an extension.
    pub async fn create_powa_database(&self, dbname: &str, schema: Option<&str>, extensions: &[&str]) {
        self.create_database(dbname, "").await;
        self.create_extensions(dbname, schema, extensions).await;
    }

    async fn create_extensions(&self, dbname: &str, schema: Option<&str>, extensions: &[&str]) {
        let client = self.client(dbname).await;
        let (mut powa_schema, mut others_schema) = (String::new(), String::new());
        if let Some(schema) = schema {
            let schema = quote_identifier(schema);
            client.batch_execute(&format!("CREATE SCHEMA {schema}")).await.expect("create a schema");
            others_schema = format!("SCHEMA {schema}");
            if self.powa().is_v5() {
                powa_schema = others_schema.clone();
            }
        }
        client
            .batch_execute(&format!("CREATE EXTENSION powa {powa_schema} CASCADE"))
            .await
            .expect("create extension powa");
        for extension in extensions {
            let statement =
                format!("CREATE EXTENSION IF NOT EXISTS {} {others_schema}", quote_identifier(extension));
            client
                .batch_execute(&statement)
                .await
                .unwrap_or_else(|error| panic!("create extension {extension}: {error}"));
        }
    }
}

/// What `powa_register_server` is told. The user is the superuser `postgres`, the database `powa`, the period
/// 5 s, the extensions none but those that PoWA always reads, unless said otherwise.
#[derive(Clone, Debug)]
pub struct Registration {
    pub hostname: String,
    pub port: u16,
    pub alias: Option<String>,
    pub username: String,
    pub password: Option<String>,
    pub dbname: String,
    /// Seconds, at least 5; −1: switched off.
    pub frequency: i32,
    pub extensions: Vec<String>,
}

impl Registration {
    pub fn new(hostname: &str, port: u16) -> Self {
        Registration {
            hostname: hostname.to_owned(),
            port,
            alias: None,
            username: "postgres".to_owned(),
            password: None,
            dbname: "powa".to_owned(),
            frequency: 5,
            extensions: Vec::new(),
        }
    }

    /// At `127.0.0.1`.
    pub fn of(cluster: &Cluster, dbname: &str) -> Self {
        Registration::new("127.0.0.1", cluster.port()).dbname(dbname)
    }

    pub fn alias(mut self, alias: &str) -> Self {
        self.alias = Some(alias.to_owned());
        self
    }

    pub fn credentials(mut self, username: &str, password: Option<&str>) -> Self {
        self.username = username.to_owned();
        self.password = password.map(str::to_owned);
        self
    }

    pub fn dbname(mut self, dbname: &str) -> Self {
        self.dbname = dbname.to_owned();
        self
    }

    pub fn frequency(mut self, seconds: i32) -> Self {
        self.frequency = seconds;
        self
    }

    pub fn extensions(mut self, extensions: &[&str]) -> Self {
        self.extensions = extensions.iter().map(|&extension| extension.to_owned()).collect();
        self
    }
}

/// Registers a server, and returns its id in `powa_servers`. `client` is connected to the repository.
pub async fn register_server(client: &Client, server: &Registration) -> i32 {
    let schema = powa_schema(client).await;
    let port = i32::from(server.port);
    // As a client that has set no search_path: PoWA 4 finds its own functions through it.
    let statement = format!(
        "SELECT {schema}.powa_register_server(hostname => $1, port => $2, alias => $3, username => $4, \
         password => $5, dbname => $6, frequency => $7, extensions => $8)"
    );
    let row = client
        .query_one(
            &statement,
            &[
                &server.hostname,
                &port,
                &server.alias,
                &server.username,
                &server.password,
                &server.dbname,
                &server.frequency,
                &server.extensions,
            ],
        )
        .await
        .unwrap_or_else(|error| panic!("register {}:{port}: {error:?}", server.hostname));
    assert!(row.get::<_, bool>(0), "powa_register_server answered false");

    let statement = format!("SELECT id FROM {schema}.powa_servers WHERE hostname = $1 AND port = $2");
    client.query_one(&statement, &[&server.hostname, &port]).await.expect("find the registered server").get(0)
}

/// The schema of the extension powa, quoted.
pub async fn powa_schema(client: &Client) -> String {
    let statement =
        "SELECT nspname FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace WHERE extname = 'powa'";
    let row = client.query_one(statement, &[]).await.expect("find the extension powa");
    quote_identifier(row.get(0))
}

pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
