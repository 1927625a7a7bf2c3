//! What was decided, and the progress that says so. Pure.

use std::time::SystemTime;

use anyhow::bail;

use crate::core::{
    identity::SystemIdentity,
    leaves::Leaves,
    lsn::Lsn,
    position::{Position, RowPosition},
    progress::Progress,
    published::Published,
};

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Go on from the slot's confirmed position, whatever progress says.
    AtSlot,
    /// Go on from stored progress, with what the slot still has, however the tables are published.
    AtProgress,
    /// Go on where `pg_upgrade` has left off: with the slot, if it brought that, else from the table.
    AtUpgrade,
    /// Make a new slot, and publish from the table what was created after the newest published event:
    /// where another history begins that gives transaction ids again.
    AtTable {
        /// Also what was created since then, in milliseconds since the Unix epoch, which comes again.
        since_ms: Option<i64>,
    },
    /// Drop the slot; the relay makes a new one and publishes what is committed from then on.
    AtNow,
    /// Leave this one event out.
    Skip(RowPosition),
}

/// What is there when it is decided.
#[derive(Clone, Debug)]
pub(crate) struct Here<'a> {
    pub(crate) slot_name: &'a str,
    pub(crate) identity: &'a SystemIdentity,
    /// How the tables are published.
    pub(crate) published: Published,
    pub(crate) now: SystemTime,
}

/// The progress that says what was decided.
pub(crate) fn decided(
    stored: Option<Progress>,
    decision: Decision,
    position: Option<Position>,
    Here { slot_name, identity, published, now }: Here<'_>,
) -> Progress {
    let steps_back = may_step_back(stored.as_ref(), decision, identity);
    let mut next = stored.unwrap_or_else(|| Progress::before_first_start(slot_name));
    if steps_back {
        next.begin_era(now);
    }
    next.position = position;
    next.landmark = None;
    next.slot = slot_name.to_owned();
    let another = next.system_id != identity.system_id || next.timeline != identity.timeline;
    if another && decision != Decision::AtUpgrade {
        next.snapshots.clear(); // They speak of another history.
    }
    next.system_id.clone_from(&identity.system_id);
    next.timeline = identity.timeline;
    if !matches!(decision, Decision::Skip(_)) {
        next.witness = None;
        next.repair = None;
        // What only the slot has of a former table is not in this one, whatever the snapshots show.
        // pg_upgrade has copied the rows, and given the tables new marks.
        if decision != Decision::AtUpgrade && next.another_table(&published).is_some() {
            next.snapshots.clear();
        }
        // A person has decided to take what is there: partitions that are attached by now are no news.
        let now = published.leaves().oids();
        for snapshot in &mut next.snapshots {
            let before = snapshot.leaves.oids();
            snapshot.leaves = Leaves::of(before.into_iter().chain(now.iter().copied()));
        }
        next.published = Some(published); // What is changed from now on counts.
        next.gap = None;
        next.not_sent.clear();
        next.rolled_back = None;
        if position.is_none() {
            next.leave_slot_out();
        }
        // What they show as committed must be behind the position.
        let reached = position.map_or(Lsn::ZERO, Position::resume_lsn);
        next.snapshots.retain(|snapshot| snapshot.lsn <= reached);
    }
    next
}

/// Whether positions that are given from now on may be the same as earlier ones, or lower, and belong
/// to other events. Of one history they don't: what comes again comes at its place.
fn may_step_back(stored: Option<&Progress>, decision: Decision, identity: &SystemIdentity) -> bool {
    match (decision, stored) {
        (Decision::Skip(_), _) => false,
        (Decision::AtSlot, Some(stored)) => {
            let reached = stored.position.map_or(Lsn::ZERO, Position::resume_lsn);
            stored.system_id != identity.system_id
                || stored.timeline != identity.timeline
                || reached > identity.flush_lsn
                || stored.rolled_back.is_some()
        }
        // It is not known what was published; or a transaction that was sent in part may be counted
        // otherwise by now.
        (Decision::AtSlot, None)
        | (
            Decision::AtProgress | Decision::AtUpgrade | Decision::AtTable { .. } | Decision::AtNow,
            _,
        ) => true,
    }
}

/// Inside a transaction places count what was sent of it, which may be something else by now: its
/// events come again from its first.
pub(crate) fn between(position: Position) -> Position {
    Position::UpTo(position.resume_lsn())
}

