//! The log: one line an event on standard error, with time, level and, for what concerns one server, its name.

use std::io::{self, IsTerminal};

use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, reload};

/// The log's switch between the normal and the `debug` level.
#[derive(Clone)]
pub struct Verbosity(reload::Handle<EnvFilter, Registry>);

impl Verbosity {
    pub fn set_debug(&self, debug: bool) {
        // Fails only when the subscriber is gone, and then nobody reads the log.
        let _ = self.0.reload(filter(debug));
    }
}

/// Starts the log. Call once, first of all.
pub fn start() -> Verbosity {
    let (filter, handle) = reload::Layer::new(filter(false));
    let lines = fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal()).with_target(false);
    tracing_subscriber::registry().with(filter).with(lines).init();
    Verbosity(handle)
}

/// Libraries log at `warn` and above: at `debug` they may show what passes over a connection.
fn filter(debug: bool) -> EnvFilter {
    EnvFilter::new(if debug {
        "warn,powa_collector=debug,deadpool=error"
    } else {
        "warn,powa_collector=info,deadpool=error"
    })
}
