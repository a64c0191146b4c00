//! A server with certificates to choose from ([`Site`]), and its two clients: psql, which is libpq, and we.
//! What we should do, psql shows. Between the two there may be somebody on the line ([`relay`]).
#![allow(dead_code, reason = "each test file uses a part of this module")]

pub mod relay;

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File, Permissions};
use std::hash::{Hash, Hasher};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Uid;
use powa_collector::postgres::conninfo::environment::Environment;
use powa_collector::postgres::conninfo::{ConnInfo, Given};
use powa_collector::postgres::secret::Secret;
use powa_collector::postgres::session::Session;

use crate::support::{Cluster, Powa};

/// How long we wait for each address.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Whether the session is encrypted, as the server has it.
const QUESTION: &str =
    "SELECT coalesce((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false)::text";

/// The folder of all certificates; made by whoever needs it first.
pub fn certificates() -> PathBuf {
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/certificates/make");
    let mut hasher = DefaultHasher::new();
    fs::read(&recipe).expect("read the recipe").hash(&mut hasher);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("certificates");
    fs::create_dir_all(&folder).expect("make a folder");
    let made = folder.join(format!("{:016x}", hasher.finish()));
    let lock = File::create(folder.join("lock")).expect("make a lock");
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).expect("lock the certificates");
    if !made.exists() {
        // Under another name until it is complete.
        let work = folder.join("work");
        fs::remove_dir_all(&work).ok();
        fs::create_dir(&work).expect("make a folder");
        let output = Command::new(recipe).arg(&work).output().expect("run the recipe");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        fs::rename(&work, &made).expect("name the certificates");
    }
    made
}

/// What became of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Plain,
    Encrypted,
    Refused(String),
}

impl Outcome {
    /// The same but for the words of a refusal.
    pub fn is_like(&self, other: &Outcome) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }

    /// What a refusal says, in one line.
    pub fn refusal(&self) -> &str {
        match self {
            Outcome::Refused(words) => words,
            _ => panic!("it was not refused: {self:?}"),
        }
    }
}

/// A server, and a folder that its clients read.
pub struct Site {
    pub cluster: Cluster,
    files: PathBuf,
    home: PathBuf,
}

impl Site {
    pub fn new(powa: Powa) -> Site {
        Site::of(Cluster::start(powa))
    }

    pub fn with_hba(powa: Powa, hba: &str) -> Site {
        Site::of(Cluster::builder(powa).hba(hba).start())
    }

    pub fn of(cluster: Cluster) -> Site {
        let directory = cluster.data_directory().parent().expect("the cluster's directory").to_owned();
        let (files, home) = (directory.join("certificates"), directory.join("home"));
        let copied = Command::new("cp").arg("-a").arg(certificates()).arg(&files).status();
        assert!(copied.expect("run cp").success(), "copy the certificates");
        fs::create_dir(&home).expect("make a home");
        Site { cluster, files, home }
    }

    /// A file of the clients, as `FILES/name` in options.
    pub fn file(&self, name: &str) -> PathBuf {
        self.files.join(name)
    }

    /// The clients' home directory, which is empty.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Puts a copy of a file into `~/.postgresql`.
    pub fn settle(&self, file: &str, name: &str) {
        let folder = self.home.join(".postgresql");
        fs::create_dir_all(&folder).expect("make ~/.postgresql");
        fs::copy(self.file(file), folder.join(name)).expect("copy a file");
    }

    /// Makes the server show this certificate.
    pub async fn show(&self, certificate: &str) {
        self.give("server.crt", &format!("{certificate}.crt"));
        self.give("server.key", &format!("{certificate}.key"));
        self.cluster.set("ssl", "on");
        self.cluster.reload().await;
    }

    /// Makes the server look at certificates of clients.
    pub async fn ask_clients(&self) {
        self.give("root.crt", "root.crt");
        self.cluster.set("ssl_ca_file", "root.crt");
        self.cluster.reload().await;
    }

    /// Makes the server have no TLS.
    pub async fn hide(&self) {
        self.cluster.set("ssl", "off");
        self.cluster.reload().await;
    }

    pub async fn hba(&self, lines: &str) {
        self.cluster.set_hba(lines);
        self.cluster.reload().await;
    }

    pub async fn run(&self, statements: &str) {
        // By the socket, whatever pg_hba.conf says of the rest.
        let mut config = tokio_postgres::Config::new();
        config.host_path(self.cluster.socket_directory()).port(self.cluster.port()).user("postgres");
        let (client, connection) =
            config.connect(tokio_postgres::NoTls).await.expect("connect by the socket");
        let task = tokio::spawn(connection);
        client.batch_execute(statements).await.unwrap_or_else(|error| panic!("{error:?}: {statements}"));
        drop(client);
        task.await.expect("no panic").expect("a good end");
    }

    fn give(&self, to: &str, from: &str) {
        let data = self.cluster.data_directory();
        let owner = fs::metadata(&data).expect("stat the data directory");
        let to = data.join(to);
        fs::copy(self.file(from), &to).expect("copy a file to the server");
        fs::set_permissions(&to, Permissions::from_mode(0o600)).expect("set a file's mode");
        chown(&to, Some(owner.uid()), Some(owner.gid())).expect("give a file to the server");
    }

