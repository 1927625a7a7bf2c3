//! What a slot has before the event that is to be skipped.

use anyhow::bail;
use futures_util::TryStreamExt as _;
use tokio_postgres::{
    error::SqlState,
    types::{PgLsn, ToSql},
};

use crate::{
    config::Config,
    core::{
        charset::Charset,
        position::{Position, RowPosition},
    },
    postgres::sql::SqlSession,
    route::Mapping,
    source::pgoutput::{Message, decode},
};

/// Changes of a slot that are looked through for it.
const CHANGES_MAX: i32 = 1_000_000;

/// How many events the slot has between two places.
pub(super) async fn between(
    config: &Config,
    mapping: &Mapping,
    session: &SqlSession,
    after: Position,
    row: RowPosition,
) -> anyhow::Result<i64> {
    let peek = "select data from pg_catalog.pg_logical_slot_peek_binary_changes( \
                    $1::text::name, $2, $3, 'proto_version', '1', 'messages', 'true', \
                    'publication_names', $4)";
    let publication = format!("\"{}\"", config.postgres.publication.replace('"', "\"\""));
    // One byte into its commit record, which is thereby the last.
    let until = PgLsn::from(row.commit.get() + 1);
    let parameters: [&(dyn ToSql + Sync); 4] =
        [&config.postgres.slot, &until, &CHANGES_MAX, &publication];
    let failed = |error: tokio_postgres::Error| {
        let in_use = error.code() == Some(&SqlState::OBJECT_IN_USE);
        anyhow::Error::new(error).context(match in_use {
            true => {
                "the slot is in use: a relay that has halted looks at it every few seconds. Nothing \
                 was changed; run the command again"
            }
            false => "looking at what the slot has, to see that nothing else is left out",
        })
    };
    let there = there(mapping, session).await.map_err(failed)?;
    // One by one: all of them may have gigabytes.
    let changes = session.client().query_raw(peek, parameters).await.map_err(failed)?;
    let mut changes = std::pin::pin!(changes);
    let mut before = Before::new(mapping, there, after, row);
    while let Some(change) = changes.try_next().await.map_err(failed)? {
        before.take(change.try_get(0)?)?;
    }
    match before.found {
        true => Ok(before.events),
        false => bail!(
            "the slot has no event at {row}: nothing was changed. The relay's log and /readyz name \
             the position of the event at which it stands"
        ),
    }
}

/// OIDs of the mapped tables: one that had another name when a row was written is known by it, as in the stream.
async fn there(mapping: &Mapping, session: &SqlSession) -> Result<Vec<u32>, tokio_postgres::Error> {
    let sql = "select c.oid from unnest($1::text[], $2::text[]) as w (schema, name) \
               join pg_catalog.pg_namespace n on n.nspname::text = w.schema \
               join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname::text = w.name";
    let names = mapping.tables().iter().map(|it| (it.schema.as_str(), it.table.as_str()));
    let (schemas, tables): (Vec<&str>, Vec<&str>) = names.unzip();
    let rows = session.client().query(sql, &[&schemas, &tables]).await?;
    rows.iter().map(|row| row.try_get(0)).collect()
}

/// Counts events of the mapped tables that lie after one place and before another. Pure.
struct Before<'a> {
    mapping: &'a Mapping,
    /// The mapped tables' OIDs.
    there: Vec<u32>,
    after: Position,
    row: RowPosition,
    events: i64,
    /// Whether there is one at `row`.
    found: bool,
    at: RowPosition,
    mapped: Vec<u32>,
}

impl<'a> Before<'a> {
    fn new(mapping: &'a Mapping, there: Vec<u32>, after: Position, row: RowPosition) -> Self {
        let at = RowPosition { commit: row.commit, ordinal: 0 };
        Before { mapping, there, after, row, events: 0, found: false, at, mapped: Vec::new() }
    }

    fn take(&mut self, change: &[u8]) -> anyhow::Result<()> {
        // A session gets names in its own encoding, UTF-8.
        match decode(change, &Charset::AsItIs)? {
            Message::Begin(begin) => {
                self.at = RowPosition { commit: begin.final_lsn, ordinal: 0 };
            }
            Message::Relation(relation) => {
                self.mapped.retain(|id| *id != relation.id);
                if self.mapping.maps(&relation.schema, &relation.table)
                    || self.there.contains(&relation.id)
                {
                    self.mapped.push(relation.id);
                }
            }
            Message::Insert(insert) => {
                if self.mapped.contains(&insert.relation_id) {
                    self.found |= self.at == self.row;
                    let before = self.at < self.row && !self.after.covers(self.at);
                    self.events += i64::from(before);
                }
                self.at.ordinal += 1;
            }
            Message::Message(message) if message.transactional => self.at.ordinal += 1,
            _ => {}
        }
        Ok(())
    }
}
