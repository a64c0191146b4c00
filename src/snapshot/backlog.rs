//! The snapshots that have been fetched and are not stored yet, as files: what is in it survives a repository that is
//! away, a restart and a `kill -9`.
//!
//! Every snapshot comes here between its fetch and its store. Most are gone a moment later. Those that have to wait
//! are limited in bytes: when there are too many, the server that has most of them loses its oldest one.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::fcntl::{Flock, FlockArg};

use super::spool::UNSEALED_PREFIX;
use crate::server::ServerId;

const SUFFIX: &str = ".snapshot";
/// Who has locked this file has the folder.
const LOCK: &str = "lock";

/// Why a file is put aside; its name says so at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aside {
    Damaged,
    /// It is for another repository.
    Foreign,
}

/// Snapshots on disk, by server, oldest first.
#[derive(Debug)]
pub struct Backlog {
    directory: PathBuf,
    max_bytes: AtomicU64,
    /// Whether another folder has taken its place.
    is_left: AtomicBool,
    waiting: Mutex<Waiting>,
    is_writable: AtomicBool,
    /// One collector a directory: another one's snapshots are not ours to store.
    _lock: Flock<File>,
}

#[derive(Debug, Default)]
struct Waiting {
    servers: BTreeMap<ServerId, VecDeque<Entry>>,
    /// The number of the next one.
    next: u64,
    /// How many snapshots of each server were dropped to make room.
    dropped: BTreeMap<ServerId, u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    number: u64,
    bytes: u64,
    /// Whether it is being stored: then it is not dropped.
    is_in_use: bool,
}

/// One snapshot of the backlog, in the hands of its server's worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    pub server: ServerId,
    number: u64,
}

/// Why snapshots cannot wait on disk.
#[derive(Debug, thiserror::Error)]
pub enum BacklogError {
    #[error("{doing} {}: {source}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "{}: another collector of the same repository has it; give each its own spool.directory",
        .0.display()
    )]
    Taken(PathBuf),
}

