//! Where the password of a server comes from. It is seen nowhere.

use std::io::{self, BufRead, BufReader, IsTerminal, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::SIGINT;

use super::ServersError;
use crate::postgres::secret::Secret;
use crate::postgres::text::one_line;

/// No password is longer; PostgreSQL itself takes no message of more.
const LONGEST: u64 = 64 << 10;

/// The password of a server that is to be registered. None: there is to be none.
///
/// # Errors
/// When it cannot be had.
pub fn of_new(from_stdin: bool, none: bool, whose: &str) -> Result<Option<Secret>, ServersError> {
    if none {
        return Ok(None);
    }
    if from_stdin {
        return of_stdin().map(Some);
    }
    let prompt = format!("Password of {} (empty: store none): ", one_line(whose));
    let password = asked(&prompt, "--password-stdin or --no-password")?;
    Ok(Some(password).filter(|password| !password.reveal().is_empty()))
}

/// Another password for a server.
///
/// # Errors
/// When it cannot be had.
pub fn of_known(whose: &str) -> Result<Secret, ServersError> {
    let password = asked(&format!("Password of {}: ", one_line(whose)), "--password-stdin")?;
    if password.reveal().is_empty() {
        return Err(ServersError::Usage(
            "no password was given; --no-password forgets the stored one".to_owned(),
        ));
    }
    Ok(password)
}

/// The first line of standard input.
///
/// # Errors
/// When it cannot be a password.
pub fn of_stdin() -> Result<Secret, ServersError> {
    first_line(io::stdin().lock())
}

fn first_line(input: impl Read) -> Result<Secret, ServersError> {
    let wrong = |what: &str| Err(ServersError::Usage(format!("the password on standard input: {what}")));
    let mut line = Vec::new();
    if let Err(error) = BufReader::new(input.take(LONGEST + 1)).read_until(b'\n', &mut line) {
        return wrong(&error.to_string());
    }
    if line.len() as u64 > LONGEST {
        return wrong("the line is longer than 64 KiB");
    }
    let Ok(line) = String::from_utf8(line) else { return wrong("it is not UTF-8") };
    let line = line.strip_suffix('\n').unwrap_or(&line);
    match line.strip_suffix('\r').unwrap_or(line) {
        "" => wrong("the first line is empty; --no-password is for servers that need none"),
        line if line.contains('\0') => wrong("a zero byte cannot be part of it"),
        line => Ok(Secret::new(line)),
    }
}

/// What is typed on the terminal, unseen. `instead`: what to give where there is none.
fn asked(prompt: &str, instead: &str) -> Result<Secret, ServersError> {
    if !io::stdin().is_terminal() {
        let reason = format!("there is no terminal to ask for the password on: use {instead}");
        return Err(ServersError::Usage(reason));
    }
    let is_over = Arc::new(AtomicBool::new(false));
    // Ctrl-C must not end us before the terminal shows again what is typed. Should there be no handler, it does.
    let _ = signal_hook::flag::register_conditional_default(SIGINT, Arc::clone(&is_over));
    let typed = rpassword::prompt_password(prompt);
    is_over.store(true, Ordering::Relaxed);
    typed.map(Secret::new).map_err(ServersError::Password)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_the_password() {
        for (input, password) in
            [("s3cret\nrest", "s3cret"), (" s3cret ", " s3cret "), ("s3cret\r\n", "s3cret"), ("é", "é")]
        {
            assert_eq!(first_line(input.as_bytes()).unwrap().reveal(), password);
        }
        let long = vec![b'x'; 64 << 10];
        assert_eq!(first_line(&long[..]).unwrap().reveal().len(), long.len());
    }

    #[test]
    fn what_cannot_be_a_password_is_refused_and_not_repeated() {
        let long = vec![b'x'; (64 << 10) + 1];
        for input in [&b""[..], b"\nxyz", b"\r\n", b"xyz\0", b"xyz\xff", &long] {
            let error = first_line(input).unwrap_err();
            assert!(error.is_usage() && !error.to_string().contains("xy"), "{error}");
        }
    }
}
