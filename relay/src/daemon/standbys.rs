//! Synchronous replication: whom the commits of this relay wait for.
//!
//! A list that names everybody (`*`), or the relay, counts its own stream as a standby: a commit that
//! parks an event would wait for a confirmation that comes after it. Called by `standby` and `check`.

use super::{context::Context, ended::Ended};
use crate::{
    config::{Config, parts::Parts},
    metrics::Cause,
    postgres::sql::SqlSession,
};

/// Has the leader's session wait for no standby where the relay itself counts as one.
pub(super) async fn settle(context: &Context, session: &SqlSession) -> Result<(), Ended> {
    const DOING: &str = "looking at the synchronous standbys";
    let client = session.client();
    let failed = |e| Ended::retry(Cause::Postgres, DOING, anyhow::Error::new(e));
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

/// The setting.
pub(crate) const NAMES: &str = "select pg_catalog.current_setting('synchronous_standby_names')";

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
}
