//! The program under test, as a process.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::cluster::Cluster;
use super::process;
use super::{DEADLINE, Signal, wait_until};

/// A running `powa-collector` with a configuration file, a home and a working directory of its own. It is
/// killed when dropped; when the test has failed, its log is printed and its directory kept.
pub struct Collector {
    /// Taken when the directory is to be kept.
    directory: Option<TempDir>,
    process: Child,
    status: Option<ExitStatus>,
    log: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
}

pub struct CollectorBuilder {
    config: Option<Value>,
    /// A command that becomes the program.
    wrapper: Vec<OsString>,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    is_on_journal: bool,
    stdin: Stdio,
}

impl CollectorBuilder {
    /// What it reads; nothing otherwise.
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.stdin = stdin.into();
        self
    }

    /// Makes standard error a socket that `JOURNAL_STREAM` names, as systemd does.
    pub fn on_journal(mut self) -> Self {
        self.is_on_journal = true;
        self
    }

    /// Runs it by a command that becomes the program, such as `prlimit`: with these words before the program's own.
    pub fn wrapper(mut self, words: &[&str]) -> Self {
        self.wrapper = words.iter().map(OsString::from).collect();
        self
    }

    /// Added after `-c FILE`.
    pub fn argument(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(OsString::from));
        self
    }

    pub fn environment(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    pub fn start(self) -> Collector {
        let is_on_journal = self.is_on_journal;
        let (directory, mut command) = self.command();
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let journal = is_on_journal.then(|| {
            let (journal, theirs) = UnixStream::pair().expect("make a socket");
            let stat = nix::sys::stat::fstat(&theirs).expect("look at the socket");
            command.env("JOURNAL_STREAM", format!("{}:{}", stat.st_dev, stat.st_ino));
            command.stderr(OwnedFd::from(theirs));
            journal
        });
        let mut process = process::spawn(command).expect("run powa-collector");

        let log = Arc::new(Mutex::new(Vec::new()));
        let file = Arc::new(File::create(directory.path().join("collector.log")).expect("make the log file"));
        let stdout: Box<dyn Read + Send> = Box::new(process.stdout.take().expect("stdout is piped"));
        let stderr: Box<dyn Read + Send> = match journal {
            Some(journal) => Box::new(journal),
            None => Box::new(process.stderr.take().expect("stderr is piped")),
        };
        let readers = [stdout, stderr].map(|pipe| read_lines(pipe, Arc::clone(&log), Arc::clone(&file)));
        Collector { directory: Some(directory), process, status: None, log, readers: readers.into() }
    }

    /// Runs the program to its end, for commands that have one. Panics when it takes longer than twice
    /// [`DEADLINE`].
    pub async fn run(self) -> Output {
        let (directory, mut command) = self.command();
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = process::spawn(command).expect("run powa-collector");
        let pid = child.id();
        let output = tokio::task::spawn_blocking(move || child.wait_with_output());
        let output = tokio::time::timeout(2 * DEADLINE, output).await.unwrap_or_else(|_| {
            let pid = nix::unistd::Pid::from_raw(pid.try_into().expect("a process id"));
            nix::sys::signal::kill(pid, Signal::SIGKILL).ok();
            panic!("powa-collector did not end in {:?}", 2 * DEADLINE)
        });
        drop(directory);
        output.expect("no panic while waiting").expect("read the output of powa-collector")
    }

    /// The directory, and the command. `setpriv` becomes the program, so the process id is the program's.
    fn command(self) -> (TempDir, Command) {
        // Named after the process, so that `tests/support/postgresql sweep` sees which tests still run.
        let prefix = format!("collector-{}-", std::process::id());
        let directory = tempfile::Builder::new().prefix(&prefix).tempdir_in(env!("CARGO_TARGET_TMPDIR"));
        let directory = directory.expect("make the collector's directory");
        let mut command = Command::new("/usr/bin/setpriv");
        command.arg("--pdeathsig=KILL").args(&self.wrapper).arg(env!("CARGO_BIN_EXE_powa-collector"));
        if let Some(config) = &self.config {
            let file = config_path(directory.path());
            write_config(&file, config);
            command.arg("-c").arg(file);
        }
        command.args(self.arguments).stdin(self.stdin).current_dir(directory.path());
        // Nothing of the tester's own environment: PGHOST, POWA_COLLECTOR_…, a configuration file at home.
        command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", directory.path());
        command.env("TMPDIR", directory.path()).env("RUST_BACKTRACE", "1").envs(self.environment);
        (directory, command)
    }
}

impl Collector {
    /// `powa-collector -c FILE` with this in the file.
    pub fn start(config: Value) -> Collector {
        Collector::builder(config).start()
    }

    /// With the repository's DSN and else the defaults.
    pub fn of(repository: &Cluster, dbname: &str) -> Collector {
        Collector::start(json!({ "repository": { "dsn": repository.superuser_dsn(dbname) } }))
    }

    pub fn builder(config: Value) -> CollectorBuilder {
        CollectorBuilder { config: Some(config), ..Collector::bare() }
    }

    /// Without `-c`: for the tests of where the file is searched, and of `--help`.
    pub fn bare() -> CollectorBuilder {
        CollectorBuilder {
            config: None,
            wrapper: Vec::new(),
            arguments: Vec::new(),
            environment: Vec::new(),
            is_on_journal: false,
            stdin: Stdio::null(),
        }
    }

