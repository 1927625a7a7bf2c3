//! Carries out what was decided: the slot, or a repair, and where the stream begins.

use super::{
    connections::Connections,
    decision::note_delivered,
    first,
    repair::{self, Needed},
    slot,
};
use crate::{
    core::{
        position::Position,
        progress::{DepartedRecord, Progress},
        published::Published,
    },
    daemon::{advice, context::Context, ended::Ended, tables::Tables},
    metrics::Cause,
    reconcile::Decision,
    repair::Table,
};

/// What was decided, as in `Reconciled`, with how the tables were published then.
pub(super) struct Decided {
    pub(super) decision: Decision,
    pub(super) gap: Option<String>,
    pub(super) published: Published,
}

/// What comes of it.
pub(super) enum Next {
    /// The stream, from there.
    Stream(Position),
    /// A repair reads these first.
    Repair(Vec<Table>),
}

/// `noted` is whether the database knows by now that progress was stored.
pub(super) async fn carry_out(
    context: &Context,
    connections: &mut Connections<'_>,
    Decided { decision, gap, published }: Decided,
    tables: &mut Tables,
    progress: &mut Progress,
    noted: &mut bool,
) -> Result<Next, Ended> {
    let config = &context.config;
    let slot = &config.postgres.slot;
    match &decision {
        Decision::Stream { from } => {
            if let Some(newest) = progress.snapshots.first() {
                let (was, at) = (newest.leaves.oids(), (newest.lsn, newest.snapshot.as_str()));
                DepartedRecord::note(&mut progress.departed, was, at, &published);
            }
            progress.published = Some(published);
            Ok(Next::Stream(*from))
        }
        Decision::MakeSlot { replace } => {
            tables.must_fit()?;
            if *replace {
                slot::drop(slot, &mut connections.replication).await?;
            }
            progress.gap = None;
            progress.not_sent.clear();
            progress.published = Some(published);
            // What was delivered of a release stays delivered, whatever became of the slot.
            progress.snapshots.clear();
            first::make(context, connections, progress).await.map(Next::Stream)
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
                    let gap = gap.as_deref().filter(|_| *replace);
                    let lower = lower.as_deref();
                    let needed = Needed { tables: &readable, lower, gap };
                    repair::begin(context, connections, needed, progress, *replace).await?
                }
                _ => None,
            };
            if !*noted {
                // Before its first page is published: a start without progress is no first one then.
                note_delivered(config, connections.session).await?;
                *noted = true;
            }
            Ok(nothing_to_read.map_or(Next::Repair(readable), Next::Stream))
        }
    }
}
