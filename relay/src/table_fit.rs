//! Whether a publication and a table serve, and the SQL that mends them: shared by start-up, by a
//! change of the table while streaming, and by `check`. Pure.

use crate::{
    reconcile::Halt,
    route::{Format, Mapping, Misfit, TableName},
    row::{Column, Relation},
    source::{intake::IntakeError, slot},
};

/// Why a table does not serve, by what may be streamed all the same.
#[derive(Debug)]
pub(crate) enum Unfit {
    /// Rows are written that would not be in the stream: nothing may be streamed past them.
    Unpublished(Halt),
    /// Its columns, as they are now. Rows that were written before they became so may well serve,
    /// and the stream has them in the shape that they were written in.
    Columns(Halt),
}

/// Looks at one table of the settings. `columns` are those of the catalog, empty when there is no
/// such table.
///
/// # Errors
/// [`Unfit`] with what is missing and the SQL or setting that mends it.
pub(crate) fn fits(
    publication_name: &str,
    publication: Option<&slot::PublicationState>,
    table: &TableName,
    columns: Vec<slot::Column>,
    mapping: &Mapping,
) -> Result<Format, Unfit> {
    published_columns(publication_name, publication, table, columns)
        .map_err(Unfit::Unpublished)
        .and_then(|columns| {
            let TableName { schema, table } = table.clone();
            let fit = mapping.format_for(&Relation { id: 0, schema, table, columns });
            fit.map_err(|found| Unfit::Columns(misfits(&found)))
        })
}

/// The columns that the stream has of a table.
fn published_columns(
    publication_name: &str,
    publication: Option<&slot::PublicationState>,
    table: &TableName,
    columns: Vec<slot::Column>,
) -> Result<Vec<Column>, Halt> {
    let TableName { schema, table: name } = table;
    if columns.is_empty() {
        return Err(Halt::new(
            format!("there is no table {table}"),
            "run `outbox-relay migrate`, or set outbox.tables to the table that there is",
        ));
    }
    let Some(publication) = publication else {
        return Err(Halt::new(
            format!("there is no publication {publication_name}"),
            format!(
                "run `outbox-relay migrate`, or: create publication {publication_name} for table \
                 {table} with (publish = 'insert', publish_via_partition_root = true)"
            ),
        ));
    };
    let published = publication.tables.iter().find(|p| p.schema == *schema && p.table == *name);
    let Some(published) = published else {
        let add = format!("alter publication {publication_name} add table {table}");
        let remedy = if publication.via_root {
            add
        } else {
            // Without it the leaves of a partitioned table are published under their own names.
            format!(
                "alter publication {publication_name} set (publish_via_partition_root = true); \
                 and if the table is not part of it: {add}"
            )
        };
        return Err(Halt::new(
            format!("publication {publication_name} does not publish {table}"),
            remedy,
        ));
    };
    if !publication.insert {
        return Err(Halt::new(
            format!("publication {publication_name} does not publish inserts"),
            format!("alter publication {publication_name} set (publish = 'insert')"),
        ));
    }
    let is_published = |column: &slot::Column| {
        published.columns.as_ref().is_none_or(|names| names.contains(&column.name))
    };
    let columns = columns.into_iter().filter(is_published);
    Ok(columns.map(|slot::Column { name, type_oid, .. }| Column { name, type_oid }).collect())
}

/// All that is wrong with a table's columns, as one halt.
pub(crate) fn misfits(misfits: &[Misfit]) -> Halt {
    let all = |text: fn(&Misfit) -> &str| misfits.iter().map(text).collect::<Vec<_>>().join("; ");
    Halt::new(all(|misfit| &misfit.what), all(|misfit| &misfit.remedy))
}

impl From<Halt> for IntakeError {
    fn from(halt: Halt) -> Self {
        IntakeError::DoesNotFit { what: halt.reason, remedy: halt.remedy }
    }
}
