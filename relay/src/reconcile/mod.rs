//! What to do at start: compares stored progress, the slot and the cluster's identity.
//!
//! Pure; `daemon` gathers the facts and acts. No combination streams past something that was not
//! delivered without saying so: a slot that is missing or lost is made anew and what it would have
//! sent is published from the table; where that can't be known, the relay stops and names what is
//! missing and the command that goes on. `docs/GUARANTEES.md` has the same table in words.

mod history;
mod home;
#[cfg(test)]
mod tests;
mod whose;

use self::history::carry_over;
pub use self::history::{perhaps_put_back, sees_rollback};
pub use self::whose::{Believed, Claims, believe};
use crate::{
    core::{
        halt::Halt,
        identity::SystemIdentity,
        lsn::Lsn,
        position::Position,
        progress::{Progress, RepairRecord},
        published::{Published, Since},
    },
    postgres::catalog::slot::SlotState,
};

/// The facts, gathered before anything is changed.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The relay's name.
    pub relay: &'a str,
    /// Slot of the settings.
    pub slot_name: &'a str,
    /// Newest stored progress.
    pub progress: Option<&'a Progress>,
    /// The slot, if it exists.
    pub slot: Option<&'a SlotState>,
    /// The database that the connection leads to.
    pub database: &'a str,
    /// The cluster, from IDENTIFY_SYSTEM.
    pub identity: &'a SystemIdentity,
    /// The first transaction id that is still to come; `None` where that was not asked.
    pub next_xid: Option<u64>,
    /// Timelines that the current one came from, and where each was left; empty where the stored
    /// progress is of the current one.
    pub history: &'a [(u32, Lsn)],
    /// Whether a first start publishes the rows that are there already.
    pub start_with_all: bool,
    /// Another relay that has delivered from this database, where rows are there and nobody has said
    /// what a first start does with them.
    pub predecessor: Option<&'a str>,
    /// How the tables are published now; `None` where that was not asked.
    pub published: Option<&'a Published>,
    /// The stream ended because its publication was missing when what comes next was written.
    pub unpublished_once: bool,
    /// A partition that was attached with rows which the stream does not have.
    pub attached: Option<&'a str>,
    /// Why the tables can't be read for a repair, if they can't, and what would mend that.
    pub unrepairable: Option<&'a Halt>,
    /// Progress of this relay was stored before, says the database.
    pub has_delivered: bool,
    /// Progress is in the database, and not at the broker.
    pub progress_in_database: bool,
}

/// What to do, and what stored progress means on this server.
#[derive(Debug, PartialEq, Eq)]
pub struct Reconciled {
    /// As this cluster's history knows it: store nothing else of the old one.
    pub progress: Option<Progress>,
    /// What to do.
    pub decision: Decision,
    /// Why a slot that streams is to be replaced: what the stream may lack.
    pub gap: Option<String>,
}

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
    /// A repair was begun: go on with it, then decide again.
    FinishRepair,
    /// Somebody else uses the slot: look again in a moment.
    Wait {
        /// The server's process.
        pid: i32,
        /// Whether it is making the slot.
        making: bool,
    },
}

/// Whether what is stored under this relay's name is this relay's own. Asked before the fence, so
/// that a mistake in the settings does not fence an innocent relay of the same name, which serves
/// another cluster, slot or database.
///
/// # Errors
/// [`Halt`] naming both.
pub fn is_ours(facts: &Facts<'_>) -> Result<(), Halt> {
    if let Some(progress) = facts.progress {
        same_cluster(progress, facts)?;
        same_slot(progress, facts.slot_name)?;
    }
    match facts.slot {
        Some(slot) => fits(facts, slot),
        None => Ok(()),
    }
}

impl Facts<'_> {
    /// Since progress was stored, another server has become the primary.
    fn was_promoted(&self) -> bool {
        self.progress.is_some_and(|stored| stored.timeline < self.identity.timeline)
    }
}

