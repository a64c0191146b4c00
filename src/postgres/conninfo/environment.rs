//! What libpq looks at besides the connection string: variables, the user, and files.

use std::collections::HashMap;
use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User};

/// Where connection strings get what they leave open. The process's own, or a test's.
#[derive(Clone)]
pub struct Environment {
    variables: Variables,
}

#[derive(Clone)]
enum Variables {
    OfProcess,
    Given(HashMap<String, OsString>),
}

/// Where libpq, as Debian builds it, looks for a local server's socket; upstream's own place second.
const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// Where the service file of all users is, as Debian builds libpq.
const SYSTEM_DIRECTORY: &str = "/etc/postgresql-common";

impl Environment {
    pub fn of_process() -> Self {
        Self { variables: Variables::OfProcess }
    }

    /// One in which only these variables are set.
    pub fn of(variables: &[(&str, &str)]) -> Self {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), value.into()));
        Self { variables: Variables::Given(variables.collect()) }
    }

    /// A variable that is set, be it to nothing.
    pub fn variable(&self, name: &str) -> Option<OsString> {
        match &self.variables {
            Variables::OfProcess => env::var_os(name),
            Variables::Given(variables) => variables.get(name).cloned(),
        }
    }

    /// The home directory: `$HOME`, or what the system's list of users says.
    pub fn home(&self) -> Option<PathBuf> {
        let home = self.variable("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
        home.or_else(|| Some(User::from_uid(Uid::effective()).ok()??.dir))
    }

    /// A file that libpq keeps in the home directory.
    pub fn home_file(&self, name: &str) -> Option<PathBuf> {
        Some(self.home()?.join(name))
    }

    /// The operating system's name of the user who runs this.
    pub fn user(&self) -> Option<String> {
        Some(User::from_uid(Uid::effective()).ok()??.name)
    }

    pub fn system_service_file(&self) -> PathBuf {
        let directory = self.variable("PGSYSCONFDIR").map_or_else(|| SYSTEM_DIRECTORY.into(), PathBuf::from);
        directory.join("pg_service.conf")
    }

    /// Where a local server's socket is when nobody says.
    pub fn socket_directory() -> &'static str {
        let found = SOCKET_DIRECTORIES.into_iter().find(|directory| Path::new(directory).is_dir());
        found.unwrap_or(SOCKET_DIRECTORIES[0])
    }
}