    /// `options` after what leads to the server as the superuser; `FILES` is the folder of certificates.
    pub fn dsn(&self, options: &str) -> String {
        self.dsn_in(&self.files, options)
    }

    fn dsn_in(&self, files: &Path, options: &str) -> String {
        let options = options.replace("FILES", &files.display().to_string());
        let port = self.cluster.port();
        format!(
            "host=localhost hostaddr=127.0.0.1 port={port} user=postgres dbname=postgres connect_timeout=20 \
             {options}"
        )
    }

    /// How we are to connect: by nothing of this process's own environment.
    pub fn conninfo(&self, options: &str) -> Result<ConnInfo, String> {
        let environment = Environment::of(&[("HOME", &self.home.display().to_string())]);
        let given = Given::by_string(&Secret::new(self.dsn(options))).map_err(|error| error.to_string())?;
        ConnInfo::new(&given, &environment).map_err(|error| error.to_string())
    }

    pub async fn open(&self, options: &str) -> Result<Session, String> {
        let conninfo = self.conninfo(options)?;
        Session::open(&conninfo, "test", PATIENCE).await.map_err(|error| error.to_string())
    }

    /// What we do.
    pub async fn ours(&self, options: &str) -> Outcome {
        of_answer(self.ask(options, QUESTION).await)
    }

    /// What psql does.
    pub async fn psql(&self, options: &str) -> Outcome {
        of_answer(self.ask_by_psql(options, QUESTION).await)
    }

    /// What the server answers us, or why there is no answer.
    pub async fn ask(&self, options: &str, question: &str) -> Result<String, String> {
        let session = self.open(options).await?;
        Ok(session.client.query_one(question, &[]).await.expect("ask the server").get(0))
    }

    /// What it answers psql.
    pub async fn ask_by_psql(&self, options: &str, question: &str) -> Result<String, String> {
        let inside = self.cluster.inside(&self.files);
        let root = self.files.to_str().and_then(|path| path.strip_suffix(inside.to_str()?));
        let mut command = match root.expect("the folder is in the server's") {
            "" => tokio::process::Command::new("/usr/lib/postgresql/15/bin/psql"),
            root => {
                let mut command = if Uid::effective().is_root() {
                    tokio::process::Command::new("/usr/sbin/chroot")
                } else {
                    let mut command = tokio::process::Command::new("/usr/bin/unshare");
                    command.args(["--user", "--map-current-user", "--wd=/", "--root"]);
                    command
                };
                command.arg(root).arg("/usr/lib/postgresql/17/bin/psql");
                command
            }
        };
        let socket = self.cluster.socket_directory().display().to_string();
        let options =
            options.replace(&socket, &self.cluster.inside(Path::new(&socket)).display().to_string());
        let dsn = self.dsn_in(&inside, &options);
        command.env_clear().env("HOME", self.cluster.inside(&self.home)).env("LC_ALL", "C.UTF-8");
        command.args(["-X", "-A", "-t", "-w", "-d", &dsn, "-c", question]);
        let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.expect("run psql");
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).trim().replace('\n', " "))
        }
    }

    /// What both do, when that is the same; else what each does.
    pub async fn compare(&self, options: &str) -> Result<Outcome, String> {
        let (psql, ours) = (self.psql(options).await, self.ours(options).await);
        if psql.is_like(&ours) {
            return Ok(ours);
        }
        Err(format!("{options}\n    psql: {psql:?}\n    ours: {ours:?}"))
    }

    /// What both do. Panics when that is not the same.
    pub async fn both(&self, options: &str) -> Outcome {
        self.compare(options).await.unwrap_or_else(|difference| panic!("{difference}"))
    }

    /// Panics, after all cases, when the two do not do the same in each of them, or not what is expected,
    /// where something is.
    pub async fn all(&self, what: &str, cases: impl IntoIterator<Item = (String, Option<Outcome>)>) {
        let cases = cases.into_iter().map(|(options, expected)| async move {
            match self.compare(&options).await {
                Ok(outcome) if expected.as_ref().is_some_and(|expected| !expected.is_like(&outcome)) => {
                    Some(format!("{options}\n    expected {expected:?}, and not {outcome:?}"))
                }
                Ok(_) => None,
                Err(difference) => Some(difference),
            }
        });
        let wrong: Vec<Option<String>> = stream::iter(cases).buffered(3).collect().await;
        let wrong: Vec<String> = wrong.into_iter().flatten().collect();
        assert!(wrong.is_empty(), "{what}:\n{}", wrong.join("\n"));
    }
}

/// A refusal, whatever it says.
pub fn refused() -> Outcome {
    Outcome::Refused(String::new())
}

fn of_answer(answer: Result<String, String>) -> Outcome {
    match answer.as_deref() {
        Ok("true") => Outcome::Encrypted,
        Ok(_) => Outcome::Plain,
        Err(error) => Outcome::Refused(error.to_owned()),
    }
}
