//! The crate's own runner, one way or another.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use outbox_harness::{
    database::{Database, Role},
    kafka::Kafka,
    topic::Topic,
};
use outbox_idempotency::{
    Dedup, Failure, Inbox, Message, Processor, Retry, Tx, fault,
    kafka::{ClientConfig, Runner},
};
use tokio::task::JoinSet;
use tokio_postgres::error::SqlState;
use tokio_util::sync::CancellationToken;

use super::{
    accounts::{self, Counter, Watch},
    messages::{FEW, RELAY, Transfer},
    outcome::Turn,
};

/// Messages in a transaction.
const BATCH: usize = 500;
/// Until all messages have met a service that is away.
const PARK_MAX: Duration = Duration::from_secs(120);
/// Handlers that wait, at once.
pub(super) const WAITING: usize = 64;

/// How the runner is set up; all else is as it comes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    dedup: Memory,
    batch: bool,
    /// What a handler waits for, before its effect.
    wait: Option<Duration>,
    /// Handlers at once; the runner's default where there is none.
    concurrency: Option<usize>,
    /// Whether a handler locks two of forty rows before its effect.
    two_rows: bool,
    /// Whether all messages wait for a service at first; measured from its return.
    parked: bool,
    /// Whether sessions are left as handlers leave them.
    left: bool,
    /// Most bytes that librdkafka fetches at once; `None` leaves the default of the runner.
    fetch: Option<&'static str>,
}

#[derive(Clone, Copy, Debug)]
enum Memory {
    Off,
    Rows,
    Watermark,
}

impl Way {
    pub(super) const ROWS: Way = Way {
        dedup: Memory::Rows,
        batch: false,
        wait: None,
        concurrency: None,
        two_rows: false,
        parked: false,
        left: false,
        fetch: None,
    };
    pub(super) const LEFT: Way = Way { left: true, ..Way::ROWS };
    pub(super) const TWO_ROWS: Way = Way { two_rows: true, ..Way::ROWS };
    pub(super) const PARKED: Way = Way { parked: true, ..Way::TWO_ROWS };
    pub(super) const OFF: Way = Way { dedup: Memory::Off, ..Way::ROWS };
    pub(super) const BATCH: Way = Way { batch: true, ..Way::ROWS };
    pub(super) const BATCH_OFF: Way = Way { dedup: Memory::Off, ..Way::BATCH };
    pub(super) const BATCH_OFF_8_MIB: Way = Way { fetch: Some("8388608"), ..Way::BATCH_OFF };
    pub(super) const BATCH_WATERMARK: Way = Way { dedup: Memory::Watermark, ..Way::BATCH };

    pub(super) fn waiting(wait: Duration) -> Way {
        Way { wait: Some(wait), concurrency: Some(WAITING), ..Way::ROWS }
    }

    /// With so many handlers at once, unless that is what is measured.
    pub(super) fn with(self, concurrency: Option<usize>) -> Way {
        Way { concurrency: self.concurrency.or(concurrency), ..self }
    }

    pub(super) fn name(self) -> String {
        let size = match (self.batch, self.wait) {
            (false, None) if self.parked => "forty keys that waited".to_owned(),
            (false, None) if self.two_rows => "forty keys".to_owned(),
            (false, None) => "one in a transaction".to_owned(),
            (false, Some(wait)) => format!("{WAITING} handlers that wait {wait:?}"),
            (true, _) => format!("batches of up to {BATCH}"),
        };
        let memory = match self.dedup {
            Memory::Off => "no memory",
            Memory::Rows => "rows",
            Memory::Watermark => "a watermark",
        };
        let sessions = if self.left { ", sessions left as they are" } else { "" };
        let fetch = if self.fetch.is_some() { ", 8 MiB fetched at once" } else { "" };
        format!("runner, {size}, {memory}{sessions}{fetch}")
    }

    fn processor(self, inbox: Inbox, counter: Counter, world: &Arc<World>) -> Processor {
        let processor = if self.batch {
            Processor::batch(inbox, BATCH, many(counter))
        } else {
            Processor::new(inbox, one(self, counter, Arc::clone(world)))
        };
        let retry = Retry::exponential(Duration::from_millis(50), Duration::from_millis(200));
        processor.retry(retry.attempts(u32::MAX)).dedup(match self.dedup {
            Memory::Off => Dedup::Off,
            Memory::Rows => Dedup::Rows,
            Memory::Watermark => Dedup::Watermark { relay: RELAY.to_owned() },
        })
    }
}

