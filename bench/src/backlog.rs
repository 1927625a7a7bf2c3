//! The rows of a scenario: what they look like, how they come to be.
//!
//! Row `n` (from 0) has the key `k<n mod keys>` and a payload that begins with its number, so that
//! a consumer can tell a loss, a repetition and a step back without asking the database.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use outbox_harness::{Harness, topic::Topic};
use serde::Serialize;

use crate::terminal::progress;

/// Distinct keys.
pub(crate) const KEYS: usize = 1_000;
/// Partitions of the topic.
pub(crate) const PARTITIONS: i32 = 8;
/// What writing a backlog may take.
const WRITE_MAX: Duration = Duration::from_secs(180);

/// A backlog.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) rows: usize,
    pub(crate) rows_per_transaction: usize,
    pub(crate) payload_bytes: usize,
    pub(crate) keys: usize,
}

impl Shape {
    pub(crate) const LARGE: Shape = Shape {
        name: "transactions of 10,000 rows",
        rows: 1_000_000,
        rows_per_transaction: 10_000,
        payload_bytes: 190,
        keys: KEYS,
    };
    pub(crate) const SMALL: Shape = Shape {
        name: "transactions of one row",
        rows: 200_000,
        rows_per_transaction: 1,
        payload_bytes: 190,
        keys: KEYS,
    };
    pub(crate) const HUGE: Shape = Shape {
        name: "one transaction",
        rows: 1_500_000,
        rows_per_transaction: usize::MAX,
        payload_bytes: 400,
        keys: KEYS,
    };

    /// With another number of rows, if one is given; whole transactions of it.
    pub(crate) fn with_rows(self, rows: Option<u32>) -> Self {
        let Some(rows) = rows.and_then(|rows| usize::try_from(rows).ok()) else { return self };
        let per = self.rows_per_transaction.min(rows);
        Shape { rows: rows - rows % per, ..self }
    }

    /// What stands between the number and the payload's end.
    fn padding_bytes(&self) -> usize {
        self.payload_bytes - r#"{"n": 0000000, "pad": ""}"#.len()
    }

    /// The payload of row `n`, as the database's `jsonb` prints it.
    pub(crate) fn payload(&self, n: usize) -> String {
        format!(r#"{{"n": {n}, "pad": "{}"}}"#, "x".repeat(self.padding_bytes()))
    }
}

/// The number of the row that a payload belongs to.
pub(crate) fn number(payload: &[u8]) -> Option<usize> {
    let digits = payload.strip_prefix(br#"{"n": "#)?;
    let end = digits.iter().position(|byte| !byte.is_ascii_digit())?;
    std::str::from_utf8(digits.get(..end)?).ok()?.parse().ok()
}

/// Writes the backlog, and returns once nothing of it keeps the server busy.
pub(crate) async fn write(t: &Harness, topic: &Topic, shape: &Shape) -> Result<()> {
    let begun = Instant::now();
    let session = t.database().superuser();
    // Otherwise it would begin at a moment of its own, in one contestant's turn.
    session
        .batch_execute("alter table outbox.events_default set (autovacuum_enabled = off)")
        .await?;
    let (topic, padding, keys) = (topic.name(), shape.padding_bytes(), shape.keys);
    let insert = format!(
        "insert into outbox.events (topic, key, type, payload) \
         select '{topic}', 'k' || n % {keys}, 'order.placed', \
                format('{{\"n\": %s, \"pad\": \"%s\"}}', n, repeat('x', {padding}))::jsonb \
         from generate_series"
    );
    let per = shape.rows_per_transaction.min(shape.rows);
    session.batch_execute("set synchronous_commit = off").await?;
    if per == 1 {
        let last = shape.rows - 1;
        session
            .batch_execute(&format!(
                "do $$ begin for i in 0..{last} loop {insert}(i, i) as n; commit; end loop; end $$"
            ))
            .await?;
    } else {
        for first in (0..shape.rows).step_by(per) {
            let last = first + per - 1;
            session.batch_execute(&format!("{insert}({first}, {last}) as n")).await?;
            ensure!(begun.elapsed() < WRITE_MAX, "the backlog takes longer than {WRITE_MAX:?}");
        }
    }
    session.batch_execute("reset synchronous_commit; checkpoint").await?;
    progress(&format!("{} rows written in {:.1?}", shape.rows, begun.elapsed()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_tells_its_number_and_has_its_size() {
        let payload = Shape::LARGE.payload(1_234_567);
        assert_eq!(payload.len(), Shape::LARGE.payload_bytes);
        assert_eq!(number(payload.as_bytes()), Some(1_234_567));
        assert_eq!(number(b"{}"), None);
    }
}
