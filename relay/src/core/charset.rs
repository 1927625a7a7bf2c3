//! The server's encoding, where that is not UTF-8: its texts become what the server would make of them.
//!
//! A server that encodes for a client in UTF-8 fails at the first byte without a Unicode form, and the
//! whole stream with it. So it is asked for texts as they are, which can't fail, and for its own table
//! of characters once; what has no place there is that row's trouble alone. Pure; the table is read by
//! `source::characters`, used by `source` for names and by `route` for values.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

/// An encoding of the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Charset {
    /// Texts are taken as they are: UTF-8, or bytes where the database does not know its own encoding
    /// (SQL_ASCII).
    #[default]
    AsItIs,
    /// Any other.
    Table {
        /// As `server_encoding` has it.
        name: Arc<str>,
        /// By the character's bytes as a number, in UTF-8. ASCII is the same in all of them.
        characters: Arc<HashMap<u32, Box<str>>>,
    },
}

/// Some bytes are no character, or one that Unicode does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoCharacter;

/// PostgreSQL's longest.
const CHARACTER_BYTES_MAX: usize = 4;

impl Charset {
    /// From lines of `lead=row`, both in hexadecimal digits: `row` has a line for each character whose
    /// bytes are `lead` and one more, counted up to 0xFE, or 0xFF without a lead; an empty line where
    /// there is none. `None` when it is something else.
    pub fn parse(name: &str, lines: &str) -> Option<Self> {
        let mut characters = HashMap::new();
        for line in lines.split_ascii_whitespace() {
            let (lead, row) = line.split_once('=')?;
            let (first, lead) = match lead {
                "" => (0x80, 0),
                lead => (0xa1, u32::from_str_radix(lead, 16).ok()?),
            };
            let row = String::from_utf8(bytes(row)?).ok()?;
            for (last, character) in (first..=0xff_u32).zip(row.split('\n')) {
                if !character.is_empty() {
                    characters.insert(lead << 8 | last, character.into());
                }
            }
        }
        Some(Charset::Table { name: name.into(), characters: characters.into() })
    }

    /// The encoding's name, where texts are not taken as they are.
    pub fn name(&self) -> Option<&str> {
        match self {
            Charset::AsItIs => None,
            Charset::Table { name, .. } => Some(name),
        }
    }

    /// A text of the server in UTF-8; borrowed where that is the same.
    ///
    /// # Errors
    /// [`NoCharacter`]: the text has no such form.
    #[inline]
    pub fn text<'a>(
        &self,
        text: &'a [u8],
        scratch: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], NoCharacter> {
        let Charset::Table { characters, .. } = self else { return Ok(text) };
        if text.is_ascii() {
            return Ok(text);
        }
        scratch.clear();
        let mut rest = text;
        while let Some((byte, after)) = rest.split_first() {
            if byte.is_ascii() {
                scratch.push(*byte);
                rest = after;
                continue;
            }
            let (character, after) = next(characters, rest).ok_or(NoCharacter)?;
            scratch.extend_from_slice(character.as_bytes());
            rest = after;
        }
        Ok(scratch)
    }

    /// Names of the server. What is no character becomes U+FFFD, and so is none of the settings'.
    pub fn names<'a>(&self, text: &'a [u8]) -> Cow<'a, str> {
        let Charset::Table { characters, .. } = self else { return String::from_utf8_lossy(text) };
        let (mut names, mut rest) = (String::with_capacity(text.len()), text);
        while let Some((byte, after)) = rest.split_first() {
            rest = match next(characters, rest) {
                _ if byte.is_ascii() => {
                    names.push(char::from(*byte));
                    after
                }
                Some((character, after)) => {
                    names.push_str(character);
                    after
                }
                None => {
                    names.push(char::REPLACEMENT_CHARACTER);
                    after
                }
            };
        }
        Cow::Owned(names)
    }

    /// A text of ours as the server has it; a character that it lacks becomes `?`.
    pub(crate) fn bytes_of(&self, text: &str) -> Vec<u8> {
        let Charset::Table { characters, .. } = self else { return text.as_bytes().to_vec() };
        let mut bytes = Vec::with_capacity(text.len());
        for character in text.chars() {
            let found = || {
                let is_it = |known: &str| known.chars().eq([character]);
                characters.iter().find_map(|(code, known)| is_it(known).then_some(*code))
            };
            match character {
                ascii if ascii.is_ascii() => bytes.extend(u8::try_from(ascii)),
                _ => match found() {
                    Some(code) => {
                        bytes.extend(code.to_be_bytes().into_iter().skip_while(|byte| *byte == 0));
                    }
                    None => bytes.push(b'?'),
                },
            }
        }
        bytes
    }
}

