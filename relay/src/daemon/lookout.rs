//! Looks again and again while the relay streams, at what `control` does not see: whether the tables are still
//! published, and whether the relay's claim stands.

use std::time::Duration;

use tokio::time::sleep;

use super::{
    context::Context,
    ended::Ended,
    locks, standby, standbys,
    tables::{self, Tables},
};
use crate::{
    core::halt::Halt, metrics::Cause, postgres::sql::SqlSession, route::Format, state::Board,
};

/// So often.
const TABLES_INTERVAL: Duration = Duration::from_secs(5);
/// What the board is told of the relay's claim.
const CLAIM: &str = "leader's claim";
/// And of the synchronous standbys.
const STANDBYS: &str = "standbys";

/// Returns what ends the attempt. Cancel safe.
pub(super) async fn watch(context: &Context, session: &SqlSession) -> Ended {
    let board = &context.board;
    let mut skipped = locks::Skipped::default();
    let _known = OnlyWhileItStreams(board);
    loop {
        sleep(TABLES_INTERVAL).await;
        match standby::still_leads(session, &context.config.postgres.slot).await {
            Ok(()) => drop(board.concern(CLAIM, None)),
            Err(Ended::Halted(Halt { reason, remedy })) => {
                if board.concern(CLAIM, Some(format!("{reason}; {remedy}"))) {
                    tracing::warn!(
                        reason,
                        remedy,
                        "events flow, but no standby can take over, and the next start halts"
                    );
                }
            }
            Err(Ended::Retry { error, .. }) if locks::passes(error.as_ref()) => {}
            // The table was made again, or another relay was told that this one is gone.
            Err(ended) => return ended,
        }
        tell_of_standbys(context, session).await;
        match tables::inspect(context, session, Format::Binary).await {
            Ok(Tables { unpublished: None, .. }) => skipped.passed(),
            // The next start remembers it, and halts.
            Ok(Tables { unpublished: Some(Halt { reason, .. }), .. }) => {
                let doing = "looking at the outbox tables";
                return Ended::retry(Cause::Postgres, doing, anyhow::anyhow!(reason));
            }
            Err(Ended::Retry { error, doing, .. }) if locks::passes(error.as_ref()) => {
                skipped.tell(session, doing, error.as_ref()).await;
            }
            Err(ended) => return ended,
        }
    }
}

/// Commits that wait for a standby do not wait for the relay, but the relay waits as they do as soon as it must
/// park an event.
async fn tell_of_standbys(context: &Context, session: &SqlSession) {
    let Context { config, parts, board } = context;
    let Ok(found) = standbys::look(session.client()).await else { return };
    let own = standbys::counts(&found.names, &standbys::application(config, parts));
    let away = found.away().filter(|_| !own);
    let concern = away.as_ref().map(|(seen, remedy)| format!("{seen}; {remedy}"));
    if board.concern(STANDBYS, concern)
        && let Some((seen, remedy)) = away
    {
        tracing::warn!(seen, remedy, "commits wait for a synchronous standby");
    }
}

/// Takes back what no one looks at any more.
struct OnlyWhileItStreams<'a>(&'a Board);

impl Drop for OnlyWhileItStreams<'_> {
    fn drop(&mut self) {
        self.0.concern(STANDBYS, None);
    }
}
