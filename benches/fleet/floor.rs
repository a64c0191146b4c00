//! The floor: what psql needs for the same rows, with nothing but the copying out, the copying in and
//! `powa_take_snapshot`. A few writers share the servers.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::scene::{REPOSITORY, Scene};

/// How many writers are tried: the best of them is the floor.
pub const WRITERS: [usize; 2] = [2, 4];

struct Target {
    copy: String,
    table: String,
}

/// What is read of every server, the same for all.
struct Queries {
    servers: Vec<(i32, String, i32)>,
    global: Vec<(String, String, Option<String>)>,
    modules: Vec<(String, String)>,
    catalogs: Vec<(String, String)>,
    databases: Vec<(u32, String)>,
}

impl Queries {
    async fn read(scene: &Scene, repository: &Client) -> Queries {
        let server = scene.monitored.client("powa").await;
        let version: i32 = {
            let row = server.query_one("SELECT current_setting('server_version_num')::int", &[]).await;
            row.expect("the server's version").get(0)
        };
        let rows =
            async |client: &Client, statement: &str| client.query(statement, &[]).await.expect("a query");
        let servers =
            rows(repository, "SELECT id, hostname, port FROM powa_servers WHERE id > 0 ORDER BY id").await;
        let first: i32 = servers[0].get(0);
        let global = format!(
            "SELECT query_source, query_cleanup FROM powa_functions WHERE operation = 'snapshot' AND enabled AND \
             srvid = {first} AND query_source IS NOT NULL ORDER BY priority"
        );
        let modules = format!(
            "SELECT query_source, tmp_table FROM powa_db_functions({first}, {version}) WHERE operation = 'snapshot' \
             AND enabled AND query_source IS NOT NULL"
        );
        let catalogs = format!(
            "SELECT query_source, tmp_table FROM powa_catalog_functions({first}, {version}, '1 year') WHERE \
             query_source IS NOT NULL"
        );
        let databases = rows(&server, "SELECT oid, datname::text FROM pg_database WHERE datallowconn").await;
        Queries {
            servers: servers.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect(),
            global: rows(repository, &global)
                .await
                .iter()
                .map(|row| {
                    let (source, cleanup): (String, Option<String>) = (row.get(0), row.get(1));
                    // Every extension is in the schema public here.
                    let cleanup =
                        cleanup.map(|text| text.replace(['{', '}'], "").replace("pg_qualstats.", "public."));
                    (format!("public.{source}(0)"), format!("public.{source}_tmp"), cleanup)
                })
                .collect(),
            modules: rows(repository, &modules).await.iter().map(|row| (row.get(0), row.get(1))).collect(),
            catalogs: rows(repository, &catalogs).await.iter().map(|row| (row.get(0), row.get(1))).collect(),
            databases: databases.iter().map(|row| (row.get(0), row.get(1))).collect(),
        }
    }

    /// The script that reads a server, and the tables that its files belong to.
    fn reading(&self, server: i32, directory: &Path, with_catalogs: bool) -> (String, Vec<String>) {
        let mut script = String::from("BEGIN;\n");
        let mut tables = Vec::new();
        let mut add = |script: &mut String, target: Target| {
            let file = directory.join(tables.len().to_string());
            let _ = write!(script, "\\o {}\n{};\n", file.display(), target.copy);
            tables.push(target.table);
        };
        for (function, table, cleanup) in &self.global {
            let copy = format!("COPY (SELECT {server}, * FROM {function}) TO STDOUT");
            add(&mut script, Target { copy, table: table.clone() });
            if let Some(cleanup) = cleanup {
                let _ = write!(script, "\\o /dev/null\n{cleanup};\n");
            }
        }
        script.push_str("\\o /dev/null\nSELECT now() AS time \\gset\nCOMMIT;\n");
        for (oid, name) in &self.databases {
            let _ = writeln!(script, "\\c {name}");
            for (query, table) in &self.modules {
                let copy = format!(
                    "COPY (SELECT {server}, :'time', {oid}, source.* FROM ({query}\n) AS source) TO STDOUT"
                );
                add(&mut script, Target { copy, table: table.clone() });
            }
            for (query, table) in self.catalogs.iter().filter(|_| with_catalogs) {
                let copy =
                    format!("COPY (SELECT {server}, {oid}, source.* FROM ({query}\n) AS source) TO STDOUT");
                add(&mut script, Target { copy, table: table.clone() });
            }
        }
        (script, tables)
    }

    /// One snapshot, by two runs of psql.
    fn snapshot(&self, scene: &Scene, at: usize, directory: &Path, with_catalogs: bool) {
        let (server, host, port) = &self.servers[at];
        let (script, tables) = self.reading(*server, directory, with_catalogs);
        psql(host, *port, "powa", &script, directory);
        let mut script = String::from("BEGIN;\n");
        for (number, table) in tables.iter().enumerate() {
            let _ =
                writeln!(script, "\\copy {table} from '{}'", directory.join(number.to_string()).display());
        }
        let _ = writeln!(script, "SELECT powa_take_snapshot({server});\nCOMMIT;");
        psql("127.0.0.1", scene.repository.port().into(), REPOSITORY, &script, directory);
    }
}

fn psql(host: &str, port: i32, dbname: &str, script: &str, directory: &Path) {
    let file = directory.join("script.sql");
    fs::write(&file, script).expect("write a script");
    let output = Command::new("/usr/lib/postgresql/15/bin/psql")
        .args([
            "-X",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            host,
            "-p",
            &port.to_string(),
            "-U",
            "postgres",
            "-f",
        ])
        .arg(&file)
        .arg(dbname)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .stdin(Stdio::null())
        .output()
        .expect("run psql");
    assert!(output.status.success(), "psql: {}", String::from_utf8_lossy(&output.stderr));
}

/// When each snapshot was in the repository.
pub struct Floor(Vec<Duration>);

impl Floor {
    /// How long all of them took.
    pub fn seconds(&self) -> f64 {
        self.0.last().map_or(f64::INFINITY, Duration::as_secs_f64)
    }

    pub fn per_minute(&self) -> f64 {
        self.points().last().map_or(0.0, |(seconds, count)| count * 60.0 / seconds)
    }

    /// Seconds, and how many were there.
    #[allow(clippy::cast_precision_loss)]
    pub fn points(&self) -> Vec<(f64, f64)> {
        self.0.iter().enumerate().map(|(number, at)| (at.as_secs_f64(), (number + 1) as f64)).collect()
    }
}

/// One snapshot of each server, catalogs included, by so many writers.
pub async fn round(scene: &Scene, repository: &Client, writers: usize) -> Floor {
    let queries = Queries::read(scene, repository).await;
    run(scene, &queries, writers, None)
}

/// Snapshots of the servers in turn, without catalogs, for a time.
pub async fn rate(scene: &Scene, repository: &Client, writers: usize, time: Duration) -> Floor {
    let queries = Queries::read(scene, repository).await;
    run(scene, &queries, writers, Some(time))
}

fn run(scene: &Scene, queries: &Queries, writers: usize, time: Option<Duration>) -> Floor {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    let began = Instant::now();
    let count = queries.servers.len();
    std::thread::scope(|scope| {
        for _ in 0..writers {
            scope.spawn(|| {
                let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("make a directory");
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let is_over = match time {
                        Some(time) => began.elapsed() > time,
                        None => number >= count,
                    };
                    if is_over {
                        return;
                    }
                    queries.snapshot(scene, number % count, directory.path(), time.is_none());
                    done.lock().expect("no panic").push(began.elapsed());
                }
            });
        }
    });
    Floor(done.into_inner().expect("no panic"))
}
