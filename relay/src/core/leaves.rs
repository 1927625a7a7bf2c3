//! Which partitions were there when a snapshot was taken: a dropped one leaves no other trace.
//!
//! Kept in the progress record, so in few bytes: the distances of the sorted OIDs, seven bits to a byte,
//! as base64. Pure; made where a snapshot is taken, read by a repair.

use base64::prelude::{BASE64_STANDARD_NO_PAD, Engine as _};
use serde::{Deserialize, Serialize};

/// Some 1,200 partitions at least, and mostly 4,000: OIDs that were given one after another are near.
const BYTES_MAX: usize = 5 << 10;

/// OIDs of partitions; empty also where they are not known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Leaves(String);

impl Leaves {
    /// Of these OIDs; nothing where they take more room than there is.
    pub fn of(oids: impl IntoIterator<Item = u32>) -> Self {
        let mut oids: Vec<u32> = oids.into_iter().collect();
        oids.sort_unstable();
        oids.dedup();
        let (mut bytes, mut before) = (Vec::new(), 0);
        for oid in oids {
            let mut rest = oid - before;
            before = oid;
            while rest > 0x7f {
                bytes.extend(u8::try_from(rest & 0x7f | 0x80));
                rest >>= 7;
            }
            bytes.extend(u8::try_from(rest));
        }
        if bytes.len() > BYTES_MAX / 4 * 3 {
            return Leaves::default();
        }
        Leaves(BASE64_STANDARD_NO_PAD.encode(bytes))
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sorted.
    pub fn oids(&self) -> Vec<u32> {
        let (mut oids, mut before, mut distance, mut shift) = (Vec::new(), 0_u32, 0_u32, 0);
        for byte in BASE64_STANDARD_NO_PAD.decode(&self.0).unwrap_or_default() {
            distance |= u32::from(byte & 0x7f).checked_shl(shift).unwrap_or_default();
            shift += 7;
            if byte & 0x80 == 0 {
                before = before.wrapping_add(distance);
                oids.push(before);
                (distance, shift) = (0, 0);
            }
        }
        oids
    }
}

#[cfg(test)]
mod tests {
    use crate::core::leaves::*;

    #[test]
    fn oids_come_back_sorted_and_take_few_bytes() {
        let oids = [16_500, 16_384, u32::MAX, 127, 128, 3_000_000_000];
        let mut sorted = oids.to_vec();
        sorted.sort_unstable();
        assert_eq!(Leaves::of(oids).oids(), sorted);
        let many: Vec<u32> = (0..1_200).map(|n| 4_000_000_000 + 190_000 * n).collect();
        let leaves = Leaves::of(many.clone());
        assert_eq!(leaves.oids(), many);
        assert!(leaves.0.len() <= BYTES_MAX, "{}", leaves.0.len());
    }

    #[test]
    fn what_finds_no_room_is_not_known() {
        assert!(Leaves::of((0..100_000).map(|n| n * 40_000)).is_empty());
        assert!(Leaves::of([]).is_empty() && Leaves::default().oids().is_empty());
    }
}
