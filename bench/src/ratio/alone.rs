//! One event at a time, with nothing else under way: from its INSERT until a consumer has it.

use std::time::{Duration, Instant};

use amqprs::connection::Connection;
use anyhow::{Context, Result, ensure};
use futures_util::StreamExt as _;
use outbox_harness::{Harness, database::Role};
use tokio::sync::mpsc::UnboundedReceiver;

use super::{Place, settings, stop};
use crate::{
    DrainArgs,
    alone::Alone,
    backlog::{Shape, number},
    terminal::progress,
};

const EVENTS: usize = 400;
/// Events before this are not in the percentiles: connections and caches warm up.
const WARM_UP: usize = 50;
/// Between two events.
const PAUSE: Duration = Duration::from_millis(20);
/// What one may take.
const ARRIVES_WITHIN: Duration = Duration::from_secs(20);

pub(super) async fn run(args: &DrainArgs) -> Result<Alone> {
    progress(&format!("{}: {EVENTS} events, one at a time", args.sink.name()));
    let t = Harness::start().await;
    let place = Place::of(args.sink, &t, Shape::SMALL.keys).await?;
    let mut relay = settings(&t, &place, 1, args)?.start().await;
    let topic = t.topic("orders").name().to_owned();
    let session = t.database().connect(Role::Writer).await;
    let insert = "insert into outbox.events (topic, key, type, payload) \
                  values ($1, $2, 'order.placed', $3::text::jsonb)";
    let insert = session.prepare(insert).await?;
    let mut arrivals = Arrivals::of(&place).await?;
    let mut took_ms = Vec::with_capacity(EVENTS);
    for n in 0..EVENTS {
        let (key, payload) = (format!("k{n}"), Shape::SMALL.payload(n));
        let began = Instant::now();
        session.execute(&insert, &[&topic, &key, &payload]).await?;
        let came = tokio::time::timeout(ARRIVES_WITHIN, arrivals.next()).await;
        let came = came.with_context(|| format!("event {n} did not arrive"))??;
        ensure!(number(&came) == Some(n), "another event than {n} arrived");
        took_ms.push(began.elapsed().as_secs_f64() * 1e3);
        tokio::time::sleep(PAUSE).await;
    }
    stop(&mut relay).await?;
    took_ms.drain(..WARM_UP);
    Ok(Alone::of(args.sink, took_ms))
}

/// What a consumer gets.
enum Arrivals {
    Nats(async_nats::Subscriber),
    Rabbitmq {
        came: UnboundedReceiver<Vec<u8>>,
        /// Ends when it is dropped.
        _connection: Connection,
    },
}

impl Arrivals {
    async fn of(place: &Place) -> Result<Self> {
        Ok(match place {
            Place::Nats(it) => Arrivals::Nats(it.consume(None).await?),
            Place::Rabbitmq(it) => {
                let (connection, came) = it.consume().await?;
                Arrivals::Rabbitmq { came, _connection: connection }
            }
        })
    }

    async fn next(&mut self) -> Result<Vec<u8>> {
        match self {
            Arrivals::Nats(it) => Ok(it.next().await.context("an end")?.payload.to_vec()),
            Arrivals::Rabbitmq { came, .. } => came.recv().await.context("an end"),
        }
    }
}
