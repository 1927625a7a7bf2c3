//! Sizes in bytes as people write them: `16 MiB`, `16MB`, `16777216`.

use std::fmt;

/// Longest unit first, so that `MiB` is not read as `B`.
const UNITS: [(&str, u64); 7] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("B", 1),
];

/// A number of bytes; prints in the largest binary unit that divides it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl Size {
    /// Reads `16 MiB`, `16MB` or plain bytes; `None` when it is none of them or overflows.
    /// A unit without `B` (`16M`) is refused: half of the world reads it as the other one.
    pub fn parse(text: &str) -> Option<Size> {
        let text = text.trim();
        let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at_checked(digits_end)?;
        let number: u64 = digits.parse().ok()?;
        let unit = unit.trim_start();
        let factor = if unit.is_empty() {
            1
        } else {
            UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?.1
        };
        number.checked_mul(factor).map(Size)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binary = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        match binary.iter().find(|(_, factor)| self.0 != 0 && self.0.is_multiple_of(*factor)) {
            Some((unit, factor)) => write!(f, "{} {unit}", self.0 / factor),
            None => write!(f, "{} B", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_in_every_unit_and_nothing_else() {
        for (text, bytes) in [
            ("0", 0),
            ("123", 123),
            ("16 MiB", 16 << 20),
            ("16MiB", 16 << 20),
            (" 16 mib ", 16 << 20),
            ("16MB", 16_000_000),
            ("2 kB", 2_000),
            ("2KB", 2_000),
            ("3 GiB", 3 << 30),
            ("7B", 7),
        ] {
            assert_eq!(Size::parse(text), Some(Size(bytes)), "{text:?}");
        }
        for text in ["", "MiB", "16M", "1.5 MiB", "-1", "16 MiB x", "99999999999 GiB", "1 é"] {
            assert_eq!(Size::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_size_prints_as_text_that_reads_back() {
        for bytes in [0, 1, 1_000, 1_024, 16 << 20, (1 << 30) + 1, 5 << 30] {
            assert_eq!(Size::parse(&Size(bytes).to_string()), Some(Size(bytes)));
        }
        assert_eq!(Size(16 << 20).to_string(), "16 MiB");
    }
}
