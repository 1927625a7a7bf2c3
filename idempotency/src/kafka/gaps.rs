//! Whether records that were there are gone, told by how offsets continue. Pure.
//!
//! Offsets within a partition have holes, where transactions ended or a topic was compacted. Records
//! are gone where the partition begins behind the place at which reading was to continue; and where it
//! continues before that place, the partition was cut, or is another one of the same name.

/// How a partition continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gap {
    /// As it should.
    None,
    /// Offsets from `from` to before `to` were deleted before they were read.
    Skipped { from: i64, to: i64 },
    /// Reading was at `from` and begins again at `to`.
    Back { from: i64, to: i64 },
}

/// Reading was to continue at `expected`, as far as is known, and continues at `found`; `first` is the
/// first offset that the partition still has. `to_latest`: what is out of range is left for the end.
pub(super) fn judge(expected: Option<i64>, found: i64, first: Option<i64>, to_latest: bool) -> Gap {
    match expected {
        Some(from) if found < from => Gap::Back { from, to: found },
        Some(from) if first.is_some_and(|first| from < first) => {
            let to = if to_latest { found } else { first.unwrap_or(found).min(found) };
            Gap::Skipped { from, to }
        }
        _ => Gap::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_gone_where_the_partition_begins_behind_the_next_one() {
        let earliest = |expected, found, first| judge(expected, found, first, false);
        assert_eq!(earliest(Some(5), 5, Some(0)), Gap::None);
        assert_eq!(earliest(Some(5), 9, Some(0)), Gap::None, "markers, or compaction");
        assert_eq!(earliest(Some(5), 9, None), Gap::None, "nobody knows");
        assert_eq!(earliest(None, 9, Some(9)), Gap::None, "a new group");
        assert_eq!(earliest(Some(5), 5, Some(5)), Gap::None);
        assert_eq!(earliest(Some(5), 9, Some(8)), Gap::Skipped { from: 5, to: 8 });
        assert_eq!(earliest(Some(5), 9, Some(12)), Gap::Skipped { from: 5, to: 9 });
        assert_eq!(judge(Some(5), 20, Some(8), true), Gap::Skipped { from: 5, to: 20 });
        assert_eq!(earliest(Some(5), 0, Some(0)), Gap::Back { from: 5, to: 0 });
        assert_eq!(judge(Some(5), 4, Some(0), true), Gap::Back { from: 5, to: 4 });
    }
}
