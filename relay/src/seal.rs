//! Whose record of progress it is: a seal that only who knows the relay's key can make.
//!
//! Brokers let anybody with Write on the progress topic add a record to it, and a record says
//! nothing of who wrote it that a client can see. So each of ours carries a number, which grows,
//! and a code (HMAC-SHA-256) over that, its key and its value. The key is in the relay's database
//! (`progress_key`), where only relays read. The number keeps an old record from counting again when
//! somebody stores a copy of it. Pure.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;
/// SHA-256 works on blocks of so many bytes.
const BLOCK_BYTES: usize = 64;

/// A relay's key. Never shown.
#[derive(Clone)]
pub struct SealKey([u8; KEY_BYTES]);

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealKey(***)")
    }
}

impl SealKey {
    /// A new one.
    pub fn random() -> Self {
        SealKey(rand::random())
    }

    /// As it is stored.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// From what is stored; `None` if it has another length.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(SealKey)
    }

    /// The seal of a record, as text: its number and the code; no value is a tombstone.
    pub fn seal(&self, number: u64, key: &[u8], value: Option<&[u8]>) -> String {
        let mut seal = format!("{number}:");
        for byte in self.code(number, key, value) {
            let _ = write!(seal, "{byte:02x}");
        }
        seal
    }

    /// The record's number, if its seal was made with this key.
    pub fn verify(&self, seal: &[u8], key: &[u8], value: Option<&[u8]>) -> Option<u64> {
        let number = seal.split(|byte| *byte == b':').next()?;
        let number = std::str::from_utf8(number).ok()?.parse().ok()?;
        (seal == self.seal(number, key, value).as_bytes()).then_some(number)
    }

    /// RFC 2104. Lengths are part of it, so that no two records have the same text.
    fn code(&self, number: u64, key: &[u8], value: Option<&[u8]>) -> [u8; 32] {
        let pad = |byte: u8| {
            let mut block = [byte; BLOCK_BYTES];
            block.iter_mut().zip(&self.0).for_each(|(out, key)| *out ^= key);
            Sha256::new().chain_update(block)
        };
        let inner = pad(0x36)
            .chain_update(number.to_be_bytes())
            .chain_update((key.len() as u64).to_be_bytes())
            .chain_update(key)
            .chain_update([u8::from(value.is_some())])
            .chain_update(value.unwrap_or_default())
            .finalize();
        pad(0x5c).chain_update(inner).finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_holds_for_its_number_key_value_and_maker_only() {
        let ours = SealKey::random();
        let seal = ours.seal(7, b"orders", Some(b"1"));
        assert_eq!(ours.verify(seal.as_bytes(), b"orders", Some(b"1")), Some(7));
        assert_eq!(ours.verify(seal.as_bytes(), b"orders", Some(b"2")), None);
        assert_eq!(ours.verify(seal.as_bytes(), b"order", Some(b"s1")), None);
        assert_eq!(ours.verify(seal.as_bytes(), b"orders", None), None);
        assert_eq!(SealKey::random().verify(seal.as_bytes(), b"orders", Some(b"1")), None);
        let later = seal.replacen('7', "8", 1);
        assert_eq!(ours.verify(later.as_bytes(), b"orders", Some(b"1")), None);
        let tombstone = ours.seal(8, b"orders", None);
        assert_eq!(ours.verify(tombstone.as_bytes(), b"orders", None), Some(8));
        assert_eq!(ours.verify(tombstone.as_bytes(), b"orders", Some(b"")), None);
        assert_eq!(ours.verify(b"short", b"orders", None), None);
    }

    /// A record's text is framed, so that the vectors of RFC 4231 can't be asked for.
    #[test]
    fn the_code_is_hmac_sha_256() {
        let key = SealKey([0x0b; KEY_BYTES]);
        let text = [&1u64.to_be_bytes()[..], &2u64.to_be_bytes(), b"Hi", &[1], b"There"].concat();
        let expected = by_definition(&key.0, &text);
        let expected: String = expected.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(key.seal(1, b"Hi", Some(b"There")), format!("1:{expected}"));
    }

    /// By the definition: H((K ^ opad) || H((K ^ ipad) || text)).
    fn by_definition(key: &[u8], text: &[u8]) -> Vec<u8> {
        let padded = |byte: u8| -> Vec<u8> {
            (0..64).map(|at| key.get(at).copied().unwrap_or(0) ^ byte).collect()
        };
        let inner = Sha256::digest([padded(0x36), text.to_vec()].concat());
        Sha256::digest([padded(0x5c), inner.to_vec()].concat()).to_vec()
    }
}
