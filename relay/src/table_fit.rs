//! Whether a publication and a table serve, and the SQL that fixes them: shared by start-up, by a
//! look at the tables while streaming, and by `check`. Pure.
//!
//! The rule: every row that the table shows is in the stream, under the table's name. Where the
//! catalog says that some are not, nothing may be streamed past them. What is said of columns is in `explain`.

mod explain;

pub(crate) use self::explain::{misfits, publish_whole, written_otherwise};
use crate::{
    core::{
        halt::Halt,
        row::{Column, Relation},
    },
    postgres::catalog::{
        slot::{PublicationState, PublishedTable},
        table::{self, Hidden, TableState},
    },
    route::{Format, Mapping, Misfit, TableName, XID, quoted},
    source::intake::IntakeError,
};

/// The publication that `outbox-relay migrate` makes.
const OURS: &str = "outbox";

/// Why a table does not serve, by what may be streamed all the same.
#[derive(Debug)]
pub(crate) enum Unfit {
    /// Rows are written that would not be in the stream: nothing may be streamed past them.
    Unpublished(Halt),
    /// Its columns, as they are now. Rows that were written before they became so may well serve,
    /// and the stream has them in the shape that they were written in.
    Columns(Vec<Misfit>),
}

/// What the stream of a table that serves is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fit {
    /// That its rows need.
    pub(crate) format: Format,
    /// Whether its column `xid` is the transaction that inserted the row, and is in the stream.
    pub(crate) stamped: bool,
}

/// Looks at one table of the settings; `table` is `None` when there is none of its name.
///
/// # Errors
/// What is to be corrected first, of all that [`all`] finds.
pub(crate) fn fits(
    publication_name: &str,
    publication: Option<&PublicationState>,
    name: &TableName,
    table: Option<&TableState>,
    mapping: &Mapping,
) -> Result<Fit, Unfit> {
    let looked = all(publication_name, publication, name, table, mapping);
    looked.map_err(|unfit| unfit.into_iter().next().expect("it is not empty"))
}

/// As [`fits`], with all that is wrong.
///
/// # Errors
/// Each [`Unfit`] with what is missing and the SQL or setting that fixes it, in the order in which that is to
/// be done; not empty.
pub(crate) fn all(
    publication_name: &str,
    publication: Option<&PublicationState>,
    name: &TableName,
    table: Option<&TableState>,
    mapping: &Mapping,
) -> Result<Fit, Vec<Unfit>> {
    let Some(table) = table else {
        return Err(vec![Unfit::Unpublished(missing(publication, name, mapping))]);
    };
    let mut halts = Vec::new();
    if let Err(halt) = is_in_the_wal(name, table) {
        halts.push(halt);
        // What is no permanent table is replaced by another one, of which nothing is known here.
        if !table.can_be_logged() {
            return Err(halts.into_iter().map(Unfit::Unpublished).collect());
        }
    }
    halts.extend(hides_nothing(name, &table.hidden, mapping).err());
    let publication_name = &quoted(publication_name); // As SQL wants it, for the remedies.
    let columns = published(publication_name, publication, name, table, mapping, &mut halts);
    let mut unfit: Vec<Unfit> = halts.into_iter().map(Unfit::Unpublished).collect();
    let stamped = columns.iter().any(|c| c.name == XID && c.is_stamp());
    let binary = columns.iter().all(|column| column.binary);
    let columns = columns.iter().map(|c| Column { name: c.name.clone(), type_oid: c.type_oid });
    let TableName { schema, table: table_name } = name.clone();
    let relation = Relation { id: 0, schema, table: table_name, columns: columns.collect() };
    match mapping.format_for(&relation) {
        Ok(format) if unfit.is_empty() => {
            Ok(Fit { format: if binary { format } else { Format::Text }, stamped })
        }
        Ok(_) => Err(unfit),
        Err(mut found) => {
            let listed = publication.and_then(|publication| entry(publication, name));
            for misfit in &mut found {
                explain::generated(misfit, name, table);
                explain::unlisted(misfit, publication_name, listed, name, table);
            }
            unfit.push(Unfit::Columns(found));
            Err(unfit)
        }
    }
}