/// Only the event at which the relay stands can be left out, as far as that can be known: it must
/// lie after progress, and progress inside a transaction must lie in the same one.
pub(super) fn skipped(before: Option<Position>, row: RowPosition) -> anyhow::Result<Position> {
    match before {
        None => bail!("there is no stored progress; nothing to skip from"),
        Some(before) if before.covers(row) => {
            bail!("the event at {row} is done already: progress is at {before}")
        }
        Some(Position::Row(last)) if last.commit != row.commit && row.ordinal > 0 => {
            bail!(
                "progress is at {last}, in another transaction: events before {row} would be lost"
            )
        }
        Some(_) => Ok(Position::Row(row)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::core::{leaves::Leaves, progress::SnapshotRecord, published::PublishedTable};

    fn at_place(identity: &SystemIdentity, now: SystemTime) -> Here<'_> {
        let published = Published { publication: "1:90".into(), ..Published::default() };
        Here { slot_name: "s", identity, published, now }
    }

    fn row(commit: u64, ordinal: u64) -> RowPosition {
        RowPosition { commit: Lsn::new(commit), ordinal }
    }

    #[test]
    fn a_transaction_that_was_delivered_in_part_comes_again_whole() {
        let inside = between(Position::Row(row(100, 3)));
        assert!(!inside.covers(row(100, 0)) && inside.covers(row(99, 9)));
    }

    #[test]
    fn a_decision_after_which_positions_may_step_back_begins_an_era() {
        let identity = |system_id: &str, timeline, flush_lsn| SystemIdentity {
            system_id: system_id.into(),
            timeline,
            flush_lsn: Lsn::new(flush_lsn),
        };
        let stored = Progress {
            position: Some(Position::UpTo(Lsn::new(1000))),
            system_id: "7".into(),
            timeline: 2,
            ..Progress::before_first_start("s")
        };
        let here = identity("7", 2, 1500);
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(99);
        let era = |stored: Option<&Progress>, decision, identity: &SystemIdentity| {
            let at = Some(Position::UpTo(Lsn::new(900)));
            decided(stored.cloned(), decision, at, at_place(identity, now)).era
        };
        for (decision, stored, identity, expected) in [
            (Decision::AtSlot, Some(&stored), &here, 0),
            (Decision::AtSlot, Some(&stored), &identity("7", 2, 999), 99),
            (Decision::AtSlot, Some(&stored), &identity("7", 1, 1500), 99),
            (Decision::AtSlot, Some(&stored), &identity("8", 2, 1500), 99),
            (Decision::AtSlot, None, &here, 99),
            (Decision::AtProgress, Some(&stored), &here, 99),
            (Decision::AtUpgrade, Some(&stored), &identity("8", 1, 1500), 99),
            (Decision::AtNow, Some(&stored), &here, 99),
            (Decision::AtTable { since_ms: None }, Some(&stored), &here, 99),
            (Decision::AtNow, None, &here, 99),
            (Decision::Skip(row(1000, 0)), Some(&stored), &here, 0),
        ] {
            assert_eq!(era(stored, decision, identity), expected, "{decision:?} {identity:?}");
        }
        let grown = Progress { rolled_back: Some(Lsn::new(900)), ..stored.clone() };
        assert_eq!(era(Some(&grown), Decision::AtSlot, &here), 99, "its WAL has grown since");
        let later = Progress { era: 200, ..stored };
        assert_eq!(era(Some(&later), Decision::AtNow, &here), 201);
    }

    #[test]
    fn what_only_the_slot_has_is_not_to_be_read_from_another_table() {
        let snapshot = SnapshotRecord {
            lsn: Lsn::new(900),
            taken_ms: 0,
            snapshot: "9:9:".into(),
            leaves: Leaves::default(),
        };
        let table = |oid| {
            let table = PublishedTable { oid, own: vec![], above: vec![], stamp: None };
            let tables = [("o.e".to_owned(), table)].into();
            Published { tables, publication: "1:90".into(), ..Published::default() }
        };
        let stored = Progress {
            position: Some(Position::UpTo(Lsn::new(1000))),
            snapshots: vec![snapshot],
            published: Some(table(5)),
            ..Progress::before_first_start("s")
        };
        let flush_lsn = Lsn::new(1500);
        let identity = SystemIdentity { system_id: String::new(), timeline: 0, flush_lsn };
        let decide = |decision, published| {
            let here = at_place(&identity, SystemTime::UNIX_EPOCH);
            decided(Some(stored.clone()), decision, stored.position, Here { published, ..here })
        };
        let next = |oid| decide(Decision::AtProgress, table(oid));
        assert_eq!((next(5).snapshots.len(), next(6).snapshots.len()), (1, 0));
        assert_eq!(next(6).published, Some(table(6)), "a change from now on is seen");
        let copied = decide(Decision::AtUpgrade, table(6));
        assert_eq!(copied.snapshots.len(), 1, "pg_upgrade has its rows");
        let attached = Published { attached: vec![(9, 1)], ..table(5) };
        let known = decide(Decision::AtProgress, attached).snapshots.remove(0).leaves.oids();
        assert_eq!(known, [9], "a partition that is attached by now is no news");
    }

    #[test]
    fn an_event_that_is_done_or_far_ahead_is_not_skipped() {
        let inside = Some(Position::Row(row(100, 3)));
        assert!(skipped(None, row(1, 0)).is_err());
        assert!(skipped(inside, row(100, 3)).is_err());
        assert!(skipped(inside, row(200, 1)).is_err());
        assert_eq!(skipped(inside, row(100, 4)).expect("next"), Position::Row(row(100, 4)));
        let between = Some(Position::UpTo(Lsn::new(100)));
        assert_eq!(skipped(between, row(100, 0)).expect("next"), Position::Row(row(100, 0)));
    }
}
