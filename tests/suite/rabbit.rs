//! A relay that publishes to RabbitMQ: nothing is lost and no lane out of order, whatever is killed; what no queue
//! takes, and what the broker refuses, is parked, and holds no other lane.

mod login;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use amqprs::FieldValue;
use outbox_harness::{
    Harness,
    certificates::{Authority, write_private},
    check::{self, Count},
    event::Event,
    host,
    load::{Load, Plan},
    murmur2,
    rabbit::{Exchange, Rabbit},
    relay::Settings,
    servers,
    topic::Record,
    wait,
};

use crate::{
    checks, connect,
    dead_letters::{dead_letters, wait_parked},
    obeyed::says,
};

const PARTITIONS: i32 = 4;

fn topic(t: &Harness) -> String {
    format!("{}.orders", t.database().name())
}

fn to(broker: &Rabbit, base: Settings) -> Settings {
    base.to("rabbitmq")
        .set("sink.rabbitmq.url", &broker.url())
        .set_toml("sink.rabbitmq.partitions", &PARTITIONS.to_string())
}

/// Waits until all that is committed was in a queue, and counts. Where some is missing, tells what is known of it.
async fn all_arrive(t: &Harness, broker: &Rabbit, exchange: &Exchange) -> Count {
    let committed = t.committed().await;
    let arrived = wait::until("all arrive", wait::PATIENCE, || async {
        let records = exchange.records().await;
        match check::compare(&committed, &records, PARTITIONS) {
            count if count.lost == 0 => Ok(count),
            count => Err(count.to_string()),
        }
    });
    match arrived.await {
        Ok(count) => count,
        Err(error) => {
            let missing = check::missing(&committed, &exchange.records().await, PARTITIONS);
            panic!("{error:#}\n{}\n{}", missing.join("\n"), broker.queues());
        }
    }
}

/// Waits until so many events were in a queue, however often.
async fn ids_arrive(exchange: &Exchange, wanted: usize) {
    let ids = |records: Vec<Record>| {
        let ids = records.iter().filter_map(|it| it.id().map(str::to_owned));
        ids.collect::<BTreeSet<_>>().len()
    };
    let arrived = wait::until("they arrive", wait::PATIENCE, || async {
        match ids(exchange.records().await) {
            found if found == wanted => Ok(()),
            found => Err(format!("{found} events of {wanted}")),
        }
    });
    arrived.await.expect("they do");
}

/// A key that belongs to a partition.
fn key_of(partition: i32, number: usize) -> String {
    let keys = (0..1_000).map(|n| format!("key {n}"));
    let mut keys = keys.filter(|key| murmur2::partition(key.as_bytes(), PARTITIONS) == partition);
    keys.nth(number).expect("there are enough")
}

/// The reason and the error of the one event that is to blame.
async fn to_blame(t: &Harness) -> (String, String) {
    let told = "select reason, error from outbox.dead_letters where reason <> 'lane_parked'";
    let told = t.database().superuser().query(told, &[]).await.expect("the parked ones");
    let first = told.first().expect("one is parked");
    (first.get(0), first.get(1))
}

#[tokio::test]
async fn events_are_there_and_in_order_while_relay_and_broker_are_killed() {
    let mut broker = Rabbit::start().expect("a broker of its own");
    let t = Harness::start().await;
    let exchange = broker.exchange(&topic(&t), PARTITIONS).await;
    broker.store_queues();
    let plan =
        Plan { topic: topic(&t), partitions: PARTITIONS, writers: 3, transactions: u64::MAX };
    let mut relay = to(&broker, t.relay()).start().await;
    let load = Load::paced(t.database(), &plan, Duration::from_millis(25)).await;
    for round in 0..6 {
        let before = exchange.records().await.len();
        wait::until("more arrives", wait::PATIENCE, || async {
            match exchange.records().await.len() {
                now if now > before => Ok(()),
                now => Err(format!("{now} records")),
            }
        })
        .await
        .expect("the relay continues");
        if round % 3 == 1 {
            broker.kill9();
            broker.restart();
            broker.wait_ready().await;
        } else {
            relay.kill9().await;
            relay.restart();
        }
    }
    load.stop().await;
    all_arrive(&t, &broker, &exchange).await.assert_at_least_once();
}

