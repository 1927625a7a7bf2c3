//! The relay to NATS or RabbitMQ against bare loops of the same client libraries, which have the messages in
//! memory: the same server, the same messages, one after the other in one run.

mod alone;
mod nats;
mod rabbitmq;

use anyhow::{Context, Result, ensure};
use outbox_harness::{
    Harness,
    relay::{Relay, Settings},
};

use crate::{
    DrainArgs, Scenario,
    alone::Alone,
    backlog::{self, Shape},
    relay::{self, AS_RELAY},
    report::{Contest, Contestant},
    sample::Sample,
    sink::Sink,
    terminal::progress,
};

/// What is measured where an option does not say so.
const ROWS: usize = 200_000;

/// Who takes a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// NATS: batches of 999 and one, each stored whole or not at all, one after the other
    Batches,
    /// NATS: messages with their own acknowledgements, 1,000 under way
    Window,
    /// RabbitMQ: messages with confirms, 2,000 under way
    Confirms,
    Relay,
}

impl Turn {
    fn name(self) -> &'static str {
        match self {
            Turn::Batches => "async-nats from memory, atomic batches of 1,000",
            Turn::Window => "async-nats from memory, 1,000 acknowledgements under way",
            Turn::Confirms => "amqprs from memory, 2,000 confirms under way",
            Turn::Relay => "outbox-relay",
        }
    }
}

/// Where the records go.
enum Place {
    Nats(nats::Place),
    Rabbitmq(rabbitmq::Place),
}

impl Place {
    async fn of(sink: Sink, t: &Harness, keys: usize) -> Result<Self> {
        match sink {
            Sink::Nats => Ok(Place::Nats(nats::Place::of(t).await)),
            Sink::Rabbitmq => Ok(Place::Rabbitmq(rabbitmq::Place::of(t, keys == 1).await)),
            Sink::Kafka => anyhow::bail!("Kafka has contestants of its own"),
        }
    }

    fn to(&self, settings: Settings, relay: &str) -> Settings {
        match self {
            Place::Nats(it) => it.to(settings, relay),
            Place::Rabbitmq(it) => it.to(settings),
        }
    }

    /// In the order of a round; the first is what the others are ratios of.
    fn turns(&self) -> &'static [Turn] {
        match self {
            Place::Nats(_) => &[Turn::Batches, Turn::Window, Turn::Relay],
            Place::Rabbitmq(_) => &[Turn::Confirms, Turn::Relay],
        }
    }

    /// A bare loop's turn.
    async fn bare(&self, turn: Turn, shape: &Shape) -> Result<Sample> {
        let seconds = match (self, turn) {
            (Place::Nats(it), Turn::Batches) => it.batches(shape).await?,
            (Place::Nats(it), _) => it.window(shape).await?,
            (Place::Rabbitmq(it), _) => it.confirms(shape).await?,
        };
        Ok(Sample::of(shape.rows, seconds))
    }

    /// Holds what the relay's turn brought against the rows.
    async fn verify(&self, shape: &Shape, from: u64) -> Result<()> {
        match self {
            Place::Nats(it) => it.verify(shape, from).await,
            Place::Rabbitmq(it) => it.verify(shape).await,
        }
    }

    /// Where the next turn's records begin, for whom it matters.
    async fn end(&self) -> u64 {
        match self {
            Place::Nats(it) => it.stream.last().await,
            Place::Rabbitmq(_) => 0,
        }
    }
}

/// Drains, and the time of an event alone.
///
/// # Errors
/// A run counted wrong, or took too long.
pub(crate) async fn run(args: &DrainArgs) -> Result<(Vec<Contest>, Vec<Alone>)> {
    let wants = |scenario| args.only.is_empty() || args.only.contains(&scenario);
    let mut contests = Vec::new();
    if wants(Scenario::Large) {
        let all_keys: &[usize] = match args.sink {
            Sink::Rabbitmq => &[1_000, 100, 1],
            Sink::Nats | Sink::Kafka => &[1_000],
        };
        for keys in all_keys {
            let shape = Shape { rows: ROWS, keys: *keys, ..Shape::LARGE }.with_rows(args.rows);
            contests.push(drains(&shape, args).await?);
        }
    }
    let mut alone = Vec::new();
    if wants(Scenario::Latency) {
        alone.push(alone::run(args).await?);
    }
    Ok((contests, alone))
}

async fn drains(shape: &Shape, args: &DrainArgs) -> Result<Contest> {
    progress(&format!("{}: {} rows, {} keys", args.sink.name(), shape.rows, shape.keys));
    let t = Harness::start().await;
    let place = Place::of(args.sink, &t, shape.keys).await?;
    let mut relays = Vec::new();
    for round in 1..=args.rounds {
        let mut relay = settings(&t, &place, round, args)?.start().await;
        stop(&mut relay).await?;
        relays.push(relay);
    }
    backlog::write(&t, &t.topic("orders"), shape).await?;
    let turns = place.turns();
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); turns.len()];
    for (relay, round) in relays.iter_mut().zip(1..) {
        for (turn, samples) in turns.iter().zip(&mut samples) {
            let sample = match turn {
                Turn::Relay => {
                    let from = place.end().await;
                    let sample = relay::drain(relay, shape.rows).await?;
                    place.verify(shape, from).await?;
                    sample
                }
                bare => place.bare(*bare, shape).await.with_context(|| bare.name())?,
            };
            progress(&format!("round {round}, {}: {:.0} rows/s", turn.name(), sample.rate()));
            samples.push(sample);
        }
    }
    let contestants = turns.iter().zip(samples);
    let contestants = contestants.map(|(turn, s)| Contestant::new(turn.name().to_owned(), s));
    Ok(Contest { shape: shape.clone(), contestants: contestants.collect() })
}

fn settings(t: &Harness, place: &Place, round: u32, args: &DrainArgs) -> Result<Settings> {
    let program = args.relay.clone().map_or_else(std::env::current_exe, Ok)?;
    let name = format!("{}_{round}", t.database().name());
    // What is written before it starts is no part of its backlog.
    let settings = place.to(t.relay(), &name).set("name", &name).set("postgres.start", "now");
    Ok(settings.program(&program).env(AS_RELAY, "1"))
}

async fn stop(relay: &mut Relay) -> Result<()> {
    let status = relay.sigterm().await;
    ensure!(status.success(), "the relay ended with {status}: {}", relay.log_text());
    Ok(())
}

/// The headers that the relay adds, as long as the real ones.
const HEADERS: [(&str, &str); 5] = [
    ("outbox-id", "0192a4b1-7c3e-7abc-8def-0123456789ab"),
    ("outbox-type", "order.placed"),
    ("outbox-relay", "t12345_0_1"),
    ("outbox-position", "7440000000000000000:1:00000000015D4A58:0000001234"),
    ("outbox-created-at", "2026-11-28T12:00:00.000Z"),
];
