use super::*;
use crate::core::{identity::SystemIdentity, leaves::Leaves, position::Position};

#[test]
fn a_decision_asks_where_it_leaves_out_what_it_does_not_name() {
    let stored = Progress {
        position: Some(Position::UpTo(Lsn::new(1000))),
        system_id: "7".into(),
        timeline: 2,
        snapshots: vec![SnapshotRecord {
            lsn: Lsn::new(900),
            taken_ms: 1,
            snapshot: "5:5:".into(),
            leaves: Leaves::default(),
        }],
        ..Progress::before_first_start("s")
    };
    let identity = |system_id: &str, timeline, flush_lsn| SystemIdentity {
        system_id: system_id.into(),
        timeline,
        flush_lsn: Lsn::new(flush_lsn),
    };
    let here = identity("7", 2, 2000);
    let rolled_back = identity("7", 2, 950);
    let row = RowPosition { commit: Lsn::new(1000), ordinal: 0 };
    let counted = Part::Since(stored.snapshots.first());
    let unknown = Part::Since(None);
    for (decision, stored, confirmed, identity, expected) in [
        (Decision::AtUpgrade, Some(&stored), 1000, &identity("8", 1, 2000), Part::Nothing),
        (Decision::AtSlot, Some(&stored), 1000, &here, Part::Nothing),
        (Decision::AtSlot, Some(&stored), 1001, &here, counted),
        (Decision::AtSlot, Some(&stored), 900, &rolled_back, Part::Nothing),
        (Decision::AtSlot, Some(&stored), 1001, &identity("7", 1, 2000), unknown),
        (Decision::AtSlot, None, 1001, &here, Part::Nothing),
        (Decision::AtProgress, Some(&stored), 1000, &here, counted),
        (Decision::AtNow, Some(&stored), 1000, &here, counted),
        (Decision::AtNow, Some(&stored), 900, &rolled_back, unknown),
        (Decision::AtNow, Some(&stored), 1000, &identity("8", 2, 2000), unknown),
        (Decision::AtNow, None, 1000, &here, unknown),
        (Decision::Skip(row), Some(&stored), 1000, &here, Part::Before(row)),
    ] {
        let confirmed = Some(Lsn::new(confirmed));
        let found = part(decision, &Facts { stored, confirmed, identity, since_ms: None });
        assert_eq!(found, expected, "{decision:?} {confirmed:?} {identity:?}");
    }
}

#[test]
fn whoever_decides_by_progress_of_another_cluster_is_told_that_a_relay_there_halts() {
    assert_eq!(stops("7", "7"), None);
    let told = stops("8", "7").expect("it is told");
    for words in ["system identifier 8", "still runs there", "another name"] {
        assert!(told.contains(words), "{words} is not in: {told}");
    }
}
