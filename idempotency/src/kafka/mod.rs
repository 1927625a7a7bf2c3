//! Runs a [`Processor`] on Kafka topics, as a member of a consumer group.
//!
//! ```text
//! poll thread ─► lanes ─► workers ─► Processor ─► PostgreSQL
//!      ▲                     │
//!      └── offsets behind which all is finished
//! ```
//!
//! One thread polls whatever the handlers do, so a slow handler never costs the membership. The
//! database knows which messages took effect; a committed offset only says where to continue, and is
//! never past one that is not finished.

mod added;
mod context;
mod error;
mod foreign;
mod gaps;
mod identity;
mod native;
#[cfg(feature = "fault-points")]
#[doc(hidden)]
pub mod offline;
mod patience;
mod poll;
mod reader;
mod shared;
mod topics;

use std::{collections::HashSet, sync::Arc, time::Duration};

pub use rdkafka;
pub use rdkafka::ClientConfig;
use rdkafka::consumer::BaseConsumer;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    dispatch::{Limits, work},
    processor::{Processor, Stop},
};
use added::Counts;
use context::Context;
pub use error::RunError;
use foreign::Foreign;
use identity::IdHeaders;
use poll::Poll;
use shared::Shared;

/// Connections that are used beside the handlers': for parked keys, and for upkeep.
const BESIDE: usize = crate::processor::AT_ONCE + 1;

/// A consumer of Kafka topics.
pub struct Runner {
    processor: Processor,
    config: ClientConfig,
    topics: Vec<String>,
    id_headers: IdHeaders,
    concurrency: usize,
    limits: Limits,
    drain: Duration,
}

/// What librdkafka may fetch ahead, in KiB.
fn ahead_kib(limits: Limits) -> usize {
    (limits.bytes / 8 / 1024).clamp(1024, 16 * 1024)
}

/// Most bytes of a response, as the broker has stored them. librdkafka unpacks all of it, whatever is ahead by
/// then: each broker may bring this times the ratio of compression beyond the limit. Only a batch that is larger
/// comes whole. Fewer bytes cost a member with hundreds of partitions its throughput: each request names them all.
const AT_ONCE: usize = 1_000_000;

/// `fetch.max.bytes` and `message.max.bytes`: librdkafka refuses a client whose first is below the second, which is
/// of no other use to a consumer. So either may be given alone.
fn at_once(given: &ClientConfig) -> [(&'static str, usize); 2] {
    let [fetch, message] = ["fetch.max.bytes", "message.max.bytes"];
    let number = |name| given.get(name).and_then(|value| value.trim().parse::<usize>().ok());
    let most = number(fetch).unwrap_or_else(|| number(message).unwrap_or(0).max(AT_ONCE));
    [(fetch, most), (message, most.clamp(1_000, AT_ONCE))]
}

fn beside_what_is_fetched(limits: Limits) -> Limits {
    let bytes = limits.bytes.saturating_sub(ahead_kib(limits) * 1024);
    Limits { bytes: bytes.max(limits.bytes / 2), ..limits }
}

// Properties may be secrets.
impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runner")
            .field("processor", &self.processor)
            .field("topics", &self.topics)
            .field("concurrency", &self.concurrency)
            .field("limits", &self.limits)
            .field("drain", &self.drain)
            .finish_non_exhaustive()
    }
}

impl Runner {
    /// A runner with `config`'s `bootstrap.servers` and `group.id`, and whatever else librdkafka
    /// knows. Unless set, `auto.offset.reset` is `earliest`, so that a new group misses nothing,
    /// `partition.assignment.strategy` is `cooperative-sticky` (but with `group.protocol=consumer`,
    /// where the broker assigns), `isolation.level` is `read_committed`, topics and partitions that appear
    /// later are looked for every 5 s (`topic.metadata.refresh.interval.ms`), what librdkafka fetches
    /// ahead is bounded by [`Runner::in_flight`], and what it fetches at once from a broker is a million bytes
    /// (`fetch.max.bytes`), which it unpacks in memory. A topic that is named twice counts once.
    pub fn new(processor: Processor, config: ClientConfig, topics: &[&str]) -> Self {
        let concurrency = if processor.batch_max() > 1 { 4 } else { 16 };
        let mut named = HashSet::new();
        let topics = topics.iter().filter(|topic| named.insert(**topic));
        Runner {
            processor,
            config,
            topics: topics.map(|topic| (*topic).to_owned()).collect(),
            id_headers: IdHeaders::default(),
            concurrency,
            limits: Limits::default(),
            drain: Duration::from_secs(10),
        }
    }

