//! A consumer of a broker that acknowledges each message by itself, as RabbitMQ, SQS and NATS JetStream do.
//!
//! The broker is a queue in memory here, which delivers again what is not acknowledged; put your client in its
//! place. `DATABASE_URL=postgres://postgres@localhost/billing cargo run --example deliveries` makes the tables,
//! charges three orders, one of which comes twice, and ends.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use outbox_idempotency::dispatch::{Answer, Deliveries};
use outbox_idempotency::{
    Classify as _, Failure, Headers, Inbox, Message, MessageId, Processor, RawMessage, Source,
    Stop, Timestamp, Tx,
};
use tokio::{sync::Notify, task::JoinSet};

const WORKERS: usize = 8;

/// A message without an id is not taken: a copy of it could not be told from another message.
fn message(delivery: &Delivery) -> Option<RawMessage> {
    let Delivery { queue, key, headers, sent, body, .. } = delivery;
    let sent = Timestamp::Produced(*sent);
    let given = headers.iter().map(|(name, value)| (name, value));
    let id = MessageId::from_headers(given, &["message-id"], Some(sent))?;
    let headers: Headers =
        headers.iter().map(|(name, value)| (name.clone(), Some(value.clone()))).collect();
    let message = Message::new(id, Source::of_queue(queue.as_str()), Some(body.clone().into()));
    Some(message.with_key(key.as_bytes()).with_headers(headers).with_timestamp(sent))
}

async fn consume(
    processor: Processor,
    broker: Arc<Broker>,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    // None: what is not answered stays ours while the connection lasts. A lease: Some(its time).
    let deliveries = Arc::new(Deliveries::new(processor.clone(), None)?);
    // Each runs until it can't go on; dropping the set ends them, and rolls back what they do.
    let mut tasks: JoinSet<Stop> = JoinSet::new();
    for _ in 0..WORKERS {
        let deliveries = Arc::clone(&deliveries);
        tasks.spawn(async move { deliveries.work().await });
    }
    // Retries, replays, upkeep.
    tasks.spawn(async move { processor.background().await });
    tasks.spawn({
        let (deliveries, broker) = (Arc::clone(&deliveries), Arc::clone(&broker));
        async move {
            loop {
                deliveries.answers().await.into_iter().for_each(|answer| broker.tell(&answer));
            }
        }
    });
    let receive = async {
        loop {
            deliveries.room().await;
            let delivery = broker.receive().await;
            match message(&delivery) {
                Some(message) => deliveries.push(message, delivery.tag),
                None => broker.reject(delivery.tag),
            }
        }
    };
    let end = async {
        tokio::select! {
            () = receive => {}
            () = stop => {}
        }
        // What workers have is finished; the rest is returned.
        let (_left, answers) = deliveries.drain(Duration::from_secs(10)).await;
        answers.into_iter().for_each(|answer| broker.tell(&answer));
    };
    tokio::select! {
        () = end => Ok(()),
        Some(ended) = tasks.join_next() => Err(ended?.into()),
    }
}

#[derive(serde::Deserialize)]
struct Order {
    order: i64,
    amount_cents: i64,
}

async fn charge(tx: Tx, Message { payload, .. }: Message<Order>) -> Result<(), Failure> {
    let cents = u32::try_from(payload.amount_cents).permanent("bad-amount")?;
    let sql = "insert into charges (order_id, cents) values ($1, $2)";
    tx.execute(sql, &[&payload.order, &i64::from(cents)]).await?;
    Ok(())
}

/// As a client gives it.
#[derive(Clone)]
struct Delivery {
    tag: u64,
    queue: String,
    key: String,
    headers: Vec<(String, Vec<u8>)>,
    sent: SystemTime,
    body: Vec<u8>,
}

#[derive(Default)]
struct Broker {
    queue: Mutex<Queue>,
    changed: Notify,
}

#[derive(Default)]
struct Queue {
    ready: VecDeque<Delivery>,
    unanswered: HashMap<u64, Delivery>,
}

impl Broker {
    fn send(&self, tag: u64, id: &str, order: i64, sent: SystemTime) {
        let body = format!(r#"{{"order": {order}, "amount_cents": 1200}}"#);
        let delivery = Delivery {
            tag,
            queue: "orders".to_owned(),
            key: order.to_string(),
            headers: vec![("message-id".to_owned(), id.as_bytes().to_vec())],
            sent,
            body: body.into_bytes(),
        };
        self.change(|queue| queue.ready.push_back(delivery));
    }

    async fn receive(&self) -> Delivery {
        loop {
            let changed = self.changed.notified();
            let delivery = {
                let mut queue = self.queue.lock().expect("no panic");
                let delivery = queue.ready.pop_front();
                queue.unanswered.extend(delivery.iter().map(|d| (d.tag, d.clone())));
                delivery
            };
            if let Some(delivery) = delivery {
                return delivery;
            }
            changed.await;
        }
    }

    fn tell(&self, answer: &Answer<u64>) {
        self.change(|queue| match answer {
            Answer::Acknowledge(tag) => drop(queue.unanswered.remove(tag)),
            Answer::Return(tag, _after) => queue.ready.extend(queue.unanswered.remove(tag)),
            // A lease would be extended.
            _ => {}
        });
    }

    /// Where the broker keeps messages that can't be handled.
    fn reject(&self, tag: u64) {
        self.change(|queue| drop(queue.unanswered.remove(&tag)));
    }

    fn change(&self, change: impl FnOnce(&mut Queue)) {
        change(&mut self.queue.lock().expect("no panic"));
        self.changed.notify_waiters();
    }

    async fn is_empty(&self) {
        loop {
            let changed = self.changed.notified();
            let empty = {
                let queue = self.queue.lock().expect("no panic");
                queue.ready.is_empty() && queue.unanswered.is_empty()
            };
            if empty {
                return;
            }
            changed.await;
        }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().init();
    let database = std::env::var("DATABASE_URL").context("DATABASE_URL")?.parse()?;
    let manager = deadpool_postgres::Manager::new(database, tokio_postgres::NoTls);
    let pool = deadpool_postgres::Pool::builder(manager).max_size(32).build()?;
    let mut client = deadpool_postgres::Object::take(pool.get().await?);
    outbox_idempotency::migrate(&mut client).await?;
    let table =
        "create table if not exists charges (order_id bigint not null, cents bigint not null)";
    client.batch_execute(table).await?;
    let broker = Arc::new(Broker::default());
    // A copy has the time of the first: the day of an id is the message's.
    let sent = SystemTime::now();
    for (tag, (id, order)) in (1..).zip([("a", 1), ("b", 2), ("a", 1), ("c", 3)]) {
        broker.send(tag, id, order, sent);
    }
    let processor = Processor::new(Inbox::open(pool, "billing/charge").await?, charge);
    consume(processor, Arc::clone(&broker), broker.is_empty()).await
}
