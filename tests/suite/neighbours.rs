//! What one lane's trouble costs the others, and what the brokers' administration may do to a
//! topic while the relay streams: nothing is lost or parked that need not be, and no one waits.

use std::{
    collections::HashMap,
    future::Future,
    time::{Duration, Instant},
};

use outbox_harness::{Harness, database::Role, event::Event, topic::Topic, wait};

use crate::dead_letters::{count_parked, list, texts, wait_parked};

/// Others may wait so long for what a broker must be asked.
const OTHERS_WAIT: Duration = Duration::from_secs(1);
/// What a debug build on a machine that does other things as well may add to a time.
const NOISE: Duration = Duration::from_millis(500);

/// Inserts events in one transaction; `payload` and `created_at` are SQL. Each has a key of its own: it would wait
/// behind an earlier one that is parked.
async fn insert_many(t: &Harness, topic: &str, count: u32, payload: &str, created_at: &str) {
    let sql = format!(
        "insert into outbox.events (topic, key, payload, created_at) \
         select '{topic}', 'k' || (n + (select count(*) from outbox.events)), {payload}, {created_at} \
         from generate_series(1, {count}) n"
    );
    t.database().superuser().batch_execute(&sql).await.expect("inserted");
}

/// How long until a committed record is in the topic.
async fn arrives(topic: &Topic, wanted: usize, since: Instant) -> Duration {
    wait::until(&format!("{wanted} records"), wait::PATIENCE, || async {
        match topic.records().await.len() {
            found if found >= wanted => Ok(()),
            found => Err(format!("{found} records")),
        }
    })
    .await
    .expect("it arrives");
    since.elapsed()
}

/// A lane that is in order: an event every few milliseconds, each in a commit of its own, while `beside`
/// continues. Returns the time from INSERT to the broker that one in a hundred exceeds.
async fn p99(t: &Harness, healthy: &Topic, beside: impl Future<Output = ()>) -> Duration {
    const EVENTS_MIN: usize = 300;
    const EVERY: Duration = Duration::from_millis(5);
    let before = healthy.records().await.len();
    let session = t.database().connect(Role::Writer).await;
    let insert = "insert into outbox.events (topic, key, created_at) \
                  values ($1, 'healthy', clock_timestamp())";
    let insert = session.prepare(insert).await.expect("prepared");
    let over = std::cell::Cell::new(false);
    let write = async {
        let mut written = 0;
        let mut tick = tokio::time::interval(EVERY);
        while written < EVENTS_MIN || !over.get() {
            tick.tick().await;
            session.execute(&insert, &[&healthy.name()]).await.expect("inserted");
            written += 1;
        }
        written
    };
    let (written, ()) = tokio::join!(write, async {
        beside.await;
        over.set(true);
    });
    arrives(healthy, before + written, Instant::now()).await;
    // The broker stamps records as they come; the event's own time is kept beside it.
    let sql = "select (extract(epoch from created_at) * 1000)::int8, id::text from outbox.events \
               where topic = $1";
    let rows = t.database().superuser().query(sql, &[&healthy.name()]).await.expect("events");
    let created: HashMap<String, i64> = rows.iter().map(|row| (row.get(1), row.get(0))).collect();
    let records = healthy.records().await;
    let mut took_ms: Vec<i64> = records
        .iter()
        .skip(before)
        .filter_map(|record| Some(record.timestamp_ms? - created.get(record.id()?)?))
        .collect();
    assert_eq!(took_ms.len(), written, "each has come once");
    took_ms.sort_unstable();
    let ms = took_ms.get(took_ms.len() * 99 / 100).copied().expect("some were written");
    Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}

