//! Whose progress it is, and what it means beside the slot and the cluster: asks all that
//! `reconcile`, which is pure, decides by. Called by `start` and `rehearsal`.

use bytes::Bytes;

use super::{attached::Attached, first, survey::survey};
use crate::{
    config::{Config, parts::Parts},
    core::{halt::Halt, identity::SystemIdentity, progress::Progress, published::Published},
    daemon::{context::Context, ended::Ended},
    metrics::Cause,
    postgres::sql::SqlSession,
    progress_key::{self, KeyError, Known},
    reconcile::{self, Believed, Claims, Facts, Reconciled},
    repair::{self, Table},
    sink::StoredProgress,
    source::connect::ReplicationConnection,
};

pub(super) async fn identify(
    replication: &mut ReplicationConnection,
) -> Result<SystemIdentity, Ended> {
    replication.identify_system().await.map_err(|e| Ended::postgres("identifying the cluster", e))
}

pub(super) async fn open_key(config: &Config, session: &SqlSession) -> Result<Known, Ended> {
    progress_key::open(session, &config.name).await.map_err(key_failed)
}

/// After the first progress was stored; a start that is cut short before leaves it to the next.
pub(super) async fn note_delivered(config: &Config, session: &SqlSession) -> Result<(), Ended> {
    progress_key::has_delivered(session, &config.name).await.map_err(key_failed)
}

pub(super) fn key_failed(error: KeyError) -> Ended {
    match error {
        KeyError::Halt(halt) => Ended::Halted(halt),
        KeyError::Database(e) => Ended::postgres("reading the relay's key", e),
    }
}

/// What of the stored progress is this relay's own.
pub(super) async fn believe(
    config: &Config,
    parts: &Parts,
    session: &SqlSession,
    identity: &SystemIdentity,
    known: &Known,
    found: StoredProgress,
) -> Result<Option<Progress>, Ended> {
    let own = decode(found.own)?;
    let stranger = found.stranger.map(|bytes| Progress::decode(&bytes));
    let (slot, database) = match stranger {
        None => (None, String::new()),
        Some(_) => survey(config, session).await?,
    };
    let Believed { progress, remark } = reconcile::believe(Claims {
        relay: &config.name,
        home: &parts.sink.progress_home(),
        start_with_all: first::takes_all(config, &parts.mapping),
        own,
        stranger,
        has_delivered: known.has_delivered,
        slot_name: &config.postgres.slot,
        slot: slot.as_ref(),
        database: &database,
        identity,
    })
    .map_err(Ended::Halted)?;
    if let Some(remark) = remark {
        tracing::warn!("{remark}");
    }
    Ok(progress)
}

fn decode(stored: Option<Bytes>) -> Result<Option<Progress>, Ended> {
    stored.map(|bytes| Progress::decode(&bytes)).transpose().map_err(|e| {
        Ended::Halted(Halt::new(
            format!("{e}, so the relay can't know which events are published"),
            "run the version that wrote it, or a newer one; or, to publish everything after the \
             slot's position, some of it again with its id, and leave out what a repair under way has \
             not read, run `outbox-relay resume --at slot`; or, \
             without a slot, to make one and leave out what is not published, run `outbox-relay resume \
             --at now`",
        ))
    })
}

impl SystemIdentity {
    pub(super) fn clone_into_progress(&self, progress: &mut Progress) {
        progress.system_id.clone_from(&self.system_id);
        progress.timeline = self.timeline;
    }
}

/// What was found out before it decides.
pub(super) struct Found<'a> {
    pub(super) identity: &'a SystemIdentity,
    pub(super) published: &'a Published,
    pub(super) unpublished_once: bool,
    /// For a repair, or why they can't be read for one.
    pub(super) tables: &'a Result<Vec<Table>, Halt>,
    pub(super) has_delivered: bool,
    pub(super) attached: &'a Attached,
}

