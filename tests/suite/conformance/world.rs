//! A database, a sink's place, and relays between them.

use std::ops::Range;

use outbox_harness::{Harness, check, event::Committed, relay::Settings, topic::Record, wait};

use crate::contract::kind::{Kind, PARTITIONS};

/// Events of one transaction.
const TRANSACTION: u32 = 1_000;

const WRITE: &str = "insert into outbox.events (topic, key, payload, headers) \
    select $1, $2 || n % $3, jsonb_build_object('n', n, 'fill', repeat('x', $4)), \
        jsonb_build_object('sequence', n::text) \
    from generate_series($5::bigint, $6::bigint) n order by n";

pub(super) struct World<K> {
    pub t: Harness,
    pub kind: K,
}

/// Events whose keys take turns.
pub(super) struct Series<'a> {
    /// Begins the name of each key.
    pub prefix: &'a str,
    pub keys: u32,
    pub payload_bytes: i32,
    pub numbers: Range<u32>,
}

impl<K: Kind> World<K> {
    pub(super) async fn new(breakable: bool) -> Self {
        let t = Harness::start().await;
        let kind = K::make(&t, breakable).await;
        World { t, kind }
    }

    pub(super) fn relay(&self) -> Settings {
        self.kind.settings(self.t.relay())
    }

    /// Commits them, a thousand at a time.
    pub(super) async fn write(&self, series: Series<'_>) {
        let Series { prefix, keys, payload_bytes, numbers } = series;
        let (topic, client) = (self.kind.destination(), self.t.database().superuser());
        for first in numbers.clone().step_by(TRANSACTION as usize) {
            let last = numbers.end.min(first + TRANSACTION) - 1;
            let (first, last) = (i64::from(first), i64::from(last));
            let values: [&(dyn tokio_postgres::types::ToSql + Sync); 6] =
                [&topic, &prefix, &i64::from(keys), &payload_bytes, &first, &last];
            client.execute(WRITE, &values).await.expect("written");
        }
    }

    /// Waits until all that is committed and `owed` has arrived, and counts it as the kind promises.
    pub(super) async fn all_arrive(&self, owed: impl Fn(&Committed) -> bool) {
        let mut truth = self.t.committed().await;
        truth.retain(owed);
        let records = wait::until("all events arrive", wait::PATIENCE, || async {
            let records = self.records().await;
            match check::compare(&truth, &records, PARTITIONS).lost {
                0 => Ok(records),
                lost => Err(format!("{lost} of {} are missing", truth.len())),
            }
        });
        let count = check::compare(&truth, &records.await.expect("they do"), PARTITIONS);
        if K::CAN.one_step { count.assert_exactly_once() } else { count.assert_at_least_once() }
    }

    /// What has arrived so far.
    pub(super) async fn records(&self) -> Vec<Record> {
        self.kind.read(0).await
    }

    /// Waits until more has arrived than has by now.
    pub(super) async fn more_arrives(&self) {
        self.more_arrives_than(self.records().await.len()).await;
    }

    /// The same, where it may arrive at any moment.
    pub(super) async fn more_arrives_than(&self, before: usize) {
        let more = wait::until("more arrives", wait::PATIENCE, || async {
            match self.records().await.len() {
                now if now > before => Ok(()),
                now => Err(format!("{now} records")),
            }
        });
        more.await.expect("the relay continues");
    }
}
