//! What others say, as it may stand in a line of the log.

/// An error with its causes, in one line. Of what a server says, the message: its details may show rows.
pub fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = next {
        if let Some(told) = cause.downcast_ref::<tokio_postgres::error::DbError>() {
            parts.retain(|part| part != "db error");
            parts.push(one_line(told.message()));
            break;
        }
        let part = one_line(&cause.to_string());
        if !parts.last().is_some_and(|last| last.ends_with(&part)) {
            parts.push(part);
        }
        next = cause.source();
    }
    parts.join(": ")
}

/// A text from outside as it may stand in a line of the log: what would break the line or steer a terminal is
/// written as an escape.
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for word in text.split_ascii_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        for c in word.chars() {
            if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_from_outside_stay_in_their_line() {
        assert_eq!(one_line("a\n  b\u{1b}[31m\0"), r"a b\u{1b}[31m\u{0}");
        let inner = std::io::Error::other("inner\nline");
        assert_eq!(causes(&inner), "inner line");
    }
}