/// Decides. See the module's documentation.
///
/// # Errors
/// [`Halt`]: a person must decide.
pub fn reconcile(facts: &Facts<'_>) -> Result<Reconciled, Halt> {
    is_ours(facts)?;
    let carried = facts.progress.map(|stored| carry_over(stored, facts)).transpose()?;
    let decision = match (facts.slot, &carried) {
        (Some(SlotState { active: true, active_pid, confirmed_flush_lsn, .. }), _) => {
            let pid = active_pid.unwrap_or_default();
            Decision::Wait { pid, making: confirmed_flush_lsn.is_none() }
        }
        (_, None) => without_progress(facts)?,
        (_, Some(progress)) => with_progress(facts, progress)?,
    };
    let replaces = matches!(decision, Decision::Repair { .. });
    let gap = carried.as_ref().and_then(|progress| gap(facts, progress)).filter(|_| replaces);
    Ok(Reconciled { progress: carried, decision, gap })
}

/// Why rows may be missing from the stream that goes on from stored progress: written while their
/// table was not published as it had been. What the stream does have can't say so.
fn gap(facts: &Facts<'_>, progress: &Progress) -> Option<String> {
    let inside = matches!(progress.position, Some(Position::Row(_)));
    if let Some(why) = &progress.gap {
        return Some(why.clone());
    }
    if let (Some(now), Some(earlier)) = (facts.published, &progress.published)
        && let Since::Broken(why) = now.since(earlier, inside)
    {
        return Some(why);
    }
    if facts.unpublished_once {
        return Some("the publication was missing when they were written".to_owned());
    }
    let attached = |name| format!("partition {name} was attached with rows in it");
    facts.attached.map(attached)
}

/// What of the events is not in the stream any more.
#[derive(Clone, Copy)]
struct Loss<'a> {
    /// Said of the slot.
    what: &'a str,
    /// The slot streams, and may lack some; else it is of no use.
    streams: bool,
}

impl<'a> Loss<'a> {
    fn slot(what: &'a str) -> Self {
        Loss { what, streams: false }
    }
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
             this database: whether the rows that are there are published is not known here",
            facts.relay
        ),
        format!(
            "if this relay was called {other} before, set `name` back to that; if it is another one, set \
             postgres.start to \"all\" to publish the rows that are there, or to \"now\" to leave them out; \
             and restart it"
        ),
    ))
}

fn without_progress(facts: &Facts<'_>) -> Result<Decision, Halt> {
    let name = facts.slot_name;
    let unknown = home::unknown(facts);
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
                true => {
                    "to publish everything after the slot's position, run `outbox-relay resume \
                         --at slot`; to leave that out, run `outbox-relay resume --at now`"
                        .to_owned()
                }
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
                "to publish what is committed from now on, run `outbox-relay resume --at now`; to \
                 publish every row of the table, set postgres.start to \"all\" and drop the slot: {}",
                drop_slot(name)
            ),
        )),
    }
}

