//! What the tests against real PostgreSQL share: clusters of their own ([`Cluster`]), with PoWA 4 or PoWA 5
//! ([`Powa`]), the program under test as a process ([`Collector`]) and a client of its control channel
//! ([`Control`]).
//!
//! A test file says `mod support;` and wraps its tests in [`on_both_versions!`]. Nothing a test starts
//! outlives it, even when it is killed; a failed test leaves its clusters' directories behind and prints
//! where they are.
//!
//! The servers themselves are installed by `tests/support/postgresql`, which `make test` runs first.
#![allow(dead_code, unused_imports, reason = "each test file uses a part of this module")]

pub mod browser;
mod cluster;
mod collector;
mod control;
mod database;
pub mod http;
mod installation;
mod libpq;
mod process;
mod proxy;
mod spool;
mod terminal;

use std::time::{Duration, Instant};

pub use cluster::{Cluster, ClusterBuilder};
pub use collector::{Collector, CollectorBuilder};
pub use control::{Control, Notification};
pub use database::{EXTENSIONS, Registration, powa_schema, quote_identifier, register_server};
pub use installation::Powa;
pub use libpq::{Connected, Libpq, LibpqKeyword, LibpqParser, Pairs};
pub use nix::sys::signal::Signal;
pub use proxy::{Fault, Proxy};
pub use spool::Spool;
pub use terminal::Terminal;

/// How long a test waits for something that should take a moment.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Makes two tests of each `async fn name(powa: Powa)`: `powa4::name` and `powa5::name`. Once per file.
///
/// A function may return a `Result`, and attributes (`#[ignore]`, doc comments) go to both tests.
#[allow(unused_macros, reason = "not every test file is about both")]
macro_rules! on_both_versions {
    ($(
        $(#[$attribute:meta])*
        async fn $name:ident($powa:ident: $version:ty) $(-> $result:ty)? $body:block
    )+) => {
        $(async fn $name($powa: $version) $(-> $result)? $body)+

        mod powa4 {
            #[allow(unused_imports, reason = "for the names in the functions' results")]
            use super::*;
            $(
                $(#[$attribute])*
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() $(-> $result)? { super::$name($crate::support::Powa::V4).await }
            )+
        }

        mod powa5 {
            #[allow(unused_imports, reason = "for the names in the functions' results")]
            use super::*;
            $(
                $(#[$attribute])*
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() $(-> $result)? { super::$name($crate::support::Powa::V5).await }
            )+
        }
    };
}
pub(crate) use on_both_versions;

/// A number that an environment variable may give.
pub fn number_from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// What chance is made of in a test that has any: `SWEEP_SEED`, or new each time. It is printed, for another run.
pub fn seed() -> u64 {
    let seed = number_from_environment("SWEEP_SEED", rand::random());
    eprintln!("SWEEP_SEED={seed}");
    seed
}

/// Tries `probe` until it answers `true` or `Some`, and returns what it answered. Panics, naming `what`,
/// after `deadline`.
pub async fn wait_until<C: Condition>(
    what: &str,
    deadline: Duration,
    mut probe: impl AsyncFnMut() -> C,
) -> C::Value {
    let started = Instant::now();
    loop {
        if let Some(value) = probe().await.met() {
            return value;
        }
        assert!(started.elapsed() < deadline, "waited {deadline:?} in vain: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What a probe of [`wait_until`] may answer.
pub trait Condition {
    type Value;
    fn met(self) -> Option<Self::Value>;
}

impl Condition for bool {
    type Value = ();
    fn met(self) -> Option<()> {
        self.then_some(())
    }
}

impl<T> Condition for Option<T> {
    type Value = T;
    fn met(self) -> Option<T> {
        self
    }
}
