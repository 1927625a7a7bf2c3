//! What a start would do: its own looks and its own decision, with nothing made, stored or fenced.
//! For `check`, so that whatever would halt `run` is known before.

use std::sync::Arc;

use super::{connect, decision, ended::Ended, tables};
use crate::{
    config::{Config, parts::Parts},
    core::{halt::Halt, printable},
    metrics::Cause,
    postgres::sql::SqlSession,
    progress_key::{self, Known},
    reconcile::Decision,
    route::Format,
    sink::{ProgressStore as _, any::AnySink},
    table_fit,
};

/// How the start would end.
#[derive(Debug)]
pub(crate) enum Rehearsed {
    /// It would do this.
    Starts(Decision),
    /// A person must decide first.
    Halts(Halt),
    /// It would try again: something does not answer.
    Fails(String),
}

/// Goes through what a start looks at. `has_progress_topic`: where there is none, it is not made.
/// Cancel safe.
pub(crate) async fn rehearse(
    config: &Config,
    parts: &Parts,
    session: &Arc<SqlSession>,
    has_progress_topic: bool,
) -> Rehearsed {
    match decide(config, parts, session, has_progress_topic).await {
        Ok(decision) => Rehearsed::Starts(decision),
        Err(Ended::Halted(halt) | Ended::NoDeadLetters(halt)) => Rehearsed::Halts(halt),
        Err(Ended::Fenced) => Rehearsed::Fails("fenced at the broker".into()),
        Err(Ended::NeedsText(error)) => Rehearsed::Fails(error.to_string()),
        Err(Ended::RolledBack(error)) => Rehearsed::Fails(error.to_string()),
        Err(Ended::Unpublished(error)) => Rehearsed::Fails(error.to_string()),
        Err(Ended::Retry { doing, error, .. }) => {
            Rehearsed::Fails(format!("{doing}: {}", printable::causes(error.as_ref())))
        }
    }
}

async fn decide(
    config: &Config,
    parts: &Parts,
    session: &Arc<SqlSession>,
    has_progress_topic: bool,
) -> Result<Decision, Ended> {
    let mut replication = connect::connect_replication(config, parts).await?;
    let identity = decision::identify(&mut replication).await?;
    let mut tables = tables::inspect(config, parts, session, Format::Binary).await?;
    let known = progress_key::look(session, &config.name).await.map_err(decision::key_failed)?;
    let known = known.unwrap_or_else(Known::nothing);
    let mut stored = None;
    if has_progress_topic {
        let sink = AnySink::start(&parts.sink, &config.name, known.key.clone(), session);
        let mut sink = sink.map_err(|e| Ended::sink("making the sink", e))?;
        let seen = sink.peek().await;
        let seen = seen.map_err(|e| Ended::sink("reading progress", e))?;
        stored = decision::believe(config, session, &identity, &known, seen).await?;
    }
    let unrepairable = tables.repair.as_ref().err();
    if let Some(halt) = tables.unpublished.take() {
        let streamed = stored.as_ref().is_some_and(|progress| progress.position.is_some());
        return Err(Ended::Halted(table_fit::until_obeyed(halt, streamed, unrepairable)));
    }
    let look = connect::look(config, parts, &replication);
    let (_, published) = look
        .at(session.client())
        .await
        .map_err(|e| Ended::retry(Cause::Postgres, "looking at the publication", e))?;
    let found = decision::Found {
        published: &published,
        unpublished_once: false,
        unrepairable,
        has_delivered: known.has_delivered,
    };
    let decided = decision::decide(
        config,
        parts,
        session,
        &mut replication,
        &identity,
        stored.as_ref(),
        found,
    );
    let decision = decided.await?.decision;
    if !matches!(decision, Decision::Stream { .. } | Decision::Wait { .. }) {
        tables.must_fit()?;
    }
    Ok(decision)
}
