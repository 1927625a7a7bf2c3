//! The publication was changed.

use std::time::SystemTime;

use super::*;

/// With a table that it publishes by its `way`.
fn published(oid: u32, way: &str) -> Published {
    let table = PublishedTable { oid, own: vec![way.into()], above: vec![], stamp: None };
    let tables = [("outbox.events".to_owned(), table)].into();
    Published {
        publication: "1:90".into(),
        tables,
        short: false,
        digests: None,
        whole: way.into(),
        attached: vec![],
        unlogged: vec![],
    }
}

/// It was published all the time until the last snapshot; now it is published otherwise.
fn republished() -> Row {
    let stored = Progress { published: Some(published(5, "table 7:100")), ..progress(1000) };
    Row { progress: Some(stored), published: Some(published(5, "table 8:200")), ..row() }
}

#[test]
fn an_unchanged_publication_streams() {
    let same = Row { published: Some(published(5, "table 7:100")), ..republished() };
    same.decides(&Decision::Stream { from: up_to(1000) });
    // A record of version 1, or a person's decision.
    let unknown = Row { progress: Some(progress(1000)), ..republished() };
    unknown.decides(&Decision::Stream { from: up_to(1000) });
}

#[test]
fn a_changed_publication_is_repaired_though_the_slot_streams() {
    republished().decides(&repair_after(900, true));
    let gap = republished().reconcile().expect("no person is needed").gap;
    assert!(gap.is_some_and(|gap| gap.contains("outbox.events")));
    // Whatever else has come of the slot.
    Row { slot: None, ..republished() }.decides(&repair_after(900, false));
    Row { slot: Some(slot(1001)), ..republished() }.halts(&["up to 0/3E9", AT_SLOT, DROP]);
}

#[test]
fn rows_that_were_seen_to_be_missing_are_repaired_though_all_is_as_before() {
    let gap = Some("it was unlogged".to_owned());
    let seen = Progress { gap, ..republished().progress.expect("stored") };
    let fixed = Some(published(5, "table 7:100"));
    let fixed = Row { progress: Some(seen), published: fixed, ..row() };
    fixed.decides(&repair_after(900, true));
}

#[test]
fn a_partition_that_was_attached_with_rows_in_it_is_repaired() {
    let attached = Row { attached: Some("outbox.events_p1"), ..row() };
    let gap = attached.reconcile().expect("no person is needed").gap;
    assert!(gap.is_some_and(|gap| gap.contains("outbox.events_p1")));
    attached.decides(&repair_after(900, true));
}

#[test]
fn a_publication_that_the_stream_found_missing_is_repaired() {
    let once = Row { unpublished_once: true, ..row() };
    once.decides(&repair_after(900, true));
    // Also where it has not changed since it was first looked at: that may have been later.
    let known = Row { published: Some(published(5, "table 7:100")), ..republished() };
    Row { unpublished_once: true, ..known }.decides(&repair_after(900, true));
}

#[test]
fn a_changed_publication_halts_where_the_table_cannot_be_read_for_a_repair() {
    let unrepairable = Some(Halt::new("it has no column xid", "add one"));
    let unfit = Row { unrepairable, ..republished() };
    unfit.halts(&["between 0/1F4 and 0/7D0", "no column xid", "add one", AT_PROGRESS, AT_NOW]);
    let bare = Progress { snapshots: vec![], ..republished().progress.expect("stored") };
    let bare = Row { progress: Some(bare), ..republished() };
    bare.halts(&["no stored snapshot", AT_PROGRESS, AT_NOW]);
    let anew = Row { published: Some(published(6, "table 8:200")), ..republished() };
    anew.halts(&["outbox.events is another table", AT_PROGRESS, AT_NOW]);
    let without_slot = Row { slot: None, ..anew };
    without_slot.halts(&["outbox.events is another table", AT_NOW]);
}

/// What the slot lacks may be committed before what it had, and what the newest snapshot does not show before its place.
#[test]
fn an_interval_begins_before_all_that_may_be_missing() {
    let unrepairable = || Some(Halt::new("it has no column xid", "add one"));
    let between = |row: Row| row.halts(&["between 0/1F4 and 0/7D0"]);
    between(Row { unrepairable: unrepairable(), ..republished() });
    between(Row { unrepairable: unrepairable(), slot: None, ..republished() });
    let announced = RepairRecord::announced(Some("900:900:".into()));
    let announced = Progress { repair: Some(announced), ..progress(1000) };
    let cut_short = Row { progress: Some(announced), slot: None, ..row() };
    between(Row { unrepairable: unrepairable(), ..cut_short });
    let mut decided = progress(1000);
    decided.repair_after("700:700:".into(), Lsn::new(1000), SystemTime::UNIX_EPOCH);
    let decided = Row { progress: Some(decided), slot: None, ..row() };
    Row { unrepairable: unrepairable(), ..decided }
        .halts(&["between the first event that `resume --at table` named and 0/7D0"]);
    let lost = Row { unrepairable: unrepairable(), slot: None, ..row() };
    lost.halts(&["between 0/3E8 and 0/7D0"]);
    let why = Halt::new("rows were deleted", "restore them");
    let of = |gap, streams, stored: &Progress| {
        incomplete("outbox", (gap, streams), Some("900:900:"), stored, &why).reason
    };
    for (gap, streams) in
        [(Some("it was dropped"), Left::Streams), (Some("it was dropped"), Left::Gone)]
    {
        let reason = of(gap, streams, &progress(1000));
        assert!(reason.contains("between 0/1F4 and now"), "{reason}");
    }
    let reason = of(None, Left::Gone, &progress(1000));
    assert!(reason.contains("between 0/3E8 and now"), "{reason}");
    let alone = Progress { snapshots: progress(1000).snapshots[1..].to_vec(), ..progress(1000) };
    assert_eq!(alone.unshown_since(), Some(Lsn::new(500)), "it may be a slot's own");
}

#[test]
fn a_publication_changed_between_the_slots_making_and_its_record_halts() {
    let announced = Progress { published: Some(published(5, "table 7:100")), ..announced() };
    let cut_short = Row { progress: Some(announced), ..republished() };
    cut_short.halts(&["first event", "0/7D0", AT_NOW]);
}

#[test]
fn another_table_in_the_publication_counts_only_inside_a_transaction() {
    let earlier = published(5, "table 7:100");
    let now = Published { whole: "two tables".into(), ..earlier.clone() };
    let stored = Progress { published: Some(earlier), ..progress(1000) };
    let between = Row { progress: Some(stored.clone()), published: Some(now), ..row() };
    between.decides(&Decision::Stream { from: up_to(1000) });
    let row = crate::core::position::RowPosition { commit: Lsn::new(1000), ordinal: 4 };
    let inside = Progress { position: Some(Position::Row(row)), ..stored };
    Row { progress: Some(inside), ..between }.decides(&repair_after(900, true));
}