    /// The headers that name a message, the first that says something wins: `outbox-id`, then
    /// CloudEvents' `ce_id` with its `ce_source`. `&["id"]` for Debezium's outbox event router.
    ///
    /// A value is text or 16 bytes; an empty one, `null`, and a UUID that is all zeros or ones say
    /// nothing. An id is the consumer's, over all its topics: records with one such id are one message,
    /// in whatever topics they are, and only the first takes effect. Name no header that tells anything
    /// else, such as an order's number, and none that two topics' producers count by themselves.
    #[must_use]
    pub fn id_headers(mut self, names: &[&str]) -> Self {
        self.id_headers = IdHeaders(names.iter().map(|name| (*name).to_owned()).collect());
        self
    }

    /// How many messages, or batches, are handled at the same time: 16, or 4 for batches. Each handler uses one
    /// connection of the inbox's pool; background work uses up to nine more. A pool with fewer works, but is
    /// slower: nothing takes a second connection while it holds one.
    #[must_use]
    pub fn concurrency(mut self, handlers: usize) -> Self {
        self.concurrency = handlers.max(1);
        self
    }

    /// Most messages in memory, 10,000, and most bytes, 64 MiB. An eighth of the bytes, and 16 MiB at
    /// most, are those that librdkafka fetches ahead, unless `queued.max.messages.kbytes` is set.
    #[must_use]
    pub fn in_flight(mut self, messages: usize, bytes: usize) -> Self {
        self.limits = Limits::new(messages, bytes);
        self
    }

    /// How long a rebalance or a stop waits for handlers that are at work: 10 s. What is still
    /// under way then is rolled back at a stop, and continues at a rebalance; it meets the
    /// partition's next owner at the inbox.
    #[must_use]
    pub fn drain(mut self, patience: Duration) -> Self {
        self.drain = patience;
        self
    }

    /// Runs until `stop` ends, and returns when what was under way is done, or `drain` has passed.
    ///
    /// Dropped half-way, what was under way is rolled back or committed, and the group learns of
    /// it a moment later.
    ///
    /// # Errors
    /// [`RunError`].
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Result<(), RunError> {
        self.reads_something()?;
        self.processor = self.processor.reading(&self.topics);
        if let Some(pattern) = topics::odd_pattern(&self.topics, &self.config) {
            tracing::warn!(
                pattern,
                "with group.protocol=consumer the broker matches a pattern against whole names, so \
                 this one may match no topic, and nothing is read: to match all names that begin like \
                 it, write {pattern}.*"
            );
        }
        let shared = Arc::new(Shared::of(topics::seal(self.processor.inbox().consumer())));
        let leave = CancellationToken::new();
        let context = Context {
            shared: Arc::clone(&shared),
            drain: self.drain,
            processor: self.processor.clone(),
            runtime: tokio::runtime::Handle::current(),
            leave: leave.clone(),
            group: self.config.get("group.id").unwrap_or_default().to_owned(),
            foreign: Foreign::default(),
            counts: Counts::default(),
            to_latest: added::begins_at_the_end(&self.config),
        };
        let consumer: BaseConsumer<Context> = settings(&self.config, self.limits)
            .create_with_context(context)
            .map_err(RunError::Client)?;
        // Also when this future is dropped.
        let _leaves = leave.clone().drop_guard();

        self.say_what_starts();
        // Each runs until it can't continue; dropping the set ends them, and rolls back what they do.
        let mut tasks: JoinSet<Stop> = JoinSet::new();
        for _ in 0..self.concurrency {
            let (processor, shared) = (self.processor.clone(), Arc::clone(&shared));
            tasks.spawn(async move { work(&processor, &shared.queue).await });
        }
        let processor = self.processor.clone();
        tasks.spawn(async move { processor.background().await });

        let poll = Poll {
            consumer,
            shared,
            processor: self.processor.clone(),
            topics: self.topics,
            id_headers: self.id_headers,
            config: settings(&self.config, self.limits),
            limits: beside_what_is_fetched(self.limits),
            drain: self.drain,
            brokers: self.config.get("bootstrap.servers").unwrap_or_default().to_owned(),
            stop: leave.clone(),
        };
        let mut poll = tokio::task::spawn_blocking(move || poll.run());
        let outcome = tokio::select! {
            polled = &mut poll => return polled.unwrap_or(Err(RunError::Panicked)),
            ended = tasks.join_next() => match ended {
                Some(Ok(stop)) => Err(stop.into()),
                Some(Err(_)) | None => Err(RunError::Panicked),
            },
            () = stop => Ok(()),
        };
        // The workers continue while the poll thread waits for what they have.
        leave.cancel();
        let polled = poll.await.unwrap_or(Err(RunError::Panicked));
        outcome.and(polled)
    }
}

