//! Keeping the tables small that all snapshots of a repository pass through.
//!
//! `powa_take_snapshot` deletes what it has taken over from the `*_src_tmp` tables, but what is deleted stays in the
//! file until a vacuum, and every snapshot reads these tables whole, more than once. Autovacuum comes once a minute
//! at best: by then a large fleet has left a hundred thousands of dead rows for each of them to wade through.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::Error;
use tokio_util::sync::CancellationToken;

use super::spool::Part;
use crate::postgres::repository::Object;
use crate::postgres::text::causes;

/// A table with this many dead rows is vacuumed.
const DEAD_ROWS: u64 = 50_000;

/// How many rows have died in each table since it was vacuumed, as far as it was our doing.
#[derive(Debug, Default)]
pub struct Vacuum(Mutex<BTreeMap<String, Table>>);

#[derive(Debug, Default)]
struct Table {
    dead: u64,
    /// Whether we have no right to vacuum it.
    is_foreign: bool,
}

impl Vacuum {
    /// Notes rows that are about to pass through their tables.
    pub fn note(&self, parts: &[Part]) {
        let mut tables = self.tables();
        for part in parts {
            tables.entry(part.target.quoted()).or_default().dead += part.rows;
        }
    }

    /// Vacuums the tables that need it, as far as we may. Two never vacuum the same one. A stop breaks it off.
    pub async fn run(&self, client: Object, deadline: Duration, stop: &CancellationToken) {
        let due = self.take_due();
        if due.is_empty() {
            return;
        }
        let vacuuming = timeout(deadline, self.vacuum(&client, due));
        let reason = match stop.run_until_cancelled(vacuuming).await {
            Some(Ok(Ok(()))) => return,
            Some(Ok(Err(error))) => causes(&error),
            Some(Err(_)) => format!("not done within {} s", deadline.as_secs()),
            None => "broken off by a stop".to_owned(),
        };
        tracing::debug!("vacuum: {reason}");
        // The server ends what its client has left.
        drop(Object::take(client));
    }

    async fn vacuum(&self, client: &Object, due: Vec<String>) -> Result<(), Error> {
        let statement = client.prepare_cached(include_str!("../../sql/repository/may_vacuum.sql")).await?;
        let rows = client.query(&statement, &[&due]).await?;
        let (ours, foreign): (Vec<String>, Vec<String>) =
            due.into_iter().partition(|name| rows.iter().any(|row| row.get::<_, &str>(0) == name));
        if !foreign.is_empty() {
            tracing::debug!("left to autovacuum, for want of the right to: {}", foreign.join(", "));
            self.leave(&foreign);
        }
        if ours.is_empty() {
            return Ok(());
        }
        // Not shortened: that waits up to five seconds for everybody else to be gone from the table.
        client.batch_execute(&format!("VACUUM (SKIP_LOCKED, TRUNCATE off) {}", ours.join(", "))).await
    }

    fn take_due(&self) -> Vec<String> {
        let mut tables = self.tables();
        let due = tables.iter_mut().filter(|(_, table)| table.dead >= DEAD_ROWS && !table.is_foreign);
        due.map(|(name, table)| {
            table.dead = 0;
            name.clone()
        })
        .collect()
    }

    fn leave(&self, foreign: &[String]) {
        let mut tables = self.tables();
        for name in foreign {
            tables.entry(name.clone()).or_default().is_foreign = true;
        }
    }

    fn tables(&self) -> MutexGuard<'_, BTreeMap<String, Table>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
