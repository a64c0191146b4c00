//! SQL text as tokens: as much of PostgreSQL's lexical structure as it takes to tell names from strings and comments
//! (<https://www.postgresql.org/docs/current/sql-syntax-lexical.html>).

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// White space or a comment.
    Space,
    /// A key word, or a name without quotation marks.
    Word,
    /// A name within quotation marks.
    Quoted,
    /// A string constant in single quotes.
    Text,
    /// A string constant between dollar signs.
    Dollar,
    /// Digits.
    Number,
    /// Any other character.
    Sign,
}

/// A part of a text; all of them together are the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token<'a> {
    pub kind: Kind,
    pub text: &'a str,
}

/// Why a text cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("{0} that is begun does not end")]
    Unfinished(&'static str),
    /// Its end depends on `standard_conforming_strings`.
    #[error("a string constant has a backslash before a quote")]
    Backslash,
}

impl Token<'_> {
    /// The name that it stands for, if it does: in lower case, unless it is quoted.
    pub fn name(&self) -> Option<String> {
        match self.kind {
            Kind::Word => Some(self.text.to_lowercase()),
            Kind::Quoted => Some(self.text[1..self.text.len() - 1].replace("\"\"", "\"")),
            _ => None,
        }
    }

    pub fn is_sign(&self, sign: &str) -> bool {
        self.kind == Kind::Sign && self.text == sign
    }

    /// Whether it is this key word, given in lower case.
    pub fn is_word(&self, word: &str) -> bool {
        self.kind == Kind::Word && self.text.eq_ignore_ascii_case(word)
    }

    /// What stands between the quotes of a string constant.
    pub fn content(&self) -> Option<String> {
        match self.kind {
            Kind::Text => {
                let begin = self.text.find('\'')? + 1;
                Some(self.text[begin..self.text.len() - 1].replace("''", "'"))
            }
            Kind::Dollar => {
                let tag = self.tag()?;
                Some(self.text[tag.len()..self.text.len() - tag.len()].to_owned())
            }
            _ => None,
        }
    }

    /// What a string constant begins and ends with, as `$body$`.
    pub fn tag(&self) -> Option<&str> {
        let end = self.text.get(1..)?.find('$')? + 2;
        (self.kind == Kind::Dollar).then(|| &self.text[..end])
    }
}

/// Reads a text.
///
/// # Errors
/// When a quote or a comment does not end, or it is not certain where.
pub fn tokens(text: &str) -> Result<Vec<Token<'_>>, TokenError> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (kind, length) = next(rest)?;
        tokens.push(Token { kind, text: &rest[..length] });
        rest = &rest[length..];
    }
    Ok(tokens)
}

/// The kind and the length in bytes of the first token of a text that is not empty.
fn next(text: &str) -> Result<(Kind, usize), TokenError> {
    let first = text.chars().next().expect("the text is not empty");
    let run = |is_part: fn(char) -> bool| text.find(|c| !is_part(c)).unwrap_or(text.len());
    if first.is_whitespace() {
        return Ok((Kind::Space, run(char::is_whitespace)));
    }
    if text.starts_with("--") {
        return Ok((Kind::Space, text.find('\n').map_or(text.len(), |end| end + 1)));
    }
    if text.starts_with("/*") {
        return Ok((Kind::Space, comment(text)?));
    }
    if first == '"' {
        return Ok((Kind::Quoted, quoted(text, '"').ok_or(TokenError::Unfinished("a quoted name"))?));
    }
    if first == '\'' {
        let length = quoted(text, '\'').ok_or(TokenError::Unfinished("a string constant"))?;
        return if text[..length].contains("\\'") {
            Err(TokenError::Backslash)
        } else {
            Ok((Kind::Text, length))
        };
    }
    if text.starts_with("E'") || text.starts_with("e'") {
        return Ok((Kind::Text, escaped(text)?));
    }
    if first == '$' {
        return dollar(text);
    }
    if is_begin(first) {
        return Ok((Kind::Word, run(is_part)));
    }
    if first.is_ascii_digit() {
        return Ok((Kind::Number, run(|c| c.is_ascii_digit())));
    }
    Ok((Kind::Sign, first.len_utf8()))
}

