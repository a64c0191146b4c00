//! The spool directory: a folder for each repository ([`super::backlog`]). One is the present repository's. What waits
//! in the others nobody stores, and whoever can do something about that is told.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use tokio::time::Instant;

use super::backlog::{self, Backlog, BacklogError, Left};
use crate::config::Configuration;
use crate::schedule;

/// The folders of this process.
#[derive(Debug, Default)]
pub struct Folders {
    /// Those that somebody still works with: a store in progress may outlast that another repository is configured.
    open: BTreeMap<PathBuf, Weak<Backlog>>,
    /// How many times in a row the present repository's could not be opened.
    failures: u32,
    /// When to try that again.
    next_try: Option<Instant>,
}

impl Folders {
    /// The folder of a repository that has just been configured. None: it is to be tried again.
    pub fn open(&mut self, configuration: &Configuration) -> Option<Arc<Backlog>> {
        self.failures = 0;
        self.try_again(configuration, false)
    }

    /// The same, after it could not be opened. `is_asked`: somebody wants to know what is wrong.
    pub fn try_again(&mut self, configuration: &Configuration, is_asked: bool) -> Option<Arc<Backlog>> {
        let settings = &configuration.settings;
        let (directory, place) = (&settings.spool_directory, configuration.repository.place());
        match self.backlog(directory, &place, settings.spool_max_bytes) {
            Ok(backlog) => {
                if std::mem::take(&mut self.failures) > 0 {
                    tracing::info!(
                        "snapshots can wait while the repository is away: {} can be used",
                        backlog.directory().display()
                    );
                }
                self.next_try = None;
                tell_others(directory);
                Some(backlog)
            }
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                self.next_try = Some(Instant::now() + schedule::backoff(self.failures, rand::random()));
                if self.failures == 1 || is_asked {
                    tracing::error!(
                        "snapshots will not wait while the repository is away, but be lost: {error}; trying again \
                         until it works"
                    );
                } else {
                    tracing::debug!("snapshots cannot wait: {error}");
                }
                None
            }
        }
    }

    /// When to try again to open the present repository's.
    pub fn next_try(&self) -> Option<Instant> {
        self.next_try
    }

    fn backlog(
        &mut self,
        directory: &Path,
        repository: &str,
        max_bytes: u64,
    ) -> Result<Arc<Backlog>, BacklogError> {
        let folder = backlog::folder(directory, repository);
        self.open.retain(|_, backlog| backlog.strong_count() > 0);
        for (other, backlog) in &self.open {
            if let Some(backlog) = backlog.upgrade() {
                backlog.set_left(*other != folder);
            }
        }
        if let Some(backlog) = self.open.get(&folder).and_then(Weak::upgrade) {
            backlog.set_max_bytes(max_bytes);
            return Ok(backlog);
        }
        let backlog = Arc::new(Backlog::open(folder.clone(), max_bytes)?);
        self.open.insert(folder, Arc::downgrade(&backlog));
        Ok(backlog)
    }
}

/// Says what waits in a directory where nobody is at work. The folders that were left just now say it themselves.
fn tell_others(directory: &Path) {
    // Where it cannot be read, that is said of the folder that is needed.
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let folder = entry.path();
        if let Some(left) = Left::of(&folder) {
            left.tell(&folder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::ServerId;

    const A: &str = "a.example:5432/powa";
    const B: &str = "b.example:5432/powa";

    fn add(backlog: &Backlog, bytes: usize) {
        let ticket = backlog.reserve(ServerId(1));
        fs::write(backlog.path(ticket), vec![0; bytes]).unwrap();
        backlog.wait(ticket);
    }

    #[test]
    fn a_folder_that_somebody_still_works_with_is_shared() {
        let directory = tempfile::tempdir().unwrap();
        let mut folders = Folders::default();
        let at_work = folders.backlog(directory.path(), A, 100).unwrap();
        add(&at_work, 60);
        folders.backlog(directory.path(), B, 100).unwrap();
        let again = folders.backlog(directory.path(), A, 50).unwrap();
        assert!(Arc::ptr_eq(&at_work, &again));
        assert_eq!(again.of(ServerId(1)), (0, 0), "the new limit counts");
        drop((at_work, again));
        folders.backlog(directory.path(), A, 100).expect("it is opened anew");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_cannot_be_opened_is_tried_again_later_each_time() {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path().join("spool");
        let file = directory.path().join("configuration");
        let text =
            serde_json::json!({ "repository": { "dsn": "host=h user=u" }, "spool": { "directory": spool } });
        fs::write(&file, text.to_string()).unwrap();
        let configuration = crate::config::load(Some(&file)).unwrap().configuration;
        // Not even root can make a folder in a file.
        fs::write(&spool, "").unwrap();
        let mut folders = Folders::default();
        assert!(folders.open(&configuration).is_none());
        for most in [1u32, 2, 4, 8, 16, 32, 60, 60] {
            let wait = (folders.next_try().unwrap() - Instant::now()).as_secs_f64();
            assert!((f64::from(most) / 2.0..=f64::from(most)).contains(&wait), "{wait} s of {most}");
            assert!(folders.try_again(&configuration, false).is_none());
        }
        fs::remove_file(&spool).unwrap();
        assert!(folders.try_again(&configuration, false).is_some());
        assert_eq!((folders.next_try(), folders.failures), (None, 0));
    }
}
