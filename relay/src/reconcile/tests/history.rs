//! Stored progress, and a server that has another history, or is another cluster.

use super::*;
use crate::core::{leaves::Leaves, snapshot, witness::Witness};

#[test]
fn on_a_new_timeline_with_the_tail_progress_stays_as_it_is() {
    let promoted = timeline(2, &[(1, 1000)]);
    let carried = promoted.decides(&Decision::Stream { from: up_to(1000) });
    assert_eq!(carried, Some(Progress { timeline: 2, ..progress(1000) }));
    Row { slot: None, ..promoted }.decides(&repair_after(900, false));
    // Two promotions later: where the progress's own timeline was left is what counts.
    timeline(3, &[(1, 1000), (2, 1400)]).decides(&Decision::Stream { from: up_to(1000) });
}

#[test]
fn on_a_new_timeline_without_the_tail_progress_counts_as_the_switch() {
    let promoted = timeline(2, &[(1, 700)]);
    let carried = Row { slot: Some(slot(600)), ..timeline(2, &[(1, 700)]) }
        .decides(&Decision::Stream { from: up_to(700) })
        .expect("there was progress");
    // The newer snapshot speaks of transaction ids that are given out again.
    let kept: Vec<u64> = carried.snapshots.iter().map(|snapshot| snapshot.lsn.get()).collect();
    assert_eq!((kept, carried.timeline), (vec![500], 2));
    Row { slot: None, ..timeline(2, &[(1, 700)]) }.decides(&repair_after(500, false));
    Row { slot: Some(lost()), ..timeline(2, &[(1, 700)]) }.decides(&repair_after(500, true));
    promoted.halts(&["up to 0/3E8", "progress up to 0/2BC", AT_SLOT, DROP]);
}

/// Older snapshots are stored without their partitions, and one may be dropped before the relay comes.
#[test]
fn on_a_new_timeline_without_the_tail_the_partitions_of_the_newest_snapshot_stay_known() {
    let leaves = Leaves::of([16_390, 16_400]);
    let mut stored = progress(1000);
    stored.snapshots.first_mut().expect("one").leaves = leaves.clone();
    let promoted =
        Row { progress: Some(stored), slot: Some(slot(600)), ..timeline(2, &[(1, 700)]) };
    let carried = promoted.decides(&Decision::Stream { from: up_to(700) }).expect("there was");
    let kept = carried.snapshots.first().expect("the one before");
    assert_eq!((kept.lsn.get(), &kept.leaves), (500, &leaves));
}

#[test]
fn a_row_inside_the_last_common_transaction_stays_as_it_is() {
    let row = crate::core::position::RowPosition { commit: Lsn::new(690), ordinal: 4 };
    let inside = Progress { position: Some(Position::Row(row)), ..progress(0) };
    let promoted = |left_at| Row {
        progress: Some(inside.clone()),
        slot: Some(slot(600)),
        ..timeline(2, &[(1, left_at)])
    };
    promoted(700).decides(&Decision::Stream { from: Position::Row(row) });
    promoted(690).decides(&Decision::Stream { from: up_to(690) });
}

#[test]
fn on_a_new_timeline_without_any_snapshot_before_it_a_missing_slot_halts() {
    let promoted = Row { slot: None, ..timeline(2, &[(1, 499)]) };
    promoted.halts(&["between 0/1F3 and 0/7D0", "no stored snapshot", AT_NOW]);
}

#[test]
fn a_timeline_without_the_progress_in_its_history_halts() {
    timeline(3, &[(2, 900)]).halts(&["timeline 1", "timeline 3", "0/3E8", "0/7D0", AT_NOW]);
    // The old primary still answers.
    let ahead = Progress { timeline: 2, ..progress(1000) };
    let old = Row { progress: Some(ahead), ..row() };
    old.halts(&["timeline 2", "timeline 1", "old primary", AT_NOW]);
}

#[test]
fn another_system_identifier_halts_whatever_the_slot_is() {
    let identity = SystemIdentity { system_id: "8".into(), ..row().identity };
    for slot in [None, Some(slot(1000)), Some(slot(1)), Some(lost())] {
        for progress in [progress(1000), announced(), repairing()] {
            let identity = identity.clone();
            let moved = Row { progress: Some(progress), slot: slot.clone(), identity, ..row() };
            let said =
                moved.halts(&["identifier 7", "is 8", "0/7D0", "resume --at upgrade", AT_NOW]);
            assert!(!said.remedy.contains("outbox.progress"), "{said}");
            let brought = Row { progress_in_database: true, ..moved };
            brought.halts(&["delete from outbox.progress where relay = 'orders'", AT_NOW]);
        }
    }
}

