//! What a release of very many parked events takes, and what it costs a healthy lane: a thousand commits a
//! second to another topic, as in `latency`, first alone, then while all is released.
//!
//! The events are put into the table as if they had been parked: how they came there is no part of this.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use outbox_relay::dead_letter::operator::{Operator, Selection};
use outbox_tests::Harness;
use serde::Serialize;
use tokio_postgres::NoTls;

use crate::{
    ReleaseArgs,
    backlog::PARTITIONS,
    latency::{self, Measured},
    relay::Setup,
    report::{self, progress},
};

/// Until all is delivered.
const RELEASED_MAX: Duration = Duration::from_secs(1_200);

/// A mode's numbers.
#[derive(Debug, Serialize)]
struct Row {
    delivery: &'static str,
    events: u32,
    /// From the command's start until the last event is stored and the table says so.
    seconds: f64,
    alone_p99_ms: f64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

/// All of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    rows: Vec<Row>,
}

impl Outcome {
    pub(crate) fn json(&self) -> String {
        report::pretty(self)
    }

    pub(crate) fn text(&self) -> String {
        let mut text = "| released beside 1,000 healthy commits/s | delivery | in s | events/s | healthy p50 ms | p99 ms | \
                        max ms | p99 ms alone |\n|---|---|---|---|---|---|---|---|\n"
            .to_owned();
        for Row { delivery, events, seconds, alone_p99_ms, p50_ms, p99_ms, max_ms } in &self.rows {
            let rate = f64::from(*events) / seconds;
            text.push_str(&format!(
                "| {events} | {delivery} | {seconds:.1} | {rate:.0} | {p50_ms:.1} | {p99_ms:.1} | \
                 {max_ms:.0} | {alone_p99_ms:.1} |\n"
            ));
        }
        text
    }
}

/// Both modes, one after the other.
pub(crate) async fn run(args: &ReleaseArgs) -> Result<Outcome> {
    let mut rows = Vec::new();
    for delivery in ["exactly-once", "at-least-once"] {
        rows.push(mode(args, delivery).await.with_context(|| delivery.to_owned())?);
    }
    Ok(Outcome { rows })
}

async fn mode(args: &ReleaseArgs, delivery: &'static str) -> Result<Row> {
    let t = Harness::start().await;
    let healthy = t.topic("orders").create(PARTITIONS).await;
    let released = t.topic("released").create(PARTITIONS).await;
    // Each load counts what it has in a topic of its own.
    let beside = t.topic("beside").create(PARTITIONS).await;
    let settings = Setup { delivery, unix: false }.settings(&t, 1, args.relay.as_deref())?;
    let name = settings.value("name");
    progress(&format!("parking {} events, {delivery}", args.events));
    park(&t, &name, released.name(), args.events).await?;
    let mut relay = settings.start().await;
    progress("alone");
    let alone = latency::measure(&t, &healthy, args.seconds, async { Ok(()) }).await?;
    progress("beside the release");
    let mut seconds = 0.0;
    let release = async {
        seconds = release_all(&t, &name).await?;
        Ok(())
    };
    let measured = latency::measure(&t, &beside, args.seconds, release).await?;
    let found = released.fold(0_u32, |count, _| *count += 1).await;
    ensure!(found == args.events, "{found} of {} events are in the topic", args.events);
    let status = relay.sigterm().await;
    ensure!(status.success(), "the relay ended with {status}: {}", relay.log_text());
    let Measured { p50_ms, p99_ms, max_ms, .. } = measured;
    let (events, alone_p99_ms) = (args.events, alone.p99_ms);
    Ok(Row { delivery, events, seconds, alone_p99_ms, p50_ms, p99_ms, max_ms })
}

async fn park(t: &Harness, relay: &str, topic: &str, events: u32) -> Result<()> {
    let sql = format!(
        "insert into outbox.dead_letters (relay, system_id, commit_lsn, ordinal, event_id, lane, \
             topic, key, payload, headers, fit, reason, error) \
         select '{relay}', (select system_identifier::text from pg_control_system()), '0/1', n, n::text, \
             md5('{topic}' || n / 100)::uuid, '{topic}', convert_to('k' || n / 100, 'UTF8'), \
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
    Operator::new(&mut client, relay).release(&Selection::default(), |_| {}).await?;
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
