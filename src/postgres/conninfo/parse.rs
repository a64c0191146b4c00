//! The two forms of a connection string: a URI, and `keyword = value` pairs. Pure.
//!
//! The grammar is libpq's as of PostgreSQL 17, its corners included: the tests hold the two side by side.

use super::ConnInfoError;
use super::options::Options;

const URI_PREFIXES: [&str; 2] = ["postgresql://", "postgres://"];

/// What libpq takes for white space.
const SPACES: [char; 6] = [' ', '\t', '\n', '\u{b}', '\u{c}', '\r'];

/// Reads a connection string of either form. No value that it holds is checked here.
///
/// # Errors
/// When it is neither, or names an option that libpq does not have. The error tells the place in the string and
/// repeats nothing of it: what cannot be read may be a part of a password.
pub fn parse(text: &str) -> Result<Options, ConnInfoError> {
    match URI_PREFIXES.iter().find(|prefix| text.starts_with(**prefix)) {
        Some(prefix) => Uri { text, at: prefix.len() }.parse(),
        None => parse_pairs(text),
    }
}

/// An error at a byte of the text. People count characters, from 1.
fn syntax(text: &str, at: usize, what: &'static str) -> ConnInfoError {
    ConnInfoError::Syntax { character: text[..at].chars().count() + 1, what }
}

/// What is wrong with one option, with its place.
fn at(text: &str, at: usize, error: ConnInfoError) -> ConnInfoError {
    ConnInfoError::At { character: text[..at].chars().count() + 1, error: Box::new(error) }
}

fn parse_pairs(text: &str) -> Result<Options, ConnInfoError> {
    let mut options = Options::default();
    let mut rest = text.trim_start_matches(SPACES);
    while !rest.is_empty() {
        let begin = text.len() - rest.len();
        let end = rest.find(|c| c == '=' || SPACES.contains(&c)).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        let Some(after) = after.trim_start_matches(SPACES).strip_prefix('=') else {
            let what = "no = after the option's name; a value that has spaces in it stands between quotes, as \
                        in password='a b'";
            return Err(syntax(text, begin, what));
        };
        let after = after.trim_start_matches(SPACES);
        let value_begin = text.len() - after.len();
        let (value, after) = match after.strip_prefix('\'') {
            Some(quoted) => read_quoted(quoted)
                .ok_or_else(|| syntax(text, value_begin, "no quote ends the value that begins here"))?,
            None => read_bare(after),
        };
        let has_password = options.has_secret();
        options.set(name, &value).map_err(|error| {
            // What follows a password without quotes may be the rest of it.
            at(text, begin, if has_password { error.hidden() } else { error })
        })?;
        rest = after.trim_start_matches(SPACES);
    }
    Ok(options)
}

/// A value up to the next space. A backslash takes away the meaning of what follows it.
fn read_bare(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => value.extend(chars.next()),
            c if SPACES.contains(&c) => break,
            c => value.push(c),
        }
    }
    (value, chars.as_str())
}

/// A value up to its quote.
fn read_quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.chars();
    loop {
        match chars.next()? {
            '\\' => value.extend(chars.next()),
            '\'' => return Some((value, chars.as_str())),
            c => value.push(c),
        }
    }
}

/// A URI, and how far it is read.
struct Uri<'a> {
    text: &'a str,
    /// In bytes.
    at: usize,
}

impl<'a> Uri<'a> {
    fn parse(mut self) -> Result<Options, ConnInfoError> {
        let mut options = Options::default();
        // A user, and perhaps a password, when there is an @ before the first slash.
        let ahead = self.find(&['@', '/']);
        if self.text[ahead..].starts_with('@') {
            let (user_at, user) = self.take(&[':', '@']);
            self.store(&mut options, "user", user_at, user)?;
            if self.skip(':') {
                let (password_at, password) = self.take(&['@']);
                self.store(&mut options, "password", password_at, password)?;
            }
            self.skip('@');
        }

        let begin = self.at;
        let (mut hosts, mut ports) = (String::new(), String::new());
        loop {
            hosts.push_str(self.host()?);
            if self.skip(':') {
                ports.push_str(self.take(&['/', '?', ',']).1);
            }
            if !self.skip(',') {
                break;
            }
            hosts.push(',');
            ports.push(',');
        }
        self.store(&mut options, "host", begin, &hosts)?;
        self.store(&mut options, "port", begin, &ports)?;

        if self.skip('/') {
            let (name_at, name) = self.take(&['?']);
            self.store(&mut options, "dbname", name_at, name)?;
        }
        if self.skip('?') {
            self.parameters(&mut options)?;
        }
        Ok(options)
    }

