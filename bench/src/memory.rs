//! What a consumer has in memory at most, beside its setting: small messages and large ones, handled as they
//! come, and waiting once for a service. The member is the suite's, a process of its own for each row.

use std::{fmt::Write as _, time::Duration};

use anyhow::{Result, ensure};
use outbox_harness::{
    consumer::{Consumer, effects_so_far, make_effects},
    database::Database,
    kafka::Kafka,
    member::Plan,
    servers,
    topic::Topic,
    wait,
};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use serde::Serialize;

use crate::{
    MemoryArgs,
    terminal::{self, progress},
};

const MIB: usize = 1 << 20;
const PARTITIONS: i32 = 4;
/// What it may take beside the setting.
const BESIDE_MIB: usize = 64;
/// Until all of a row has taken effect.
const ROW_MAX: Duration = Duration::from_secs(180);

/// Messages of one size; together some times the setting.
#[derive(Clone, Copy, Debug)]
struct Load {
    messages: usize,
    bytes: usize,
    /// How long the handler takes, so that more is there than it can take.
    pause_ms: u64,
}

const LOADS: [Load; 3] = [
    Load { messages: 12_000, bytes: 16 << 10, pause_ms: 4 },
    Load { messages: 400, bytes: MIB, pause_ms: 50 },
    Load { messages: 64, bytes: 8 * MIB, pause_ms: 200 },
];

#[derive(Debug, Serialize)]
struct Row {
    messages: usize,
    bytes: usize,
    /// Handled as they come; else each fails once, and waits.
    live: bool,
    idle_mib: usize,
    peak_mib: usize,
}

/// All rows.
#[derive(Debug, Serialize)]
pub(crate) struct Memory {
    in_flight_mib: usize,
    rows: Vec<Row>,
}

/// Measures each.
///
/// # Errors
/// A message did not take effect.
pub(crate) async fn run(args: &MemoryArgs) -> Result<Memory> {
    let kafka = servers::kafka().await;
    let mut memory =
        Memory { in_flight_mib: usize::try_from(args.in_flight_mib)?, rows: Vec::new() };
    for load in LOADS {
        for live in [true, false] {
            let row = row(kafka, load, live, memory.in_flight_mib * MIB).await?;
            progress(&format!("{row:?}"));
            memory.rows.push(row);
        }
    }
    Ok(memory)
}

async fn row(kafka: &'static Kafka, load: Load, live: bool, in_flight: usize) -> Result<Row> {
    let database = Database::create_inbox().await;
    make_effects(&database).await;
    let Load { messages, bytes, pause_ms } = load;
    let largest = [("max.message.bytes", "10000000")];
    let topic = Topic::new(kafka, format!("{}.load", database.name()));
    let topic = topic.create_with(PARTITIONS, &largest).await;
    let dir = tempfile::tempdir()?;
    let plan = Plan {
        in_flight_bytes: Some(in_flight),
        live,
        pause_ms: Some((pause_ms, pause_ms)),
        program: Some(std::env::current_exe()?),
        ..Plan::default()
    };
    let idle = Topic::new(kafka, format!("{}.idle", database.name())).create(PARTITIONS).await;
    let mut consumer = Consumer::start(dir.path(), "idle", &database, kafka, &idle, &plan);
    consumer.wait_log("partitions assigned").await;
    let idle_mib = mib(&consumer)?;
    ensure!(consumer.sigterm().await.success(), "the idle one ends in order");

    let name = topic.name().to_owned();
    tokio::task::spawn_blocking(move || fill(kafka, &name, load)).await??;
    let mut consumer = Consumer::start(dir.path(), "load", &database, kafka, &topic, &plan);
    wait::until("all take effect", ROW_MAX, || async {
        match effects_so_far(&database).await {
            all if usize::try_from(all) == Ok(messages) => Ok(()),
            some => Err(format!("{some} of {messages}")),
        }
    })
    .await?;
    let peak_mib = mib(&consumer)?;
    ensure!(consumer.sigterm().await.success(), "the loaded one ends in order");
    Ok(Row { messages, bytes, live, idle_mib, peak_mib })
}

fn mib(consumer: &Consumer) -> Result<usize> {
    Ok(usize::try_from(consumer.peak_memory_bytes())? / MIB)
}

/// A key for each message.
fn fill(kafka: &Kafka, topic: &str, load: Load) -> Result<()> {
    let producer: ThreadedProducer<DefaultProducerContext> =
        kafka.client().set("message.max.bytes", "10000000").create()?;
    let payload = vec![b'x'; load.bytes];
    for n in 0..load.messages {
        let key = n.to_string();
        let mut record = BaseRecord::to(topic).key(&key).payload(&payload);
        while let Err((_full, again)) = producer.send(record) {
            std::thread::sleep(Duration::from_millis(1));
            record = again;
        }
    }
    producer.flush(ROW_MAX)?;
    Ok(())
}

impl Memory {
    /// Whether each stays within the setting and what it may take beside it.
    pub(crate) fn held(&self) -> bool {
        self.rows.iter().all(|row| row.peak_mib <= self.in_flight_mib + BESIDE_MIB)
    }

    pub(crate) fn json(&self) -> String {
        terminal::pretty(self)
    }

    pub(crate) fn text(&self) -> String {
        let Memory { in_flight_mib, rows } = self;
        let mut text = format!(
            "in_flight {in_flight_mib} MiB, aim at most {} MiB\n\n\
             | messages | each | | idle MiB | peak MiB | peak over idle |\n|---|---|---|---|---|---|\n",
            in_flight_mib + BESIDE_MIB
        );
        for Row { messages, bytes, live, idle_mib, peak_mib } in rows {
            let (kib, over) = (bytes >> 10, peak_mib.saturating_sub(*idle_mib));
            let how = if *live { "as they come" } else { "each fails once" };
            let _ = writeln!(
                text,
                "| {messages} | {kib} KiB | {how} | {idle_mib} | {peak_mib} | {over} |"
            );
        }
        text
    }
}
