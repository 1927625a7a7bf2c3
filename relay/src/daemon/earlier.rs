//! What a person can do about rows of the stream that were written while their table did not match the settings.
//!
//! The stream has them in the shape in which they were written, and no change of the table reaches them. A
//! setting may reach them; or the table has them, in its present shape, and a repair reads them from there.

use super::{context::Context, ended::Ended, start::repair, tables};
use crate::{
    core::{halt::Halt, progress::Progress},
    postgres::sql::SqlSession,
    reconcile::drop_slot,
    route::Format,
};

/// The halt with what the tables, as they are now, let a person do. `begun`: what was stored when the
/// attempt began.
pub(super) async fn explained(
    context: &Context,
    session: &SqlSession,
    begun: &Progress,
    halt: Halt,
) -> Ended {
    match look(context, session, begun, halt).await {
        Ok(told) => Ended::Halted(told),
        // Tried again, from the same row.
        Err(ended) => ended,
    }
}

async fn look(
    context: &Context,
    session: &SqlSession,
    begun: &Progress,
    halt: Halt,
) -> Result<Halt, Ended> {
    let config = &context.config;
    let found = tables::inspect(context, session, Format::Binary).await?;
    let unfit = found.unpublished.as_ref().or(found.misfit.as_ref());
    let source = match (begun.snapshots.first(), &found.repair) {
        (None, _) => Source::Slot,
        (Some(_), Err(lacks)) => Source::TableAfter(lacks.clone()),
        (Some(_), Ok(tables)) => match repair::gone(config, session, tables, begun).await? {
            None => Source::Table,
            Some(gone) => Source::TableInPart(gone),
        },
    };
    Ok(told(halt, unfit, &source.said(&config.postgres.slot)))
}

/// What has the rows.
enum Source {
    /// The slot alone: it is not known which rows of the table they are.
    Slot,
    Table,
    /// The table, once it has what a repair needs.
    TableAfter(Halt),
    /// The table may lack some of them, for this reason; the slot has them all.
    TableInPart(Halt),
}

/// No snapshot is stored, as right after `resume`: without the slot these rows can't be told from published ones.
const NO_SNAPSHOT: &str = "they can't be read from the table, because no stored snapshot says which rows of it they are, \
                           so don't drop the slot; to leave out all that is not published, run \
                           `outbox-relay resume --at now`";

/// `unfit`: what is wrong with the tables now.
fn told(halt: Halt, unfit: Option<&Halt>, from_table: &str) -> Halt {
    let Halt { reason, remedy: setting } = halt;
    let remedy = match unfit {
        // In the words of `check`: its settings are right for these rows as well.
        Some(Halt { remedy, .. }) => format!(
            "{remedy}; a change of the table does not reach these rows: if the relay halts for them again \
             once the table matches the settings, it says what does"
        ),
        None => format!("{setting}; {from_table}"),
    };
    Halt::new(reason, remedy)
}

impl Source {
    /// What to do about the rows. A repair reads the table as it is now.
    fn said(&self, slot: &str) -> String {
        let drop = drop_slot(slot);
        match self {
            Source::Slot => NO_SNAPSHOT.to_owned(),
            Source::Table => format!(
                "to publish them from the table, and some earlier events again, drop the slot, and the relay \
                 makes a new one: {drop}"
            ),
            Source::TableAfter(Halt { reason, remedy }) => format!(
                "to publish them from the table, and some earlier events again, the table must be changed first, because \
                 {reason}: {remedy}; then drop the slot, and the relay makes a new one: {drop}"
            ),
            Source::TableInPart(Halt { reason, remedy }) => format!(
                "the slot has all of them and the table may not, because {reason}: dropping the slot leaves out what the \
                 table lacks. To drop it anyway, first {remedy}; then: {drop}"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DROP: &str = "pg_drop_replication_slot('s')";

    fn remedy(unfit: Option<&Halt>, source: &Source) -> String {
        let halt = Halt::new("rows without headers", "no setting fits these rows");
        told(halt, unfit, &source.said("s")).remedy
    }

    fn is_before(said: &str, first: &str, then: &str) {
        let at = |words| said.find(words).unwrap_or_else(|| panic!("{words} in {said}"));
        assert!(at(first) < at(then), "{said}");
    }

    #[test]
    fn a_table_that_fits_again_is_read_and_what_a_repair_needs_comes_first() {
        assert!(remedy(None, &Source::Table).contains(DROP));
        let lacks = Halt::new("it has no column xid", "`alter table app.mine add column xid xid8`");
        is_before(&remedy(None, &Source::TableAfter(lacks.clone())), &lacks.remedy, DROP);
    }

    #[test]
    fn what_the_table_may_not_have_is_said_before_the_slot_that_has_it_is_dropped() {
        let gone = Halt::new("rows of app.mine were deleted", "set outbox.rows_kept = true");
        let said = remedy(None, &Source::TableInPart(gone.clone()));
        is_before(&said, "leaves out what the table lacks", &gone.remedy);
        is_before(&said, &gone.remedy, DROP);
        assert!(!remedy(None, &Source::Slot).contains(DROP));
    }

    #[test]
    fn a_table_that_does_not_fit_is_corrected_before_its_slot_is_dropped() {
        let unfit =
            Halt::new("no column headers", "`alter table app.mine add column headers jsonb`");
        let said = remedy(Some(&unfit), &Source::Table);
        assert!(said.starts_with(&unfit.remedy), "{said}");
        assert!(!said.contains("pg_drop_replication_slot"), "{said}");
    }
}
