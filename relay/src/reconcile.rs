//! What to do at start: compares stored progress, the slot and the cluster's identity.
//!
//! Pure; `daemon` gathers the facts and acts. No combination streams past something that was not
//! delivered without saying so: where it can't know, it stops and names what is missing and the
//! command that goes on. `docs/GUARANTEES.md` has the same table in words.

use crate::{
    lsn::Lsn,
    position::Position,
    progress::Progress,
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
    /// Timelines that the current one came from, and where each was left.
    pub history: &'a [(u32, Lsn)],
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
    /// A person must decide.
    Stop(Halt),
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

fn same_cluster(progress: &Progress, identity: &SystemIdentity) -> Result<(), Halt> {
    if progress.system_id == identity.system_id {
        return Ok(());
    }
    Err(Halt::new(
        format!(
            "stored progress belongs to the cluster with system identifier {}, this one is {}",
            progress.system_id, identity.system_id
        ),
        "give this relay another name, or, if the database was moved here by a dump, run \
         `outbox-relay resume --at now`",
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

/// Decides. See the module's documentation.
pub fn decide(facts: &Facts<'_>) -> Decision {
    match try_decide(facts) {
        Ok(decision) => decision,
        Err(halt) => Decision::Stop(halt),
    }
}

fn try_decide(facts: &Facts<'_>) -> Result<Decision, Halt> {
    is_ours(facts)?;
    let stored = facts.progress.and_then(|progress| Some((progress, progress.position?)));
    match (facts.progress, stored, facts.slot) {
        (None, _, None) => Ok(Decision::MakeSlot),
        (None, _, Some(slot)) => Err(Halt::new(
            format!(
                "slot {} exists, confirmed up to {}, but the broker has no progress record: what \
                 was published before that is not known here",
                facts.slot_name,
                shown(slot.confirmed_flush_lsn)
            ),
            format!(
                "to publish everything after the slot's position, run `outbox-relay resume --at \
                 slot`; to begin anew, drop the slot: select pg_drop_replication_slot('{}')",
                facts.slot_name
            ),
        )),
        // A first start was cut short: nothing was ever delivered or confirmed.
        (Some(_), None, None) => Ok(Decision::MakeSlot),
        (Some(_), None, Some(slot)) => {
            let from = slot.confirmed_flush_lsn.ok_or_else(|| unusable(facts))?;
            Ok(Decision::Stream { from: Position::UpTo(from) })
        }
        (Some(progress), Some((_, position)), slot) => {
            let position = on_this_timeline(facts, progress, position)?;
            let Some(slot) = slot else {
                return Err(missing(facts, position, "does not exist"));
            };
            if slot.is_lost() {
                return Err(missing(facts, position, "has lost its WAL"));
            }
            let confirmed = slot.confirmed_flush_lsn.ok_or_else(|| unusable(facts))?;
            if confirmed > position.resume_lsn() {
                return Err(Halt::new(
                    format!(
                        "slot {} is confirmed up to {confirmed}, past the stored progress {position}: \
                         somebody moved the slot or progress was lost; events between are not \
                         known to be published",
                        facts.slot_name
                    ),
                    "to go on from the slot's position and leave that interval out, run \
                     `outbox-relay resume --at slot`",
                ));
            }
            Ok(Decision::Stream { from: position })
        }
    }
}

/// The position as this cluster's history knows it: past the switch to the current timeline
/// counts as the switch, for what the old primary wrote after it is not part of this history.
fn on_this_timeline(
    facts: &Facts<'_>,
    progress: &Progress,
    position: Position,
) -> Result<Position, Halt> {
    let identity = facts.identity;
    if progress.timeline == identity.timeline {
        if position.resume_lsn() > identity.flush_lsn {
            return Err(Halt::new(
                format!(
                    "progress is at {position}, but the server's WAL ends at {}: the volume was \
                     rolled back, and its new WAL will repeat LSNs that were delivered already",
                    identity.flush_lsn
                ),
                "to publish everything that is committed from now on, run `outbox-relay resume \
                 --at now`",
            ));
        }
        return Ok(position);
    }
    let switch = facts
        .history
        .iter()
        .find_map(|(timeline, left_at)| (*timeline == progress.timeline).then_some(*left_at));
    match switch {
        Some(left_at) if Position::UpTo(left_at).includes(position) => Ok(position),
        Some(left_at) => Ok(Position::UpTo(left_at)),
        None => Err(Halt::new(
            format!(
                "progress was reached on timeline {}, which is not in the history of this \
                 server's timeline {}",
                progress.timeline, identity.timeline
            ),
            "connect to a server that continues that timeline, or run `outbox-relay resume --at \
             now` to publish what is committed from now on",
        )),
    }
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

fn missing(facts: &Facts<'_>, position: Position, what: &str) -> Halt {
    Halt::new(
        format!(
            "slot {} {what}: events committed between {position} and {} may not be published",
            facts.slot_name, facts.identity.flush_lsn
        ),
        "their rows are still in the outbox table; to make a new slot and publish what is \
         committed from then on, run `outbox-relay resume --at now`",
    )
}

fn unusable(facts: &Facts<'_>) -> Halt {
    Halt::new(
        format!("slot {} has no confirmed position: its making was cut short", facts.slot_name),
        format!("drop it: select pg_drop_replication_slot('{}')", facts.slot_name),
    )
}

fn shown(lsn: Option<Lsn>) -> String {
    lsn.map_or_else(|| "nothing".to_owned(), |lsn| lsn.to_string())
}