impl Backlog {
    /// Finds what an earlier run has left in a repository's [`folder`].
    ///
    /// # Errors
    /// When the folder cannot be used.
    pub fn open(directory: PathBuf, max_bytes: u64) -> Result<Self, BacklogError> {
        let io = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| BacklogError::Io { doing, path, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(io("make", &directory))?;
        let path = directory.join(LOCK);
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io("make", &path))?;
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Err(BacklogError::Taken(directory)),
            Err((_, error)) => return Err(io("lock", &path)(error.into())),
        };
        let mut waiting = Waiting::default();
        for entry in fs::read_dir(&directory).map_err(io("read", &directory))? {
            let entry = entry.map_err(io("read", &directory))?;
            let path = entry.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            if name.starts_with(UNSEALED_PREFIX) {
                fs::remove_file(&path).map_err(io("remove", &path))?;
            } else if let Some(ticket) = parse(name) {
                let bytes = entry.metadata().map_err(io("read", &path))?.len();
                waiting.next = waiting.next.max(ticket.number + 1);
                let entry = Entry { number: ticket.number, bytes, is_in_use: false };
                waiting.servers.entry(ticket.server).or_default().push_back(entry);
            }
        }
        for entries in waiting.servers.values_mut() {
            entries.make_contiguous().sort_by_key(|entry| entry.number);
        }
        let backlog = Self {
            directory,
            max_bytes: AtomicU64::new(max_bytes),
            is_left: AtomicBool::new(false),
            waiting: Mutex::new(waiting),
            is_writable: AtomicBool::new(true),
            _lock: lock,
        };
        backlog.make_room();
        Ok(backlog)
    }

    /// Where files are made.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn set_max_bytes(&self, max_bytes: u64) {
        self.max_bytes.store(max_bytes, Ordering::Relaxed);
        self.make_room();
    }

    /// Notes whether another folder has taken its place: then nobody stores what is here when the last one goes who
    /// works with it, and that is said.
    pub fn set_left(&self, is_left: bool) {
        self.is_left.store(is_left, Ordering::Relaxed);
    }

    /// Notes whether a file could be written. True when that is news.
    pub fn note_writable(&self, is_writable: bool) -> bool {
        self.is_writable.swap(is_writable, Ordering::Relaxed) != is_writable
    }

    /// A place at the end of a server's line, for a file that is about to be sealed there.
    pub fn reserve(&self, server: ServerId) -> Ticket {
        let mut waiting = self.waiting();
        let number = waiting.next;
        waiting.next += 1;
        waiting.servers.entry(server).or_default().push_back(Entry { number, bytes: 0, is_in_use: true });
        Ticket { server, number }
    }

    /// The file of a snapshot.
    pub fn path(&self, ticket: Ticket) -> PathBuf {
        self.directory.join(format!("{}-{:012}{SUFFIX}", ticket.server, ticket.number))
    }

    /// The oldest of a server, which is not dropped from now on.
    pub fn oldest(&self, server: ServerId) -> Option<Ticket> {
        let mut waiting = self.waiting();
        let entry = waiting.servers.get_mut(&server)?.front_mut()?;
        entry.is_in_use = true;
        Some(Ticket { server, number: entry.number })
    }

    /// How many snapshots of a server wait, and their bytes.
    pub fn of(&self, server: ServerId) -> (usize, u64) {
        let waiting = self.waiting();
        let entries = waiting.servers.get(&server).into_iter().flatten();
        entries.fold((0, 0), |(count, bytes), entry| (count + 1, bytes + entry.bytes))
    }

    /// How many snapshots of a server were dropped to make room, since it was opened.
    pub fn dropped(&self, server: ServerId) -> u64 {
        self.waiting().dropped.get(&server).copied().unwrap_or_default()
    }

    /// Whether the last file that was to be written could be.
    pub fn is_writable(&self) -> bool {
        self.is_writable.load(Ordering::Relaxed)
    }

    /// The servers that have snapshots here.
    pub fn servers(&self) -> Vec<ServerId> {
        self.waiting().servers.keys().copied().collect()
    }

    /// Lets a snapshot wait. Others may be dropped for it, or it for others.
    pub fn wait(&self, ticket: Ticket) {
        let bytes = fs::metadata(self.path(ticket)).map_or(0, |metadata| metadata.len());
        if let Some(entry) = self.waiting().entry(ticket) {
            *entry = Entry { bytes, is_in_use: false, ..*entry };
        }
        self.make_room();
    }

    /// Forgets a snapshot that is stored, or that nothing can be done with.
    pub fn remove(&self, ticket: Ticket) {
        self.waiting().remove(ticket);
        self.delete(ticket);
    }

    /// Puts a file aside, for somebody to look at. Gives its new name.
    pub fn set_aside(&self, ticket: Ticket, why: Aside) -> PathBuf {
        self.waiting().remove(ticket);
        let path = self.path(ticket);
        let mut aside = path.clone().into_os_string();
        aside.push(match why {
            Aside::Damaged => ".damaged",
            Aside::Foreign => ".foreign",
        });
        if let Err(error) = fs::rename(&path, &aside) {
            tracing::error!("the spool: rename {}: {error}", path.display());
            return path;
        }
        aside.into()
    }

    /// Drops snapshots until the rest is small enough.
    fn make_room(&self) {
        let max_bytes = self.max_bytes.load(Ordering::Relaxed);
        loop {
            let dropped = {
                let mut waiting = self.waiting();
                if waiting.bytes() <= max_bytes {
                    return;
                }
                waiting.drop_one()
            };
            let Some((ticket, left)) = dropped else { return };
            tracing::error!(
                srvid = %ticket.server,
                "the server's oldest snapshot that waits for the repository is dropped: all of them have more than \
                 spool.max_bytes ({max_bytes}); {left} of this server are left"
            );
            self.delete(ticket);
        }
    }

    fn delete(&self, ticket: Ticket) {
        let path = self.path(ticket);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::error!("the spool: remove {}: {error}", path.display());
            }
            _ => {}
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Backlog {
    fn drop(&mut self) {
        if self.is_left.load(Ordering::Relaxed) {
            let waiting = self.waiting();
            let snapshots = waiting.servers.values().map(VecDeque::len).sum();
            let left = Left { snapshots, bytes: waiting.bytes() };
            left.tell(&self.directory);
        }
    }
}

impl Waiting {
    fn bytes(&self) -> u64 {
        self.servers.values().flatten().map(|entry| entry.bytes).sum()
    }

