use super::*;
use crate::core::leaves::Leaves;

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
            departed: vec![],
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