#[tokio::test]
async fn what_no_queue_takes_waits_with_its_lane_and_is_delivered_once_one_does() {
    let mut t = Harness::start().await;
    let broker = servers::rabbit().await;
    let exchange = broker.exchange(&topic(&t), PARTITIONS).await;
    exchange.unbind(1).await;
    let relay = to(broker, t.relay()).set("sink.topic_grace", "60s").start().await;
    let topic = topic(&t);
    let event = |partition, number| Event::to(&topic).key(&key_of(partition, number));
    t.commit([event(1, 0), event(2, 0), event(1, 0), event(1, 1), event(2, 0)]).await;
    wait_parked(&t, |parked| parked == 3).await;
    let (reason, error) = to_blame(&t).await;
    assert!(reason == "unknown_topic" && error.contains("312 NO_ROUTE"), "{reason}: {error}");
    ids_arrive(&exchange, 2).await;
    exchange.bind(1).await;
    all_arrive(&t, broker, &exchange).await.assert_exactly_once();
    relay.wait_log("missing topics have appeared").await;
}

/// The broker confirms what it sends back, too, and often many messages at once.
#[tokio::test]
async fn of_thousands_under_way_just_those_are_parked_that_came_back() {
    let mut t = Harness::start().await;
    let broker = servers::rabbit().await;
    let exchange = broker.exchange(&topic(&t), PARTITIONS).await;
    exchange.unbind(3).await;
    let topic = topic(&t);
    let events = (0..3_600).map(|n| Event::to(&topic).key(&format!("key {}", n % 1_200)));
    t.commit(events).await;
    let committed = t.committed().await;
    let (returned, stored): (Vec<_>, Vec<_>) = committed.into_iter().partition(|row| {
        let key = row.key.as_deref().unwrap_or_default();
        murmur2::partition(key.as_bytes(), PARTITIONS) == 3
    });
    assert!(returned.len() > 600 && stored.len() > 1_800);
    let _relay = to(broker, t.relay()).start().await;
    wait_parked(&t, |parked| usize::try_from(parked).is_ok_and(|it| it == returned.len())).await;
    ids_arrive(&exchange, stored.len()).await;
    check::compare(&stored, &exchange.records().await, PARTITIONS).assert_exactly_once();
    let sql = "select event_id from outbox.dead_letters where state = 'parked'";
    let parked = t.database().superuser().query(sql, &[]).await.expect("the parked ones");
    let parked: BTreeSet<String> = parked.iter().map(|row| row.get(0)).collect();
    assert_eq!(parked, returned.iter().map(|row| row.id.clone()).collect());
}

#[tokio::test]
async fn a_topic_that_the_user_may_not_write_to_is_parked_and_holds_no_other() {
    let mut t = Harness::start().await;
    let (broker, name) = (servers::rabbit().await, t.database().name().to_owned());
    let exchange = broker.exchange(&topic(&t), PARTITIONS).await;
    let barred = broker.exchange(&format!("{name}.barred"), PARTITIONS).await;
    broker.control(&["add_user", &name, "se@cret"]);
    broker.control(&["set_permissions", &name, "^$", &format!("^{name}[.]orders$"), "^$"]);
    let url = format!("amqp://{name}:se%40cret@{}", broker.address());
    let relay = to(broker, t.relay()).set("sink.rabbitmq.url", &url).start().await;
    let events = (0..20).map(|n| {
        let to = if n == 7 { &barred } else { &exchange };
        Event::to(to.name()).key(&(n % 3).to_string())
    });
    t.commit(events).await;
    wait_parked(&t, |parked| parked == 1).await;
    let (reason, error) = to_blame(&t).await;
    assert!(reason == "not_authorised" && error.contains("set_permissions"), "{reason}: {error}");
    ids_arrive(&exchange, 19).await;
    assert!(!relay.logs_contain("se@cret") && !relay.logs_contain("se%40cret"));
    broker.control(&["set_permissions", &name, "^$", ".*", "^$"]);
    dead_letters(&t, &["release", "--reason", "not_authorised"]).await;
    ids_arrive(&barred, 1).await;
}