/// The columns that the stream has of the table, or will have once what is added to `halts` is corrected.
fn published<'a>(
    publication_name: &str,
    publication: Option<&PublicationState>,
    name: &TableName,
    table: &'a TableState,
    mapping: &Mapping,
    halts: &mut Vec<Halt>,
) -> Vec<&'a table::Column> {
    let listed = match publication {
        None => Err(no_publication(publication_name, name, mapping)),
        Some(publication) => listing(publication_name, publication, name, table),
    };
    let listed = listed.map_err(|halt| halts.push(halt)).ok();
    if publication.is_some_and(|publication| !publication.insert) {
        halts.push(Halt::new(
            format!("publication {publication_name} does not publish inserts"),
            format!("`alter publication {publication_name} set (publish = 'insert')`"),
        ));
    }
    if let Some(filter) = listed.and_then(|listed| listed.row_filter.as_ref()) {
        halts.push(Halt::new(
            format!(
                "publication {publication_name} publishes only those rows of {name} for which \
                 {filter} holds: the others are never in the stream"
            ),
            publish_whole(publication_name, name),
        ));
    }
    let names = listed.and_then(|listed| listed.columns.as_ref());
    let has_generated = publication.is_some_and(|publication| publication.generated.is_some());
    let is_published = |column: &&table::Column| {
        let named = names.is_none_or(|names| names.contains(&column.name));
        // Before 18 none of them is, also where the catalog lists it.
        named && (column.generated.is_empty() || has_generated)
    };
    table.columns.iter().filter(is_published).collect()
}

fn no_publication(publication_name: &str, name: &TableName, mapping: &Mapping) -> Halt {
    let create = format!(
        "`create publication {publication_name} for table {name} with (publish = 'insert', \
         publish_via_partition_root = true)`"
    );
    // The migration makes one of this name with its own table, and takes no other for it.
    let remedy = if publication_name == OURS && !mapping.is_ours() {
        format!(
            "run `outbox-relay migrate`, which makes it; or, where that says up to date: {create}"
        )
    } else {
        create
    };
    Halt::new(format!("there is no publication {publication_name}"), remedy)
}

/// There is no table of that name. A table stays in its publication when it is renamed or moved to another
/// schema, and events may wait in it: one that is made in its place would not have them.
fn missing(publication: Option<&PublicationState>, name: &TableName, mapping: &Mapping) -> Halt {
    let make = if mapping.is_ours() {
        "run `outbox-relay migrate`, or set outbox.tables to the table that there is"
    } else {
        "set outbox.tables to the table that there is"
    };
    // Of all tables of a database none is known to be this one, and a partition is none.
    let listed = publication.filter(|listed| listed.via_root && !listed.all_tables);
    let others = listed.into_iter().flat_map(|publication| &publication.tables);
    let others = others.filter(|other| !mapping.maps(&other.schema, &other.table));
    let back: Vec<String> = others
        .take(RENAMED_MAX)
        .map(|PublishedTable { schema, table, .. }| {
            let is = TableName { schema: schema.clone(), table: table.clone() };
            let moved = TableName { schema: name.schema.clone(), table: table.clone() };
            let mut statements = Vec::new();
            if *schema != name.schema {
                statements.push(format!("alter table {is} set schema {}", quoted(&name.schema)));
            }
            if *table != name.table {
                statements.push(format!("alter table {moved} rename to {}", quoted(&name.table)));
            }
            format!("if {is} is that table, which was renamed: `{}`", statements.join("; "))
        })
        .collect();
    let remedy = match back.is_empty() {
        true => make.to_owned(),
        false => format!("if outbox.tables is wrong, correct it; {}; else {make}", back.join("; ")),
    };
    Halt::new(format!("{NO_TABLE}{name}"), remedy)
}

const NO_TABLE: &str = "there is no table ";

/// The table that is missing, if that is the reason.
pub(crate) fn absent(reason: &str) -> Option<&str> {
    reason.strip_prefix(NO_TABLE)
}

/// Tables that are named as what another may be called now.
const RENAMED_MAX: usize = 3;

/// Rows that are written into it leave their trace in this server's WAL.
fn is_in_the_wal(name: &TableName, table: &TableState) -> Result<(), Halt> {
    let (what, why) = match table.kind.as_str() {
        "v" | "m" => ("a view", "which has no rows of its own that could be streamed"),
        "f" => ("a foreign table", "whose rows are in another server's WAL"),
        "r" | "p" => {
            return match table.persistence.as_str() {
                "u" => Err(Halt::new(
                    format!(
                        "{name} is unlogged: its rows are not in the WAL, so none is ever \
                         streamed, and a crash of the server empties it"
                    ),
                    format!("`alter table {name} set logged`"),
                )),
                "t" => Err(Halt::new(
                    format!("{name} is temporary: its rows are not in the WAL"),
                    "set outbox.tables to a permanent table",
                )),
                _ => Ok(()),
            };
        }
        _ => ("no table", "so no rows are inserted into it"),
    };
    Err(Halt::new(
        format!("{name} is {what}, {why}"),
        "set outbox.tables to the table that the events are inserted into",
    ))
}

