//! The topics whose parked messages a process takes up: those that its runner reads. Others are left to the program that
//! reads them, which has another handler. If no program takes them up, a warning says so.

use std::collections::HashSet;

use tokio_postgres::types::ToSql;

use super::Processor;
use crate::{error::InboxError, transaction::Open};

/// After so long a time past due, no one seems to take them up.
const LEFT: &str = "interval '2 minutes'";

/// Topics by their names, and by how the names begin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reads {
    names: Vec<String>,
    beginnings: Vec<String>,
}

impl Reads {
    /// `^…` is a pattern. It counts by its fixed beginning, so rather too many topics are taken for its own.
    #[cfg(any(test, feature = "kafka-plain"))]
    fn of(topics: &[String], repertoire: crate::repertoire::Repertoire) -> Self {
        let mut reads = Reads::default();
        for topic in topics {
            match topic.strip_prefix('^') {
                Some(pattern) => reads.beginnings.push(beginning(pattern).to_owned()),
                None => reads.names.push(repertoire.text(topic).into_owned()),
            }
        }
        reads
    }

    pub(super) fn params(&self) -> [&(dyn ToSql + Sync); 2] {
        [&self.names, &self.beginnings]
    }
}

/// Whether a topic is one of them, of two parameters.
pub(super) fn is_read(topic: &str, names: &str, beginnings: &str) -> String {
    format!(
        "({topic} operator(pg_catalog.=) any ({names}) \
            or {topic} operator(pg_catalog.^@) any ({beginnings}))"
    )
}

/// What each name begins with that a pattern matches from its beginning.
#[cfg(any(test, feature = "kafka-plain"))]
fn beginning(pattern: &str) -> &str {
    let is_literal = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let end = pattern.find(|c| !is_literal(c)).unwrap_or(pattern.len());
    let (literal, rest) = pattern.split_at(end);
    if pattern.contains('|') {
        return "";
    }
    // The last character may be missing in a name.
    if rest.starts_with(['*', '?', '{']) {
        &literal[..literal.len().saturating_sub(1)]
    } else {
        literal
    }
}

impl Processor {
    /// Takes up parked messages of these topics only.
    #[cfg(feature = "kafka-plain")]
    pub(crate) fn reading(mut self, topics: &[String]) -> Self {
        let reads = Reads::of(topics, self.shared.inbox.repertoire());
        std::sync::Arc::make_mut(&mut self.shared).reads = Some(reads.into());
        self
    }

    /// Says once which topics' messages wait that this process leaves to others, and that no one takes up.
    pub(super) async fn look_at_what_is_left(
        &self,
        said: &mut HashSet<String>,
    ) -> Result<(), InboxError> {
        const DOING: &str = "looking for parked messages of other topics";
        let Some(reads) = &self.shared.reads else { return Ok(()) };
        // Those that no one takes up have been due longest.
        let sql = format!(
            "select h.topic, pg_catalog.count(*), \
                 pg_catalog.floor(extract(epoch from pg_catalog.now() \
                     operator(pg_catalog.-) pg_catalog.min(h.due_at)))::pg_catalog.int8 \
             from (select d.due_at, (select p.topic from inbox.parked as p \
                     where p.consumer_id operator(pg_catalog.=) $1 \
                         and p.lane operator(pg_catalog.=) d.lane order by p.seq limit 1) as topic \
                 from (select l.lane, l.due_at from inbox.parked_lanes as l \
                     where l.consumer_id operator(pg_catalog.=) $1 and l.due_at operator(pg_catalog.<) \
                         (pg_catalog.now() operator(pg_catalog.-) {LEFT}) \
                     order by l.due_at limit 1000) as d) as h \
             where h.topic is not null and not {} \
             group by h.topic order by h.topic limit 100",
            is_read("h.topic", "$2", "$3")
        );
        let inbox = &self.shared.inbox;
        let consumer_id = inbox.consumer_id();
        let [names, beginnings] = reads.params();
        let params: [&(dyn ToSql + Sync); 3] = [&consumer_id, names, beginnings];
        let (open, rows) = Open::begin(inbox.sessions(), DOING, &sql, &params).await?;
        open.rollback().await?;
        let read = |error| InboxError::of(DOING, error);
        let mut left = HashSet::new();
        for row in &rows {
            let topic: String = row.try_get(0).map_err(read)?;
            let (keys, seconds): (i64, i64) =
                (row.try_get(1).map_err(read)?, row.try_get(2).map_err(read)?);
            if !said.contains(&topic) {
                let typed = topic.replace('\'', "''");
                tracing::warn!(
                    consumer = inbox.consumer(),
                    topic,
                    keys,
                    seconds,
                    "parked messages of a topic that this process does not read are due for `seconds`, and no process \
                     has taken them up: they have had no effect. If another program of this name reads the topic, \
                     start it, or see whether it keeps up. If this one is to handle them, name the topic in \
                     Runner::new. To give them up: delete from inbox.parked where consumer_id = {consumer_id} and \
                     topic = '{typed}'"
                );
            }
            left.insert(topic);
        }
        *said = left;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_counts_by_what_all_its_names_begin_with() {
        for (pattern, expected) in [
            ("orders.*", "orders"),
            ("orders", "orders"),
            ("orders[.]eu", "orders"),
            (r"orders\.", "orders"),
            ("ab?c", "a"),
            ("ab+c", "ab"),
            ("ab{0,2}", "a"),
            ("*", ""),
            ("a|b", ""),
            ("(a|b)", ""),
            ("a(b|c)", ""),
            ("", ""),
        ] {
            assert_eq!(beginning(pattern), expected, "{pattern}");
        }
    }
}
