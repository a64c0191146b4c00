//! A throwaway PostgreSQL cluster per test.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{net, process::id, thread};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use tokio_postgres::{Client, NoTls};

use super::installation::{Installation, Powa, target};
use super::process;
use super::{DEADLINE, Signal, wait_until};

/// What every cluster has: fast rather than safe, and all that PoWA can read.
const SETTINGS: &str = "
listen_addresses = '*'
fsync = off
synchronous_commit = off
full_page_writes = off
shared_buffers = 16MB
max_connections = 200
max_wal_size = 256MB
jit = off
timezone = 'UTC'
log_timezone = 'UTC'
log_line_prefix = '%m [%p] %q%u@%d %a: '
dynamic_shared_memory_type = mmap
shared_preload_libraries = 'pg_stat_statements,powa,pg_stat_kcache,pg_qualstats,pg_wait_sampling'
powa.frequency = -1
pg_qualstats.sample_rate = 1
track_io_timing = on
track_functions = all
";

/// Everyone on this machine may be anyone, so that a test which is about something else needs no passwords.
const TRUST: &str = "
local all all trust
host all all 127.0.0.0/8 trust
host all all ::1/128 trust
host replication all 127.0.0.0/8 trust
";

/// A running cluster with a directory and a port of its own. Dropped, it is stopped and removed; when the
/// test has failed, its directory is kept.
///
/// It listens on all addresses, so that `127.0.1.1`, `127.0.1.2`, … are as many servers as a test wants. The
/// superuser is `postgres`, without a password.
pub struct Cluster {
    installation: Installation,
    directory: PathBuf,
    port: Port,
    server: Option<Child>,
}

pub struct ClusterBuilder {
    powa: Powa,
    settings: String,
    hba: String,
}

impl ClusterBuilder {
    /// A line of `postgresql.conf`; the value is quoted as needed. Given twice, the last one counts.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push_str(&setting_line(name, value));
        self
    }

    /// Replaces `pg_hba.conf`, which trusts everyone on this machine.
    pub fn hba(mut self, lines: &str) -> Self {
        self.hba = format!("{lines}\n");
        self
    }

    pub fn start(self) -> Cluster {
        let installation = Installation::find(self.powa);
        let template = template(&installation);
        let directory = new_directory(&installation);
        let copied = Command::new("cp").arg("-a").arg(&template).arg(directory.join("data")).status();
        assert!(copied.expect("run cp").success(), "copy the template cluster");

        let mut cluster = Cluster { installation, directory, port: Port::reserve(), server: None };
        cluster.make_folder("socket");
        cluster.write("data/pg_hba.conf", &self.hba);
        loop {
            let network = setting_line("port", &cluster.port().to_string())
                + &setting_line("unix_socket_directories", &cluster.server_socket_directory());
            cluster.write("data/tests.conf", &format!("{SETTINGS}{network}{}", self.settings));
            match cluster.try_start() {
                Ok(()) => return cluster,
                // Somebody took the port after it was found free.
                Err(log) if log.contains("Address already in use") => cluster.port = Port::reserve(),
                Err(log) => panic!("PostgreSQL did not start:\n{log}"),
            }
        }
    }
}

impl Cluster {
    pub fn start(powa: Powa) -> Cluster {
        Cluster::builder(powa).start()
    }

    pub fn builder(powa: Powa) -> ClusterBuilder {
        ClusterBuilder { powa, settings: String::new(), hba: TRUST.to_owned() }
    }

    /// A standby of this cluster, at its level by now.
    pub fn standby(&self) -> Cluster {
        let installation = Installation::find(self.powa());
        let directory = new_directory(&installation);
        let mut standby = Cluster { installation, directory, port: Port::reserve(), server: None };
        standby.make_folder("socket");
        standby.make_folder("data");
        standby.give_away(&standby.data_directory(), 0o700);
        let mut copy = standby.installation.command("pg_basebackup", "KILL");
        copy.args(["-R", "-X", "stream", "-c", "fast", "--no-sync", "-h", "127.0.0.1", "-U", "postgres"]);
        copy.arg("-p").arg(self.port().to_string()).arg("-D").arg(standby.inside(&standby.data_directory()));
        let output = copy.output().expect("run pg_basebackup");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // The settings came with the copy.
        standby.set("port", &standby.port().to_string());
        standby.set("unix_socket_directories", &standby.server_socket_directory());
        if let Err(log) = standby.try_start() {
            panic!("the standby did not start:\n{log}");
        }
        standby
    }

    /// Makes a primary of a standby.
    pub async fn promote(&self) {
        let promoted = self.client("postgres").await.query_one("SELECT pg_promote()", &[]).await;
        assert!(promoted.expect("promote the standby").get::<_, bool>(0), "it stays a standby");
    }

    pub fn powa(&self) -> Powa {
        self.installation.powa
    }

    pub fn port(&self) -> u16 {
        self.port.number
    }

    /// The directory of the UNIX socket, for a DSN's `host`.
    pub fn socket_directory(&self) -> PathBuf {
        self.directory.join("socket")
    }

