//! Text as a literal of SQL that a person may copy from wherever it is shown.

use crate::core::printable;

/// A literal that PostgreSQL reads as the text, and that shows nothing which would be spelled out on its way to
/// a terminal: what is not visible stands as an escape of PostgreSQL's own.
pub(crate) fn literal(text: &str) -> String {
    let is_plain = !text.contains('\\') && !text.contains('`') && printable::line(text) == text;
    if is_plain {
        return format!("'{}'", text.replace('\'', "''"));
    }
    let escaped = text.chars().map(|character| match character {
        '\'' => "''".to_owned(),
        '\\' => "\\\\".to_owned(),
        '\n' => "\\n".to_owned(),
        // Statements stand between such.
        '`' => "\\x60".to_owned(),
        shown if !printable::is_hidden(shown) => shown.to_string(),
        ascii if ascii.is_ascii() => format!("\\x{:02x}", u32::from(ascii)),
        other => format!("\\U{:08x}", u32::from(other)),
    });
    format!("E'{}'", escaped.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_literal_is_shown_as_it_is_to_be_typed() {
        for (text, shown) in [
            ("it's", "'it''s'"),
            ("größe", "'größe'"),
            (r"a\b", r"E'a\\b'"),
            ("x'; drop table t; --\n\x1b[2J", r"E'x''; drop table t; --\n\x1b[2J'"),
            ("a`b\u{202e}", r"E'a\x60b\U0000202e'"),
        ] {
            assert_eq!(literal(text), shown);
            assert_eq!(printable::line(shown), shown);
        }
    }
}
