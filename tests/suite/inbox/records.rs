//! Records of Kafka as any producer may make them: which message each is.

use std::{
    sync::{Arc, Mutex},
    time::{SystemTime, UNIX_EPOCH},
};

use outbox_harness::{database::Database, servers, topic::Topic, wait};
use outbox_idempotency::{
    Alert, Dedup, Message, Processor, Tx,
    kafka::{ClientConfig, RunError, Runner},
};
use rdkafka::{
    bindings as sys,
    message::{Header, OwnedHeaders},
    producer::{BaseProducer, FutureProducer, FutureRecord, Producer as _},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::effects::{Step, database, effects, inbox, number, take};

/// A runner in this process, and what stops it.
pub(super) struct Member {
    task: JoinHandle<Result<(), RunError>>,
    stop: CancellationToken,
    alerts: Arc<Mutex<Vec<Alert>>>,
}

impl Member {
    pub(super) async fn start(
        database: &Database,
        topics: &[&str],
        settings: &[(&str, &str)],
        adjust: impl FnOnce(Runner) -> Runner,
    ) -> Self {
        Self::start_with(database, topics, settings, Dedup::Rows, adjust).await
    }

    pub(super) async fn start_with(
        database: &Database,
        topics: &[&str],
        settings: &[(&str, &str)],
        dedup: Dedup,
        adjust: impl FnOnce(Runner) -> Runner,
    ) -> Self {
        let handler = |tx: Tx, message: Message<Step>| async move {
            take(&tx, &message.payload).await?;
            Ok(())
        };
        let processor = Processor::new(inbox(database).await, handler).dedup(dedup);
        Self::of(processor, database.name(), topics, settings, adjust).await
    }

    /// A member of `group` with any handler.
    pub(super) async fn of(
        processor: Processor,
        group: &str,
        topics: &[&str],
        settings: &[(&str, &str)],
        adjust: impl FnOnce(Runner) -> Runner,
    ) -> Self {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", servers::kafka().await.brokers());
        config.set("group.id", group);
        for (name, value) in settings {
            config.set(*name, *value);
        }
        let alerts: Arc<Mutex<Vec<Alert>>> = Arc::default();
        let processor = processor.on_alert({
            let alerts = Arc::clone(&alerts);
            move |alert| alerts.lock().expect("no panic").push(alert.clone())
        });
        let runner = adjust(Runner::new(processor, config, topics).concurrency(4));
        let stop = CancellationToken::new();
        Member { task: tokio::spawn(runner.run(stop.clone().cancelled_owned())), stop, alerts }
    }

    pub(super) fn alerts(&self) -> Vec<Alert> {
        self.alerts.lock().expect("no panic").clone()
    }

    /// Waits until it ends by itself.
    pub(super) async fn ended(self) -> RunError {
        let ended = tokio::time::timeout(wait::PATIENCE, self.task).await.expect("it ends");
        ended.expect("no panic").expect_err("nobody has stopped it")
    }

    pub(super) async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("no panic").expect("an orderly end");
    }
}

pub(super) async fn topic(database: &Database, name: &str) -> Topic {
    Topic::new(servers::kafka().await, format!("{}.{name}", database.name()))
}

pub(super) async fn until_effects(database: &Database, wanted: usize) {
    wait::until("all take effect", wait::PATIENCE, || async {
        let (done, dead) = (
            effects(database).await.len(),
            number(database, "select count(*) from inbox.dead_letters").await,
        );
        if done >= wanted { Ok(()) } else { Err(format!("{done} of {wanted}, {dead} dead")) }
    })
    .await
    .expect("each is handled");
}

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    i64::try_from(now.as_millis()).expect("a time")
}

async fn producer() -> FutureProducer {
    servers::kafka().await.client().create().expect("a producer")
}

/// Sends the `n`-th step of its key, with one header.
async fn send(
    producer: &FutureProducer,
    topic: &Topic,
    n: i32,
    (name, value): (&str, &[u8]),
    timestamp: i64,
) {
    let payload = serde_json::to_vec(&Step { key: n.to_string(), n }).expect("JSON");
    let headers = OwnedHeaders::new().insert(Header { key: name, value: Some(value) });
    let key = n.to_string();
    let record = FutureRecord::to(topic.name()).key(&key).payload(&payload);
    let record = record.headers(headers).timestamp(timestamp);
    producer.send(record, wait::PATIENCE).await.expect("it is stored");
}

#[tokio::test]
async fn events_of_debezium_that_are_sent_twice_take_effect_once() {
    let database = database().await;
    let topic = topic(&database, "debezium").await.create(1).await;
    let producer = producer().await;
    let (text, raw) = (1..=5_i32, 6..=10_i32);
    for round in 0..2 {
        for n in text.clone() {
            let id = Uuid::from_u128(0x4000_8000_0000_0000_0000 + u128::from(n.unsigned_abs()))
                .to_string();
            send(&producer, &topic, n, ("id", id.as_bytes()), now_ms() + round).await;
        }
        for n in raw.clone() {
            let id = Uuid::from_u128(
                0xfe00_0000_4000_8000_0000_0000_0000 + u128::from(n.unsigned_abs()),
            );
            send(&producer, &topic, n, ("id", id.as_bytes()), now_ms() + round).await;
        }
    }
    send(&producer, &topic, 11, ("id", b""), now_ms()).await;
    let named = |runner: Runner| runner.id_headers(&["id"]);
    let member = Member::start(&database, &[topic.name()], &[], named).await;
    until_effects(&database, 11).await;
    member.stop().await;
    let steps: Vec<i32> = effects(&database).await.iter().map(|step| step.n).collect();
    assert_eq!(steps.len(), 11, "{steps:?}");
}