    pub fn data_directory(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// A path of this process as the server sees it, for settings that name files.
    pub fn inside(&self, path: &Path) -> PathBuf {
        self.installation.inside(path)
    }

    /// A libpq URI of the superuser.
    pub fn superuser_dsn(&self, dbname: &str) -> String {
        self.dsn("postgres", dbname)
    }

    /// A libpq URI.
    pub fn dsn(&self, user: &str, dbname: &str) -> String {
        format!("postgresql://{}@127.0.0.1:{}/{}", percent_encode(user), self.port(), percent_encode(dbname))
    }

    /// A new connection of the superuser. It ends when the client is dropped.
    pub async fn client(&self, dbname: &str) -> Client {
        self.client_as("postgres", dbname).await
    }

    pub async fn client_as(&self, user: &str, dbname: &str) -> Client {
        let (client, connection) =
            self.config(user, dbname).connect(NoTls).await.expect("connect to a test cluster");
        tokio::spawn(async move {
            // It fails when the test stops its cluster, on purpose; the client's next call says so.
            connection.await.ok();
        });
        client
    }

    pub(super) fn config(&self, user: &str, dbname: &str) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.port()).user(user).dbname(dbname).application_name("test");
        config
    }

    /// What the server has logged since the cluster was made.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_file()).unwrap_or_default()).into_owned()
    }

    /// Adds a setting; [`reload`](Self::reload) or [`restart`](Self::restart) gives it effect.
    pub fn set(&self, name: &str, value: &str) {
        let mut file = OpenOptions::new()
            .append(true)
            .open(self.directory.join("data/tests.conf"))
            .expect("open tests.conf");
        file.write_all(setting_line(name, value).as_bytes()).expect("write tests.conf");
    }

    /// Replaces `pg_hba.conf`; [`reload`](Self::reload) gives it effect.
    pub fn set_hba(&self, lines: &str) {
        self.write("data/pg_hba.conf", &format!("{lines}\n"));
    }

    /// Reads the settings again, and returns when new connections see them.
    pub async fn reload(&self) {
        let seen = self.log().matches("received SIGHUP").count();
        process::signal(self.server.as_ref().expect("a running server"), Signal::SIGHUP);
        wait_until("the server's reload", DEADLINE, async || {
            self.log().matches("received SIGHUP").count() > seen
        })
        .await;
    }

    pub fn restart(&mut self) {
        self.stop();
        self.start_again();
    }

    /// Stops the server; its clients are disconnected with a message (a "fast" shutdown).
    pub fn stop(&mut self) {
        self.shut_down(Signal::SIGINT);
    }

    /// Stops the server as a crash does; the next start recovers (an "immediate" shutdown).
    pub fn stop_immediately(&mut self) {
        self.shut_down(Signal::SIGQUIT);
    }

    /// Starts a stopped server, on the same port with the same data.
    pub fn start_again(&mut self) {
        if let Err(log) = self.try_start() {
            panic!("PostgreSQL did not start again:\n{log}");
        }
    }

    /// Sends a signal to all of the server's processes.
    pub fn signal_all(&mut self, signal: Signal) {
        let server = self.server.as_ref().expect("a running server");
        let postmaster = server.id();
        let children = fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children"));
        let children = children.expect("its children");
        // First who could start more of them.
        process::signal(server, signal);
        for child in children.split_whitespace() {
            // One that has just ended needs no signal.
            let _ = kill(Pid::from_raw(child.parse().expect("a process id")), signal);
        }
    }

    pub fn is_running(&self) -> bool {
        self.server.is_some()
    }

    fn shut_down(&mut self, signal: Signal) {
        let mut server = self.server.take().expect("a running server");
        process::signal(&server, signal);
        if process::wait(&mut server, DEADLINE).is_none() {
            server.kill().ok();
            server.wait().ok();
            panic!("PostgreSQL did not stop in {DEADLINE:?}:\n{}", self.log());
        }
    }

    /// Starts the server and waits until it takes connections; what it logged, when it does not.
    fn try_start(&mut self) -> Result<(), String> {
        assert!(self.server.is_none(), "the server runs already");
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_file())
            .expect("open the server's log");
        let logged = log.metadata().expect("stat the server's log").len().try_into().expect("a small file");

        // SIGQUIT: whatever happens to the test, its server must be gone at once.
        let mut command = self.installation.command("postgres", "QUIT");
        command.arg("-D").arg(self.installation.inside(&self.data_directory())).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("duplicate a file")).stderr(log);
        let mut server = process::spawn(command).expect("run postgres");

        let started = Instant::now();
        while !self.is_ready(&server) {
            if server.try_wait().expect("wait for postgres").is_some() {
                return Err(self.log().split_off(logged));
            }
            if started.elapsed() > 2 * DEADLINE {
                server.kill().ok();
                server.wait().ok();
                return Err(format!("not ready in {:?}\n{}", 2 * DEADLINE, self.log()));
            }
            thread::sleep(Duration::from_millis(20));
        }
        self.server = Some(server);
        Ok(())
    }

    /// As pg_ctl finds it: the first line of `postmaster.pid` is the process, the eighth its state.
    fn is_ready(&self, server: &Child) -> bool {
        let Ok(file) = fs::read_to_string(self.data_directory().join("postmaster.pid")) else { return false };
        let mut lines = file.lines();
        lines.next() == Some(&server.id().to_string())
            && lines.nth(6).is_some_and(|state| state.trim_end() == "ready")
    }

    fn log_file(&self) -> PathBuf {
        self.directory.join("postgresql.log")
    }

    /// Empty (no socket) where the path is longer than a socket's may be.
    fn server_socket_directory(&self) -> String {
        let directory = self.installation.inside(&self.socket_directory()).display().to_string();
        if directory.len() > 90 { String::new() } else { directory }
    }

    fn make_folder(&self, name: &str) {
        let folder = self.directory.join(name);
        fs::create_dir(&folder).expect("make a folder");
        self.give_away(&folder, 0o755);
    }

    fn write(&self, name: &str, contents: &str) {
        let file = self.directory.join(name);
        fs::write(&file, contents).expect("write a file of the cluster");
        self.give_away(&file, 0o644);
    }

    fn give_away(&self, path: &Path, mode: u32) {
        give_to_server(&self.installation, path, mode);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let failed = thread::panicking();
        if let Some(mut server) = self.server.take() {
            process::signal(&server, if failed { Signal::SIGINT } else { Signal::SIGQUIT });
            if process::wait(&mut server, Duration::from_secs(10)).is_none() {
                server.kill().ok();
                server.wait().ok();
            }
        }
        if failed {
            eprintln!(
                "The {:?} cluster on port {} is kept in {}",
                self.powa(),
                self.port(),
                self.directory.display()
            );
        } else {
            fs::remove_dir_all(&self.directory).ok();
        }
    }
}

