//! Which tables can be read for a repair, and the statement that reads one.

use std::fmt::Write as _;

use super::{
    id::Id,
    sql::{NOW, full_xid, hexadecimal, identifier, literal, visible},
};
use crate::{
    core::{
        halt::Halt,
        progress::RepairRecord,
        row::{Column, Relation},
    },
    postgres::catalog::table::{self, TableState},
    route::{Mapping, TableName, XID, quoted},
};

/// `pg_type.oid` of what these columns must be.
pub(super) const XID8: u32 = 5069;
pub(super) const TIMESTAMP: u32 = 1114;
pub(super) const TIMESTAMPTZ: u32 = 1184;
pub(super) const BYTEA: u32 = 17;
const UUID: u32 = 2950;
/// Types whose text form is ASCII: bool, bytea, the integers, the timestamps, uuid, xid8.
const ASCII: [u32; 9] = [16, BYTEA, 20, 21, 23, TIMESTAMP, TIMESTAMPTZ, UUID, XID8];
/// A value longer than this is left out of a row that is too large to be a record anyway.
pub(super) const KEPT_BYTES: usize = 64 << 10;

/// A table that can be read: its mapped columns, and those that give the order.
#[derive(Clone, Debug)]
pub struct Table {
    /// The mapped columns and `xid`, as the stream would announce them.
    pub(super) relation: Relation,
    pub(super) name: TableName,
    /// Whether an account is kept of rows that are deleted.
    pub(super) noted: bool,
    /// Whether each row that is inserted has its transaction's id, by which it is told what is published.
    pub(super) stamped: bool,
    /// What inherits from it is no part of it: the stream has that under its own name.
    only: bool,
    id: Id,
    created_at: String,
    /// The column of the topic, where one has it.
    pub(super) topic: Option<String>,
}

/// Whether a table can be read for a repair. That the mapping fits it is somebody else's question.
///
/// # Errors
/// [`Halt`] with what is missing, and the SQL or setting that corrects it.
pub fn fits(name: &TableName, table: &TableState, mapping: &Mapping) -> Result<Table, Halt> {
    let columns = &table.columns;
    if !table.usable {
        return Err(Halt::new(
            format!("the relay's role {} may not use the schema of {name}", table.role),
            format!("`grant usage on schema {} to {}`", quoted(&name.schema), table.role),
        ));
    }
    if !table.readable {
        return Err(Halt::new(
            format!("the relay's role {} may not read {name}", table.role),
            format!("`grant select on {name} to {}`", table.role),
        ));
    }
    if table.row_security {
        return Err(Halt::new(
            format!("the relay's role sees only those rows of {name} that its policies let it see"),
            format!("`alter role {} bypassrls`", table.role),
        ));
    }
    let find = |name: &str| columns.iter().find(|column| column.name == name);
    let xid = find(XID).filter(|column| column.type_oid == XID8);
    let stamped = xid.is_some_and(table::Column::is_stamp);
    if !xid.is_some_and(|column| column.not_null) {
        let alter = match xid {
            Some(_) => format!(
                "update {name} set xid = pg_current_xact_id() where xid is null; alter table {name} \
                 alter column xid set default pg_current_xact_id(), alter column xid set not null"
            ),
            None => format!(
                "alter table {name} add column xid xid8 not null default pg_current_xact_id()"
            ),
        };
        return Err(Halt::new(
            format!("{name} has no column xid of type xid8 that is never null"),
            format!("`{alter}` (rows that are there get the altering transaction's)"),
        ));
    }
    let created_at = mapping.created_at_column().and_then(find);
    let is_time = |column: &&table::Column| [TIMESTAMP, TIMESTAMPTZ].contains(&column.type_oid);
    let Some(created_at) = created_at.filter(|column| column.not_null).filter(is_time) else {
        return Err(Halt::new(
            format!(
                "{name} has no timestamp that is never null, by which its rows could be ordered"
            ),
            match created_at {
                Some(column) if is_time(&column) => {
                    format!(
                        "`alter table {name} alter column {} set not null`",
                        quoted(&column.name)
                    )
                }
                _ => format!(
                    "name one in outbox.columns.created_at; where there is none: `alter table {name} add \
                     column created_at timestamptz not null default clock_timestamp()`"
                ),
            },
        ));
    };
    let Some(id) = find(mapping.id_column()).filter(|column| column.not_null) else {
        let id = mapping.id_column();
        let column = quoted(id);
        let is_uuid = find(mapping.id_column()).is_some_and(|it| it.type_oid == UUID);
        let is_ours = (name.schema.as_str(), name.table.as_str()) == ("outbox", "events");
        // One that was dropped and added again is empty.
        let fill = match is_uuid {
            true => {
                format!("update {name} set {column} = outbox.uuid_v7() where {column} is null; ")
            }
            false => String::new(),
        };
        let default = match is_uuid && is_ours {
            true => format!(", alter column {column} set default outbox.uuid_v7()"),
            false => String::new(),
        };
        return Err(Halt::new(
            format!("the column {id} of {name} may be null, and gives no order then"),
            format!(
                "`{fill}alter table {name} alter column {column} set not null{default}`. What was published of rows \
                 without an id comes again, under the ids that they get"
            ),
        ));
    };
    // By their transaction those are known that were parked already.
    let columns = columns.iter().filter(|column| mapping.reads(&column.name) || column.name == XID);
    let columns = columns
        .map(|column| Column { name: column.name.clone(), type_oid: column.type_oid })
        .collect();
    let id = Id::of(id);
    let (only, noted) = (table.kind != "p", table.deletions_noted);
    let TableName { schema, table } = name.clone();
    Ok(Table {
        relation: Relation { id: 0, schema, table, columns },
        name: name.clone(),
        noted,
        stamped,
        only,
        id,
        created_at: created_at.name.clone(),
        topic: mapping.topic_column().map(str::to_owned),
    })
}

