//! A password that a program prints: from a vault, or a cloud's token that lives for minutes.

use std::fmt;
use std::io;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::conninfo::ConnInfo;
use super::secret::Secret;

/// No password is longer; PostgreSQL itself takes no message of more.
const OUTPUT_BYTES: u64 = 64 << 10;

/// A program whose output is the password, and what it printed last.
pub struct PasswordCommand {
    program: String,
    arguments: Vec<String>,
    deadline: Duration,
    /// What it printed, until a login with that fails. Locked while the program runs, so that several
    /// connections to one server share one run.
    printed: Mutex<Option<Secret>>,
}

/// Why a program gave no password. What it printed is not told: it may be the password after all.
#[derive(Debug, thiserror::Error)]
pub enum PasswordCommandError {
    #[error("password_command: {program} cannot be run: {error}")]
    Run { program: String, error: io::Error },
    #[error("password_command: {program} did not end within {} s", deadline.as_secs())]
    Deadline { program: String, deadline: Duration },
    #[error(
        "password_command: {program} ended with {status}; what it printed may hold a secret and is not shown: \
         run it by hand, as the collector's user"
    )]
    Failed { program: String, status: std::process::ExitStatus },
    #[error("password_command: {program} printed {what}; it must print the password, in one line")]
    Output { program: String, what: &'static str },
}

/// A password of a command.
#[derive(Debug, Clone)]
pub struct Printed {
    pub password: Secret,
    /// Whether it is from an earlier run, and may have expired.
    pub is_kept: bool,
}

impl PasswordCommand {
    /// `command`: the program and its arguments. Nothing is empty in it that must not be.
    pub fn new(command: &[String], deadline: Duration) -> Option<Self> {
        let (program, arguments) = command.split_first().filter(|(program, _)| !program.is_empty())?;
        let (program, arguments) = (program.clone(), arguments.to_vec());
        Some(Self { program, arguments, deadline, printed: Mutex::new(None) })
    }

    /// The same command, not run yet.
    #[must_use]
    pub fn on_its_own(&self) -> Self {
        let (program, arguments) = (self.program.clone(), self.arguments.clone());
        Self { program, arguments, deadline: self.deadline, printed: Mutex::new(None) }
    }

    /// The password: what the program printed before, or else what it prints now.
    ///
    /// # Errors
    /// When the program gives none within its deadline.
    pub async fn password(&self, conninfo: &ConnInfo) -> Result<Printed, PasswordCommandError> {
        let mut printed = self.printed.lock().await;
        if let Some(password) = printed.as_ref() {
            return Ok(Printed { password: password.clone(), is_kept: true });
        }
        let password = self.run(conninfo).await?;
        *printed = Some(password.clone());
        Ok(Printed { password, is_kept: false })
    }

    /// Forgets a password that did not let us in, unless another one has taken its place.
    pub async fn forget(&self, password: &Secret) {
        let mut printed = self.printed.lock().await;
        if printed.as_ref() == Some(password) {
            *printed = None;
        }
    }

    async fn run(&self, conninfo: &ConnInfo) -> Result<Secret, PasswordCommandError> {
        let program = || self.program.clone();
        let hosts: Vec<&str> = conninfo.hosts.iter().map(|host| host.place()).collect();
        let ports: Vec<String> = conninfo.hosts.iter().map(|host| host.port.to_string()).collect();
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .env("PGHOST", hosts.join(","))
            .env("PGPORT", ports.join(","))
            .env("PGUSER", &conninfo.user)
            .env("PGDATABASE", &conninfo.dbname)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0);
        let mut child =
            command.spawn().map_err(|error| PasswordCommandError::Run { program: program(), error })?;
        let mut group = Group(child.id());
        let stdout = child.stdout.take().expect("the output is piped");
        let running = async {
            let output = read(stdout).await?;
            Ok::<_, io::Error>((output, child.wait().await?))
        };
        let ended = timeout(self.deadline, running).await;
        let ended = ended
            .map_err(|_| PasswordCommandError::Deadline { program: program(), deadline: self.deadline })?;
        let (output, status) =
            ended.map_err(|error| PasswordCommandError::Run { program: program(), error })?;
        group.0 = None;
        let wrong = |what| Err(PasswordCommandError::Output { program: program(), what });
        // First of all: who writes more than is read may end by that.
        if output.len() as u64 > OUTPUT_BYTES {
            return wrong("more than 64 KiB");
        }
        if !status.success() {
            return Err(PasswordCommandError::Failed { program: program(), status });
        }
        let Ok(text) = String::from_utf8(output) else { return wrong("what is not UTF-8") };
        match text.trim_end_matches(['\n', '\r']) {
            "" => wrong("nothing"),
            line if line.contains(['\n', '\r', '\0']) => wrong("more than one line"),
            line => Ok(Secret::new(line)),
        }
    }
}

/// Reads to the end, or until it is too much.
async fn read(output: impl AsyncRead + Unpin) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    output.take(OUTPUT_BYTES + 1).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

/// A program that runs, and those that it has started: dropped, they are ended.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0.and_then(|id| i32::try_from(id).ok()) {
            // It may have ended meanwhile.
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
    }
}

/// Two are the same when they would run the same program.
impl PartialEq for PasswordCommand {
    fn eq(&self, other: &Self) -> bool {
        self.program == other.program && self.arguments == other.arguments && self.deadline == other.deadline
    }
}

impl Eq for PasswordCommand {}

/// Arguments may be secrets.
impl fmt::Debug for PasswordCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PasswordCommand({} …)", self.program)
    }
}