/// What thousands of refused events cost is held against what as many good ones cost, in the same run:
/// both must come through the stream, and are then stored. Of three rounds one must be as it should: the machine may
/// do other things as well.
async fn many_are_refused(
    settings: &[(&str, &str)],
    payload: &str,
    created_at: &str,
    reason: &str,
    statements_max: i64,
) {
    const MANY: u32 = 5_000;
    let t = Harness::start().await;
    let bad = t.topic("bad").create_with(4, settings).await;
    let good = t.topic("good").create(4).await;
    let stamped = [("message.timestamp.type", "LogAppendTime")];
    let healthy = t.topic("healthy").create_with(1, &stamped).await;
    let _relay = t.relay().start().await;

    let mut seen = Vec::new();
    for round in 1..=3 {
        let alone = p99(&t, &healthy, async {}).await;
        let (mut delivering, mut parking) = (Duration::ZERO, Duration::ZERO);
        let beside_good = p99(&t, &healthy, async {
            let begun = Instant::now();
            insert_many(&t, good.name(), MANY, payload, created_at).await;
            delivering = arrives(&good, (MANY * round) as usize, begun).await;
        });
        let beside_good = beside_good.await;
        let beside_refused = p99(&t, &healthy, async {
            let begun = Instant::now();
            insert_many(&t, bad.name(), MANY, payload, created_at).await;
            wait_parked(&t, |parked| parked == i64::from(MANY * round)).await;
            parking = begun.elapsed();
        });
        let beside_refused = beside_refused.await;
        seen.push(format!(
            "p99 of a healthy lane: {alone:?} alone, {beside_good:?} beside {MANY} good events, \
             {beside_refused:?} beside {MANY} refused ones; good ones took {delivering:?}, refused \
             ones {parking:?}"
        ));
        let others_wait_little = beside_refused < NOISE + 3 * alone.max(beside_good);
        if others_wait_little && parking < NOISE + 3 * delivering {
            break;
        }
        assert!(round < 3, "{seen:#?}");
    }
    let rounds = i64::try_from(seen.len()).expect("few");

    let sql =
        "select array_agg(distinct reason), count(distinct xmin::text) from outbox.dead_letters";
    let row = t.database().superuser().query_one(sql, &[]).await.expect("reasons");
    assert_eq!(row.get::<_, Vec<String>>(0), [reason]);
    let statements: i64 = row.get(1);
    let statements_max = statements_max * rounds;
    assert!(statements <= statements_max, "{rounds} times {MANY} events: {statements} statements");
    assert_eq!(bad.records().await.len(), 0);
}

#[tokio::test]
async fn thousands_too_large_are_parked_at_once_and_cost_others_about_what_good_ones_do() {
    let small = [("max.message.bytes", "2000")];
    let payload = "to_jsonb(repeat(md5(n::text), 100))";
    many_are_refused(&small, payload, "clock_timestamp()", "too_large", 40).await;
}

#[tokio::test]
async fn thousands_beyond_the_topics_bounds_of_time_are_parked_at_once_and_cost_others_as_little() {
    let bounds = [("message.timestamp.before.max.ms", "3600000")];
    let created_at = "clock_timestamp() - interval '3 hours'";
    many_are_refused(&bounds, "'1'", created_at, "invalid_timestamp", 20).await;
}

#[tokio::test]
async fn many_small_records_fit_a_topic_of_small_batches() {
    let t = Harness::start().await;
    let topic = t.topic("small").create_with(2, &[("max.message.bytes", "1000")]).await;
    let _relay = t.relay().start().await;
    insert_many(&t, topic.name(), 500, "to_jsonb(md5(n::text))", "clock_timestamp()").await;
    t.count(&topic, 2).await.assert_exactly_once();
    assert_eq!(count_parked(&t).await, 0);
}

#[tokio::test]
async fn a_limit_that_is_lowered_and_raised_while_the_relay_streams_holds_at_once() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let _relay = t.relay().start().await;
    let payload = serde_json::json!("x".repeat(5_000));
    let event = |key: &str| Event::to(topic.name()).key(key).payload(payload.clone());
    t.commit([event("a")]).await;
    arrives(&topic, 1, Instant::now()).await;
    topic.set("max.message.bytes", "2000").await;
    t.commit([event("b"), event("c"), Event::to(topic.name()).key("d")]).await;
    wait_parked(&t, |parked| parked == 2).await;
    arrives(&topic, 2, Instant::now()).await;
    topic.set("max.message.bytes", "1000000").await;
    t.commit([event("e")]).await;
    arrives(&topic, 3, Instant::now()).await;
    assert_eq!(texts(&list(&t).await, "key"), ["b", "c"]);
}

