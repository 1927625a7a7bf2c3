//! From a commit to a consumer, at a steady thousand commits a second.
//!
//! The clock of an event runs from just before its INSERT (one statement, one transaction) is sent
//! until a `read_committed` consumer has it in hand: the commit itself is part of it. Writers,
//! consumer and clock are this process's, on the machine that also runs the servers.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use outbox_harness::{Harness, database::Role, kafka::Kafka, topic::Topic};
use rdkafka::{Message, error::KafkaError};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::{
    DrainArgs,
    backlog::{KEYS, PARTITIONS, Shape, number},
    consumer::{self, Count},
    process,
    relay::Setup,
    terminal::progress,
};

const COMMITS_PER_SECOND: usize = 1_000;
const WRITERS: usize = 4;
/// Events before this are not in the percentiles: connections and caches warm up.
const WARM_UP_SECONDS: u32 = 2;
/// How long the last event may take.
const LAST_MAX: Duration = Duration::from_secs(30);

/// One mode's outcome.
#[derive(Debug, Serialize)]
pub(crate) struct Latency {
    delivery: &'static str,
    commits_per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    /// Of one processor.
    relay_cpu_share: f64,
}

impl Latency {
    /// A row of the table.
    pub(crate) fn row(&self) -> String {
        let Latency { delivery, commits_per_second, p50_ms, p99_ms, max_ms, relay_cpu_share } =
            self;
        format!(
            "| outbox-relay, {delivery} | {commits_per_second:.0} | {p50_ms:.1} | {p99_ms:.1} | \
             {max_ms:.0} | {:.0} % |\n",
            relay_cpu_share * 100.0
        )
    }
}

/// When each event was sent, in nanoseconds since `base`; 0 is "not yet".
struct Sent {
    base: Instant,
    at_ns: Vec<AtomicU64>,
}

