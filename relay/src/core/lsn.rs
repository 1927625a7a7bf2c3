//! A byte position in PostgreSQL's write-ahead log.
//!
//! Printed and parsed as the server does (`16/B374D848`). There is no arithmetic here but the
//! distance in bytes: adding one to an LSN is how other tools lost transactions.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A position in the WAL, in bytes from its beginning. `Lsn::ZERO` is the server's "invalid".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(u64);

impl Lsn {
    /// `0/0`, which PostgreSQL uses for "no position".
    pub const ZERO: Lsn = Lsn(0);

    /// Wraps the 64-bit number that the protocol carries.
    pub const fn new(bytes: u64) -> Self {
        Lsn(bytes)
    }

    /// The 64-bit number that the protocol carries.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// How far `self` is past `earlier`, in bytes; zero when it is not past it.
    pub const fn bytes_since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Where a page ends, the server names the place behind the next one's header for what it inserts
    /// next, and the page's end for how far it has come. No record starts between the two.
    pub fn before_page_header(self, page_bytes: u64) -> Lsn {
        /// `SizeOfXLogShortPHD`, and `SizeOfXLogLongPHD` at the beginning of a segment.
        const HEADERS: [u64; 2] = [24, 40];
        match self.0.checked_rem(page_bytes) {
            Some(offset) if HEADERS.contains(&offset) => Lsn(self.0 - offset),
            _ => self,
        }
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// The text is not of the form `16/B374D848`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an LSN, which looks like 16/B374D848")]
pub struct ParseLsnError(String);

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let half = |digits: &str| {
            (!digits.is_empty()
                && digits.len() <= 8
                && digits.bytes().all(|b| b.is_ascii_hexdigit()))
            .then(|| u64::from_str_radix(digits, 16).ok())
            .flatten()
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Lsn(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| ParseLsnError(text.to_owned()))
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use crate::core::lsn::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_printed_parses_to_the_same_position(bytes: u64) {
            let lsn = Lsn::new(bytes);
            prop_assert_eq!(lsn.to_string().parse(), Ok(lsn));
        }
    }

    #[test]
    fn what_ends_with_its_page_ends_before_the_next_ones_header() {
        for (inserted, expected) in [
            (0x4000, 0x4000),
            (0x4018, 0x4000),
            (0x0100_0028, 0x0100_0000),
            (0x4020, 0x4020),
            (0x5FF8, 0x5FF8),
        ] {
            assert_eq!(Lsn::new(inserted).before_page_header(8192), Lsn::new(expected));
        }
        assert_eq!(Lsn::new(0x18).before_page_header(0), Lsn::new(0x18));
    }

    #[test]
    fn text_that_is_no_lsn_is_refused() {
        for text in ["", "/", "0", "0/", "/0", "0/0/0", "+1/0", "123456789/0", "g/0", " 0/0"] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?}");
        }
    }
}