    fn entry(&mut self, ticket: Ticket) -> Option<&mut Entry> {
        self.servers.get_mut(&ticket.server)?.iter_mut().find(|entry| entry.number == ticket.number)
    }

    fn remove(&mut self, ticket: Ticket) {
        if let Some(entries) = self.servers.get_mut(&ticket.server) {
            entries.retain(|entry| entry.number != ticket.number);
            if entries.is_empty() {
                self.servers.remove(&ticket.server);
            }
        }
    }

    /// Takes out the oldest one that is not in use of the server that has most bytes in such. Gives how many that
    /// server has left, too.
    fn drop_one(&mut self) -> Option<(Ticket, usize)> {
        let idle = |entry: &&Entry| !entry.is_in_use;
        let bytes =
            |entries: &VecDeque<Entry>| entries.iter().filter(idle).map(|entry| entry.bytes).sum::<u64>();
        let (server, entries) = self.servers.iter().max_by_key(|(_, entries)| bytes(entries))?;
        let number = entries.iter().find(idle)?.number;
        let ticket = Ticket { server: *server, number };
        self.remove(ticket);
        *self.dropped.entry(ticket.server).or_default() += 1;
        Some((ticket, self.servers.get(&ticket.server).map_or(0, VecDeque::len)))
    }
}

/// Where snapshots wait for a repository, which is given as people call it: what one can read, and a number that tells
/// those apart that look alike.
pub fn folder(directory: &Path, repository: &str) -> PathBuf {
    let plain = |c: char| if c.is_ascii_alphanumeric() || ".-".contains(c) { c } else { '_' };
    let readable: String = repository.chars().map(plain).take(80).collect();
    directory.join(format!("{readable}-{:08x}", crc32fast::hash(repository.as_bytes())))
}

/// What waits in a folder and nobody stores.
#[derive(Debug, PartialEq, Eq)]
pub struct Left {
    pub snapshots: usize,
    pub bytes: u64,
}

impl Left {
    /// Looks into a folder. None when a collector has it: it stores what is there.
    pub fn of(folder: &Path) -> Option<Self> {
        let lock = File::open(folder.join(LOCK)).map(|file| Flock::lock(file, FlockArg::LockSharedNonblock));
        if matches!(lock, Ok(Err((_, nix::errno::Errno::EWOULDBLOCK)))) {
            return None;
        }
        let mut left = Self { snapshots: 0, bytes: 0 };
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_name().to_str().and_then(parse).is_some() {
                left.snapshots += 1;
                left.bytes += entry.metadata().map_or(0, |metadata| metadata.len());
            }
        }
        Some(left)
    }

    /// Says so, if it is anything.
    pub fn tell(&self, folder: &Path) {
        let Self { snapshots, bytes } = self;
        if *snapshots > 0 {
            tracing::warn!(
                "{}: nobody stores what waits there, snapshots: {snapshots}, bytes: {bytes}; it is for another \
                 repository.dsn or spool.directory: give back the former one until they are stored, or remove the folder",
                folder.display()
            );
        }
    }
}