impl Sent {
    fn now_ns(&self) -> u64 {
        u64::try_from(self.base.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Both modes, one after the other.
pub(crate) async fn run(args: &DrainArgs) -> Result<Vec<Latency>> {
    let mut latencies = Vec::new();
    for delivery in ["exactly-once", "at-least-once"] {
        progress(&format!("latency, {delivery}, {} s", args.seconds));
        latencies.push(mode(args, delivery).await.with_context(|| delivery.to_owned())?);
    }
    Ok(latencies)
}

async fn mode(args: &DrainArgs, delivery: &'static str) -> Result<Latency> {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(PARTITIONS).await;
    let mut relay = Setup { delivery, unix: false }.start(&t, 1, args.relay.as_deref()).await?;
    let cpu_before = process::cpu(relay.pid())?;
    let measured = measure(&t, &topic, args.seconds, async { Ok(()) }).await?;
    let cpu = process::cpu(relay.pid())?.saturating_sub(cpu_before);
    let status = relay.sigterm().await;
    ensure!(status.success(), "the relay ended with {status}: {}", relay.log_text());
    let Measured { commits_per_second, p50_ms, p99_ms, max_ms, took, .. } = measured;
    let relay_cpu_share = cpu.as_secs_f64() / took.as_secs_f64();
    Ok(Latency { delivery, commits_per_second, p50_ms, p99_ms, max_ms, relay_cpu_share })
}

/// What a steady load has seen.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) commits_per_second: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) max_ms: f64,
    took: Duration,
}

/// Writes for some seconds, after a warm-up, and takes the time of each event; `beside` happens
/// meanwhile, from the end of the warm-up on.
///
/// # Errors
/// Anything was lost, doubled or out of order, or the writers were too slow.
pub(crate) async fn measure(
    t: &Harness,
    topic: &Topic,
    seconds: u32,
    beside: impl Future<Output = Result<()>>,
) -> Result<Measured> {
    let seconds = WARM_UP_SECONDS + seconds;
    let load = Duration::from_secs(seconds.into());
    let warm_up = COMMITS_PER_SECOND * usize::try_from(WARM_UP_SECONDS)?;
    let events = COMMITS_PER_SECOND * usize::try_from(seconds)?;
    let sent = Arc::new(Sent {
        base: Instant::now(),
        at_ns: std::iter::repeat_with(AtomicU64::default).take(events).collect(),
    });
    let from = consumer::ends(t.kafka(), topic).await?;
    let consumed = {
        let (kafka, topic, sent) = (t.kafka(), topic.clone(), Arc::clone(&sent));
        tokio::task::spawn_blocking(move || {
            consume(kafka, &topic, &from, &sent, warm_up, load + LAST_MAX)
        })
    };
    let begun = Instant::now();
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let session = t.database().connect(Role::Writer).await;
        writers.spawn(write(session, topic.name().to_owned(), writer, Arc::clone(&sent)));
    }
    let written = async {
        while let Some(written) = writers.join_next().await {
            written??;
        }
        anyhow::Ok(begun.elapsed())
    };
    let beside = async {
        tokio::time::sleep(Duration::from_secs(WARM_UP_SECONDS.into())).await;
        beside.await
    };
    let (took, ()) = tokio::try_join!(written, beside)?;
    let mut latencies_ns = consumed.await??;
    let commits_per_second = events as f64 / took.as_secs_f64();
    ensure!(
        commits_per_second > 0.95 * COMMITS_PER_SECOND as f64,
        "the writers reached {commits_per_second:.0} commits/s only: the machine is too slow or busy"
    );
    latencies_ns.sort_unstable();
    let at = |percent: usize| {
        let index = (latencies_ns.len() * percent / 100).min(latencies_ns.len().saturating_sub(1));
        latencies_ns.get(index).map_or(0.0, |ns| *ns as f64 / 1e6)
    };
    Ok(Measured { commits_per_second, p50_ms: at(50), p99_ms: at(99), max_ms: at(100), took })
}

/// Every `WRITERS`-th event from `writer` on, each at its time.
async fn write(
    session: outbox_harness::postgres::Session,
    topic: String,
    writer: usize,
    sent: Arc<Sent>,
) -> Result<()> {
    let insert = "insert into outbox.events (topic, key, type, payload) \
                  values ($1, $2, 'order.placed', $3::text::jsonb)";
    let insert = session.prepare(insert).await?;
    let begun = tokio::time::Instant::now();
    for n in (writer..sent.at_ns.len()).step_by(WRITERS) {
        let at = Duration::from_secs_f64(n as f64 / COMMITS_PER_SECOND as f64);
        tokio::time::sleep_until(begun + at).await;
        let (key, payload) = (format!("k{}", n % KEYS), Shape::SMALL.payload(n));
        if let Some(place) = sent.at_ns.get(n) {
            place.store(sent.now_ns(), Relaxed);
        }
        session.execute(&insert, &[&topic, &key, &payload]).await?;
    }
    Ok(())
}

/// Takes every event, and returns how long each took, the first `warm_up` left out.
fn consume(
    kafka: &Kafka,
    topic: &Topic,
    from: &[i64],
    sent: &Sent,
    warm_up: usize,
    most: Duration,
) -> Result<Vec<u64>> {
    let consumer = consumer::consumer(kafka, topic.name(), from)?;
    let events = sent.at_ns.len();
    let mut count = Count::new(events, KEYS);
    let mut latencies_ns = Vec::with_capacity(events);
    let deadline = Instant::now() + most;
    while count.delivered < events {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                let now_ns = sent.now_ns();
                let n = message.payload().and_then(number);
                count.add(n);
                let at = n.and_then(|n| sent.at_ns.get(n)).map_or(0, |at| at.load(Relaxed));
                if n.is_some_and(|n| n >= warm_up) {
                    latencies_ns.push(now_ns.saturating_sub(at));
                }
            }
            Some(Err(KafkaError::PartitionEOF(_))) | None => {}
            Some(Err(error)) => return Err(error).context("consuming"),
        }
        ensure!(Instant::now() < deadline, "not everything arrived: {count:?}");
    }
    count.finish()?;
    Ok(latencies_ns)
}
