//! One test for each row of the table in `docs/GUARANTEES.md`, in its order: first those here, then
//! `publication`, `repair` and `history`.

mod history;
mod publication;
mod repair;

use super::*;
use crate::core::{
    identity::SystemIdentity,
    leaves::Leaves,
    lsn::Lsn,
    position::Position,
    progress::{RepairRecord, SnapshotRecord},
    published::{Published, PublishedTable},
};

/// The server, what is stored, and the slot: each row changes what it is about.
struct Row {
    progress: Option<Progress>,
    slot: Option<SlotState>,
    identity: SystemIdentity,
    next_xid: u64,
    history: Vec<(u32, Lsn)>,
    start_with_all: bool,
    predecessor: Option<&'static str>,
    slot_owner: Option<&'static str>,
    published: Option<Published>,
    unpublished_once: bool,
    attached: Option<&'static str>,
    unrepairable: Option<Halt>,
    has_delivered: bool,
    progress_in_database: bool,
    repairs_broker_loss: bool,
    stream: Option<&'static str>,
}

/// Progress is at 1000 on timeline 1, with snapshots at 900 and 500; the slot is confirmed up to
/// 1000, the server's WAL ends at 2000.
fn row() -> Row {
    Row {
        progress: Some(progress(1000)),
        slot: Some(slot(1000)),
        identity: SystemIdentity { system_id: "7".into(), timeline: 1, flush_lsn: Lsn::new(2000) },
        next_xid: 1_000_000,
        history: vec![],
        start_with_all: false,
        predecessor: None,
        slot_owner: None,
        published: None,
        unpublished_once: false,
        attached: None,
        unrepairable: None,
        has_delivered: false,
        progress_in_database: false,
        repairs_broker_loss: false,
        stream: None,
    }
}

fn up_to(lsn: u64) -> Position {
    Position::UpTo(Lsn::new(lsn))
}

fn progress(position: u64) -> Progress {
    let snapshot = |lsn: u64| SnapshotRecord {
        lsn: Lsn::new(lsn),
        taken_ms: 0,
        snapshot: format!("{lsn}:{lsn}:"),
        leaves: Leaves::default(),
    };
    Progress {
        system_id: "7".into(),
        timeline: 1,
        position: Some(up_to(position)),
        snapshots: vec![snapshot(900), snapshot(500)],
        ..Progress::before_first_start("outbox")
    }
}

pub(super) fn slot(confirmed: u64) -> SlotState {
    SlotState {
        plugin: Some("pgoutput".into()),
        slot_type: "logical".into(),
        database: Some("app".into()),
        active: false,
        active_pid: None,
        restart_lsn: Some(Lsn::new(10)),
        confirmed_flush_lsn: Some(Lsn::new(confirmed)),
        wal_status: Some("reserved".into()),
        safe_wal_size: None,
        two_phase: false,
        conflicting: None,
        invalidation_reason: None,
        failover: None,
    }
}

fn lost() -> SlotState {
    SlotState { wal_status: Some("lost".into()), ..slot(1000) }
}

#[test]
fn no_progress_of_a_relay_that_has_delivered_is_no_first_start() {
    for start_with_all in [false, true] {
        let gone = Row { progress: None, slot: None, has_delivered: true, start_with_all, ..row() };
        gone.halts(&["does not exist", "has delivered before", "0/7D0", "resume --at now"]);
    }
    let in_table = Row { progress: None, slot: None, has_delivered: true, ..row() };
    let in_table =
        Row { progress_in_database: true, ..in_table }.halts(&["outbox.progress", AT_NOW]);
    assert!(!in_table.to_string().contains("broker"), "{in_table}");
    let there = Row { progress: None, has_delivered: true, ..row() };
    let halt = there.halts(&["0/3E8", "resume --at slot", "resume --at now"]);
    assert!(!halt.remedy.contains("drop"), "it would start over: {halt}");
    assert!(halt.remedy.contains("perhaps again"), "{halt}");
    // What empties a stream takes events that no one has read.
    let stream = Some("ORDERS");
    for start_with_all in [false, true] {
        let there = Row { stream, start_with_all, progress: None, has_delivered: true, ..row() };
        let halt = there.halts(&[
            "the stream ORDERS has no progress record",
            "resume --at slot",
            "to publish every row of the table",
            "outbox.relay_keys",
            DROP,
        ]);
        let gone = Row { slot: None, ..there }.halts(&["stream ORDERS", "purged"]);
        for halt in [halt, gone] {
            assert!(!halt.to_string().contains("topic"), "{halt}");
        }
    }
}

/// A first start was announced, or `resume --at now` was run.
fn announced() -> Progress {
    let blank = Progress::before_first_start("outbox");
    Progress { system_id: "7".into(), timeline: 1, ..blank }
}

