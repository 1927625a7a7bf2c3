//! Makes the replication slot, at a first start or for a repair, and reads its snapshot.

use std::time::Duration;

use super::connections::Connections;
use crate::{
    core::{progress::SnapshotRecord, published::Published},
    daemon::{context::Context, ended::Ended, steps::doing},
    fault::{self, Point},
    postgres::{
        catalog::{publication::Look, slot},
        sql::SqlSession,
    },
    source::connect::{CreatedSlot, ReplicationConnection},
    state::{Board, Phase},
};

/// While a slot is being made, the transactions it waits for are named this often.
const WAITING_REPORT: Duration = Duration::from_secs(5);

/// Makes the slot. Returns the snapshot that it begins with, which shows exactly what the stream
/// will not send; its LSN is the slot's consistent point; and how the tables are published in it. Cancel
/// safe: what the server still does is in `unfinished`.
pub(super) async fn make(
    context: &Context,
    connections: &mut Connections<'_>,
) -> Result<(SnapshotRecord, Published), Ended> {
    const DOING: &str = "making the replication slot";
    let (name, board) = (&context.config.postgres.slot, &context.board);
    let Connections { session, replication, look, unfinished, .. } = connections;
    doing(board, DOING);
    // Standbys of PostgreSQL 17 and later take it over.
    let failover = replication.server_version_num() >= 170_000;
    unfinished.begin(replication.cancel_handle());
    let created = {
        let create = replication.create_slot(name, failover);
        tokio::pin!(create);
        loop {
            tokio::select! {
                created = &mut create => break created,
                () = tokio::time::sleep(WAITING_REPORT) => report_writers(board, session).await,
            }
        }
    }
    .map_err(|e| Ended::postgres(DOING, e))?;
    fault::point(Point::SlotMade);
    unfinished.end();
    tracing::info!(slot = name, consistent_point = %created.consistent_point, "made the slot");
    exported_snapshot(session, look, &created).await
}

/// Drops a slot that is of no use any more.
pub(super) async fn drop(name: &str, replication: &mut ReplicationConnection) -> Result<(), Ended> {
    tracing::warn!(slot = name, "dropping the slot, to make a new one");
    let dropped = replication.drop_slot(name).await;
    dropped.map_err(|e| Ended::postgres("dropping the replication slot", e))
}

/// Names what the slot waits for: every transaction that had written before it was begun.
async fn report_writers(board: &Board, session: &SqlSession) {
    if let Ok(writers) = slot::writers_waited_for(session.client()).await {
        let open = slot::in_words(&writers);
        tracing::warn!(transactions = open, "the slot waits for open transactions to end");
        let doing = format!("making the slot: waiting for open transactions to end: {open}");
        board.phase(Phase::Starting { doing });
    }
}

async fn exported_snapshot(
    session: &SqlSession,
    look: &Look,
    slot: &CreatedSlot,
) -> Result<(SnapshotRecord, Published), Ended> {
    const DOING: &str = "reading the slot's snapshot";
    let client = session.client();
    let read = async {
        let quoted = slot.snapshot_name.replace('\'', "''");
        client
            .batch_execute(&format!(
                "begin isolation level repeatable read read only; \
                 set transaction snapshot '{quoted}'"
            ))
            .await?;
        let (snapshot, published) = look.at(client).await?;
        let now = "select (extract(epoch from clock_timestamp()) * 1000)::int8";
        let taken_ms = client.query_one(now, &[]).await?.try_get(0)?;
        client.batch_execute("commit").await?;
        let snapshot = well_formed(snapshot);
        let leaves = published.leaves();
        let lsn = slot.consistent_point;
        let snapshot = SnapshotRecord { lsn, taken_ms, snapshot, leaves };
        anyhow::Ok((snapshot, published))
    };
    read.await.map_err(|e| Ended::postgres(DOING, e))
}

/// The server may export a snapshot of which xmax is below xmin: it moves xmin past whatever has ended
/// by the slot's beginning, and xmax only past what was committed since it began to look. Everything
/// below xmin is visible in it and will not be streamed, also what is at or above xmax; but read back, a
/// `pg_snapshot` of that form is a syntax error.
fn well_formed(snapshot: String) -> String {
    let mut bounds = snapshot.split(':').map(str::parse::<u64>);
    match (bounds.next(), bounds.next()) {
        (Some(Ok(xmin)), Some(Ok(xmax))) if xmax < xmin => format!("{xmin}:{xmin}:"),
        _ => snapshot,
    }
}

#[cfg(test)]
mod tests {
    use super::well_formed;

    #[test]
    fn a_snapshot_that_ends_before_it_begins_ends_where_it_begins() {
        for (exported, read_back) in [
            ("11527:11526:", "11527:11527:"),
            ("11527:11527:", "11527:11527:"),
            ("11520:11527:11520,11523", "11520:11527:11520,11523"),
        ] {
            assert_eq!(well_formed(exported.to_owned()), read_back);
        }
    }
}
