//! The consumer's half against its yardsticks: what remembering messages costs, and what it saves.
//!
//! ```text
//! messages ─► Kafka ─┬─► Runner, one way of remembering ─┐
//!                    ├─► Runner, another way             ├─► accounts (counted after each turn)
//!                    └─► a loop written by hand          ┘
//! ```
//!
//! In each comparison the contestants take turns, round after round, each on tables as new. All
//! commit as the server does by default, and acknowledge to Kafka after that.

mod accounts;
mod by_hand;
mod messages;
mod outcome;
mod question;
mod runner;

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result};
use outbox_harness::{database::Database, kafka::Kafka, servers, topic::Topic};

use self::{
    accounts::Watch,
    by_hand::ByHand,
    messages::{Keys, PARTITIONS},
    outcome::Turn,
    runner::{WAITING, Way},
};
use crate::{InboxArgs, terminal::progress};

pub(crate) use self::{outcome::Comparison, question::Question};

/// The first is measured, the second is what it is a ratio of.
fn contestants(question: Question) -> Vec<Contestant> {
    let of = |way, messages| Contestant { who: Who::Runner(way), messages };
    let by_hand = |loops, messages| Contestant { who: Who::ByHand(ByHand { loops }), messages };
    match question {
        Question::Rows => vec![of(Way::ROWS, 40_000), of(Way::OFF, 40_000)],
        Question::Clearing => vec![of(Way::ROWS, 40_000), of(Way::LEFT, 40_000)],
        Question::Batch => {
            vec![of(Way::BATCH, 300_000), by_hand(1, 15_000), by_hand(8, 30_000)]
        }
        Question::Watermark => {
            vec![of(Way::BATCH_WATERMARK, 300_000), of(Way::BATCH_OFF, 300_000)]
        }
        Question::Keyless => {
            vec![of(Way::BATCH_WATERMARK, 200_000), of(Way::BATCH, 200_000)]
        }
        Question::Fetch => vec![of(Way::BATCH_OFF, 300_000), of(Way::BATCH_OFF_8_MIB, 300_000)],
        Question::Parked => vec![of(Way::PARKED, 8_000), of(Way::TWO_ROWS, 8_000)],
        Question::Wait5 => waiting(5, 30_000),
        Question::Wait20 => waiting(20, 10_000),
    }
}

/// Handlers that wait so many milliseconds.
fn waiting(ms: u64, messages: usize) -> Vec<Contestant> {
    let wait = Duration::from_millis(ms);
    [Who::Runner(Way::waiting(wait)), Who::Ideal(wait), Who::Timers(wait)]
        .map(|who| Contestant { who, messages })
        .into()
}

#[derive(Clone, Copy, Debug)]
struct Contestant {
    who: Who,
    messages: usize,
}

#[derive(Clone, Copy, Debug)]
enum Who {
    Runner(Way),
    ByHand(ByHand),
    /// Arithmetic: so many handlers, each as long as it says.
    Ideal(Duration),
    /// As many tasks that do nothing but wait: what the timers make of it.
    Timers(Duration),
}

impl Contestant {
    fn name(&self) -> String {
        match self.who {
            Who::Runner(way) => way.name(),
            Who::ByHand(by_hand) => by_hand.name(),
            Who::Ideal(wait) => format!("{WAITING} / {wait:?}"),
            Who::Timers(wait) => format!("{WAITING} tasks that only wait {wait:?}"),
        }
    }
}

/// Everything that is asked for.
pub(crate) async fn run(args: &InboxArgs) -> Result<Vec<Comparison>> {
    let asked = if args.only.is_empty() { Question::ALL.to_vec() } else { args.only.clone() };
    let messages = args.messages.map(usize::try_from).transpose()?;
    let concurrency = args.concurrency.map(usize::try_from).transpose()?;
    let mut hall = Hall::open(concurrency).await?;
    let mut comparisons = Vec::new();
    for question in asked {
        let contestants: Vec<Contestant> = contestants(question)
            .into_iter()
            .map(|c| Contestant { messages: messages.unwrap_or(c.messages), ..c })
            .collect();
        let mut turns: Vec<Vec<Turn>> = vec![Vec::new(); contestants.len()];
        for round in 1..=args.rounds {
            for (contestant, turns) in contestants.iter().zip(&mut turns) {
                let name = contestant.name();
                let turn =
                    hall.turn(contestant, question.keys()).await.with_context(|| name.clone())?;
                progress(&format!("round {round}, {name}: {:.0} messages/s", turn.rate()));
                turns.push(turn);
            }
        }
        let names = contestants.iter().map(Contestant::name);
        comparisons.push(Comparison::new(question, question.floor(), names.zip(turns)));
    }
    Ok(comparisons)
}

/// What all turns share.
struct Hall {
    kafka: &'static Kafka,
    database: Database,
    /// By number of messages and what keys they have.
    topics: BTreeMap<(usize, Keys), Topic>,
    turns: usize,
    concurrency: Option<usize>,
}

impl Hall {
    async fn open(concurrency: Option<usize>) -> Result<Self> {
        let database = Database::create_inbox().await;
        let kafka = servers::kafka().await;
        Ok(Hall { kafka, database, topics: BTreeMap::new(), turns: 0, concurrency })
    }

    async fn turn(
        &mut self,
        Contestant { who, messages }: &Contestant,
        keys: Keys,
    ) -> Result<Turn> {
        let messages = *messages;
        match who {
            Who::Ideal(wait) => {
                return Ok(Turn::of(messages, runner::ideal_seconds(messages, *wait)));
            }
            Who::Timers(wait) => {
                return Ok(Turn::of(messages, runner::timers(messages, *wait).await));
            }
            Who::Runner(_) | Who::ByHand(_) => {}
        }
        let topic = self.topic(messages, keys).await?;
        accounts::make_new(&self.database).await?;
        self.turns += 1;
        let group = format!("{}.{}", self.database.name(), self.turns);
        let watch = Watch::new(&self.database, messages).await?;
        let turn = match who {
            Who::Runner(way) => {
                let way = way.with(self.concurrency);
                runner::run(&way, self.kafka, &self.database, &topic, &group, &watch).await?
            }
            Who::ByHand(by_hand) => {
                by_hand::run(*by_hand, self.kafka, &self.database, &topic, &group, &watch).await?
            }
            Who::Ideal(_) | Who::Timers(_) => unreachable!("these need no servers"),
        };
        accounts::verify(&self.database, messages, keys).await?;
        Ok(turn)
    }

    /// A topic with so many messages in it.
    async fn topic(&mut self, messages: usize, keys: Keys) -> Result<Topic> {
        if let Some(topic) = self.topics.get(&(messages, keys)) {
            return Ok(topic.clone());
        }
        let name = format!("{}.{messages}.{keys:?}", self.database.name());
        let topic = Topic::new(self.kafka, name).create(PARTITIONS).await;
        messages::produce(self.kafka, &topic, messages, keys).await?;
        self.topics.insert((messages, keys), topic.clone());
        Ok(topic)
    }
}
