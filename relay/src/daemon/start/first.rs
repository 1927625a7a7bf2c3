//! A first start that begins with what is committed from then on: says so in the progress topic,
//! makes the slot, and says which rows it leaves out. One that takes the rows which are there is a
//! repair that begins after nothing.

use super::{connections::Connections, slot};
use crate::{
    config::{Config, Start},
    core::{position::Position, progress::Progress},
    daemon::{context::Context, ended::Ended, steps::store},
    fault::{self, Point},
    postgres::sql::SqlSession,
    repair,
    route::{Mapping, TableName},
};

/// Whether a first start publishes the rows that are there. Those of our own table were written for
/// a relay; another's may be as old as the table.
pub(crate) fn takes_all(config: &Config, mapping: &Mapping) -> bool {
    config.postgres.start.map_or_else(|| mapping.is_ours(), |start| start == Start::All)
}

/// Makes the slot and stores its snapshot; returns where it begins. Cancel safe.
pub(super) async fn make(
    context: &Context,
    connections: &mut Connections<'_>,
    progress: &mut Progress,
) -> Result<Position, Ended> {
    // Were the relay to die between making the slot and storing where it begins, the next start
    // would find a slot of unknown origin; this record says that it was ours.
    store(&mut connections.sink, progress).await?;
    fault::point(Point::FirstProgressStored);
    if progress.era == 0 {
        tell_of_rows_left_out(connections.session, context.parts.mapping.tables()).await?;
    } else {
        tracing::warn!(
            "making a new slot, as was decided with `resume`: what was committed before it and is not \
             published is left out. To find it, compare the ids in the tables with the header \
             outbox-id in the topics"
        );
    }
    let (snapshot, published) = slot::make(context, connections).await?;
    let position = Position::UpTo(snapshot.lsn);
    progress.begin_slot(snapshot, published);
    store(&mut connections.sink, progress).await?;
    fault::point(Point::SlotStored);
    Ok(position)
}

async fn tell_of_rows_left_out(session: &SqlSession, tables: &[TableName]) -> Result<(), Ended> {
    const DOING: &str = "counting the rows that are there";
    let found = repair::rows_there(session.client(), tables).await;
    let rows = match found.map_err(|e| Ended::postgres(DOING, e))? {
        Some(0) => return Ok(()),
        Some(rows) => repair::in_words(rows),
        None => "an unknown number of rows (the role may not read them)".to_owned(),
    };
    tracing::warn!(
        rows,
        "first start with postgres.start = \"now\": these rows are already in the table and are not \
         published; to publish them, insert them again and leave out the column xid"
    );
    Ok(())
}
