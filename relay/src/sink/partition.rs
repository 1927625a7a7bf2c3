//! Which partition a key belongs to: Java's `DefaultPartitioner`, byte for byte, so that
//! producers in other languages and the relay agree. librdkafka's own default is CRC32.

/// Murmur2 as `org.apache.kafka.common.utils.Utils.murmur2` computes it.
pub fn murmur2(bytes: &[u8]) -> i32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;

    // Java hashes the length as an int; a key longer than that can't be sent.
    #[expect(clippy::cast_possible_truncation, reason = "wraps as Java's int does")]
    let mut hash = SEED ^ bytes.len() as u32;
    let (chunks, tail) = bytes.as_chunks::<4>();
    for chunk in chunks {
        let mut k = u32::from_le_bytes(*chunk).wrapping_mul(M);
        k ^= k >> R;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !tail.is_empty() {
        for (byte, shift) in tail.iter().zip([0, 8, 16]) {
            hash ^= u32::from(*byte) << shift;
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    (hash ^ hash >> 15).cast_signed()
}

/// The partition of `key` in a topic of `count` partitions; 0 when it has none yet.
pub fn partition_for_key(key: &[u8], count: i32) -> i32 {
    // Java's `toPositive` clears the sign bit; it is not `abs`.
    (murmur2(key) & i32::MAX).checked_rem(count).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Key, hash, partition of 8 and of 7, computed with `Utils.murmur2` and `Utils.toPositive` of
    /// kafka-clients 4.1.0; the first six hashes are also those of Kafka's own `UtilsTest`.
    const GOLDEN: &[(&[u8], i32, i32, i32)] = &[
        (b"21", -973_932_308, 4, 3),
        (b"foobar", -790_332_482, 6, 0),
        (b"a-little-bit-long-string", -985_981_536, 0, 1),
        (b"a-little-bit-longer-string", -1_486_304_829, 3, 0),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971, 5, 3),
        (b"abc", 479_470_107, 3, 4),
        (b"", 275_646_681, 1, 2),
        (b"a", -1_563_381_124, 4, 5),
        (b"ab", 316_155_434, 2, 0),
        ("żółć".as_bytes(), 475_252_577, 1, 2),
        (b"0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b", 685_611_067, 3, 1),
        (b"\xff\x80\x00\x01\xfe", -173_560_464, 0, 2),
    ];

    #[test]
    fn keys_go_where_the_java_client_sends_them() {
        for (key, hash, of_eight, of_seven) in GOLDEN {
            let name = key.escape_ascii().to_string();
            assert_eq!(murmur2(key), *hash, "{name:?}");
            assert_eq!(partition_for_key(key, 8), *of_eight, "{name:?}");
            assert_eq!(partition_for_key(key, 7), *of_seven, "{name:?}");
        }
    }

    #[test]
    fn a_topic_without_partitions_is_no_panic() {
        assert_eq!(partition_for_key(b"key", 0), 0);
    }
}
