//! Where the two PostgreSQL installations are, and how their programs are run.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use nix::unistd::{Uid, getgid, getuid};

/// The PoWA versions that the tests run against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Powa {
    /// PoWA 4.1 on PostgreSQL 15: Debian 12's packages.
    V4,
    /// PoWA 5 on PostgreSQL 17: Debian 13's packages, in the folder that `tests/support/postgresql powa5`
    /// makes.
    V5,
}

impl Powa {
    pub fn is_v4(self) -> bool {
        self == Powa::V4
    }

    pub fn is_v5(self) -> bool {
        self == Powa::V5
    }
}

/// One PostgreSQL installation, and the unprivileged user that runs it (PostgreSQL refuses to run as root).
pub(super) struct Installation {
    pub powa: Powa,
    /// The folder that is the server's root directory, if it has one of its own.
    root: Option<PathBuf>,
    programs: &'static str,
    pub uid: u32,
    pub gid: u32,
    /// Where the clusters' directories are, as this process sees it.
    pub clusters: PathBuf,
}

impl Installation {
    /// Panics when the installation is missing: a test that did not run must not look like one that passed.
    pub fn find(powa: Powa) -> Installation {
        match powa {
            Powa::V4 => {
                let programs = "/usr/lib/postgresql/15/bin";
                let complete = Path::new(programs).join("postgres").exists()
                    && Path::new("/usr/share/postgresql/15/extension/powa.control").exists();
                assert!(
                    complete,
                    "PostgreSQL 15 with PoWA 4 is not installed: run `make test`, which installs it"
                );
                let (uid, gid) = server_user(Path::new("/"));
                Installation { powa, root: None, programs, uid, gid, clusters: powa4_clusters(uid) }
            }
            Powa::V5 => {
                let root = powa5_root();
                let (uid, gid) = server_user(&root);
                let clusters = root.join("var/tmp/clusters");
                Installation {
                    powa,
                    root: Some(root),
                    programs: "/usr/lib/postgresql/17/bin",
                    uid,
                    gid,
                    clusters,
                }
            }
        }
    }

    /// A path of this process as the server sees it.
    pub fn inside(&self, path: &Path) -> PathBuf {
        match &self.root {
            Some(root) => {
                Path::new("/").join(path.strip_prefix(root).expect("a path in the server's folder"))
            }
            None => path.to_owned(),
        }
    }

    /// A PostgreSQL program, run as the server's user, which ends with `death_signal` when this process does.
    /// The command's process becomes the program: its id is the program's.
    pub fn command(&self, program: &str, death_signal: &str) -> Command {
        let mut command = match &self.root {
            Some(root) if Uid::effective().is_root() => {
                let mut command = Command::new("/usr/sbin/chroot");
                command.arg(root).arg("/usr/bin/setpriv");
                command
            }
            Some(root) => {
                let mut command = Command::new("/usr/bin/unshare");
                command.args(["--user", "--map-current-user", "--wd=/"]).arg("--root").arg(root);
                command.arg("/usr/bin/setpriv");
                command
            }
            None => Command::new("/usr/bin/setpriv"),
        };
        if Uid::effective().is_root() {
            command
                .args([format!("--reuid={}", self.uid), format!("--regid={}", self.gid)])
                .arg("--clear-groups");
        }
        command.arg(format!("--pdeathsig={death_signal}")).arg(format!("{}/{program}", self.programs));
        command
            .current_dir("/")
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LC_ALL", "C.UTF-8")
            .env("TZ", "UTC");
        command
    }
}

/// The folder that holds Debian 13 with PoWA 5. Panics when it is missing.
pub(super) fn powa5_root() -> PathBuf {
    let root = env::var_os("POWA5_ROOT").map_or_else(|| target().join("powa5"), PathBuf::from);
    assert!(
        root.join(".powa5-complete").exists(),
        "the PoWA 5 folder {} is missing: run `make test`, which makes it",
        root.display()
    );
    root
}

/// Cargo's target directory.
pub(super) fn target() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target/tmp has a parent").to_owned()
}

/// The user postgres of the system below `root`; whoever runs the tests, when that is not root.
fn server_user(root: &Path) -> (u32, u32) {
    if !Uid::effective().is_root() {
        return (getuid().as_raw(), getgid().as_raw());
    }
    let users = fs::read_to_string(root.join("etc/passwd")).expect("read the list of users");
    let fields =
        users.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields[0] == "postgres");
    let fields = fields.expect("PostgreSQL's packages make a user postgres");
    (fields[2].parse().expect("a user id"), fields[3].parse().expect("a group id"))
}

/// `target/clusters`, or a directory below `/var/tmp` when the server's user cannot reach that one (a
/// checkout in `/root`). `tests/support/postgresql` must know the same directories.
fn powa4_clusters(uid: u32) -> PathBuf {
    if let Some(directory) = env::var_os("POWA_TEST_CLUSTERS") {
        return directory.into();
    }
    let directory = target().join("clusters");
    let reachable = !Uid::effective().is_root()
        || Command::new("/usr/bin/setpriv")
            .args([&format!("--reuid={uid}"), "--clear-groups", "/usr/bin/test", "-x"])
            .arg(target())
            .status()
            .expect("run setpriv")
            .success();
    if reachable { directory } else { format!("/var/tmp/powa-collector-tests-{}", getuid()).into() }
}