fn is_begin(c: char) -> bool {
    c == '_' || c.is_alphabetic()
}

fn is_part(c: char) -> bool {
    is_begin(c) || c == '$' || c.is_ascii_digit()
}

/// A comment, which may have others in it.
fn comment(text: &str) -> Result<usize, TokenError> {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return Ok(at);
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    Err(TokenError::Unfinished("a comment"))
}

/// From one quote to the other; two of them in between stand for one.
fn quoted(text: &str, quote: char) -> Option<usize> {
    let mut at = 1;
    loop {
        at += text[at..].find(quote)? + 1;
        if !text[at..].starts_with(quote) {
            return Some(at);
        }
        at += 1;
    }
}

/// A string constant in which a backslash takes away the meaning of what follows.
fn escaped(text: &str) -> Result<usize, TokenError> {
    let mut characters = text.char_indices().skip(2).peekable();
    while let Some((at, c)) = characters.next() {
        match c {
            '\\' => {
                characters.next();
            }
            '\'' if characters.peek().is_some_and(|(_, next)| *next == '\'') => {
                characters.next();
            }
            '\'' => return Ok(at + 1),
            _ => {}
        }
    }
    Err(TokenError::Unfinished("a string constant"))
}

/// A string constant between dollar signs, or a lone one.
fn dollar(text: &str) -> Result<(Kind, usize), TokenError> {
    let end = text[1..].find(|c: char| c == '$' || !is_part(c)).map(|end| end + 1);
    let Some(end) = end.filter(|end| text[*end..].starts_with('$')) else { return Ok((Kind::Sign, 1)) };
    if text[1..].starts_with(|c: char| c.is_ascii_digit()) {
        return Ok((Kind::Sign, 1));
    }
    let tag = &text[..=end];
    match text[tag.len()..].find(tag) {
        Some(length) => Ok((Kind::Dollar, 2 * tag.len() + length)),
        None => Err(TokenError::Unfinished("a string constant between dollar signs")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seen(text: &str) -> Vec<(Kind, &str)> {
        tokens(text).unwrap().iter().map(|token| (token.kind, token.text)).collect()
    }

    #[test]
    fn names_strings_and_comments_are_told_apart() {
        use Kind::{Dollar, Number, Quoted, Sign, Space, Text, Word};
        assert_eq!(
            seen("a.\"b\"\"c\" -- x 'y\n/* /* */ ' */'it''s'E'\\'' $1 $q$ '$z$ $q$::int4 é$1"),
            [
                (Word, "a"),
                (Sign, "."),
                (Quoted, "\"b\"\"c\""),
                (Space, " "),
                (Space, "-- x 'y\n"),
                (Space, "/* /* */ ' */"),
                (Text, "'it''s'"),
                (Text, "E'\\''"),
                (Space, " "),
                (Sign, "$"),
                (Number, "1"),
                (Space, " "),
                (Dollar, "$q$ '$z$ $q$"),
                (Sign, ":"),
                (Sign, ":"),
                (Word, "int4"),
                (Space, " "),
                (Word, "é$1"),
            ]
        );
        let names: Vec<_> = tokens("Ab \"Ab\"\"\"").unwrap().iter().filter_map(Token::name).collect();
        assert_eq!(names, ["ab", "Ab\""]);
        let contents: Vec<_> =
            tokens("'it''s' $$a$$ $x$b$x$").unwrap().iter().filter_map(Token::content).collect();
        assert_eq!(contents, ["it's", "a", "b"]);
    }

    #[test]
    fn what_does_not_end_or_not_for_certain_is_refused() {
        for text in ["'a", "\"a", "/* /* */", "$a$ $b$", "E'\\'", "a 'b''"] {
            assert!(matches!(tokens(text), Err(TokenError::Unfinished(_))), "{text}");
        }
        assert_eq!(tokens(r"'a\' b'"), Err(TokenError::Backslash));
    }

    proptest! {
        #[test]
        fn all_tokens_together_are_the_text(text in "[a-z'\"$/*\\-\\\\ \n1.:é]{0,40}") {
            if let Ok(tokens) = tokens(&text) {
                let again: String = tokens.iter().map(|token| token.text).collect();
                prop_assert_eq!(again, text);
            }
        }
    }
}
