//! Group and deduplication ids: what of an event they are made of, in the characters and the length that a FIFO queue
//! allows. Pure.

use std::fmt::Write as _;

use outbox_relay_aws::Fifo;
use sha2::{Digest as _, Sha256};

use crate::core::record::Record;

/// Characters of either id, at most.
const CHARS_MAX: usize = 128;

/// A group is what `lane_order` keeps in order: a key; without one, the partition that the event names; else the event
/// stands alone.
///
/// A deduplication id is the event's id and its position. A table that an app brings may give one id to several events, and
/// two tables may have the same numbers: by the id alone the service would drop all of them but the first, and say that it
/// took them.
pub(super) fn fifo(record: &Record<'_>) -> Fifo {
    let mut deduplication = record.event_id().unwrap_or_default().to_vec();
    let position = record.position;
    deduplication.extend(format!("@{:X}.{}", position.commit.get(), position.ordinal).into_bytes());
    let deduplication = allowed(&deduplication);
    let group = match (record.key, record.partition) {
        (Some(key), _) => allowed(key),
        (None, Some(partition)) => format!("outbox-partition-{partition}"),
        (None, None) => deduplication.clone(),
    };
    Fifo { group, deduplication }
}

/// As it is where it may be; its SHA-256 in hexadecimal digits otherwise.
fn allowed(bytes: &[u8]) -> String {
    let is_allowed =
        (1..=CHARS_MAX).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic);
    match std::str::from_utf8(bytes) {
        Ok(text) if is_allowed => text.to_owned(),
        _ => Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut hex, byte| {
            // Writing to a string can't fail.
            let _ = write!(hex, "{byte:02x}");
            hex
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        core::{lsn::Lsn, position::RowPosition, record::RecordHead},
        sink::aws::example::{HEAD, with},
    };

    fn of(head: RecordHead<'_>) -> (String, String) {
        with(head, &[("outbox-id", "7")], |record| {
            let Fifo { group, deduplication } = fifo(&record);
            (group, deduplication)
        })
    }

    #[test]
    fn a_group_is_a_key_or_a_partition_or_the_event_alone() {
        let pair = |group: &str| (group.to_owned(), "7@0.0".to_owned());
        assert_eq!(of(RecordHead { key: Some(b"42"), partition: Some(3), ..HEAD }), pair("42"));
        assert_eq!(of(RecordHead { partition: Some(3), ..HEAD }), pair("outbox-partition-3"));
        assert_eq!(of(HEAD), pair("7@0.0"));
    }

    #[test]
    fn events_with_one_id_are_not_the_same_event_and_a_repetition_is() {
        let at = |commit, ordinal| {
            of(RecordHead { position: RowPosition { commit: Lsn::new(commit), ordinal }, ..HEAD }).1
        };
        let all = [at(1, 0), at(1, 1), at(2, 0)];
        assert_eq!(all, ["7@1.0", "7@1.1", "7@2.0"]);
        assert_eq!(at(2, 0), all[2]);
    }

    #[test]
    fn what_a_queue_does_not_allow_is_a_hash() {
        let longest = "k".repeat(CHARS_MAX);
        assert_eq!(allowed(longest.as_bytes()), longest);
        for odd in ["", "żółć", "a\n", &"k".repeat(CHARS_MAX + 1)] {
            let hash = allowed(odd.as_bytes());
            assert!(hash.len() == 64 && hash.bytes().all(|it| it.is_ascii_hexdigit()), "{hash}");
        }
        // `printf 'a b' | sha256sum`
        let of_space = "c8687a08aa5d6ed2044328fa6a697ab8e96dc34291e8c2034ae8c38e6fcc6d65";
        assert_eq!(allowed(b"a b"), of_space);
        assert_ne!(allowed(b"\xff"), allowed(b"\xfe"));
    }
}
