//! UNIX signals, as what they ask for.

use std::io;

use futures_util::{Stream, StreamExt};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook_tokio::Signals;

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGHUP
    Reload,
    /// SIGTERM, SIGINT
    Stop,
}

/// The signals that reach this process from now on.
///
/// # Errors
/// When the system does not let us handle them.
pub fn signals() -> io::Result<impl Stream<Item = Signal> + Unpin> {
    let signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    Ok(signals.map(|signal| if signal == SIGHUP { Signal::Reload } else { Signal::Stop }))
}
