//! How many files and connections the system lets this process have open. Monitored servers do not get the last ones:
//! without a file or a connection to the repository, nothing of what is read could be stored.

use std::fs::File;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// More than any fleet takes. Some programs that a `password_command` may run close as many as there may be.
const MOST: u64 = 65_536;

/// What to do when there are too few.
pub const ADVICE: &str = "allow more open files: LimitNOFILE= in the service's unit, or ulimit -n";

/// Too few are left.
#[derive(Debug, thiserror::Error)]
#[error(
    "almost all of the {limit} files and connections that may be open are, the rest is for the repository (what to do: {ADVICE})"
)]
pub struct Scarce {
    limit: u64,
}

/// Takes what the system allows, where it gives less to those who do not ask.
///
/// # Errors
/// Those of the system.
pub fn raise() -> Result<(), Errno> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(MOST)), hard)
}

/// Whether more are left than so many, or half of them where there are not twice as many.
///
/// # Errors
/// When they are not.
pub fn are_left(reserve: usize) -> Result<(), Scarce> {
    let Ok((limit, _)) = getrlimit(Resource::RLIMIT_NOFILE) else { return Ok(()) };
    let reserve = u64::try_from(reserve).unwrap_or(u64::MAX).min(limit / 2);
    // A new one gets the lowest number that is free.
    let next = File::open("/dev/null").ok().and_then(|file| u64::try_from(file.as_raw_fd()).ok());
    if next.is_some_and(|next| next < limit - reserve) { Ok(()) } else { Err(Scarce { limit }) }
}
