//! A repair was announced, or begun.

use super::*;

#[test]
fn an_announced_repair_begins_anew_and_takes_no_slot_that_it_finds() {
    let cut_short = Row { progress: Some(to_be_repaired()), slot: None, ..row() };
    cut_short.decides(&repair_after(900, false));
    let unusable = SlotState { confirmed_flush_lsn: None, ..slot(0) };
    for slot in [slot(1500), slot(900), lost(), unusable] {
        let progress = Some(to_be_repaired());
        Row { progress, slot: Some(slot), ..row() }.decides(&repair_after(900, true));
    }
    let seeding = Progress { repair: Some(RepairRecord::announced(None)), ..announced() };
    let cut_short = Row { progress: Some(seeding), ..row() };
    cut_short.decides(&Decision::Repair { lower: None, replace: true });
}

#[test]
fn a_repair_goes_on_where_its_slot_begins() {
    let begun = Row { progress: Some(repairing()), slot: Some(slot(1500)), ..row() };
    assert_eq!(begun.decides(&Decision::FinishRepair), Some(repairing()));
}

#[test]
fn a_repair_whose_slot_is_gone_too_ends_before_another_begins() {
    for slot in [None, Some(lost())] {
        let begun = Row { progress: Some(repairing()), slot, ..row() };
        begun.decides(&Decision::FinishRepair);
    }
}

#[test]
fn a_repair_whose_slot_was_moved_halts() {
    let begun = Row { progress: Some(repairing()), slot: Some(slot(1501)), ..row() };
    begun.halts(&["up to 0/5DD", "progress 0/5DC", AT_SLOT, DROP]);
}

#[test]
fn a_repair_on_a_new_timeline_goes_on_only_if_its_slot_lay_before_the_switch() {
    let after =
        |left_at| Row { progress: Some(repairing()), slot: None, ..timeline(2, &[(1, left_at)]) };
    after(1500).decides(&Decision::FinishRepair);
    let carried = after(1499).decides(&repair_after(900, false)).expect("there was progress");
    assert!(carried.repair.is_some_and(|repair| !repair.is_begun() && repair.cursor.is_none()));
    after(700).decides(&repair_after(500, false));
}

#[test]
fn a_repair_halts_where_the_table_cannot_be_read_any_more() {
    let unrepairable = Some(Halt::new("it has no column xid", "add one"));
    let begun = Row { progress: Some(repairing()), slot: None, unrepairable, ..row() };
    begun.halts(&["between 0/1F4 and 0/7D0", "no column xid", "add one", AT_NOW]);
}
