//! A route whose topics were changed: what it has given up, and what it takes anew.

use std::time::Duration;

use tokio_postgres::error::SqlState;

use crate::{
    core::{
        halt::Halt,
        lsn::Lsn,
        progress::{FormerTopics, Progress},
    },
    daemon::{context::Context, ended::Ended},
    postgres::sql::SqlSession,
    repair::{self, Table},
};

/// How long a look for what was passed over may take.
const LOOK_MAX: Duration = Duration::from_secs(5);

/// Remembers what the route takes. What it has given up it publishes up to `end`. Of what it takes anew it tells how much of it
/// the tables have that it has passed over: no other route may have published it.
pub(super) async fn take(
    context: &Context,
    session: &SqlSession,
    progress: &mut Progress,
    end: Lsn,
    tables: &Result<Vec<Table>, Halt>,
) -> Result<(), Ended> {
    let all = || vec!["*".to_owned()];
    let route = context.config.route.as_ref();
    let ours = route.map(|route| route.topics.clone().unwrap_or_else(all));
    let anew = progress.take_topics(ours.as_deref(), end);
    if let Some(FormerTopics { patterns, until }) = progress.former_topics() {
        tracing::info!(
            topics = patterns.join(" "), %until,
            "the route takes these topics no more: it still publishes what was committed before"
        );
    }
    let (false, Some(route)) = (anew.is_empty(), route) else { return Ok(()) };
    let Some(passed) = passed_over(session, tables, &anew).await? else { return Ok(()) };
    let said = format!(
        "since this start the route takes the topics {}; before, it passed them over, {passed}. If no other route has \
         published those that were committed before: stop the relay, and run `outbox-relay resume --at table --since TIME`, which publishes from the \
         tables what was created since TIME",
        anew.join(" ")
    );
    let said = route.in_commands(&said);
    if context.board.concern("topics", Some(said.clone())) {
        tracing::warn!("{said}");
    }
    Ok(())
}

/// How many events of these topics there are, in words; `None` if the tables have no such event.
async fn passed_over(
    session: &SqlSession,
    tables: &Result<Vec<Table>, Halt>,
    patterns: &[String],
) -> Result<Option<String>, Ended> {
    const DOING: &str = "looking for events that were passed over";
    const UNKNOWN: &str = "and how many of them the tables have can't be known";
    let Ok(tables) = tables else { return Ok(Some(UNKNOWN.to_owned())) };
    let limit = format!("set statement_timeout = {}", LOOK_MAX.as_millis());
    let failed = |e| Ended::postgres(DOING, e);
    session.client().batch_execute(&limit).await.map_err(failed)?;
    let found = repair::rows_of_topics(session.client(), tables, patterns).await;
    session.client().batch_execute("reset statement_timeout").await.map_err(failed)?;
    match found {
        Ok(Some(0)) => Ok(None),
        Ok(Some(rows)) => {
            Ok(Some(format!("and the tables have {} of them", repair::in_words(rows))))
        }
        Ok(None) => Ok(Some(UNKNOWN.to_owned())),
        Err(error) if error.code() == Some(&SqlState::QUERY_CANCELED) => {
            Ok(Some(UNKNOWN.to_owned()))
        }
        Err(error) => Err(failed(error)),
    }
}
