//! From a mapping to a plan: which column of a table serves which purpose, and whether it can.
//!
//! A [`Plan`] is a mapping laid over one table's shape, made again whenever the table is announced, so
//! that routing a row looks up no name.

use super::{
    kind::{Fit, Kind},
    mapping::{Format, MAPPED_MAX, Mapping, TopicFrom},
    role::Role,
    table::{TableName, quoted},
    template::{Part, Template},
    value,
};
use crate::core::row::{Column, Relation, Row, Value};

/// These and `xid`: their values live on the stack while a row is routed.
pub(super) const SLOTS_MAX: usize = MAPPED_MAX + 1;

/// The column that says which transaction wrote a row, of type `xid8`.
pub(crate) const XID: &str = "xid";

/// A mapped column that can't serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// The column.
    pub column: String,
    /// What is wrong, with table and column.
    pub what: String,
    /// The SQL or setting that fixes it, for rows that are written from then on.
    pub remedy: String,
    /// The setting that fixes it for rows that are written already, where one may: no change of the table reaches
    /// them.
    pub earlier: Option<String>,
}

/// Columns that are named as what another may be called now.
const SERVING_MAX: usize = 3;
/// Said of the column that a setting should name.
const HOLDS: &str = "column that holds it";

/// Where one role's value is found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    slot: u8,
    pub(super) kind: Kind,
    /// Index of the column, to name it.
    pub(super) column: u16,
}

/// The mapped values of one row, by slot.
pub(super) type Values<'a> = [Value<'a>; SLOTS_MAX];

impl Slot {
    #[inline]
    pub(super) fn of<'a>(self, values: &Values<'a>) -> Value<'a> {
        values.get(usize::from(self.slot)).copied().unwrap_or(Value::Null)
    }
}

/// A mapping laid over one table.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// For each column its place in [`Values`], `UNMAPPED` for most.
    pub(super) slots: Vec<u8>,
    pub(super) id: Slot,
    pub(super) topic: TopicPlan,
    pub(super) key: Option<Slot>,
    pub(super) event_type: Option<Slot>,
    pub(super) payload: Slot,
    pub(super) headers: Option<Slot>,
    pub(super) partition: Option<Slot>,
    pub(super) created_at: Option<Slot>,
    /// Header name and column.
    pub(super) header_columns: Vec<(String, Slot)>,
    /// Which transaction wrote the row.
    pub(super) xid: Option<Slot>,
    /// Whether that is the one that inserted it, by the column's default.
    pub(super) stamped: bool,
    /// Places of a present column and of its former self, which counts in rows where the present one is null.
    pub(super) former: Vec<(u8, u8)>,
    /// A column that only the text format can carry.
    pub(super) text_column: Option<String>,
}

impl Plan {
    /// The transaction that wrote the row, without its epoch. Of a row of which only the beginning was kept,
    /// the one that the stream has it in, where that is the same.
    pub(super) fn writer(&self, row: &Row<'_>, values: &Values<'_>) -> Option<u32> {
        let told = self.xid.and_then(|xid| value::xid(xid.of(values)));
        told.or(row.writer.filter(|_| self.stamped && row.tuple.is_truncated()))
    }
}

/// Marks a column that no role uses.
pub(super) const UNMAPPED: u8 = u8::MAX;

#[derive(Clone, Debug)]
pub(super) enum TopicPlan {
    Column(Slot),
    Template(Vec<TopicPart>),
}

#[derive(Clone, Debug)]
pub(super) enum TopicPart {
    Literal(String),
    Column(Slot),
}

impl Mapping {
    /// Whether a table of this shape serves, and the format that its stream needs: for start-up
    /// and `check`, from the catalogue. One table that needs text makes the whole stream text.
    /// A column's former name does not do: a repair reads the table by the present one.
    ///
    /// # Errors
    /// All that is wrong, never an empty list.
    pub fn format_for(&self, relation: &Relation) -> Result<Format, Vec<Misfit>> {
        let plan = self.plan_with(relation, &[])?;
        // Beside the present one it must be like it: rows that only it has a value for would halt the relay.
        self.plan_with(relation, &self.former_columns)?;
        Ok(if plan.text_column.is_some() { Format::Text } else { Format::Binary })
    }

    /// For rows of the stream.
    pub(super) fn plan(&self, relation: &Relation) -> Result<Plan, Vec<Misfit>> {
        self.plan_with(relation, &self.former_columns)
    }

