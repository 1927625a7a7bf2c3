//! The whole product in one command, and its promise counted.
//!
//! Writers commit orders with their events, and roll others back; a relay, a process of its own,
//! publishes them while it is killed again and again; a consumer stores what they do. At the end
//! the outbox table is compared with the effects. PostgreSQL is real, the relay is real, the broker is
//! Kafka, the one that is given or librdkafka's mock, or NATS, a server that is given or an installed one. Nothing is left behind, however it ends. Prints
//! nothing: `cli` does.

mod broker;
mod consumer;
mod count;
mod database;
mod orders;
mod relay;
mod update;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::{
    broker::Broker,
    consumer::Consumer,
    database::{Database, Server},
    orders::Orders,
    relay::Relay,
    update::unless_stopped,
};
pub use self::{
    broker::Sink,
    count::Count,
    update::{Tell, Update},
};
use crate::{
    postgres::sql::SqlSession,
    throwaway::{self, guardian},
};

const PARTITIONS: u8 = 4;
/// Nothing new for so long, and the demo has failed.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often the relay is looked at while it is waited for.
const LOOK: Duration = Duration::from_millis(50);
const TICK: Duration = Duration::from_millis(100);
/// The mock forgets all but the newest 5 MiB of a partition: far more than so many events.
const AHEAD_MAX: u64 = 10_000;

/// What is to be shown.
#[derive(Clone, Debug)]
pub struct Options {
    /// Events to commit, at least 1.
    pub events: u64,
    /// Concurrent writers, at least 1.
    pub writers: u32,
    /// How often the relay is killed.
    pub kills: u32,
    /// A server to use instead of a throwaway one.
    pub postgres: Option<String>,
    /// The broker.
    pub sink: Sink,
    /// Damage the effects before they are counted: then the count must tell.
    pub tamper: bool,
}

/// How it ended. All of it was counted.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The outbox against the effects.
    #[serde(flatten)]
    pub count: Count,
    /// Events written in transactions or to savepoints that were rolled back.
    pub rolled_back: u64,
    /// Records that came with an id that had taken effect, and did nothing.
    pub repeated_by_broker: u64,
    /// How often the relay was killed.
    pub kills: u32,
    /// Whether the broker was Kafka's mock.
    pub mock: bool,
    /// What it is, and why nothing is seen that was not committed.
    #[serde(skip)]
    pub seen_by: &'static str,
    /// From the first commit to the last effect.
    pub seconds: f64,
}

impl Summary {
    /// Whether everything was as promised: by a real broker nothing is even repeated.
    pub fn is_as_promised(&self) -> bool {
        self.count.is_exactly_once() && (self.mock || self.repeated_by_broker == 0)
    }
}

/// Names of what the demo makes, no other demo's.
struct Names {
    /// Of the relay and of the database.
    own: String,
    topic: String,
    /// As the relay calls it.
    progress: String,
}

/// Runs the demo; see the module.
///
/// # Errors
/// Something needed is missing, with what to install; or it came to a stop, with the end of the
/// relay's log; or `stop`. Everything that was made is gone by then, or the error says what is not.
pub async fn run(options: &Options, stop: &CancellationToken, tell: Tell<'_>) -> Result<Summary> {
    let own = format!("outbox_demo_{:08x}", rand::random::<u32>());
    let names = Names {
        topic: own.replace('_', "-"),
        progress: format!("outbox-relay-progress-{own}"),
        own,
    };
    let server = Server::obtain(options.postgres.as_deref(), stop, tell).await?;
    let database = server.create(&names.own).await?;
    let outcome = in_database(options, &names, &database, stop, tell).await;
    let dropped = database.drop().await;
    let dropped = dropped.with_context(|| format!("dropping the database {}", names.own));
    outcome.and_then(|summary| dropped.map(|()| summary))
}

async fn in_database(
    options: &Options,
    names: &Names,
    database: &Database,
    stop: &CancellationToken,
    tell: Tell<'_>,
) -> Result<Summary> {
    let tables = format!("{}{}", orders::TABLES, consumer::TABLES);
    database.migrate(&tables).await.context("making the demo's tables")?;
    let dir = throwaway::directory("outbox-demo-")?;
    guardian::remove_at_exit(dir.path())?;
    let broker = unless_stopped(stop, Broker::obtain(&options.sink, dir.path())).await?;
    tell(Update::Line(broker.describe()));
    // Not to be stopped half-way: a topic may be made by then.
    broker.create(&names.topic, PARTITIONS, &names.progress).await?;
    // Dropped when stopped, and with it the relay and every open transaction.
    // Boxed: it holds every writer and the consumer.
    let play = Box::pin(play(options, names, database, &broker, dir.path(), tell));
    let outcome = unless_stopped(stop, play).await;
    let deleted = broker.delete(&names.topic, &names.progress).await;
    outcome.and_then(|summary| deleted.map(|()| summary))
}

