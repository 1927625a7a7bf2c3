//! Before a slot that streams is given up for a repair: what only it has would be lost.

use super::{
    attached::Attached,
    repair::{self, Needed},
    survey::survey,
};
use crate::{
    core::{halt::Halt, lsn::Lsn},
    daemon::{context::Context, ended::Ended, locks},
    postgres::{
        catalog::slot::SlotState,
        sql::{self, SqlSession},
    },
    reconcile::{self, Decision, Left, Reconciled},
    repair::{Table, is_in_tables},
};

/// Halts where the tables lack what the slot has, or a repair would ask a person. For rows of an attached partition
/// there is a remedy that needs neither.
pub(super) async fn loses_nothing(
    context: &Context,
    session: &SqlSession,
    tables: &Result<Vec<Table>, Halt>,
    (reconciled, left): (&Reconciled, Left),
    attached: &Attached,
) -> Result<(), Ended> {
    let Reconciled {
        progress: Some(progress),
        decision: Decision::Repair { lower, replace: true },
        gap: Some(gap),
    } = reconciled
    else {
        return Ok(());
    };
    let (slot, _) = survey(&context.config, session).await?;
    let (Some(SlotState { active: false, .. }), Ok(tables)) =
        (slot.filter(|slot| !slot.is_lost()), tables)
    else {
        return Ok(());
    };
    let whole = has_all(context, progress.position.map(|at| at.resume_lsn())).await?;
    let slot = &context.config.postgres.slot;
    match (&attached.not_sent, whole) {
        (None, Some(false)) => {
            let why = "it has rows that are no longer in the tables";
            Err(Ended::Halted(reconcile::only_in_slot((slot, left), gap, why)))
        }
        (None, _) => Ok(()),
        (Some(_), Some(true)) => {
            let (lower, gap) = (lower.as_deref(), Some(gap.as_str()));
            let needed = Needed { tables, lower, gap, left };
            let foreseen = repair::foresee(&context.config, session, needed, progress).await;
            match (foreseen, &attached.not_sent) {
                (Err(Ended::Halted(_) | Ended::RolledBack(_)), Some((_, halt))) => {
                    Err(Ended::Halted(halt.clone()))
                }
                (foreseen, _) => foreseen.map(|_looked| ()),
            }
        }
        (Some((_, halt)), _) => Err(Ended::Halted(halt.clone())),
    }
}

/// `None` where that is not known.
async fn has_all(context: &Context, delivered: Option<Lsn>) -> Result<Option<bool>, Ended> {
    const DOING: &str = "comparing the slot with the tables";
    let failed = |e| Ended::postgres(DOING, e);
    let Some(delivered) = delivered else { return Ok(None) };
    let (postgres, tables) = (&context.config.postgres, context.parts.mapping.tables());
    let application = format!("outbox-relay {} slot", context.config.name);
    let reading = sql::connect(&context.parts.connect, &application);
    let reading = reading.await.map_err(|e| Ended::connect(DOING, e))?;
    locks::limit(&reading, context.config.leader.timeout).await.map_err(failed)?;
    let (slot, publication) = (&postgres.slot, &postgres.publication);
    is_in_tables(reading.client(), slot, publication, delivered, tables).await.map_err(failed)
}