#[tokio::test]
async fn a_thousand_missing_topics_keep_nobody_waiting() {
    const MANY: u32 = 1_000;
    let mut t = Harness::start().await;
    let good = t.topic("good").create(1).await;
    let missing = t.topic("missing");
    let mut relay = t.relay().start().await;
    // How long it takes where none is missing.
    let begun = Instant::now();
    let many = |topic: &str| {
        format!(
            "insert into outbox.events (topic, key) select {topic}, 'k' from generate_series(1, {MANY}) n"
        )
    };
    let (there, away) = (format!("'{}'", good.name()), format!("'{}.' || n", missing.name()));
    t.database().superuser().batch_execute(&many(&there)).await.expect("inserted");
    t.commit([Event::to(good.name()).key("first")]).await;
    let before = MANY as usize + 1;
    let usual = arrives(&good, before, begun).await;

    let begun = Instant::now();
    t.database().superuser().batch_execute(&many(&away)).await.expect("inserted");
    t.commit([Event::to(good.name()).key("behind")]).await;
    let took = arrives(&good, before + 1, begun).await;
    let seen = format!("others waited {took:?} for {MANY} missing topics, and {usual:?} for none");
    assert!(took < OTHERS_WAIT + 3 * usual, "{seen}");
    outbox_harness::host::report(&seen);
    wait_parked(&t, |parked| parked == i64::from(MANY)).await;
    relay.wait_for("/readyz", 200).await;
    assert!(!missing.exists().await, "looked up, never produced to");
}

/// No one knows in advance what compression makes of a record: the broker is asked.
async fn compressed(delivery: &str) {
    let t = Harness::start().await;
    let topic = t.topic("small").create_with(4, &[("max.message.bytes", "2000")]).await;
    let settings = t.relay().set("sink.delivery", delivery);
    let _relay = settings.set("sink.properties.\"compression.type\"", "lz4").start().await;
    let hard = "(select string_agg(md5(n || '-' || i), '') from generate_series(1, 200) i)";
    let payload = format!("to_jsonb(case when n % 2 = 0 then repeat('x', 6000) else {hard} end)");
    insert_many(&t, topic.name(), 12, &payload, "clock_timestamp()").await;
    arrives(&topic, 6, Instant::now()).await;
    // A slow broker is not asked about each at once: some are only suspected for a while.
    wait::until("six are known to be too large", wait::PATIENCE, || async {
        let entries = list(&t).await;
        match texts(&entries, "reason") {
            reasons if reasons == ["too_large"; 6] => Ok(()),
            reasons => Err(format!("{reasons:?}")),
        }
    })
    .await
    .expect("each was asked about");
    let records = topic.records().await;
    let mut newest: HashMap<i32, u64> = HashMap::new();
    for record in &records {
        let payload = record.payload.as_deref().unwrap_or_default();
        assert!(payload.starts_with(b"\"xxxx"), "only what compresses well is there");
        // Consumers that know events by their positions look up what is marked.
        let position = record.header("outbox-position").expect("a position");
        let ordinal: u64 =
            position.rsplit(':').next().and_then(|n| n.parse().ok()).expect("an ordinal");
        let newest = newest.entry(record.partition).or_default();
        let is_marked = record.header("outbox-repaired") == Some("1");
        assert!(ordinal >= *newest || is_marked, "{position} comes late, and does not say so");
        *newest = ordinal.max(*newest);
    }
    let marked = records.iter().filter(|record| record.header("outbox-repaired").is_some()).count();
    assert_eq!(marked > 0, delivery == "at-least-once", "{marked} of {}", records.len());
}

#[tokio::test]
async fn a_record_that_compression_makes_small_enough_is_delivered_and_no_other() {
    compressed("exactly-once").await;
}

#[tokio::test]
async fn with_at_least_once_a_record_that_compression_makes_small_enough_is_delivered_too() {
    compressed("at-least-once").await;
}

/// How long an event for `good` takes that is committed behind what `sql` inserts.
async fn behind(t: &Harness, good: &Topic, wanted: usize, sql: &str) -> Duration {
    t.database().superuser().batch_execute(sql).await.expect("inserted");
    let begun = Instant::now();
    insert_many(t, good.name(), 1, "'1'", "clock_timestamp()").await;
    arrives(good, wanted, begun).await
}