/// A repair whose slot begins at 1500.
fn repairing() -> Progress {
    let under_way = RepairRecord {
        consistent_point: Lsn::new(1500),
        upper: "1500:1500:".into(),
        cursor: Some((1, "a".into())),
        delivered: 3,
        ..RepairRecord::announced(Some("900:900:".into()))
    };
    Progress { repair: Some(under_way), ..progress(1000) }
}

fn to_be_repaired() -> Progress {
    let under_way = RepairRecord::announced(Some("900:900:".into()));
    Progress { repair: Some(under_way), ..progress(1000) }
}

impl Row {
    fn reconcile(&self) -> Result<Reconciled, Halt> {
        reconcile(&Facts {
            progress: self.progress.as_ref(),
            slot: self.slot.as_ref(),
            next_xid: Some(self.next_xid),
            history: &self.history,
            start_with_all: self.start_with_all,
            predecessor: self.predecessor,
            slot_owner: self.slot_owner,
            published: self.published.as_ref(),
            unpublished_once: self.unpublished_once,
            attached: self.attached,
            unrepairable: self.unrepairable.as_ref(),
            has_delivered: self.has_delivered,
            progress_in_database: self.progress_in_database,
            repairs_broker_loss: self.repairs_broker_loss,
            stream: self.stream,
            ..Facts::new("orders", "outbox", "app", &self.identity)
        })
    }

    #[track_caller]
    fn decides(&self, expected: &Decision) -> Option<Progress> {
        let reconciled = self.reconcile().expect("no person is needed");
        assert_eq!(reconciled.decision, *expected);
        reconciled.progress
    }

    /// The text has each of `words`: what was found, the interval, the command.
    #[track_caller]
    fn halts(&self, words: &[&str]) -> Halt {
        let halt = self.reconcile().expect_err("a person must decide");
        for word in words {
            assert!(halt.to_string().contains(word), "{word:?} is not in: {halt}");
        }
        halt
    }
}

fn repair_after(lsn: u64, replace: bool) -> Decision {
    Decision::Repair { lower: Some(format!("{lsn}:{lsn}:")), replace }
}

const AT_NOW: &str = "resume --at now";
const AT_PROGRESS: &str = "resume --at progress";
const AT_SLOT: &str = "resume --at slot";
const DROP: &str = "pg_drop_replication_slot('outbox')";

// No progress.

#[test]
fn no_progress_and_no_slot_is_a_first_start() {
    let first = Row { progress: None, slot: None, ..row() };
    assert_eq!(first.decides(&Decision::MakeSlot { replace: false }), None);
}

#[test]
fn a_first_start_with_all_rows_repairs_from_nothing() {
    let first = Row { progress: None, slot: None, start_with_all: true, ..row() };
    first.decides(&Decision::Repair { lower: None, replace: false });
    let unfit = Halt::new("there is no xid", "add it");
    let first = Row { unrepairable: Some(unfit), ..first };
    first.halts(&["there is no xid", "add it", "postgres.start"]);
}

#[test]
fn a_first_start_with_all_rows_beside_a_relay_of_another_name_halts() {
    let first = Row { progress: None, slot: None, predecessor: Some("orders"), ..row() };
    Row { start_with_all: true, ..first }.halts(&["relay orders", "set `name` back", "\"now\""]);
    let first = Row { progress: None, slot: None, predecessor: Some("orders"), ..row() };
    first.decides(&Decision::MakeSlot { replace: false });
}

#[test]
fn no_progress_and_a_slot_halts() {
    let unknown = Row { progress: None, ..row() };
    unknown.halts(&["up to 0/3E8", "no progress record", AT_SLOT, DROP]);
    let all = ["no progress record", AT_SLOT, "every row of the table", DROP];
    Row { start_with_all: true, ..unknown }.halts(&all);
}

#[test]
fn no_progress_and_a_lost_slot_halts() {
    let unknown = Row { progress: None, slot: Some(lost()), ..row() };
    unknown.halts(&["lost its WAL", "before 0/7D0", AT_NOW, DROP]);
}

// A first start was announced.

#[test]
fn an_announced_first_start_makes_the_slot() {
    let cut_short = Row { progress: Some(announced()), slot: None, ..row() };
    assert_eq!(cut_short.decides(&Decision::MakeSlot { replace: false }), Some(announced()));
    // Rows that were left out on purpose stay left out.
    Row { start_with_all: true, ..cut_short }.decides(&Decision::MakeSlot { replace: false });
}

/// The command was killed between its two steps, or could not drop the slot.
#[test]
fn a_slot_that_somebody_decided_to_leave_out_is_dropped_and_nothing_of_it_is_published() {
    let mut decided = announced();
    decided.leave_slot_out();
    for (slot, replace) in [(row().slot, true), (Some(lost()), true), (None, false)] {
        Row { progress: Some(decided.clone()), slot, ..row() }
            .decides(&Decision::MakeSlot { replace });
    }
}