    fn host(&mut self) -> Result<&'a str, ConnInfoError> {
        let begin = self.at;
        if !self.skip('[') {
            return Ok(self.take(&[':', '/', '?', ',']).1);
        }
        let (_, address) = self.take(&[']']);
        if !self.skip(']') {
            return Err(syntax(self.text, begin, "no ] ends the IPv6 address that begins here"));
        }
        if address.is_empty() {
            return Err(syntax(self.text, begin, "no IPv6 address between [ and ]"));
        }
        match self.text[self.at..].chars().next() {
            None | Some(':' | '/' | '?' | ',') => Ok(address),
            Some(_) => {
                Err(syntax(self.text, self.at, "only a port, a comma, / or ? may follow an IPv6 address"))
            }
        }
    }

    fn parameters(&self, options: &mut Options) -> Result<(), ConnInfoError> {
        let mut begin = self.at;
        // A & at the very end is none that anything follows.
        while begin < self.text.len() {
            let end = self.text[begin..].find('&').map_or(self.text.len(), |length| begin + length);
            let parameter = &self.text[begin..end];
            let Some((name, value)) = parameter.split_once('=') else {
                return Err(syntax(self.text, begin, "no = after the parameter's name"));
            };
            if value.contains('=') {
                return Err(syntax(self.text, begin, "a second = in one parameter; write %3D"));
            }
            let value_at = begin + name.len() + 1;
            let name = self.decode(begin, name)?;
            let value = self.decode(value_at, value)?;
            // JDBC's way to ask for TLS.
            let (name, value) =
                if name == "ssl" && value == "true" { ("sslmode", "require") } else { (&*name, &*value) };
            // What stands before an @ may be the rest of a password that has a slash in it.
            let is_before_at = self.text[begin..].contains('@');
            options
                .set(name, value)
                .map_err(|error| at(self.text, begin, if is_before_at { error.hidden() } else { error }))?;
            begin = end + 1;
        }
        Ok(())
    }

    /// Sets an option to what stands in the URI; nothing there leaves it open.
    fn store(
        &self,
        options: &mut Options,
        name: &'static str,
        begin: usize,
        encoded: &str,
    ) -> Result<(), ConnInfoError> {
        if encoded.is_empty() {
            return Ok(());
        }
        let value = self.decode(begin, encoded)?;
        options.set(name, &value).map_err(|error| at(self.text, begin, error))
    }

    /// Takes away the percent-encoding of what begins at `begin`.
    fn decode(&self, begin: usize, encoded: &str) -> Result<String, ConnInfoError> {
        let wrong = |what| syntax(self.text, begin, what);
        let mut decoded = Vec::with_capacity(encoded.len());
        let mut bytes = encoded.bytes();
        while let Some(byte) = bytes.next() {
            if byte != b'%' {
                decoded.push(byte);
                continue;
            }
            let mut digit = || bytes.next().and_then(|digit| char::from(digit).to_digit(16));
            let (Some(high), Some(low)) = (digit(), digit()) else {
                return Err(wrong(
                    "no two hexadecimal digits after a % in what begins here; write %25 for %",
                ));
            };
            let byte = u8::try_from(high * 16 + low).expect("two hexadecimal digits");
            if byte == 0 {
                return Err(wrong("%00 is not allowed"));
            }
            decoded.push(byte);
        }
        String::from_utf8(decoded).map_err(|_| wrong("what begins here is not UTF-8"))
    }

    /// Where the first of these characters is, or the end.
    fn find(&self, any: &[char]) -> usize {
        self.text[self.at..].find(any).map_or(self.text.len(), |length| self.at + length)
    }

    /// Reads up to the first of these characters; gives where it began, too.
    fn take(&mut self, any: &[char]) -> (usize, &'a str) {
        let begin = self.at;
        self.at = self.find(any);
        (begin, &self.text[begin..self.at])
    }

    fn skip(&mut self, c: char) -> bool {
        let is_there = self.text[self.at..].starts_with(c);
        if is_there {
            self.at += c.len_utf8();
        }
        is_there
    }
}
