//! Every command that the README shows is run, in its order: a repository and a server are set up, a collector is
//! installed, configured, checked and looked at as it says there. A command that is not known here fails the test.

mod markdown;
mod support;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use markdown::{Block, Document, checkout};
use support::{Cluster, DEADLINE, Powa, Signal, on_both_versions, wait_until};
use tempfile::TempDir;

/// What becomes of a command.
enum How {
    /// It is run, with other words in place of some, and says this among other things.
    Run { instead: &'static [(&'static str, &'static str)], says: &'static str },
    /// It is run, where the repository has this PoWA.
    RunOn(Powa),
    /// It is run, and goes on until the end, when it is told to stop.
    RunOnward,
    /// It would run this very test, or builds for minutes: it is looked at what it would do.
    WouldRun(&'static str),
    /// A test of its own runs it, below.
    RunBelow,
    /// What another file runs, in these words.
    RunBy { file: &'static str, words: &'static str },
}

const CONFIGURED: &[(&str, &str)] = &[("powa-collector", "powa-collector -c ROOT/etc/powa-collector.conf")];

/// Every command that is shown.
const COMMANDS: &[(&str, How)] = &[
    ("make demo", How::RunBelow),
    ("docker compose up", How::RunBy { file: "docker/ci", words: "compose up" }),
    ("make deb", How::RunBy { file: ".ci/run", words: "make deb-test" }),
    (
        "apt-get install ./target/debian/powa-collector_2.0.0-1_amd64.deb",
        How::RunBy { file: "packaging/test", words: "apt install /var/tmp/powa-collector.deb" },
    ),
    ("make build", How::WouldRun("cargo build --release --locked")),
    (
        "install target/release/powa-collector /usr/local/bin/",
        How::Run {
            instead: &[
                ("target/release/powa-collector", env!("CARGO_BIN_EXE_powa-collector")),
                ("/usr/local/bin/", "ROOT/usr/local/bin/"),
            ],
            says: "",
        },
    ),
    ("psql -d powa -f sql/setup/repository_powa5.sql", How::RunOn(Powa::V5)),
    ("psql -d powa -f sql/setup/repository_powa4.sql", How::RunOn(Powa::V4)),
    ("psql -d powa -f sql/setup/server.sql", How::Run { instead: &[], says: "COMMIT" }),
    ("powa-collector check", How::Run { instead: CONFIGURED, says: "\nall is well\n" }),
    ("powa-collector once", How::Run { instead: CONFIGURED, says: " rows, " }),
    ("powa-collector", How::RunOnward),
    ("powa-collector status", How::Run { instead: CONFIGURED, says: "\n1 server, 0 with a problem\n" }),
    ("make test", How::WouldRun("tests/support/run")),
];

on_both_versions! {
    async fn the_readme_works_from_its_top_to_its_end(powa: Powa) {
        let mut site = Site::new(powa);
        for block in Document::read("README.md").blocks() {
            match block.language.as_str() {
                "sh" => site.run(&block).await,
                "sql" => site.execute(&block).await,
                "ini" => site.compare_settings(&block).await,
                "json" => site.configure(&block),
                // What is printed.
                "text" => {}
                other => panic!("{}: a block of the language {other:?}", block.section),
            }
        }
        let mut collector = site.collector.take().expect("it was started");
        let pid = nix::unistd::Pid::from_raw(collector.0.id().try_into().unwrap());
        nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
        let status = wait_until("the collector ends", DEADLINE, async || collector.0.try_wait().unwrap()).await;
        assert!(status.success(), "{}", site.log());
        assert!(!site.log().contains("ERROR"), "{}", site.log());
    }
}

#[test]
fn every_command_that_is_known_here_is_shown() {
    let readme = Document::read("README.md");
    let blocks = readme.blocks();
    let shown: Vec<&str> =
        blocks.iter().filter(|block| block.language == "sh").flat_map(|block| block.text.lines()).collect();
    let known: Vec<&str> = COMMANDS.iter().map(|(command, _)| *command).collect();
    let unknown: Vec<_> = shown.iter().filter(|command| !known.contains(command)).collect();
    let stale: Vec<_> = known.iter().filter(|command| !shown.contains(command)).collect();
    assert!(unknown.is_empty() && stale.is_empty(), "not run: {unknown:#?}, not shown: {stale:#?}");
    // What is not fenced would not be seen.
    let indented = readme.prose().into_iter().find(|line| line.starts_with("    ") || line.starts_with('\t'));
    assert_eq!(indented, None);
}

#[test]
fn the_commands_that_are_listed_are_those_of_the_program() {
    let output = Command::new(env!("CARGO_BIN_EXE_powa-collector")).arg("--help").output().expect("run it");
    let help = String::from_utf8(output.stdout).expect("UTF-8");
    let (_, list) = help.split_once("Commands:\n").expect(&help);
    let first_word = |line: &'_ str| line.split_whitespace().next().unwrap_or_default().to_owned();
    let mut known: BTreeSet<String> =
        list.lines().take_while(|line| !line.is_empty()).map(first_word).collect();
    assert!(known.remove("help"));

    let blocks = Document::read("README.md").blocks();
    let block = blocks.iter().find(|block| block.section == "Commands" && block.language == "text");
    let lines = block.expect("a list of commands").text.lines();
    let listed: BTreeSet<String> =
        lines.map(|line| first_word(line.strip_prefix("powa-collector ").expect(line))).collect();
    assert_eq!(listed, known);
}

#[test]
fn the_demonstration_collects() {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target/tmp has a parent");
    let mut command = shell("timeout --kill-after=20 150 make demo");
    command.env("DEMO_SECONDS", "20").env("DEMO_PROGRAM", env!("CARGO_BIN_EXE_powa-collector"));
    command.env("CARGO_TARGET_DIR", target).env("HOME", target);
    let told = told(&command.output().expect("run make"));
    assert!(told.contains("statistics of 2 servers were collected"), "{told}");
}

/// A machine for the repository, one for a monitored server, and one for the collector.
struct Site {
    repository: Cluster,
    server: Cluster,
    /// A server of a provider, where nobody can install PoWA.
    managed: Cluster,
    /// `ROOT` above: what is to go to `/usr/local` and `/etc`, and a home.
    root: TempDir,
    collector: Option<Running>,
}

/// A process that does not outlive the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Site {
    fn new(powa: Powa) -> Self {
        // Named after the process, so that `tests/support/postgresql sweep` sees which tests still run.
        let prefix = format!("collector-{}-", std::process::id());
        let root = tempfile::Builder::new().prefix(&prefix).tempdir_in(env!("CARGO_TARGET_TMPDIR"));
        let root = root.expect("make a directory");
        for directory in ["usr/local/bin", "etc", "home"] {
            fs::create_dir_all(root.path().join(directory)).expect("make a directory");
        }
        // psql would go on after an error.
        fs::write(root.path().join("psqlrc"), "\\set ON_ERROR_STOP 1\n").expect("write psqlrc");
        let [repository, server, managed] = [(); 3].map(|()| Cluster::start(powa));
        Self { repository, server, managed, root, collector: None }
    }

