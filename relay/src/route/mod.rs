//! From a row to a record: where it goes, what it carries.
//!
//! Pure: values in, bytes of a [`Batch`] out; no socket, clock or task. A table's Relation is
//! turned into a plan once, and a row then costs one walk over its columns, no look-up by name
//! and no allocation but what the batch and a few kept buffers grow by. Payload bytes pass
//! untouched. A row that can't be a record is [`Refused`], whole, with a reason that stays the
//! same from release to release; whether to park it or to stop is the pipeline's to decide. A
//! topic's validity beyond not being empty is the sink's to judge. Called by `pipeline`.

mod event;
mod headers;
mod kind;
mod mapping;
mod origin;
mod plan;
mod refusal;
mod role;
mod settings;
mod share;
mod style;
mod table;
mod template;
#[cfg(test)]
mod tests;
mod time;
mod value;

use self::{
    event::Scratch,
    headers::{RelayHeaders, Reserved},
    plan::{Plan, UNMAPPED, Values},
    refusal::Refusal,
    share::Whose,
};
pub use self::{
    mapping::{Format, Mapping},
    origin::Origin,
    plan::Misfit,
    refusal::reason,
    settings::{Columns, Preset, Settings},
    share::Share,
    style::HeaderStyle,
    table::TableName,
    template::Template,
};
pub(crate) use self::{plan::XID, table::quoted};
use crate::core::{
    progress::FormerTopics,
    record::{Batch, Refused, RefusedRecord},
    row::{Malformed, Relation, Row, Tuple, Value},
};

/// Turns rows into records. Made for one stream, since a format and an origin belong to one.
#[derive(Debug)]
pub struct Router {
    mapping: Mapping,
    format: Format,
    relay: RelayHeaders,
    /// Tables whose column `xid` is the transaction that inserted the row.
    stamped: Vec<TableName>,
    /// The mapped tables that are there, by OID.
    there: Vec<(u32, TableName)>,
    /// The mapped tables announced so far, by OID. As few as the settings name.
    plans: Vec<(u32, Plan)>,
    scratch: Scratch,
    /// Topics that were this relay's before.
    former: Option<FormerTopics>,
}

/// What a table is to this relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelationUse {
    /// Its rows become records.
    Mapped,
    /// Its rows are passed over: not ours, or a leaf partition announced beside its root.
    Ignored,
}

/// What became of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routed {
    /// It is a record of the batch.
    Added,
    /// Its table is not mapped.
    Ignored,
    /// Its topic is another relay's.
    Elsewhere,
    /// Another transaction than the one that the stream has it in wrote it: it was moved from one
    /// partition to another, or copied, and is published as what it was at first.
    Moved,
}

/// A mapped table does not fit, by what the caller must do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RelationError {
    /// Stop; a person changes the table or the settings.
    #[error("{}", .0.iter().map(|misfit| format!("{}; {}", misfit.what, misfit.remedy)).collect::<Vec<_>>().join("; "))]
    DoesNotFit(Vec<Misfit>),
    /// Reconnect, asking for the text format: `column` now has a type that only it can carry.
    #[error("{table} has a column {column} whose type needs the text format")]
    NeedsText {
        /// Qualified name.
        table: String,
        /// The mapped column.
        column: String,
    },
}

impl Router {
    /// A router that knows no table yet. `format` is what the stream was asked for.
    pub fn new(mapping: Mapping, origin: &Origin, format: Format) -> Self {
        let reserved = Reserved { style: mapping.header_style, debezium_id: mapping.debezium_id };
        Router {
            relay: RelayHeaders::new(reserved, &mapping.relay_name, origin),
            mapping,
            format,
            stamped: Vec::new(),
            there: Vec::new(),
            plans: Vec::new(),
            scratch: Scratch::default(),
            former: None,
        }
    }

    /// The same, told of which tables the column `xid` is the id of the transaction that inserted
    /// the row. Of these it knows rows that are not inserted but moved.
    #[must_use]
    pub fn with_stamped(mut self, tables: Vec<TableName>) -> Self {
        self.stamped = tables;
        self
    }

    /// The same, told of the OIDs of the tables. The server announces a partitioned table by the name that it has when
    /// a partition has its first row, and not again when that name changes; rows that were written while it had
    /// another one are its own.
    #[must_use]
    pub fn with_oids(mut self, tables: Vec<(u32, TableName)>) -> Self {
        self.there = tables;
        self
    }

    /// The same, with what it still publishes of topics that were this relay's before.
    #[must_use]
    pub fn with_former(mut self, topics: Option<FormerTopics>) -> Self {
        self.former = topics;
        self
    }

    /// A router for rows that a repair reads from the tables: in text form, and marked as such.
    pub fn repairing(mapping: Mapping, origin: &Origin) -> Self {
        let mut router = Router::new(mapping, origin, Format::Text);
        router.relay.repaired = true;
        router
    }

    /// Takes note of a table's shape; of a table known already, of its new one.
    ///
    /// # Errors
    /// [`RelationError`]; no row of this table may be routed after it.
    pub fn relation(&mut self, relation: &Relation) -> Result<RelationUse, RelationError> {
        // A table that was dropped and made again has another OID, a renamed one another name.
        self.plans.retain(|(id, _)| *id != relation.id);
        let mut renamed = None;
        if !self.mapping.maps(&relation.schema, &relation.table) {
            let Some((_, name)) = self.there.iter().find(|(oid, _)| *oid == relation.id) else {
                return Ok(RelationUse::Ignored);
            };
            let (schema, table) = (name.schema.clone(), name.table.clone());
            renamed = Some(Relation { schema, table, ..relation.clone() });
        }
        let relation = renamed.as_ref().unwrap_or(relation);
        let mut plan = self.mapping.plan(relation).map_err(RelationError::DoesNotFit)?;
        let is_this = |table: &TableName| table.is(&relation.schema, &relation.table);
        plan.stamped = plan.xid.is_some() && self.stamped.iter().any(is_this);
        if let (Format::Binary, Some(column)) = (self.format, &plan.text_column) {
            let table = format!("{}.{}", relation.schema, relation.table);
            return Err(RelationError::NeedsText { table, column: column.clone() });
        }
        self.plans.push((relation.id, plan));
        Ok(RelationUse::Mapped)
    }

