use super::*;
use crate::core::leaves::Leaves;

#[test]
fn what_ends_with_its_page_ends_before_the_next_ones_header() {
    for (inserted, expected) in [
        (0x4000, 0x4000),
        (0x4018, 0x4000),
        (0x0100_0028, 0x0100_0000),
        (0x4020, 0x4020),
        (0x5FF8, 0x5FF8),
    ] {
        assert_eq!(before_page_header(Lsn::new(inserted), 8192), Lsn::new(expected));
    }
    assert_eq!(before_page_header(Lsn::new(0x18), 0), Lsn::new(0x18));
}

#[test]
fn a_tail_is_flushed_once_for_what_was_delivered_and_only_if_nobody_else_does() {
    let looked = |inserted: u64, flushed: u64| Looked {
        seen: Seen {
            snapshot: SnapshotRecord {
                lsn: Lsn::new(inserted),
                taken_ms: 0,
                snapshot: String::new(),
                leaves: Leaves::default(),
            },
            published: Published::default(),
        },
        wal_end: Lsn::new(flushed),
    };
    let mut tail = Tail::default();
    assert!(!tail.is_to_be_flushed(&looked(90, 80), 5), "somebody may do it by himself");
    assert!(tail.is_to_be_flushed(&looked(90, 80), 5));
    assert!(!tail.is_to_be_flushed(&looked(99, 80), 5), "once");
    assert!(tail.is_to_be_flushed(&looked(99, 80), 6), "more was delivered");
    assert!(!tail.is_to_be_flushed(&looked(99, 99), 7));
    assert!(!tail.is_to_be_flushed(&looked(120, 99), 8));
}
