//! What the tables of the settings look like: at a start, for `check`, and again and again while the
//! relay streams.
//!
//! It asks the catalogue and lets `table_fit` and `repair` decide. Called by `start`, `standby`,
//! `rehearsal` and `lookout`.

use super::{context::Context, ended::Ended, steps::store};
use crate::{
    core::{halt::Halt, progress::Progress},
    postgres::{
        catalog::{slot, table},
        sql::SqlSession,
    },
    repair::Table,
    route::{Format, Mapping, TableName},
    sink::any::AnySink,
    table_fit::{self, Fit, Unfit},
};

/// `pg_type.oid` of `timestamp`, which has no time zone.
const TIMESTAMP: u32 = 1114;

/// What the tables of the settings look like now.
pub(super) struct Tables {
    /// That their rows need.
    pub(super) format: Format,
    /// Those whose column `xid` is the transaction that inserted the row.
    pub(super) stamped: Vec<TableName>,
    /// Why rows that are written now are not in the stream.
    pub(super) unpublished: Option<Halt>,
    /// Why rows that are written from now on would not serve.
    pub(super) misfit: Option<Halt>,
    /// Whether a time of theirs has no zone.
    pub(super) zoneless: bool,
    /// For a repair, or why they can't be read for one.
    pub(super) repair: Result<Vec<Table>, Halt>,
}

impl Tables {
    /// Before there is a slot, there is nothing in the stream that could serve.
    pub(super) fn must_fit(&mut self) -> Result<(), Ended> {
        self.misfit.take().map_or(Ok(()), |halt| Err(Ended::Halted(halt)))
    }
}

/// Looks at every table of the settings. `least` is a format that the stream is known to need.
pub(super) async fn inspect(
    context: &Context,
    session: &SqlSession,
    least: Format,
) -> Result<Tables, Ended> {
    let parts = &context.parts;
    const DOING: &str = "looking at the outbox tables";
    let failed = |e| Ended::postgres(DOING, e);
    let client = session.client();
    let name = &context.config.postgres.publication;
    let publication = slot::inspect_publication(client, name).await.map_err(failed)?;
    let mut found = Tables {
        format: least,
        stamped: vec![],
        unpublished: None,
        misfit: None,
        zoneless: false,
        repair: Ok(Vec::new()),
    };
    for table in parts.mapping.tables() {
        let TableName { schema, table: table_name } = table;
        let state = table::inspect(client, schema, table_name).await.map_err(failed)?;
        if let (Ok(tables), Some(state)) = (&mut found.repair, &state) {
            match crate::repair::fits(table, state, &parts.mapping) {
                Ok(table) => tables.push(table),
                Err(halt) => found.repair = Err(halt),
            }
        }
        found.zoneless |= state.as_ref().is_some_and(|state| {
            let created_at = parts.mapping.created_at_column();
            let mut columns = state.columns.iter();
            columns.any(|c| Some(&*c.name) == created_at && c.type_oid == TIMESTAMP)
        });
        match table_fit::fits(name, publication.as_ref(), table, state.as_ref(), &parts.mapping) {
            Ok(Fit { format, stamped }) => {
                if format == Format::Text {
                    found.format = Format::Text;
                }
                if stamped {
                    found.stamped.push(table.clone());
                }
            }
            Err(Unfit::Unpublished(halt)) => found.unpublished = Some(halt),
            Err(Unfit::Columns(misfits)) => {
                // It carries every type, whatever shape the rows in the stream have.
                found.format = Format::Text;
                found.misfit = Some(table_fit::misfits(&misfits));
            }
        }
    }
    Ok(found)
}

/// Rows are written that are not in the stream. That is remembered: when somebody has obeyed, nothing
/// may tell any more that there were some.
pub(super) async fn unpublished(
    halt: Halt,
    tables: &Tables,
    sink: &mut AnySink,
    stored: Option<Progress>,
) -> Ended {
    let streamed = stored.as_ref().is_some_and(|progress| progress.position.is_some());
    let reason = halt.reason.clone();
    let told = table_fit::until_obeyed(halt, streamed, tables.repair.as_ref().err());
    if let Some(mut progress) = stored
        && progress.note_gap(&reason)
        && let Err(ended) = store(sink, &progress).await
    {
        return ended;
    }
    Ended::Halted(told)
}

/// Takes back what [`unpublished`] has noted of a table that only the settings knew, for as long as its name was
/// misspelt there: no row can be missing.
pub(super) fn forget_misspelt(stored: &mut Progress, mapping: &Mapping) {
    let Some(name) = stored.gap.as_deref().and_then(table_fit::absent) else { return };
    let is_set = mapping.tables().iter().any(|table| table.to_string() == name);
    let was_there = stored.published.as_ref().is_none_or(|published| published.may_have(name));
    if !is_set && !was_there {
        stored.gap = None;
    }
}
