//! The publication was changed.

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
    unfit.halts(&["between 0/384 and 0/7D0", "no column xid", "add one", AT_PROGRESS, AT_NOW]);
    let bare = Progress { snapshots: vec![], ..republished().progress.expect("stored") };
    let bare = Row { progress: Some(bare), ..republished() };
    bare.halts(&["no stored snapshot", AT_PROGRESS, AT_NOW]);
    let anew = Row { published: Some(published(6, "table 8:200")), ..republished() };
    anew.halts(&["outbox.events is another table", AT_PROGRESS, AT_NOW]);
    let without_slot = Row { slot: None, ..anew };
    without_slot.halts(&["outbox.events is another table", AT_NOW]);
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
