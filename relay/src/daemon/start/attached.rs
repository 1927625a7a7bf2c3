//! Partitions that were attached since the newest stored snapshot: halts for rows of which a person decides, and has the
//! stream tell of the others whether it has them. Called by `start` and `rehearsal`.

use tokio_postgres::Client;

use super::survey::survey;
use crate::{
    core::{
        halt::Halt,
        identity::SystemIdentity,
        progress::{NOT_SENT_MAX, NotSentRecord, Progress, SnapshotRecord},
        published::Published,
        snapshot,
        streamed::Awaited,
    },
    daemon::{context::Context, ended::Ended, locks},
    postgres::sql::{self, SqlSession},
    repair::{self, Since, SlotAt, Taken},
    route::TableName,
};

/// What is told of those that the stream has not sent.
#[derive(Debug, Default)]
pub(super) struct Attached {
    /// A partition with such rows, and what a person can do with them.
    pub(super) not_sent: Option<(String, Halt)>,
    /// Progress says so now, and is to be stored.
    pub(super) noted: bool,
    /// Others that are taken for published.
    pub(super) taken: Vec<Taken>,
}

const DOING: &str = "looking into the partitions that were attached";

fn failed(error: tokio_postgres::Error) -> Ended {
    Ended::postgres(DOING, error)
}

/// Looks into them. What is yet to be compared with the stream waits in the context; a rehearsal, which has none, goes by
/// transaction ids. One that has many rows takes its time, so it is read by a session of its own.
pub(super) async fn look(
    context: &Context,
    session: &SqlSession,
    stored: Option<&mut Progress>,
    (identity, snapshot, published): (&SystemIdentity, &str, &Published),
    stamped: &[TableName],
) -> Result<Attached, Ended> {
    // A repair that was begun has its own snapshots; and a person has decided to take what is there.
    let streamed = stored.filter(|stored| stored.published.is_some() && stored.repair.is_none());
    let Some(stored) = streamed else { return Ok(Attached::default()) };
    let (Some(position), Some(lower)) = (stored.position, stored.snapshots.first().cloned()) else {
        return Ok(Attached::default());
    };
    context.streamed().begin(&stored.system_id, stored.timeline, position);
    if (&stored.system_id, stored.timeline) != (&identity.system_id, identity.timeline) {
        stored.departed.clear(); // Of another history.
    }
    let (memory, departed) = (context.streamed().memory(), stored.departed.clone());
    let (slot, _) = survey(&context.config, session).await?;
    let confirmed = slot.and_then(|slot| slot.confirmed_flush_lsn);
    let since = Since {
        mapping: &context.parts.mapping,
        stamped,
        published,
        lower: (lower.lsn, &lower.snapshot),
        leaves: &lower.leaves,
        departed: &departed,
        memory: &memory,
        every: false,
        slot: Some(SlotAt { name: &context.config.postgres.slot, confirmed }),
    };
    let missing = context.streamed().missing().cloned();
    let any = repair::any_attached_since(session.client(), &since).await.map_err(failed)?;
    if !any && missing.is_none() && stored.not_sent.is_empty() {
        return Ok(Attached::default());
    }
    let application = format!("outbox-relay {} partitions", context.config.name);
    let reading = sql::connect(&context.parts.connect, &application);
    let reading = reading.await.map_err(|e| Ended::connect(DOING, e))?;
    locks::limit(&reading, context.config.leader.timeout).await.map_err(failed)?;
    let client = reading.client();

    let attached = note(client, &since, stored, &lower, missing).await.map_err(failed)?;
    if attached.not_sent.is_some() || !any {
        return Ok(attached);
    }
    let found = repair::look_into(client, &since, None).await.map_err(failed)?;
    if let Some(halt) = found.halt {
        return Err(Ended::Halted(halt));
    }
    let mut taken = found.moved;
    taken.retain(|it| !made_anew(stored.published.as_ref(), published, &it.root));
    if !found.more.is_empty() {
        let not_sent = store_those_left(client, &since, stored, found.more).await;
        return Ok(Attached { taken, ..not_sent.map_err(failed)? });
    }
    let witness = stored.witness.map(|witness| witness.xid);
    let compared = context.streamed().doubtful(&found.newer, witness);
    let witness = witness.unwrap_or_default();
    let sent = repair::taken_as_sent(client, &since, &compared.taken_as_sent, witness).await;
    taken.extend(sent.map_err(failed)?);
    if !compared.awaited.is_empty() {
        let until = repair::end_of_wal(client).await.map_err(failed)?;
        let (rows, snapshot, partitions) =
            (compared.awaited, snapshot.to_owned(), found.partitions);
        context.streamed().wait_for(Awaited { until, rows, snapshot, partitions });
    }
    Ok(Attached { taken, ..attached })
}

/// A table that was made anew, as from a dump, has partitions whose rows look moved: that is told by itself.
fn made_anew(was: Option<&Published>, now: &Published, root: &str) -> bool {
    let both = || Some((was?.tables.get(root)?, now.tables.get(root)?));
    both().is_some_and(|(was, now)| was.oid != now.oid)
}

/// Writes into progress what the stream has not sent, as far as it is still there.
async fn note(
    client: &Client,
    since: &Since<'_>,
    stored: &mut Progress,
    lower: &SnapshotRecord,
    missing: Option<Awaited>,
) -> Result<Attached, tokio_postgres::Error> {
    let mut records = stored.not_sent.clone();
    let mut newest = None;
    if let Some(missing) = missing {
        let (found, xids) = repair::not_sent(client, since, &missing).await?;
        // All that was committed until then is delivered, so a repair need not publish it again.
        let delivered = stored.position.is_some_and(|at| at.resume_lsn() >= missing.until);
        if let Some(snapshot) = snapshot::without(&missing.snapshot, &xids).filter(|_| delivered) {
            let (lsn, leaves) = (missing.until, since.published.leaves());
            newest = Some(SnapshotRecord { lsn, snapshot, leaves, ..lower.clone() });
        }
        records.retain(|old| found.iter().all(|new| new.partition != old.partition));
        records.extend(found);
    }
    let attached = store_those_left(client, since, stored, records).await?;
    if let Some(newest) = newest.filter(|_| attached.not_sent.is_some()) {
        stored.snapshots.insert(0, newest);
    }
    Ok(attached)
}

async fn store_those_left(
    client: &Client,
    since: &Since<'_>,
    stored: &mut Progress,
    records: Vec<NotSentRecord>,
) -> Result<Attached, tokio_postgres::Error> {
    let (mut left, mut not_sent) = (Vec::new(), None);
    for record in records {
        if let Some(there) = repair::unmoved(client, since, &record).await? {
            left.push(record);
            not_sent.get_or_insert(there);
        }
    }
    left.truncate(NOT_SENT_MAX);
    let noted = left != stored.not_sent;
    stored.not_sent = left;
    Ok(Attached { not_sent, noted, taken: Vec::new() })
}
