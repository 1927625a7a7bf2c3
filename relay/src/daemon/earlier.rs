//! What gets a relay on whose stream has rows that were written while their table did not fit.
//!
//! The stream has them in the shape that they were written in, and no change of the table reaches them. A
//! setting may; or the table has them, in its present shape, and a repair reads them from there.

use super::{
    context::Context,
    ended::Ended,
    tables::{self, Tables},
};
use crate::{
    core::{halt::Halt, lsn::Lsn},
    postgres::sql::SqlSession,
    reconcile::drop_slot,
    repair,
    route::Format,
};

/// The halt with what the tables, as they are now, let a person do.
pub(super) async fn explained(context: &Context, session: &SqlSession, halt: Halt) -> Ended {
    let found = match tables::inspect(context, session, Format::Binary).await {
        Ok(found) => found,
        // Tried again, from the same row.
        Err(ended) => return ended,
    };
    let config = &context.config;
    let unrepairable = unrepairable(&found, config.outbox.rows_kept);
    let unfit = found.unpublished.as_ref().or(found.misfit.as_ref());
    let from_table = if context.board.repaired_from() == Lsn::ZERO {
        NO_SNAPSHOT.to_owned()
    } else {
        from_table(&config.postgres.slot, unrepairable.as_ref())
    };
    Ended::Halted(told(halt, unfit, &from_table))
}

/// Why a repair could not tell that it has published all.
fn unrepairable(found: &Tables, rows_kept: bool) -> Option<Halt> {
    match &found.repair {
        Err(halt) => Some(halt.clone()),
        Ok(_) if rows_kept => None,
        Ok(tables) => tables.iter().find_map(|table| repair::accounted_for(table).err()),
    }
}

/// Without the slot they could not be told from rows that are published, such as right after `resume`.
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

/// A repair reads the table as it is now.
fn from_table(slot: &str, unrepairable: Option<&Halt>) -> String {
    let first = match unrepairable {
        None => String::new(),
        Some(Halt { reason, remedy }) => format!("first, because {reason}: {remedy}; then "),
    };
    format!(
        "to publish them from the table, some that are before them again, {first}drop the slot, and the relay \
         makes a new one: {}",
        drop_slot(slot)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remedy(unfit: Option<&Halt>, unrepairable: Option<&Halt>) -> String {
        let halt = Halt::new("rows without headers", "no setting reaches these rows");
        told(halt, unfit, &from_table("s", unrepairable)).remedy
    }

    #[test]
    fn a_table_that_fits_again_is_read_and_what_a_repair_needs_comes_first() {
        let drop = "pg_drop_replication_slot('s')";
        assert!(remedy(None, None).contains(drop), "{}", remedy(None, None));
        let lacks = Halt::new("no account is kept", "`select outbox.note_deletions('app.mine')`");
        let first = remedy(None, Some(&lacks));
        assert!(
            first.find(&lacks.remedy).expect("it is said") < first.find(drop).expect("so is this")
        );
    }

    #[test]
    fn a_table_that_does_not_fit_is_corrected_before_its_slot_is_dropped() {
        let unfit =
            Halt::new("no column headers", "`alter table app.mine add column headers jsonb`");
        let said = remedy(Some(&unfit), None);
        assert!(said.starts_with(&unfit.remedy), "{said}");
        assert!(!said.contains("pg_drop_replication_slot"), "{said}");
    }
}