#[tokio::test]
async fn ids_of_random_bits_take_effect_once_whatever_they_look_like() {
    let database = database().await;
    let topic = topic(&database, "random").await.create(1).await;
    let producer = producer().await;
    let sql = "select md5('outbox' || n)::text::uuid::text from generate_series(1, 550) as n";
    let ids = database.superuser().query(sql, &[]).await.expect("ids");
    let now = now_ms();
    for (n, id) in (1..).zip(&ids) {
        let id: String = id.get(0);
        send(&producer, &topic, n, ("outbox-id", id.as_bytes()), now).await;
    }
    let member = Member::start(&database, &[topic.name()], &[], |runner| runner).await;
    until_effects(&database, 550).await;
    member.stop().await;
    assert_eq!(number(&database, "select count(*) from inbox.dead_letters").await, 0);
}

#[tokio::test]
async fn timestamps_in_any_unit_and_none_at_all_end_no_consumer() {
    let database = database().await;
    let topic = topic(&database, "stamps").await;
    let any_time = ("message.timestamp.after.max.ms", "9223372036854775807");
    let topic = topic.create_with(1, &[any_time]).await;
    let producer = producer().await;
    let now = now_ms();
    let id = |n: i32| {
        Uuid::from_u128(0x4000_8000_0000_0000_0000 + u128::from(n.unsigned_abs())).to_string()
    };
    for (n, stamp) in (1_i32..).zip([now, now / 1000, now * 1000, now * 1_000_000]) {
        send(&producer, &topic, n, ("outbox-id", id(n).as_bytes()), stamp).await;
    }
    // -1 is refused by librdkafka's producer; a broker that stamps by itself leaves as little.
    topic.set("message.timestamp.type", "LogAppendTime").await;
    send(&producer, &topic, 5, ("outbox-id", id(5).as_bytes()), now).await;
    let v7 = Uuid::now_v7().to_string();
    send(&producer, &topic, 6, ("outbox-id", v7.as_bytes()), now).await;
    send(&producer, &topic, 7, ("other", b"7"), now).await;
    let member = Member::start(&database, &[topic.name()], &[], |runner| runner).await;
    until_effects(&database, 6).await;
    let undated = "select count(*) from inbox.dead_letters where code = 'undated'";
    wait::until("one is put aside", wait::PATIENCE, || async {
        match number(&database, undated).await {
            1 => Ok(()),
            other => Err(format!("{other} are")),
        }
    })
    .await
    .expect("the one without a time");
    member.stop().await;
}

/// A record with a header whose name no text has, which the client library has no safe call for.
fn send_odd_header(
    producer: &BaseProducer,
    topic: &str,
    payload: &[u8],
    (name, value): (&[u8], &str),
) {
    let topic = std::ffi::CString::new(topic).expect("a name");
    // SAFETY: the list is ours until the producer takes it over, and name and value are copied.
    let headers = unsafe {
        let headers = sys::rd_kafka_headers_new(1);
        let name_len = name.len().cast_signed();
        let (text, text_len) = (value.as_ptr().cast(), value.len().cast_signed());
        sys::rd_kafka_header_add(headers, name.as_ptr().cast(), name_len, text, text_len);
        headers
    };
    use sys::rd_kafka_vtype_t as vtype;
    // SAFETY: each tag is followed by arguments of its C types; the payload is copied.
    let sent = unsafe {
        sys::rd_kafka_producev(
            producer.client().native_ptr(),
            vtype::RD_KAFKA_VTYPE_TOPIC,
            topic.as_ptr(),
            vtype::RD_KAFKA_VTYPE_MSGFLAGS,
            sys::RD_KAFKA_MSG_F_COPY,
            vtype::RD_KAFKA_VTYPE_VALUE,
            payload.as_ptr(),
            payload.len(),
            vtype::RD_KAFKA_VTYPE_HEADERS,
            headers,
            vtype::RD_KAFKA_VTYPE_END,
        )
    };
    assert_eq!(sent, sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR);
    producer.flush(wait::PATIENCE).expect("it is stored");
}

#[tokio::test]
async fn a_header_whose_name_is_no_text_ends_no_consumer_and_names_no_message() {
    let database = database().await;
    let topic = topic(&database, "headers").await.create(1).await;
    let producer: BaseProducer = servers::kafka().await.client().create().expect("a producer");
    let id = uuid::Uuid::now_v7().to_string();
    // Two events that carry the same value there: an id would make one of them.
    let names: [&[u8]; 4] =
        [b"outbox-id\xff\xfe", b"outbox-id\0x", b"outbox-id\0x", b"outbox-id\0"];
    for (n, name) in (1..).zip(names) {
        let payload = serde_json::to_vec(&Step { key: "a".into(), n }).expect("JSON");
        send_odd_header(&producer, topic.name(), &payload, (name, &id));
    }
    let member = Member::start(&database, &[topic.name()], &[], |runner| runner).await;
    until_effects(&database, 4).await;
    member.stop().await;
}
