//! Carries out what was decided: the slot, or a repair, and where the stream begins.

use super::{
    connections::Connections,
    decision::note_delivered,
    first,
    repair::{self, Needed},
    slot,
};
use crate::{
    core::{position::Position, progress::Progress, published::Published},
    daemon::{advice, context::Context, ended::Ended, tables::Tables},
    metrics::Cause,
    reconcile::{Decision, Left},
    repair::Table,
};

/// What was decided, as in `Reconciled`, with how the tables were published then.
pub(super) struct Decided {
    pub(super) decision: Decision,
    pub(super) gap: Option<String>,
    pub(super) published: Published,
    /// Whether its stream has ended for want of the publication.
    pub(super) unpublished_once: bool,
}

/// What comes of it.
pub(super) enum Next {
    /// The stream, from there, with how the tables are published.
    Stream(Position, Published),
    /// A repair reads these first.
    Repair(Vec<Table>),
}

/// `noted` is whether the database knows by now that progress was stored.
pub(super) async fn carry_out(
    context: &Context,
    connections: &mut Connections<'_>,
    Decided { decision, gap, published, unpublished_once }: Decided,
    tables: &mut Tables,
    progress: &mut Progress,
    noted: &mut bool,
) -> Result<Next, Ended> {
    let config = &context.config;
    let slot = &config.postgres.slot;
    match &decision {
        Decision::Stream { from } => {
            progress.continue_slot(&published);
            Ok(Next::Stream(*from, published))
        }
        Decision::MakeSlot { replace } => {
            tables.must_fit()?;
            if *replace {
                slot::drop(slot, &mut connections.replication).await?;
            }
            progress.announce_slot(published);
            let from = first::make(context, connections, progress).await?;
            Ok(Next::Stream(from, progress.published.clone().unwrap_or_default()))
        }
        Decision::Wait { pid, making } => {
            let error = advice::held(connections.session, slot, *pid, *making).await;
            Err(Ended::retry(Cause::Postgres, "waiting for the slot", error))
        }
        Decision::Repair { .. } | Decision::FinishRepair => {
            tables.must_fit()?;
            let readable = std::mem::replace(&mut tables.repair, Ok(vec![]));
            let readable = readable.map_err(Ended::Halted)?;
            let nothing_to_read = match &decision {
                Decision::Repair { lower, replace } => {
                    // A slot that is gone has nothing that could be published instead.
                    let (lower, gap) = (lower.as_deref(), gap.as_deref());
                    let left = Left::of(*replace, unpublished_once);
                    let needed = Needed { tables: &readable, lower, gap, left };
                    repair::begin(context, connections, needed, progress, *replace).await?
                }
                _ => None,
            };
            if !*noted {
                // Before its first page is published: a start without progress is no first one then.
                note_delivered(config, connections.session).await?;
                *noted = true;
            }
            Ok(match nothing_to_read {
                Some(from) => Next::Stream(from, progress.published.clone().unwrap_or_default()),
                None => Next::Repair(readable),
            })
        }
    }
}
