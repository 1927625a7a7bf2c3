//! A record's headers, as they lie in the arena.

/// Iterator over a record's headers: name, value.
#[derive(Clone, Debug)]
pub struct Headers<'a> {
    pub(super) rest: &'a [u8],
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a str, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (name_len, rest) = self.rest.split_first_chunk::<4>()?;
        let (value_len, rest) = rest.split_first_chunk::<4>()?;
        let (name, rest) = rest.split_at_checked(u32::from_ne_bytes(*name_len) as usize)?;
        let (value, rest) = rest.split_at_checked(u32::from_ne_bytes(*value_len) as usize)?;
        self.rest = rest;
        Some((std::str::from_utf8(name).expect("a name is written from a str"), value))
    }
}
