//! What the catalog says of a table, in one query: kind, columns, and what lies below it.
//!
//! Facts only, each as the server has it; whether a table serves is `table_fit`'s and `repair`'s to
//! decide.

use serde::Deserialize;
use tokio_postgres::Client;

use super::{error::InspectError, rows::rows};

/// A relation that has the name of a table of the settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct TableState {
    /// `pg_class.relkind`: `r` table, `p` partitioned table, `v` view, `m` materialised view, `f`
    /// foreign table.
    pub kind: String,
    /// `pg_class.relpersistence`: `p` permanent, `u` unlogged, `t` temporary.
    pub persistence: String,
    /// The partitioned table that it is a partition of, as SQL writes it.
    pub root: Option<String>,
    /// Whether the role may read it.
    pub readable: bool,
    /// Whether the role may use its schema: without that it can't be read.
    #[serde(default)]
    pub usable: bool,
    /// The role that asks, as SQL writes it.
    #[serde(default)]
    pub role: String,
    /// Whether policies decide which rows the role sees.
    pub row_security: bool,
    /// Whether triggers keep account of the rows that are deleted from it, in `outbox.deletions`.
    pub deletions_noted: bool,
    /// In the table's order.
    pub columns: Vec<Column>,
    /// Partitions and children by INHERITS, at any depth, of which the stream has no row under this
    /// table's name.
    pub hidden: Vec<Hidden>,
}

/// A column.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Column {
    /// Name.
    pub name: String,
    /// `pg_type.oid`, as it comes in Relation messages.
    pub type_oid: u32,
    /// The type below all domains, as `pg_type.oid`.
    pub base_oid: u32,
    /// As a cast to that is written, without a length.
    pub type_name: String,
    /// `NOT NULL`.
    pub not_null: bool,
    /// Its default, as SQL writes it.
    pub default: Option<String>,
    /// `pg_attribute.attgenerated`: empty, `s` stored, `v` virtual.
    pub generated: String,
    /// Whether its type is made of types that all have a binary form.
    pub binary: bool,
}

/// A relation below a table, of which the stream has no row under the table's name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Hidden {
    /// As SQL writes it.
    pub name: String,
    /// Schema, unquoted.
    pub schema: String,
    /// Name, unquoted.
    pub table: String,
    /// As [`TableState::kind`].
    pub kind: String,
    /// As [`TableState::persistence`].
    pub persistence: String,
    /// By INHERITS, and no partition.
    pub inherits: bool,
}

impl Column {
    /// Whether it says by itself which transaction inserts the row.
    pub fn is_stamp(&self) -> bool {
        let call =
            self.default.as_deref().map(|sql| sql.strip_prefix("pg_catalog.").unwrap_or(sql));
        call == Some("pg_current_xact_id()")
    }
}

/// Looks a table up; `None` when there is no relation of that name.
///
/// # Errors
/// [`InspectError`].
pub async fn inspect(
    client: &Client,
    schema: &str,
    table: &str,
) -> Result<Option<TableState>, InspectError> {
    Ok(rows(client, "a table's catalog rows", SQL, &[&schema, &table]).await?.pop())
}

/// A type without a binary form of its own is sent as text; one that is made of such, like an array
/// of them, fails.
const SQL: &str = "\
select pg_catalog.jsonb_build_object( \
    'kind', c.relkind, 'persistence', c.relpersistence, \
    'root', (select p.relid::pg_catalog.text from pg_catalog.pg_partition_ancestors(c.oid) p \
             where p.relid = pg_catalog.pg_partition_root(c.oid) and p.relid <> c.oid), \
    'readable', pg_catalog.has_table_privilege(c.oid, 'select'), \
    'usable', pg_catalog.has_schema_privilege(c.relnamespace, 'usage'), \
    'role', pg_catalog.quote_ident(current_user), \
    'row_security', pg_catalog.row_security_active(c.oid), \
    'deletions_noted', (select bool_and(exists ( \
            select from pg_catalog.pg_trigger g \
            join pg_catalog.pg_proc f on f.oid = g.tgfoid \
            join pg_catalog.pg_namespace m on m.oid = f.pronamespace \
            where g.tgrelid = l.oid and g.tgenabled = 'A' and g.tgtype & 9 = 9 \
                and m.nspname = 'outbox' and f.proname = 'note_deletion')) \
        from pg_catalog.pg_class l where l.oid = c.oid or (l.relkind in ('r', 'p') and l.oid in ( \
            select p.relid from pg_catalog.pg_partition_tree(c.oid) p))), \
    'columns', (select coalesce(pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object( \
            'name', a.attname, 'type_oid', a.atttypid::pg_catalog.int8, \
            'base_oid', base.oid::pg_catalog.int8, \
            'type_name', pg_catalog.format_type(base.oid, -1), 'not_null', a.attnotnull and not exists ( \
                select from pg_catalog.pg_constraint k where k.conrelid = a.attrelid \
                    and k.contype = 'n' and not k.convalidated and a.attnum = any (k.conkey)), \
            'default', pg_catalog.pg_get_expr(d.adbin, d.adrelid), 'generated', a.attgenerated, \
            'binary', (with recursive parts (oid) as ( \
                    select a.atttypid \
                    union select x.oid from parts join pg_catalog.pg_type t on t.oid = parts.oid \
                    cross join lateral ( \
                        select t.typelem union all select t.typbasetype \
                        union all select r.rngsubtype from pg_catalog.pg_range r \
                            where r.rngtypid = t.oid \
                        union all select f.atttypid from pg_catalog.pg_attribute f \
                            where t.typrelid <> 0 and f.attrelid = t.typrelid and f.attnum > 0 \
                                and not f.attisdropped) x (oid) \
                    where x.oid <> 0) \
                select coalesce(bool_and(t.typsend <> 0), true) \
                from parts join pg_catalog.pg_type t on t.oid = parts.oid \
                where t.oid <> a.atttypid) \
        ) order by a.attnum), '[]') \
        from pg_catalog.pg_attribute a \
        cross join lateral (with recursive chain (oid) as ( \
                select a.atttypid union all select t.typbasetype from chain \
                join pg_catalog.pg_type t on t.oid = chain.oid where t.typtype = 'd') \
            select chain.oid from chain join pg_catalog.pg_type t on t.oid = chain.oid \
            where t.typtype <> 'd') base \
        left join pg_catalog.pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum \
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped), \
    'hidden', (with recursive below (oid, inherits) as ( \
            select i.inhrelid, c.relkind <> 'p' from pg_catalog.pg_inherits i \
            where i.inhparent = c.oid \
            union select i.inhrelid, p.relkind <> 'p' from below \
            join pg_catalog.pg_class p on p.oid = below.oid \
            join pg_catalog.pg_inherits i on i.inhparent = p.oid) \
        select coalesce(pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object( \
            'name', b.oid::pg_catalog.regclass::pg_catalog.text, 'schema', s.nspname, \
            'table', b.relname, 'kind', b.relkind, 'persistence', b.relpersistence, \
            'inherits', below.inherits) order by s.nspname, b.relname), '[]') \
        from below join pg_catalog.pg_class b on b.oid = below.oid \
        join pg_catalog.pg_namespace s on s.oid = b.relnamespace \
        where below.inherits or b.relkind = 'f' or (b.relkind = 'r' and b.relpersistence <> 'p')) \
    )::pg_catalog.text \
from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
where n.nspname::pg_catalog.text = $1 and c.relname::pg_catalog.text = $2";
