//! What to do at start: compares stored progress, the slot and the cluster's identity.
//!
//! Pure; `daemon` gathers the facts and acts. No combination streams past something that was not
//! delivered without saying so: a slot that is missing or lost is made anew and what it would have
//! sent is published from the table; where that can't be known, the relay stops and names what is
//! missing and the command that goes on. `docs/GUARANTEES.md` has the same table in words.

mod history;
#[cfg(test)]
mod tests;

use self::history::carry_over;
use crate::{
    lsn::Lsn,
    position::Position,
    progress::{Progress, RepairRecord},
    source::{connect::SystemIdentity, slot::SlotState},
};

/// The facts, gathered before anything is changed.
#[derive(Debug)]
pub struct Facts<'a> {
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
    /// Timelines that the current one came from, and where each was left; empty where the stored
    /// progress is of the current one.
    pub history: &'a [(u32, Lsn)],
    /// Whether a first start publishes the rows that are there already.
    pub start_with_all: bool,
    /// Why the tables can't be read for a repair, if they can't, and what would mend that.
    pub unrepairable: Option<&'a Halt>,
}

/// What to do, and what stored progress means on this server.
#[derive(Debug, PartialEq, Eq)]
pub struct Reconciled {
    /// As this cluster's history knows it: store nothing else of the old one.
    pub progress: Option<Progress>,
    /// What to do.
    pub decision: Decision,
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    /// First start: announce it in a progress record, make the slot, store its snapshot.
    MakeSlot,
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

/// Why the relay stands still, and what makes it go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}; {remedy}")]
pub struct Halt {
    /// What was found, with the interval that may be missing.
    pub reason: String,
    /// The command, SQL or setting that goes on.
    pub remedy: String,
}

impl Halt {
    /// Both texts.
    pub fn new(reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Halt { reason: reason.into(), remedy: remedy.into() }
    }