    /// The commands of a block.
    async fn run(&mut self, block: &Block) {
        for line in block.text.lines() {
            let known = COMMANDS.iter().find(|(command, _)| *command == line);
            let (_, how) =
                known.unwrap_or_else(|| panic!("the README shows a command that is not run: {line}"));
            match how {
                How::Run { instead, says } => {
                    let line =
                        instead.iter().fold(line.to_owned(), |line, (from, to)| line.replace(from, to));
                    let told = told(&self.shell(&line, &block.section).output().expect("run a command"));
                    assert!(told.contains(says), "{line}: {told}");
                }
                How::RunOn(powa) if *powa == self.repository.powa() => {
                    told(&self.shell(line, &block.section).output().expect("run a command"));
                }
                // The other version's test runs it.
                How::RunOn(_) => {}
                How::RunOnward => self.start(line).await,
                How::WouldRun(what) => {
                    let told = told(&shell(&format!("{line} --dry-run")).output().expect("run make"));
                    assert!(told.contains(what), "{line}: {told}");
                }
                How::RunBelow => {}
                How::RunBy { file, words } => {
                    let text = fs::read_to_string(checkout().join(file)).expect(file);
                    assert!(text.contains(words), "{file} does not run {line}");
                }
            }
        }
    }

    /// Lets a collector go on. Comes back when it collects.
    async fn start(&mut self, line: &str) {
        let line = CONFIGURED.iter().fold(line.to_owned(), |line, (from, to)| line.replace(from, to));
        let log = File::create(self.log_file()).expect("make the log");
        let mut command = self.shell(&format!("exec {line}"), "");
        command.stdout(log.try_clone().expect("duplicate a file")).stderr(log);
        self.collector = Some(Running(command.spawn().expect("run the collector")));
        wait_until("a worker", DEADLINE, async || self.log().contains(": worker for ")).await;
    }

