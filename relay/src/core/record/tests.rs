use crate::core::record::*;

fn head(ordinal: u64) -> RecordHead<'static> {
    RecordHead {
        position: RowPosition { commit: Lsn::new(1), ordinal },
        topic: "orders",
        key: Some(b"k"),
        payload: None,
        partition: None,
        timestamp_ms: Some(5),
    }
}

#[test]
fn a_record_reads_back_as_it_was_written() {
    let mut batch = Batch::new(BatchLimits { records_max: 2, bytes_max: 1 << 20 });
    let mut writer = batch.start_record(head(0));
    writer.header("a", b"1");
    writer.header_with("b", |arena| arena.extend_from_slice(b""));
    writer.finish();
    let record = batch.get(0).expect("one record");
    assert_eq!((record.topic, record.key, record.payload), ("orders", Some(&b"k"[..]), None));
    assert_eq!(record.headers().collect::<Vec<_>>(), [("a", &b"1"[..]), ("b", &b""[..])]);
}

#[test]
fn of_each_place_that_a_batch_can_be_cut_at_the_commit_is_known() {
    let commit = |at| Landmark { commit: Lsn::new(at), xid: 1, time_us: 0 };
    let mut batch = Batch::new(BatchLimits { records_max: 9, bytes_max: 1 << 20 });
    assert_eq!(batch.landmark(0), None);
    for (at, records) in [(1, 0), (2, 2), (3, 0), (4, 1), (5, 0), (6, 0)] {
        for ordinal in 0..records {
            let position = RowPosition { commit: Lsn::new(at), ordinal };
            batch.start_record(RecordHead { position, ..head(0) }).finish();
            batch.pass(Position::Row(position), Some(commit(at)));
        }
        batch.pass(Position::UpTo(Lsn::new(at + 1)), Some(commit(at)));
    }
    batch.pass(Position::UpTo(Lsn::new(9)), None);
    let found = (0..=3).map(|end| batch.landmark(end).map(|it| it.commit.get()));
    assert_eq!(found.collect::<Vec<_>>(), [None, Some(2), Some(2), Some(6)]);
    let rest = batch.split_off(2);
    assert_eq!(batch.landmark(2), Some(commit(2)));
    assert_eq!((rest.landmark(0), rest.landmark(1)), (None, Some(commit(6))));
}

#[test]
fn a_record_that_is_not_finished_leaves_nothing_behind() {
    let mut batch = Batch::new(BatchLimits { records_max: 2, bytes_max: 1 << 20 });
    batch.start_record(head(0)).header("a", b"1");
    assert_eq!((batch.len(), batch.size_bytes()), (0, 0));
}
