//! What a message or a handler says and no column holds as it is: nothing ends the consumer, and
//! what is read again is what was said.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use outbox_harness::{
    database::{Database, Role},
    wait,
};
use outbox_idempotency::{
    Dedup, Failure, Headers, Inbox, Message, Processor, RawMessage, Retry, Tx,
    dead_letters::{self, Page, Selection},
};
use outbox_migrations::{Set, apply};
use tracing_subscriber::filter::LevelFilter;

use super::{
    effects::{Step, message, number, with},
    rights::Log,
    watermark::{self, published},
};

const YEAR: Duration = Duration::from_secs(365 * 86_400);
const EVERYTHING: &str = "gr\u{fc}\u{df} \u{20ac} \u{3042} \u{1f600} \\u{20ac} \0";

/// An error that can't even be printed.
#[derive(Debug)]
struct Unprintable;

impl fmt::Display for Unprintable {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("no words for it \0")
    }
}

impl std::error::Error for Unprintable {}

async fn database(encoding: &str) -> Database {
    let options = format!("encoding '{encoding}' locale 'C'");
    let database = Database::create_empty_with(&options).await;
    let mut owner = database.connect(Role::Owner).await;
    for set in [Set::Outbox, Set::Inbox] {
        apply(&mut owner, set).await.expect("migrated");
    }
    database.grant().await;
    database
}

async fn inbox(database: &Database) -> Inbox {
    let pool = database.pool(Role::Consumer, 12);
    Inbox::open(pool, EVERYTHING).await.expect("a consumer may have any name")
}

/// What a handler says; the beginning of its dead letter's code, none where it is parked.
type Case = (&'static str, fn() -> Failure, Option<&'static str>);

/// Whatever it may say.
fn failures() -> Vec<Case> {
    vec![
        ("a zero byte", || Failure::permanent("a\0b", "x\0y"), Some("a\\u{0}b")),
        ("a long code", || Failure::permanent("k".repeat(10_240), "x"), Some("kkk")),
        ("random letters", || Failure::permanent(long(), long()), Some("")),
        ("a long text", || Failure::permanent("long", EVERYTHING.repeat(100_000)), Some("long")),
        ("every letter", || Failure::permanent(EVERYTHING, EVERYTHING), Some("gr")),
        ("an empty code", || Failure::permanent("", ""), Some("")),
        ("a text to try again", || Failure::transient(EVERYTHING.repeat(99)), None),
        ("300,000 years", || Failure::retry_after(300_000 * YEAR, "x"), None),
        ("the longest delay", || Failure::retry_after(Duration::MAX, "x"), None),
        ("a far deferral", || Failure::defer(UNIX_EPOCH + 300_000 * YEAR), None),
        ("a farther one", || Failure::defer(UNIX_EPOCH + 4_000_000_000 * (50 * YEAR)), None),
        ("the first time", || Failure::defer(UNIX_EPOCH - 4_000_000_000 * (50 * YEAR)), None),
        ("no words", || Failure::permanent("x", Unprintable), None),
    ]
}

/// What does not get shorter by being compressed.
fn long() -> String {
    (0..300).map(|_| uuid::Uuid::from_u128(rand::random()).to_string()).collect()
}

#[tokio::test]
async fn no_failure_ends_the_consumer_in_any_encoding() {
    for encoding in ["UTF8", "LATIN1", "WIN1252", "EUC_JP", "SQL_ASCII"] {
        let database = database(encoding).await;
        let handler = |_: Tx, message: Message<Step>| async move {
            let n = usize::try_from(message.payload.n).expect("an index");
            let (_, failure, _) = failures()[n];
            Err(failure())
        };
        let long = Retry::exponential(Duration::MAX, Duration::MAX);
        let processor = Processor::new(inbox(&database).await, handler).retry(long);
        let processor = processor.on_alert(|_| panic!("a hook"));
        let (log, _written) = Log::written(LevelFilter::ERROR);
        for (n, (what, _, code)) in failures().into_iter().enumerate() {
            let sent = message(what, i32::try_from(n).expect("few"));
            processor.process(std::slice::from_ref(&sent)).await.expect(what);
            let stored = match code {
                Some(code) => format!(
                    "select count(*) from inbox.dead_letters \
                     where message_id = '{}' and starts_with(code, '{code}')",
                    sent.id
                ),
                None => {
                    format!("select count(*) from inbox.parked where message_id = '{}'", sent.id)
                }
            };
            assert_eq!(number(&database, &stored).await, 1, "{encoding}: {what}");
        }
        let said = log.text();
        assert!(said.contains("a hook of on_alert panicked; the consumer continues"), "{said}");
        assert!(!said.contains("a defect of this crate"), "{said}");
        let operator = database.connect(Role::Operator).await;
        let all = Selection::default();
        let listed = dead_letters::list(&*operator, &all, Page::first(99)).await;
        assert_eq!(listed.expect("it can be listed").len(), 6);
        let far = "select count(*) from inbox.parked_lanes \
                   where due_at > now() + interval '3000 years' and due_at < '9999-12-31 12:00 utc'";
        assert_eq!(number(&database, far).await, 6, "{encoding}: due in thousands of years");
    }
}

