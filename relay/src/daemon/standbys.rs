//! Synchronous replication: whom the commits of this relay wait for.
//!
//! A list that names everybody (`*`), or the relay, counts its own stream as a standby: a commit that
//! parks an event would wait for a confirmation that comes after it. A list of which too few are connected
//! keeps every commit waiting. Called by `standby`, `lookout`, `stuck` and `check`.

use std::time::Duration;

use tokio_postgres::{Client, Error};

use super::{context::Context, ended::Ended};
use crate::{
    config::{Config, parts::Parts},
    postgres::sql::SqlSession,
};

/// Has the leader's session wait for no standby where the relay itself counts as one.
pub(super) async fn settle(context: &Context, session: &SqlSession) -> Result<(), Ended> {
    const DOING: &str = "looking at the synchronous standbys";
    let client = session.client();
    let failed = |e| Ended::postgres(DOING, e);
    let names = client.query_one(NAMES, &[]).await.and_then(|row| row.try_get::<_, String>(0));
    let names = names.map_err(failed)?;
    if !counts(&names, &application(&context.config, &context.parts)) {
        return Ok(());
    }
    client.batch_execute("set synchronous_commit = local").await.map_err(failed)?;
    tracing::warn!(
        synchronous_standby_names = names,
        "the relay's own stream counts as a synchronous standby: what it parks is durable on this server \
         alone, and everybody's commits may wait for it; name the standbys in synchronous_standby_names"
    );
    Ok(())
}

const NAMES: &str = "select pg_catalog.current_setting('synchronous_standby_names')";

/// Who confirms what is committed, as far as this role is shown it.
#[derive(Debug)]
pub(crate) struct Standbys {
    /// The setting.
    pub(crate) names: String,
    /// Those that do, or that may: the state of others' standbys is hidden from a role without
    /// `pg_read_all_stats`.
    connected: usize,
    /// For how long a commit has waited.
    waiting: Option<Duration>,
}

/// A commit that has waited for longer waits for someone who is away.
const COMMIT_MAX: Duration = Duration::from_secs(2);

/// Asks.
///
/// # Errors
/// The session is broken.
pub(crate) async fn look(client: &Client) -> Result<Standbys, Error> {
    let sql = "select pg_catalog.current_setting('synchronous_standby_names'), \
                   (select extract(epoch from max(pg_catalog.clock_timestamp() - state_change)) \
                        ::pg_catalog.float8 \
                    from pg_catalog.pg_stat_activity where wait_event = 'SyncRep'), \
                   r.pid, r.application_name, r.sync_state \
               from (select) one left join pg_catalog.pg_stat_replication r on true";
    let rows = client.query(sql, &[]).await?;
    let mut found = Standbys { names: String::new(), connected: 0, waiting: None };
    for row in &rows {
        found.names = row.try_get(0)?;
        let seconds: Option<f64> = row.try_get(1)?;
        found.waiting = seconds.map(|seconds| Duration::from_secs_f64(seconds.max(0.0)));
        let (pid, name, state): (Option<i32>, Option<&str>, Option<&str>) =
            (row.try_get(2)?, row.try_get(3)?, row.try_get(4)?);
        found.connected += usize::from(pid.is_some() && confirms(&found.names, name, state));
    }
    Ok(found)
}

/// Whether a walsender is a standby that commits wait for, or may be. The relay's own stream is shown to it
/// by its name, if not by its state.
fn confirms(names: &str, application: Option<&str>, state: Option<&str>) -> bool {
    match (state, application) {
        (Some(state), _) => matches!(state, "sync" | "quorum"),
        (None, Some(application)) => counts(names, application),
        (None, None) => true,
    }
}

impl Standbys {
    /// What keeps commits waiting, and what to do; `None` where nothing is known to.
    pub(crate) fn away(&self) -> Option<(String, String)> {
        let Standbys { names, connected, waiting } = self;
        let waits = waiting.filter(|waiting| *waiting > COMMIT_MAX);
        let seen = match (connected, waits) {
            _ if names.is_empty() => return None,
            (0, _) => format!("no standby of synchronous_standby_names = '{names}' is connected"),
            (few, _) if *few < needed(names) => format!(
                "synchronous_standby_names = '{names}' wants more standbys than are connected"
            ),
            (_, Some(_)) => {
                format!(
                    "a commit waits long for a standby of synchronous_standby_names = '{names}'"
                )
            }
            (_, None) => return None,
        };
        Some((format!("{seen}: {MEANING}"), REMEDY.to_owned()))
    }

    /// The same in one text, for a session that waits.
    pub(crate) fn in_words(&self) -> Option<String> {
        let (seen, remedy) = self.away()?;
        Some(format!("{seen}. Nothing is lost, and events of every key wait; {remedy}"))
    }
}

const MEANING: &str = "commits wait for one, also the commit that parks an event, so a rejected event stops the relay";
const REMEDY: &str = "start the standby, or take it out: `alter system set synchronous_standby_names = ''`; \
                      `select pg_reload_conf()`";

/// How many must confirm.
fn needed(names: &str) -> usize {
    let method = names.split_once('(').map_or("", |(method, _)| method);
    method.split_whitespace().find_map(|word| word.parse().ok()).unwrap_or(1)
}

/// As the stream's session is known to the server.
pub(crate) fn application(config: &Config, parts: &Parts) -> String {
    let own = format!("outbox-relay {}", config.name);
    parts.connect.application_name.clone().unwrap_or(own)
}

/// Whether a walsender of that name is one of `names`.
pub(crate) fn counts(names: &str, application: &str) -> bool {
    let list = names.rsplit_once('(').map_or(names, |(_, list)| list.trim_end_matches([')', ' ']));
    list.split(',')
        .map(|name| name.trim().trim_matches('"').replace("\"\"", "\""))
        .any(|name| name == "*" || (!name.is_empty() && name.eq_ignore_ascii_case(application)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_relay_counts_where_everybody_does_or_its_name_is_there() {
        for (names, expected) in [
            ("", false),
            ("*", true),
            ("s1, s2", false),
            ("s1, \"outbox-relay orders\"", true),
            ("FIRST 1 (s1, *)", true),
            ("ANY 2 (s1, \"Outbox-Relay Orders\")", true),
            ("2 (s1, \"outbox-relay orders2\")", false),
        ] {
            assert_eq!(counts(names, "outbox-relay orders"), expected, "{names}");
        }
    }

    #[test]
    fn what_commits_wait_for_is_named_and_the_relays_own_stream_is_no_standby() {
        let found = |names: &str, connected, waiting: Option<u64>| Standbys {
            names: names.to_owned(),
            connected,
            waiting: waiting.map(Duration::from_secs),
        };
        assert!(found("", 0, None).away().is_none());
        assert!(found("s1", 1, None).away().is_none());
        assert!(found("s1", 1, Some(1)).away().is_none(), "it has just begun");
        for (found, words) in [
            (found("s1", 0, None), "no standby of synchronous_standby_names = 's1' is connected"),
            (found("FIRST 2 (s1, s2)", 1, None), "wants more standbys than are connected"),
            (found("s1", 1, Some(9)), "a commit waits long for a standby"),
        ] {
            let (seen, _) = found.away().expect(words);
            assert!(seen.contains(words), "{seen}");
        }
        for (application, state, expected) in [
            (Some("outbox-relay orders"), None, false),
            (Some("s1"), None, true),
            (None, None, true),
            (Some("s1"), Some("sync"), true),
            (Some("s1"), Some("async"), false),
        ] {
            assert_eq!(confirms("s1", application, state), expected, "{application:?} {state:?}");
        }
    }
}
