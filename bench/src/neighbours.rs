//! What a healthy lane's latency is while others misbehave: a thousand commits a second to one
//! topic, as in `latency`, and beside them events that can't be delivered.
//!
//! Each kind has a database, a relay and topics of its own. Healthy events are counted, each once
//! and in order; so are the parked ones, which must be exactly those of the neighbours.

use std::{
    fmt::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use outbox_harness::{Harness, database::Role, topic::Topic};
use serde::Serialize;

use crate::{
    NeighboursArgs,
    backlog::PARTITIONS,
    latency::{self, Measured},
    relay::Setup,
    terminal::{self, progress},
};

/// Refused at once.
const REFUSED: u32 = 5_000;
/// The same, in one transaction that is a long one.
const MANY: u32 = 20_000;
/// Topics that are missing.
const MISSING: u32 = 1_000;
/// Beside the latency without neighbours, p99 may be so many times as long…
const RATIO_MAX: f64 = 1.5;
/// …or, since brokers must be asked, so long.
const P99_MAX_MS: f64 = 1_000.0;
/// Until all of the neighbours' events are parked.
const PARKED_MAX: Duration = Duration::from_secs(60);

/// What the neighbours do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Trouble {
    /// 5,000 events of the size of the next ones, which their topic takes: none is refused
    Large,
    /// 5,000 events that are too large for their topic, each of a key of its own, at once
    TooLarge,
    /// 20,000 events of the size of the next ones, which their topic takes
    ManyLarge,
    /// 20,000 events that are too large for their topic, each of a key of its own, in one transaction
    ManyTooLarge,
    /// 5,000 events beyond their topic's bound of time, at once
    TooOld,
    /// One event each to 1,000 topics that do not exist, at once
    Missing,
    /// An event that is too large, each second
    Poison,
}

impl Trouble {
    /// Whether its events are taken.
    fn is_good(self) -> bool {
        matches!(self, Trouble::Large | Trouble::ManyLarge)
    }

    fn name(self) -> &'static str {
        match self {
            Trouble::Large => "5,000 large, none refused",
            Trouble::TooLarge => "5,000 too large",
            Trouble::ManyLarge => "20,000 large, none refused",
            Trouble::ManyTooLarge => "20,000 too large",
            Trouble::TooOld => "5,000 beyond the bound of time",
            Trouble::Missing => "1,000 missing topics",
            Trouble::Poison => "one poison a second",
        }
    }
}

/// A measured load, and what continued beside it.
#[derive(Debug, Serialize)]
struct Row {
    /// `None` is nothing.
    trouble: Option<Trouble>,
    delivery: &'static str,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    /// p99 against that without neighbours.
    ratio: f64,
    parked: u32,
    /// Until all were parked.
    parked_seconds: Option<f64>,
    held: bool,
}

/// All of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    rows: Vec<Row>,
}

impl Outcome {
    /// Whether every load was within its bounds.
    pub(crate) fn held(&self) -> bool {
        self.rows.iter().all(|row| row.held)
    }

    pub(crate) fn json(&self) -> String {
        terminal::pretty(self)
    }

    pub(crate) fn text(&self) -> String {
        let mut text = format!(
            "| 1,000 healthy commits/s beside | delivery | p50 ms | p99 ms | max ms | p99 ratio | \
             parked | in s | within {RATIO_MAX} × or {P99_MAX_MS:.0} ms |\n\
             |---|---|---|---|---|---|---|---|---|\n"
        );
        for row in &self.rows {
            let Row {
                delivery, p50_ms, p99_ms, max_ms, ratio, parked, parked_seconds, held, ..
            } = row;
            let name = row.trouble.map_or("nothing", Trouble::name);
            let seconds = parked_seconds.map_or("".to_owned(), |s| format!("{s:.2}"));
            let held = if *held { "yes" } else { "NO" };
            let _ = writeln!(
                text,
                "| {name} | {delivery} | {p50_ms:.1} | {p99_ms:.1} | {max_ms:.0} | {ratio:.2} | \
                 {parked} | {seconds} | {held} |"
            );
        }
        text
    }
}