/// Nothing below it keeps rows out of the stream. A child that is a table of the settings itself is
/// published as that.
fn hides_nothing(name: &TableName, hidden: &[Hidden], mapping: &Mapping) -> Result<(), Halt> {
    let is_mapped = |below: &&Hidden| {
        let streamed = below.inherits && below.kind != "f" && below.persistence == "p";
        streamed && mapping.maps(&below.schema, &below.table)
    };
    let (mut reasons, mut remedies) = (Vec::new(), Vec::new());
    for below in hidden.iter().filter(|below| !is_mapped(below)) {
        let Hidden { name: child, kind, persistence, inherits, .. } = below;
        let (reason, remedy) = match (kind.as_str(), persistence.as_str()) {
            ("f", _) => (
                format!("{child} is a foreign table: what is inserted into it is in another WAL"),
                if *inherits {
                    format!("`alter foreign table {child} no inherit {name}`")
                } else {
                    format!("`alter table {name} detach partition {child}`")
                },
            ),
            (_, "u") => (
                format!("{child} is unlogged: what is inserted into it is not in the WAL"),
                format!("`alter table {child} set logged`"),
            ),
            _ if *inherits => (
                format!(
                    "{child} inherits from {name}, and is published under its own name, if at all"
                ),
                format!(
                    "add {child} to outbox.tables and to the publication, or: `alter table {child} \
                     no inherit {name}`"
                ),
            ),
            _ => (
                format!("{child} is temporary: what is inserted into it is not in the WAL"),
                format!("`alter table {name} detach partition {child}`"),
            ),
        };
        reasons.push(reason);
        remedies.push(remedy);
    }
    if reasons.is_empty() {
        return Ok(());
    }
    Err(Halt::new(
        format!("{name} has rows that are never in its stream: {}", reasons.join("; ")),
        remedies.join("; "),
    ))
}

fn entry<'a>(publication: &'a PublicationState, name: &TableName) -> Option<&'a PublishedTable> {
    publication.tables.iter().find(|p| name.is(&p.schema, &p.table))
}

/// The publication's entry of the table.
fn listing<'a>(
    publication_name: &str,
    publication: &'a PublicationState,
    name: &TableName,
    table: &TableState,
) -> Result<&'a PublishedTable, Halt> {
    entry(publication, name).ok_or_else(|| {
        let statement = format!("alter publication {publication_name} add table {name}");
        let add = format!("`{statement}`");
        let remedy = match &table.root {
            Some(root) if publication.via_root => {
                format!("set outbox.tables to {root}, of which it is a partition; or: {add}")
            }
            _ if publication.via_root => add,
            // Without it the leaves of a partitioned table are published under their own names: whether the table is
            // part of it the next look tells.
            _ if table.kind == "p" && !publication.tables.is_empty() => {
                format!("`alter publication {publication_name} set (publish_via_partition_root = true)`")
            }
            _ => format!(
                "`alter publication {publication_name} set (publish_via_partition_root = true); {statement}`"
            ),
        };
        let how = match table.kind == "p" && !publication.via_root && !publication.tables.is_empty() {
            true => " under its own name, but perhaps its partitions under theirs",
            false => "",
        };
        Halt::new(format!("publication {publication_name} does not publish {name}{how}"), remedy)
    })
}

const BY_ITSELF: &str = "once that is done the relay publishes it from the table by itself, or halts with the \
                         interval where rows may have been deleted meanwhile";

/// What becomes of the rows that are written until somebody has obeyed, where something was streamed
/// before.
pub(crate) fn until_obeyed(halt: Halt, streamed: bool, unrepairable: Option<&Halt>) -> Halt {
    if !streamed {
        return halt;
    }
    let Halt { reason, remedy } = halt;
    let reason = format!("{reason}: what is written meanwhile may not be in the stream");
    // Nothing is done to a table that the settings are to name no more.
    let unrepairable = unrepairable.filter(|_| remedy.contains('`'));
    let (remedy, then) = match unrepairable {
        None => (remedy, BY_ITSELF.to_owned()),
        // A right is granted first: with it, the rest is published from the table by itself.
        Some(Halt { remedy: grant, .. }) if grant.starts_with("`grant ") => {
            let who = match remedy.contains("`alter publication ") {
                true => "as the owner of publication and table, ",
                false => "",
            };
            (format!("as the table's owner, {grant}; then, {who}{remedy}"), BY_ITSELF.to_owned())
        }
        Some(Halt { reason, remedy: first }) => {
            let then = format!(
                "the relay then halts once more and names the interval, because {reason}; to have it \
                 published from the table by itself, first: {first}"
            );
            (remedy, then)
        }
    };
    Halt::new(reason, format!("{remedy}; {then}"))
}

impl TableState {
    /// Whether one statement makes of it a table whose rows are in the WAL.
    fn can_be_logged(&self) -> bool {
        ["r", "p"].contains(&self.kind.as_str()) && self.persistence == "u"
    }
}

impl From<Halt> for IntakeError {
    fn from(halt: Halt) -> Self {
        IntakeError::DoesNotFit { what: halt.reason, remedy: halt.remedy }
    }
}

#[cfg(test)]
mod tests;