/// As no producer should make one.
fn strange(n: i32) -> RawMessage {
    let mut strange = message("k", n);
    strange.key = Some(vec![0xff; 3 << 20]);
    strange.source.topic = EVERYTHING.into();
    strange.headers = Headers::from_iter([
        (EVERYTHING, Some(EVERYTHING.as_bytes().to_vec())),
        (EVERYTHING, None),
        ("", Some(vec![])),
        ("bytes", Some((0..=255).collect())),
        ("long", Some(vec![0xe4; 2 << 20])),
    ]);
    strange
}

#[tokio::test]
async fn a_message_that_waited_or_was_replayed_is_what_it_was_in_any_encoding() {
    for encoding in ["UTF8", "LATIN1", "WIN1252", "EUC_JP", "SQL_ASCII"] {
        let database = database(encoding).await;
        let seen: Arc<Mutex<Vec<Message<Step>>>> = Arc::default();
        let handler = {
            let seen = Arc::clone(&seen);
            move |_: Tx, message: Message<Step>| {
                let mut seen = seen.lock().expect("nobody panicked");
                let calls = seen.iter().filter(|s| s.payload.n == message.payload.n).count();
                let n = message.payload.n;
                seen.push(message);
                let outcome = match (n, calls) {
                    (1, 0) => Err(Failure::permanent("strange", "dies first")),
                    (2, 0) => Err(Failure::transient("waits first")),
                    _ => Ok(()),
                };
                async move { outcome }
            }
        };
        let soon = Retry::exponential(Duration::from_millis(1), Duration::from_millis(1));
        let processor = Processor::new(inbox(&database).await, handler).retry(soon);
        let sent = [strange(1), strange(2), strange(3)];
        processor.process(&sent).await.expect("settled");
        let chosen = Selection::default().with_code("strange");
        let operator = database.connect(Role::Operator).await;
        let replayed = dead_letters::replay(&*operator, &chosen).await;
        assert_eq!(replayed.expect("replayed"), 1, "{encoding}");
        let background = {
            let processor = processor.clone();
            tokio::spawn(async move { processor.background().await })
        };
        wait::until("nothing waits", wait::PATIENCE, || async {
            match number(&database, "select count(*) from inbox.parked").await {
                0 => Ok(()),
                left => Err(format!("{left} left")),
            }
        })
        .await
        .expect("it is handled");
        background.abort();
        let seen = seen.lock().expect("nobody panicked");
        assert_eq!(seen.len(), 5, "{encoding}");
        for again in seen.iter() {
            let first = &sent[usize::try_from(again.payload.n).expect("1 to 3") - 1];
            assert_eq!(again.headers, first.headers, "{encoding}");
            assert_eq!((&again.key, &again.source), (&first.key, &first.source), "{encoding}");
            assert_eq!(again.id, first.id);
        }
    }
}

#[tokio::test]
async fn a_watermark_is_kept_for_any_topic_in_any_encoding() {
    for encoding in ["UTF8", "LATIN1"] {
        let database = database(encoding).await;
        let handler = |_: Tx, _: Vec<Message<Step>>| async move { Ok(()) };
        let processor = Processor::batch(inbox(&database).await, 10, handler);
        let Dedup::Watermark { relay } = watermark::watermark() else { unreachable!() };
        let processor = processor.dedup(Dedup::Watermark { relay });
        let of = |n, commit, key| {
            let mut message = published("a", n, commit, i64::from(n));
            message.source.topic = EVERYTHING.into();
            with(message, |m| m.key = key)
        };
        let keyless = of(1, 10, None);
        let keyed = of(2, 20, Some(b"a".to_vec()));
        for _ in 0..2 {
            processor.process(&[keyless.clone(), keyed.clone()]).await.expect("settled");
        }
        let marks = "select count(*) from inbox.watermarks where next_offset = 3";
        assert_eq!(number(&database, marks).await, 1, "{encoding}");
    }
}

#[tokio::test]
async fn a_time_that_no_date_has_is_outside_the_window_and_stored() {
    let database = database("UTF8").await;
    let handler = |_: Tx, _: Message<Step>| async move { Ok(()) };
    let processor = Processor::new(inbox(&database).await, handler);
    let times = [
        UNIX_EPOCH + Duration::from_secs(1_800_000_000_000_000),
        UNIX_EPOCH - Duration::from_secs(1_800_000_000_000_000),
        UNIX_EPOCH + 4_000_000_000 * (50 * YEAR),
        SystemTime::now() - 20 * YEAR,
    ];
    for (n, time) in (1..).zip(times) {
        let mut sent = message("k", n);
        sent.id = outbox_idempotency::MessageId::at(uuid::Uuid::from_u128(rand::random()), time);
        processor.process(std::slice::from_ref(&sent)).await.expect("settled");
    }
    let outside = "select count(*) from inbox.dead_letters where code = 'outside-window'";
    assert_eq!(number(&database, outside).await, 4);
}
