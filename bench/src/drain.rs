//! A backlog is drained by each contestant in turn, round after round, from the same position.

use std::{ops::RangeInclusive, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use outbox_harness::{Harness, relay::Relay, topic::Topic};

use crate::{
    DrainArgs,
    backlog::{self, PARTITIONS, Shape},
    consumer,
    relay::{self, Setup},
    report::{Contest, Contestant},
    sample::Sample,
    terminal::progress,
    yardstick,
};

/// The slot from which every yardstick's is copied.
const BASE_SLOT: &str = "bench_base";

/// A contestant that may be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Extra {
    /// The relay, at least once
    AtLeastOnce,
    /// The relay and pg_recvlogical over the Unix socket
    Unix,
    /// pg_recvlogical with the option binary
    Binary,
    /// The server's own decoding
    Decoding,
    /// librdkafka from memory, without headers and with the relay's four
    Producer,
}

impl Extra {
    pub(crate) const ALL: [Extra; 5] =
        [Extra::AtLeastOnce, Extra::Unix, Extra::Binary, Extra::Decoding, Extra::Producer];
}

/// Who takes a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    RecvLogical { unix: bool, binary: bool },
    Relay(Setup),
    Decoding,
    Producer { headers: bool },
}

impl Turn {
    /// In the order of a round; the first is what the others are ratios of.
    fn all(extras: &[Extra]) -> Vec<Turn> {
        let relay = |delivery, unix| Turn::Relay(Setup { delivery, unix });
        let mut turns =
            vec![Turn::RecvLogical { unix: false, binary: false }, relay("exactly-once", false)];
        for extra in extras {
            turns.extend(match extra {
                Extra::AtLeastOnce => vec![relay("at-least-once", false)],
                Extra::Unix => vec![
                    Turn::RecvLogical { unix: true, binary: false },
                    relay("exactly-once", true),
                ],
                Extra::Binary => vec![Turn::RecvLogical { unix: false, binary: true }],
                Extra::Decoding => vec![Turn::Decoding],
                Extra::Producer => {
                    vec![Turn::Producer { headers: true }, Turn::Producer { headers: false }]
                }
            });
        }
        turns
    }

    fn name(self) -> String {
        let socket = |unix| if unix { "Unix socket" } else { "TCP" };
        match self {
            Turn::RecvLogical { unix, binary } => {
                let format = if binary { "binary, " } else { "" };
                format!("pg_recvlogical to nowhere, {format}{}", socket(unix))
            }
            Turn::Relay(Setup { delivery, unix }) => {
                format!("outbox-relay, {delivery}, {}", socket(unix))
            }
            Turn::Decoding => "the server decodes for itself, binary".to_owned(),
            Turn::Producer { headers: true } => "librdkafka from memory, 4 headers".to_owned(),
            Turn::Producer { headers: false } => "librdkafka from memory, no headers".to_owned(),
        }
    }
}

/// What all turns share.
struct Track<'a> {
    t: Harness,
    topic: Topic,
    /// Where the producers' records go.
    other_topic: Topic,
    shape: &'a Shape,
    /// The backlog ends here.
    end: String,
}

/// Measures one shape of backlog.
pub(crate) async fn run(shape: &Shape, args: &DrainArgs, rounds: u32) -> Result<Contest> {
    progress(&format!("{}, {} rows", shape.name, shape.rows));
    let t = Harness::start().await;
    let topic = t.topic("orders").create(PARTITIONS).await;
    let other_topic = t.topic("other").create(PARTITIONS).await;
    let superuser = t.database().superuser();
    let created = "select from pg_create_logical_replication_slot($1, 'pgoutput')";
    superuser.execute(created, &[&BASE_SLOT]).await?;

    let turns = Turn::all(&args.extras);
    let rounds = 1..=rounds;
    let mut relays = prepare(&t, &turns, rounds.clone(), args).await?;
    backlog::write(&t, &topic, shape).await?;
    let end = superuser.query_one("select pg_current_wal_insert_lsn()::text", &[]).await?.get(0);
    let track = Track { t, topic, other_topic, shape, end };

    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); turns.len()];
    for round in rounds {
        for (turn, samples) in turns.iter().zip(&mut samples) {
            let sample = track.turn(*turn, &mut relays).await.with_context(|| turn.name())?;
            let name = turn.name();
            progress(&format!("round {round}, {name}: {:.0} rows/s", sample.rate()));
            samples.push(sample);
        }
    }
    let contestants = turns.iter().zip(samples);
    Ok(Contest {
        shape: shape.clone(),
        contestants: contestants.map(|(turn, s)| Contestant::new(turn.name(), s)).collect(),
    })
}

/// A relay for each of its turns: started once, so that slot and progress stand before the backlog
/// does, and stopped.
async fn prepare(
    t: &Harness,
    turns: &[Turn],
    rounds: RangeInclusive<u32>,
    args: &DrainArgs,
) -> Result<Vec<(Setup, Relay)>> {
    let mut relays = Vec::new();
    for round in rounds {
        for turn in turns {
            if let Turn::Relay(setup) = turn {
                let mut relay = setup.start(t, round, args.relay.as_deref()).await?;
                let status = relay.sigterm().await;
                ensure!(status.success(), "a relay ended with {status}: {}", relay.log_text());
                relays.push((*setup, relay));
            }
        }
    }
    // A relay's slot may have moved on with it; what it moved over is before the backlog.
    Ok(relays)
}

impl Track<'_> {
    async fn turn(&self, turn: Turn, relays: &mut Vec<(Setup, Relay)>) -> Result<Sample> {
        let Track { t, topic, other_topic, shape, end } = self;
        match turn {
            Turn::Relay(setup) => {
                let next = relays.iter().position(|(of, _)| *of == setup).context("a relay")?;
                let (_, mut relay) = relays.remove(next);
                let from = consumer::ends(t.kafka(), topic).await?;
                let sample = relay::drain(&mut relay, shape.rows).await?;
                consumer::verify(t.kafka(), topic, from, shape.rows).await?;
                Ok(sample)
            }
            Turn::RecvLogical { unix, binary } => {
                let slot = self.copy_slot().await?;
                yardstick::recvlogical(t, &slot, end, unix, binary, shape.rows).await
            }
            Turn::Decoding => yardstick::decoding(t, &self.copy_slot().await?, shape.rows).await,
            Turn::Producer { headers } => {
                yardstick::producer(t.kafka(), other_topic, shape, headers).await
            }
        }
    }

    /// A slot at the position of the base, before the backlog.
    async fn copy_slot(&self) -> Result<String> {
        const COPY: &str = "bench_copy";
        const FREE: Duration = Duration::from_secs(10);
        let session = self.t.database().superuser();
        let drop = "select pg_drop_replication_slot(slot_name) from pg_replication_slots \
                    where slot_name = $1";
        // The walsender of the turn before may not have let go yet.
        outbox_harness::wait::until("the copied slot is free", FREE, || async {
            session.execute(drop, &[&COPY]).await.map(|_| ())
        })
        .await?;
        let copy = "select from pg_copy_logical_replication_slot($1, $2)";
        session.execute(copy, &[&BASE_SLOT, &COPY]).await?;
        Ok(COPY.to_owned())
    }
}