#[test]
fn an_announced_first_start_streams_from_the_slot_that_it_made() {
    let cut_short = Row { progress: Some(announced()), ..row() };
    cut_short.decides(&Decision::Stream { from: up_to(1000) });
}

#[test]
fn an_announced_first_start_whose_slot_is_lost_halts() {
    let cut_short = Row { progress: Some(announced()), slot: Some(lost()), ..row() };
    cut_short.halts(&["lost its WAL", "0/7D0", AT_NOW]);
}

// Stored progress, the same cluster.

#[test]
fn progress_equal_to_the_slot_streams() {
    row().decides(&Decision::Stream { from: up_to(1000) });
}

#[test]
fn progress_ahead_of_the_slot_streams_from_progress() {
    let row = Row { slot: Some(slot(400)), ..row() };
    row.decides(&Decision::Stream { from: up_to(1000) });
}

#[test]
fn progress_behind_the_slot_halts() {
    let row = Row { slot: Some(slot(1001)), ..row() };
    row.halts(&["up to 0/3E9", "progress up to 0/3E8", AT_SLOT, DROP]);
}

#[test]
fn a_missing_slot_is_repaired_after_the_newest_snapshot() {
    Row { slot: None, ..row() }.decides(&repair_after(900, false));
}

#[test]
fn a_lost_slot_is_replaced_and_repaired() {
    Row { slot: Some(lost()), ..row() }.decides(&repair_after(900, true));
    for (reason, conflicting) in [(Some("idle_timeout".to_owned()), None), (None, Some(true))] {
        let invalid = SlotState { invalidation_reason: reason, conflicting, ..slot(1000) };
        Row { slot: Some(invalid), ..row() }.decides(&repair_after(900, true));
    }
}

#[test]
fn a_missing_or_lost_slot_halts_where_no_snapshot_is_stored() {
    let bare = Progress { snapshots: vec![], ..progress(1000) };
    for slot in [None, Some(lost())] {
        let row = Row { progress: Some(bare.clone()), slot, ..row() };
        row.halts(&["between 0/3E8 and 0/7D0", "no stored snapshot", AT_NOW]);
    }
}

#[test]
fn a_missing_or_lost_slot_halts_where_the_table_cannot_be_read_for_a_repair() {
    for slot in [None, Some(lost())] {
        let unrepairable = Some(Halt::new("it has no column xid", "add one"));
        let row = Row { slot, unrepairable, ..row() };
        row.halts(&["between 0/3E8 and 0/7D0", "no column xid", "add one", AT_NOW]);
    }
}

#[test]
fn a_slot_in_use_is_waited_for_whatever_is_stored() {
    let active = SlotState { active: true, active_pid: Some(5), ..slot(1000) };
    for progress in [None, Some(announced()), Some(progress(1000)), Some(repairing())] {
        let row = Row { progress, slot: Some(active.clone()), ..row() };
        row.decides(&Decision::Wait { pid: 5, making: false });
    }
    let making = SlotState { confirmed_flush_lsn: None, ..active };
    Row { slot: Some(making), ..row() }.decides(&Decision::Wait { pid: 5, making: true });
}

#[test]
fn a_slot_that_was_never_finished_halts() {
    let unusable = SlotState { confirmed_flush_lsn: None, ..slot(0) };
    for progress in [None, Some(announced()), Some(progress(1000))] {
        let row = Row { progress, slot: Some(unusable.clone()), ..row() };
        row.halts(&["cut short", DROP]);
    }
}

#[test]
fn a_slot_of_another_kind_or_database_halts() {
    for (unfit, word) in [
        (SlotState { slot_type: "physical".into(), plugin: None, ..slot(1000) }, "physical"),
        (SlotState { plugin: Some("wal2json".into()), ..slot(1000) }, "wal2json"),
        (SlotState { database: Some("other".into()), ..slot(1000) }, "database other"),
        (SlotState { two_phase: true, ..slot(1000) }, "two_phase"),
    ] {
        Row { slot: Some(unfit), ..row() }.halts(&[word, "postgres.slot"]);
    }
}

#[test]
fn progress_of_another_slot_halts() {
    let other = Progress { slot: "other".into(), ..progress(1000) };
    Row { progress: Some(other), ..row() }.halts(&["slot other", "postgres.slot", AT_SLOT]);
}

fn timeline(timeline: u32, history: &[(u32, u64)]) -> Row {
    let history = history.iter().map(|(timeline, lsn)| (*timeline, Lsn::new(*lsn))).collect();
    let identity = SystemIdentity { timeline, ..row().identity };
    Row { identity, history, ..row() }
}
