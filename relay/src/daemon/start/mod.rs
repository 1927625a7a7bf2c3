//! The order of start-up, from the leader's lock on: read progress → fence → read progress again
//! → complete releases → parked lanes → tables and publication → partitions that were attached
//! → reconcile → slot, or a repair → `START_REPLICATION`. Each step assumes the ones before it.

mod attached;
mod connect;
mod connections;
mod decided;
mod decision;
mod feeds;
pub(crate) mod first;
mod given_up;
pub(super) mod rehearsal;
pub(super) mod repair;
mod slot;
pub(super) mod standby;
mod survey;
mod topics;

use std::sync::Arc;

use tokio_postgres::error::SqlState;
use uuid::Uuid;

use self::{
    connect::{connect_replication, connect_sink, look, still_leads},
    connections::Connections,
    decided::{Decided, Next, carry_out},
    decision::{
        Found, believe, decide, identify, next_xid, note_delivered, open_key, tell_of_a_lost_tail,
    },
    survey::survey,
};
use crate::{
    config::Config,
    core::{
        charset::Charset, halt::Halt, landmark::Recognition, lsn::Lsn, position::Position,
        progress::Progress, published::Published,
    },
    daemon::{
        context::Context,
        ended::Ended,
        leads, parked,
        started::{Learnt, Repairing, Started, Streaming},
        steps::{doing, store},
        tables::{self, Tables},
        unfinished::Unfinished,
    },
    dead_letter::{DeadLetters as _, Lanes, Store},
    fault::{self, Point},
    metrics::Cause,
    pipeline::delivery::Delivery,
    postgres::{
        catalog::{InspectError, characters},
        sql::SqlSession,
    },
    reconcile::{self, Left, Reconciled},
    repair::Taken,
    route::{Format, Origin, Router, TableName, quoted},
    sink::{ProgressStore as _, StoredProgress, any::AnySink},
    source::connect::StreamOptions,
};

/// Goes through the steps; `session` holds the leader's lock, `ready` was made while standing by.
/// Not to be confused with readiness: a start may wait for long for open transactions. Cancel
/// safe: nothing is delivered or confirmed here. Progress may be stored, and releases that are
/// delivered are finished. What the server still does is in `unfinished`.
pub(super) async fn start(
    context: &Context,
    session: &Arc<SqlSession>,
    ready: Option<AnySink>,
    learnt: Learnt,
    unfinished: &Unfinished,
) -> Result<Started, Ended> {
    let Context { config, parts, board, .. } = context;
    doing(board, "connecting for replication");
    let mut replication = connect_replication(context).await?;
    let look = look(context, &replication);
    still_leads(config, session, &mut replication).await?;
    let identity = identify(&mut replication).await?;

    doing(board, &format!("reading progress from {}", parts.sink.progress_place()));
    let known = open_key(config, session).await?;
    let sink = match ready {
        Some(sink) => sink,
        None => connect_sink(context, session, &identity, &known).await?,
    };
    let mut connections = Connections { session, replication, sink, look, unfinished };
    let found = fence(context, &mut connections).await?;
    let has_own = found.own.is_some();
    let mut stored = believe(config, parts, session, &identity, &known, found).await?;
    if let Some(delivered) = stored.as_ref().and_then(|stored| stored.position) {
        board.resumed(delivered); // Also where the relay goes no further.
    }
    if let Some(stored) = stored.as_mut() {
        remember_rollback(&mut connections, stored, learnt).await?;
    }

    doing(board, "reading parked lanes");
    let era = stored.as_ref().map_or(0, |stored| stored.era);
    let (system_id, timeline) = (identity.system_id.clone(), identity.timeline);
    let origin = Origin { system_id, timeline, era };
    let parked = read_parked(config, session, origin.clone(), stored.as_mut()).await?;
    let compared = parked::compare(context, session, stored.as_ref(), &identity).await;
    compared.map_err(|e| Ended::postgres("looking for parked events", e))?;

    let charset = charset(session, parts.connect.user()).await?;

    doing(board, "reconciling progress with the slot");
    let mut tables = tables::inspect(context, session, learnt.format).await?;
    if let Some(halt) = tables.unpublished.take() {
        return Err(tables::unpublished(halt, &tables, &mut connections.sink, stored).await);
    }
    if let Some(stored) = stored.as_mut() {
        tables::forget_misspelt(stored, &parts.mapping);
    }
    if tables.zoneless {
        tracing::warn!("created_at is a timestamp without time zone, and is taken as UTC");
    }
    // After the tables: a change that comes between is seen here, or by the next look.
    let (snapshot, published) = connections
        .look
        .at(session.client())
        .await
        .map_err(|e| Ended::postgres("looking at the publication", e))?;
    let oid = |name: &TableName| Some((published.tables.get(&name.to_string())?.oid, name.clone()));
    let oids: Vec<(u32, TableName)> = parts.mapping.tables().iter().filter_map(oid).collect();
    let stamped = &tables.stamped;
    let now = (&identity, snapshot.as_str(), &published);
    let attached = attached::look(context, session, stored.as_mut(), now, stamped).await?;
    attached.taken.iter().for_each(Taken::tell);
    if let Some(stored) = stored.as_ref().filter(|_| attached.noted) {
        store(&mut connections.sink, stored).await?;
    }
    context.streamed().forget_missing();
    let found = Found {
        identity: &identity,
        published: &published,
        unpublished_once: learnt.unpublished_once,
        tables: &tables.repair,
        has_delivered: known.has_delivered,
        attached: &attached,
    };
    let reconciled =
        decide(context, session, &mut connections.replication, stored.as_ref(), found).await?;
    let left = Left::of(true, learnt.unpublished_once);
    let looked =
        given_up::loses_nothing(context, session, &tables.repair, (&reconciled, left), &attached);
    looked.await?;
    let Reconciled { progress: carried, decision, gap } = reconciled;
    tell_of_a_lost_tail(stored.as_ref(), carried.as_ref());
    let slot = &config.postgres.slot;
    let mut progress = carried.unwrap_or_else(|| Progress::before_first_start(slot));
    identity.clone_into_progress(&mut progress);
    progress.slot.clone_from(slot);
    let end = identity.flush_lsn;
    topics::take(context, session, &mut progress, end, &tables.repair).await?;
    if stored.is_some() && !has_own {
        store(&mut connections.sink, &progress).await?; // Sealed from here on.
    }
    let mut noted = known.has_delivered;
    if stored.is_some() && !noted {
        note_delivered(config, session).await?;
        noted = true;
    }
    let unpublished_once = learnt.unpublished_once;
    let decided = Decided { decision, gap, published, unpublished_once };
    let next =
        carry_out(context, &mut connections, decided, &mut tables, &mut progress, &mut noted).await;
    let (from, published) = match next? {
        Next::Stream(from, published) => (from, published),
        Next::Repair(tables) => {
            let Connections { sink, look, .. } = connections;
            let (dead_letters, lanes) = parked;
            let probe = sink.probe();
            let delivery = Delivery::new(sink, dead_letters, lanes, progress, board.clone());
            let repairing = Repairing { delivery, probe, look, tables, origin, charset };
            return Ok(Started::Repair(Box::new(repairing)));
        }
    };
    if let Some(Halt { reason, remedy }) = &tables.misfit {
        tracing::warn!(
            reason,
            remedy,
            "a table no longer matches the settings: rows written before the change are delivered, \
             then the relay halts"
        );
    }
    if !noted {
        note_delivered(config, session).await?;
    }
    progress.stream_from(from);
    let Tables { format, stamped, .. } = tables;
    let router = Router::new(parts.mapping.clone(), &origin, format);
    let former = progress.former_topics().cloned();
    let router = router.with_stamped(stamped.clone()).with_oids(oids).with_former(former);
    let stream = Stream { from, format, charset, router, snapshot, published, stamped };
    start_stream(context, connections, parked, progress, stream).await
}

