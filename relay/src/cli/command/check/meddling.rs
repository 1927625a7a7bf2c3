//! What others have put on our tables: rows that it keeps out are missed by no one but their writer.

use tokio_postgres::Client;

use super::{Finding, problem, warning};
use crate::{
    config::parts::Parts,
    dead_letter::restored,
    postgres::catalog::{InspectError, altered, blame, meddling, table},
    route::TableName,
};

/// Events. Tables of others may have any trigger.
pub(super) async fn events(
    name: &TableName,
    client: &Client,
) -> Result<Option<Finding>, InspectError> {
    if (name.schema.as_str(), name.table.as_str()) != ("outbox", "events") {
        return Ok(None);
    }
    let found = meddling::on(client, &name.schema, &name.table).await?;
    Ok((!found.is_empty()).then(|| {
        warning(
            "triggers",
            format!(
                "a trigger before each row, or a rule, may keep events out of {name} or change them, and \
                 no one would notice: outbox.publish returns an id all the same. A row whose xid it changes is taken for \
                 a moved one, and not published"
            ),
            format!(
                "if it is to do neither, `{}`; a trigger that runs after each row may take its place",
                found.join("; ")
            ),
        )
    }))
}

/// Which table of the relay has rows that are hidden from it.
pub(super) async fn hidden(
    parts: &Parts,
    relay: &str,
    client: &Client,
) -> Result<Vec<Finding>, InspectError> {
    let found = blame::look(client, &parts.own_tables(), relay).await?;
    Ok(found.into_iter().filter(altered::Altered::hides).map(finding).collect())
}

/// What else was changed on the relay's tables; and whether one lacks a column. To be asked of a database that has all
/// migrations.
pub(super) async fn altered(
    parts: &Parts,
    relay: &str,
    client: &Client,
) -> Result<(Vec<Finding>, bool), InspectError> {
    let found = blame::look(client, &parts.own_tables(), relay).await?;
    let lacks = found.iter().any(altered::Altered::is_absent);
    Ok((found.into_iter().map(finding).collect(), lacks))
}

fn finding(it: altered::Altered) -> Finding {
    let (may, is_of_ids) = (it.may(), it.is_of_ids());
    let parks = it.seen.contains("outbox.dead_letters");
    let name = if it.is_absent() && !parks { "migrations" } else { "parking" };
    let (seen, remedy) = altered::in_words(&[it]);
    if is_of_ids {
        let meaning = "where it gives none that is free, the relay numbers parked events after the highest id";
        return warning(name, format!("{seen}: {meaning}"), remedy);
    }
    if may {
        let meaning = "if it refuses one, the relay halts, and nothing is lost";
        return warning(name, format!("{seen}: {meaning}"), remedy);
    }
    let meaning = "the relay halts as soon as it needs the table, and nothing is lost";
    problem(name, format!("{seen}: {meaning}"), remedy)
}

/// Parked events that came from a copy of their table.
pub(super) async fn restored(
    relay: &str,
    client: &Client,
) -> Result<Option<Finding>, InspectError> {
    let found = restored::count(client, relay).await;
    let found =
        found.map_err(|source| InspectError::Query { what: "outbox.dead_letters", source })?;
    Ok(found.map(|found| {
        let (seen, remedy) = restored::in_words(&found);
        warning("parking", seen, remedy)
    }))
}

/// What keeps rows out of the relay's own tables, or loses them.
pub(super) async fn own(parts: &Parts, client: &Client) -> Result<Vec<Finding>, InspectError> {
    let mut findings = Vec::new();
    for (table, name, rows, after) in [
        ("dead_letters", "parking", "parked events", "it is empty"),
        ("progress", "progress", "the relay's progress", "it is empty, and the relay halts"),
    ] {
        let full = format!("outbox.{table}");
        if !parts.own_tables().contains(&full.as_str()) {
            continue;
        }
        let found = meddling::on(client, "outbox", table).await?;
        if !found.is_empty() {
            let seen = format!(
                "a trigger before each row, or a rule, may keep {rows} out of {full}, or change them"
            );
            findings.push(problem(name, seen, format!("`{}`", found.join("; "))));
        }
        let state = table::inspect(client, "outbox", table).await?;
        if state.is_some_and(|state| state.persistence == "u") {
            let seen = format!(
                "{full} is unlogged: after a crash of the server {after}, and a standby has nothing of it"
            );
            findings.push(problem(name, seen, format!("`alter table {full} set logged`")));
        }
    }
    Ok(findings)
}
