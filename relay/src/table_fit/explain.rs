//! What is said of columns that don't serve, now or in rows of the stream.

use crate::{
    core::{halt::Halt, row::Relation},
    postgres::catalog::{slot::PublishedTable, table::TableState},
    route::{Misfit, TableName},
};

/// Publishes a table without a list of columns and without a filter. The publication's name is as SQL wants it.
pub(crate) fn publish_whole(publication_name: &str, name: &TableName) -> String {
    format!(
        "`begin; alter publication {publication_name} drop table {name}; alter publication \
         {publication_name} add table {name}; commit`"
    )
}

/// A generated column is in the table and not in the stream: to add it is no remedy.
pub(super) fn generated(misfit: &mut Misfit, name: &TableName, table: &TableState) {
    let column = table.columns.iter().find(|column| column.name == misfit.column);
    let Some(column) = column.filter(|column| !column.generated.is_empty()) else { return };
    let column = &column.name;
    misfit.what = format!(
        "the column {column} of {name} is generated, and PostgreSQL does not publish its values"
    );
    misfit.remedy = format!(
        "`alter table {name} alter column {column} drop expression`, and have writers or a trigger \
         fill it; name another column in the settings; or, on PostgreSQL 18 and a stored column, \
         add it to the publication's column list"
    );
}

/// A column that the table has and the publication's column list leaves out: the table is published whole.
pub(super) fn unlisted(
    misfit: &mut Misfit,
    publication_name: &str,
    listed: Option<&PublishedTable>,
    name: &TableName,
    table: &TableState,
) {
    let column = table.columns.iter().find(|column| column.name == misfit.column);
    let is_stored = column.is_some_and(|column| column.generated.is_empty());
    let names = listed.and_then(|listed| listed.columns.as_ref());
    let is_left_out = names.is_some_and(|names| !names.contains(&misfit.column));
    if !is_stored || !is_left_out {
        return;
    }
    misfit.what =
        format!("{}: the column list of publication {publication_name} leaves it out", misfit.what);
    misfit.remedy = publish_whole(publication_name, name);
}

/// All that is wrong with a table's columns, as one halt.
pub(crate) fn misfits(misfits: &[Misfit]) -> Halt {
    let all = |text: fn(&Misfit) -> &str| {
        let mut texts: Vec<&str> = Vec::new();
        for text in misfits.iter().map(text) {
            // One statement may correct several.
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        texts.join("; ")
    };
    Halt::new(all(|misfit| &misfit.what), all(|misfit| &misfit.remedy))
}

/// As [`misfits`], of rows in the stream: the table may have been changed since they were written, and even
/// back. The remedy is the setting that reaches them; what else does depends on what the table is like now.
pub(crate) fn written_otherwise(of: &[Misfit], relation: &Relation) -> Halt {
    let columns = relation.columns.iter().map(|column| column.name.as_str()).collect::<Vec<_>>();
    let reason = misfits(of).reason;
    // One that no setting corrects is enough.
    let earlier: Option<Vec<&str>> = of.iter().map(|misfit| misfit.earlier.as_deref()).collect();
    Halt::new(
        format!(
            "the next rows of the stream were written when {}.{} had the columns {}: {reason}",
            relation.schema,
            relation.table,
            columns.join(", ")
        ),
        match earlier {
            Some(settings) => format!("{}; then restart the relay", settings.join("; and ")),
            None => "no setting fits these rows".to_owned(),
        },
    )
}
