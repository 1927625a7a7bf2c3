//! A relay that publishes to SQS and SNS, or to what speaks as they do: ElasticMQ, moto, and a scripted server in front of
//! ElasticMQ for what neither can be made to say. None of them is AWS.

mod secure;
mod sns;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::{Duration, Instant},
};

use outbox_harness::{
    Harness,
    aws::{Queue, Toll, Verdict, credentials},
    check::{self, Count},
    event::Event,
    load::{Load, Plan},
    relay::Settings,
    servers, wait,
};

use crate::{
    contract::aws::to_sqs,
    dead_letters::{dead_letters, wait_parked},
};

const PARTITIONS: i32 = 4;
/// A secret of `credentials`.
const SECRET: &str = "se-cret";

struct World {
    t: Harness,
    queue: Queue,
    credentials: PathBuf,
}

impl World {
    async fn new(suffix: &str) -> Self {
        let (t, server) = (Harness::start().await, servers::elasticmq().await);
        let queue =
            server.queue(&format!("{}-orders{suffix}", t.database().name()), PARTITIONS).await;
        let credentials = credentials(t.dir());
        World { t, queue, credentials }
    }

    fn relay(&self) -> Settings {
        self.relay_at(&self.queue.endpoint())
    }

    fn relay_at(&self, endpoint: &str) -> Settings {
        to_sqs(endpoint, &self.credentials, self.t.relay())
    }

    /// A dot of a topic is a dash of the queue's name.
    fn topic(&self) -> String {
        format!("{}.orders", self.t.database().name())
    }

    async fn all_arrive(&self) -> Count {
        all_arrive(&self.t, &self.queue).await
    }
}

/// Waits until all that is committed was in a queue, and counts.
async fn all_arrive(t: &Harness, queue: &Queue) -> Count {
    // The queue knows nothing of a topic but its own name.
    let mut committed = t.committed().await;
    committed.iter_mut().for_each(|row| row.topic = row.topic.replace('.', "-"));
    let arrived = wait::until("all arrive", wait::PATIENCE, || async {
        match check::compare(&committed, &queue.records().await, PARTITIONS) {
            count if count.lost == 0 => Ok(count),
            count => Err(count.to_string()),
        }
    });
    arrived.await.expect("they do")
}

async fn ids_arrive(queue: &Queue, wanted: usize) {
    let arrived = wait::until("they arrive", wait::PATIENCE, || async {
        let records = queue.records().await;
        let ids: BTreeSet<_> = records.iter().filter_map(|it| it.id()).collect();
        if ids.len() == wanted { Ok(()) } else { Err(format!("{} of {wanted}", ids.len())) }
    });
    arrived.await.expect("they do");
}

/// The reason and the error of the one event that is to blame.
async fn to_blame(t: &Harness) -> (String, String) {
    let told = "select reason, error from outbox.dead_letters where reason <> 'lane_parked'";
    let told = t.database().superuser().query(told, &[]).await.expect("the parked ones");
    let first = told.first().expect("one is parked");
    (first.get(0), first.get(1))
}

#[tokio::test]
async fn events_are_in_a_fifo_queue_once_and_in_order_while_the_relay_is_killed() {
    let world = World::new(".fifo").await;
    let plan =
        Plan { topic: world.topic(), partitions: PARTITIONS, writers: 3, transactions: u64::MAX };
    let mut relay = world.relay().start().await;
    let load = Load::paced(world.t.database(), &plan, Duration::from_millis(25)).await;
    for _ in 0..4 {
        let before = world.queue.records().await.len();
        wait::until("more arrives", wait::PATIENCE, || async {
            match world.queue.records().await.len() {
                now if now > before + 50 => Ok(()),
                now => Err(format!("{now} records")),
            }
        })
        .await
        .expect("the relay continues");
        relay.kill9().await;
        relay.restart();
    }
    load.stop().await;
    // What is sent again within five minutes is dropped there.
    world.all_arrive().await.assert_exactly_once();
}

#[tokio::test]
async fn events_are_in_a_standard_queue_while_the_relay_is_killed() {
    let mut world = World::new("").await;
    let settings = world.relay().set("sink.sqs.queue", "{topic}");
    let topic = world.topic();
    world.t.commit((0..500).map(|n| Event::to(&topic).key(&format!("{}", n % 7)))).await;
    let mut relay = settings.fault("records-stored:1").spawn();
    relay.wait_end(wait::PATIENCE).await;
    let relay = world.relay().set("sink.sqs.queue", "{topic}").start().await;
    let count = world.all_arrive().await;
    assert!(count.lost == 0 && count.duplicated > 0, "the crash repeats: {count}");
    drop(relay);
}

#[tokio::test]
async fn a_part_of_a_request_that_fails_is_sent_again_before_what_follows_it_in_its_key() {
    let mut world = World::new(".fifo").await;
    // Of each request the first message fails, for three requests of four.
    let mut requests = 0_u32;
    let toll = Toll::before(&servers::elasticmq().await.address(), move |bodies| {
        requests += 1;
        match bodies.first() {
            Some(first) if !requests.is_multiple_of(4) => Verdict::Fail(vec![first.clone()], false),
            _ => Verdict::Pass,
        }
    })
    .await;
    let topic = world.topic();
    let events = (0..400).map(|n| {
        Event::to(&topic).key(&format!("key {}", n % 23)).payload(serde_json::json!({ "n": n }))
    });
    world.t.commit(events).await;
    let relay = world.relay_at(&toll.endpoint()).set_toml("sink.sqs.requests_in_flight", "4");
    let _relay = relay.spawn();
    world.all_arrive().await.assert_exactly_once();
}

