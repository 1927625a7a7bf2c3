//! What a consumer has in memory at most, beside its setting: small messages and large ones, plain and
//! compressed, handled as they come, and waiting once for a service. The member is the suite's, a process of
//! its own for each row.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use anyhow::{Result, ensure};
use outbox_harness::{
    consumer::{Consumer, effects_so_far, make_effects},
    database::Database,
    kafka::Kafka,
    member::Plan,
    servers, text,
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
const LARGEST: usize = 8 * MIB;
const PARTITIONS: i32 = 4;
/// Of a compressed topic: more than the responses of one partition each.
const COMPRESSED_PARTITIONS: i32 = 12;
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
    /// What the producer packs batches with.
    codec: Option<&'static str>,
    /// The broker unpacks what it stores: the topic's `compression.type` is `uncompressed`.
    stored_plain: bool,
    text: Text,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum Text {
    /// One byte, repeated: no codec has less to store.
    Byte,
    /// JSON: zstd packs it to an eighth, lz4 to a fifth.
    Orders,
}

const fn plain(messages: usize, bytes: usize, pause_ms: u64) -> Load {
    Load { messages, bytes, pause_ms, codec: None, stored_plain: false, text: Text::Byte }
}

const fn packed(codec: &'static str, text: Text) -> Load {
    Load { codec: Some(codec), text, ..plain(24_000, 16 << 10, 4) }
}

/// One byte, which the broker unpacks.
const fn unpacked(codec: &'static str) -> Load {
    Load { stored_plain: true, ..packed(codec, Text::Byte) }
}

const LOADS: [Load; 9] = [
    plain(12_000, 16 << 10, 4),
    plain(400, MIB, 50),
    plain(64, LARGEST, 200),
    packed("zstd", Text::Orders),
    packed("lz4", Text::Orders),
    packed("zstd", Text::Byte),
    packed("lz4", Text::Byte),
    unpacked("zstd"),
    unpacked("lz4"),
];

#[derive(Debug, Serialize)]
struct Row {
    messages: usize,
    bytes: usize,
    codec: Option<&'static str>,
    stored_plain: bool,
    text: Text,
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
    let set: BTreeMap<String, String> = args.kafka.iter().cloned().collect();
    for load in LOADS {
        if (args.compressed && load.codec.is_none()) || (args.large && load.bytes < LARGEST) {
            continue;
        }
        // How messages were packed does not matter to those that wait.
        let ways: &[bool] = if load.codec.is_some() { &[true] } else { &[true, false] };
        for &live in ways {
            let mut highest: Option<Row> = None;
            for _ in 0..args.rounds {
                let row = row(kafka, load, live, memory.in_flight_mib * MIB, &set).await?;
                progress(&format!("{row:?}"));
                if highest.as_ref().is_none_or(|highest| row.peak_mib > highest.peak_mib) {
                    highest = Some(row);
                }
            }
            memory.rows.extend(highest);
        }
    }
    Ok(memory)
}

async fn row(
    kafka: &'static Kafka,
    load: Load,
    live: bool,
    in_flight: usize,
    set: &BTreeMap<String, String>,
) -> Result<Row> {
    let database = Database::create_inbox().await;
    make_effects(&database).await;
    let Load { messages, bytes, pause_ms, codec, stored_plain, text } = load;
    let partitions = if codec.is_some() { COMPRESSED_PARTITIONS } else { PARTITIONS };
    let stored = if stored_plain { "uncompressed" } else { "producer" };
    let settings = [("max.message.bytes", "10000000"), ("compression.type", stored)];
    let topic = Topic::new(kafka, format!("{}.load", database.name()));
    let topic = topic.create_with(partitions, &settings).await;
    let dir = tempfile::tempdir()?;
    let plan = Plan {
        in_flight_bytes: Some(in_flight),
        live,
        pause_ms: Some((pause_ms, pause_ms)),
        kafka: set.clone(),
        program: Some(std::env::current_exe()?),
        ..Plan::default()
    };
    let idle = Topic::new(kafka, format!("{}.idle", database.name())).create(partitions).await;
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
    topic.delete().await;
    Ok(Row { messages, bytes, codec, stored_plain, text, live, idle_mib, peak_mib })
}

fn mib(consumer: &Consumer) -> Result<usize> {
    Ok(usize::try_from(consumer.peak_memory_bytes())? / MIB)
}

/// A key for each message.
fn fill(kafka: &Kafka, topic: &str, load: Load) -> Result<()> {
    let mut client = kafka.client();
    client.set("message.max.bytes", "10000000");
    if let Some(codec) = load.codec {
        // Full batches, as a busy producer sends them.
        client.set("compression.codec", codec).set("linger.ms", "200");
    }
    let producer: ThreadedProducer<DefaultProducerContext> = client.create()?;
    for n in 0..load.messages {
        let key = n.to_string();
        let payload = match load.text {
            Text::Byte => vec![b'x'; load.bytes],
            Text::Orders => text::orders(load.bytes),
        };
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
    /// Whether each stays within the setting and what it may take beside it, but for the one byte that codecs pack
    /// to next to nothing, where it is stored so.
    pub(crate) fn held(&self) -> bool {
        let bounded =
            |row: &&Row| row.codec.is_none() || row.stored_plain || row.text == Text::Orders;
        let most = self.in_flight_mib + BESIDE_MIB;
        self.rows.iter().filter(bounded).all(|row| row.peak_mib <= most)
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
        for Row { messages, bytes, codec, stored_plain, text: of, live, idle_mib, peak_mib } in rows
        {
            let (kib, over) = (bytes >> 10, peak_mib.saturating_sub(*idle_mib));
            let stored = if *stored_plain { ", stored uncompressed" } else { "" };
            let packed =
                codec.map_or_else(String::new, |codec| format!(", {of:?}, {codec}{stored}"));
            let how = if *live { "as they come" } else { "each fails once" };
            let _ = writeln!(
                text,
                "| {messages} | {kib} KiB{packed} | {how} | {idle_mib} | {peak_mib} | {over} |"
            );
        }
        text
    }
}
