//! No way of working stops, or is many times slower than its neighbour.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use outbox_harness::{
    database::{Database, Role},
    servers, wait,
};
use outbox_idempotency::{
    Alert, Failure, Headers, Inbox, Message, MessageId, Processor, RawMessage, Retry, Tx,
    kafka::{ClientConfig, Runner},
};
use tokio::task::JoinSet;

use super::{
    effects::{Step, assert_once_and_in_order, database, effects, message, number, take, with},
    records::topic,
    watermark::{published, watermark},
};

async fn inbox(database: &Database, connections: usize) -> Inbox {
    let pool = database.pool(Role::Consumer, connections);
    Inbox::open(pool, "billing").await.expect("the inbox opens")
}

/// Works on parked messages until none is left.
async fn work_off(processor: &Processor, database: &Database) {
    let sql = "select count(*) from inbox.parked";
    let worked_off = wait::until(sql, wait::PATIENCE, || async {
        match number(database, sql).await {
            0 => Ok(()),
            left => Err(format!("{left} left")),
        }
    });
    tokio::select! {
        stop = processor.background() => panic!("{stop:?}"),
        done = worked_off => done.expect("nothing is left"),
    }
}

/// Sixteen handlers and two connections; messages that are given up at once, that the inbox can't
/// tell about, or that a watermark leaves to their ids.
#[tokio::test]
async fn what_one_message_needs_comes_from_one_connection() {
    for dedup in [outbox_idempotency::Dedup::Rows, watermark()] {
        let database = database().await;
        let handler = |tx: Tx, message: Message<Step>| async move {
            take(&tx, &message.payload).await?;
            tokio::task::yield_now().await;
            Err(Failure::permanent("no", "never"))
        };
        let processor = Processor::new(inbox(&database, 2).await, handler).dedup(dedup.clone());
        let mut handlers = JoinSet::new();
        for n in 0..16 {
            let processor = processor.clone();
            handlers.spawn(async move {
                for m in 0..4_i32 {
                    let place = u64::try_from(4 * n + m).expect("few");
                    let mut message =
                        published(&format!("k{n}"), m, place + 1, place.cast_signed());
                    message.source.partition = Some(n);
                    if m % 2 == 0 {
                        message.key = None;
                        message.id = MessageId::at(message.id.uuid(), std::time::UNIX_EPOCH);
                    }
                    processor.process(&[message]).await.expect("settled");
                }
            });
        }
        let all = tokio::time::timeout(wait::PATIENCE, handlers.join_all()).await;
        assert!(all.is_ok(), "{dedup:?}: they stand still");
        assert_eq!(number(&database, "select count(*) from inbox.dead_letters").await, 64);
        work_off(&processor, &database).await;
    }
}

/// As `examples/src/payments.rs` does: two of forty rows, in one order, so that no two handlers
/// deadlock by themselves.
#[tokio::test]
async fn keys_that_waited_for_a_service_catch_up_without_a_deadlock() {
    const KEYS: i32 = 40;
    const STEPS: i32 = 50;
    let database = database().await;
    let made = "create table accounts (id int primary key, cents bigint not null); \
                insert into accounts select id, 0 from generate_series(0, 39) as id; \
                grant select, update on accounts to public";
    database.superuser().batch_execute(made).await.expect("a table");
    let (away, collisions) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU32::new(0)));
    let handler = {
        let (away, collisions) = (Arc::clone(&away), Arc::clone(&collisions));
        move |tx: Tx, message: Message<Step>| {
            let (away, collisions) = (away.load(SeqCst), Arc::clone(&collisions));
            async move {
                if away {
                    return Err(Failure::transient("the service is away"));
                }
                let Step { key, n } = &message.payload;
                let from: i32 = key.parse().expect("a number");
                let mut ids = [from, (from + n) % KEYS];
                ids.sort_unstable();
                for id in ids {
                    let sql = "update accounts set cents = cents + 1 where id = $1";
                    if let Err(error) = tx.execute(sql, &[&id]).await {
                        collisions.fetch_add(1, SeqCst);
                        return Err(error.into());
                    }
                }
                take(&tx, &message.payload).await?;
                Ok(())
            }
        }
    };
    let retry = Retry::exponential(Duration::from_millis(20), Duration::from_millis(20));
    let processor = Processor::new(inbox(&database, 16).await, handler).retry(retry);
    let mut owners = JoinSet::new();
    for key in 0..KEYS {
        let processor = processor.clone();
        owners.spawn(async move {
            for n in 1..=STEPS {
                processor.process(&[message(&key.to_string(), n)]).await.expect("settled");
            }
        });
    }
    owners.join_all().await;
    assert_eq!(number(&database, "select count(*) from inbox.parked").await, 2_000);
    away.store(false, SeqCst);
    work_off(&processor, &database).await;
    let expected =
        (0..KEYS).flat_map(|key| (1..=STEPS).map(move |n| Step { key: key.to_string(), n }));
    assert_once_and_in_order(&effects(&database).await, expected);
    assert_eq!(collisions.load(SeqCst), 0, "deadlocks that the handler does not have");
    assert_eq!(number(&database, "select count(*) from inbox.dead_letters").await, 0);
}

