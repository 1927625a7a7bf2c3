//! The choice itself: progress × slot × tables → stream, make the slot, repair, or halt.

use super::{
    facts::Facts,
    gap::gap,
    halts::{FROM_TABLE, Loss, THE_SAME, drop_slot, gone, moved},
    home,
};
use crate::core::{
    halt::Halt,
    lsn::Lsn,
    position::Position,
    progress::{Progress, RepairRecord},
};

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    /// First start: announce it in a progress record, make the slot, store its snapshot.
    MakeSlot {
        /// A slot of that name is there, and somebody has decided to leave it out: drop it first.
        replace: bool,
    },
    /// Stream from here.
    Stream {
        /// What is delivered.
        from: Position,
    },
    /// Announce it in a progress record, make the slot, and publish from the tables what is visible
    /// in its snapshot.
    Repair {
        /// Leave out what is visible in this `pg_snapshot`; `None` publishes every row.
        lower: Option<String>,
        /// A slot of that name is there, and of no use: drop it first.
        replace: bool,
    },
    /// A repair was begun: continue with it, then decide again.
    FinishRepair,
    /// Somebody else uses the slot: look again in a moment.
    Wait {
        /// The server's process.
        pid: i32,
        /// Whether it is making the slot.
        making: bool,
    },
}

/// What a slot is good for.
#[derive(Clone, Copy)]
enum Use {
    Missing,
    Lost,
    /// It streams what was committed after this.
    From(Lsn),
}

fn use_of(facts: &Facts<'_>) -> Result<Use, Halt> {
    match facts.slot {
        None => Ok(Use::Missing),
        Some(slot) if slot.is_lost() => Ok(Use::Lost),
        Some(slot) => slot.confirmed_flush_lsn.map(Use::From).ok_or_else(|| {
            let name = facts.slot_name;
            Halt::new(
                format!("slot {name} has no confirmed position: its making was cut short"),
                format!("drop it: {}", drop_slot(name)),
            )
        }),
    }
}

/// A relay whose name was changed looks like a new one, and would publish every row again.
fn renamed(facts: &Facts<'_>) -> Result<(), Halt> {
    let Some(other) = facts.predecessor else { return Ok(()) };
    Err(Halt::new(
        format!(
            "this is the first start of a relay called {}, and the relay {other} has published events of \
             this database: the relay can't know whether the rows that are there are published",
            facts.relay
        ),
        format!(
            "if this relay was called {other} before, set `name` back to that; if it is another one, set \
             postgres.start to \"all\" to publish the rows that are there, or to \"now\" to leave them out; \
             and restart it"
        ),
    ))
}

/// The settings of `relay`, which has delivered nothing, name the slot of `owner`, which is away.
pub(crate) fn of_another(relay: &str, slot_name: &str, owner: &str) -> Halt {
    Halt::new(
        format!(
            "slot {slot_name} has the name of relay {owner}'s slot, which has published events of this database, \
             and relay {relay} has delivered nothing: each relay needs a slot of its own"
        ),
        format!(
            "set postgres.slot to a name of its own, or remove the setting; or, if this relay was called \
             {owner} before or is to take its place, set `name` to {owner}: what is published and what is parked is \
             known by that name. Do not drop the slot while relay {owner} needs it"
        ),
    )
}

