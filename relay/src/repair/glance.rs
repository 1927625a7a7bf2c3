//! Some rows of a table as records: what a doctor judges in advance by what there is.
//!
//! Unlike a repair it asks nothing of the table but its mapped columns, and ends in time whatever the
//! table holds: so many rows, so many bytes, so much of the server's time.

use std::{fmt::Write as _, time::Duration};

use tokio_postgres::{Client, Error, SimpleQueryMessage};

use super::{
    reader::put,
    sql::{hexadecimal, identifier, literal},
    tables::{BYTEA, KEPT_BYTES, TIMESTAMP, TIMESTAMPTZ, XID8, is_text},
};
use crate::{
    core::{
        charset::Charset,
        lsn::Lsn,
        position::RowPosition,
        record::Batch,
        row::{Column, Relation, Row, Tuple},
    },
    postgres::catalog::table::TableState,
    route::{Mapping, Origin, Router, TableName, XID},
};

/// Rows of one look.
pub const ROWS_MAX: usize = 500;
/// Bytes of them, unless the first alone has more.
const BYTES_MAX: usize = 8 << 20;

/// Which rows.
#[derive(Clone, Copy, Debug)]
pub enum Which<'a> {
    /// The newest, as far as ids tell; only `recent` ones, where the table tells their time: what was written
    /// long ago says little of what will be.
    Newest {
        /// Leave out what was created more than a day ago.
        recent: bool,
    },
    /// The oldest that the slot may still have to send; that any may be waiting for a first start.
    Waiting {
        /// `None` where there is no slot yet.
        slot: Option<&'a str>,
    },
}

/// Where the rows are.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Whose events they are: those that this relay has parked, at any time, are left out.
    pub relay: &'a str,
    /// Its name.
    pub name: &'a TableName,
    /// What the catalog says of it.
    pub state: &'a TableState,
    /// How a row becomes a record.
    pub mapping: &'a Mapping,
    /// The database's.
    pub charset: &'a Charset,
    /// Bytes of a row that is taken.
    pub record_bytes_max: usize,
}

/// Adds rows to `batch`, whose limits are the caller's; what can't be a record is in `batch.unfit`.
/// `false` where the server did not have them in `time`, or they can't be told.
///
/// # Errors
/// The database's.
pub async fn glance(
    client: &Client,
    place: Place<'_>,
    which: Which<'_>,
    time: Duration,
    batch: &mut Batch,
) -> Result<bool, Error> {
    let raw = !matches!(place.charset, Charset::AsItIs);
    let relation = relation(place);
    let Some(sql) = select(place, &relation, which, raw) else { return Ok(false) };
    let begin = format!("begin read only; set local statement_timeout = {}", time.as_millis());
    client.batch_execute(&begin).await?;
    let found = client.simple_query(&sql).await;
    client.batch_execute("rollback").await?;
    let rows = match found {
        Ok(rows) => rows,
        // Cancelled for its time, or a type that has no order: it is a look, no more.
        Err(error) if error.as_db_error().is_some() => return Ok(false),
        Err(error) => return Err(error),
    };
    let origin = Origin { system_id: "7000000000000000000".into(), timeline: 1, era: 0 };
    let mut router = Router::new(place.mapping.clone(), &origin, crate::route::Format::Text);
    if router.relation(&relation).is_err() {
        return Ok(false); // That is a finding of its own.
    }
    for (ordinal, message) in (0..).zip(rows) {
        let SimpleQueryMessage::Row(row) = message else { continue };
        let mut values = Vec::new();
        for (n, column) in (1..row.len()).zip(&relation.columns) {
            if put(&mut values, row.try_get(n)?, raw && is_text(column)).is_err() {
                return Ok(false);
            }
        }
        let size_bytes = row.try_get(0)?.and_then(|size| size.parse().ok()).unwrap_or_default();
        let row = Row {
            position: RowPosition { commit: Lsn::new(8), ordinal },
            relation: &relation,
            commit_time_us: 0,
            writer: None,
            tuple: Tuple {
                column_count: u16::try_from(relation.columns.len()).unwrap_or_default(),
                bytes: &values,
                truncated: size_bytes > place.record_bytes_max,
            },
            charset: place.charset,
            size_bytes,
        };
        if let Err(refused) = router.route(&row, batch) {
            router.keep(&row, *refused, batch);
        }
    }
    Ok(true)
}

