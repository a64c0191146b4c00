//! Connection strings that name several servers: which one it is. psql shows it; what it has not learned by
//! version 15 is said here.

mod certificates;
#[allow(unused_macros, reason = "only one version can make a standby beside itself")]
mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use certificates::Site;
use nix::sys::signal::kill;
use nix::unistd::{Pid, Uid};
use support::{Cluster, DEADLINE, Powa, Signal, wait_until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const PROGRAMS: &str = "/usr/lib/postgresql/15/bin";

/// Which server it is.
const QUESTION: &str = "SELECT current_setting('cluster_name')";

/// The roles, and the line that lets a standby in.
const HBA: &str = "local all picky scram-sha-256\nlocal all refused reject\nlocal all all trust
    local replication all trust\nhost all all 127.0.0.0/8 trust";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_that_is_right() {
    let pair = Pair::start().await;
    let down = Path::new("/nowhere");
    let (primary, standby) = (pair.site.cluster.socket_directory(), pair.directory.clone());
    let wishes = ["any", "read-write", "read-only", "primary", "standby", "prefer-standby"];
    for (hosts, expected) in [
        (vec![&*primary, &*standby], ["primary", "primary", "standby", "primary", "standby", "standby"]),
        (vec![&*standby, &*primary], ["standby", "primary", "standby", "primary", "standby", "standby"]),
        (
            vec![down, &*standby, down, &*primary],
            ["standby", "primary", "standby", "primary", "standby", "standby"],
        ),
        (vec![down, &*primary], ["primary", "primary", "", "primary", "", "primary"]),
        (vec![&*standby, down], ["standby", "", "standby", "", "standby", "standby"]),
    ] {
        for (wish, expected) in wishes.into_iter().zip(expected) {
            let told = pair.ask(&hosts, &format!("target_session_attrs={wish}")).await;
            match told {
                Ok(name) => assert_eq!(name, expected, "{hosts:?} {wish}"),
                Err(told) => {
                    assert_eq!("", expected, "{hosts:?} {wish}: {told}");
                    let words = format!("option target_session_attrs: the server is not {wish}");
                    assert!(told.contains(&words), "{told}");
                }
            }
        }
    }
    // A primary that writes nothing unless asked to.
    pair.site.run("ALTER DATABASE postgres SET default_transaction_read_only = on").await;
    for (wish, is_right) in
        [("read-write", false), ("read-only", true), ("primary", true), ("standby", false)]
    {
        let told = pair.ask(&[&primary], &format!("target_session_attrs={wish}")).await;
        assert_eq!(told.is_ok(), is_right, "{wish}: {told:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_answers_and_refuses_is_the_last() {
    let pair = Pair::start().await;
    let (primary, standby) = (pair.site.cluster.socket_directory(), pair.directory.clone());
    let hosts = [&*primary, &*standby];
    // The standby lets everybody in.
    assert_eq!(pair.ask(&[&standby], "user=picky").await.as_deref(), Ok("standby"));
    for (options, words) in [
        ("user=picky password=wrong", "password authentication failed"),
        ("user=picky", "none is given"),
        ("user=refused", "pg_hba.conf rejects"),
        ("user=nobody", "does not exist"),
        ("dbname=none", "does not exist"),
        ("options='-c work_mem=none'", "invalid value"),
    ] {
        let told = pair.ask(&hosts, options).await.unwrap_err();
        assert!(told.contains(words) && told.contains(primary.to_str().unwrap()), "{options}: {told}");
    }
    // Full is full: the next one may have room. So psql, since 14.
    pair.site.run("ALTER ROLE picky CONNECTION LIMIT 0 PASSWORD 'right'").await;
    let told = pair.ask(&hosts, "user=picky password=right").await;
    assert!(told.is_err(), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_starts_or_stops_is_passed_over() {
    let pair = Pair::start().await;
    let (primary, standby) = (pair.site.cluster.socket_directory(), pair.directory.clone());
    // A shutdown that waits for its last session.
    let last = pair.site.open("").await.unwrap();
    let file = pair.site.cluster.data_directory().join("postmaster.pid");
    let id: i32 = fs::read_to_string(file).unwrap().lines().next().unwrap().parse().unwrap();
    kill(Pid::from_raw(id), Signal::SIGTERM).unwrap();
    wait_until("the shutdown", DEADLINE, async || {
        let told = pair.site.ask(&pair.options(&[&primary], ""), QUESTION).await;
        told.is_err_and(|told| told.contains("shutting down"))
    })
    .await;
    assert_eq!(pair.ask(&[&primary, &standby], "").await.as_deref(), Ok("standby"));
    assert_eq!(
        pair.ask(&[&primary, &standby], "target_session_attrs=prefer-standby").await.as_deref(),
        Ok("standby")
    );
    let told = pair.ask(&[&primary, Path::new("/nowhere")], "").await.unwrap_err();
    assert!(told.contains("shutting down"), "what answers tells more than what does not: {told}");
    drop(last);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_and_ports() {
    let site = Site::of(Cluster::builder(Powa::V4).setting("cluster_name", "one").start());
    let port = site.cluster.port();
    let starting = starting_up().await;
    for (options, is_right) in [
        (format!("host=127.0.0.1,127.0.0.1 hostaddr='' port=1,{port}"), true),
        (format!("host=nobody.invalid,127.0.0.1 hostaddr='' port={port}"), true),
        (format!("host=nobody.invalid,other.invalid hostaddr=127.0.0.1,127.0.0.1 port=1,{port}"), true),
        (format!("host=127.0.0.1 hostaddr='' port={starting}"), false),
        (format!("host=127.0.0.1,127.0.0.2 hostaddr='' port={starting},{port}"), true),
        (format!("host=127.0.0.1,127.0.0.2 hostaddr='' port=1,{starting}"), false),
        (format!("host=a,b hostaddr=127.0.0.1 port={port}"), false),
        (format!("host=127.0.0.1,127.0.0.2 hostaddr='' port={port},{port},{port}"), false),
        ("host=127.0.0.1 hostaddr='' port=0".to_owned(), false),
    ] {
        let told = both(&site, &options).await;
        assert_eq!(told.is_ok(), is_right, "{options}: {told:?}");
    }
    // Each host has its own line in the password file.
    site.run("CREATE ROLE picky LOGIN PASSWORD 'right'").await;
    site.hba("local all all trust\nhost all all all scram-sha-256").await;
    let passwords = format!("127.0.0.2:*:*:*:wrong\n127.0.0.3:{port}:postgres:picky:right\n");
    fs::write(site.file("passwords"), passwords).unwrap();
    fs::set_permissions(site.file("passwords"), Permissions::from_mode(0o600)).unwrap();
    let of = |host: &str, port: &str| {
        format!("user=picky passfile=FILES/passwords host={host} hostaddr='' port={port}")
    };
    for (options, is_right) in [
        (of("127.0.0.3", &port.to_string()), true),
        (of("127.0.0.2,127.0.0.3", &format!("1,{port}")), true),
        (of("127.0.0.2,127.0.0.3", &port.to_string()), false),
        (of("127.0.0.4", &port.to_string()), false),
    ] {
        let told = both(&site, &options).await;
        assert_eq!(told.is_ok(), is_right, "{options}: {told:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_are_balanced_only_when_asked() {
    let pair = Pair::start().await;
    let hosts = [&*pair.site.cluster.socket_directory(), &*pair.directory.clone()];
    for (options, expected) in [
        ("load_balance_hosts=random", vec!["primary", "standby"]),
        ("load_balance_hosts=disable", vec!["primary"]),
        ("load_balance_hosts=random target_session_attrs=standby", vec!["standby"]),
    ] {
        let mut reached = std::collections::BTreeSet::new();
        for _ in 0..40 {
            reached.insert(pair.site.ask(&pair.options(&hosts, options), QUESTION).await.unwrap());
        }
        assert_eq!(reached.into_iter().collect::<Vec<_>>(), expected, "{options}");
    }
}

/// What both psql and we are answered; panics when that is not the same.
async fn both(site: &Site, options: &str) -> Result<String, String> {
    let (psql, ours) = (site.ask_by_psql(options, QUESTION).await, site.ask(options, QUESTION).await);
    assert!(psql.is_err() == ours.is_err(), "{options}\n psql: {psql:?}\n ours: {ours:?}");
    assert!(psql.is_err() || psql == ours, "{options}\n psql: {psql:?}\n ours: {ours:?}");
    ours
}

/// A listener that answers as a server does which is starting up.
async fn starting_up() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 8];
            stream.read_exact(&mut request).await.ok();
            stream.write_all(b"N").await.ok();
            let length = stream.read_u32().await.unwrap_or(4);
            let mut startup = vec![0; length as usize - 4];
            stream.read_exact(&mut startup).await.ok();
            let fields = b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0";
            let length = u32::try_from(fields.len() + 4).unwrap().to_be_bytes();
            stream.write_all(&[b"E", &length[..], fields].concat()).await.ok();
        }
    });
    port
}

/// A primary and its standby. The latter has a socket only, in a directory of its own.
struct Pair {
    site: Site,
    directory: PathBuf,
    standby: Child,
}

impl Pair {
    async fn start() -> Pair {
        let cluster = Cluster::builder(Powa::V4).hba(HBA).setting("cluster_name", "primary");
        let site = Site::of(cluster.setting("shared_preload_libraries", "").start());
        site.run("CREATE ROLE picky LOGIN PASSWORD 'right'; CREATE ROLE refused LOGIN").await;
        let data = site.cluster.data_directory();
        let directory = data.parent().unwrap().join("standby");
        let owner = fs::metadata(&data).unwrap();
        fs::create_dir(&directory).unwrap();
        chown(&directory, Some(owner.uid()), Some(owner.gid())).unwrap();
        let run = |program: &str| {
            let mut command = Command::new("/usr/bin/setpriv");
            if Uid::effective().is_root() {
                command.args([&format!("--reuid={}", owner.uid()), &format!("--regid={}", owner.gid())]);
                command.arg("--clear-groups");
            }
            command.arg("--pdeathsig=QUIT").arg(format!("{PROGRAMS}/{program}")).current_dir("/").env_clear();
            command.stdin(Stdio::null());
            command
        };
        let port = site.cluster.port().to_string();
        let mut copy = run("pg_basebackup");
        copy.args(["-R", "-X", "stream", "-c", "fast", "--no-sync", "-U", "postgres", "-p", &port, "-D"]);
        copy.arg(directory.join("data")).arg("-h").arg(site.cluster.socket_directory());
        let output = copy.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        fs::write(directory.join("data/pg_hba.conf"), "local all all trust\n").unwrap();
        let log = fs::File::create(directory.join("log")).unwrap();
        let mut serve = run("postgres");
        serve.arg("-D").arg(directory.join("data")).args([
            "-c",
            "listen_addresses=",
            "-c",
            "cluster_name=standby",
        ]);
        serve.arg("-c").arg(format!("unix_socket_directories={}", directory.display()));
        let standby = serve.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let pair = Pair { site, directory, standby };
        wait_until("the standby", DEADLINE, async || {
            pair.site.ask(&pair.options(&[&pair.directory], ""), QUESTION).await.is_ok()
        })
        .await;
        pair
    }

    fn options(&self, hosts: &[&Path], options: &str) -> String {
        let hosts: Vec<String> = hosts.iter().map(|host| host.display().to_string()).collect();
        format!("host={} hostaddr='' {options}", hosts.join(","))
    }

    async fn ask(&self, hosts: &[&Path], options: &str) -> Result<String, String> {
        both(&self.site, &self.options(hosts, options)).await
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        kill(Pid::from_raw(self.standby.id().try_into().unwrap()), Signal::SIGQUIT).ok();
        self.standby.wait().ok();
    }
}