/// Where the stream begins, and what its rows are read and routed with.
struct Stream {
    from: Position,
    format: Format,
    charset: Charset,
    router: Router,
    /// Of the moment at which the tables were `published` so.
    snapshot: String,
    published: Published,
    stamped: Vec<TableName>,
}

/// Fences older relays, and reads what is stored once no one else can store.
async fn fence(
    context: &Context,
    connections: &mut Connections<'_>,
) -> Result<StoredProgress, Ended> {
    let Context { config, parts, board, .. } = context;
    let Connections { session, replication, sink, .. } = connections;
    doing(board, "fencing older relays");
    // Whoever does not know that it leads fences no one; the steps above may have taken long.
    still_leads(config, session, replication).await?;
    sink.fence().await.map_err(|e| Ended::sink("fencing older relays", e))?;
    fault::point(Point::Fenced);
    doing(board, &format!("reading the newest progress from {}", parts.sink.progress_place()));
    sink.read().await.map_err(|e| Ended::sink("reading progress", e))
}

/// Starts replication where the start has decided that it begins.
async fn start_stream(
    context: &Context,
    connections: Connections<'_>,
    (mut dead_letters, lanes): (Store, Lanes),
    progress: Progress,
    Stream { from, format, charset, router, snapshot, published, stamped }: Stream,
) -> Result<Started, Ended> {
    let Context { config, parts, board, .. } = context;
    let Connections { session, replication, mut sink, look, .. } = connections;
    if parts.sink.keeps_progress_in_database() {
        // Kafka's store has proven by its claim that it can store; this one does now.
        store(&mut sink, &progress).await?;
    }

    // The slot is there by now, so its stream has the announcement.
    let failed = |error| Ended::dead_letters("announcing releases again", error);
    dead_letters.announce_again().await.map_err(failed)?;
    fault::point(Point::AnnouncedAgain);

    doing(board, "starting replication");
    let options = StreamOptions {
        publications: vec![config.postgres.publication.clone()],
        binary: format == Format::Binary,
        messages: true,
        charset: charset.clone(),
    };
    let known = progress.landmark;
    let slot = &config.postgres.slot;
    let accepted = replication
        .start_replication(slot, Recognition::start(known, from), &options)
        .await
        .map_err(|e| Ended::postgres("starting replication", e))?;
    fault::point(Point::StreamStarted);
    // A relay that was frozen until here may have been replaced, and its successor gone again: what
    // it knows of progress would be too old to confirm.
    leads::still_leads(session, slot).await?;
    let confirmed = confirmed(config, session, from).await?;
    let recognition = Recognition::new(known, from, confirmed);
    context.streamed().begin(&progress.system_id, progress.timeline, from);
    context.streamed().look(from.resume_lsn(), &snapshot);
    let look = (look, published);
    let (probe, watch) = (sink.probe(), sink.watch());
    let delivery = Delivery::new(sink, dead_letters, lanes, progress, board.clone());
    let streaming = Streaming {
        delivery,
        probe,
        watch,
        look,
        snapshot,
        stamped,
        from,
        recognition,
        format,
        charset,
        router,
        accepted,
    };
    Ok(Started::Stream(Box::new(streaming)))
}

