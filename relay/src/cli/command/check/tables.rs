//! The mapped tables: their columns, and what can be known of their rows.

use tokio_postgres::Client;

use super::{Finding, ok, problem, warning};
use crate::{
    config::Config,
    postgres::catalog::{
        InspectError, slot,
        table::{self, TableState},
    },
    repair,
    route::{Mapping, Misfit, TableName, XID, quoted},
    table_fit::{self, Fit, Unfit},
};

/// OIDs of `bigint`, `smallint`, `integer` and `numeric`.
const NUMBERS: [u32; 4] = [20, 21, 23, 1700];

/// What is wrong with a table.
pub(super) fn unfit(unfit: Unfit) -> Vec<Finding> {
    match unfit {
        Unfit::Unpublished(halt) => vec![problem("table", halt.reason, halt.remedy)],
        Unfit::Columns(misfits) => {
            let each = |misfit: Misfit| problem("table", misfit.what, misfit.remedy);
            misfits.into_iter().map(each).collect()
        }
    }
}

/// Where the migrations or the rights are not there yet: what is wrong with tables that they don't make, and
/// that nothing of them corrects.
pub(super) async fn of_others(
    config: &Config,
    mapping: &Mapping,
    client: &Client,
) -> Result<Vec<Finding>, InspectError> {
    let publication_name = &config.postgres.publication;
    let publication = slot::inspect_publication(client, publication_name).await?;
    let mut findings = Vec::new();
    for table in mapping.tables().iter().filter(|table| table.schema != "outbox") {
        let state = table::inspect(client, &table.schema, &table.table).await?;
        let found =
            table_fit::all(publication_name, publication.as_ref(), table, state.as_ref(), mapping);
        let mut found = found.err().unwrap_or_default();
        // Without a publication each table would be said to lack one.
        if publication.is_none() && state.is_some() {
            found.retain(|unfit| matches!(unfit, Unfit::Columns(_)));
        }
        findings.extend(found.into_iter().flat_map(unfit));
    }
    Ok(findings)
}

/// Tables that count their rows have events of the same ids, and a consumer knows an event by that alone.
pub(super) fn same_ids(tables: &[(&TableName, TableState)], mapping: &Mapping) -> Option<Finding> {
    let id = mapping.id_column();
    let counts = |state: &TableState| {
        let column = state.columns.iter().find(|column| column.name == id);
        column.is_some_and(|column| NUMBERS.contains(&column.type_oid))
    };
    let counting = tables.iter().filter(|(_, state)| counts(state));
    let counting: Vec<String> = counting.map(|(name, _)| name.to_string()).collect();
    (counting.len() > 1).then(|| {
        warning(
            "ids",
            format!(
                "the ids of {} are numbers: two of these tables may have an event of the same id, and a \
                 consumer that reads both takes the second one for a repetition, and leaves it out",
                counting.join(", ")
            ),
            "give all but one of them ids that no other has, such as uuid; or use a consumer name for each \
             topic (docs/EXISTING-TABLE.md)",
        )
    })
}

/// The constraint of the migrations that keeps out what PostgreSQL could not decode.
const LIMIT: &str = "add constraint events_bytes check (octet_length(topic) + octet_length(coalesce(key, '')) \
    + octet_length(coalesce(type, '')) + octet_length(headers::text) \
    + coalesce(octet_length(payload::text), 0) <= 268435456) not valid";

/// That our table of events has lost its limit.
pub(super) async fn unlimited(
    name: &TableName,
    client: &Client,
) -> Result<Option<Finding>, InspectError> {
    if !name.is("outbox", "events") {
        return Ok(None);
    }
    let sql = "select not exists (select from pg_catalog.pg_constraint \
               where conrelid operator(pg_catalog.=) 'outbox.events'::pg_catalog.regclass \
                   and conname operator(pg_catalog.=) 'events_bytes')";
    let missing = client.query_one(sql, &[]).await.and_then(|row| row.try_get::<_, bool>(0));
    let failed = |source| InspectError::Query { what: "the constraints of outbox.events", source };
    Ok(missing.map_err(failed)?.then(|| {
        warning(
            "table",
            "outbox.events lacks the constraint events_bytes of the migrations: PostgreSQL can't decode a row of \
             nearly 1 GB, and no later event would be published"
                .to_owned(),
            format!("`alter table outbox.events {LIMIT}`"),
        )
    }))
}

/// What the relay can tell of a table's rows when they come again, or their slot is lost.
pub(super) fn rows(
    publication_name: &str,
    name: &TableName,
    fit: Fit,
    state: &TableState,
    mapping: &Mapping,
    rows_kept: bool,
) -> Finding {
    let repairable = repair::fits(name, state, mapping)
        .and_then(|table| if rows_kept { Ok(()) } else { repair::accounted_for(&table) });
    let (mut seen, mut remedies) = (Vec::new(), Vec::new());
    if let Err(halt) = repairable {
        seen.push(format!("a lost slot can't be repaired from {name}: {}", halt.reason));
        remedies.push(halt.remedy);
    }
    let has_xid = || state.columns.iter().any(|column| column.name == XID);
    if !fit.stamped && (state.kind == "p" || seen.is_empty() || has_xid()) {
        let (why, remedy) = unstamped(publication_name, name, state);
        let rows = if seen.is_empty() { format!("rows of {name}") } else { "rows".to_owned() };
        seen.push(format!("{rows} that are moved between its partitions are published again{why}"));
        remedies.extend(has_xid().then_some(remedy));
    }
    match seen.is_empty() {
        false => warning("rows", seen.join("; and "), remedies.join("; ")),
        true => ok(
            "rows",
            format!(
                "if the slot is lost, the rows of {name} that are not published are published from the table; a \
                 row that is moved to another partition is not published again"
            ),
        ),
    }
}

/// Why the stream does not tell which transaction inserted a row, and what corrects that.
fn unstamped(publication_name: &str, name: &TableName, state: &TableState) -> (String, String) {
    // The default is right, so only the publication's column list can keep it out of the stream.
    if state.columns.iter().any(|column| column.name == XID && column.is_stamp()) {
        let publication_name = quoted(publication_name);
        return (
            format!(
                ": the column list of publication {publication_name} leaves out the column xid"
            ),
            format!(
                "{}; the relay may then make a new slot and publish from the table what was committed since its \
                 newest snapshot, some of it again",
                table_fit::publish_whole(&publication_name, name)
            ),
        );
    }
    (
        ", and a lost slot is not repaired without a person: the stream has no column xid whose default is \
         pg_current_xact_id()"
            .to_owned(),
        format!(
            "`alter table {name} alter column xid set default pg_current_xact_id()`; a relay that has published of \
             the table then halts, because it can't tell which rows came meanwhile, and names what loses nothing"
        ),
    )
}

#[cfg(test)]
mod tests {
    use outbox_migrations::Set;

    use super::*;

    #[test]
    fn the_constraint_is_the_only_one_that_the_migrations_add_to_the_events_and_has_their_words() {
        let files = Set::Outbox.migrations().iter().map(|migration| migration.sql);
        let words = files.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ");
        let words = words.replace("( ", "(").replace(" )", ")");
        assert_eq!(words.matches("add constraint ").count(), 1);
        assert!(words.contains(LIMIT), "{LIMIT}");
    }
}
