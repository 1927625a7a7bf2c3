//! The lines that a start needs beside the control session, each looked at before it is used: the
//! replication connection, and a sink that may fence.

use std::sync::Arc;

use super::{
    decision::{believe, facts},
    survey::survey,
};
use crate::{
    config::Config,
    core::{halt::Halt, identity::SystemIdentity},
    daemon::{context::Context, ended::Ended},
    fault::{self, Point},
    leader,
    metrics::Cause,
    postgres::{catalog::publication::Look, sql::SqlSession},
    progress_key::Known,
    reconcile::{self, Facts},
    route::quoted,
    sink::{ProgressStore as _, any::AnySink},
    source::connect::ReplicationConnection,
};

pub(super) async fn connect_replication(context: &Context) -> Result<ReplicationConnection, Ended> {
    let application = format!("outbox-relay {}", context.config.name);
    ReplicationConnection::connect(&context.parts.connect, &application).await.map_err(|error| {
        match Ended::connect("connecting for replication", error) {
            // The role's other session is there, so this is what it lacks.
            Ended::Halted(Halt { reason, .. }) if reason.contains("SQLSTATE 42501") => {
                let role = quoted(context.parts.connect.user());
                Ended::Halted(Halt::new(reason, format!("`alter role {role} replication`")))
            }
            ended => ended,
        }
    })
}

/// A sink that may fence: what is stored under its name is this relay's own.
pub(super) async fn connect_sink(
    context: &Context,
    session: &Arc<SqlSession>,
    identity: &SystemIdentity,
    known: &Known,
) -> Result<AnySink, Ended> {
    let config = &context.config;
    let mut sink = AnySink::start(&context.parts.sink, &config.name, known.key.clone(), session)
        .map_err(|e| Ended::sink("making the sink", e))?;
    let seen = sink.peek().await;
    let seen = seen.map_err(|e| Ended::sink("reading progress", e))?;
    let seen = believe(config, &context.parts, session, identity, known, seen).await?;
    let (slot, database) = survey(config, session).await?;
    reconcile::is_ours(&Facts {
        progress: seen.as_ref(),
        slot: slot.as_ref(),
        has_delivered: known.has_delivered,
        ..facts(context, &database, identity)
    })
    .map_err(Ended::Halted)?;
    fault::point(Point::ProgressRead);
    Ok(sink)
}

/// With several hosts in the URL, or one name that moves to another server, a failover may come
/// between two connections; and a relay that was frozen may have been replaced meanwhile. The one
/// connection must see that the other's session leads.
pub(super) async fn still_leads(
    config: &Config,
    session: &SqlSession,
    replication: &mut ReplicationConnection,
) -> Result<(), Ended> {
    const DOING: &str = "looking whether this relay still leads";
    let question = leader::leads(&config.postgres.slot, session.pid());
    let rows = replication.simple_query(&question).await;
    let rows = rows.map_err(|e| Ended::postgres(DOING, e))?;
    if rows.first().and_then(|row| row.first()?.as_deref()) == Some("t") {
        return Ok(());
    }
    let error = anyhow::anyhow!(
        "the session at {} does not lead, or another server answers for replication at {}",
        session.host(),
        replication.host()
    );
    Err(Ended::retry(Cause::Postgres, DOING, error))
}

/// How the publication is looked at on that server.
pub(super) fn look(context: &Context, replication: &ReplicationConnection) -> Look {
    let tables = context.parts.mapping.tables().iter();
    Look::new(
        replication.server_version_num(),
        &context.config.postgres.publication,
        tables.map(|table| (table.to_string(), table.schema.as_str(), table.table.as_str())),
    )
}