/// Where rights are looked at, the default exchange has a name that it has nowhere else.
#[tokio::test]
async fn events_for_the_default_exchange_are_parked_without_the_right_to_it() {
    let mut t = Harness::start().await;
    let (broker, name) = (servers::rabbit().await, t.database().name().to_owned());
    let exchange = broker.exchange(&topic(&t), PARTITIONS).await;
    let queue = format!("{}.0", topic(&t));
    broker.control(&["add_user", &name, "secret"]);
    broker.control(&["set_permissions", &name, "^$", &format!("^{name}[.]orders"), "^$"]);
    let url = format!("amqp://{name}:secret@{}", broker.address());
    let _relay = to(broker, t.relay())
        .set("sink.rabbitmq.url", &url)
        .set("sink.rabbitmq.exchange", "")
        .set("sink.rabbitmq.routing_key", "{topic}")
        .start()
        .await;
    t.commit((0..5).map(|n| Event::to(&queue).key(&n.to_string()))).await;
    wait_parked(&t, |parked| parked == 5).await;
    let (reason, error) = to_blame(&t).await;
    assert!(reason == "not_authorised" && error.contains("amq.default"), "{reason}: {error}");
    broker.control(&["set_permissions", &name, "^$", r"^amq\.default$", "^$"]);
    dead_letters(&t, &["release", "--reason", "not_authorised"]).await;
    ids_arrive(&exchange, 5).await;
}

/// A queue that is full refuses one message and takes the next, whichever it is.
#[tokio::test]
async fn a_queue_that_rejects_when_it_is_full_loses_nothing_and_keeps_each_lane_in_order() {
    let mut t = Harness::start().await;
    let full =
        [("x-max-length", FieldValue::I(20)), ("x-overflow", FieldValue::from("reject-publish"))];
    let broker = servers::rabbit().await;
    let exchange = broker.exchange_with(&topic(&t), PARTITIONS, &full).await;
    let topic = topic(&t);
    t.commit((0..2_000).map(|n| Event::to(&topic).key(&format!("key {}", n % 9)))).await;
    // It is not ready before someone has made room.
    let _relay = to(broker, t.relay()).spawn();
    let committed = t.committed().await;
    let begun = Instant::now();
    let count = loop {
        // Whoever reads makes room, while messages are under way.
        let count = check::compare(&committed, &exchange.records().await, PARTITIONS);
        assert!(begun.elapsed() < wait::PATIENCE, "{count}");
        if count.lost == 0 {
            break count;
        }
    };
    count.assert_at_least_once();
}