/// All that others have taken over in a quarter of an hour is of no interest to what has no key.
#[tokio::test]
async fn messages_without_a_key_are_claimed_without_a_look_at_what_came_by_position() {
    let database = database().await;
    let handler = |tx: Tx, messages: Vec<Message<Step>>| async move {
        for message in messages {
            take(&tx, &message.payload).await?;
        }
        Ok(())
    };
    let processor = Processor::batch(inbox(&database, 2).await, 50, handler).dedup(watermark());
    let messages: Vec<RawMessage> = (1..=100)
        .map(|n| {
            with(published("a", n, u64::try_from(n).expect("positive"), i64::from(n)), |m| {
                m.key = None
            })
        })
        .collect();
    // The first of a partition asks whether somebody has deleted its watermark, which that table knows.
    let first = messages.get(..1).expect("a hundred");
    processor.process(first).await.expect("settled");
    let revoke = format!(
        "revoke select on inbox.applied from {consumer}; \
         revoke execute on function inbox.claim_by_id(int, text, int, uuid[], date[]) from {consumer}",
        consumer = database.name_of(Role::Consumer)
    );
    database.superuser().batch_execute(&revoke).await.expect("revoked");
    processor.process(&messages).await.expect("settled");
    processor.process(&messages).await.expect("settled again");
    let expected = (1..=100).map(|n| Step { key: "a".into(), n });
    assert_once_and_in_order(&effects(&database).await, expected);
    assert_eq!(number(&database, "select count(*) from inbox.applied").await, 0);
}

#[tokio::test]
async fn a_handler_beyond_its_limit_fails_its_message_and_holds_nobody() {
    let database = database().await;
    let calls = Arc::new(AtomicU32::new(0));
    let handler = {
        let calls = Arc::clone(&calls);
        move |tx: Tx, message: Message<Step>| {
            let call = calls.fetch_add(1, SeqCst);
            async move {
                take(&tx, &message.payload).await?;
                match call {
                    0 => std::future::pending().await,
                    1 => drop(tx.execute("select pg_sleep(600)", &[]).await),
                    _ => {}
                }
                Ok(())
            }
        }
    };
    let retry = Retry::exponential(Duration::from_millis(1), Duration::from_millis(1));
    let processor = Processor::new(inbox(&database, 2).await, handler).retry(retry);
    let processor = processor.time_limit(Duration::from_millis(300));
    let began = Instant::now();
    processor.process(&[message("a", 1), message("b", 1)]).await.expect("settled");
    let codes = "select count(*) from inbox.parked_lanes \
        where code in ('timed-out', 'sqlstate-57014')";
    assert_eq!(number(&database, codes).await, 2);
    work_off(&processor, &database).await;
    assert!(began.elapsed() < wait::PATIENCE);
    assert_eq!(effects(&database).await.len(), 2);
}

#[tokio::test]
async fn a_handler_takes_what_its_decoder_makes_of_a_record() {
    let database = database().await;
    let inbox = inbox(&database, 2).await;
    let of = |n, payload: Option<&[u8]>| {
        with(message("a", n), |m| {
            m.payload = payload.map(bytes::Bytes::copy_from_slice);
            m.headers = Headers::default();
        })
    };
    let dead = Arc::new(AtomicU32::new(0));
    let count = {
        let dead = Arc::clone(&dead);
        move |alert: &Alert| {
            if matches!(alert, Alert::DeadLetter { code, .. } if code == "undecodable") {
                dead.fetch_add(1, SeqCst);
            }
        }
    };

    let (sender, mut received) = tokio::sync::mpsc::unbounded_channel();
    let raw = {
        let sender = sender.clone();
        move |_: Tx, message: Message<Option<bytes::Bytes>>| {
            sender.send(format!("{:?}", message.payload)).expect("received");
            async { Ok(()) }
        }
    };
    let text = {
        let sender = sender.clone();
        move |_: Tx, message: Message<String>| {
            sender.send(message.payload).expect("received");
            async { Ok(()) }
        }
    };
    let number = move |_: Tx, messages: Vec<Message<u32>>| {
        for message in messages {
            sender.send(message.payload.to_string()).expect("received");
        }
        async { Ok(()) }
    };
    let big_endian = |message: &RawMessage| {
        let bytes = message.payload.clone().unwrap_or_default();
        <[u8; 4]>::try_from(&bytes[..]).map(u32::from_be_bytes).map_err(|_| "not four bytes")
    };
    let raw = Processor::raw(inbox.clone(), raw).on_alert(count.clone());
    raw.process(&[of(1, Some(b"\xff")), of(2, None)]).await.expect("settled");
    let text = Processor::text(inbox.clone(), text).on_alert(count.clone());
    text.process(&[of(3, Some("é".as_bytes())), of(4, Some(b"\xff"))]).await.expect("settled");
    let number = Processor::batch_decoding(inbox, 2, big_endian, number).on_alert(count);
    number.process(&[of(5, Some(&[0, 0, 1, 0])), of(6, Some(b"x"))]).await.expect("settled");
    let mut seen = Vec::new();
    while let Ok(what) = received.try_recv() {
        seen.push(what);
    }
    assert_eq!(seen, ["Some(b\"\\xff\")", "None", "é", "256"]);
    assert_eq!(dead.load(SeqCst), 2);
}