fn with_progress(facts: &Facts<'_>, progress: &Progress) -> Result<Decision, Halt> {
    let slot = use_of(facts);
    let gap = gap(facts, progress).map(|why| format!("may lack rows, because {why}"));
    let gap = gap.as_deref().map(|what| Loss { what, streams: true });
    match (&progress.repair, progress.position) {
        (Some(under_way), _) if under_way.is_begun() => begun(facts, progress, under_way, slot?),
        // Announced: whatever slot is there, nobody has read from it.
        (Some(_), _) => anew(facts, progress, Loss::slot("is to be repaired")),
        (None, None) if progress.leaves_slot_out() => {
            Ok(Decision::MakeSlot { replace: facts.slot.is_some() })
        }
        (None, None) => match (slot?, gap) {
            (Use::Missing, _) => Ok(Decision::MakeSlot { replace: false }),
            (Use::From(_), Some(loss)) => Err(gone(facts, progress, loss, NOTHING_KNOWN)),
            // Its making was announced, and nothing was ever delivered or confirmed.
            (Use::From(confirmed), None) => {
                Ok(Decision::Stream { from: Position::UpTo(confirmed) })
            }
            (Use::Lost, _) => Err(gone(facts, progress, Loss::slot(LOST), NOTHING_KNOWN)),
        },
        (None, Some(position)) => match slot? {
            Use::Missing => anew(facts, progress, Loss::slot("does not exist")),
            Use::Lost => anew(facts, progress, Loss::slot(LOST)),
            Use::From(confirmed) if confirmed > position.resume_lsn() => {
                match facts.progress_in_database && facts.was_promoted() {
                    true => anew(facts, progress, Loss { what: OUTRUN, streams: true }),
                    false => Err(moved(facts, &position.to_string(), confirmed)),
                }
            }
            Use::From(_) => match gap {
                Some(loss) => anew(facts, progress, loss),
                None => Ok(Decision::Stream { from: position }),
            },
        },
    }
}

const LOST: &str = "has lost its WAL";
/// A standby has a slot that was synchronised, and its tables, each as far as it got.
const OUTRUN: &str = "is ahead of the progress that this new primary has";
const NOTHING_KNOWN: &str = "nothing was published before";

