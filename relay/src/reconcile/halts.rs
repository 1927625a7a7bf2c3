//! What is said where events can't be found, or are not known to be published, and what to type.

use super::{facts::Facts, gap::gap};
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

/// What a slot that a repair replaces could still send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// What it has.
    Streams,
    /// What was committed before its publication was missing: there the stream ends, each time.
    Ends,
    /// It is gone.
    Gone,
}

impl Left {
    /// `replaced`: it is there; `unpublished_once`: its stream has ended for want of the publication.
    pub(crate) fn of(replaced: bool, unpublished_once: bool) -> Self {
        match (replaced, unpublished_once) {
            (false, _) => Left::Gone,
            (true, true) => Left::Ends,
            (true, false) => Left::Streams,
        }
    }

    /// What leaves something out.
    fn remedy(self) -> String {
        match self {
            Left::Streams => format!("{ON}; {ANEW}"),
            Left::Ends | Left::Gone => ANEW.to_owned(),
        }
    }
}

/// The slot is there, may lack rows, and the table turns out not to have them all.
fn lacking(slot: (&str, Left), gap: &str, progress: &Progress, why: &Halt) -> Halt {
    let (slot, left) = slot;
    let from = progress.unshown_since().unwrap_or_default();
    Halt::new(
        format!(
            "slot {slot} may lack rows, because {gap}, and some events committed between {from} and now may \
             be missing from the table as well: {}",
            why.reason
        ),
        left.remedy(),
    )
    .unless(&why.remedy)
}

/// Since when events may be unpublished. What the slot `lacks`, as what a repair is to read, may be committed before what
/// was delivered.
fn since(progress: &Progress, lacks: bool) -> String {
    match progress.position {
        None => "the first event".to_owned(),
        Some(_) if progress.repairs_as_decided() => {
            "the first event that `resume --at table` named".to_owned()
        }
        Some(_) if lacks || progress.repair.is_some() => progress
            .unshown_since()
            .map_or_else(|| "the slot's making".to_owned(), |at| at.to_string()),
        Some(position) => position.resume_lsn().to_string(),
    }
}

/// The tables turn out not to have all rows that a repair is to read, as `why` says. `gap` is what the slot lacks, if it
/// does, and `left` what it has.
pub(crate) fn incomplete(
    slot: &str,
    (gap, left): (Option<&str>, Left),
    lower: Option<&str>,
    progress: &Progress,
    why: &Halt,
) -> Halt {
    if let Some(gap) = gap.filter(|_| left != Left::Gone) {
        return lacking((slot, left), gap, progress, why);
    }
    let from = since(progress, gap.is_some());
    let until = match &progress.repair {
        Some(begun) if begun.is_begun() => format!("{from} and {}", begun.consistent_point),
        _ => format!("{from} and now"),
    };
    let of_first = lower.is_none() && progress.position.is_none();
    let what = match of_first {
        true => format!(
            "the first start was cut short while it published the rows that were there when slot {slot} was \
             made, and some may be missing"
        ),
        false => format!(
            "the events committed between {until} are to come from the tables, because slot {slot} was lost or \
             left out, or the broker has lost what it had confirmed, and some may be missing"
        ),
    };
    Halt::new(
        format!("{what}: {}", why.reason),
        "to leave out what is not published, make a new slot and publish what is committed from \
         then on, run `outbox-relay resume --at now`",
    )
    .unless(&why.remedy)
}

/// The stream may lack rows, and a repair would lose others: `why`.
pub(crate) fn only_in_slot(slot: (&str, Left), gap: &str, why: &str) -> Halt {
    let (slot, left) = slot;
    Halt::new(
        format!(
            "slot {slot} may lack rows, because {gap}, and a new slot would lose others: {why}"
        ),
        left.remedy(),
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

/// Where the default of the column xid was set.
pub(super) const THE_SAME: &str = "if the default was only set to what it was, as the script of `outbox-relay migrate \
                                   --print` does, the slot has all rows and nothing is left out: run `outbox-relay \
                                   resume --at progress`, and agree to its question, which also counts rows that \
                                   the slot has";

/// What the slot would have sent can't be found.
pub(super) fn gone(facts: &Facts<'_>, progress: &Progress, loss: Loss<'_>, why: &str) -> Halt {
    let from = since(progress, loss.streams || gap(facts, progress).is_some());
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
