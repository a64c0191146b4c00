//! The two collectors, as processes.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::measure;
use crate::scene::REPOSITORY;
use crate::support::Cluster;

/// The rival's version, from PyPI.
pub const RIVAL_VERSION: &str = "1.3.2";

/// What our configuration file says besides the repository's DSN.
pub static SETTINGS: OnceLock<Value> = OnceLock::new();

#[derive(Clone, Copy)]
pub enum Who<'a> {
    Ours,
    Python(&'a Rival),
}

impl fmt::Display for Who<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Who::Ours => "powa-collector",
            Who::Python(_) => "Python collector",
        })
    }
}

/// Where the Python collector is installed.
pub struct Rival {
    python: PathBuf,
    program: PathBuf,
}

/// Installs the Python collector into a folder of its own, if it is not there. Its driver, psycopg2, is Debian's.
pub fn install_rival() -> Rival {
    let folder =
        Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target/tmp").join("python-collector");
    let program = folder.join("bin/powa-collector.py");
    if !program.exists() {
        let status = Command::new("benches/install-rival").arg(&folder).arg(RIVAL_VERSION).status();
        assert!(
            status.expect("run benches/install-rival").success(),
            "the Python collector was not installed"
        );
    }
    Rival { python: folder.join("bin/python"), program }
}

/// A collector that runs. Dropped, it is killed.
pub struct Contestant {
    process: Child,
    /// Its files are there until it has ended.
    _directory: TempDir,
}

impl Contestant {
    pub fn start(who: Who<'_>, repository: &Cluster) -> Contestant {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("make a directory");
        let mut config = json!({});
        if let (Who::Ours, Some(settings)) = (who, SETTINGS.get()) {
            config.clone_from(settings);
        }
        config["repository"]["dsn"] = Value::String(repository.superuser_dsn(REPOSITORY));
        std::fs::write(directory.path().join("powa-collector.conf"), config.to_string())
            .expect("write the file");
        let log = File::create(directory.path().join("log")).expect("make the log");
        let mut command = Command::new("/usr/bin/setpriv");
        command.arg("--pdeathsig=KILL");
        match who {
            Who::Ours => command.arg(env!("CARGO_BIN_EXE_powa-collector")),
            Who::Python(rival) => command.arg(&rival.python).arg(&rival.program),
        };
        command
            .current_dir(directory.path())
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", directory.path())
            .env("TMPDIR", directory.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("duplicate a file"))
            .stderr(log);
        Contestant { process: command.spawn().expect("run a collector"), _directory: directory }
    }

    /// What is resident now.
    pub fn memory(&self) -> u64 {
        measure::memory(self.process.id())
    }

    pub fn peak_memory(&self) -> u64 {
        measure::peak_memory(self.process.id())
    }

    pub fn cpu(&self) -> Duration {
        measure::cpu(self.process.id())
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// SIGTERM, and how long it took to end; none when it had not ended by `deadline`, and was killed.
    pub async fn stop(mut self, deadline: Duration) -> Option<Duration> {
        let asked = Instant::now();
        let pid = Pid::from_raw(self.process.id().try_into().expect("a process id"));
        kill(pid, Signal::SIGTERM).ok();
        while asked.elapsed() < deadline {
            if !self.is_running() {
                return Some(asked.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        None
    }
}

impl Drop for Contestant {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}