    /// The working directory, home, and `TMPDIR` of the program.
    pub fn directory(&self) -> &Path {
        self.directory.as_ref().expect("kept until dropped").path()
    }

    pub fn config_path(&self) -> PathBuf {
        config_path(self.directory())
    }

    /// Replaces the configuration file; the program reads it at its next reload.
    pub fn write_config(&self, config: &Value) {
        write_config(&self.config_path(), config);
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn signal(&self, signal: Signal) {
        process::signal(&self.process, signal);
    }

    /// Lets it stand still. A signal alone is only on its way: on a busy machine a thread goes on for a while.
    pub async fn suspend(&self) {
        self.signal(Signal::SIGSTOP);
        let tasks = format!("/proc/{}/task", self.pid());
        wait_until("all of its threads stand still", DEADLINE, async || {
            fs::read_dir(&tasks).expect("list its threads").all(|task| {
                // One that has just ended stands still too.
                let stat =
                    fs::read_to_string(task.expect("a thread").path().join("stat")).unwrap_or_default();
                // Its name, which comes before, may have anything in it but the last parenthesis.
                stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
            })
        })
        .await;
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    pub fn is_running(&mut self) -> bool {
        self.status().is_none()
    }

    /// Waits for the program to end by itself; panics after `deadline`.
    pub async fn wait_exit(&mut self, deadline: Duration) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.status() {
                return status;
            }
            assert!(started.elapsed() < deadline, "powa-collector did not end in {deadline:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// SIGTERM, and the exit status.
    pub async fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait_exit(2 * DEADLINE).await
    }

    /// The log (standard output and standard error) so far.
    pub fn log(&self) -> String {
        self.lines().join("\n")
    }

    /// How many lines the log has: where [`wait_for_log_after`](Self::wait_for_log_after) may begin.
    pub fn log_position(&self) -> usize {
        self.lines().len()
    }

    /// The lines of the log that say that something is wrong.
    pub fn warnings(&self) -> Vec<String> {
        self.warnings_after(0)
    }

    /// Of the lines after the first `position`.
    pub fn warnings_after(&self, position: usize) -> Vec<String> {
        let is_warning = |line: &String| line.contains(" WARN ") || line.contains("ERROR ");
        self.lines().into_iter().skip(position).filter(is_warning).collect()
    }

    /// The lines that a server's worker has logged: all, or those that say that something is wrong.
    pub fn log_of(&self, server: i32) -> Vec<String> {
        let mut lines = self.lines();
        lines.retain(|line| line.contains(&format!("srvid={server}}}")));
        lines
    }

    pub fn warnings_of(&self, server: i32) -> Vec<String> {
        let mut lines = self.warnings();
        lines.retain(|line| line.contains(&format!("srvid={server}}}")));
        lines
    }

    /// Waits for a line that has `text`, and returns the first one.
    pub async fn wait_for_log(&mut self, text: &str) -> String {
        self.wait_for_log_after(0, text).await
    }

    /// Of the lines after the first `position`.
    pub async fn wait_for_log_after(&mut self, position: usize, text: &str) -> String {
        self.wait_for_line(position, text, |line| line.contains(text)).await
    }

    /// `what` is for the message of the panic after [`DEADLINE`], or when the program ends before.
    pub async fn wait_for_line(
        &mut self,
        position: usize,
        what: &str,
        matches: impl Fn(&str) -> bool,
    ) -> String {
        let started = Instant::now();
        loop {
            // In this order: what it logged before it ended is in the log.
            let status = self.status();
            if let Some(line) = self.lines().into_iter().skip(position).find(|line| matches(line)) {
                return line;
            }
            if let Some(status) = status {
                panic!("powa-collector ended ({status}) and did not log: {what}");
            }
            assert!(started.elapsed() < DEADLINE, "powa-collector did not log in {DEADLINE:?}: {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn lines(&self) -> Vec<String> {
        self.log.lock().expect("no panic while logging").clone()
    }

    /// The exit status, when the program has ended and all of its log is read.
    fn status(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.process.try_wait().expect("wait for powa-collector");
            if self.status.is_some() {
                for reader in self.readers.drain(..) {
                    reader.join().expect("no panic while reading the log");
                }
            }
        }
        self.status
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        if self.status().is_none() {
            self.process.kill().ok();
            self.process.wait().ok();
        }
        if thread::panicking() {
            let directory = self.directory.take().expect("kept until dropped").keep();
            eprintln!("The log of powa-collector, kept in {}:\n{}", directory.display(), self.log());
        }
    }
}

fn read_lines(
    pipe: impl Read + Send + 'static,
    log: Arc<Mutex<Vec<String>>>,
    file: Arc<File>,
) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        while pipe.read_until(b'\n', &mut line).expect("read the log of powa-collector") > 0 {
            (&*file).write_all(&line).expect("write the log file");
            let text = String::from_utf8_lossy(&line);
            log.lock().expect("no panic while logging").push(text.trim_end_matches('\n').to_owned());
            line.clear();
        }
    })
}

fn config_path(directory: &Path) -> PathBuf {
    directory.join("collector.json")
}

fn write_config(file: &Path, config: &Value) {
    let text = serde_json::to_string_pretty(config).expect("JSON");
    fs::write(file, text).expect("write the configuration file");
}
