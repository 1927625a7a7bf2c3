//! What to do at start: compares stored progress, the slot and the cluster's identity.
//!
//! Pure; `daemon` gathers the facts and acts. No combination streams past something that was not
//! delivered without saying so: a slot that is missing or lost is recreated and what it would have
//! sent is published from the table; where that can't be known, the relay stops and names what is
//! missing and the command that continues. `docs/GUARANTEES.md` has the same table in words.

mod choice;
mod facts;
mod gap;
mod halts;
mod history;
mod home;
mod ours;
#[cfg(test)]
mod tests;
mod whose;

pub use self::{
    choice::Decision,
    facts::Facts,
    history::{perhaps_put_back, sees_rollback},
    ours::is_ours,
    whose::{Believed, Claims, believe},
};
pub(crate) use self::{
    choice::of_another,
    halts::{Left, drop_slot, incomplete, only_in_slot},
};
use self::{
    choice::{with_progress, without_progress},
    gap::gap,
    history::carry_over,
};
use crate::{
    core::{halt::Halt, progress::Progress},
    postgres::catalog::slot::SlotState,
};

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