/// What happens on stage.
async fn play(
    options: &Options,
    names: &Names,
    database: &Database,
    broker: &Broker,
    dir: &Path,
    tell: Tell<'_>,
) -> Result<Summary> {
    let sink = broker.settings(&names.topic, PARTITIONS);
    let relay = Relay::start(dir, &names.own, database, &sink)?;
    let (delivered, seen) = watch::channel(0);
    let slot = format!("outbox_{}", names.own);
    let session = database.connect().await?;
    let mut director = Director { relay, session, slot, seen: seen.clone(), tell };
    let streams = director.wait_for_stream(None).await?;
    let pid = director.relay.pid();
    tell(Update::Line(format!("relay: `outbox-relay run`, process {pid}")));

    let round = options.events / (u64::from(options.kills) + 1);
    let ahead_max = (round * 2).clamp(1, AHEAD_MAX);
    let orders = Orders::new(&names.topic, options.events, ahead_max, seen.clone());
    let session = database.connect().await?;
    let reader = broker.reader(&names.topic, PARTITIONS)?;
    let mut consumer = Consumer::new(reader, session, delivered).await?;
    tell(Update::Line(format!(
        "{} writers commit {} events for {} customers, and roll others back; a consumer stores \
         what they do",
        options.writers,
        options.events,
        orders::CUSTOMERS
    )));
    let enough = CancellationToken::new();
    let begun = Instant::now();
    let watched = async {
        loop {
            tokio::time::sleep(TICK).await;
            tell(Update::Progress { committed: orders.committed(), delivered: *seen.borrow() });
        }
    };
    let acted = async {
        let (ended, (), ()) = tokio::try_join!(
            director.direct(options, streams, &enough),
            orders.write(database, options.writers),
            consumer.consume(&enough),
        )?;
        anyhow::Ok(ended)
    };
    let ended = tokio::select! {
        acted = acted => acted?,
        () = watched => return Err(anyhow!("the watcher never ends")),
    };

    let session = database.connect().await?;
    if options.tamper {
        consumer::tamper(session.client()).await?;
        let what = "tampered: one effect deleted, one doubled, two of one customer swapped";
        tell(Update::Line(what.to_owned()));
    }
    let committed = orders::committed(session.client()).await?;
    let effects = consumer::effects(session.client()).await?;
    Ok(Summary {
        count: count::count(&committed, &effects),
        rolled_back: orders.rolled_back(),
        repeated_by_broker: consumer.repeated(),
        kills: options.kills,
        mock: broker.is_mock(),
        seen_by: broker.seen_by(),
        seconds: ended.duration_since(begun).as_secs_f64(),
    })
}

/// Kills the relay at its time, and knows when all has arrived.
struct Director<'a> {
    relay: Relay,
    /// For looking at the slot.
    session: SqlSession,
    slot: String,
    /// Events that took effect.
    seen: watch::Receiver<u64>,
    tell: Tell<'a>,
}

impl Director<'_> {
    /// Waits until a relay streams from the slot, another than `before`, and returns which: the
    /// server process that serves it. What is committed before there is a slot is not published.
    async fn wait_for_stream(&mut self, before: Option<i32>) -> Result<Option<i32>> {
        let query = "select active_pid from pg_replication_slots where slot_name = $1 \
                     and active and confirmed_flush_lsn is not null";
        let begun = Instant::now();
        loop {
            let row = self.session.client().query_opt(query, &[&self.slot]).await?;
            let streams: Option<i32> = row.map(|row| row.try_get(0)).transpose()?;
            if streams.is_some() && streams != before {
                return Ok(streams);
            }
            self.relay.is_running()?;
            if begun.elapsed() > PATIENCE {
                bail!("the relay does not begin to stream; its log:\n{}", self.relay.log());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Returns when the last event arrived, or it is plain that none will any more.
    async fn direct(
        &mut self,
        options: &Options,
        mut streams: Option<i32>,
        enough: &CancellationToken,
    ) -> Result<Instant> {
        for kill in 1..=options.kills {
            let goal = options.events * u64::from(kill) / (u64::from(options.kills) + 1);
            self.reach(goal).await?;
            let (pid, seen) = (self.relay.pid(), *self.seen.borrow());
            let killed = Instant::now();
            self.relay.replace().await?;
            streams = self.wait_for_stream(streams).await?;
            let restart = killed.elapsed().as_secs_f64();
            (self.tell)(Update::Line(format!(
                "kill -9 of process {pid} at {seen} delivered; process {} continues after {restart:.1} s",
                self.relay.pid(),
            )));
            // The next kill is to hit one that delivers: one before that would show little.
            let more = *self.seen.borrow() + 1;
            self.reach(more.min(options.events)).await?;
        }
        let arrived = self.reach(options.events).await;
        let ended = Instant::now();
        if let Err(error) = arrived {
            // The count tells how many are lost.
            (self.tell)(Update::Line(format!("{error:#}")));
        }
        self.relay.stop().await?;
        enough.cancel();
        Ok(ended)
    }

    /// Waits until `goal` events have taken effect, as long as there is something new.
    async fn reach(&mut self, goal: u64) -> Result<()> {
        let (mut seen, mut since) = (0, Instant::now());
        while seen < goal {
            self.relay.is_running()?;
            match tokio::time::timeout(LOOK, self.seen.changed()).await {
                Ok(changed) => changed.context("the consumer has ended")?,
                Err(_nothing_new) if since.elapsed() > PATIENCE => bail!(
                    "nothing new in {} s, at {seen} delivered; the relay's log:\n{}",
                    PATIENCE.as_secs(),
                    self.relay.log()
                ),
                Err(_nothing_new) => {}
            }
            let now = *self.seen.borrow_and_update();
            if now != seen {
                (seen, since) = (now, Instant::now());
            }
        }
        Ok(())
    }
}
