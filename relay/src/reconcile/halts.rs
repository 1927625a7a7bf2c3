//! What is said where events can't be found, or are not known to be published, and what to type.

use super::facts::Facts;
use crate::core::{halt::Halt, lsn::Lsn, progress::Progress};

/// What of the events is not in the stream any more.
#[derive(Clone, Copy)]
pub(super) struct Loss<'a> {
    /// Said of the slot.
    pub(super) what: &'a str,
    /// The slot streams, and may lack some; else it is of no use.
    pub(super) streams: bool,
}

impl<'a> Loss<'a> {
    pub(super) fn slot(what: &'a str) -> Self {
        Loss { what, streams: false }
    }
}

/// The slot streams, may lack rows, and the table turns out not to have them all.
pub(crate) fn lacking(slot: &str, gap: &str, progress: &Progress, why: &Halt) -> Halt {
    let from = progress.snapshots.first().map(|snapshot| snapshot.lsn).unwrap_or_default();
    Halt::new(
        format!(
            "slot {slot} may lack rows, because {gap}, and some events committed between {from} and now may \
             be missing from the table as well: {}",
            why.reason
        ),
        format!("{ON}; {ANEW}"),
    )
    .unless(&why.remedy)
}

/// The stream may lack rows, and a repair would lose others: `why`.
pub(crate) fn only_in_slot(slot: &str, gap: &str, why: &str) -> Halt {
    Halt::new(
        format!(
            "slot {slot} may lack rows, because {gap}, and a new slot would lose others: {why}"
        ),
        format!("{ON}; {ANEW}"),
    )
}

const ON: &str = "to publish those of them that the slot has, and leave out the others, run `outbox-relay \
                  resume --at progress`";

const ANEW: &str = "to leave out all that is not published, make a new slot and publish what is \
                    committed from then on, run `outbox-relay resume --at now`";

/// Where the table is another one and can be read.
pub(super) const FROM_TABLE: &str = "if the table has their rows, whether they stayed there or were restored into it, publish \
                          what was created since the newest published event, some of it again, with \
                          `outbox-relay resume --at table`";

/// What the slot would have sent can't be found.
pub(super) fn gone(facts: &Facts<'_>, progress: &Progress, loss: Loss<'_>, why: &str) -> Halt {
    let newest = progress.snapshots.first().map(|snapshot| snapshot.lsn.to_string());
    let from = match progress.position {
        None => "the first event".to_owned(),
        // What it lacks may be committed before what it had.
        Some(_) if loss.streams => newest.unwrap_or_else(|| "the slot's making".to_owned()),
        Some(position) => position.resume_lsn().to_string(),
    };
    let reason = format!(
        "slot {} {}: events committed between {from} and {} may be unpublished, and {why}",
        facts.slot_name, loss.what, facts.identity.flush_lsn
    );
    match loss.streams {
        true => Halt::new(reason, format!("{ON}; {ANEW}")),
        false => Halt::new(reason, ANEW),
    }
}

pub(super) fn moved(facts: &Facts<'_>, delivered: &str, confirmed: Lsn) -> Halt {
    let name = facts.slot_name;
    Halt::new(
        format!(
            "slot {name} is confirmed up to {confirmed}, past the stored progress {delivered}: \
             somebody moved the slot or progress was lost, or sink.progress was changed; events between are not known \
             to be published"
        ),
        format!(
            "if sink.progress was changed, the progress up to the slot is in the other place: run `outbox-relay resume \
             --at slot`, which leaves out nothing then. If it was not: to publish them from the table, and some \
             earlier events again, drop the slot, and the relay makes a new one: {}; to leave that interval out, \
             run the same `resume --at slot`, which continues from the slot's position",
            drop_slot(name)
        ),
    )
}

pub(crate) fn drop_slot(name: &str) -> String {
    format!(
        "`select pg_drop_replication_slot('{name}')` (as a superuser or a role with REPLICATION)"
    )
}