/// Where the slot is now that no one else can move it: what was committed before is not sent.
async fn confirmed(config: &Config, session: &SqlSession, from: Position) -> Result<Lsn, Ended> {
    let (slot, _) = survey(config, session).await?;
    let confirmed = slot.and_then(|slot| slot.confirmed_flush_lsn);
    match confirmed.filter(|confirmed| *confirmed <= from.resume_lsn()) {
        Some(confirmed) => Ok(confirmed),
        None => {
            let error = anyhow::anyhow!("the slot was moved meanwhile");
            Err(Ended::retry(Cause::Postgres, "starting replication", error))
        }
    }
}

/// What the server's texts are encoded in.
async fn charset(session: &SqlSession, role: &str) -> Result<Charset, Ended> {
    const DOING: &str = "asking for the server's encoding";
    characters::charset(session.client()).await.map_err(|error| match &error {
        InspectError::Query { source, .. }
            if source.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) =>
        {
            Ended::Halted(Halt::new(
                "the relay's role may not use the language plpgsql, by which it asks what the \
                 characters of the database's encoding are; nothing is published until it can",
                format!("`grant usage on language plpgsql to {}`", quoted(role)),
            ))
        }
        _ => Ended::postgres(DOING, error),
    })
}

/// A volume that was rolled back is seen as long as its WAL is shorter than it was, and then by the
/// stream. Remembered before anything else, so that no later start takes it for another.
async fn remember_rollback(
    connections: &mut Connections<'_>,
    stored: &mut Progress,
    learnt: Learnt,
) -> Result<(), Ended> {
    let Connections { session, replication, sink, .. } = connections;
    if stored.rolled_back.is_none() {
        // Once more: progress that a leader stored meanwhile is not past this end of the server's WAL.
        let now = identify(replication).await?;
        let next_xid = Some(next_xid(session).await?);
        // What the stream has told holds for the progress that it went by.
        let told = learnt.another_history.filter(|it| stored.position == Some(it.delivered));
        let told = told.map(|it| it.from);
        if let Some(end) = reconcile::sees_rollback(stored, &now, next_xid).or(told) {
            stored.note_rollback(end);
            store(sink, stored).await?;
        }
    }
    Ok(())
}

/// Finishes the releases that progress says are complete, and reads which lanes are parked.
async fn read_parked(
    config: &Config,
    session: &Arc<SqlSession>,
    origin: Origin,
    progress: Option<&mut Progress>,
) -> Result<(Store, Lanes), Ended> {
    const DOING: &str = "reading parked lanes";
    let failed = |error| Ended::dead_letters(DOING, error);
    let mut dead_letters =
        Store::open(Arc::clone(session), &config.name, origin).await.map_err(failed)?;
    let position = progress.as_ref().and_then(|progress| progress.position);
    if let Some(progress) = progress {
        for release in progress.releases.iter().filter(|release| release.complete) {
            match dead_letters.finish(release).await {
                Err(error) if !error.is_locked() => return Err(failed(error)),
                // Rows that somebody has locked are finished when they are announced again.
                Ok(()) | Err(_) => {}
            }
        }
        // What was put back and then discarded, or deleted by hand, is announced no more.
        let ids: Vec<Uuid> = progress.releases.iter().filter_map(|r| r.id.parse().ok()).collect();
        let under_way = dead_letters.under_way(&ids).await.map_err(failed)?;
        let under_way = |id: &str| id.parse().is_ok_and(|id| under_way.contains(&id));
        progress.releases.retain(|release| under_way(&release.id));
    }
    let max = config.parking.lanes_max;
    let mut lanes = dead_letters.lanes(max).await.map_err(failed)?;
    if let Some(position) = position {
        dead_letters.expect(position, &mut lanes).await.map_err(failed)?;
    }
    match lanes.len() {
        0 => {}
        lanes => tracing::info!(lanes, "lanes are parked"),
    }
    fault::point(Point::LanesRead);
    Ok((dead_letters, lanes))
}
