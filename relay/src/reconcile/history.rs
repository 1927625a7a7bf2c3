//! Stored progress on a server whose history may have left the one it was made in.

use super::facts::Facts;
use crate::{
    core::{
        halt::Halt,
        identity::SystemIdentity,
        lsn::Lsn,
        position::Position,
        progress::{Progress, RepairRecord},
        snapshot, witness,
    },
    postgres::catalog::slot::SlotState,
};

/// What `stored` means here. On a new timeline everything past the switch counts as the switch: what
/// the old primary wrote after it is not part of this history, and its transaction ids are given
/// out again, so that a snapshot taken after it says nothing about them.
pub(super) fn carry_over(stored: &Progress, facts: &Facts<'_>) -> Result<Progress, Halt> {
    let identity = facts.identity;
    let mut progress = stored.clone();
    progress.timeline = identity.timeline;
    let Some(reached) = reached(stored) else {
        return Ok(progress); // Nothing is delivered, and no slot's beginning known.
    };
    // Also when the new WAL has grown past that place, until a person has decided.
    let seen = || sees_rollback(stored, identity, facts.next_xid);
    if let Some(end) = stored.rolled_back.or_else(seen) {
        return Err(rolled_back(stored, reached, end, facts.slot));
    }
    if stored.timeline == identity.timeline {
        return Ok(progress);
    }
    let switch = facts
        .history
        .iter()
        .find_map(|(timeline, left_at)| (*timeline == stored.timeline).then_some(*left_at))
        .ok_or_else(|| unrelated(stored, reached, facts))?;
    progress.position = stored.position.map(|position| {
        let switch = Position::UpTo(switch);
        if switch.includes(position) { position } else { switch }
    });
    progress.landmark = stored.landmark.filter(|landmark| landmark.commit < switch);
    progress.witness = stored.witness.filter(|witness| witness.commit < switch);
    progress.snapshots.retain(|snapshot| snapshot.lsn <= switch);
    // Older ones are stored without their partitions. One of the history that is left counts as dropped.
    if let (Some(kept), Some(newest)) = (progress.snapshots.first_mut(), stored.snapshots.first())
        && kept.leaves.is_empty()
    {
        kept.leaves.clone_from(&newest.leaves);
    }
    progress.repair = stored.repair.clone().map(|repair| match repair.consistent_point <= switch {
        true => repair,
        // The slot that it was for, and the snapshot it reads up to, belong to the other history.
        false => RepairRecord::announced(repair.lower),
    });
    Ok(progress)
}

/// Where the WAL ends, if that is before what `stored` knows of the same history; or may be another one,
/// if transaction ids that `stored` names are still to come: the volume was rolled back. Once both have
/// grown past that, the stream tells (`landmark`), or the tables (`witness`). `identity` and `next_xid`
/// must have been asked after `stored` was read.
pub fn sees_rollback(
    stored: &Progress,
    identity: &SystemIdentity,
    next_xid: Option<u64>,
) -> Option<Lsn> {
    if stored.system_id != identity.system_id || stored.timeline != identity.timeline {
        return None;
    }
    let end = identity.flush_lsn;
    if reached(stored) > Some(end) {
        return Some(end);
    }
    let newest = stored.snapshots.first();
    let named = match (stored.witness, newest) {
        // Beyond it a snapshot does not count.
        (Some(witness), _) => Some((witness.xid, witness.commit)),
        (None, Some(newest)) => {
            snapshot::end(&newest.snapshot).map(|end| (end.saturating_sub(1), newest.lsn))
        }
        (None, None) => None,
    };
    let (xid, at) = named?;
    (xid >= next_xid?).then_some(at.min(end))
}

/// The furthest place in the WAL that progress knows.
fn reached(progress: &Progress) -> Option<Lsn> {
    let repair = progress.repair.as_ref().filter(|repair| repair.is_begun());
    let repair = repair.map(|repair| repair.consistent_point);
    progress.position.map(Position::resume_lsn).max(repair)
}

fn rolled_back(stored: &Progress, reached: Lsn, end: Lsn, slot: Option<&SlotState>) -> Halt {
    Halt::new(
        format!(
            "progress is at {reached}, but the server's WAL ended at {end}, or differs after that point: the \
             volume was put back to an older state, and its new WAL repeats LSNs that were already \
             delivered; events committed since then are not published"
        ),
        from_its_slot(stored, slot, LEAVING_OUT),
    )
}

const LEAVING_OUT: &str = "to leave them out and publish what is committed from now on, run \
                           `outbox-relay resume --at now`";

/// The newest published event is not in its table any more, and it is not known why.
pub fn perhaps_put_back(stored: &Progress, slot: Option<&SlotState>) -> Halt {
    let reached = stored.position.map_or_else(|| "nothing".to_owned(), |p| p.to_string());
    let xid = stored.witness.map(|witness| witness.xid).unwrap_or_default();
    Halt::new(
        format!(
            "progress is at {reached}, but the newest published event, of transaction {xid}, is not in \
             its table, and there is no record of its deletion: the volume may have been put back to an older \
             state, so that the server assigns the same transaction ids again. Events committed since then \
             are not published"
        ),
        from_its_slot(stored, slot, LEAVING_OUT),
    )
    .unless(
        "if it was not put back, and published rows were deleted by hand, set outbox.rows_kept = true, \
         and the relay repairs",
    )
}

/// Where stored progress of another history does not say which are published.
const EVERY_ROW: &str = "to publish every event that the table has, those that were published before once \
                                    more, with their ids, run `outbox-relay resume --at table`";

/// What loses nothing, where the server has a slot that streams or the time of the newest published event
/// is known, before what leaves something out.
fn from_its_slot(stored: &Progress, slot: Option<&SlotState>, leaving_out: &str) -> String {
    let confirmed = slot.filter(|slot| !slot.is_lost());
    match confirmed.and_then(|slot| slot.confirmed_flush_lsn) {
        Some(confirmed) => format!(
            "to publish all that this server has since {confirmed}, where its slot is, run \
             `outbox-relay resume --at slot`: what was published of it before comes again, with its \
             id; {leaving_out}"
        ),
        None => from_the_table(stored, leaving_out),
    }
}

fn from_the_table(stored: &Progress, leaving_out: &str) -> String {
    match stored.published_until_ms() {
        Some(until_ms) => format!(
            "to publish from the table every event that was created after {}, as far as it is known to be \
             published, run `outbox-relay resume --at table`: some of it may come again, with its id; \
             {leaving_out}",
            witness::moment(until_ms)
        ),
        None => format!("{EVERY_ROW}; {leaving_out}"),
    }
}

fn unrelated(stored: &Progress, reached: Lsn, facts: &Facts<'_>) -> Halt {
    Halt::new(
        format!(
            "progress reached {reached} on timeline {}, which is not in the history of this \
             server's timeline {}; what is committed here up to {} is not known to be published",
            stored.timeline, facts.identity.timeline, facts.identity.flush_lsn
        ),
        format!(
            "connect to a server that continues that timeline (an old primary may still answer under \
             the relay's URL); {}",
            from_its_slot(
                stored,
                facts.slot,
                "to leave out what is not published and publish what is committed from now on, run \
                 `outbox-relay resume --at now`",
            )
        ),
    )
}
