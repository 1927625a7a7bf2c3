//! What one lane's trouble costs the others, and what the brokers' administration may do to a
//! topic while the relay streams: nothing is lost or parked that need not be, and nobody waits.

use std::time::{Duration, Instant};

use outbox_tests::{Harness, event::Event, topic::Topic, wait};

use crate::dead_letters::{count_parked, list, texts, wait_parked};

/// Others may wait so long for what a broker must be asked.
const OTHERS_WAIT: Duration = Duration::from_secs(1);
/// A debug build on a machine that does other things as well parks at least so many a second.
const PARKED_PER_SECOND: f64 = 1_000.0;

/// Inserts one event per key `k0` to `k{count - 1}`, in one transaction; `values` are SQL for
/// payload and creation time.
async fn insert_many(t: &Harness, topic: &str, count: u32, payload: &str, created_at: &str) {
    let sql = format!(
        "insert into outbox.events (topic, key, payload, created_at) \
         select '{topic}', 'k' || n, {payload}, {created_at} from generate_series(1, {count}) n"
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

async fn many_are_refused(
    settings: &[(&str, &str)],
    payload: &str,
    created_at: &str,
    reason: &str,
) {
    const MANY: u32 = 5_000;
    let mut t = Harness::start().await;
    let bad = t.topic("bad").create_with(4, settings).await;
    let good = t.topic("good").create(1).await;
    let _relay = t.relay().start().await;
    t.commit([Event::to(good.name()).key("first")]).await;
    arrives(&good, 1, Instant::now()).await;

    insert_many(&t, bad.name(), MANY, payload, created_at).await;
    let begun = Instant::now();
    t.commit([Event::to(good.name()).key("behind")]).await;
    let took = arrives(&good, 2, begun).await;
    assert_eq!(wait_parked(&t, |parked| parked == i64::from(MANY)).await, i64::from(MANY));
    let most = OTHERS_WAIT + Duration::from_secs_f64(f64::from(MANY) / PARKED_PER_SECOND);
    assert!(took < most, "the event behind {MANY} refused ones took {took:?}");
    let reasons = "select distinct reason from outbox.dead_letters";
    let rows = t.database().superuser().query(reasons, &[]).await.expect("reasons");
    let reasons: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(reasons, [reason]);
    assert_eq!(bad.records().await.len(), 0);
}

#[tokio::test]
async fn thousands_too_large_are_parked_at_once_and_what_is_behind_them_flows() {
    let small = [("max.message.bytes", "500")];
    let payload = "to_jsonb(repeat(md5(n::text), 20))";
    many_are_refused(&small, payload, "clock_timestamp()", "too_large").await;
}

#[tokio::test]
async fn thousands_beyond_the_topics_bounds_of_time_are_parked_at_once() {
    let bounds = [("message.timestamp.before.max.ms", "3600000")];
    let created_at = "clock_timestamp() - interval '3 hours'";
    many_are_refused(&bounds, "'1'", created_at, "invalid_timestamp").await;
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
    t.commit([Event::to(good.name()).key("first")]).await;
    arrives(&good, 1, Instant::now()).await;

    let begun = Instant::now();
    let sql = format!(
        "insert into outbox.events (topic, key) select '{}.' || n, 'k' from \
         generate_series(1, {MANY}) n",
        missing.name()
    );
    t.database().superuser().batch_execute(&sql).await.expect("inserted");
    t.commit([Event::to(good.name()).key("behind")]).await;
    let took = arrives(&good, 2, begun).await;
    assert!(took < 2 * OTHERS_WAIT, "others waited {took:?} for {MANY} missing topics");
    wait_parked(&t, |parked| parked == i64::from(MANY)).await;
    relay.wait_for("/readyz", 200).await;
    assert!(!missing.exists().await, "looked up, never produced to");
}

#[tokio::test]
async fn what_waits_for_its_topic_is_released_in_order_when_the_topic_appears() {
    let mut t = Harness::start().await;
    let topic = t.topic("late");
    let mut relay = t.relay().set("sink.topic_grace", "60s").start().await;
    let name = topic.name().to_owned();
    let event = |key: &str| Event::to(&name).key(key);
    t.commit([event("a"), event("b"), event("a")]).await;
    wait_parked(&t, |parked| parked == 3).await;
    t.commit([event("a"), event("c")]).await;
    wait_parked(&t, |parked| parked == 5).await;
    let topic = topic.create(2).await;
    t.commit([event("a")]).await;
    t.count(&topic, 2).await.assert_exactly_once();
    wait_parked(&t, |parked| parked == 0).await;
    relay.wait_for("/readyz", 200).await;
}

#[tokio::test]
async fn a_topic_that_appears_after_its_grace_is_released_by_a_person() {
    let mut t = Harness::start().await;
    let topic = t.topic("late");
    let _relay = t.relay().set("sink.topic_grace", "100ms").start().await;
    t.commit([Event::to(topic.name()).key("a")]).await;
    wait_parked(&t, |parked| parked == 1).await;
    let past = "select parked_at < clock_timestamp() - interval '1 s' from outbox.dead_letters";
    wait::until("the grace is over", wait::PATIENCE, || async {
        let row = t.database().superuser().query_one(past, &[]).await.map_err(|e| e.to_string())?;
        if row.get(0) { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await
    .expect("time passes");
    let topic = topic.create(1).await;
    t.commit([Event::to(topic.name()).key("b"), Event::to(topic.name()).key("a")]).await;
    wait_parked(&t, |parked| parked == 2).await;
    arrives(&topic, 1, Instant::now()).await;
    assert_eq!(texts(&list(&t).await, "reason"), ["unknown_topic", "lane_parked"]);
}

/// Nobody knows beforehand what compression makes of a record: the broker is asked.
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
    for record in topic.records().await {
        let payload = record.payload.as_deref().unwrap_or_default();
        assert!(payload.starts_with(b"\"xxxx"), "only what compresses well is there");
    }
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
async fn behind(t: &mut Harness, good: &Topic, wanted: usize, sql: &str) -> Duration {
    t.database().superuser().batch_execute(sql).await.expect("inserted");
    let begun = Instant::now();
    t.commit([Event::to(good.name()).key("behind")]).await;
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
    let known = behind(&mut t, &good, 2, &sql("old", "3 hours")).await;
    wait_parked(&t, |parked| parked == i64::from(MANY)).await;
    let discarded = "update outbox.dead_letters set state = 'discarded'";
    t.database().superuser().batch_execute(discarded).await.expect("out of the way");
    let asked = behind(&mut t, &good, 3, &sql("new", "0")).await;
    assert!(asked < known + OTHERS_WAIT, "{asked:?} where the broker is asked, {known:?} if not");

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
