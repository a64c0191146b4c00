//! Everything that is PostgreSQL's and not PoWA's snapshots: where to connect, how to open a session, what
//! the server at the other end is, and how names are put into a statement.
//!
//! The way of a connection: [`conninfo`] (what is wanted) → [`dial`] (which host, which password; [`socket`], [`gather`], [`tls`], [`login`])
//! → [`session`] (its settings, and what the server is) → [`repository`], where several are kept.

pub mod advice;
pub mod conninfo;
pub mod dial;
pub mod extension;
pub mod failure;
pub mod gather;
pub mod login;
pub mod password_command;
pub mod repository;
pub mod secret;
pub mod session;
pub mod socket;
pub mod text;
pub mod tls;
pub mod tokens;
