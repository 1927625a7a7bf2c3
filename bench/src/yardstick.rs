//! What the relay is measured against: each does a part of its work, and nothing else.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use outbox_harness::{
    Harness,
    database::Role,
    kafka::Kafka,
    postgres::{self, PASSWORD},
    topic::Topic,
};
use rdkafka::{
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer},
};

use tokio_postgres::types::ToSql;

use crate::{
    backlog::{KEYS, Shape},
    sample::Sample,
};

/// What one run may take.
const RUN_MAX: Duration = Duration::from_secs(180);
const PUBLICATION: &str = "outbox";

/// `pg_recvlogical` from `slot` up to `end`, its output discarded.
pub(crate) async fn recvlogical(
    t: &Harness,
    slot: &str,
    end: &str,
    unix: bool,
    binary: bool,
    rows: usize,
) -> Result<Sample> {
    let (host, port) = t.database().postgres().address();
    let socket = t.database().postgres().socket_dir().filter(|_| unix);
    let host = socket.map_or(host, |dir| dir.display().to_string());
    let config = t.database().config(Role::Relay);
    let mut command = tokio::process::Command::new(postgres::program("pg_recvlogical")?);
    command
        .args(["--host", &host, "--port", &port.to_string(), "--dbname", t.database().name()])
        .args(["--username", config.get_user().context("a role")?, "--no-password"])
        .args(["--slot", slot, "--start", "--no-loop", "--endpos", end, "--file", "/dev/null"])
        .args(["-o", "proto_version=1", "-o", &format!("publication_names={PUBLICATION}")])
        .args(binary.then_some(["-o", "binary=true"]).into_iter().flatten())
        .env("PGPASSWORD", PASSWORD)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let began = Instant::now();
    let output = tokio::time::timeout(RUN_MAX, command.output());
    let output = output.await.context("pg_recvlogical takes too long")??;
    let seconds = began.elapsed().as_secs_f64();
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "pg_recvlogical failed: {words}");
    Ok(Sample::of(rows, seconds))
}

/// The server decodes for itself: no socket, no client.
pub(crate) async fn decoding(t: &Harness, slot: &str, rows: usize) -> Result<Sample> {
    let begun = Instant::now();
    let count = t.database().superuser();
    let parameters: [&(dyn ToSql + Sync); 1] = [&slot];
    let count = count.query_one(
        "select count(*) filter (where get_byte(data, 0) = 73) \
         from pg_logical_slot_peek_binary_changes($1, null, null, \
             'proto_version', '1', 'publication_names', 'outbox', 'binary', 'true')",
        &parameters,
    );
    let count: i64 = tokio::time::timeout(RUN_MAX, count).await??.get(0);
    let seconds = begun.elapsed().as_secs_f64();
    ensure!(usize::try_from(count)? == rows, "{count} of {rows} rows were decoded");
    Ok(Sample::of(rows, seconds))
}

/// librdkafka produces the same records from memory, idempotent, to a topic of its own.
pub(crate) async fn producer(
    kafka: &'static Kafka,
    topic: &Topic,
    shape: &Shape,
    with_headers: bool,
) -> Result<Sample> {
    let (topic, shape) = (topic.name().to_owned(), shape.clone());
    tokio::task::spawn_blocking(move || produce(kafka, &topic, &shape, with_headers)).await?
}

fn produce(kafka: &Kafka, topic: &str, shape: &Shape, with_headers: bool) -> Result<Sample> {
    let producer: ThreadedProducer<DefaultProducerContext> = kafka
        .client()
        .set("enable.idempotence", "true")
        .set("linger.ms", "5")
        .set("queue.buffering.max.messages", "100000")
        .set("delivery.report.only.error", "true")
        .create()?;
    // One of each, as large as the real ones: making them is not what is measured.
    let payload = shape.payload(1_000_000);
    let keys: Vec<String> = (0..KEYS).map(|n| format!("k{n}")).collect();
    let headers = with_headers.then(|| {
        [
            ("outbox-id", "0192a4b1-7c3e-7abc-8def-0123456789ab"),
            ("outbox-type", "order.placed"),
            ("outbox-relay", "t12345_0_exactly_once_tcp"),
            ("outbox-position", "7440000000000000000:1:00000000015D4A58:0000001234"),
        ]
        .iter()
        .fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: Some(*value) })
        })
    });
    let began = Instant::now();
    for n in 0..shape.rows {
        let key = keys.get(n % KEYS).context("a key")?;
        let mut record = BaseRecord::to(topic).payload(&payload).key(key);
        record.headers = headers.clone();
        while let Err((error, again)) = producer.send(record) {
            let full = KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull);
            ensure!(error == full && began.elapsed() < RUN_MAX, "producing: {error}");
            std::thread::sleep(Duration::from_micros(200));
            record = again;
        }
    }
    while producer.in_flight_count() > 0 {
        ensure!(began.elapsed() < RUN_MAX, "producing takes too long");
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(Sample::of(shape.rows, began.elapsed().as_secs_f64()))
}