#[tokio::test]
async fn a_handler_that_is_stuck_is_told_again_and_again() {
    let database = database().await;
    let told = Arc::new(AtomicU32::new(0));
    let handler = {
        let told = Arc::clone(&told);
        move |tx: Tx, message: Message<Step>| {
            let told = Arc::clone(&told);
            async move {
                take(&tx, &message.payload).await?;
                while told.load(SeqCst) < 2 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Ok(())
            }
        }
    };
    let processor = Processor::new(inbox(&database, 2).await, handler)
        .slow_after(Duration::from_millis(20))
        .on_alert(move |alert| {
            if matches!(alert, Alert::Slow { consumer, .. } if consumer == "billing") {
                told.fetch_add(1, SeqCst);
            }
        });
    let messages = [message("a", 1)];
    let settled = tokio::time::timeout(wait::PATIENCE, processor.process(&messages)).await;
    settled.expect("it is told twice, and ends").expect("settled");
    assert_eq!(effects(&database).await.len(), 1);
}

/// So that nothing else is called on the thread, and perhaps on none.
#[tokio::test]
async fn a_handler_that_blocks_its_thread_is_told_again_and_again() {
    let database = database().await;
    let topic = topic(&database, "blocked").await.create(1).await;
    let (alerted, alerts) = std::sync::mpsc::channel();
    let alerts = Arc::new(std::sync::Mutex::new(alerts));
    let handler = move |tx: Tx, message: Message<Option<bytes::Bytes>>| {
        let alerts = Arc::clone(&alerts);
        async move {
            take(&tx, &Step { key: "a".into(), n: message.attempt.cast_signed() }).await?;
            for _ in 0..2 {
                let told = alerts.lock().expect("no panic").recv_timeout(wait::PATIENCE);
                told.map_err(Failure::fatal)?;
            }
            Ok(())
        }
    };
    let processor = Processor::raw(inbox(&database, 12).await, handler)
        .slow_after(Duration::from_millis(20))
        .on_alert(move |alert| {
            if matches!(alert, Alert::Slow { .. }) {
                let _nobody_waits_any_more = alerted.send(());
            }
        });
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", servers::kafka().await.brokers());
    config.set("group.id", database.name());
    let runner = Runner::new(processor, config, &[topic.name()]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
    topic.produce(i64::try_from(now).expect("a time"), "{}").await;
    let done = async {
        let one = || async {
            match effects(&database).await.len() {
                1 => Ok(()),
                count => Err(format!("{count}")),
            }
        };
        wait::until("it takes effect", wait::PATIENCE, one).await.expect("it is told twice");
    };
    runner.run(done).await.expect("an orderly end");
}

/// As long as it takes: the one waits for a service, the others only want to be stored.
#[tokio::test]
async fn parked_messages_that_are_at_work_hold_no_message_of_another_key_large_or_small() {
    let database = database().await;
    let (release, released) = tokio::sync::watch::channel(false);
    let handler = move |tx: Tx, message: Message<Option<bytes::Bytes>>| {
        let mut released = released.clone();
        async move {
            if message.attempt == 1 {
                return Err(Failure::transient("later"));
            }
            let key =
                String::from_utf8_lossy(message.key.as_deref().unwrap_or_default()).into_owned();
            take(&tx, &Step { key: key.clone(), n: 1 }).await?;
            if key.starts_with("slow") {
                released.wait_for(|released| *released).await.map_err(Failure::fatal)?;
            }
            Ok(())
        }
    };
    let retry = Retry::exponential(Duration::from_millis(1), Duration::from_millis(1));
    let processor = Processor::raw(inbox(&database, 12).await, handler).retry(retry);
    let large = |key: &str| {
        let payload = Some(vec![b'x'; 2 << 20].into());
        with(message(key, 1), |m| m.payload = payload)
    };
    processor.process(&[message("slow", 1), large("slow-and-large")]).await.expect("settled");
    let background = tokio::spawn({
        let processor = processor.clone();
        async move { processor.background().await }
    });
    let at_work = "select count(*) from pg_stat_activity where state = 'idle in transaction' \
        and datname = current_database()";
    let until = async |sql: &'static str, expected: i64| {
        let done = wait::until(sql, wait::PATIENCE, || async {
            match number(&database, sql).await {
                found if found == expected => Ok(()),
                found => Err(format!("{found}")),
            }
        });
        done.await.expect("it comes to that");
    };
    until(at_work, 2).await;
    let messages = [large("fast"), message("fast-and-small", 1)];
    let settled = tokio::time::timeout(wait::PATIENCE, processor.process(&messages)).await;
    settled.expect("it is not held").expect("settled");
    until("select count(*) from effects where key like 'fast%'", 2).await;
    release.send(true).expect("somebody waits");
    until("select count(*) from effects", 4).await;
    background.abort();
}
