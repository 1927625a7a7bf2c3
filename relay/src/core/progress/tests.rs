use std::{collections::BTreeMap, time::Duration};

use crate::core::progress::*;
use crate::core::{position::RowPosition, published::PublishedTable};

fn sample() -> Progress {
    Progress {
        version: VERSION,
        position: Some(Position::Row(RowPosition { commit: Lsn::new(0x1_0000_0010), ordinal: 7 })),
        slot: "outbox_orders".into(),
        system_id: "7312345678901234567".into(),
        timeline: 1,
        published: Some(Published {
            publication: "16391:733".into(),
            tables: BTreeMap::from([(
                "outbox.events".into(),
                PublishedTable {
                    oid: 16385,
                    own: vec!["table 16392:733".into()],
                    above: vec![],
                    stamp: None,
                },
            )]),
            short: false,
            digests: None,
            whole: "769e".into(),
            attached: vec![],
            unlogged: vec![],
        }),
        gap: None,
        snapshots: vec![SnapshotRecord {
            lsn: Lsn::new(16),
            taken_ms: 1_790_000_000_000,
            snapshot: "10:20:10,14".into(),
            leaves: Leaves::default(),
        }],
        releases: vec![],
        repair: None,
        era: 0,
        landmark: None,
        witness: None,
        rolled_back: None,
        not_sent: vec![],
        departed: vec![],
        topics: None,
        parked: None,
    }
}

