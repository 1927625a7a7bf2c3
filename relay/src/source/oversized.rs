//! An Insert above the size limit: its small columns are kept, and of a large one that it is there no more.
//!
//! What is kept is what a repair keeps of the same row, so both know the event by the same id, time, topic and key.
//! Pure; fed with the bytes as they come.

use crate::core::row::Malformed;

/// A column above this is left out, here and by a repair.
pub(crate) const KEPT_BYTES: usize = 64 << 10;
/// Tag, table, marker, number of columns.
const HEAD_BYTES: usize = 8;

/// An Insert that comes in.
pub(super) struct Oversized {
    /// As an Insert, with NULL in place of large columns.
    kept: Vec<u8>,
    /// No more of it than a row may have that is stored whole.
    kept_max: usize,
    /// Of the message, what has not come.
    left: usize,
    size_bytes: usize,
    next: Next,
}

/// What comes next.
enum Next {
    Head,
    /// A column's marker and length.
    Column,
    /// So many bytes of a column, kept or not.
    Value {
        bytes: usize,
        kept: bool,
    },
}

impl Oversized {
    /// An Insert of `message_bytes`, in a frame of `size_bytes`.
    pub(super) fn new(message_bytes: usize, size_bytes: usize, kept_max: usize) -> Self {
        let kept = Vec::new();
        Oversized { kept, kept_max, left: message_bytes, size_bytes, next: Next::Head }
    }

    /// Takes what is there of it, and returns how many bytes that was. It takes no field in part, so it may leave a few.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let mut done = 0;
        while self.left > 0 {
            let rest = bytes.get(done..).unwrap_or_default();
            let rest = rest.get(..self.left).unwrap_or(rest);
            let Some(taken) = self.step(rest)? else { break };
            done += taken;
            self.left -= taken;
        }
        Ok(done)
    }

    /// `None` where too little is there.
    fn step(&mut self, rest: &[u8]) -> Result<Option<usize>, Malformed> {
        let (taken, next) = match self.next {
            Next::Head => {
                let Some(head) = rest.get(..HEAD_BYTES) else { return self.short(rest) };
                self.kept.extend_from_slice(head);
                (HEAD_BYTES, Next::Column)
            }
            Next::Column => match rest {
                [b't' | b'b', length @ ..] => {
                    let Some(length) = length.first_chunk() else { return self.short(rest) };
                    let bytes = usize::try_from(i32::from_be_bytes(*length));
                    let bytes =
                        bytes.map_err(|_| self.malformed("length of a large row's column"))?;
                    let kept = bytes <= KEPT_BYTES && self.kept.len() + bytes <= self.kept_max;
                    match (kept, rest) {
                        (true, [marker, ..]) => {
                            self.kept.push(*marker);
                            self.kept.extend_from_slice(length);
                        }
                        _ => self.kept.push(b'n'),
                    }
                    (1 + length.len(), Next::Value { bytes, kept })
                }
                [marker, ..] => {
                    self.kept.push(*marker);
                    (1, Next::Column)
                }
                [] => return Ok(None),
            },
            Next::Value { bytes: 0, .. } => (0, Next::Column),
            Next::Value { bytes, kept } => {
                if rest.is_empty() {
                    return Ok(None);
                }
                let here = rest.get(..bytes).unwrap_or(rest);
                if kept {
                    self.kept.extend_from_slice(here);
                }
                (here.len(), Next::Value { bytes: bytes - here.len(), kept })
            }
        };
        self.next = next;
        Ok(Some(taken))
    }

    /// The end of the message is no place for a part of a field.
    fn short(&self, rest: &[u8]) -> Result<Option<usize>, Malformed> {
        if rest.len() == self.left {
            return Err(self.malformed("end of a large row"));
        }
        Ok(None)
    }

    fn malformed(&self, what: &'static str) -> Malformed {
        Malformed::new(what, self.size_bytes - self.left)
    }

    /// Whether all of it has come.
    pub(super) fn is_whole(&self) -> bool {
        self.left == 0
    }

    /// The Insert, and how large it was.
    pub(super) fn into_parts(self) -> (Vec<u8>, usize) {
        (self.kept, self.size_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &[u8] = b"I\0\0\0\x01N\0\x04";

    fn column(marker: u8, bytes: usize) -> Vec<u8> {
        let length = u32::try_from(bytes).expect("small").to_be_bytes();
        [&[marker], length.as_slice(), &vec![b'x'; bytes]].concat()
    }

    fn fed(message: &[u8], pieces: usize, kept_max: usize) -> Result<Vec<u8>, Malformed> {
        let mut oversized = Oversized::new(message.len(), message.len() + 30, kept_max);
        let (mut from, mut until) = (0, 0);
        while !oversized.is_whole() {
            until = (until + pieces).min(message.len());
            let behind = [message.get(from..until).expect("in it"), b"next frame".as_slice()];
            // What follows the message is not its own.
            let given = if until == message.len() { behind.concat() } else { behind[0].to_vec() };
            from += oversized.feed(&given)?;
        }
        assert_eq!(from, message.len());
        Ok(oversized.into_parts().0)
    }

    #[test]
    fn small_columns_are_kept_and_large_ones_are_null_however_the_bytes_come() {
        let small = column(b'b', 8);
        let message =
            [HEAD, &column(b't', KEPT_BYTES + 1), b"n", &column(b't', KEPT_BYTES), &small].concat();
        let expected = [HEAD, b"nn", &column(b't', KEPT_BYTES), &small].concat();
        for pieces in [1, 3, 4_096, usize::MAX / 2] {
            assert_eq!(fed(&message, pieces, 1 << 20).expect("well-formed"), expected, "{pieces}");
        }
    }

    #[test]
    fn no_more_is_kept_than_of_a_row_that_is_stored_whole() {
        let message = [HEAD, &column(b't', 50_000), &column(b't', 50_000), b"n", b"n"].concat();
        let kept = fed(&message, 1 << 20, 60_000).expect("well-formed");
        assert_eq!(kept, [HEAD, &column(b't', 50_000), b"nnn"].concat());
    }

    #[test]
    fn what_ends_within_a_field_or_has_a_negative_length_is_malformed() {
        for message in [
            &[HEAD, b"t\0\0"].concat(),
            &[HEAD, b"t\xff\xff\xff\xff"].concat(),
            &HEAD[..5].to_vec(),
        ] {
            assert!(fed(message, 1 << 20, 1 << 20).is_err(), "{message:?}");
        }
    }
}