/// A port that no other test has, for as long as this lives.
struct Port {
    number: u16,
    _lock: Flock<File>,
}

impl Port {
    /// From below the range out of which the system takes ports for outgoing connections.
    fn reserve() -> Port {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ports");
        fs::create_dir_all(&folder).expect("make the folder of reserved ports");
        for _ in 0..1000 {
            let number = rand::random_range(20_000..32_000);
            let file = File::create(folder.join(number.to_string())).expect("make a port's lock");
            let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else { continue };
            if net::TcpListener::bind(("0.0.0.0", number)).is_ok() {
                return Port { number, _lock: lock };
            }
        }
        panic!("no free port");
    }
}

/// The cluster that all of its version are copies of; made by whichever test needs it first.
fn template(installation: &Installation) -> PathBuf {
    let folder = installation.clusters.join("templates");
    fs::create_dir_all(&folder).expect("make the folder of template clusters");
    let name = match installation.powa {
        Powa::V4 => "powa4",
        Powa::V5 => "powa5",
    };
    let lock = File::create(folder.join(format!("{name}.lock"))).expect("make the template's lock");
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).expect("lock the template cluster");

    let template = folder.join(name);
    if template.exists() {
        return template;
    }
    // Under another name until it is complete.
    let work = folder.join(format!("{name}-work"));
    fs::remove_dir_all(&work).ok();
    fs::create_dir(&work).expect("make the template cluster's folder");
    give_to_server(installation, &work, 0o700);
    let mut command = installation.command("initdb", "KILL");
    command.args([
        "--no-sync",
        "--username=postgres",
        "--encoding=UTF8",
        "--locale=C.UTF-8",
        "--wal-segsize=1",
        "--auth=trust",
    ]);
    command.arg("-D").arg(installation.inside(&work));
    let output = command.output().expect("run initdb");
    assert!(output.status.success(), "initdb failed:\n{}", String::from_utf8_lossy(&output.stderr));
    let configuration = work.join("postgresql.conf");
    let mut file = OpenOptions::new().append(true).open(configuration).expect("open postgresql.conf");
    file.write_all(b"\ninclude 'tests.conf'\n").expect("write postgresql.conf");
    fs::rename(&work, &template).expect("name the template cluster");
    template
}

/// Named after the process, so that `tests/support/postgresql sweep` sees which tests still run.
fn new_directory(installation: &Installation) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(1);
    let version = if installation.powa.is_v4() { "powa4" } else { "powa5" };
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let directory = installation.clusters.join(format!("{version}-{}-{count}", id()));
    // Of an earlier process that had the same id.
    fs::remove_dir_all(&directory).ok();
    fs::create_dir_all(&directory).expect("make the cluster's directory");
    fs::set_permissions(&directory, Permissions::from_mode(0o755)).expect("let the server in");
    directory
}

fn give_to_server(installation: &Installation, path: &Path, mode: u32) {
    chown(path, Some(installation.uid), Some(installation.gid)).expect("give a file to the server");
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("set a file's mode");
}

fn setting_line(name: &str, value: &str) -> String {
    format!("{name} = '{}'\n", value.replace('\'', "''"))
}

fn percent_encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => encoded.push(byte.into()),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}
