//! What a start would do: its own looks and its own decision, with nothing made, stored or fenced.
//! For `check`, so that whatever would halt `run` is known before.

use std::sync::Arc;

use super::{
    attached, connect, decision, given_up,
    repair::{self, Needed},
    standby,
    survey::survey,
};
use crate::{
    causes,
    config::{Config, parts::Parts},
    core::{halt::Halt, progress::Progress},
    daemon::{
        advice::{TOO_MANY, against_shortage, sqlstate_of},
        context::Context,
        ended::Ended,
        tables::{self, Tables},
    },
    postgres::{catalog::slot::SlotState, sql::SqlSession},
    progress_key::{self, Known},
    reconcile::{Decision, Left, Reconciled},
    repair::Taken,
    route::Format,
    sink::{ProgressStore as _, any::AnySink},
    table_fit,
};

/// How the start would end.
#[derive(Debug)]
pub(crate) enum Rehearsed {
    /// It would do this. `looked`: whether the tables said in time that nothing that it needs is gone; `taken`: rows that
    /// it would take for published.
    Starts { decision: Decision, looked: bool, taken: Vec<Taken> },
    /// A person must decide first.
    Halts(Halt),
    /// It would try again: something does not answer. `remedy` is empty where that is not known.
    Fails { error: String, remedy: String },
}

/// Goes through what a start looks at. `has_progress`: where there is none, it is not made.
/// Cancel safe.
pub(crate) async fn rehearse(
    config: &Config,
    parts: &Parts,
    session: &Arc<SqlSession>,
    has_progress: bool,
) -> Rehearsed {
    let context = &Context::new(config.clone(), parts.clone());
    match decide(context, session, has_progress).await {
        Ok((decision, looked, taken)) => Rehearsed::Starts { decision, looked, taken },
        Err(
            Ended::Halted(halt)
            | Ended::NoLeaders(halt)
            | Ended::NoDeadLetters(halt)
            | Ended::WrittenOtherwise(halt),
        ) => Rehearsed::Halts(halt),
        Err(Ended::Fenced) => fails(&"fenced at the broker"),
        Err(Ended::NeedsText(error)) => fails(&error),
        Err(Ended::RolledBack(error)) => fails(&error),
        Err(Ended::Unpublished(error)) => fails(&error),
        // The relay that streams may have the only one.
        Err(Ended::Retry { ref error, .. })
            if sqlstate_of(error).as_deref() == Some(TOO_MANY)
                && let Ok((Some(SlotState { active: true, active_pid, .. }), _)) =
                    survey(&context.config, session).await =>
        {
            let pid = active_pid.unwrap_or_default();
            let decision = Decision::Wait { pid, making: false };
            Rehearsed::Starts { decision, looked: true, taken: Vec::new() }
        }
        Err(Ended::Retry { doing, error, .. }) => {
            let remedy = against_shortage(&error, &context.parts.connect).unwrap_or_default();
            let error = format!("{doing}: {}", causes::of(error.as_ref()));
            Rehearsed::Fails { error, remedy }
        }
    }
}

fn fails(error: &dyn ToString) -> Rehearsed {
    Rehearsed::Fails { error: error.to_string(), remedy: String::new() }
}

async fn decide(
    context: &Context,
    session: &Arc<SqlSession>,
    has_progress: bool,
) -> Result<(Decision, bool, Vec<Taken>), Ended> {
    let config = &context.config;
    standby::not_anothers(context, session).await?;
    let mut replication = connect::connect_replication(context).await?;
    let identity = decision::identify(&mut replication).await?;
    let mut tables = tables::inspect(context, session, Format::Binary).await?;
    let known = progress_key::look(session, &config.name).await.map_err(decision::key_failed)?;
    let known = known.unwrap_or_else(Known::nothing);
    let mut stored = None;
    if has_progress {
        let sink = AnySink::start(&context.parts.sink, &config.name, known.key.clone(), session);
        let mut sink = sink.map_err(|e| Ended::sink("making the sink", e))?;
        let seen = sink.peek().await;
        let seen = seen.map_err(|e| Ended::sink("reading progress", e))?;
        stored =
            decision::believe(config, &context.parts, session, &identity, &known, seen).await?;
    }
    if let Some(halt) = tables.unpublished.take() {
        let streamed = stored.as_ref().is_some_and(|progress| progress.position.is_some());
        let unrepairable = tables.repair.as_ref().err();
        return Err(Ended::Halted(table_fit::until_obeyed(halt, streamed, unrepairable)));
    }
    if let Some(stored) = stored.as_mut() {
        tables::forget_misspelt(stored, &context.parts.mapping);
    }
    let look = connect::look(context, &replication);
    let (snapshot, published) = look
        .at(session.client())
        .await
        .map_err(|e| Ended::postgres("looking at the publication", e))?;
    let mut again = false;
    let now = (&identity, snapshot.as_str(), &published);
    let mut attached =
        attached::look(context, session, stored.as_mut(), now, &tables.stamped).await?;
    let taken = std::mem::take(&mut attached.taken);
    loop {
        let found = decision::Found {
            identity: &identity,
            published: &published,
            unpublished_once: false,
            tables: &tables.repair,
            has_delivered: known.has_delivered,
            attached: &attached,
        };
        let progress = stored.as_ref();
        let decided = decision::decide(context, session, &mut replication, progress, found);
        let decided = decided.await?;
        let (readable, attached) = (&tables.repair, &attached);
        let reconciled = (&decided, Left::Streams);
        given_up::loses_nothing(context, session, readable, reconciled, attached).await?;
        if !matches!(decided.decision, Decision::Stream { .. } | Decision::Wait { .. })
            && let Some(halt) = &tables.misfit
        {
            return Err(Ended::Halted(halt.clone()));
        }
        let seen = foresee(config, session, &tables, &decided).await;
        // A run remembers it, and starts again.
        match (seen, stored.as_mut()) {
            (Err(Ended::RolledBack(another)), Some(stored)) if !again => {
                again = true;
                stored.note_rollback(another.from);
            }
            (seen, _) => return seen.map(|looked| (decided.decision, looked, taken)),
        }
    }
}

/// Whether what a repair is to read may be gone.
async fn foresee(
    config: &Config,
    session: &SqlSession,
    tables: &Tables,
    decided: &Reconciled,
) -> Result<bool, Ended> {
    let Reconciled { progress, decision, gap } = decided;
    let begun = || progress.as_ref().and_then(|progress| progress.repair.as_ref());
    let lower = match decision {
        Decision::Repair { lower, .. } => lower.as_deref(),
        Decision::FinishRepair => begun().and_then(|begun| begun.lower.as_deref()),
        Decision::MakeSlot { .. } | Decision::Stream { .. } | Decision::Wait { .. } => {
            return Ok(true);
        }
    };
    let readable = tables.repair.as_ref().map_err(|halt| Ended::Halted(halt.clone()))?;
    let nothing = || Progress::before_first_start(&config.postgres.slot);
    let progress = progress.clone().unwrap_or_else(nothing);
    let left = Left::of(!matches!(decision, Decision::Repair { replace: false, .. }), false);
    let needed = Needed { tables: readable, lower, gap: gap.as_deref(), left };
    repair::foresee(config, session, needed, &progress).await
}
