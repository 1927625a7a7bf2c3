//! What a release of very many parked events takes, and what it costs a healthy lane: a thousand commits a
//! second to another topic, as in `latency`, first alone, then while all is released. The load ends after its time,
//! whether all is released by then or not.
//!
//! The events are put into the table as if they had been parked: how they came there is no part of this.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use outbox_harness::Harness;
use outbox_relay::dead_letter::operator::{Far, Operator, Selection};
use serde::Serialize;
use tokio_postgres::NoTls;

use crate::{
    ReleaseArgs,
    backlog::PARTITIONS,
    latency::{self, Measured},
    relay::{Mode, Setup},
    terminal::{self, progress},
};

/// Until all is delivered.
const RELEASED_MAX: Duration = Duration::from_secs(1_200);
/// Between two reports of how far it is.
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// A mode's numbers.
#[derive(Debug, Serialize)]
struct Row {
    delivery: &'static str,
    events: u32,
    /// From the command's start until the last event is stored and the table says so.
    seconds: f64,
    /// `None` where nothing was beside it.
    beside: Option<Beside>,
}

/// What the release costs a healthy lane.
#[derive(Debug, Serialize)]
struct Beside {
    alone_p99_ms: f64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

impl Row {
    fn line(&self) -> String {
        let Row { delivery, events, seconds, beside } = self;
        let rate = f64::from(*events) / seconds;
        let lane = match beside {
            Some(Beside { alone_p99_ms, p50_ms, p99_ms, max_ms }) => {
                format!("{p50_ms:.1} | {p99_ms:.1} | {max_ms:.0} | {alone_p99_ms:.1}")
            }
            None => "- | - | - | -".to_owned(),
        };
        format!("| {events} | {delivery} | {seconds:.1} | {rate:.0} | {lane} |\n")
    }
}

/// All of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    rows: Vec<Row>,
}

impl Outcome {
    pub(crate) fn json(&self) -> String {
        terminal::pretty(self)
    }

    pub(crate) fn text(&self) -> String {
        let head = "| released | delivery | in s | events/s | healthy p50 ms | p99 ms | max ms | p99 ms alone |\n\
                    |---|---|---|---|---|---|---|---|\n";
        self.rows.iter().fold(head.to_owned(), |text, row| text + &row.line())
    }
}

/// Both modes, one after the other.
pub(crate) async fn run(args: &ReleaseArgs) -> Result<Outcome> {
    let mut rows = Vec::new();
    for mode in [Mode::ExactlyOnce, Mode::AtLeastOnce] {
        if args.only.is_none_or(|only| only == mode) {
            let delivery = mode.name();
            let row = measured(args, delivery).await.with_context(|| delivery.to_owned())?;
            progress(row.line().trim_end());
            rows.push(row);
        }
    }
    Ok(Outcome { rows })
}

async fn measured(args: &ReleaseArgs, delivery: &'static str) -> Result<Row> {
    let t = Harness::start().await;
    let healthy = t.topic("orders").create(PARTITIONS).await;
    let released = t.topic("released").create(PARTITIONS).await;
    // Each load counts what it has in a topic of its own.
    let beside = t.topic("beside").create(PARTITIONS).await;
    let settings = Setup { delivery, unix: false }.settings(&t, 1, args.relay.as_deref())?;
    let name = settings.value("name");
    progress(&format!("parking {} events, {delivery}", args.events));
    park(&t, &name, released.name(), args).await?;
    let mut relay = settings.start().await;
    let mut seconds = 0.0;
    let beside = match args.without_load {
        true => {
            seconds = release_all(&t, &name).await?;
            None
        }
        false => {
            progress("alone");
            let nothing = async { Ok(()) };
            let alone = latency::measure(&t, &healthy, args.seconds, nothing).await?;
            progress("beside the release");
            let release = async {
                seconds = release_all(&t, &name).await?;
                Ok(())
            };
            let measured = latency::measure(&t, &beside, args.seconds, release).await?;
            let Measured { p50_ms, p99_ms, max_ms, .. } = measured;
            Some(Beside { alone_p99_ms: alone.p99_ms, p50_ms, p99_ms, max_ms })
        }
    };
    let found = released.fold(0_u32, |count, _| *count += 1).await;
    ensure!(found == args.events, "{found} of {} events are in the topic", args.events);
    let status = relay.sigterm().await;
    ensure!(status.success(), "the relay ended with {status}: {}", relay.log_text());
    Ok(Row { delivery, events: args.events, seconds, beside })
}

async fn park(t: &Harness, relay: &str, topic: &str, args: &ReleaseArgs) -> Result<()> {
    let ReleaseArgs { events, of_a_key, .. } = args;
    let sql = format!(
        "insert into outbox.dead_letters (relay, system_id, commit_lsn, ordinal, event_id, lane, \
             topic, key, payload, headers, fit, reason, error) \
         select '{relay}', (select system_identifier::text from pg_control_system()), '0/1', n, n::text, \
             md5('{topic}' || n / {of_a_key})::uuid, '{topic}', convert_to('k' || n / {of_a_key}, 'UTF8'), \
             convert_to(repeat(md5(n::text), 4), 'UTF8'), \
             jsonb_build_array(jsonb_build_array('outbox-id', n::text), \
                 jsonb_build_array('outbox-position', '')), true, 'too_large', 'scripted' \
         from generate_series(1, {events}) n"
    );
    t.database().superuser().batch_execute(&sql).await?;
    t.database().superuser().batch_execute("vacuum analyze outbox.dead_letters").await?;
    Ok(())
}

/// As `dead-letters release --all`; returns how many seconds it took until all was delivered.
async fn release_all(t: &Harness, relay: &str) -> Result<f64> {
    let begun = Instant::now();
    let (mut client, connection) =
        tokio_postgres::connect(&t.database().superuser_settings(), NoTls).await?;
    let connection = tokio::spawn(connection);
    let mut reported = Instant::now();
    let tell = |far: Far| {
        if reported.elapsed() >= REPORT_EVERY {
            reported = Instant::now();
            progress(&format!("{} events delivered after {:.0?}", far.delivered, begun.elapsed()));
        }
    };
    Operator::new(&mut client, relay).release(&Selection::default(), tell).await?;
    let left =
        "select exists (select from outbox.dead_letters where state in ('parked', 'releasing'))";
    while client.query_one(left, &[]).await?.get(0) {
        ensure!(begun.elapsed() < RELEASED_MAX, "not all is released after {RELEASED_MAX:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(client);
    connection.await??;
    Ok(begun.elapsed().as_secs_f64())
}
