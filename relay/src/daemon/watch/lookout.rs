//! Looks again and again while the relay streams, at what `control` does not see: whether the tables are still
//! published, whether the relay's claim stands, who stands by, and what keeps WAL.

use std::time::Duration;

use tokio::time::sleep;

use crate::{
    config::Config,
    core::halt::Halt,
    daemon::{
        context::Context,
        ended::Ended,
        leads, locks, standbys,
        tables::{self, Tables},
    },
    metrics::Cause,
    postgres::{
        catalog::kept::{self, Kept},
        sql::SqlSession,
    },
    route::Format,
    state::Board,
};

/// Time between two looks.
const TABLES_INTERVAL: Duration = Duration::from_secs(5);
/// Concerns, as the board names them.
const CLAIM: &str = "leader's claim";
const WAL_KEPT: &str = "WAL kept";
const STANDBYS: &str = "standbys";

/// Returns what ends the attempt. Cancel safe.
pub(in crate::daemon) async fn watch(context: &Context, session: &SqlSession) -> Ended {
    let board = &context.board;
    let (mut skipped, mut kept_wal) = (locks::Skipped::default(), KeptWal::default());
    let _known = OnlyWhileItStreams(board);
    loop {
        sleep(TABLES_INTERVAL).await;
        match leads::still_leads(session, &context.config.postgres.slot).await {
            Ok(()) => drop(board.concern(CLAIM, None)),
            Err(Ended::NoLeaders(Halt { reason, remedy })) => {
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
        kept_wal.look(&context.config, session, board).await;
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
    let Context { config, parts, board, .. } = context;
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

/// WAL that is kept for someone's open transaction, as the last look found it.
#[derive(Debug, Default)]
struct KeptWal {
    last: Option<Kept>,
    told: bool,
}

impl KeptWal {
    /// Tells of it from the second look on that finds the same transaction.
    async fn look(&mut self, config: &Config, session: &SqlSession, board: &Board) {
        let slot = &config.postgres.slot;
        let Ok(found) = kept::look(session.client(), slot).await else { return };
        let stays = match (&found, &self.last) {
            (Some(now), Some(before)) => now.is_by(before),
            _ => false,
        };
        self.told &= stays;
        let words = found.as_ref().filter(|_| stays).map(|kept| kept.in_words(slot));
        board.concern(WAL_KEPT, words.as_ref().map(|(seen, remedy)| format!("{seen}; {remedy}")));
        if let Some((seen, remedy)) = words
            && !std::mem::replace(&mut self.told, true)
        {
            tracing::warn!(seen, remedy, "an open transaction keeps WAL");
        }
        self.last = found;
    }
}

/// Takes back what no one looks at any more.
struct OnlyWhileItStreams<'a>(&'a Board);

impl Drop for OnlyWhileItStreams<'_> {
    fn drop(&mut self) {
        for about in [STANDBYS, WAL_KEPT] {
            self.0.concern(about, None);
        }
    }
}
