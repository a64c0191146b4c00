//! The connection service file: named sets of options. Source: "The Connection Service File" of PostgreSQL's
//! manual.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::environment::Environment;
use super::options::{self, Options};
use super::{ConnInfoError, file_error};

/// libpq refuses longer lines, whose end counts.
const LINE_BYTES: usize = 1022;

/// The options of a service, from the user's own file or else from the system's.
///
/// # Errors
/// When no file has the service, or the file that has it is wrong.
pub fn read(service: &str, environment: &Environment) -> Result<Options, ConnInfoError> {
    let named = environment.variable("PGSERVICEFILE").map(PathBuf::from);
    let own = named.clone().or_else(|| environment.home_file(".pg_service.conf"));
    let files: Vec<PathBuf> = own.into_iter().chain([environment.system_service_file()]).collect();
    for file in &files {
        let text = match fs::read(file) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            // As libpq finds it, a directory is a file with nothing in it.
            Err(error) if error.kind() == ErrorKind::IsADirectory => continue,
            // A file that somebody names must be there.
            Err(error)
                if named.as_ref() != Some(file)
                    && matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                continue;
            }
            Err(error) => return Err(file_error("service", file, error)),
        };
        if let Some(options) = parse(&text, service, file)? {
            return Ok(options);
        }
    }
    let files: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    Err(ConnInfoError::value("service", format!("no service of that name in {}", files.join(" or "))))
}

/// The options of one service, if the text has it. Pure; `file` is for the errors.
///
/// # Errors
/// When a line of the service is wrong.
pub fn parse(text: &str, service: &str, file: &Path) -> Result<Option<Options>, ConnInfoError> {
    let mut found: Option<Options> = None;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let wrong = |what: &str| {
            let place = format!("{}: line {}: ", file.display(), number + 1);
            Err(ConnInfoError::value("service", place + what))
        };
        if line.len() > LINE_BYTES {
            return wrong("longer than 1022 bytes with its end");
        }
        let line = line.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\u{b}');
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(header) = line.strip_prefix('[') {
            if found.is_some() {
                break;
            }
            let is_wanted = header.strip_prefix(service).is_some_and(|rest| rest.starts_with(']'));
            found = is_wanted.then(Options::default);
            continue;
        }
        let Some(options) = &mut found else { continue };
        if line.starts_with("ldap") {
            return wrong("a service that is looked up by LDAP is not supported; write its options here");
        }
        let Some((name, value)) = line.split_once('=') else {
            return wrong("no = after the option's name");
        };
        if name == "service" {
            return wrong("a service cannot refer to another one");
        }
        let Some(keyword) = options::keyword(name) else {
            return wrong(&ConnInfoError::unknown(name).to_string());
        };
        // Said twice, the first counts.
        options.fill(keyword, value);
    }
    Ok(found)
}
