//! A terminal, and somebody who sits before it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::openpty;
use nix::sys::termios::{LocalFlags, tcgetattr};

use super::DEADLINE;

/// A pseudo-terminal, seen from the side of who sits before it.
pub struct Terminal(File);

impl Terminal {
    /// Makes a program that is run so, with the terminal as its standard input, one that this terminal steers.
    pub const WRAPPER: [&str; 2] = ["/usr/bin/setsid", "--ctty"];

    /// A terminal, and the side of it that is for a program.
    pub fn open() -> (Terminal, OwnedFd) {
        let pair = openpty(None, None).expect("open a pseudo-terminal");
        for side in [&pair.master, &pair.slave] {
            // Other programs that the test starts must not hold it open.
            fcntl(side, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("keep it from other programs");
        }
        (Terminal(pair.master.into()), pair.slave)
    }

    /// Waits until `prompt` is shown and what is typed no longer is, and types. Gives all that was shown, when the
    /// program has ended.
    pub fn type_unseen(mut self, prompt: &str, keys: &str) -> JoinHandle<String> {
        let (prompt, keys) = (prompt.to_owned(), keys.to_owned());
        thread::spawn(move || {
            let mut shown = String::new();
            while !shown.contains(&prompt) {
                if !self.read(&mut shown) {
                    return shown;
                }
            }
            let started = Instant::now();
            while self.shows_what_is_typed() {
                assert!(started.elapsed() < DEADLINE, "what is typed is shown: {shown}");
                thread::sleep(Duration::from_millis(5));
            }
            self.0.write_all(keys.as_bytes()).expect("type");
            while self.read(&mut shown) {}
            shown
        })
    }

    /// Types, whether anybody asks or not.
    pub fn type_ahead(&mut self, keys: &str) {
        self.0.write_all(keys.as_bytes()).expect("type");
    }

    fn shows_what_is_typed(&self) -> bool {
        let settings = tcgetattr(self.0.as_fd()).expect("look at the terminal's settings");
        settings.local_flags.contains(LocalFlags::ECHO)
    }

    /// False when nobody has the terminal open any more.
    fn read(&mut self, shown: &mut String) -> bool {
        let mut bytes = [0; 1024];
        match self.0.read(&mut bytes) {
            Ok(0) | Err(_) => false,
            Ok(count) => {
                shown.push_str(&String::from_utf8_lossy(&bytes[..count]));
                true
            }
        }
    }
}
