//! `pg_snapshot` as text: `xmin:xmax:xip,…`, the ids of all transactions that were open. Pure.
//!
//! Source: the manual, "Transaction ID and Snapshot Information Functions". Ids are 64 bits, with
//! the epoch; those of subtransactions are not in it.

use std::collections::BTreeSet;

/// Whether a transaction that has committed is visible. The stream names it by the lower half of
/// its id; it is the one of that name that is nearest to the snapshot. `None` where the text is no
/// snapshot.
pub fn shows(snapshot: &str, xid: u32) -> Option<bool> {
    let (xmin, xmax, mut open) = parse(snapshot)?;
    let xid = full(snapshot, xid)?;
    Some(xid < xmin || (xid < xmax && !open.any(|open| open == Some(xid))))
}

/// The id whose lower half this is, the one that is nearest to the snapshot.
pub fn full(snapshot: &str, xid: u32) -> Option<u64> {
    let xmax = end(snapshot)?;
    let [.., a, b, c, d] = xmax.to_be_bytes();
    // Ids go in a circle: at most half of it is before, half of it behind.
    let ahead = xid.wrapping_sub(u32::from_be_bytes([a, b, c, d])).cast_signed();
    Some(xmax.wrapping_add_signed(i64::from(ahead)))
}

/// The first id that no transaction had by then.
pub fn end(snapshot: &str) -> Option<u64> {
    parse(snapshot).map(|(_, xmax, _)| xmax)
}

/// The snapshot without what it shows of transactions after `last`.
pub fn until(snapshot: &str, last: u64) -> Option<String> {
    let (xmin, xmax, open) = parse(snapshot)?;
    let end = xmax.min(last.saturating_add(1));
    let open: Vec<u64> = open.collect::<Option<_>>()?;
    let open = open.iter().filter(|open| **open < end).map(u64::to_string);
    Some(format!("{}:{end}:{}", xmin.min(end), open.collect::<Vec<_>>().join(",")))
}

/// The snapshot without what it shows of these transactions.
pub fn without(snapshot: &str, xids: &BTreeSet<u64>) -> Option<String> {
    let (xmin, xmax, open) = parse(snapshot)?;
    let mut open = open.collect::<Option<BTreeSet<u64>>>()?;
    open.extend(xids.range(..xmax));
    let xmin = open.first().map_or(xmin, |first| xmin.min(*first));
    let open = open.iter().map(u64::to_string).collect::<Vec<_>>();
    Some(format!("{xmin}:{xmax}:{}", open.join(",")))
}

/// The snapshot in at most `bytes_max` bytes, if these are no fewer than 64. One that is longer is
/// cut so that it shows less than it did, never more: all from the first transaction on that finds
/// no room is taken for open. A repair that reads what a snapshot does not show repeats a little,
/// and misses nothing.
pub fn cut(snapshot: &str, bytes_max: usize) -> Option<String> {
    if snapshot.len() <= bytes_max {
        return Some(snapshot.to_owned());
    }
    let (xmin, _, open) = parse(snapshot)?;
    // The new `xmax` is as long as any id.
    let room = bytes_max.saturating_sub(2 * 21);
    let mut kept = String::new();
    for open in open {
        let open = open?;
        let more = format!("{}{open}", if kept.is_empty() { "" } else { "," });
        if kept.len() + more.len() > room {
            return Some(format!("{xmin}:{open}:{kept}"));
        }
        kept.push_str(&more);
    }
    None // Then it was no longer than that.
}

fn parse(snapshot: &str) -> Option<(u64, u64, impl Iterator<Item = Option<u64>>)> {
    let mut parts = snapshot.splitn(3, ':');
    let (xmin, xmax) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let open = parts.next()?.split(',').filter(|open| !open.is_empty());
    Some((xmin, xmax, open.map(|open| open.parse().ok())))
}

#[cfg(test)]
mod tests {
    use crate::core::snapshot::*;
    use proptest::prelude::*;

    #[test]
    fn a_transaction_is_shown_once_it_has_ended() {
        assert_eq!(shows("10:20:12,15", 9), Some(true));
        assert_eq!(shows("10:20:12,15", 12), Some(false));
        assert_eq!(shows("10:20:12,15", 13), Some(true));
        assert_eq!(shows("10:20:12,15", 20), Some(false));
        assert_eq!(shows("10:10:", 9), Some(true));
        for bad in ["", "1:2", "a:b:", "10:20"] {
            assert_eq!(shows(bad, 1), None, "{bad}");
        }
    }

    #[test]
    fn a_snapshot_can_be_told_to_show_less() {
        let without = |snapshot, xids: &[u64]| {
            crate::core::snapshot::without(snapshot, &xids.iter().copied().collect())
        };
        assert_eq!(without("10:20:12,15", &[13, 20, 21]).as_deref(), Some("10:20:12,13,15"));
        assert_eq!(without("10:20:12,15", &[7]).as_deref(), Some("7:20:7,12,15"));
        assert_eq!(without("10:10:", &[]).as_deref(), Some("10:10:"));
        assert_eq!(without("10:20", &[7]), None);
    }

    #[test]
    fn the_stream_s_half_of_an_id_is_taken_in_the_nearest_epoch() {
        let epoch = 1_u64 << 32;
        let snapshot = format!("{}:{}:", 3 * epoch + 2, 3 * epoch + 2);
        assert_eq!(shows(&snapshot, 1), Some(true));
        assert_eq!(shows(&snapshot, u32::MAX), Some(true), "just before the turn");
        assert_eq!(shows(&snapshot, 2), Some(false));
        let before = format!("{0}:{0}:", 3 * epoch - 2);
        assert_eq!(shows(&before, 1), Some(false), "just behind it");
    }

    /// As PostgreSQL sees it.
    fn visible(snapshot: &str, xid: u64) -> bool {
        let (xmin, xmax, mut open) = parse(snapshot).expect("a snapshot");
        xid < xmin || (xid < xmax && !open.any(|open| open == Some(xid)))
    }

    proptest! {
        #[test]
        fn a_cut_snapshot_has_its_size_and_shows_nothing_that_was_not_shown(
            first in 1..u64::MAX / 2,
            gaps in proptest::collection::vec(1..5_u64, 1..400),
            bytes_max in 64..600_usize,
        ) {
            let mut open: Vec<u64> = vec![first];
            gaps.iter().for_each(|gap| open.push(open.last().unwrap() + gap));
            let xmax = open.last().unwrap() + 3;
            let list: Vec<String> = open.iter().map(ToString::to_string).collect();
            let whole = format!("{first}:{xmax}:{}", list.join(","));
            let cut = cut(&whole, bytes_max).expect("a snapshot");
            prop_assert!(cut.len() <= bytes_max || cut == whole && whole.len() <= bytes_max);
            for xid in first - 1..xmax + 2 {
                prop_assert!(!visible(&cut, xid) || visible(&whole, xid), "{xid} in {cut}");
            }
            prop_assert!(visible(&cut, first - 1));
        }
    }
}
