//! The clusters: a repository, and a server with statements and databases that stands for a whole fleet, one
//! address (`127.0.1.1`, `127.0.1.2`, …) a server.

use tokio_postgres::Client;

use crate::support::{Cluster, EXTENSIONS, Powa, Registration, register_server};

/// What a monitored server is like: 4000 statements and 5 databases, as in the figures to compare with.
const STATEMENTS: usize = 4000;
/// How long each one's text is, in bytes: as short as it comes, or so that all of them make 6 MB.
pub const SHORT: usize = 0;
pub const LONG: usize = 1560;
/// What a small one has.
const FEW_STATEMENTS: usize = 50;
const DATABASES: usize = 4;
const TABLES: usize = 40;

/// Functions that every number can go through.
const FUNCTIONS: [&str; 16] = [
    "abs", "sign", "ceil", "floor", "round", "trunc", "cbrt", "degrees", "radians", "atan", "sin", "cos",
    "tanh", "asinh", "sind", "cosd",
];

/// The repository's database.
pub const REPOSITORY: &str = "powa";
/// What it is made of, again and again.
const TEMPLATE: &str = "powa_template";

pub struct Scene {
    pub repository: Cluster,
    pub monitored: Cluster,
}

impl Scene {
    /// `text_bytes`: of each statement's text, at least.
    pub async fn new(text_bytes: usize) -> Scene {
        Scene::with(STATEMENTS, text_bytes, DATABASES).await
    }

    /// A server on which hardly anything happens.
    pub async fn small() -> Scene {
        Scene::with(FEW_STATEMENTS, SHORT, 0).await
    }

    async fn with(statements: usize, text_bytes: usize, databases: usize) -> Scene {
        // As a server has it when nobody has changed anything: the tests' clusters are faster than safe.
        let repository = Cluster::builder(Powa::V5)
            .setting("fsync", "on")
            .setting("synchronous_commit", "on")
            .setting("full_page_writes", "on")
            .setting("shared_buffers", "128MB")
            .setting("max_wal_size", "1GB")
            .start();
        let monitored = Cluster::builder(Powa::V5)
            .setting("max_connections", "1200")
            .setting("pg_stat_statements.max", "5000")
            .setting("pg_qualstats.sample_rate", "0")
            .setting("pg_stat_statements.track_utility", "off")
            .start();
        monitored.create_monitored("powa", EXTENSIONS).await;
        let admin = monitored.client("postgres").await;
        for number in 0..databases {
            admin.batch_execute(&format!("CREATE DATABASE app{number}")).await.expect("create a database");
            let client = monitored.client(&format!("app{number}")).await;
            let tables = format!(
                "DO $$ BEGIN FOR i IN 1..{TABLES} LOOP EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY, a \
                 text, b numeric, UNIQUE (a))', i); END LOOP; END $$"
            );
            client.batch_execute(&tables).await.expect("create tables");
        }
        run_statements(&monitored.client("powa").await, statements, text_bytes).await;
        Scene { repository, monitored }
    }

    /// Registers this many servers in an empty repository, at this address and the next ones.
    pub async fn register(&self, servers: usize, frequency: i32) {
        let port = self.monitored.port();
        self.register_at(servers, frequency, |number| Registration::new(&address(number), port)).await;
    }

    pub async fn register_at(
        &self,
        servers: usize,
        frequency: i32,
        registration: impl Fn(usize) -> Registration,
    ) {
        self.repository.create_repository(TEMPLATE).await;
        let client = self.repository.client(TEMPLATE).await;
        for number in 0..servers {
            let server = registration(number).frequency(frequency).extensions(EXTENSIONS);
            register_server(&client, &server).await;
        }
    }

    /// Leaves the catalogs out, which are most of what a first snapshot is.
    pub async fn without_catalogs(&self) {
        let client = self.repository.client(TEMPLATE).await;
        client.batch_execute("DELETE FROM powa_catalogs").await.expect("leave out the catalogs");
    }

    /// The repository as it was registered, or kept, in place of what has become of it.
    pub async fn fresh(&self) -> Client {
        self.copy(TEMPLATE, REPOSITORY).await;
        self.repository.client(REPOSITORY).await
    }

    /// Makes the repository as it is now the one to begin with.
    pub async fn keep(&self, client: Client) {
        client.batch_execute("VACUUM").await.expect("vacuum");
        drop(client);
        self.copy(REPOSITORY, TEMPLATE).await;
    }

    async fn copy(&self, from: &str, to: &str) {
        let admin = self.repository.client("postgres").await;
        let others = format!(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{from}' AND pid <> \
             pg_backend_pid()"
        );
        admin.batch_execute(&others).await.expect("end sessions");
        admin.batch_execute(&format!("DROP DATABASE IF EXISTS {to} WITH (FORCE)")).await.expect("drop");
        let create = format!("CREATE DATABASE {to} TEMPLATE {from} STRATEGY FILE_COPY");
        admin.batch_execute(&create).await.expect("copy the repository");
    }
}

fn address(number: usize) -> String {
    format!("127.0.{}.{}", 1 + number / 250, 1 + number % 250)
}

/// Statements that all differ, and not by their constants only.
async fn run_statements(client: &Client, statements: usize, text_bytes: usize) {
    let count = FUNCTIONS.len();
    let statement = |number: usize| {
        let [first, second, third] =
            [number / count / count, number / count, number].map(|digit| FUNCTIONS[digit % count]);
        let text = format!("SELECT {first}({second}({third}(1.5::float8)))");
        let comment = "x".repeat(text_bytes.saturating_sub(text.len() + 7));
        format!("{text} /* {comment} */")
    };
    for number in 0..statements {
        client.simple_query(&statement(number)).await.expect("run a statement");
    }
    let seen = client.query_one("SELECT count(*) FROM pg_stat_database", &[]).await;
    seen.expect("the server still answers");
}
