//! Writers at work and a watched relay, through an outage and after it.

use std::time::Duration;

use outbox_harness::{
    Harness, check,
    load::{Load, Plan},
    probes::Probes,
    relay::{Relay, Settings},
    topic::Topic,
    wait,
};
use serde_json::Value;
use tokio::time::{Instant, sleep};

/// An outage shows in `/readyz` within this, and its end within that (DESIGN: command line).
pub(super) const SEEN: Duration = Duration::from_secs(20);
pub(super) const OVER: Duration = Duration::from_secs(10);
/// Between two transactions of a writer.
const PACE: Duration = Duration::from_millis(10);
pub(super) const PARTITIONS: i32 = 4;

/// Writers at work, and a relay that publishes what they write, watched.
pub(super) struct Day {
    pub(super) t: Harness,
    pub(super) topic: Topic,
    pub(super) relay: Relay,
    pub(super) probes: Probes,
    pub(super) load: Load,
}

impl Day {
    pub(super) async fn begin(t: Harness, settings: Settings) -> Self {
        let topic = t.topic("orders").create(PARTITIONS).await;
        Self::begin_with(t, topic, settings).await
    }

    pub(super) async fn begin_with(t: Harness, topic: Topic, settings: Settings) -> Self {
        let relay = settings.start().await;
        let plan = Plan {
            topic: topic.name().to_owned(),
            partitions: PARTITIONS,
            writers: 3,
            transactions: 1_000_000,
        };
        let load = Load::paced(t.database(), &plan, PACE).await;
        let day = Day { probes: Probes::of(&relay), t, topic, relay, load };
        day.flows().await;
        day
    }

    /// Waits until more is delivered than until now.
    pub(super) async fn flows(&self) {
        let before = self.delivered().await;
        wait::until("events flow", wait::PATIENCE, || async {
            match self.delivered().await {
                now if now > before => Ok(()),
                now => Err(format!("{now} are delivered")),
            }
        })
        .await
        .expect("the relay delivers");
    }

    pub(super) async fn delivered(&self) -> u64 {
        let status = self.relay.status().await;
        status.get("records_delivered").and_then(Value::as_u64).expect("a number")
    }

    /// An outage that lasts for so long, and at least until it is seen. `/readyz` gives a reason
    /// for it that has one of `words` in it.
    pub(super) async fn through(
        &self,
        begin: impl FnOnce(),
        words: &[&str],
        lasts: Duration,
        end: impl FnOnce(),
    ) {
        let began = Instant::now();
        begin();
        self.probes.not_ready_within(SEEN, began).await;
        self.probes.not_ready_because(words, SEEN, began).await;
        sleep(lasts.saturating_sub(began.elapsed())).await;
        end();
        self.recovers(Instant::now()).await;
    }

    /// How often the relay has begun to stream.
    pub(super) fn streams(&self) -> usize {
        self.relay.log_text().matches("streaming from=").count()
    }

    /// Waits until it is not ready, which an outage turns it within [`SEEN`] of the last delivery: what was under
    /// way before may still come to its end.
    pub(super) async fn stops_and_says_so(&self) {
        let watch = async {
            let mut last = (self.delivered().await, Instant::now());
            loop {
                sleep(Duration::from_millis(50)).await;
                match self.delivered().await {
                    now if now > last.0 => last = (now, Instant::now()),
                    now => assert!(last.1.elapsed() < SEEN, "ready, and {now} are delivered"),
                }
            }
        };
        tokio::select! {
            () = watch => {}
            _ = self.probes.not_ready_within(wait::PATIENCE, Instant::now()) => {}
        }
    }

    pub(super) async fn recovers(&self, ended: Instant) {
        self.probes.ready_within(OVER, ended).await;
        self.flows().await;
    }

    /// Counts what the day brought, exactly.
    pub(super) async fn ends_exactly_once(mut self) {
        self.ends().await;
        self.t.count(&self.topic, PARTITIONS).await.assert_exactly_once();
        assert!(self.relay.sigterm().await.success());
    }

    /// Counts: nothing lost, and each event in order by its first sight.
    pub(super) async fn ends_at_least_once(mut self) {
        self.ends().await;
        let truth = self.t.committed().await;
        let records = self.topic.records_with(truth.iter().map(|row| row.id.clone())).await;
        check::compare(&truth, &records, PARTITIONS).assert_at_least_once();
        assert!(self.relay.sigterm().await.success());
    }

    async fn ends(&mut self) {
        let idle = Plan { topic: String::new(), partitions: 1, writers: 0, transactions: 0 };
        let idle = Load::start(self.t.database(), &idle).await;
        std::mem::replace(&mut self.load, idle).stop().await;
        self.probes.assert_always_live();
    }

    /// Commits so many events of 1 KB in one transaction.
    pub(super) async fn backlog(&self, events: usize) {
        let insert = format!(
            "insert into outbox.events (topic, key, payload, headers) \
             select '{}', 'backlog-' || n % 7, to_jsonb(repeat(md5(n::text), 32)), \
             jsonb_build_object('sequence', n::text) from generate_series(1, {events}) n",
            self.topic.name()
        );
        self.t.database().superuser().batch_execute(&insert).await.expect("inserted");
    }
}