pub(super) fn without_progress(facts: &Facts<'_>) -> Result<Decision, Halt> {
    let name = facts.slot_name;
    let unknown = home::unknown(facts);
    if let Some(owner) = facts.slot_owner.filter(|_| !facts.has_delivered && facts.slot.is_some()) {
        return Err(of_another(facts.relay, name, owner));
    }
    match use_of(facts)? {
        Use::Missing if facts.has_delivered => Err(home::lost(facts)),
        Use::Missing if facts.start_with_all => {
            renamed(facts)?;
            repair(facts, None, None, Loss::slot("is yet to be made"))
        }
        Use::Missing => Ok(Decision::MakeSlot { replace: false }),
        Use::From(confirmed) => Err(Halt::new(
            format!("slot {name} exists, confirmed up to {confirmed}, but {unknown}"),
            match facts.has_delivered {
                true => format!(
                    "to publish everything after the slot's position, some of it perhaps again, run `outbox-relay \
                     resume --at slot`: nothing is left out unless somebody has moved the slot or made it anew; if \
                     somebody has, run `outbox-relay resume --at table --since TIME`, which publishes from the table \
                     what was created since TIME; to leave all of it out, run `outbox-relay resume --at now`{}",
                    if facts.stream.is_some() {
                        format!(
                            "; or, if the stream has lost events that were not read yet, {}, and drop the slot: {}",
                            home::every_row(facts),
                            drop_slot(name)
                        )
                    } else {
                        String::new()
                    }
                ),
                false => format!(
                    "to publish everything after the slot's position, run `outbox-relay resume \
                     --at slot`; to {}, drop the slot: {}",
                    if facts.start_with_all {
                        "publish every row of the table (again)"
                    } else {
                        "begin with what is committed from then on"
                    },
                    drop_slot(name)
                ),
            },
        )),
        Use::Lost => Err(Halt::new(
            format!(
                "slot {name} has lost its WAL, and {unknown}; events committed before {} may not \
                 be published",
                facts.identity.flush_lsn
            ),
            format!(
                "to publish what is committed from now on, run `outbox-relay resume --at now`; {}, \
                 drop the slot: {}",
                home::every_row(facts),
                drop_slot(name)
            ),
        )),
    }
}

pub(super) fn with_progress(facts: &Facts<'_>, progress: &Progress) -> Result<Decision, Halt> {
    let slot = use_of(facts);
    let gap = gap(facts, progress).map(|why| format!("may lack rows, because {why}"));
    // Where the stream has ended for want of its publication, it ends there again.
    let streams = !facts.unpublished_once;
    let gap = gap.as_deref().map(|what| Loss { what, streams });
    match (&progress.repair, progress.position) {
        (Some(under_way), _) if under_way.is_begun() => begun(facts, progress, under_way, slot?),
        // Announced: whatever slot is there, no one has read from it.
        (Some(_), _) => anew(facts, progress, Loss::slot("is to be repaired")),
        (None, None) if progress.leaves_slot_out() => {
            Ok(Decision::MakeSlot { replace: facts.slot.is_some() })
        }
        (None, None) => match (slot?, gap) {
            (Use::Missing, _) => Ok(Decision::MakeSlot { replace: false }),
            (Use::From(_), Some(loss)) => {
                Err(gone(facts, progress, loss, NOTHING_KNOWN).unless(FROM_TABLE))
            }
            // Its making was announced, and nothing was ever delivered or confirmed.
            (Use::From(confirmed), None) => {
                Ok(Decision::Stream { from: Position::UpTo(confirmed) })
            }
            (Use::Lost, _) => {
                Err(gone(facts, progress, Loss::slot(LOST), NOTHING_KNOWN).unless(FROM_TABLE))
            }
        },
        (None, Some(position)) => match slot? {
            Use::Missing => anew(facts, progress, Loss::slot("does not exist")),
            Use::Lost => anew(facts, progress, Loss::slot(LOST)),
            Use::From(confirmed) if confirmed > position.resume_lsn() => match outrun(facts) {
                Some(what) => anew(facts, progress, Loss { what, streams: true }),
                None => Err(moved(facts, &position.to_string(), confirmed)),
            },
            Use::From(_) => match gap {
                Some(loss) => anew(facts, progress, loss),
                None => Ok(Decision::Stream { from: position }),
            },
        },
    }
}

const LOST: &str = "has lost its WAL";

