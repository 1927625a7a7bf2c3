//! The crate's own runner, one way or another.

use std::time::{Duration, Instant};

use anyhow::Result;
use outbox_idempotency::{
    Dedup, Failure, Inbox, Message, Processor, Tx,
    kafka::{ClientConfig, Runner},
};
use outbox_tests::{
    database::{Database, Role},
    kafka::Kafka,
    topic::Topic,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    accounts::{self, Counter, Watch},
    messages::{RELAY, Transfer},
    outcome::Turn,
};

/// Messages in a transaction.
const BATCH: usize = 500;
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
}

#[derive(Clone, Copy, Debug)]
enum Memory {
    Off,
    Rows,
    Watermark,
}

impl Way {
    pub(super) const ROWS: Way =
        Way { dedup: Memory::Rows, batch: false, wait: None, concurrency: None };
    pub(super) const OFF: Way = Way { dedup: Memory::Off, ..Way::ROWS };
    pub(super) const BATCH: Way = Way { batch: true, ..Way::ROWS };
    pub(super) const BATCH_OFF: Way = Way { dedup: Memory::Off, ..Way::BATCH };
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
            (false, None) => "one in a transaction".to_owned(),
            (false, Some(wait)) => format!("{WAITING} handlers that wait {wait:?}"),
            (true, _) => format!("batches of up to {BATCH}"),
        };
        let memory = match self.dedup {
            Memory::Off => "no memory",
            Memory::Rows => "rows",
            Memory::Watermark => "a watermark",
        };
        format!("runner, {size}, {memory}")
    }

    fn processor(self, inbox: Inbox, counter: Counter) -> Processor {
        let processor = if self.batch {
            Processor::batch(inbox, BATCH, many(counter))
        } else {
            Processor::new(inbox, one(counter, self.wait))
        };
        processor.dedup(match self.dedup {
            Memory::Off => Dedup::Off,
            Memory::Rows => Dedup::Rows,
            Memory::Watermark => Dedup::Watermark { relay: RELAY.to_owned() },
        })
    }
}

fn one(counter: Counter, wait: Option<Duration>) -> impl outbox_idempotency::Handler<Transfer> {
    move |tx: Tx, message: Message<Transfer>| {
        counter.add(1);
        async move {
            if let Some(wait) = wait {
                tokio::time::sleep(wait).await;
            }
            let Transfer { n, account, amount } = &message.payload;
            tx.execute(accounts::UPSERT, &[account, amount, n]).await?;
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
    let connections = way.concurrency.unwrap_or(16) + 8;
    let inbox = Inbox::open(database.pool(Role::Consumer, connections), group).await?;
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", kafka.brokers()).set("group.id", group);
    let mut runner = Runner::new(way.processor(inbox, watch.counter()), config, &[topic.name()]);
    if let Some(handlers) = way.concurrency {
        runner = runner.concurrency(handlers);
    }
    let stop = CancellationToken::new();
    let mut consuming = tokio::spawn(runner.run(stop.clone().cancelled_owned()));
    let turn = watch.finish(async { Ok((&mut consuming).await??) }).await?;
    stop.cancel();
    consuming.await??;
    Ok(turn)
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
