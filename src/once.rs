//! `powa-collector once`: one snapshot of each server now, and a line of how it went.

use std::time::Instant;

use futures_util::{StreamExt, stream};
use tokio_util::sync::CancellationToken;

use crate::config::Configuration;
use crate::fleet::Means;
use crate::postgres::repository::Repository;
use crate::server::{Server, ServerId, Servers};
use crate::snapshot::{self, SnapshotError, Taken};
use crate::worker::Assignment;

/// Takes the snapshots; `only` these servers, or all when it is empty. True when all succeeded.
///
/// # Errors
/// When the repository cannot say which servers there are.
pub async fn run(configuration: &Configuration, only: &[i32]) -> Result<bool, SnapshotError> {
    let settings = &configuration.settings;
    let timeouts = settings.timeouts;
    let repository =
        Repository::new(configuration.repository.clone(), settings.max_connections, timeouts.connect);
    let (Servers { collected: servers, .. }, _) = snapshot::servers(&repository, timeouts.query).await?;
    let mut is_good = true;
    for id in only {
        if !servers.iter().any(|server| server.id == ServerId(*id)) {
            println!("{id}: FAILED: no such server in powa_servers, or it is switched off");
            is_good = false;
        }
    }
    let chosen: Vec<Server> =
        servers.into_iter().filter(|server| only.is_empty() || only.contains(&server.id.0)).collect();
    if chosen.is_empty() && only.is_empty() {
        println!("no servers to collect: powa-collector servers add HOST registers one");
    }

    let means = Means::new(configuration, repository, None);
    let mut results = stream::iter(chosen)
        .map(|server| {
            let assignment = means.assignment(server);
            async move {
                let began = Instant::now();
                let outcome = take(&assignment).await;
                (assignment, outcome, began.elapsed())
            }
        })
        .buffer_unordered(settings.connects_at_once);
    while let Some((assignment, outcome, time)) = results.next().await {
        let (id, name, seconds) = (assignment.server.id, &assignment.name, time.as_secs_f64());
        match outcome {
            Ok(taken) => {
                let told = match taken.error_count() {
                    0 => String::new(),
                    1 => ", 1 error".to_owned(),
                    errors => format!(", {errors} errors"),
                };
                println!("{id} {name}: {} rows, {} bytes, {seconds:.3} s{told}", taken.rows, taken.bytes);
                for error in &taken.errors {
                    println!("    {error}");
                }
                if taken.repository_errors > 0 {
                    println!(
                        "    powa_take_snapshot met {}: see powa_snapshot_metas",
                        taken.repository_errors
                    );
                }
            }
            Err(reason) => {
                println!("{id} {name}: FAILED after {seconds:.3} s: {reason}");
                is_good = false;
            }
        }
    }
    Ok(is_good)
}

async fn take(assignment: &Assignment) -> Result<Taken, String> {
    if !assignment.server.is_registered {
        return Err("it has no row in powa_snapshot_metas: register it with powa_register_server".to_owned());
    }
    let mut remote = assignment.connect().await?;
    let stop = CancellationToken::new();
    let subject = assignment.subject();
    let mut fetched = subject
        .read(&mut remote, None, None, &mut None, false, &stop)
        .await
        .map_err(|error| error.to_string())?;
    fetched.skipped.iter().for_each(|skipped| tracing::warn!("{skipped}"));
    if let Some(reason) = &fetched.borrowed {
        tracing::info!("{reason}: read by the repository's own definitions");
    }
    subject.put(&mut fetched, &stop).await.map_err(|error| error.to_string())
}