/// What is around the handlers.
#[derive(Debug, Default)]
struct World {
    /// The service that they need does not answer.
    away: AtomicBool,
    deadlocks: AtomicUsize,
}

fn one(
    way: Way,
    counter: Counter,
    world: Arc<World>,
) -> impl outbox_idempotency::Handler<Transfer> {
    move |tx: Tx, message: Message<Transfer>| {
        let (world, counter) = (Arc::clone(&world), counter.clone());
        async move {
            if world.away.load(Relaxed) {
                return Err(Failure::transient("the service is away"));
            }
            counter.add(1);
            if let Some(wait) = way.wait {
                tokio::time::sleep(wait).await;
            }
            let Transfer { n, account, amount } = &message.payload;
            let done = async {
                if way.two_rows {
                    let other = i32::try_from(*n % i64::from(FEW)).unwrap_or_default();
                    tx.query(accounts::LOCK_TWO, &[&[*account, other].as_slice()]).await?;
                }
                tx.execute(accounts::UPSERT, &[account, amount, n]).await
            };
            let done: Result<u64, tokio_postgres::Error> = done.await;
            if done.as_ref().is_err_and(|e| e.code() == Some(&SqlState::T_R_DEADLOCK_DETECTED)) {
                world.deadlocks.fetch_add(1, Relaxed);
            }
            done?;
            Ok::<(), Failure>(())
        }
    }
}

fn many(counter: Counter) -> impl outbox_idempotency::BatchHandler<Transfer> {
    move |tx: Tx, messages: Vec<Message<Transfer>>| {
        counter.add(messages.len());
        async move {
            let batch = accounts::Batch::of(messages.iter().map(|message| &message.payload));
            tx.execute(accounts::Batch::SQL, &batch.params()).await?;
            Ok::<(), Failure>(())
        }
    }
}

/// One turn, from the topic's beginning to its end.
pub(super) async fn run(
    way: &Way,
    kafka: &Kafka,
    database: &Database,
    topic: &Topic,
    group: &str,
    watch: &Watch,
) -> Result<Turn> {
    fault::leave_sessions(way.left);
    let connections = way.concurrency.unwrap_or(16) + 9;
    let world = Arc::new(World::default());
    world.away.store(way.parked, Relaxed);
    let inbox = Inbox::open(database.pool(Role::Consumer, connections), group).await?;
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", kafka.brokers()).set("group.id", group);
    if let Some(bytes) = way.fetch {
        config.set("fetch.max.bytes", bytes);
    }
    let mut runner =
        Runner::new(way.processor(inbox, watch.counter(), &world), config, &[topic.name()]);
    if let Some(handlers) = way.concurrency {
        runner = runner.concurrency(handlers);
    }
    let stop = CancellationToken::new();
    let mut consuming = tokio::spawn(runner.run(stop.clone().cancelled_owned()));
    if way.parked {
        until_parked(database, watch.messages()).await?;
        world.away.store(false, Relaxed);
    }
    let turn = watch.finish(async { Ok((&mut consuming).await??) }).await?;
    stop.cancel();
    consuming.await??;
    let deadlocks = world.deadlocks.load(Relaxed);
    ensure!(deadlocks == 0, "{deadlocks} deadlocks that the handler does not have by itself");
    Ok(turn)
}

async fn until_parked(database: &Database, messages: usize) -> Result<()> {
    let deadline = Instant::now() + PARK_MAX;
    loop {
        let sql = "select count(*) from inbox.parked";
        let parked: i64 = database.superuser().query_one(sql, &[]).await?.get(0);
        if usize::try_from(parked)? >= messages {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{parked} of {messages} parked after {PARK_MAX:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// How long the handlers that wait would take if there were nothing but them.
pub(super) fn ideal_seconds(messages: usize, wait: Duration) -> f64 {
    messages as f64 * wait.as_secs_f64() / WAITING as f64
}

/// How long they take where they only wait.
pub(super) async fn timers(messages: usize, wait: Duration) -> f64 {
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..WAITING {
        tasks.spawn(async move {
            for _ in 0..messages / WAITING {
                tokio::time::sleep(wait).await;
            }
        });
    }
    tasks.join_all().await;
    began.elapsed().as_secs_f64()
}
