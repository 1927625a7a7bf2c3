//! Text from outside as people may see it: nothing in it moves a cursor, ends a line or hides.
//!
//! Event ids, keys, topics and error texts come from whoever writes rows, and from servers. In a
//! terminal or a log they could forge a line, change colours, or show one name and mean another.
//! JSON output has escapes of its own and stays exact. Pure; called by `logging` and `cli`.

use std::{borrow::Cow, fmt::Write};

/// Room for any name of a topic, and for most keys.
const SHORT: usize = 260;

/// For one line: control characters, ends of lines included, stand as `\n`, `\t` or `\u{1b}`.
pub fn line(text: &str) -> Cow<'_, str> {
    escaped(text, is_hidden)
}

/// For text that has lines of its own: as [`line()`], but ends of lines stay.
pub fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, |character| character != '\n' && is_hidden(character))
}

/// The text with its commands for that route's relay.
pub fn for_route(text: &str, route: &str) -> String {
    const OF_A_RELAY: [&str; 3] =
        ["outbox-relay resume ", "outbox-relay dead-letters ", "`resume "];
    let named = "--route ";
    OF_A_RELAY.iter().fold(text.to_owned(), |text, command| {
        let mut parts = text.split(command);
        let first = parts.next().unwrap_or_default().to_owned();
        parts.fold(first, |so_far, part| match part.starts_with(named) {
            true => so_far + command + part,
            false => format!("{so_far}{command}{named}{route} {part}"),
        })
    })
}

/// A text of a size that no one bounds, as a part of a line: cut where it is long, and then its length
/// is said.
pub fn short(text: &str) -> Cow<'_, str> {
    cut(text, SHORT)
}

/// As [`short`], with a bound of its own, in characters.
pub fn cut(text: &str, characters: usize) -> Cow<'_, str> {
    match text.char_indices().nth(characters) {
        None => Cow::Borrowed(text),
        Some((end, _)) => {
            let (shown, _) = text.split_at(end);
            Cow::Owned(format!("{shown}… ({} bytes in all)", text.len()))
        }
    }
}

/// `1 event`, `2 events`; of a word that takes an s.
pub fn counted(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn escaped(text: &str, hidden: impl Fn(char) -> bool) -> Cow<'_, str> {
    let Some(first) = text.find(&hidden) else { return Cow::Borrowed(text) };
    let (clean, rest) = text.split_at(first);
    let mut shown = String::with_capacity(text.len() + 16);
    shown.push_str(clean);
    for character in rest.chars() {
        if hidden(character) {
            // Writing to a string can't fail.
            let _ = match character {
                '\n' | '\r' | '\t' => write!(shown, "{}", character.escape_default()),
                other => write!(shown, "{}", other.escape_unicode()),
            };
        } else {
            shown.push(character);
        }
    }
    Cow::Owned(shown)
}

/// Controls (C0, DEL, C1), separators of lines, marks that turn the direction of writing, and
/// what takes no room.
pub(crate) fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use crate::core::printable::*;

    #[test]
    fn what_forges_a_line_or_steers_a_terminal_is_spelled_out() {
        for (given, shown) in [
            ("a\nWARN forged", r"a\nWARN forged"),
            ("\r\x1b[2K\x07", r"\r\u{1b}[2K\u{7}"),
            ("\u{9b}31m", r"\u{9b}31m"),
            ("\t\x7f\0", r"\t\u{7f}\u{0}"),
            ("gpj.\u{202e}exe", r"gpj.\u{202e}exe"),
            ("or\u{200b}ders", r"or\u{200b}ders"),
            ("\u{2028}", r"\u{2028}"),
        ] {
            assert_eq!(line(given), shown);
        }
        assert_eq!(lines("a\nb\x1b"), "a\nb\\u{1b}");
    }

    #[test]
    fn a_long_text_is_cut_between_characters_and_its_length_is_said() {
        assert!(matches!(short("orders"), Cow::Borrowed("orders")));
        let long = "ä".repeat(1_500_000);
        let shown = short(&long);
        assert!(shown.len() < 600 && shown.ends_with("ä… (3000000 bytes in all)"), "{shown}");
        assert_eq!(cut("abc", 2), "ab… (3 bytes in all)");
    }

    #[test]
    fn one_is_no_plural() {
        assert_eq!([0, 1, 2].map(|n| counted(n, "event")), ["0 events", "1 event", "2 events"]);
    }

    #[test]
    fn ordinary_text_of_any_language_is_left_as_it_is() {
        for text in ["", "orders 7", "größe €", "заказы", "注文", "طلب", r"C:\orders", "\"x\""]
        {
            assert!(matches!(line(text), Cow::Borrowed(same) if same == text));
        }
    }
}