/// How a slot can be ahead of progress without a person: what is between can be published again.
fn outrun(facts: &Facts<'_>) -> Option<&'static str> {
    if facts.repairs_broker_loss {
        return Some(
            "is ahead of the progress that the broker has: it has lost what it had confirmed",
        );
    }
    // A standby has a slot that was synchronised, and its tables, each as far as it got.
    (facts.progress_in_database && facts.was_promoted())
        .then_some("is ahead of the progress that this new primary has")
}

const NOTHING_KNOWN: &str = "nothing was published before";

/// A repair whose new slot was made: continues, or, where that slot is gone too, ends first: what it
/// publishes is what a further repair begins after.
fn begun(
    facts: &Facts<'_>,
    progress: &Progress,
    under_way: &RepairRecord,
    slot: Use,
) -> Result<Decision, Halt> {
    match slot {
        Use::From(confirmed) if confirmed > under_way.consistent_point => {
            Err(moved(facts, &under_way.consistent_point.to_string(), confirmed))
        }
        Use::From(_) | Use::Missing | Use::Lost => {
            let loss = Loss::slot("is being repaired");
            let anew = made_anew(facts, Some(progress)).or_else(|| {
                under_way.lower.as_ref()?;
                unstamped(facts)
            });
            match (facts.unrepairable, anew) {
                (None, None) => Ok(Decision::FinishRepair),
                (Some(Halt { reason, remedy }), _) => {
                    Err(gone(facts, progress, loss, reason).unless(remedy))
                }
                (None, Some(Anew { why, .. })) => {
                    Err(stamping(facts, gone(facts, progress, loss, &why).unless(FROM_TABLE)))
                }
            }
        }
    }
}

/// A repair from the beginning.
fn anew(facts: &Facts<'_>, progress: &Progress, loss: Loss<'_>) -> Result<Decision, Halt> {
    let lower = progress.snapshots.first();
    match (progress.position, lower) {
        // A first start with all rows, cut short before it had published any.
        (None, _) => repair(facts, Some(progress), None, loss),
        (Some(_), Some(lower)) => repair(facts, Some(progress), Some(lower.snapshot.clone()), loss),
        (Some(_), None) => {
            let why = "no stored snapshot says which rows of the table are among them";
            Err(gone(facts, progress, loss, why).unless(FROM_TABLE))
        }
    }
}

fn repair(
    facts: &Facts<'_>,
    progress: Option<&Progress>,
    lower: Option<String>,
    loss: Loss<'_>,
) -> Result<Decision, Halt> {
    let Some(why) = facts.unrepairable else {
        return match (progress, made_anew(facts, progress).or_else(|| unstamped(facts))) {
            (Some(progress), Some(Anew { why, remedy })) if lower.is_some() => {
                let halt = gone(facts, progress, loss, &why).unless(FROM_TABLE);
                // Without the slot its rows are to be read from the table.
                let halt = match remedy.filter(|_| loss.streams) {
                    Some(remedy) => halt.unless(remedy),
                    None => halt,
                };
                Err(stamping(facts, halt))
            }
            _ => Ok(Decision::Repair { lower, replace: facts.slot.is_some() }),
        };
    };
    let Halt { reason, remedy } = why;
    let Some(progress) = progress.filter(|_| lower.is_some()) else {
        return Err(Halt::new(
            format!("the rows that are there already can't be published: {reason}"),
            format!("{remedy}; or set postgres.start to \"now\" to leave them out"),
        ));
    };
    let why = format!("they can't be read from the table: {reason}");
    Err(gone(facts, progress, loss, &why).unless(remedy))
}

/// Why rows of before are not in a table of that name, or can't be known there.
struct Anew {
    why: String,
    /// What continues with what the slot has, where that may be all.
    remedy: Option<&'static str>,
}

/// Rows that were inserted meanwhile may look as if they were there before.
fn unstamped(facts: &Facts<'_>) -> Option<Anew> {
    let table = facts.unstamped?;
    let why = format!(
        "the default of the column xid of {table} is not pg_current_xact_id(), so rows of it can't be told from those \
         that are published"
    );
    Some(Anew { why, remedy: None })
}

/// What is done first where a default is still another one: whatever else is done, the next rows can't be told either.
fn stamping(facts: &Facts<'_>, halt: Halt) -> Halt {
    let Some(table) = facts.unstamped else { return halt };
    halt.first(
        "the column xid still has another default than pg_current_xact_id()",
        &format!(
            "as the table's owner, `alter table {table} alter column xid set default pg_current_xact_id()`"
        ),
    )
}

fn made_anew(facts: &Facts<'_>, progress: Option<&Progress>) -> Option<Anew> {
    let earlier = progress?.published.as_ref()?;
    if let Some(table) = facts.published?.restamped(earlier) {
        let why = format!(
            "rows that were inserted into {table} while its column xid had another default can't be \
             told from moved ones"
        );
        return Some(Anew { why, remedy: Some(THE_SAME) });
    }
    let table = facts.published?.made_anew(earlier)?;
    let why = format!(
        "{table} is another table than the one that they were written into, so they can't be read from \
         it"
    );
    Some(Anew { why, remedy: None })
}
