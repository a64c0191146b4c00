//! A collector's spool directory, read from outside.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{Collector, DEADLINE, wait_until};

/// A `spool.directory`.
pub struct Spool {
    path: PathBuf,
    /// Removes it when dropped.
    _directory: Option<TempDir>,
}

impl Spool {
    /// One that is removed when dropped.
    pub fn new() -> Spool {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("make a directory");
        Spool { path: directory.path().to_owned(), _directory: Some(directory) }
    }

    /// Where a collector keeps its snapshots that nobody has told where.
    pub fn of(collector: &Collector) -> Spool {
        Spool { path: collector.directory().join(".local/state/powa-collector"), _directory: None }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The snapshots that wait, by server and then oldest first.
    pub fn snapshots(&self) -> Vec<PathBuf> {
        let mut files = self.files();
        files.retain(|file| file.extension().is_some_and(|extension| extension == "snapshot"));
        files
    }

    /// Those of one server, oldest first.
    pub fn snapshots_of(&self, server: i32) -> Vec<PathBuf> {
        let prefix = format!("{server}-");
        let is_its =
            |file: &PathBuf| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
        self.snapshots().into_iter().filter(is_its).collect()
    }

    pub async fn wait_for_snapshots(&self, least: usize) {
        wait_until("snapshots wait", 2 * DEADLINE, async || self.snapshots().len() >= least).await;
    }

    pub async fn wait_until_no_snapshots(&self) {
        wait_until("no snapshot waits", 2 * DEADLINE, async || self.snapshots().is_empty()).await;
    }

    /// None that waits, and none that is being written or was put aside.
    pub async fn wait_until_empty(&self) {
        wait_until("nothing waits", 4 * DEADLINE, async || self.files().is_empty()).await;
    }

    /// All that is in it besides locks.
    fn files(&self) -> Vec<PathBuf> {
        let (mut files, mut folders) = (Vec::new(), vec![self.path.clone()]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("read a folder") {
                let path = entry.expect("read a folder").path();
                if path.is_dir() {
                    folders.push(path);
                } else if !path.ends_with("lock") {
                    files.push(path);
                }
            }
        }
        files.sort();
        files
    }
}
