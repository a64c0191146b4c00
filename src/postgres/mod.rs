//! Everything that is PostgreSQL's and not PoWA's snapshots: where to connect, how to open a session, what
//! the server at the other end is, and how names are put into a statement.

pub mod conninfo;
pub mod extension;
pub mod repository;
pub mod session;
pub mod tls;
