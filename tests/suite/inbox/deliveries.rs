//! The core of a runner for a broker that acknowledges each message by itself. The broker is played here:
//! groups as SQS FIFO has them, in memory. The processor and its database are real.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::FutureExt as _;
use outbox_harness::{Harness, database::Role};
use outbox_idempotency::{
    Dedup, Failure, Headers, Message, MessageId, Processor, RawMessage, Source, Stop, Timestamp,
    Tx,
    dead_letters::{self, Selection},
    dispatch::{Answer, Deliveries},
};
use serde_json::Value;

use super::{
    effects::{
        Step, assert_once_and_in_order, database, effects, inbox, message, number, take, with,
    },
    letters::all,
    processor::{Background, WAITING, soon, until_zero},
};

type Handle = (String, i32);

/// Of a group it delivers some messages from the front, and nothing more until all of these are answered.
#[derive(Default)]
struct Broker {
    groups: BTreeMap<String, VecDeque<(i32, RawMessage)>>,
    away: BTreeMap<String, Vec<i32>>,
    returned: usize,
    extended: usize,
}

impl Broker {
    const OF_A_GROUP: usize = 3;

    fn send(&mut self, key: &str, n: i32) {
        let message = with(message(key, n), |m| m.source = Source::of_queue("steps"));
        self.groups.entry(key.to_owned()).or_default().push_back((n, message));
    }

    fn receive(&mut self) -> Vec<(Handle, RawMessage)> {
        let free = |key: &String| self.away.get(key).is_none_or(Vec::is_empty);
        let Some((key, group)) =
            self.groups.iter().find(|(key, group)| free(key) && !group.is_empty())
        else {
            return Vec::new();
        };
        let got: Vec<_> = group.iter().take(Self::OF_A_GROUP).cloned().collect();
        let key = key.clone();
        self.away.insert(key.clone(), got.iter().map(|(n, _)| *n).collect());
        got.into_iter().map(|(n, message)| ((key.clone(), n), message)).collect()
    }

    fn hear(&mut self, answer: Answer<Handle>) {
        match answer {
            Answer::Acknowledge((key, n)) => {
                self.groups.get_mut(&key).expect("its group").retain(|(number, _)| *number != n);
                self.back(&key, n);
            }
            Answer::Return((key, n), _) => {
                self.returned += 1;
                self.back(&key, n);
            }
            Answer::Extend(_) => self.extended += 1,
            other => panic!("{other:?}"),
        }
    }

    fn back(&mut self, key: &str, n: i32) {
        let away = self.away.get_mut(key).expect("its group");
        let place = away.iter().position(|number| *number == n).expect("each is answered once");
        away.remove(place);
    }

    fn is_empty(&self) -> bool {
        self.groups.values().all(VecDeque::is_empty)
    }
}

fn lock(broker: &Mutex<Broker>) -> MutexGuard<'_, Broker> {
    broker.lock().expect("not poisoned")
}

#[tokio::test]
async fn each_message_takes_effect_once_in_its_order_and_is_acknowledged_after_that() {
    const LEASE: Duration = Duration::from_millis(150);
    let database = database().await;
    let stuck = Arc::new(AtomicBool::new(false));
    let handler = move |tx: Tx, message: Message<Step>| {
        let stuck = Arc::clone(&stuck);
        async move {
            take(&tx, &message.payload).await?;
            // One outlasts its lease, and ends with its worker alone.
            if message.payload.n == 5 && !stuck.swap(true, Relaxed) {
                std::future::pending::<()>().await;
            }
            Ok::<(), Failure>(())
        }
    };
    let processor = Processor::new(inbox(&database).await, handler);
    let deliveries = Deliveries::new(processor, Some(LEASE)).expect("rows").in_flight(8, 1 << 20);
    let deliveries = Arc::new(deliveries);
    let broker = Arc::new(Mutex::new(Broker::default()));
    let all: Vec<Step> = ["a", "b", "c", "d", "e"]
        .into_iter()
        .flat_map(|key| (1..=12).map(move |n| Step { key: key.to_owned(), n }))
        .collect();
    all.iter().for_each(|step| lock(&broker).send(&step.key, step.n));

    let receiving = async {
        while !lock(&broker).is_empty() {
            deliveries.room().await;
            let got = lock(&broker).receive();
            if got.is_empty() {
                tokio::time::sleep(Duration::from_millis(2)).await; // The broker's, which has nothing.
            }
            got.into_iter().for_each(|(handle, message)| deliveries.push(message, handle));
        }
    };
    let answering = async {
        loop {
            for answer in deliveries.answers().await {
                if let Answer::Acknowledge((key, n)) = &answer {
                    let sql =
                        format!("select count(*) from effects where key = '{key}' and n = {n}");
                    assert_eq!(number(&database, &sql).await, 1, "acknowledged before: {answer:?}");
                }
                lock(&broker).hear(answer);
            }
        }
    };
    // Workers that die half-way give back what they have.
    let working = async {
        loop {
            let workers: Vec<_> = (0..4)
                .map(|_| {
                    let deliveries = Arc::clone(&deliveries);
                    tokio::spawn(async move { deliveries.work().await })
                })
                .collect();
            tokio::time::sleep(3 * LEASE).await;
            workers.iter().for_each(tokio::task::JoinHandle::abort);
        }
    };
    let done = async {
        tokio::select! {
            () = receiving => {}
            () = answering => {}
            () = working => {}
        }
    };
    tokio::time::timeout(Duration::from_secs(60), done).await.expect("all are acknowledged");
    assert_once_and_in_order(&effects(&database).await, all);
    let broker = lock(&broker);
    assert!(broker.extended > 0, "the lease of the one that is stuck");
    assert!(broker.returned > 0, "what the workers had that died");
}