#[tokio::test]
async fn tls_a_size_a_login_and_a_file_that_can_not_be_used_are_named_and_all_arrives() {
    let mut t = Harness::start().await;
    let authority = Authority::new("an authority");
    let identity = authority.issue("rabbit", &["localhost", "127.0.0.1"]);
    let dir = t.dir().to_owned();
    let file = |name: &str, text: &str| {
        let path = dir.join(name);
        write_private(&path, text);
        path.to_str().expect("UTF-8").to_owned()
    };
    let trusted = file("trusted.pem", &authority.certificate());
    let port = host::free_port();
    let broker = Rabbit::start_with(&format!(
        "listeners.ssl.1 = 127.0.0.1:{port}\nssl_options.cacertfile = {trusted}\n\
         ssl_options.certfile = {}\nssl_options.keyfile = {}\nmax_message_size = 65536\n",
        file("broker.pem", &identity.certificate),
        file("broker.key", &identity.key)
    ))
    .expect("a broker of its own");
    let exchange = broker.exchange(&topic(&t), PARTITIONS).await;
    let url = format!("amqps://127.0.0.1:{port}");
    let settings = to(&broker, t.relay()).set("sink.rabbitmq.url", &url);
    let problem = async |settings: &Settings, words: &[&str]| {
        let findings = checks::check(settings).await;
        let told = findings.iter().find(|it| it.verdict == "problem" && it.name == "RabbitMQ");
        let told = told.unwrap_or_else(|| panic!("no problem in {findings:#?}"));
        let text = format!("{} {}", told.seen, told.remedy);
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    };
    problem(&settings, &["certificate"]).await;
    let stranger = file("stranger.pem", &Authority::new("a stranger").certificate());
    problem(&settings.clone().set("sink.rabbitmq.ca_file", &stranger), &["certificate"]).await;
    let ca = file("ca.pem", &authority.certificate());
    let settings = settings.set("sink.rabbitmq.ca_file", &ca);
    let wrong = format!("amqps://guest:wrong@127.0.0.1:{port}");
    let login = settings.clone().set("sink.rabbitmq.url", &wrong);
    problem(&login, &["check user, password and virtual host"]).await;
    let mut relay = settings.start().await;
    let topic = topic(&t);
    let sized = |key: &str, bytes: usize| {
        let payload = serde_json::Value::String("x".repeat(bytes));
        Event::to(&topic).key(key).payload(payload)
    };
    t.commit([sized("a", 10), sized("b", 100_000), sized("b", 10), sized("c", 10)]).await;
    wait_parked(&t, |parked| parked == 2).await;
    let (reason, error) = to_blame(&t).await;
    assert!(reason == "too_large" && error.contains("max_message_size"), "{reason}: {error}");
    ids_arrive(&exchange, 2).await;

    // As where a mounted secret is replaced.
    let away = dir.join("away.pem");
    std::fs::rename(&ca, &away).expect("moved");
    connect::cut(&t).await;
    t.commit([sized("a", 10), sized("c", 10)]).await;
    let detail = says(&relay, "sink.rabbitmq.ca_file: ").await;
    assert!(detail.contains("name a readable file in PEM"), "{detail}");
    std::fs::rename(&away, &ca).expect("moved");
    relay.wait_ready().await;
    ids_arrive(&exchange, 4).await;
}

#[tokio::test]
async fn a_missing_exchange_is_made_where_that_is_set() {
    let mut t = Harness::start().await;
    let broker = servers::rabbit().await;
    let settings = to(broker, t.relay()).set_toml("sink.rabbitmq.declare", "true");
    let relay = settings.start().await;
    let topic = topic(&t);
    t.commit((0..30).map(|n| Event::to(&topic).key(&format!("{}", n % 7)))).await;
    relay.wait_log("made an exchange and its queues").await;
    all_arrive(&t, broker, &broker.existing(&topic, PARTITIONS)).await.assert_exactly_once();
}

/// A broker that crashes forgets what a quorum queue had confirmed that it made less than a second before.
#[tokio::test]
async fn what_is_delivered_to_queues_that_the_relay_made_outlives_the_broker() {
    let mut broker = Rabbit::start().expect("a broker of its own");
    let mut t = Harness::start().await;
    broker.wait_ready().await;
    let relay = to(&broker, t.relay()).set_toml("sink.rabbitmq.declare", "true").start().await;
    let topic = topic(&t);
    t.commit((0..40).map(|n| Event::to(&topic).key(&format!("key {n}")))).await;
    wait::until("all is delivered", wait::PATIENCE, || async {
        let metrics = relay.page("/metrics").await;
        let delivered = metrics.lines().find(|it| it.starts_with("outbox_relay_records_delivered"));
        match delivered {
            Some(line) if line.ends_with(" 40") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
    .expect("it delivers");
    broker.kill9();
    broker.restart();
    broker.wait_ready().await;
    all_arrive(&t, &broker, &broker.existing(&topic, PARTITIONS)).await.assert_exactly_once();
}