#[test]
fn a_volume_that_was_rolled_back_halts_whatever_the_slot_is() {
    let identity = SystemIdentity { flush_lsn: Lsn::new(999), ..row().identity };
    for slot in [None, Some(slot(900)), Some(lost())] {
        for progress in [progress(1000), repairing()] {
            let identity = identity.clone();
            let rolled_back =
                Row { progress: Some(progress), slot: slot.clone(), identity, ..row() };
            rolled_back.halts(&["put back to an older state", "WAL ended at 0/3E7", AT_NOW]);
        }
    }
    let witness = Some(Witness { commit: Lsn::new(8), xid: 755, created_ms: 0 });
    let known = Row {
        progress: Some(Progress { witness, ..progress(1000) }),
        slot: None,
        identity,
        ..row()
    };
    known.halts(&[
        "put back to an older state",
        "after 1970-01-01T00:00:00.000Z",
        "resume --at table",
        AT_NOW,
    ]);
}

#[test]
fn transaction_ids_that_are_still_to_come_were_rolled_back() {
    let witness = Some(Witness { commit: Lsn::new(800), xid: 755, created_ms: 0 });
    let known = || Progress { witness, ..progress(1000) };
    for slot in [None, Some(slot(900)), Some(lost())] {
        let at = |progress, next_xid| Row {
            progress: Some(progress),
            slot: slot.clone(),
            next_xid,
            ..row()
        };
        at(known(), 755).halts(&[
            "put back to an older state",
            "differs after that point",
            AT_NOW,
            "0/320",
        ]);
        assert!(at(known(), 756).reconcile().is_ok());
        // Without it, what the newest snapshot names.
        let end = snapshot::end(&progress(1000).snapshots[0].snapshot).expect("one");
        at(progress(1000), end - 1).halts(&["put back to an older state", AT_NOW]);
        assert!(at(progress(1000), end).reconcile().is_ok());
    }
}

#[test]
fn tables_without_the_newest_published_event_may_be_of_another_history() {
    let witness = Some(Witness { commit: Lsn::new(8), xid: 755, created_ms: 0 });
    let known = Progress { witness, ..progress(1000) };
    let Halt { reason, remedy } = perhaps_put_back(&known, None);
    assert!(reason.contains("of transaction 755, is not in its table"), "{reason}");
    assert!(
        remedy.starts_with("if it was not put back") && remedy.contains("rows_kept"),
        "{remedy}"
    );
    assert!(remedy.contains("resume --at table") && remedy.contains(AT_NOW), "{remedy}");
    let Halt { remedy, .. } = perhaps_put_back(&known, Some(&slot(900)));
    assert!(remedy.contains("resume --at slot") && remedy.contains(AT_NOW), "{remedy}");
}

#[test]
fn what_the_broker_has_lost_with_its_progress_is_repaired_or_halts_as_the_settings_say() {
    let behind = Row { slot: Some(slot(1200)), ..row() };
    behind.halts(&["up to 0/4B0", "progress up to 0/3E8", AT_SLOT, DROP]);
    let behind = Row { repairs_broker_loss: true, slot: Some(slot(1200)), ..row() };
    behind.decides(&repair_after(900, true));
    // Not where no progress is left: nothing says then what the stream had.
    let gone = Row { repairs_broker_loss: true, progress: None, has_delivered: true, ..row() };
    gone.halts(&[AT_SLOT, AT_NOW]);
}

#[test]
fn after_a_promotion_a_slot_that_is_ahead_of_progress_in_the_database_is_repaired() {
    let promoted = timeline(2, &[(1, 1500)]);
    let promoted = Row { progress_in_database: true, slot: Some(slot(1200)), ..promoted };
    promoted.decides(&repair_after(900, true));
    // Without one, a person or a defect has moved it.
    let moved = Row { progress_in_database: true, slot: Some(slot(1200)), ..row() };
    moved.halts(&["up to 0/4B0", "progress up to 0/3E8", AT_SLOT, DROP]);
}

#[test]
fn the_slot_of_another_relay_is_not_offered_to_be_dropped() {
    for slot in [slot(1000), lost()] {
        let first = Row { progress: None, slot: Some(slot), slot_owner: Some("app"), ..row() };
        let Halt { reason, remedy } = first.halts(&["relay app's slot", "postgres.slot"]);
        assert!(!remedy.contains("pg_drop_replication_slot"), "{reason}; {remedy}");
        let ours = Row { has_delivered: true, ..first };
        ours.halts(&["resume --at now"]);
    }
}