fn relation(Place { name, state, mapping, .. }: Place<'_>) -> Relation {
    let mapped = mapping.column_names();
    let columns = state.columns.iter().filter(|column| mapped.contains(&column.name.as_str()));
    let columns =
        columns.map(|column| Column { name: column.name.clone(), type_oid: column.type_oid });
    let TableName { schema, table } = name.clone();
    Relation { id: 1, schema, table, columns: columns.collect() }
}

/// The statement: each row's size, then the mapped columns. `None` where a table does not tell which
/// of its rows wait.
fn select(place: Place<'_>, relation: &Relation, which: Which<'_>, raw: bool) -> Option<String> {
    let Place { relay, name, state, mapping, record_bytes_max, .. } = place;
    let has = |wanted: &str| state.columns.iter().any(|column| column.name == wanted);
    let (wanted, order) = match which {
        Which::Newest { recent } => {
            let recent = mapping.created_at_column().filter(|_| recent);
            let recent = recent.and_then(|column| since_yesterday(state, column));
            let order = format!("{} desc", identifier(mapping.id_column()));
            (recent.unwrap_or_else(|| "true".to_owned()), order)
        }
        Which::Waiting { slot } => {
            let order = mapping.created_at_column().filter(|column| has(column));
            let order = order.map_or_else(|| "null::pg_catalog.text".to_owned(), identifier);
            (waits(state, slot)?, order)
        }
    };
    // What was parked has been dealt with, or is told of as parked.
    let (relay, id) =
        (literal(relay), format!("t.{}::pg_catalog.text", identifier(mapping.id_column())));
    let only = if state.kind == "p" { "" } else { "only " };
    let table = format!("{only}{}.{}", identifier(&name.schema), identifier(&name.table));
    let (mut size, mut outer) = (String::from("0::pg_catalog.int8"), String::new());
    for column in &relation.columns {
        let value = identifier(&column.name);
        let bytes = match column.type_oid {
            BYTEA => format!("pg_catalog.octet_length({value})"),
            _ => format!("pg_catalog.octet_length({value}::pg_catalog.text)"),
        };
        let written = if raw && is_text(column) { hexadecimal(&value) } else { value };
        // Writing to a String does not fail.
        let _ = write!(size, " + coalesce({bytes}, 0)");
        let _ = write!(
            outer,
            ", case when size <= {record_bytes_max} or {bytes} <= {KEPT_BYTES} then {written} end"
        );
    }
    // What is read is bounded before it is written out; `offset 0` has each size computed once.
    Some(format!(
        "select size{outer} from ( \
             select r.*, pg_catalog.sum(least(size, {record_bytes_max})) \
                 over (rows unbounded preceding) as until from ( \
                 select t.*, {size} as size from ( \
                     select * from {table} t where {wanted} order by {order} limit {ROWS_MAX}) t \
                 where not exists ( \
                     select from outbox.dead_letters d where d.relay = {relay} and d.event_id = {id}) \
                 offset 0) r) r \
         where until <= {BYTES_MAX} or until = least(size, {record_bytes_max})"
    ))
}

/// Rows of the last day.
fn since_yesterday(state: &TableState, created_at: &str) -> Option<String> {
    let column = state.columns.iter().find(|column| column.name == created_at)?;
    let moment = match column.type_oid {
        TIMESTAMPTZ => format!("t.{}", identifier(created_at)),
        TIMESTAMP => format!("t.{} at time zone 'UTC'", identifier(created_at)),
        _ => return None,
    };
    Some(format!("{moment} > pg_catalog.now() - '1 day'::pg_catalog.interval"))
}

/// Rows whose transaction the slot may not have sent yet.
fn waits(state: &TableState, slot: Option<&str>) -> Option<String> {
    let Some(slot) = slot else { return Some("true".to_owned()) };
    let stamped = |column: &&crate::postgres::catalog::table::Column| {
        column.name == XID && column.type_oid == XID8
    };
    state.columns.iter().find(stamped)?;
    let slot = literal(slot);
    Some(format!(
        "pg_catalog.age(t.xid::pg_catalog.xid) <= (select pg_catalog.age(catalog_xmin) \
         from pg_catalog.pg_replication_slots where slot_name = {slot})"
    ))
}
