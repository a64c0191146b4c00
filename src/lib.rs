//! The collector of PoWA, the PostgreSQL Workload Analyzer: takes snapshots of a fleet of PostgreSQL servers
//! and puts them into the *repository*, a database with the extension `powa`.
//!
//! # The way of the data
//!
//! ```text
//! powa_servers ─▶ collector ─▶ worker ─▶ turns ─▶ plan ─▶ fetch ─▶ spool ─▶ backlog ─▶ store ─▶ repository
//! NOTIFY, signals ─▶ collector ─▶ worker                                                          │
//! client ◀── pg_notify ◀── listener ◀── collector ◀── state (watch), report ◀── worker ◀──────────┘
//! browser, Prometheus ◀── http ◀── overview ◀── collector
//! ```
//!
//! - [`collector`] is the dispatcher. It owns all state; signals, control messages, what was read anew and the
//!   ends of workers reach it as events.
//! - [`fleet`] is its workers. It compares the servers that should be collected with the workers there are, and
//!   changes only what differs.
//! - [`worker`]: one task per server. Waits until a snapshot is due or asked for, takes it, says how it is.
//! - [`report`] and [`figures`]: what a worker writes down of how it goes, for whoever asks. [`client`] is who asks from
//!   the command line, and [`client::servers`] who changes `powa_servers` from there; [`http`] shows all of it, as an
//!   [`overview`] that the dispatcher gives.
//! - [`snapshot::turns`]: who is next. Of those that are due, the one that has been due longest.
//! - [`snapshot::plan`]: what a snapshot of this server is made of. A short question to the repository.
//! - [`snapshot::borrowed`]: how a server without PoWA is read, by the repository's own definitions.
//! - [`snapshot::fetch`]: reads it. One transaction on the monitored server, all statements sent before the
//!   first answer is awaited; it ends with its last row.
//! - [`snapshot::spool`]: what a fetch leaves, in memory while small and in a file when not.
//! - [`snapshot::backlog`]: what was fetched and is not stored yet, a file each ([`snapshot::file`]). It outlasts us.
//!   Each repository has a folder of its own ([`snapshot::folders`]); what waits for a server that was removed goes
//!   ([`snapshot::removed`]).
//! - [`snapshot::store`]: copies the rows in and calls `powa_take_snapshot`, in one transaction.
//! - [`snapshot::vacuum`]: keeps the tables small that the rows have passed through.
//! - [`systemd`]: what the service manager is told of all this.
//!
//! # What always holds
//!
//! 1. Nothing here keeps a transaction open on a monitored server while it waits for something else.
//! 2. A snapshot is stored whole or not at all. A datasource that fails costs its own rows only, and its error
//!    is written to `powa_snapshot_metas.errors`. One that was fetched is stored, once and in its turn, or said to be
//!    dropped: the repository and we may be away meanwhile.
//! 3. No more than `repository.max_connections` snapshots are in the repository at once: its staging tables are
//!    shared by all servers, and many at a time slow each other down. No more than `fetch.at_once` are on the
//!    way there, but for those whose servers are slow. Who waits holds no connection and no rows in memory.
//! 4. Commands are answered whatever the workers do and however busy the repository's pool is: they come and go
//!    over a connection of their own.
//! 5. A failure belongs to one worker. It backs off, tries again, and says so once and when it is over; what comes
//!    again with each snapshot is counted ([`repeated`]); a panic ends no other, and the worker is started again. That the repository is away is known to all as soon as one has found it out.
//! 6. Every wait for the network has a deadline, and those that are repeated wait longer each time.
//! 7. Values are parameters. A name becomes part of a statement in [`postgres::extension`] only.
//! 8. Monitored servers leave the repository what it needs of files and connections ([`descriptors`]).
//! 9. Passwords are [`postgres::secret::Secret`]s, which cannot be printed. No error repeats what might be one.
//! 10. The service manager's watchdog is fed by the dispatcher's own loop: when that stands still, so does the feeding,
//!     whatever else goes on.
//!
//! # Which line belongs where
//!
//! Dependencies point one way: `main` → [`collector`] → [`fleet`] → [`control`], [`worker`] → [`snapshot`] →
//! [`postgres`]; [`check`], [`once`] and [`client`], which uses [`check`], stand beside [`collector`], which alone talks to
//! [`systemd`] and [`http`]. SQL lives in `sql/`, a file a statement, unless it is a line, and is sent from [`control`],
//! [`client`], [`snapshot`], [`server`], [`check`] and [`postgres`] only. Connections are opened in [`postgres::session`] only, by way of
//! [`postgres::dial`], but for [`client::health`]'s; what is not ours to know, variables and files, is read in [`config`], [`postgres::conninfo`]
//! and [`postgres::tls`] only, but for the service manager's, in [`systemd`]; what the system grants is settled in
//! [`descriptors`] and [`memory`], and where the log goes in [`telemetry`]; a program is run in
//! [`postgres::password_command`] only. Tasks are spawned in [`collector`], [`fleet`], [`control::listener`], [`http`] and
//! [`postgres::session`] only, and the process ends in `main` only. [`control::protocol`], [`schedule`],
//! [`repeated`], [`config::log`], [`snapshot::borrowed`] and every parser are pure: time and dice are handed to them.

pub mod check;
pub mod cli;
pub mod client;
pub mod collector;
pub mod config;
pub mod control;
pub mod descriptors;
pub mod figures;
pub mod fleet;
pub mod http;
pub mod memory;
pub mod once;
pub mod overview;
pub mod postgres;
pub mod repeated;
pub mod report;
pub mod schedule;
pub mod server;
pub mod signals;
pub mod snapshot;
pub mod systemd;
pub mod telemetry;
pub mod worker;