    fn plan_with(
        &self,
        relation: &Relation,
        former: &[(String, String)],
    ) -> Result<Plan, Vec<Misfit>> {
        let mut planner = Planner::new(relation, former, self.column_names());
        let mut role = |role| {
            let (_, column) = self.columns.iter().find(|(r, _)| *r == role)?;
            planner.slot(role, role.setting(), column)
        };
        let id = role(Role::Id);
        let key = role(Role::Key);
        let event_type = role(Role::Type);
        let payload = role(Role::Payload);
        let headers = role(Role::Headers);
        let partition = role(Role::Partition);
        let created_at = role(Role::CreatedAt);
        let topic = match &self.topic {
            TopicFrom::Column(column) => {
                planner.slot(Role::Topic, Role::Topic.setting(), column).map(TopicPlan::Column)
            }
            TopicFrom::Template(template) => Some(planner.template(template)),
        };
        let header_columns = self
            .header_columns
            .iter()
            .filter_map(|(column, header)| {
                let slot = planner.slot(Role::Header, Role::Header.setting(), column)?;
                Some((header.clone(), slot))
            })
            .collect();
        let xid = planner.xid();
        let Planner { slots, text_column, misfits, pairs, .. } = planner;
        match (id, topic, payload) {
            (Some(id), Some(topic), Some(payload)) if misfits.is_empty() => Ok(Plan {
                slots,
                id,
                topic,
                key,
                event_type,
                payload,
                headers,
                partition,
                created_at,
                header_columns,
                xid,
                stamped: false,
                former: pairs,
                text_column,
            }),
            _ => Err(misfits),
        }
    }
}

/// Gives each mapped column its slot, and notes what does not fit.
struct Planner<'r> {
    relation: &'r Relation,
    /// Former names and present ones.
    former: &'r [(String, String)],
    /// The columns that are mapped.
    mapped: Vec<&'r str>,
    table: TableName,
    slots: Vec<u8>,
    used: u8,
    pairs: Vec<(u8, u8)>,
    text_column: Option<String>,
    misfits: Vec<Misfit>,
}

impl<'r> Planner<'r> {
    fn new(relation: &'r Relation, former: &'r [(String, String)], mapped: Vec<&'r str>) -> Self {
        Planner {
            relation,
            former,
            mapped,
            table: TableName { schema: relation.schema.clone(), table: relation.table.clone() },
            slots: vec![UNMAPPED; relation.columns.len()],
            used: 0,
            pairs: Vec::new(),
            text_column: None,
            misfits: Vec::new(),
        }
    }

    fn template(&mut self, template: &Template) -> TopicPlan {
        let parts = template.parts().iter().filter_map(|part| match part {
            Part::Literal(text) => Some(TopicPart::Literal(text.clone())),
            Part::Column(column) => {
                self.slot(Role::Topic, "outbox.topic", column).map(TopicPart::Column)
            }
        });
        TopicPlan::Template(parts.collect())
    }

    fn slot(&mut self, role: Role, setting: &str, name: &str) -> Option<Slot> {
        let named = |wanted: &str| {
            let mut columns = self.relation.columns.iter().enumerate();
            columns.find(|(_, column)| column.name == wanted)
        };
        let before = || {
            let mut names = self.former.iter().filter(|(_, present)| present == name);
            names.find_map(|(former, _)| named(former))
        };
        let (present, before) = (named(name), before());
        let Some((index, column)) = present.or(before) else {
            self.missing(role, setting, name);
            return None;
        };
        let kind = Kind::from_oid(column.type_oid);
        match kind.fit(role) {
            Fit::Binary => {}
            Fit::TextOnly => self.text_column = Some(name.to_owned()),
            Fit::Unfit => {
                self.unfit(role, setting, name, column.type_oid);
                return None;
            }
        }
        let slot = self.at(index, kind)?;
        if let (Some(_), Some((former, column))) = (present, before) {
            // While writers change over, some fill the one and some the other.
            if Kind::from_oid(column.type_oid) != kind {
                self.unlike(role, (name, kind), column);
                return None;
            }
            let former = self.at(former, kind)?;
            self.pairs.push((slot.slot, former.slot));
        }
        Some(slot)
    }