fn parse(name: &str) -> Option<Ticket> {
    let (server, number) = name.strip_suffix(SUFFIX)?.split_once('-')?;
    Some(Ticket { server: ServerId(server.parse().ok()?), number: number.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ServerId = ServerId(1);
    const B: ServerId = ServerId(22);

    fn open(directory: &Path, max_bytes: u64) -> Backlog {
        Backlog::open(folder(directory, "db.example:5432/powa"), max_bytes).unwrap()
    }

    fn add(backlog: &Backlog, server: ServerId, bytes: usize) -> Ticket {
        let ticket = backlog.reserve(server);
        fs::write(backlog.path(ticket), vec![0; bytes]).unwrap();
        backlog.wait(ticket);
        ticket
    }

    /// The numbers of those of a server that are there, on disk too.
    fn numbers(backlog: &Backlog, server: ServerId) -> Vec<u64> {
        let entries = backlog.waiting().servers.get(&server).cloned().unwrap_or_default();
        for entry in &entries {
            assert!(backlog.path(Ticket { server, number: entry.number }).exists());
        }
        entries.iter().map(|entry| entry.number).collect()
    }

    #[test]
    fn the_oldest_comes_first_also_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let backlog = open(directory.path(), 100);
        let tickets = [A, B, A, A].map(|server| add(&backlog, server, 10));
        assert_eq!(backlog.oldest(A), Some(tickets[0]));
        backlog.remove(tickets[0]);
        fs::write(backlog.directory().join(format!("{UNSEALED_PREFIX}x")), "torn").unwrap();
        drop(backlog);
        let backlog = open(directory.path(), 100);
        assert_eq!(numbers(&backlog, A), [2, 3]);
        assert_eq!(backlog.of(A), (2, 20));
        assert_eq!(backlog.oldest(B), Some(tickets[1]));
        assert_eq!(add(&backlog, B, 1).number, 4);
        let unsealed =
            |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().to_string_lossy().starts_with('.');
        assert!(!fs::read_dir(backlog.directory()).unwrap().any(unsealed));
    }

    #[test]
    fn a_server_with_much_does_not_push_out_another_ones() {
        let directory = tempfile::tempdir().unwrap();
        let backlog = open(directory.path(), 100);
        let small = add(&backlog, A, 10);
        for _ in 0..5 {
            add(&backlog, B, 30);
        }
        assert_eq!(numbers(&backlog, A), [small.number]);
        assert_eq!(numbers(&backlog, B), [3, 4, 5]);
        backlog.set_max_bytes(50);
        assert_eq!((numbers(&backlog, A), numbers(&backlog, B)), (vec![0], vec![5]));
    }

    #[test]
    fn what_an_earlier_run_has_left_is_limited_too() {
        let directory = tempfile::tempdir().unwrap();
        let backlog = open(directory.path(), 100);
        for _ in 0..3 {
            add(&backlog, A, 30);
        }
        drop(backlog);
        let backlog = open(directory.path(), 60);
        assert_eq!(numbers(&backlog, A), [1, 2]);
        assert_eq!(fs::read_dir(backlog.directory()).unwrap().count(), 3, "with the lock");
    }

    #[test]
    fn one_that_is_being_stored_is_not_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let backlog = open(directory.path(), 100);
        add(&backlog, A, 60);
        let stored = backlog.oldest(A).unwrap();
        add(&backlog, A, 60);
        assert_eq!(numbers(&backlog, A), [stored.number]);
        backlog.remove(stored);
        assert_eq!(backlog.of(A), (0, 0));
    }

    #[test]
    fn a_folder_has_one_collector_and_each_repository_its_folder() {
        let directory = tempfile::tempdir().unwrap();
        let backlog = open(directory.path(), 100);
        let other = Backlog::open(backlog.directory().to_owned(), 100).unwrap_err();
        assert!(matches!(&other, BacklogError::Taken(path) if path == backlog.directory()), "{other}");
        let other = Backlog::open(folder(directory.path(), "db.example:5432/../powa"), 100).unwrap();
        assert_eq!(other.directory().parent(), backlog.directory().parent());
        drop(backlog);
        open(directory.path(), 100);
    }

    #[test]
    fn what_is_left_in_a_folder_is_counted_unless_a_collector_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let backlog = open(directory.path(), 100);
        let folder = backlog.directory().to_owned();
        for (server, bytes) in [(A, 10), (A, 20), (B, 30)] {
            add(&backlog, server, bytes);
        }
        let damaged = add(&backlog, B, 40);
        backlog.set_aside(damaged, Aside::Damaged);
        assert_eq!(Left::of(&folder), None);
        drop(backlog);
        assert_eq!(Left::of(&folder), Some(Left { snapshots: 3, bytes: 60 }));
        assert_eq!(Left::of(&folder.join("lock")), Some(Left { snapshots: 0, bytes: 0 }));
    }

    #[test]
    fn a_damaged_file_is_kept_out_of_the_line() {
        let directory = tempfile::tempdir().unwrap();
        let backlog = open(directory.path(), 100);
        let ticket = add(&backlog, A, 10);
        let aside = backlog.set_aside(ticket, Aside::Damaged);
        assert!(aside.exists() && aside.to_string_lossy().ends_with(".snapshot.damaged"));
        drop(backlog);
        assert_eq!(open(directory.path(), 100).of(A), (0, 0));
    }
}
