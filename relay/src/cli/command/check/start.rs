//! What a start would do, and whether it could park an event.

use std::{iter, sync::Arc};

use tokio_postgres::Client;

use super::{Finding, SILENT, Verdict, ok, problem, warning};
use crate::{
    config::{Config, parts::Parts},
    core::{position::Position, printable::counted},
    daemon::{self, Rehearsed},
    dead_letter::{self, notice},
    postgres::{
        catalog::{
            InspectError,
            slot::{self, OpenTransaction},
        },
        sql::SqlSession,
    },
    reconcile::Decision,
    repair::Taken,
};

const NAME: &str = "start";

/// The start itself, without its consequences; what was found before is not said twice.
pub(super) async fn rehearsed(
    config: &Config,
    parts: &Parts,
    session: &Arc<SqlSession>,
    has_progress: bool,
    before: &[Finding],
) -> Vec<Finding> {
    let name = &config.postgres.slot;
    let rehearsed = daemon::rehearse(config, parts, session, has_progress).await;
    vec![match rehearsed {
        Rehearsed::Halts(halt) => {
            let is_part = |finding: &&Finding| {
                finding.verdict == Verdict::Problem && halt.reason.contains(&finding.seen)
            };
            let parts = before.iter().filter(is_part);
            let parts: Vec<&str> = parts.map(|finding| finding.seen.as_str()).collect();
            if parts.join("; ") == halt.reason {
                return Vec::new();
            }
            problem(NAME, halt.reason, halt.remedy)
        }
        Rehearsed::Fails { error, remedy } if !remedy.is_empty() => problem(NAME, error, remedy),
        Rehearsed::Fails { error, .. } => problem(
            NAME,
            error,
            "see that pg_hba.conf lets the role connect to the database, that no pooler is between, \
             and that the brokers answer",
        ),
        Rehearsed::Starts { decision, looked, taken } => {
            // What can't be asked is not said.
            let open = slot::writers_waited_for(session.client()).await.unwrap_or_default();
            let found = starts(name, &decision, looked);
            let found = after_problems(waiting(found, &decision, open), before);
            // A relay that streams knows more of them.
            let taken = match decision {
                Decision::Wait { .. } => Vec::new(),
                _ => taken,
            };
            let told =
                taken.into_iter().map(|Taken { reason, remedy, .. }| warning(NAME, reason, remedy));
            return iter::once(found).chain(told).collect();
        }
    }]
}

/// What a start would do if nothing else kept it from starting.
fn after_problems(found: Finding, before: &[Finding]) -> Finding {
    let any = before.iter().any(|finding| finding.verdict == Verdict::Problem);
    let seen = match any {
        true => format!("once the problems above are fixed: {}", found.seen),
        false => found.seen,
    };
    Finding { seen, ..found }
}

/// The rehearsal's findings; where it has not ended because it reads much progress, that.
pub(super) fn or_still_reading(found: Vec<Finding>, parts: &Parts) -> Vec<Finding> {
    let only_silent = found.iter().all(|finding| finding.seen.starts_with(SILENT));
    match parts.sink.long_reading().filter(|_| only_silent) {
        Some((seen, remedy)) => vec![warning(NAME, seen, remedy)],
        None => found,
    }
}

/// An open transaction may well end by itself within this.
const PASSES_SECONDS: f64 = 10.0;

/// The same, with the open transactions that keep the slot from being made, or would.
fn waiting(found: Finding, decision: &Decision, mut open: Vec<OpenTransaction>) -> Finding {
    let making = match decision {
        Decision::Wait { making: true, .. } => true,
        Decision::MakeSlot { .. } | Decision::Repair { .. } => false,
        Decision::Wait { .. } | Decision::Stream { .. } | Decision::FinishRepair => return found,
    };
    let lasts = |it: &OpenTransaction| it.age_seconds.is_some_and(|age| age > PASSES_SECONDS);
    open.retain(|it| making || it.prepared.is_some() || lasts(it));
    if open.is_empty() {
        return found;
    }
    let open = slot::in_words(&open);
    let seen = format!("{}. First these open transactions must end: {open}", found.seen);
    let remedy = "wait until they have ended, or end them: nothing is published before";
    if making { problem(NAME, seen, remedy) } else { warning(NAME, seen, remedy) }
}

/// What it would do, where nothing halts it.
fn starts(slot: &str, decision: &Decision, looked: bool) -> Finding {
    const LATER: &str = "the tables did not say within some seconds whether rows of it are gone: the start \
                         looks again, and halts with the interval if any are";
    match decision {
        Decision::Stream { from: Position::Row(event) } => {
            ok(NAME, format!("streams what comes after the event {event}"))
        }
        Decision::Stream { from: Position::UpTo(end) } => {
            ok(NAME, format!("streams what comes after {end}"))
        }
        Decision::MakeSlot { .. } => ok(NAME, format!("makes the slot {slot}")),
        Decision::Repair { lower: None, .. } => {
            ok(NAME, format!("makes the slot {slot}, and publishes the rows that are there"))
        }
        Decision::Repair { lower: Some(_), .. } => {
            let seen = format!(
                "recreates the slot {slot} by itself, and publishes from the tables what the slot would have sent"
            );
            warning(NAME, if looked { seen } else { format!("{seen}: {LATER}") }, "")
        }
        Decision::FinishRepair if looked => ok(NAME, "continues a repair".into()),
        Decision::FinishRepair => warning(NAME, format!("continues a repair; {LATER}"), ""),
        Decision::Wait { making: true, .. } => ok(NAME, format!("slot {slot} is being made")),
        Decision::Wait { pid, .. } => {
            ok(NAME, format!("slot {slot} is in use by the server's process {pid}"))
        }
    }
}

/// How much is in the table of dead letters.
pub(super) async fn parking(config: &Config, client: &Client) -> Result<Finding, InspectError> {
    const NAME: &str = "parking";
    let parked = dead_letter::count(client, &config.name).await;
    let failed = |source| InspectError::Query { what: "parked events", source };
    let lost = notice::open(client, &config.name).await.map_err(failed)?;
    if !lost.is_empty() {
        let lost: Vec<String> = lost.iter().map(|it| it.in_words(&config.name)).collect();
        return Ok(problem(NAME, format!("parked events are lost: {}", lost.join("; and ")), ""));
    }
    let parked = parked.map_err(failed)?;
    Ok(match parked.events {
        0 => ok(NAME, "may park events; none is parked".into()),
        events => warning(
            NAME,
            format!("parked: {} of {}", counted(events, "event"), counted(parked.lanes, "lane")),
            "outbox-relay dead-letters list",
        ),
    })
}
