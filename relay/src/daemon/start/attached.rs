//! Partitions that were attached since the newest stored snapshot: halts for rows of which a person decides, and has the
//! stream tell of the others whether it has them. Called by `start` and `rehearsal`.

use crate::{
    core::{
        halt::Halt,
        progress::{NOT_SENT_MAX, Progress, SnapshotRecord},
        published::Published,
        snapshot,
        streamed::Awaited,
    },
    daemon::{context::Context, ended::Ended, locks},
    metrics::Cause,
    postgres::sql::{self, SqlSession},
    repair::{self, Since},
    route::TableName,
};

/// What is told of those that the stream has not sent.
#[derive(Debug, Default)]
pub(super) struct Attached {
    /// A partition with such rows, and what a person can do with them.
    pub(super) not_sent: Option<(String, Halt)>,
    /// Progress says so now, and is to be stored.
    pub(super) noted: bool,
}

const DOING: &str = "looking into the partitions that were attached";

fn failed(error: tokio_postgres::Error) -> Ended {
    Ended::retry(Cause::Postgres, DOING, error)
}

/// Looks into them. What is yet to be compared with the stream waits in the context; a rehearsal, which has none, goes by
/// transaction ids. One that has many rows takes its time, so it is read by a session of its own.
pub(super) async fn look(
    context: &Context,
    session: &SqlSession,
    stored: Option<&mut Progress>,
    (snapshot, published): (&str, &Published),
    stamped: &[TableName],
) -> Result<Attached, Ended> {
    // A repair that was begun has its own snapshots; and a person has decided to take what is there.
    let streamed = stored.filter(|stored| stored.published.is_some() && stored.repair.is_none());
    let Some((stored, position, lower)) = streamed
        .and_then(|it| Some((it.position?, it.snapshots.first()?.clone(), it)))
        .map(|(position, lower, it)| (it, position, lower))
    else {
        return Ok(Attached::default());
    };
    let since = since(context, stamped, published, &lower);
    let (system_id, timeline) = (&stored.system_id, stored.timeline);
    context.streamed().begin(system_id, timeline, position);
    let any = repair::any_attached_since(session.client(), &since).await.map_err(failed)?;
    if !any && stored.not_sent.is_empty() {
        return Ok(Attached::default());
    }
    let application = format!("outbox-relay {} partitions", context.config.name);
    let reading = sql::connect(&context.parts.connect, &application);
    let reading = reading.await.map_err(|e| Ended::connect(DOING, e))?;
    locks::limit(&reading, context.config.leader.timeout).await.map_err(failed)?;
    let client = reading.client();

    let mut records = stored.not_sent.clone();
    let missing = context.streamed().missing().cloned();
    let mut newest = None;
    if let Some(missing) = missing {
        let found = repair::not_sent(client, &since, &missing.rows).await.map_err(failed)?;
        let (found, xids) = found;
        // All that was committed until then is delivered, so a repair need not publish it again.
        if position.resume_lsn() >= missing.until
            && let Some(snapshot) = snapshot::without(&missing.snapshot, &xids)
        {
            let (lsn, leaves) = (missing.until, published.leaves());
            newest = Some(SnapshotRecord { lsn, snapshot, leaves, ..lower.clone() });
        }
        records.retain(|old| found.iter().all(|new| new.partition != old.partition));
        records.extend(found);
        records.truncate(NOT_SENT_MAX);
    }
    let (mut still, mut not_sent) = (Vec::new(), None);
    for record in records {
        let there = repair::still_there(client, &since, &record).await.map_err(failed)?;
        if let Some(there) = there {
            still.push(record);
            not_sent.get_or_insert(there);
        }
    }
    let noted = still != stored.not_sent;
    stored.not_sent = still;
    if let Some(newest) = newest.filter(|_| not_sent.is_some()) {
        stored.snapshots.insert(0, newest);
    }
    if not_sent.is_some() || !any {
        return Ok(Attached { not_sent, noted });
    }
    let found = repair::look_into(client, &since, None).await.map_err(failed)?;
    if let Some(halt) = found.halt {
        return Err(Ended::Halted(halt));
    }
    for Halt { reason, remedy } in found.moved {
        tracing::warn!(reason, remedy, "rows of a partition that was attached are not published");
    }
    let witness = stored.witness.map(|witness| witness.xid);
    let left = context.streamed().doubtful(&found.newer, lower.lsn, witness);
    if !left.is_empty() {
        let until = repair::end_of_wal(client).await.map_err(failed)?;
        let snapshot = snapshot.to_owned();
        context.streamed().wait_for(Awaited { until, rows: left, snapshot });
    }
    Ok(Attached { not_sent, noted })
}

fn since<'a>(
    context: &'a Context,
    stamped: &'a [TableName],
    published: &'a Published,
    lower: &'a SnapshotRecord,
) -> Since<'a> {
    Since {
        mapping: &context.parts.mapping,
        stamped,
        published,
        lower: &lower.snapshot,
        leaves: &lower.leaves,
        every: false,
    }
}