pub(super) async fn decide(
    context: &Context,
    session: &SqlSession,
    replication: &mut ReplicationConnection,
    stored: Option<&Progress>,
    found: Found<'_>,
) -> Result<Reconciled, Ended> {
    let config = &context.config;
    const DOING: &str = "reconciling progress with the slot";
    let Found { identity, published, unpublished_once, tables, has_delivered, attached } = found;
    // Once more: progress that a leader stored meanwhile is not past the end of the server's WAL.
    let now = identify(replication).await?;
    if (&now.system_id, now.timeline) != (&identity.system_id, identity.timeline) {
        let error = anyhow::anyhow!("the server was promoted meanwhile");
        return Err(Ended::retry(Cause::Postgres, DOING, error));
    }
    let identity = &now;
    let next_xid = next_xid(session).await?;
    let (slot, database) = survey(config, session).await?;
    let history = match stored {
        Some(progress) if progress.timeline < identity.timeline => replication
            .timeline_history(identity.timeline)
            .await
            .map_err(|e| Ended::postgres(DOING, e))?,
        _ => vec![],
    };
    let predecessor = predecessor(context, session, stored).await?;
    let owner = progress_key::another_of_slot(session, &config.name, &config.postgres.slot).await;
    let owner = owner.map_err(|e| Ended::postgres(DOING, e))?;
    let unstamped = tables.as_ref().ok().and_then(|tables| Table::first_unstamped(tables));
    let facts = Facts {
        progress: stored,
        unstamped: unstamped.as_deref(),
        slot: slot.as_ref(),
        next_xid: Some(next_xid),
        history: &history,
        attached: attached.not_sent.as_ref().map(|(partition, _)| partition.as_str()),
        start_with_all: first::takes_all(config, &context.parts.mapping),
        predecessor: predecessor.as_deref(),
        slot_owner: owner.as_deref(),
        published: Some(published),
        unpublished_once,
        unrepairable: tables.as_ref().err(),
        has_delivered,
        ..facts(context, &database, identity)
    };
    let reconciled = match (reconcile::reconcile(&facts), &attached.not_sent) {
        // But for the partition, the slot would do.
        (Err(_), Some((_, halt)))
            if reconcile::reconcile(&Facts { attached: None, ..facts.clone() }).is_ok() =>
        {
            return Err(Ended::Halted(halt.clone()));
        }
        (reconciled, _) => reconciled.map_err(Ended::Halted)?,
    };
    Ok(reconciled)
}

/// What the settings say, and where they lead; the rest is the caller's to add.
pub(super) fn facts<'a>(
    context: &'a Context,
    database: &'a str,
    identity: &'a SystemIdentity,
) -> Facts<'a> {
    let (config, sink) = (&context.config, &context.parts.sink);
    Facts {
        progress_in_database: sink.keeps_progress_in_database(),
        repairs_broker_loss: sink.repairs_broker_loss(),
        stream: sink.stream(),
        ..Facts::new(&config.name, &config.postgres.slot, database, identity)
    }
}

/// As in [`Facts::predecessor`].
async fn predecessor(
    context: &Context,
    session: &SqlSession,
    stored: Option<&Progress>,
) -> Result<Option<String>, Ended> {
    const DOING: &str = "looking for other relays of this database";
    let failed = |e| Ended::postgres(DOING, e);
    if stored.is_some() || context.config.postgres.start.is_some() {
        return Ok(None);
    }
    // The relays of other routes leave nothing to this one.
    let beside = context.config.route.iter().flat_map(|route| &route.beside);
    let ours: Vec<&str> = beside.chain([&context.config.name]).map(String::as_str).collect();
    let other = progress_key::another_that_delivered(session, &ours).await.map_err(failed)?;
    match other {
        None => Ok(None),
        Some(other) => {
            let rows = repair::rows_there(session.client(), context.parts.mapping.tables());
            Ok((rows.await.map_err(failed)? != Some(0)).then_some(other))
        }
    }
}

/// The first transaction id that is still to come. A snapshot's end is not that: it is behind ids of
/// transactions that run, such as of a commit that waits for a standby and was sent and delivered meanwhile.
/// `age` counts from the server's own counter, and assigns none.
pub(super) async fn next_xid(session: &SqlSession) -> Result<u64, Ended> {
    let failed = |e| Ended::postgres("identifying the cluster", e);
    let sql = "select next::text::int8 \
                   operator(pg_catalog.+) greatest(pg_catalog.age(next::pg_catalog.xid), 0) \
               from pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot()) as it (next)";
    let row = session.client().query_one(sql, &[]).await.map_err(failed)?;
    row.try_get::<_, i64>(0).map(i64::unsigned_abs).map_err(failed)
}

/// After a failover that lost the newest commits, consumers have events that the database has not.
pub(super) fn tell_of_a_lost_tail(stored: Option<&Progress>, carried: Option<&Progress>) {
    let (Some(stored), Some(carried)) = (stored, carried) else { return };
    if let (Some(published), Some(kept)) = (stored.position, carried.position)
        && published != kept
    {
        tracing::warn!(
            %published, switch = %kept, timeline = carried.timeline,
            "events were published past the point at which this server's timeline begins: their \
             transactions are not in this database; use synchronous replication to prevent that"
        );
    }
}
