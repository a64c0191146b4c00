//! Child processes that end with this one.

use std::io;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Mutex, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

type Request = (Command, mpsc::Sender<io::Result<Child>>);

/// Spawns `command`. A death signal (`setpriv --pdeathsig`) is sent when the *thread* that spawned the
/// process ends, so all are spawned by one that lives as long as this process.
pub(super) fn spawn(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Request>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, requests) = mpsc::channel::<Request>();
        thread::spawn(move || {
            for (mut command, answer) in requests {
                answer.send(command.spawn()).ok();
            }
        });
        Mutex::new(sender)
    });
    let (answer, child) = mpsc::channel();
    spawner
        .lock()
        .expect("no panic while sending")
        .send((command, answer))
        .expect("the spawning thread lives");
    child.recv().expect("the spawning thread lives")
}

pub(super) fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(child.id().try_into().expect("a process id"));
    kill(pid, signal).expect("send a signal to a child");
}

/// Waits for the end of `child`, blocking; none when it does not end in time.
pub(super) fn wait(child: &mut Child, deadline: Duration) -> Option<ExitStatus> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("wait for a child") {
            return Some(status);
        }
        if started.elapsed() > deadline {
            return None;
        }
        thread::sleep(Duration::from_millis(10));
    }
}