/// The stored form is a contract with every relay that comes after this one.
#[test]
fn the_stored_form_is_the_documented_one() {
    let stored = concat!(
        r#"{"version":6,"position":{"row":{"commit":"1/10","ordinal":7}},"slot":"outbox_orders","#,
        r#""system_id":"7312345678901234567","timeline":1,"published":{"publication":"16391:733","#,
        r#""tables":{"outbox.events":{"oid":16385,"own":["table 16392:733"],"above":[]}},"#,
        r#""whole":"769e"},"gap":null,"snapshots":[{"lsn":"0/10","#,
        r#""taken_ms":1790000000000,"snapshot":"10:20:10,14"}],"releases":[],"repair":null}"#
    );
    assert_eq!(sample().encode(), stored);
    assert_eq!(Progress::decode(stored.as_bytes()).expect("readable"), sample());
    let known = Landmark { commit: Lsn::new(0x1_0000_0010), xid: 770, time_us: 5 };
    let witness = Witness { commit: Lsn::new(16), xid: 1 << 40, created_ms: 6 };
    let known = Progress { landmark: Some(known), witness: Some(witness), ..sample() };
    let landmark = concat!(
        r#""repair":null,"landmark":{"commit":"1/10","xid":770,"time_us":5},"#,
        r#""witness":{"commit":"0/10","xid":1099511627776,"created_ms":6}}"#
    );
    let stored = stored.replace(r#""repair":null}"#, landmark);
    assert_eq!(known.encode(), stored);
    assert_eq!(Progress::decode(stored.as_bytes()).expect("readable"), known);
}

#[test]
fn records_of_versions_1_to_5_are_read_and_the_first_says_nothing_of_the_publication() {
    let stored = String::from_utf8(sample().encode().to_vec()).expect("text");
    for version in [2, 3, 4, 5] {
        let older = stored.replace(r#""version":6"#, &format!(r#""version":{version}"#));
        assert_eq!(Progress::decode(older.as_bytes()).expect("readable"), sample());
    }
    let stored = concat!(
        r#"{"version":1,"position":{"row":{"commit":"1/10","ordinal":7}},"slot":"outbox_orders","#,
        r#""system_id":"7312345678901234567","timeline":1,"snapshots":[{"lsn":"0/10","#,
        r#""taken_ms":1790000000000,"snapshot":"10:20:10,14"}],"releases":[],"repair":null}"#
    );
    let expected = Progress { published: None, ..sample() };
    assert_eq!(Progress::decode(stored.as_bytes()).expect("readable"), expected);
}

#[test]
fn a_later_era_and_a_rollback_are_stored() {
    let mut progress = sample();
    progress.begin_era(SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000));
    assert_eq!(progress.era, 1_790_000_000);
    let stored = progress.encode();
    assert!(stored.ends_with(br#""repair":null,"era":1790000000}"#), "{stored:?}");
    assert_eq!(Progress::decode(&stored).expect("readable"), progress);
    let mut seen = sample();
    let left = (Lsn::new(8), "10:20:");
    DepartedRecord::note(&mut seen.departed, [7], left, &Published::default());
    assert_eq!(seen.departed.len(), 1);
    seen.note_rollback(Lsn::new(16));
    assert!(seen.departed.is_empty(), "its snapshot is of another history");
    let stored = seen.encode();
    assert!(stored.ends_with(br#""repair":null,"rolled_back":"0/10"}"#), "{stored:?}");
    assert_eq!(Progress::decode(&stored).expect("readable"), seen);
    progress.begin_era(SystemTime::UNIX_EPOCH);
    assert_eq!(progress.era, 1_790_000_001, "a clock that was set back begins one as well");
}

#[test]
fn a_newer_version_is_refused_with_its_number() {
    let error = Progress::decode(br#"{"version":7,"anything":{}}"#).expect_err("refused");
    assert!(error.to_string().contains("format version 7"), "{error}");
}

/// Brokers refuse records above a megabyte or less, and then nothing could be delivered any more.
#[test]
fn the_stored_record_stays_below_64_kib_whatever_is_open_in_the_database() {
    let open: Vec<String> = (0..20_000_u64).map(|n| (7_000_000_000 + 2 * n).to_string()).collect();
    let snapshot = format!("7000000000:7000050000:{}", open.join(","));
    let leaves = Leaves::of((0..1_200).map(|n| 4_000_000_000 + 190_000 * n));
    let record = SnapshotRecord { lsn: Lsn::new(u64::MAX), taken_ms: i64::MAX, snapshot, leaves };
    let mut progress = sample();
    let published = progress.published.as_mut().expect("it has some");
    for n in 0..200 {
        let way = || "table 4294967295:4294967295".to_owned();
        let own = vec![way(), way(), way()];
        let stamp = Some("4294967295:4294967295".into());
        let table = PublishedTable { oid: u32::MAX, own, above: vec![way()], stamp };
        published.tables.insert(format!("{n}{}", "x".repeat(126)), table);
    }
    published.tables.remove("outbox.events");
    let with_room = Progress::decode(&progress.encode()).expect("readable");
    assert_eq!(with_room.published.expect("it has some").tables.len(), 200);
    progress.snapshots = vec![record; 24];
    for n in 0..50 {
        progress.begin_release(&uuid::Uuid::from_u128(n).to_string(), Lsn::new(u64::MAX));
    }
    progress.parked = Some(ParkedRecord {
        table: u32::MAX,
        lanes: u64::MAX,
        events: u64::MAX,
        ids: vec![
            ParkedId {
                id: "9".repeat(64),
                place: Some(RowPosition { commit: Lsn::new(u64::MAX), ordinal: u64::MAX }),
                xid: Some(u32::MAX),
            };
            PARKED_IDS_MAX
        ],
    });
    progress.repair = Some(RepairRecord {
        consistent_point: Lsn::new(u64::MAX),
        lower: Some("9".repeat(SNAPSHOT_BYTES_MAX)),
        upper: "9".repeat(UPPER_BYTES_MAX),
        cursor: Some((i64::MAX, "9".repeat(CURSOR_BYTES_MAX))),
        delivered: u64::MAX,
        leaves: progress.snapshots.first().expect("some").leaves.clone(),
    });
    let stored = progress.encode();
    assert!(stored.len() < BYTES_MAX, "{}", stored.len());
    let read = Progress::decode(&stored).expect("readable");
    let newest = &read.snapshots.first().expect("kept").snapshot;
    assert!(!read.snapshots[0].leaves.is_empty() && read.snapshots[1].leaves.is_empty());
    assert!(newest.starts_with("7000000000:70000") && newest.len() > 700, "{newest}");
    // What a repair is yet to be begun for.
    progress.repair = None;
    let which = "9".repeat(7_000);
    let not_sent = NotSentRecord { partition: u32::MAX, rows: u64::MAX, which, exact: false };
    progress.not_sent = vec![not_sent; NOT_SENT_MAX];
    let snapshot = progress.snapshots.first().expect("some").snapshot.clone();
    for partition in 0..20 {
        let at = (Lsn::new(u64::MAX), snapshot.as_str());
        DepartedRecord::note(&mut progress.departed, [partition], at, &Published::default());
    }
    let stored = progress.encode();
    assert!(stored.len() < BYTES_MAX, "{}", stored.len());
    let read = Progress::decode(&stored).expect("readable");
    assert_eq!(read.not_sent, progress.not_sent);
}

#[test]
fn an_event_of_a_time_to_come_does_not_say_that_all_before_that_is_published() {
    let until = |created_ms, snapshots| {
        let witness = Some(Witness { commit: Lsn::new(16), xid: 7, created_ms });
        Progress { witness, snapshots, ..sample() }.published_until_ms()
    };
    let snapshots = sample().snapshots;
    let taken_ms = snapshots[0].taken_ms;
    assert_eq!(until(taken_ms + 3_300_000, snapshots.clone()), Some(taken_ms));
    // One of long ago makes more come again.
    assert_eq!(until(taken_ms - 3_300_000, snapshots), Some(taken_ms - 3_300_000));
    assert_eq!(until(taken_ms, vec![]), None);
    assert_eq!(Progress { witness: None, ..sample() }.published_until_ms(), None);
}