/// Without neighbours, then with each kind, in both modes.
pub(crate) async fn run(args: &NeighboursArgs) -> Result<Outcome> {
    let wanted = |trouble: &&Trouble| args.only.is_empty() || args.only.contains(trouble);
    let mut rows = Vec::new();
    for delivery in ["exactly-once", "at-least-once"] {
        let troubles = Trouble::value_variants().iter().filter(wanted).copied().map(Some);
        let mut alone_ms = None;
        for trouble in std::iter::once(None).chain(troubles) {
            let name = trouble.map_or("nothing", Trouble::name);
            progress(&format!("beside {name}, {delivery}, {} s", args.seconds));
            let measured = beside(trouble, delivery, args.seconds, args.relay.as_deref()).await;
            let (measured, parked, parked_seconds) = measured.with_context(|| name.to_owned())?;
            let Measured { p50_ms, p99_ms, max_ms, .. } = measured;
            let ratio = p99_ms / *alone_ms.get_or_insert(p99_ms);
            let held = ratio <= RATIO_MAX || p99_ms <= P99_MAX_MS;
            rows.push(Row {
                trouble,
                delivery,
                p50_ms,
                p99_ms,
                max_ms,
                ratio,
                parked,
                parked_seconds,
                held,
            });
        }
    }
    Ok(Outcome { rows })
}

async fn beside(
    trouble: Option<Trouble>,
    delivery: &'static str,
    seconds: u32,
    program: Option<&Path>,
) -> Result<(Measured, u32, Option<f64>)> {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(PARTITIONS).await;
    let bounds = [("max.message.bytes", "2000"), ("message.timestamp.before.max.ms", "3600000")];
    let bounds = if trouble.is_some_and(Trouble::is_good) { &[][..] } else { &bounds };
    let bad = t.topic("bad").create_with(PARTITIONS, bounds).await;
    let mut relay = Setup { delivery, unix: false }.start(&t, 1, program).await?;
    let (mut parked, mut parked_seconds) = (0, None);
    let happens = async {
        let Some(trouble) = trouble else { return Ok(()) };
        let begun = Instant::now();
        parked = make(trouble, &t, &bad, seconds).await?;
        wait_parked(&t, parked).await?;
        if !trouble.is_good() && trouble != Trouble::Poison {
            parked_seconds = Some(begun.elapsed().as_secs_f64());
        }
        Ok(())
    };
    let measured = latency::measure(&t, &topic, seconds, happens).await?;
    // Nothing healthy was parked meanwhile.
    wait_parked(&t, parked).await?;
    let status = relay.sigterm().await;
    ensure!(status.success(), "the relay ended with {status}: {}", relay.log_text());
    Ok((measured, parked, parked_seconds))
}

/// Writes what can't be delivered, and returns how many events that were.
async fn make(trouble: Trouble, t: &Harness, bad: &Topic, seconds: u32) -> Result<u32> {
    let session = t.database().connect(Role::Writer).await;
    let bad = bad.name();
    let large = "to_jsonb(repeat(md5(n::text), 100))";
    let (sql, count) = match trouble {
        Trouble::Large | Trouble::TooLarge | Trouble::ManyLarge | Trouble::ManyTooLarge => {
            let is_many = matches!(trouble, Trouble::ManyLarge | Trouble::ManyTooLarge);
            let count = if is_many { MANY } else { REFUSED };
            let sql = format!(
                "insert into outbox.events (topic, key, payload) \
                 select '{bad}', 'k' || n, {large} from generate_series(1, {count}) n"
            );
            (sql, if trouble.is_good() { 0 } else { count })
        }
        Trouble::TooOld => (
            format!(
                "insert into outbox.events (topic, key, created_at) \
                 select '{bad}', 'k' || n, clock_timestamp() - interval '3 hours' \
                 from generate_series(1, {REFUSED}) n"
            ),
            REFUSED,
        ),
        Trouble::Missing => (
            format!(
                "insert into outbox.events (topic, key) \
                 select '{bad}.missing.' || n, 'k' from generate_series(1, {MISSING}) n"
            ),
            MISSING,
        ),
        Trouble::Poison => {
            let count = seconds.saturating_sub(2);
            let mut tick = tokio::time::interval(Duration::from_secs(1));
            for n in 0..count {
                tick.tick().await;
                let sql = format!(
                    "insert into outbox.events (topic, key, payload) \
                     select '{bad}', 'k' || n, {large} from (select {n} as n) n"
                );
                session.batch_execute(&sql).await?;
            }
            return Ok(count);
        }
    };
    session.batch_execute(&sql).await?;
    Ok(count)
}

async fn wait_parked(t: &Harness, wanted: u32) -> Result<()> {
    let deadline = Instant::now() + PARKED_MAX;
    let sql = "select count(*) from outbox.dead_letters where state = 'parked'";
    loop {
        let found: i64 = t.database().superuser().query_one(sql, &[]).await?.get(0);
        if found == i64::from(wanted) {
            return Ok(());
        }
        ensure!(found < i64::from(wanted), "{found} events are parked, of {wanted}");
        ensure!(Instant::now() < deadline, "{found} events are parked, of {wanted}, in time");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
