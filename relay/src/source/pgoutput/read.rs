//! A checked cursor: every read says what it was for, none can run past the end.

use crate::core::{charset::Charset, row::Malformed};

/// Reads big-endian fields from the front of a message.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    /// Length of the whole message, so that errors can say where they are.
    size_bytes: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes, size_bytes: bytes.len() }
    }

    /// Offset of the next unread byte.
    pub(crate) fn at(&self) -> usize {
        self.size_bytes - self.rest.len()
    }

    /// How many bytes are left.
    pub(crate) fn left(&self) -> usize {
        self.rest.len()
    }

    /// Everything that is left, taken.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    pub(crate) fn bytes(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        let (bytes, rest) =
            self.rest.split_at_checked(len).ok_or(Malformed::new(what, self.at()))?;
        self.rest = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Malformed> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or(Malformed::new(what, self.at()))?;
        self.rest = rest;
        Ok(*bytes)
    }

    pub(crate) fn u8(&mut self, what: &'static str) -> Result<u8, Malformed> {
        self.array(what).map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self, what: &'static str) -> Result<u16, Malformed> {
        self.array(what).map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        self.array(what).map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self, what: &'static str) -> Result<u64, Malformed> {
        self.array(what).map(u64::from_be_bytes)
    }

    pub(crate) fn i64(&mut self, what: &'static str) -> Result<i64, Malformed> {
        self.array(what).map(i64::from_be_bytes)
    }

    /// A length of four bytes, which the protocol sends as a signed number.
    pub(crate) fn len(&mut self, what: &'static str) -> Result<usize, Malformed> {
        let at = self.at();
        let len = i32::from_be_bytes(self.array(what)?);
        usize::try_from(len).map_err(|_| Malformed::new(what, at))
    }

    /// A string up to its zero byte, which is consumed and not returned.
    pub(crate) fn cstr(&mut self, what: &'static str) -> Result<&'a [u8], Malformed> {
        let end = memchr::memchr(0, self.rest).ok_or(Malformed::new(what, self.at()))?;
        let text = self.bytes(end, what)?;
        self.u8(what)?;
        Ok(text)
    }

    /// A zero-terminated name, in the server's encoding.
    pub(crate) fn name(
        &mut self,
        charset: &Charset,
        what: &'static str,
    ) -> Result<String, Malformed> {
        self.cstr(what).map(|name| charset.names(name).into_owned())
    }

    /// Succeeds when nothing is left.
    pub(crate) fn finish(&self, what: &'static str) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed::new(what, self.at())) }
    }
}