    fn unlike(&mut self, role: Role, (name, kind): (&str, Kind), former: &Column) {
        let (table, wanted) = (&self.table, role.sql_type());
        let both = [(name, kind), (&former.name, Kind::from_oid(former.type_oid))];
        let alike = both.iter().all(|(_, kind)| kind.is(wanted) || kind.casts_to(wanted));
        let others = both.iter().filter(|(_, kind)| !kind.is(wanted));
        let changes: Vec<String> = others
            .map(|(column, _)| quoted(column))
            .map(|column| format!("alter column {column} type {wanted} using {column}::{wanted}"))
            .collect();
        let alike = match alike {
            true => {
                format!("give both columns one type: `alter table {table} {}`", changes.join(", "))
            }
            false => "give both columns one type".to_owned(),
        };
        let former = &former.name;
        // A value that only the former one has would be left out.
        let unless =
            format!("has a value in {former} alone, take {former} out of outbox.former_columns");
        self.misfits.push(Misfit {
            column: name.to_owned(),
            what: format!(
                "{table} has both {name} and {former}, which outbox.former_columns says was its name, and \
                 their types differ"
            ),
            remedy: format!("{alike}; or, where no row {unless}"),
            earlier: Some(format!("where none of these rows {unless}")),
        });
    }

    fn xid(&mut self) -> Option<Slot> {
        let is_xid =
            |(_, c): &(usize, &Column)| c.name == XID && Kind::from_oid(c.type_oid) == Kind::Xid8;
        let (index, _) = self.relation.columns.iter().enumerate().find(is_xid)?;
        self.at(index, Kind::Xid8)
    }

    fn at(&mut self, index: usize, kind: Kind) -> Option<Slot> {
        let slot = self.slots.get_mut(index)?;
        if *slot == UNMAPPED {
            *slot = self.used;
            self.used += 1;
        }
        Some(Slot { slot: *slot, kind, column: u16::try_from(index).ok()? })
    }

    fn missing(&mut self, role: Role, setting: &str, name: &str) {
        let (table, column) = (&self.table, quoted(name));
        let set = match role {
            Role::Topic => {
                "set outbox.topic to the topic of its events, or outbox.columns.topic to the column \
                 that holds it"
                    .to_owned()
            }
            Role::Header => format!("name the column that holds it in {setting}"),
            role if role.is_required() => format!("set {setting} to the column that holds it"),
            _ => format!("set {setting} to the column that holds it, or to false where none does"),
        };
        let serving = self.serving(role);
        let add = format!(
            "`alter table {table} add column {column} {}`; where the table has it, the publication's \
             column list must name it too",
            role.sql_type()
        );
        let earlier = serving.iter().map(|held| {
            format!("where {held} held it then, set outbox.former_columns.{held} = \"{name}\"")
        });
        let earlier = earlier.reduce(|all, one| format!("{all}; or, {one}"));
        let remedy = match serving.first() {
            None => format!("{set}; or {add}"),
            // One that is added again is empty, and what the writers fill would be left out.
            Some(first) => format!(
                "{}; where it was renamed, as to {first}, set outbox.former_columns.{name} = \"{first}\" \
                 too, for the rows that were written before; or, where no column holds it, {add}",
                set.replace(HOLDS, &format!("{HOLDS} ({}?)", serving.join(", ")))
            ),
        };
        self.misfits.push(Misfit {
            column: name.to_owned(),
            what: format!("{table} publishes no column {column}, which {setting} names"),
            remedy,
            earlier,
        });
    }

    /// What a missing column may be called now: columns that can serve as it, and serve nothing else.
    fn serving(&self, role: Role) -> Vec<&'r str> {
        let serves = |column: &&Column| {
            Kind::from_oid(column.type_oid).fit(role) == Fit::Binary
                && column.name != XID
                && !self.mapped.contains(&column.name.as_str())
                && self.former.iter().all(|(former, _)| *former != column.name)
        };
        let columns = self.relation.columns.iter().filter(serves);
        columns.map(|column| column.name.as_str()).take(SERVING_MAX).collect()
    }

    fn unfit(&mut self, role: Role, setting: &str, name: &str, type_oid: u32) {
        let (table, column, wanted) = (&self.table, quoted(name), role.sql_type());
        let kind = Kind::from_oid(type_oid);
        let alter = match kind.casts_to(wanted) {
            true => format!(
                ", or `alter table {table} alter column {column} type {wanted} using {column}::{wanted}` (where \
                 PostgreSQL says that its default can't be cast: drop the default first, and set it again afterwards)"
            ),
            false => String::new(),
        };
        let kind = kind.name(type_oid);
        let serving = self.serving(role).join(", ");
        self.misfits.push(Misfit {
            column: name.to_owned(),
            what: format!(
                "{table} has a column {column} of {kind}, which can't serve as {setting}"
            ),
            remedy: format!("name another column in {setting}{alter}"),
            earlier: (!serving.is_empty()).then(|| {
                format!("where another column held it then ({serving}?), name that in {setting}")
            }),
        });
    }
}
