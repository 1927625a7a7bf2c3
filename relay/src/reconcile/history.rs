//! Stored progress on a server whose history may have left the one it was made in.

use super::{Facts, Halt};
use crate::{
    lsn::Lsn,
    position::Position,
    progress::{Progress, RepairRecord},
    source::connect::SystemIdentity,
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
    if let Some(end) = stored.rolled_back.or_else(|| sees_rollback(stored, identity)) {
        return Err(rolled_back(reached, end, facts));
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
    progress.snapshots.retain(|snapshot| snapshot.lsn <= switch);
    progress.repair = stored.repair.clone().map(|repair| match repair.consistent_point <= switch {
        true => repair,
        // The slot that it was for, and the snapshot it reads up to, belong to the other history.
        false => RepairRecord::announced(repair.lower),
    });
    Ok(progress)
}

/// Where the WAL ends, if that is before what `stored` knows of the same history: the volume was rolled
/// back. Once it has grown past that, the stream tells (`landmark`). `identity` must have been asked
/// after `stored` was read.
pub fn sees_rollback(stored: &Progress, identity: &SystemIdentity) -> Option<Lsn> {
    let here = stored.system_id == identity.system_id && stored.timeline == identity.timeline;
    let end = identity.flush_lsn;
    (here && reached(stored) > Some(end)).then_some(end)
}

/// The furthest place in the WAL that progress knows.
fn reached(progress: &Progress) -> Option<Lsn> {
    let repair = progress.repair.as_ref().filter(|repair| repair.is_begun());
    let repair = repair.map(|repair| repair.consistent_point);
    progress.position.map(Position::resume_lsn).max(repair)
}

fn rolled_back(reached: Lsn, end: Lsn, facts: &Facts<'_>) -> Halt {
    Halt::new(
        format!(
            "progress is at {reached}, but the server's WAL was seen to end at {end}, or to be another \
             one from there on: the volume was rolled back, and its new WAL repeats LSNs that were \
             delivered already; events committed since are not published"
        ),
        from_its_slot(
            facts,
            "to leave them out and publish what is committed from now on, run `outbox-relay resume \
             --at now`",
        ),
    )
}

/// What loses nothing, where the server has a slot that streams, before what leaves something out.
fn from_its_slot(facts: &Facts<'_>, leaving_out: &str) -> String {
    let confirmed = facts.slot.filter(|slot| !slot.is_lost());
    match confirmed.and_then(|slot| slot.confirmed_flush_lsn) {
        Some(confirmed) => format!(
            "to publish all that this server has since {confirmed}, where its slot is, run \
             `outbox-relay resume --at slot`: what was published of it before comes again, with its \
             id; {leaving_out}"
        ),
        None => leaving_out.to_owned(),
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
                facts,
                "to leave out what is not published and publish what is committed from now on, run \
                 `outbox-relay resume --at now`",
            )
        ),
    )
}