#[tokio::test]
async fn what_no_worker_has_is_returned_at_the_end_and_takes_no_effect() {
    let database = database().await;
    let handler = |tx: Tx, message: Message<Step>| async move {
        take(&tx, &message.payload).await?;
        Ok::<(), Failure>(())
    };
    let processor = Processor::new(inbox(&database).await, handler);
    let deliveries = Deliveries::new(processor, None).expect("rows");
    (1..=3).for_each(|n| deliveries.push(message("a", n), n));
    let (left, answers) = deliveries.drain(Duration::from_secs(5)).await;
    let returned: Vec<_> = (1..=3).map(|n| Answer::Return(n, Duration::ZERO)).collect();
    assert_eq!((left, answers), (0, returned));
    assert_eq!(effects(&database).await, []);
}

#[tokio::test]
async fn at_the_limit_nothing_more_is_taken_in_until_half_of_it_is_done() {
    let database = database().await;
    let handler = |tx: Tx, message: Message<Step>| async move {
        take(&tx, &message.payload).await?;
        Ok::<(), Failure>(())
    };
    let processor = Processor::new(inbox(&database).await, handler);
    let deliveries = Deliveries::new(processor, None).expect("rows").in_flight(4, 1 << 20);
    for n in 1..=4 {
        assert!(deliveries.room().now_or_never().is_some(), "{n} of 4");
        deliveries.push(message("a", n), n);
    }
    assert!(deliveries.room().now_or_never().is_none(), "4 of 4");
    tokio::select! {
        () = deliveries.room() => {}
        stopped = deliveries.work() => panic!("{stopped}"),
    }
    let done = effects(&database).await.len();
    assert!(done >= 2, "room after {done} of 4");
}

/// What comes again behind later messages would be taken for known.
#[tokio::test]
async fn a_watermark_is_refused_where_each_message_is_acknowledged_by_itself() {
    let database = database().await;
    let handler = |_: Tx, _: Vec<Message<Step>>| async move { Ok::<(), Failure>(()) };
    let processor = Processor::batch(inbox(&database).await, 10, handler)
        .dedup(Dedup::Watermark { relay: "orders".to_owned() });
    let refused = Deliveries::<i32>::new(processor, None).expect_err("refused");
    assert!(refused.to_string().contains("Dedup::Rows"), "{refused}");
}

/// What an AMQP broker delivers: a body, properties and headers, and no position.
fn delivered(key: &str, timestamp: Option<Timestamp>) -> RawMessage {
    let id = uuid::Builder::from_random_bytes(rand::random()).into_uuid();
    let headers = [("message-id", id.as_bytes().to_vec()), ("type", b"step".to_vec())];
    let given = headers.iter().map(|(name, value)| (*name, value));
    let id = MessageId::from_headers(given, &["message-id"], timestamp).expect("a header names it");
    let payload = serde_json::to_vec(&Step { key: key.to_owned(), n: 1 }).expect("JSON");
    let mut message = Message::new(id, Source::of_queue("payments"), Some(payload.into()))
        .with_key(key)
        .with_headers(headers.map(|(name, value)| (name, Some(value))).into_iter().collect());
    message.timestamp = timestamp;
    message
}

/// Hands messages to workers until the broker has an answer for each.
async fn deliver(processor: &Processor, messages: &[RawMessage]) -> Vec<Answer<usize>> {
    let deliveries = Deliveries::new(processor.clone(), None).expect("rows");
    messages.iter().enumerate().for_each(|(n, message)| deliveries.push(message.clone(), n));
    let answering = async {
        let mut answers = Vec::new();
        while answers.len() < messages.len() {
            answers.extend(deliveries.answers().await);
        }
        answers
    };
    tokio::select! {
        answers = answering => answers,
        stopped = deliveries.work() => panic!("{stopped}"),
    }
}