impl Table {
    /// The first of which rows can't be told from published ones, by its name.
    pub fn first_unstamped(tables: &[Table]) -> Option<String> {
        tables.iter().find(|table| !table.stamped).map(|table| table.name.to_string())
    }

    /// The same, told apart from others by its place among them.
    pub(super) fn numbered(mut self, number: u32) -> Self {
        self.relation.id = number;
        self
    }

    pub(super) fn sql_name(&self) -> String {
        format!("{}.{}", identifier(&self.name.schema), identifier(&self.name.table))
    }

    /// As it is read from.
    pub(super) fn from(&self) -> String {
        let only = if self.only { "only " } else { "" };
        format!("{only}{}", self.sql_name())
    }

    /// The rows of a repair that are still to be delivered, in order: `created_at` in microseconds,
    /// id, size in bytes, whether it lies past the cursor, then the mapped columns. `among` is how
    /// many tables are read: a cursor names no table, so that among several what shares its moment
    /// is read again. `raw` writes texts in hexadecimal digits.
    pub(super) fn select(
        &self,
        under_way: &RepairRecord,
        record_bytes_max: usize,
        among: usize,
        raw: bool,
    ) -> String {
        let (table, id, moment) = (self.from(), self.id.sql(raw), self.moment());
        // One row that makes the statement fail would hold up all others.
        let mut size = String::from("0::pg_catalog.int8");
        let (mut inner, mut outer) = (String::new(), String::new());
        for (n, column) in self.relation.columns.iter().enumerate() {
            let bytes = |of: &str| match column.type_oid {
                BYTEA => format!("pg_catalog.octet_length({of})"),
                _ => format!("pg_catalog.octet_length({of}::pg_catalog.text)"),
            };
            let name = format!("t.{}", identifier(&column.name));
            // Writing to a String does not fail.
            let _ = write!(size, " + coalesce({}, 0)", bytes(&name));
            let _ = write!(inner, ", {name} as c{n}");
            let value = format!("c{n}");
            let written = match raw && is_text(column) {
                true => hexadecimal(&value),
                false => value.clone(),
            };
            let _ = write!(
                outer,
                ", case when size <= {record_bytes_max} or {} <= {KEPT_BYTES} then {written} end",
                bytes(&value)
            );
        }
        let mut wanted = visible(&under_way.upper);
        if let Some(lower) = &under_way.lower {
            let _ = write!(wanted, " and not {}", visible(lower));
        }
        let wanted = wanted + &self.of_then(under_way);
        let (past, wanted) = self.past(under_way, &moment, &id, among, wanted);
        // `offset 0` has each row's size computed once.
        format!(
            "select moment, id, size, past{outer} from ( \
                 select {moment} as moment, {id} as id, {size} as size, {past} as past{inner} \
                 from {table} t where {wanted} offset 0) r \
             order by r.moment, r.id"
        )
    }

    /// A row's `created_at`, in microseconds since the Unix epoch.
    pub(super) fn moment(&self) -> String {
        let created_at = identifier(&self.created_at);
        format!(
            "case when pg_catalog.isfinite(t.{created_at}) \
                  then least(greatest(extract(epoch from t.{created_at}) * 1000000, {min}), \
                      {max})::pg_catalog.int8 \
                  when t.{created_at} > '2000-01-01' then {max} else {min} end",
            max = i64::MAX,
            min = -i64::MAX
        )
    }

    /// Leaves out what was inserted into a table that was attached since: whoever streams asks about that. Rows that were
    /// moved there belong to this repair.
    fn of_then(&self, under_way: &RepairRecord) -> String {
        let oids = under_way.leaves.oids();
        if oids.is_empty() || self.only {
            return String::new();
        }
        let oids = oids.iter().map(|oid| format!("{oid}::pg_catalog.oid")).collect::<Vec<_>>();
        format!(
            " and (t.tableoid = any (array[{}]) or t.{XID} <> {})",
            oids.join(", "),
            full_xid("t.xmin", NOW)
        )
    }

    /// Whether a row lies past the cursor, and which rows are wanted. A row that was changed since the
    /// repair began may have been moved across the cursor, so it is read wherever it is now.
    fn past(
        &self,
        under_way: &RepairRecord,
        moment: &str,
        id: &str,
        among: usize,
        wanted: String,
    ) -> (String, String) {
        let past = match &under_way.cursor {
            None => return ("true".to_owned(), wanted),
            Some((at, last)) if among == 1 => {
                format!("({moment}, {id}) > ({at}, {}::{})", literal(last), self.id.cast)
            }
            Some((at, _)) => format!("{moment} >= {at}"),
        };
        let upper = literal(&under_way.upper);
        let end = format!("pg_catalog.pg_snapshot_xmax({upper}::pg_catalog.pg_snapshot)");
        let version = full_xid("t.xmin", &end);
        let changed = format!(
            "({version} < pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot()) and not \
             pg_catalog.pg_visible_in_snapshot({version}, {upper}::pg_catalog.pg_snapshot))"
        );
        let wanted = format!("{wanted} and ({past} or {changed})");
        (past, wanted)
    }
}

/// Whether the text form of its values may have no form in UTF-8; that of the others is ASCII.
pub(super) fn is_text(column: &Column) -> bool {
    !ASCII.contains(&column.type_oid)
}