impl Runner {
    /// To librdkafka a subscription to nothing is one.
    fn reads_something(&self) -> Result<(), RunError> {
        let blank = |text: &str| text.trim().is_empty();
        if self.config.get("group.id").is_none_or(blank) {
            return Err(RunError::Setting(
                "no group.id is set, and a consumer is a member of a group; set it in the ClientConfig, to a \
                 name that all instances share",
            ));
        }
        if self.topics.is_empty() || self.topics.iter().any(|topic| blank(topic)) {
            return Err(RunError::Setting(
                "its list of topics is empty, or has an empty name, so nothing would be read; give \
                 Runner::new the topics' names",
            ));
        }
        Ok(())
    }

    fn say_what_starts(&self) {
        let given = |name| self.config.get(name).unwrap_or_default();
        let inbox = self.processor.inbox();
        let connections = inbox.sessions().pool().status().max_size;
        tracing::info!(
            consumer = inbox.consumer(),
            group = given("group.id"),
            brokers = given("bootstrap.servers"),
            topics = self.topics.join(", "),
            handlers = self.concurrency,
            connections,
            "the consumer starts"
        );
        // A pattern may match several.
        let several =
            self.topics.len() > 1 || self.topics.iter().any(|topic| topic.starts_with('^'));
        if several && self.id_headers != IdHeaders::default() {
            tracing::warn!(
                consumer = inbox.consumer(),
                headers = self.id_headers.0.join(", "),
                "ids are the consumer's, over all its topics: of two records with the same id in these \
                 headers, one takes effect, also if they are in different topics. If each topic's producer \
                 counts its own ids, give each topic a consumer of its own (Inbox::open with another name)"
            );
        }
        let wanted = self.concurrency + BESIDE;
        if connections < wanted {
            tracing::warn!(
                consumer = inbox.consumer(),
                "the pool has {connections} connections for {} handlers and {BESIDE} tasks beside \
                 them, which wait for one another; give the pool max_size({wanted}), or the runner \
                 fewer handlers by concurrency(…)",
                self.concurrency
            );
        }
    }
}

/// What is given, with our defaults below it and what must be so above it.
fn settings(given: &ClientConfig, limits: Limits) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("queued.max.messages.kbytes", ahead_kib(limits).to_string());
    for (name, bytes) in at_once(given) {
        config.set(name, bytes.to_string());
    }
    for (name, value) in [
        ("auto.offset.reset", "earliest"),
        ("auto.commit.interval.ms", "1000"),
        ("isolation.level", "read_committed"),
        // How long fetching rests once what is fetched ahead is full. The default, a second, is far longer
        // than what was fetched lasts.
        ("fetch.queue.backoff.ms", "10"),
        // Topics and partitions that appear later are found by looking: after five minutes, by default.
        ("topic.metadata.refresh.interval.ms", "5000"),
    ] {
        config.set(name, value);
    }
    // With the other protocol (KIP-848) the broker assigns, always cooperatively, and librdkafka
    // refuses the setting.
    if given.get("group.protocol") != Some("consumer") {
        config.set("partition.assignment.strategy", "cooperative-sticky");
    }
    for (name, value) in given.config_map() {
        config.set(name, value);
    }
    // Offsets are stored when their messages are finished; librdkafka commits what is stored.
    config.set("enable.auto.offset.store", "false").set("enable.auto.commit", "true");
    // Behind the last record there may be transaction markers: only the end tells how many.
    config.set("enable.partition.eof", "true");
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn librdkafka_takes_our_settings_with_either_group_protocol() {
        for protocol in ["classic", "consumer"] {
            let mut given = ClientConfig::new();
            given.set("group.id", "a").set("group.protocol", protocol);
            let limits = Limits { messages: 1, bytes: usize::MAX };
            let made: Result<BaseConsumer, _> = settings(&given, limits).create();
            assert!(made.is_ok(), "{protocol}: {:?}", made.err());
        }
    }

    #[test]
    fn what_is_fetched_at_once_may_be_given_by_either_setting_alone() {
        let [fetch, message] = ["fetch.max.bytes", "message.max.bytes"];
        let cases: [(&[(&str, &str)], &str); 5] = [
            (&[], "1000000"),
            (&[(fetch, "131072")], "131072"),
            (&[(fetch, "50000000")], "50000000"),
            (&[(message, "10000000")], "10000000"),
            (&[(fetch, "131072"), (message, "1000")], "131072"),
        ];
        for (set, expected) in cases {
            let mut given = ClientConfig::new();
            given.set("group.id", "a");
            for (name, value) in set {
                given.set(*name, *value);
            }
            let settings = settings(&given, Limits::default());
            let made: Result<BaseConsumer, _> = settings.create();
            assert_eq!(settings.get(fetch), Some(expected), "{set:?}");
            assert!(made.is_ok(), "{set:?}: {:?}", made.err());
        }
    }
}
