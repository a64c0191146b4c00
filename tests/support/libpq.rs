//! The real libpq, of version 17, from the PoWA 5 folder: `libpq.c` asks it how it understands a connection
//! string.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio, id};
use std::{env, fs};

use super::installation::powa5_root;

/// Options and what they are.
pub type Pairs = BTreeMap<String, Vec<u8>>;

/// How to run the program that calls libpq.
pub struct Libpq {
    program: PathBuf,
    loader: PathBuf,
    libraries: PathBuf,
}

/// An option as libpq has it.
#[derive(Debug, PartialEq, Eq)]
pub struct LibpqKeyword {
    pub name: String,
    pub variable: Option<String>,
    pub default: Option<String>,
}

/// What a string and an environment come to, at the last of the servers that were tried.
#[derive(Debug)]
pub struct Connected {
    /// None: somebody listened.
    pub error: Option<String>,
    pub password: Vec<u8>,
    pub host: String,
    pub port: String,
    pub options: Pairs,
}

impl Libpq {
    /// Panics when libpq is missing: a test that did not run must not look like one that passed.
    pub fn find() -> Libpq {
        let root = powa5_root();
        // A Debian has the libraries of its own architecture in one such folder; the loader is among them.
        let libraries = entries(&root.join("usr/lib"))
            .into_iter()
            .find(|folder| folder.join("libpq.so.5").exists())
            .expect("the PoWA 5 folder has a libpq");
        let is_loader = |file: &PathBuf| {
            let name = file.file_name().expect("a name").to_string_lossy();
            name.starts_with("ld-linux") && name.contains(".so.")
        };
        let loader = entries(&libraries).into_iter().find(is_loader).expect("the PoWA 5 folder has a loader");
        Libpq { program: compile(), loader, libraries }
    }

    fn command(&self, mode: &str) -> Command {
        let mut command = Command::new(&self.loader);
        command.arg("--library-path").arg(&self.libraries).arg(&self.program).arg(mode).env_clear();
        command
    }

    fn run(command: &mut Command) -> Vec<Vec<u8>> {
        let output = command.stdin(Stdio::null()).output().expect("run the program that calls libpq");
        // libpq itself writes there what it thinks of a password file.
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "the program that calls libpq: {}: {told}", output.status);
        fields(&output.stdout)
    }

    pub fn keywords(&self) -> Vec<LibpqKeyword> {
        let fields = Self::run(&mut self.command("keywords"));
        let text = |field: &Vec<u8>| String::from_utf8(field.clone()).expect("libpq's own words are ASCII");
        let optional = |row: &[Vec<u8>]| (row[0] == b"yes").then(|| text(&row[1]));
        let keyword = |row: &[Vec<u8>]| LibpqKeyword {
            name: text(&row[0]),
            variable: optional(&row[1..]),
            default: optional(&row[3..]),
        };
        fields.chunks_exact(5).map(keyword).collect()
    }

    /// Connects, in an environment where only these variables are set.
    pub fn connect(&self, string: &str, variables: &[(String, String)]) -> Connected {
        let mut command = self.command("connect");
        command.arg(string).envs(variables.iter().map(|(name, value)| (name, value)));
        let mut fields = Self::run(&mut command).into_iter();
        let mut text = || String::from_utf8_lossy(&fields.next().expect("a field")).into_owned();
        let (status, error) = (text(), text());
        let error = (status != "connected").then_some(error);
        let password = fields.next().expect("a field");
        let mut text = || String::from_utf8_lossy(&fields.next().expect("a field")).into_owned();
        let (host, port) = (text(), text());
        Connected { error, password, host, port, options: pairs(fields) }
    }

    /// One process that parses many strings.
    pub fn parser(&self) -> LibpqParser {
        let mut command = self.command("parse");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("run the program that calls libpq");
        let input = process.stdin.take().expect("a pipe");
        let output = process.stdout.take().expect("a pipe");
        LibpqParser { process, input: Some(input), output }
    }
}

impl Connected {
    /// Why libpq did not even try to connect, if so.
    ///
    /// It looks at some values only when it is about to connect to a server, and some errors of that kind begin
    /// like those of the network.
    pub fn refusal(&self) -> Option<&str> {
        let error = self.error.as_deref()?;
        let is_of_network = |line: &str| {
            line.starts_with("connection to server ") && !line.contains("invalid integer value")
                || line.starts_with("could not translate host name ")
                // What is asked for is right; this machine's user has no ticket.
                || line == "GSSAPI encryption required but no credential cache"
                || line.starts_with('\t')
        };
        error.lines().find(|line| !is_of_network(line))
    }
}

/// A running process. It ends with this one, whose pipe it reads.
pub struct LibpqParser {
    process: Child,
    input: Option<ChildStdin>,
    output: ChildStdout,
}

impl LibpqParser {
    /// The options that a string without a zero byte sets, or why it is refused.
    pub fn parse(&mut self, string: &str) -> Result<Pairs, String> {
        assert!(!string.contains('\0'), "not a string of C's: {string:?}");
        let length = u32::try_from(string.len()).expect("a short string");
        let request = [&length.to_ne_bytes(), string.as_bytes()].concat();
        self.input.as_mut().expect("open until dropped").write_all(&request).expect("write to the process");
        let mut length = [0; 4];
        self.output.read_exact(&mut length).expect("read from the process");
        let mut answer = vec![0; u32::from_ne_bytes(length).try_into().expect("a length in memory")];
        self.output.read_exact(&mut answer).expect("read from the process");
        let mut fields = fields(&answer).into_iter();
        match fields.next().expect("a field").as_slice() {
            b"accepted" => Ok(pairs(fields)),
            _ => Err(String::from_utf8_lossy(&fields.next().expect("a field")).into_owned()),
        }
    }
}

impl Drop for LibpqParser {
    fn drop(&mut self) {
        drop(self.input.take());
        self.process.wait().ok();
    }
}

fn fields(answer: &[u8]) -> Vec<Vec<u8>> {
    let Some(answer) = answer.strip_suffix(b"\0") else { return Vec::new() };
    answer.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect()
}

fn pairs(mut fields: impl Iterator<Item = Vec<u8>>) -> Pairs {
    let mut pairs = Pairs::new();
    while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
        pairs.insert(String::from_utf8(name).expect("libpq's own words are ASCII"), value);
    }
    pairs
}

/// Under another name until it is complete: each test is a process, and several may do this at once.
fn compile() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/libpq.c");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (work, program) = (folder.join(format!("libpq-{}", id())), folder.join("libpq"));
    let compiler = env::var_os("CC").unwrap_or_else(|| OsString::from("cc"));
    let output = Command::new(compiler)
        .args(["-std=gnu11", "-O1", "-o"])
        .args([&work, &source])
        .arg("-ldl")
        .output()
        .expect("run the C compiler");
    assert!(output.status.success(), "compile libpq.c: {}", String::from_utf8_lossy(&output.stderr));
    fs::rename(&work, &program).expect("name the program");
    program
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let read = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut entries: Vec<PathBuf> = read.map(|entry| entry.expect("a folder's entry").path()).collect();
    entries.sort();
    entries
}
