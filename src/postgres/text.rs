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

/// A message up to what it quotes, where that is more than a word: it may be a part of a statement. Names stay.
pub fn without_quotations(message: &str) -> String {
    let parts: Vec<&str> = message.split('"').collect();
    // Every second part stands between quotation marks, unless what is quoted has such marks itself.
    let is_balanced = parts.len() % 2 == 1;
    let is_text = |part: &str| !is_balanced || part.contains(char::is_whitespace);
    match (1..parts.len()).step_by(2).find(|at| is_text(parts[*at])) {
        Some(first) => format!("{}\"…\"", parts[..first].join("\"")),
        None => message.to_owned(),
    }
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

    #[test]
    fn what_a_message_quotes_goes_unless_it_is_a_name() {
        for (message, left) in [
            (r#"relation "a" does not exist"#, r#"relation "a" does not exist"#),
            (r#"type integer: "select 1""#, r#"type integer: "…""#),
            (r#"in "a": "select "b" from "c d" x", line 1"#, r#"in "a": "…""#),
            (r#"value "select 'it"s' secret" is too long"#, r#"value "…""#),
            (r#"cut off: "select secret"#, r#"cut off: "…""#),
            ("nothing", "nothing"),
            ("", ""),
        ] {
            assert_eq!(without_quotations(message), left);
        }
    }
}