    fn log_file(&self) -> PathBuf {
        self.root.path().join("collector.log")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.log_file()).expect("read the log")
    }

    /// SQL, as somebody types it into psql.
    async fn execute(&mut self, block: &Block) {
        let registers = block.text.contains("powa_register_server");
        let (cluster, database) = match (block.section.as_str(), registers) {
            ("The repository", false) => (&self.repository, "postgres"),
            ("The servers", false) => (&self.server, "postgres"),
            ("The servers", true) => (&self.repository, "powa"),
            ("Servers without PoWA, and managed services", false) => (&self.managed, "postgres"),
            (section, _) => panic!("{section}: SQL that is not run: {}", block.text),
        };
        let address = format!("hostname => '127.0.0.1', port => {}", self.server.port());
        let text = block.text.replace("hostname => 'db1.example.org'", &address);
        let file = self.root.path().join("input.sql");
        fs::write(&file, text).expect("write the statements");
        let mut command = self.shell_at(&format!("psql -d {database}"), cluster);
        command.stdin(File::open(file).expect("open the statements"));
        told(&command.output().expect("run psql"));
    }

    /// Whether the server has the settings that are shown.
    async fn compare_settings(&self, block: &Block) {
        assert_eq!(block.section, "The servers");
        let client = self.server.client("postgres").await;
        for line in block.text.lines() {
            let (name, value) = line.split_once(" = ").expect(line);
            let row = client.query_one("SELECT current_setting($1)", &[&name]).await.expect(line);
            assert_eq!(row.get::<_, &str>(0), value.trim_matches('\''), "{name}");
        }
    }

    fn configure(&self, block: &Block) {
        let address = format!("127.0.0.1:{}", self.repository.port());
        assert!(block.text.contains("@repository.example.org/"), "{}", block.text);
        let text = block.text.replace("repository.example.org", &address);
        fs::write(self.root.path().join("etc/powa-collector.conf"), text).expect("write the configuration");
    }

    /// A command on the machine that its section is about.
    fn shell(&self, line: &str, section: &str) -> Command {
        self.shell_at(line, if section == "The servers" { &self.server } else { &self.repository })
    }

    fn shell_at(&self, line: &str, cluster: &Cluster) -> Command {
        let root = self.root.path().display().to_string();
        let mut command = shell(&line.replace("ROOT", &root));
        command
            .env("PATH", format!("{root}/usr/local/bin:/usr/bin:/bin"))
            .env("HOME", format!("{root}/home"));
        command.env("PSQLRC", format!("{root}/psqlrc"));
        command
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", cluster.port().to_string())
            .env("PGUSER", "postgres");
        command
    }
}

/// A line for the shell, in the checkout, with nothing of the tester's own environment.
fn shell(line: &str) -> Command {
    // What a test starts does not outlive it.
    let mut command = Command::new("/usr/bin/setpriv");
    command.args(["--pdeathsig=KILL", "/bin/bash", "-euo", "pipefail", "-c", line]);
    command.current_dir(checkout()).stdin(Stdio::null());
    command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C.UTF-8");
    command
}

/// What a command says. Panics when it fails.
fn told(output: &Output) -> String {
    let told = [&output.stdout[..], &output.stderr].concat();
    let told = String::from_utf8_lossy(&told).into_owned();
    assert!(output.status.success(), "{}: {told}", output.status);
    told
}