#[tokio::test]
async fn what_has_no_position_waits_dies_and_is_replayed_without_one_and_with_its_time() {
    let (t, database) = tokio::join!(Harness::start(), database());
    let (seen, broken) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(true)));
    let handler = {
        let (seen, broken) = (Arc::clone(&seen), Arc::clone(&broken));
        move |tx: Tx, message: Message<Step>| {
            let (seen, broken) = (Arc::clone(&seen), broken.load(Relaxed));
            async move {
                take(&tx, &message.payload).await?;
                let Message { id, source, timestamp, headers, attempt, .. } = message;
                seen.lock().expect("no panic").push((id, source, timestamp, headers));
                match attempt {
                    1 if broken => Err(Failure::transient("not now")),
                    _ if broken => Err(Failure::permanent("broken", "no")),
                    _ => Ok(()),
                }
            }
        }
    };
    let processor = Processor::new(inbox(&database).await, handler).retry(soon());
    let sent = SystemTime::now() - Duration::from_millis(1_234);
    // PostgreSQL has microseconds.
    let since = sent.duration_since(UNIX_EPOCH).expect("after 1970").as_micros();
    let sent = UNIX_EPOCH + Duration::from_micros(u64::try_from(since).expect("no far future"));
    let messages = [
        delivered("by-producer", Some(Timestamp::Produced(sent))),
        with(delivered("by-broker", None), |m| {
            m.id = MessageId::from_uuid(uuid::Uuid::now_v7()).expect("version 7");
            m.timestamp = Some(Timestamp::Stored(sent));
        }),
    ];
    let answers = deliver(&processor, &messages).await;
    assert!(answers.iter().all(|answer| matches!(answer, Answer::Acknowledge(_))), "{answers:?}");
    let without = "select count(*) from inbox.parked where partition is null and record_offset is null \
                   and produced_at is null = (stored_at is not null)";
    assert_eq!(number(&database, without).await, 2, "parked");
    let background = Background::start(&processor);
    until_zero(&database, WAITING).await;

    let letters = all(&database, Selection::default().with_topic("payments")).await;
    assert_eq!(letters.len(), 2);
    for letter in &letters {
        assert_eq!((letter.partition, letter.offset), (None, None), "{letter:?}");
        let of_producer = messages[0].id.to_string() == letter.message_id;
        let times = (letter.produced_at, letter.stored_at);
        let expected = if of_producer { (Some(sent), None) } else { (None, Some(sent)) };
        assert_eq!(times, expected, "{letter:?}");
    }
    let settings = t.relay_of(&database).set("postgres.url", &database.url(Role::Operator));
    let run = async |arguments: &[&str]| {
        let output = settings.command(&[&["inbox", "dead-letters"], arguments].concat()).await;
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let list = run(&["list"]).await;
    assert!(list.contains("  billing  payments  by-producer  broken: no"), "{list}");
    let shown = run(&["show", &letters[0].id.to_string(), "--json"]).await;
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!((&shown["partition"], &shown["offset"]), (&Value::Null, &Value::Null), "{shown}");
    let is_time = |name: &str| shown[name].as_str().is_some_and(|time| time.ends_with('Z'));
    assert!(is_time("produced_at") != is_time("stored_at"), "{shown}");

    broken.store(false, Relaxed);
    let client: &tokio_postgres::Client = database.superuser();
    assert_eq!(dead_letters::replay(client, &Selection::default()).await.expect("replayed"), 2);
    until_zero(&database, WAITING).await;
    background.stop().await;
    assert_eq!(effects(&database).await.len(), 2);
    let seen = seen.lock().expect("no panic");
    for message in &messages {
        let calls: Vec<_> = seen.iter().filter(|(id, ..)| *id == message.id).collect();
        assert_eq!(calls.len(), 3, "as it came, at its retry, and replayed");
        for (_, source, timestamp, headers) in calls {
            assert_eq!(*source, Source::of_queue("payments"));
            assert_eq!(*timestamp, message.timestamp);
            assert_eq!(*headers, message.headers);
        }
    }
}

#[tokio::test]
async fn a_time_that_no_column_has_is_the_nearest_that_it_has() {
    let database = database().await;
    let handler = |_: Tx, _: Message<Step>| async { Err::<(), _>(Failure::transient("not now")) };
    let processor = Processor::new(inbox(&database).await, handler);
    let far = Duration::from_secs(300_000 * 365 * 86_400);
    for time in [UNIX_EPOCH - far, UNIX_EPOCH + far] {
        let message = with(message("far", 1), |m| m.timestamp = Some(Timestamp::Produced(time)));
        processor.process(&[message]).await.expect("parked");
    }
    let sql =
        "select count(*) from inbox.parked where produced_at in ('1970-01-01Z', '9999-12-31Z')";
    assert_eq!(number(&database, sql).await, 2);
}

/// Without a position there is nothing that a watermark could compare.
#[tokio::test]
async fn a_watermark_stops_at_a_message_without_a_position() {
    let database = database().await;
    let handler = |_: Tx, _: Vec<Message<Step>>| async move { Ok::<(), Failure>(()) };
    let processor = Processor::batch(inbox(&database).await, 10, handler)
        .dedup(Dedup::Watermark { relay: "orders".to_owned() });
    let headers =
        [("outbox-relay", "orders"), ("outbox-position", "7:1:00000000000000A0:0000000000")];
    let message = with(message("a", 1), |m| {
        m.source = Source::of_queue("steps");
        m.headers =
            headers.map(|(name, value)| (name, Some(value))).into_iter().collect::<Headers>();
    });
    let stop = processor.process(&[message]).await.expect_err("it can't tell");
    let Stop::Inbox(why) = stop else { panic!("{stop}") };
    assert!(why.to_string().contains("steps: it has no partition and offset"), "{why}");
}