/// A repair whose new slot was made: goes on, or, where that slot is gone too, ends first: what it
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
            match (facts.unrepairable, made_anew(facts, Some(progress))) {
                (None, None) => Ok(Decision::FinishRepair),
                (Some(Halt { reason, remedy }), _) => {
                    Err(gone(facts, progress, loss, reason).unless(remedy))
                }
                (None, Some(why)) => Err(gone(facts, progress, loss, &why)),
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
            Err(gone(facts, progress, loss, why))
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
        return match (progress, made_anew(facts, progress)) {
            (Some(progress), Some(why)) if lower.is_some() => {
                Err(gone(facts, progress, loss, &why).unless(FROM_TABLE))
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
    let why = format!("the table can't be read for them: {reason}");
    Err(gone(facts, progress, loss, &why).unless(remedy))
}

/// Why rows of before are not in a table of that name, or can't be known there.
fn made_anew(facts: &Facts<'_>, progress: Option<&Progress>) -> Option<String> {
    let earlier = progress?.published.as_ref()?;
    if let Some(table) = facts.published?.restamped(earlier) {
        return Some(format!(
            "rows that were inserted into {table} while its column xid had another default can't be \
             told from moved ones"
        ));
    }
    let table = facts.published?.made_anew(earlier)?;
    Some(format!(
        "{table} is another table than the one that they were written into, so it can't be read \
         for them"
    ))
}

/// The slot streams, may lack rows, and the table turns out not to have them all.
pub(crate) fn lacking(slot: &str, gap: &str, progress: &Progress, why: &Halt) -> Halt {
    let from = progress.snapshots.first().map(|snapshot| snapshot.lsn).unwrap_or_default();
    Halt::new(
        format!(
            "slot {slot} may lack rows, because {gap}, and of the events committed between {from} and \
             now some may be missing from the table as well: {}",
            why.reason
        ),
        format!("{ON}; {ANEW}"),
    )
    .unless(&why.remedy)
}

const ON: &str = "to publish what the slot has of them and leave out what it lacks, run `outbox-relay \
                  resume --at progress`";
/// Where the table is another one and can be read.
const FROM_TABLE: &str = "if the table has their rows, as after the database was restored from a dump, publish \
                          what was created since the newest published event, some of it again, with \
                          `outbox-relay resume --at table`";
const ANEW: &str = "to leave out all that is not published, make a new slot and publish what is \
                    committed from then on, run `outbox-relay resume --at now`";

/// What the slot would have sent can't be found.
fn gone(facts: &Facts<'_>, progress: &Progress, loss: Loss<'_>, why: &str) -> Halt {
    let newest = progress.snapshots.first().map(|snapshot| snapshot.lsn.to_string());
    let from = match progress.position {
        None => "the first event".to_owned(),
        // What it lacks may be committed before what it had.
        Some(_) if loss.streams => newest.unwrap_or_else(|| "the slot's making".to_owned()),
        Some(position) => position.to_string(),
    };
    let reason = format!(
        "slot {} {}: events committed between {from} and {} may not be published, and {why}",
        facts.slot_name, loss.what, facts.identity.flush_lsn
    );
    match loss.streams {
        true => Halt::new(reason, format!("{ON}; {ANEW}")),
        false => Halt::new(reason, ANEW),
    }
}

fn moved(facts: &Facts<'_>, delivered: &str, confirmed: Lsn) -> Halt {
    let name = facts.slot_name;
    Halt::new(
        format!(
            "slot {name} is confirmed up to {confirmed}, past the stored progress {delivered}: \
             somebody moved the slot or progress was lost; events between are not known to be \
             published"
        ),
        format!(
            "to publish them from the table, drop the slot, and the relay makes a new one: {}; to \
             go on from the slot's position and leave that interval out, run `outbox-relay resume \
             --at slot`",
            drop_slot(name)
        ),
    )
}

fn drop_slot(name: &str) -> String {
    format!("`select pg_drop_replication_slot('{name}')`")
}

fn same_cluster(progress: &Progress, facts: &Facts<'_>) -> Result<(), Halt> {
    let identity = facts.identity;
    if progress.system_id == identity.system_id {
        return Ok(());
    }
    let stored = progress.position.map_or_else(|| "nothing".to_owned(), |p| p.to_string());
    Err(Halt::new(
        format!(
            "stored progress ({stored}) belongs to the cluster with system identifier {}, this one \
             is {}: what is committed here up to {} is not known to be published",
            progress.system_id, identity.system_id, identity.flush_lsn
        ),
        format!(
            "if this cluster was made from that one by pg_upgrade, run `outbox-relay resume --at \
             upgrade`: nothing is left out; if the database was moved here by a dump, run `outbox-relay \
             resume --at now`: what was committed here before that is left out; if it is another \
             database, give this relay another name{}",
            home::forget(facts)
        ),
    ))
}

fn same_slot(progress: &Progress, slot_name: &str) -> Result<(), Halt> {
    if progress.slot == slot_name {
        return Ok(());
    }
    Err(Halt::new(
        format!(
            "stored progress ({}) belongs to slot {}, this relay is to use {slot_name}",
            progress.position.map_or_else(|| "nothing".to_owned(), |p| p.to_string()),
            progress.slot
        ),
        "set postgres.slot back, or give this relay another name; to continue where the other slot is, and \
         leave out what was committed between stored progress and that, run `outbox-relay resume --at \
         slot`",
    ))
}

fn fits(facts: &Facts<'_>, slot: &SlotState) -> Result<(), Halt> {
    let name = facts.slot_name;
    let other = "set postgres.slot to a name of its own";
    let anew = || {
        let drop = drop_slot(name);
        format!(
            "if no one else needs it, drop it, and the relay makes a new one: {drop}; or {other}"
        )
    };
    if slot.slot_type != "logical" || slot.plugin.as_deref() != Some("pgoutput") {
        let plugin = slot.plugin.as_deref().unwrap_or("none");
        let found = format!("slot {name} is {} with plugin {plugin}, not pgoutput", slot.slot_type);
        return Err(Halt::new(found, anew()));
    }
    if slot.database.as_deref() != Some(facts.database) {
        let found = format!(
            "slot {name} belongs to database {}, not {}",
            slot.database.as_deref().unwrap_or("none"),
            facts.database
        );
        return Err(Halt::new(found, other));
    }
    if slot.two_phase {
        return Err(Halt::new(
            format!("slot {name} was made with two_phase, which changes what a commit is"),
            anew(),
        ));
    }
    Ok(())
}