    /// Adds the row to the batch as a record, if its table is mapped. Only records are added:
    /// the batch's position and times are its owner's to keep.
    ///
    /// # Errors
    /// [`Refused`] with one of the words of [`reason`], and as much of id, topic and key as can be
    /// read; nothing is added then.
    pub fn route(&mut self, row: &Row<'_>, batch: &mut Batch) -> Result<Routed, Box<Refused>> {
        let id = row.relation.id;
        let Some((_, plan)) = self.plans.iter().find(|(known, _)| *known == id) else {
            return Ok(Routed::Ignored);
        };
        let mut values: Values<'_> = [Value::Null; plan::SLOTS_MAX];
        let read = read(plan, &row.tuple, &mut values);
        if let (Some(writer), Some(xid)) = (row.writer, plan.xid.filter(|_| plan.stamped))
            && value::xid(xid.of(&values)).is_some_and(|xid| xid != writer)
        {
            return Ok(Routed::Moved);
        }
        let whose = match &self.mapping.share {
            Some(share) if read.is_ok() => {
                let topic = self.scratch.topic(plan, row, &values);
                let takes = |it: &FormerTopics| {
                    topic.is_some_and(|topic| it.takes(topic, row.position.commit))
                };
                match share.of(topic) {
                    _ if self.former.as_ref().is_some_and(takes) => Whose::Ours,
                    whose => whose,
                }
            }
            _ => Whose::Ours,
        };
        if whose == Whose::Others {
            return Ok(Routed::Elsewhere);
        }
        let added = read
            .map_err(Refusal::malformed_row)
            .and_then(|()| self.scratch.add(plan, &self.mapping, &self.relay, row, &values, batch));
        match added {
            Ok(()) => {
                if whose == Whose::NoRoutes {
                    let Refusal { reason, error } = Refusal::no_route();
                    let index = batch.len() - 1;
                    batch.unfit.push(RefusedRecord { index, reason, error, certain: true });
                }
                Ok(Routed::Added)
            }
            Err(refusal) => Err(Box::new(event::refused(plan, row, &values, refusal))),
        }
    }

    /// The id of the row's event, as text.
    pub fn event_id(&self, row: &Row<'_>) -> Option<Vec<u8>> {
        let (_, plan) = self.plans.iter().find(|(known, _)| *known == row.relation.id)?;
        let mut values: Values<'_> = [Value::Null; plan::SLOTS_MAX];
        read(plan, &row.tuple, &mut values).ok()?;
        event::id(plan, row, &values)
    }

    /// Whether the row's column `xid` is the transaction that inserted it.
    pub fn is_stamped(&self, row: &Row<'_>) -> bool {
        let plan = self.plans.iter().find(|(known, _)| *known == row.relation.id);
        plan.is_some_and(|(_, plan)| plan.stamped)
    }

    /// Whether the row can be found again by its transaction, which its column `xid` names, and by the
    /// timestamp of its record, which is `created_at` then.
    pub fn can_find(&self, row: &Row<'_>) -> bool {
        let plan = self.plans.iter().find(|(known, _)| *known == row.relation.id);
        let has_both = plan.is_some_and(|(_, it)| it.stamped && it.created_at.is_some());
        has_both && !row.tuple.is_truncated()
    }

    /// Adds a row that was refused to the batch as what can be read of it, for parking: an event
    /// of its own, last in the batch and listed among its unfit ones.
    #[cold]
    pub fn keep(&self, row: &Row<'_>, refused: Refused, batch: &mut Batch) {
        let Some((_, plan)) = self.plans.iter().find(|(known, _)| *known == row.relation.id) else {
            return;
        };
        let mut values: Values<'_> = [Value::Null; plan::SLOTS_MAX];
        // What can't be read stays null.
        let _ = read(plan, &row.tuple, &mut values);
        event::keep(plan, &self.relay, row, &values, &refused, batch);
        let index = batch.len() - 1;
        let Refused { reason, error, .. } = refused;
        batch.unfit.push(RefusedRecord { index, reason, error, certain: true });
    }
}

/// Puts the mapped values into their slots, in one walk. What is null, or cut off, stays null.
#[inline]
fn read<'a>(plan: &Plan, tuple: &Tuple<'a>, values: &mut Values<'a>) -> Result<(), Malformed> {
    if tuple.column_count() != plan.slots.len() {
        return Err(Malformed::new("column count of an Insert", 0));
    }
    let mut slots = plan.slots.iter();
    for value in tuple.columns() {
        let value = value?;
        if let Some(slot) = slots.next().filter(|slot| **slot != UNMAPPED)
            && let Some(place) = values.get_mut(usize::from(*slot))
        {
            *place = value;
        }
    }
    for (present, former) in &plan.former {
        let before = values.get(usize::from(*former)).copied().unwrap_or(Value::Null);
        if let Some(place) = values.get_mut(usize::from(*present))
            && matches!(place, Value::Null)
        {
            *place = before;
        }
    }
    Ok(())
}
