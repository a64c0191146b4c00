//! Snapshots that wait for servers which have been removed from the repository: they can never be stored there. What
//! waits for a server that is only switched off stays: it is stored when the server is on again.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::backlog::{Aside, Backlog};
use super::spool::Spool;
use crate::server::ServerId;

/// Those of the servers for which snapshots wait that are not registered any more.
///
/// A repository without servers is taken for one that is being restored or set up: its servers are not there yet.
pub fn servers(waiting: &[ServerId], registered: &BTreeSet<ServerId>) -> Vec<ServerId> {
    if registered.is_empty() {
        return Vec::new();
    }
    waiting.iter().copied().filter(|server| !registered.contains(server)).collect()
}

/// Removes what waits for servers without a worker that `repository`, as it names itself, does not have.
pub async fn clear(backlog: Arc<Backlog>, repository: String, servers: Vec<ServerId>) {
    for server in servers {
        let (mut snapshots, mut bytes) = (0, 0);
        while let Some(ticket) = backlog.oldest(server) {
            match Spool::open(backlog.path(ticket)).await {
                Ok((index, spool)) if index.repository == repository => {
                    snapshots += 1;
                    bytes += spool.bytes();
                    backlog.remove(ticket);
                }
                // Another cluster has come to the same place, perhaps for a while: it does not know this server.
                Ok(_) => {
                    backlog.wait(ticket);
                    break;
                }
                Err(damage) => {
                    let aside = backlog.set_aside(ticket, Aside::Damaged);
                    tracing::error!(
                        srvid = %server,
                        "a snapshot of a server that was removed: {damage}; the file is now {}",
                        aside.display()
                    );
                }
            }
        }
        if snapshots > 0 {
            tracing::warn!(
                srvid = %server,
                "the server is not in powa_servers any more: what waited for the repository is removed, snapshots: \
                 {snapshots}, bytes: {bytes}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::file::Index;

    const HERE: &str = "1/powa";
    const A: ServerId = ServerId(1);
    const B: ServerId = ServerId(2);

    async fn add(backlog: &Backlog, server: ServerId, repository: &str) {
        let index = Index {
            repository: repository.to_owned(),
            server: server.0,
            time: String::new(),
            powa_version: "5.0.2".to_owned(),
            powa_schema: "public".to_owned(),
            errors: Vec::new(),
            tables: Vec::new(),
        };
        let ticket = backlog.reserve(server);
        let mut spool = Spool::new(0, backlog.directory().to_owned());
        spool.seal(backlog.path(ticket), index).await.unwrap();
        backlog.wait(ticket);
    }

    #[test]
    fn only_what_the_repository_does_not_list_is_removed() {
        let registered = BTreeSet::from([A, ServerId(3)]);
        assert_eq!(servers(&[A, B], &registered), [B]);
        assert_eq!(servers(&[], &registered), []);
    }

    #[test]
    fn a_repository_that_is_empty_has_forgotten_nobody() {
        assert_eq!(servers(&[A, B], &BTreeSet::new()), []);
    }

    #[tokio::test]
    async fn what_waits_for_servers_that_were_removed_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let backlog = Arc::new(Backlog::open(directory.path().join("a"), 100_000).unwrap());
        for server in [A, B, B, A, B] {
            add(&backlog, server, HERE).await;
        }
        let damaged = backlog.oldest(B).unwrap();
        std::fs::write(backlog.path(damaged), "damaged").unwrap();
        clear(Arc::clone(&backlog), HERE.to_owned(), vec![B]).await;
        assert_eq!((backlog.of(A).0, backlog.of(B).0), (2, 0));
        let left = std::fs::read_dir(backlog.directory()).unwrap();
        // With the lock, and what was damaged.
        assert_eq!(left.count(), 4);
    }

    #[tokio::test]
    async fn what_waits_for_another_repository_stays() {
        let directory = tempfile::tempdir().unwrap();
        let backlog = Arc::new(Backlog::open(directory.path().join("a"), 100_000).unwrap());
        add(&backlog, A, HERE).await;
        add(&backlog, A, "2/powa").await;
        clear(Arc::clone(&backlog), HERE.to_owned(), vec![A]).await;
        clear(Arc::clone(&backlog), HERE.to_owned(), vec![A]).await;
        assert_eq!(backlog.of(A).0, 1);
    }
}