/// The character at the beginning, and what follows it. None is the beginning of another.
fn next<'a, 't>(
    characters: &'t HashMap<u32, Box<str>>,
    text: &'a [u8],
) -> Option<(&'t str, &'a [u8])> {
    let mut code = 0;
    for (read, byte) in text.iter().take(CHARACTER_BYTES_MAX).enumerate() {
        code = code << 8 | u32::from(*byte);
        if let Some(character) = characters.get(&code) {
            return Some((character, text.get(read + 1..)?));
        }
    }
    None
}

/// From hexadecimal digits.
pub(crate) fn bytes(digits: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    let pairs = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?));
    if rest.is_empty() { pairs.collect() } else { None }
}

#[cfg(test)]
mod tests {
    use crate::core::charset::*;

    fn text(charset: &Charset, text: &[u8]) -> Result<Vec<u8>, NoCharacter> {
        charset.text(text, &mut Vec::new()).map(<[u8]>::to_vec)
    }

    #[test]
    fn single_bytes_are_their_characters_or_none() {
        // 0x80 is a euro, 0x81 nothing.
        let charset = Charset::parse("WIN1252", "=e282ac0a0ae2809a").expect("a table");
        assert_eq!(text(&charset, b"a\x80b\x82"), Ok("a\u{20ac}b\u{201a}".into()));
        assert_eq!(text(&charset, b"plain"), Ok(b"plain".to_vec()));
        assert_eq!(text(&charset, b"a\x81"), Err(NoCharacter));
        assert_eq!(charset.names(b"a\x81\x80z"), "a\u{fffd}\u{20ac}z");
        assert_eq!(charset.bytes_of("a\u{20ac}\u{3042}"), b"a\x80?");
    }

    #[test]
    fn several_bytes_are_one_character_and_a_cut_one_is_none() {
        let lines = "a1=e380800ae38081 8e=efbda1 8fb0=e4b882 8ea1b0=e4b884";
        let charset = Charset::parse("EUC_JP", lines).expect("a table");
        let all = b"\xa1\xa1x\xa1\xa2\x8e\xa1\x8f\xb0\xa1\x8e\xa1\xb0\xa1";
        // 0x8EA1 is a character here, so that what begins with it is another one's end.
        assert_eq!(text(&charset, all), Err(NoCharacter));
        let three = b"\xa1\xa1x\xa1\xa2\x8e\xa1\x8f\xb0\xa1";
        assert_eq!(text(&charset, three), Ok("\u{3000}x\u{3001}\u{ff61}\u{4e02}".into()));
        assert_eq!(text(&charset, b"\xa1"), Err(NoCharacter));
        assert_eq!(charset.bytes_of("\u{4e02}"), b"\x8f\xb0\xa1");
    }

    #[test]
    fn what_is_taken_as_it_is_is_neither_read_nor_changed() {
        assert_eq!(text(&Charset::AsItIs, b"caf\xe9"), Ok(b"caf\xe9".to_vec()));
        assert_eq!(Charset::AsItIs.names(b"caf\xe9"), "caf\u{fffd}");
    }

    #[test]
    fn what_is_no_table_is_refused() {
        for lines in ["a1", "x=41", "a1=4", "a1=ff"] {
            assert!(Charset::parse("LATIN1", lines).is_none(), "{lines}");
        }
    }
}
