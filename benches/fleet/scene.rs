//! The clusters: a repository, and a server with statements and databases that stands for a whole fleet, one
//! address (`127.0.1.1`, `127.0.1.2`, …) a server.

use tokio_postgres::Client;

use crate::support::{Cluster, EXTENSIONS, Powa, Registration, register_server};

/// What a monitored server is like: 4000 statements and 5 databases, as in the figures to compare with.
const STATEMENTS: usize = 4000;
const DATABASES: usize = 4;
const TABLES: usize = 40;

/// Functions that every number can go through.
const FUNCTIONS: [&str; 16] = [
    "abs", "sign", "ceil", "floor", "round", "trunc", "cbrt", "degrees", "radians", "atan", "sin", "cos",
    "tanh", "asinh", "sind", "cosd",
];

pub struct Scene {
    pub repository: Cluster,
    pub monitored: Cluster,
}

impl Scene {
    /// `text_bytes`: of each statement's text, at least.
    pub async fn new(text_bytes: usize) -> Scene {
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
        for number in 0..DATABASES {
            admin.batch_execute(&format!("CREATE DATABASE app{number}")).await.expect("create a database");
            let client = monitored.client(&format!("app{number}")).await;
            let tables = format!(
                "DO $$ BEGIN FOR i IN 1..{TABLES} LOOP EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY, a \
                 text, b numeric, UNIQUE (a))', i); END LOOP; END $$"
            );
            client.batch_execute(&tables).await.expect("create tables");
        }
        run_statements(&monitored.client("app0").await, text_bytes).await;
        Scene { repository, monitored }
    }

    /// A fresh repository in which this many servers are registered, at this address and the next ones.
    pub async fn register(&self, dbname: &str, servers: usize, frequency: i32) -> Client {
        let port = self.monitored.port();
        self.register_at(dbname, servers, frequency, |number| Registration::new(&address(number), port)).await
    }

    pub async fn register_at(
        &self,
        dbname: &str,
        servers: usize,
        frequency: i32,
        registration: impl Fn(usize) -> Registration,
    ) -> Client {
        let admin = self.repository.client("postgres").await;
        admin.batch_execute(&format!("DROP DATABASE IF EXISTS {dbname} WITH (FORCE)")).await.expect("drop");
        self.repository.create_repository(dbname).await;
        let client = self.repository.client(dbname).await;
        for number in 0..servers {
            let server = registration(number).frequency(frequency).extensions(EXTENSIONS);
            register_server(&client, &server).await;
        }
        client
    }
}

fn address(number: usize) -> String {
    format!("127.0.{}.{}", 1 + number / 250, 1 + number % 250)
}

/// Statements that all differ, and not by their constants only.
async fn run_statements(client: &Client, text_bytes: usize) {
    let count = FUNCTIONS.len();
    let statement = |number: usize| {
        let [first, second, third] =
            [number / count / count, number / count, number].map(|digit| FUNCTIONS[digit % count]);
        let text = format!("SELECT {first}({second}({third}(1.5::float8)))");
        let comment = "x".repeat(text_bytes.saturating_sub(text.len() + 7));
        format!("{text} /* {comment} */")
    };
    for number in 0..STATEMENTS {
        client.simple_query(&statement(number)).await.expect("run a statement");
    }
    let seen = client.query_one("SELECT count(*) FROM pg_stat_database", &[]).await;
    seen.expect("the server still answers");
}