#[tokio::test]
async fn thousands_that_only_the_broker_can_refuse_hold_others_no_longer_than_known_ones_and_a_second()
 {
    const MANY: u32 = 2_000;
    const CLASSIFIED: i64 = 40;
    let mut t = Harness::start().await;
    let settings = [("max.message.bytes", "2000"), ("message.timestamp.before.max.ms", "3600000")];
    let bad = t.topic("bad").create_with(12, &settings).await;
    let good = t.topic("good").create(1).await;
    let relay = t.relay().set("sink.properties.\"compression.type\"", "lz4");
    let mut relay = relay.start().await;
    t.commit([Event::to(good.name()).key("first")]).await;
    arrives(&good, 1, Instant::now()).await;

    let hard =
        "to_jsonb((select string_agg(md5(n || '-' || i), '') from generate_series(1, 100) i))";
    // Every hundredth compresses well, and is taken.
    let payload = format!("case when n % 100 = 0 then to_jsonb(repeat('x', 3000)) else {hard} end");
    let sql = |key: &str, age: &str| {
        format!(
            "insert into outbox.events (topic, key, payload, created_at) \
             select '{}', '{key}' || n, {payload}, clock_timestamp() - interval '{age}' \
             from generate_series(1, {MANY}) n",
            bad.name()
        )
    };
    let parked = async |key: &str, wanted: i64| {
        let sql = format!(
            "select count(*) from outbox.dead_letters where convert_from(key, 'UTF8') like '{key}%'"
        );
        wait::until("they are parked", wait::PATIENCE, || async {
            let row = t.database().superuser().query_one(&sql, &[]).await;
            match row.map_err(|error| error.to_string())?.get::<_, i64>(0) {
                found if found == wanted => Ok(()),
                found => Err(format!("{found} are")),
            }
        })
        .await
        .expect("they can't be delivered");
    };
    // Of three rounds one must be as it should: the machine may do other things as well.
    let mut seen = Vec::new();
    for round in 1..=3 {
        let [old, single, new] = ["old", "one", "new"].map(|key| format!("{key}{round}-"));
        let before = good.records().await.len();
        let known = behind(&t, &good, before + 1, &sql(&old, "3 hours")).await;
        parked(&old, i64::from(MANY)).await;
        let one = sql(&single, "0").replace(&format!("(1, {MANY})"), "(1, 1)");
        let one = behind(&t, &good, before + 2, &one).await;
        parked(&single, 1).await;
        let asked = behind(&t, &good, before + 3, &sql(&new, "0")).await;
        seen.push(format!(
            "{asked:?} where the broker is asked, {known:?} if not, {one:?} for a question"
        ));
        // Of some batches one question each may be beyond what time there is for asking.
        if asked < OTHERS_WAIT + 3 * known + 5 * one {
            break;
        }
        assert!(round < 3, "{seen:#?}");
    }

    // Each of them comes to its own end, while the others flow.
    let refused =
        "select count(*) from outbox.dead_letters where state = 'parked' and reason = 'too_large'";
    wait::until("some of them are asked about", wait::PATIENCE, || async {
        let row = t.database().superuser().query_one(refused, &[]).await;
        match row.map_err(|error| error.to_string())?.get::<_, i64>(0) {
            found if found >= CLASSIFIED => Ok(()),
            found => Err(format!("{found} were refused by themselves")),
        }
    })
    .await
    .expect("the broker is asked about them by and by");
    arrives(&bad, 1, Instant::now()).await;
    relay.wait_for("/readyz", 200).await;
}

/// A new epoch, which librdkafka takes after a refused transaction, costs it half a second where it
/// asks for one a moment too early.
#[tokio::test]
async fn what_only_the_broker_can_refuse_is_parked_about_as_soon_as_what_is_known_beforehand() {
    const ONES: u32 = 20;
    let t = Harness::start().await;
    let settings = [("max.message.bytes", "2000"), ("message.timestamp.before.max.ms", "3600000")];
    let topic = t.topic("bad").create_with(12, &settings).await;
    let relay = t.relay().set("sink.properties.\"compression.type\"", "lz4");
    let _relay = relay.start().await;
    let hard =
        "to_jsonb((select string_agg(md5(n || '-' || i), '') from generate_series(1, 200) i))";
    let mut parked = 0;
    let mut mean = async |payload: &str, created_at: &str| {
        let begun = Instant::now();
        for _ in 0..ONES {
            parked += 1;
            let sql = format!(
                "insert into outbox.events (topic, key, payload, created_at) \
                 select '{0}', 'k' || n, {payload}::jsonb, {created_at} from (select {parked} as n) n \
                 union all \
                 select '{0}', 'good' || n, '1'::jsonb, clock_timestamp() from generate_series(1, 30) n",
                topic.name()
            );
            t.database().superuser().batch_execute(&sql).await.expect("inserted");
            wait_parked(&t, |found| found == parked).await;
        }
        begun.elapsed() / ONES
    };
    let known = mean("'1'", "clock_timestamp() - interval '3 hours'").await;
    let asked = mean(hard, "clock_timestamp()").await;
    assert!(asked < 5 * known, "{asked:?} where the broker is asked, {known:?} where it is not");
}