    /// With what loses nothing before what gives something up.
    pub(crate) fn unless(self, remedy: &str) -> Self {
        Halt { remedy: format!("{remedy}; or, {}", self.remedy), ..self }
    }
}

/// Whether what is stored under this relay's name is this relay's own. Asked before the fence, so
/// that a mistake in the settings does not fence an innocent relay of the same name, which serves
/// another cluster, slot or database.
///
/// # Errors
/// [`Halt`] naming both.
pub fn is_ours(facts: &Facts<'_>) -> Result<(), Halt> {
    if let Some(progress) = facts.progress {
        same_cluster(progress, facts.identity)?;
        same_slot(progress, facts.slot_name)?;
    }
    match facts.slot {
        Some(slot) => fits(facts, slot),
        None => Ok(()),
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
    Ok(Reconciled { progress: carried, decision })
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

fn without_progress(facts: &Facts<'_>) -> Result<Decision, Halt> {
    let name = facts.slot_name;
    let unknown = "the broker has no progress record: what was published before is not known here";
    match use_of(facts)? {
        Use::Missing if facts.start_with_all => repair(facts, None, "is yet to be made"),
        Use::Missing => Ok(Decision::MakeSlot),
        Use::From(confirmed) => Err(Halt::new(
            format!("slot {name} exists, confirmed up to {confirmed}, but {unknown}"),
            format!(
                "to publish everything after the slot's position, run `outbox-relay resume --at \
                 slot`; to {}, drop the slot: {}",
                if facts.start_with_all {
                    "publish every row of the table (again)"
                } else {
                    "begin with what is committed from then on"
                },
                drop_slot(name)
            ),
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
    match (&progress.repair, progress.position) {
        (Some(under_way), position) if under_way.is_begun() => {
            begun(facts, under_way, position, slot?)
        }
        // Announced: whatever slot is there, nobody has read from it.
        (Some(_), position) => anew(facts, progress, position, "is to be repaired"),
        (None, None) => match slot? {
            Use::Missing => Ok(Decision::MakeSlot),
            // Its making was announced, and nothing was ever delivered or confirmed.
            Use::From(confirmed) => Ok(Decision::Stream { from: Position::UpTo(confirmed) }),
            Use::Lost => Err(gone(facts, "the slot's making", "has lost its WAL", NOTHING_KNOWN)),
        },
        (None, Some(position)) => match slot? {
            Use::Missing => anew(facts, progress, Some(position), "does not exist"),
            Use::Lost => anew(facts, progress, Some(position), "has lost its WAL"),
            Use::From(confirmed) if confirmed > position.resume_lsn() => {
                Err(moved(facts, &position.to_string(), confirmed))
            }
            Use::From(_) => Ok(Decision::Stream { from: position }),
        },
    }
}

const NOTHING_KNOWN: &str = "nothing was published before";

/// A repair whose new slot was made: goes on, or, where that slot is gone too, ends first: what it
/// publishes is what a further repair begins after.
fn begun(
    facts: &Facts<'_>,
    under_way: &RepairRecord,
    position: Option<Position>,
    slot: Use,
) -> Result<Decision, Halt> {
    match slot {
        Use::From(confirmed) if confirmed > under_way.consistent_point => {
            Err(moved(facts, &under_way.consistent_point.to_string(), confirmed))
        }
        Use::From(_) | Use::Missing | Use::Lost => match facts.unrepairable {
            None => Ok(Decision::FinishRepair),
            Some(why) => Err(gone(
                facts,
                &position.map_or_else(|| "the first event".to_owned(), |p| p.to_string()),
                "is being repaired",
                &why.reason,
            )
            .unless(&why.remedy)),
        },
    }
}

/// A repair from the beginning.
fn anew(
    facts: &Facts<'_>,
    progress: &Progress,
    position: Option<Position>,
    what: &str,
) -> Result<Decision, Halt> {
    let lower = progress.snapshots.first();
    match (position, lower) {
        // A first start with all rows, cut short before it had published any.
        (None, _) => repair(facts, None, what),
        (Some(_), Some(lower)) => repair(facts, Some(lower.snapshot.clone()), what),
        (Some(position), None) => {
            let why = "no stored snapshot says which rows of the table are among them";
            Err(gone(facts, &position.to_string(), what, why))
        }
    }
}

fn repair(facts: &Facts<'_>, lower: Option<String>, what: &str) -> Result<Decision, Halt> {
    let Some(why) = facts.unrepairable else {
        return Ok(Decision::Repair { lower, replace: facts.slot.is_some() });
    };
    let Halt { reason, remedy } = why;
    if lower.is_none() {
        return Err(Halt::new(
            format!("the rows that are there already can't be published: {reason}"),
            format!("{remedy}; or set postgres.start to \"now\" to leave them out"),
        ));
    }
    let from = facts.progress.and_then(|progress| progress.position);
    let from = from.map_or_else(|| "the first event".to_owned(), |position| position.to_string());
    Err(gone(facts, &from, what, &format!("the table can't be read for them: {reason}"))
        .unless(remedy))
}

/// What the slot would have sent can't be found.
fn gone(facts: &Facts<'_>, from: &str, what: &str, why: &str) -> Halt {
    Halt::new(
        format!(
            "slot {} {what}: events committed between {from} and {} may not be published, and {why}",
            facts.slot_name, facts.identity.flush_lsn
        ),
        "to leave out what is not published, make a new slot and publish what is committed from \
         then on, run `outbox-relay resume --at now`",
    )
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
    format!("select pg_drop_replication_slot('{name}')")
}

fn same_cluster(progress: &Progress, identity: &SystemIdentity) -> Result<(), Halt> {
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
        "give this relay another name, or, if the database was moved here by a dump, run \
         `outbox-relay resume --at now` to publish what is committed from then on",
    ))
}

fn same_slot(progress: &Progress, slot_name: &str) -> Result<(), Halt> {
    if progress.slot == slot_name {
        return Ok(());
    }
    Err(Halt::new(
        format!(
            "stored progress belongs to slot {}, this relay is to use {slot_name}",
            progress.slot
        ),
        "give this relay another name, or set postgres.slot back; if the slot was renamed on \
         purpose, run `outbox-relay resume --at slot`",
    ))
}

fn fits(facts: &Facts<'_>, slot: &SlotState) -> Result<(), Halt> {
    let name = facts.slot_name;
    let other = "set postgres.slot to a name of its own";
    if slot.slot_type != "logical" || slot.plugin.as_deref() != Some("pgoutput") {
        let plugin = slot.plugin.as_deref().unwrap_or("none");
        let found = format!("slot {name} is {} with plugin {plugin}, not pgoutput", slot.slot_type);
        return Err(Halt::new(found, other));
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
            other,
        ));
    }
    Ok(())
}
