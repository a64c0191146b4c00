//! The password file. Source: "The Password File" of PostgreSQL's manual.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::ConnInfo;
use crate::postgres::secret::Secret;

/// What a password file says of one host.
#[derive(Debug)]
pub enum Lookup {
    Found(Secret),
    /// No file, or nothing in it that fits.
    Nothing,
    /// The file is not read.
    Ignored {
        file: PathBuf,
        reason: String,
    },
}

/// Looks for the password that belongs to a host, port, database and user. The file is read each time, so that
/// a changed one counts with the next login.
pub fn look_up(conninfo: &ConnInfo, host: &str, port: u16) -> Lookup {
    let Some(file) = &conninfo.passfile else { return Lookup::Nothing };
    match read(file) {
        Ok(Some(text)) => {
            let fields = [host, &port.to_string(), &conninfo.dbname, &conninfo.user];
            find(&text, fields).map_or(Lookup::Nothing, Lookup::Found)
        }
        Ok(None) => Lookup::Nothing,
        Err(reason) => Lookup::Ignored { file: file.clone(), reason },
    }
}

/// The file's text; nothing when it does not exist.
fn read(file: &Path) -> Result<Option<String>, String> {
    let Ok(metadata) = fs::metadata(file) else { return Ok(None) };
    if !metadata.is_file() {
        return Err("it is not a plain file".to_owned());
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err("others may read it: chmod 600".to_owned());
    }
    let bytes = fs::read(file).map_err(|error| error.to_string())?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// The password of the first line that fits host, port, database and user. Pure.
pub fn find(text: &str, fields: [&str; 4]) -> Option<Secret> {
    let fits = |line: &str| {
        if line.starts_with('#') {
            return None;
        }
        let rest = fields.iter().try_fold(line, |rest, field| after_field(rest, field))?;
        Some(Secret::new(unescape(rest)))
    };
    text.split('\n').map(|line| line.trim_end_matches('\r')).find_map(fits)
}

/// What follows a field that fits.
fn after_field<'a>(line: &'a str, wanted: &str) -> Option<&'a str> {
    if let Some(rest) = line.strip_prefix("*:") {
        return Some(rest);
    }
    let mut wanted = wanted.chars();
    let mut line = line.chars();
    loop {
        match line.next()? {
            ':' if wanted.as_str().is_empty() => return Some(line.as_str()),
            '\\' => (line.next()? == wanted.next()?).then_some(())?,
            c => (c == wanted.next()?).then_some(())?,
        }
    }
}

/// The password ends with the line or a colon; a backslash takes away the meaning of what follows it.
fn unescape(text: &str) -> String {
    let mut password = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            ':' => break,
            '\\' => password.push(chars.next().unwrap_or('\\')),
            c => password.push(c),
        }
    }
    password
}