#[tokio::test]
async fn a_service_that_throttles_is_named_holds_events_back_and_takes_all_afterwards() {
    const THROTTLES: Duration = Duration::from_secs(6);
    let mut world = World::new(".fifo").await;
    let begun = Instant::now();
    let toll = Toll::before(&servers::elasticmq().await.address(), move |_| {
        if begun.elapsed() < THROTTLES { Verdict::Throttle } else { Verdict::Pass }
    })
    .await;
    let topic = world.topic();
    world.t.commit((0..300).map(|n| Event::to(&topic).key(&format!("{}", n % 40)))).await;
    let mut relay = world.relay_at(&toll.endpoint()).spawn();
    relay.wait_log("SQS throttles the relay").await;
    world.all_arrive().await.assert_exactly_once();
    assert!(begun.elapsed() > THROTTLES);
    assert!(relay.logs_contain("RequestThrottled"), "{}", relay.log_text());
    relay.wait_ready().await;
}

#[tokio::test]
async fn an_event_that_the_service_refuses_is_parked_with_its_lane_and_holds_no_other() {
    let mut world = World::new(".fifo").await;
    let toll = Toll::before(&servers::elasticmq().await.address(), |bodies| {
        let odd = bodies.iter().filter(|body| body.contains("poison")).cloned().collect::<Vec<_>>();
        if odd.is_empty() { Verdict::Pass } else { Verdict::Fail(odd, true) }
    })
    .await;
    let topic = world.topic();
    let event = |key: &str, text: &str| {
        Event::to(&topic).key(key).payload(serde_json::Value::String(text.into()))
    };
    world
        .t
        .commit([
            event("a", "1"),
            event("b", "2"),
            event("a", "poison"),
            event("a", "3"),
            event("b", "4"),
        ])
        .await;
    let relay = world.relay_at(&toll.endpoint()).start().await;
    wait_parked(&world.t, |parked| parked == 2).await;
    let (reason, error) = to_blame(&world.t).await;
    assert!(reason == "invalid_record" && error.contains("InvalidMessageContents"), "{error}");
    ids_arrive(&world.queue, 3).await;
    drop((relay, toll));
    let _relay = world.relay().start().await;
    dead_letters(&world.t, &["release", "--topic", &topic]).await;
    world.all_arrive().await.assert_exactly_once();
}

#[tokio::test]
async fn a_right_that_is_missing_parks_its_topic_and_an_unknown_key_parks_nothing() {
    let mut world = World::new(".fifo").await;
    let mut asked = 0;
    let toll = Toll::before(&servers::elasticmq().await.address(), move |_| {
        asked += 1;
        match asked {
            1 => Verdict::Refuse("InvalidClientTokenId", "The security token is invalid."),
            _ => Verdict::Refuse("AccessDeniedException", "User: x is not authorized"),
        }
    })
    .await;
    let topic = world.topic();
    world.t.commit([Event::to(&topic).key("a")]).await;
    let relay = world.relay_at(&toll.endpoint()).spawn();
    relay.wait_log("does not accept the relay's credentials").await;
    wait_parked(&world.t, |parked| parked == 1).await;
    let (reason, error) = to_blame(&world.t).await;
    assert!(reason == "not_authorised" && error.contains("docs/AWS.md"), "{reason}: {error}");
    assert!(!relay.logs_contain(SECRET) && !relay.logs_contain("AKIATEST"));
}

#[tokio::test]
async fn events_for_a_queue_that_is_missing_wait_and_are_delivered_once_there_is_one() {
    let mut world = World::new(".fifo").await;
    let name = format!("{}.late", world.t.database().name());
    let relay = world.relay().set("sink.topic_grace", "60s").start().await;
    let topic = world.topic();
    world
        .t
        .commit([Event::to(&name).key("a"), Event::to(&topic).key("a"), Event::to(&name).key("a")])
        .await;
    wait_parked(&world.t, |parked| parked == 2).await;
    assert_eq!(to_blame(&world.t).await.0, "unknown_topic");
    ids_arrive(&world.queue, 1).await;
    let late = format!("{}-late.fifo", world.t.database().name());
    let late = servers::elasticmq().await.queue(&late, PARTITIONS).await;
    ids_arrive(&late, 2).await;
    relay.wait_log("missing topics have appeared").await;
}

#[tokio::test]
async fn more_headers_than_a_message_has_attributes_arrive() {
    let mut world = World::new(".fifo").await;
    let topic = world.topic();
    let headers: BTreeMap<String, String> =
        (0..25).map(|n| (format!("header {n}"), n.to_string())).collect();
    let mut event = Event::to(&topic).key("a key");
    for (name, value) in &headers {
        event = event.header(name, value);
    }
    world.t.commit([event]).await;
    let _relay = world.relay().start().await;
    world.all_arrive().await.assert_exactly_once();
    let records = world.queue.records().await;
    let found = records.first().expect("it is there");
    for (name, value) in &headers {
        assert_eq!(found.header(name), Some(value.as_str()), "{name}");
    }
}
