//! The broker is killed while the relay is at a point of a delivery; and the relay is killed with it, or is not.
//!
//! A broker of the test's own, of one node: what it has confirmed is on its disk, or in the memory of a system that
//! lives on. So nothing may be lost; what was under way may be there or not.

use std::time::Duration;

use outbox_harness::{
    Harness, check,
    host::report,
    kafka::Kafka,
    load::{Load, Plan},
    local_kafka::LocalKafka,
    nats::Nats,
    rabbit::Rabbit,
    relay::Settings,
    topic::Topic,
    wait,
};
use outbox_relay::fault::Point;
use serde_json::json;

use super::{Delivery, PARTITIONS, place::Place, story::Way, way};

/// Those of a delivery.
const POINTS: [Point; 11] = [
    Point::BatchGiven,
    Point::TransactionBegun,
    Point::RecordsProduced,
    Point::RecordsStored,
    Point::ProgressProduced,
    Point::CommitUnderWay,
    Point::Committed,
    Point::ProgressInTable,
    Point::Delivered,
    Point::Confirmable,
    Point::StatusSent,
];
/// Of a writer's transactions.
const INTERVAL: Duration = Duration::from_millis(25);

/// What else is killed with the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum With {
    Relay,
    Nothing,
}

/// One that may be killed.
enum Broker {
    Kafka(&'static Kafka, LocalKafka),
    Nats(Nats),
    Rabbit(Rabbit),
}

impl Broker {
    async fn start(delivery: Delivery) -> Self {
        match delivery {
            Delivery::Nats => Broker::Nats(Nats::start().expect("a server")),
            Delivery::Rabbit => {
                let broker = Rabbit::start().expect("a broker");
                broker.wait_ready().await;
                Broker::Rabbit(broker)
            }
            _ => {
                let (kafka, process) = Kafka::start_private(&[]).await;
                Broker::Kafka(kafka, process)
            }
        }
    }

    async fn place(&self, name: &str) -> Place {
        match self {
            Broker::Kafka(kafka, _) => {
                Place::Kafka(Topic::new(kafka, name.to_owned()).create(PARTITIONS).await)
            }
            Broker::Nats(server) => {
                let subjects = [format!("{name}.*"), format!("outbox-relay-progress.{name}")];
                let subjects = subjects.each_ref().map(String::as_str);
                Place::Nats(server.stream(name, &subjects, &json!({})).await)
            }
            Broker::Rabbit(broker) => {
                let exchange = broker.exchange(name, PARTITIONS).await;
                broker.store_queues();
                Place::Rabbit(exchange)
            }
        }
    }

    fn settings(&self, place: &Place, delivery: Delivery, base: Settings) -> Settings {
        match self {
            Broker::Kafka(kafka, _) => base
                .set("sink.properties.\"bootstrap.servers\"", kafka.brokers())
                .set("sink.delivery", delivery.setting()),
            Broker::Nats(_) | Broker::Rabbit(_) => place.settings(base),
        }
    }

    fn kill9(&mut self) {
        match self {
            Broker::Kafka(_, process) => process.kill9(),
            Broker::Nats(server) => server.kill9(),
            Broker::Rabbit(broker) => broker.kill9(),
        }
    }

    fn restart(&mut self) {
        match self {
            Broker::Kafka(_, process) => process.restart(),
            Broker::Nats(server) => server.restart(),
            Broker::Rabbit(broker) => broker.restart(),
        }
    }
}

/// Until a reader may ask it again.
async fn answers(broker: &Broker, place: &Place) {
    if let Place::Kafka(topic) = place {
        topic.is_served().await;
    }
    if let Broker::Rabbit(broker) = broker {
        broker.wait_ready().await;
    }
}

async fn more_arrives(place: &Place) {
    let before = place.records().await.len();
    let more = wait::until("more arrives", wait::PATIENCE, || async {
        match place.records().await.len() {
            now if now > before => Ok(()),
            now => Err(format!("{now} records")),
        }
    });
    more.await.expect("the relay continues");
}

async fn live(broker: &mut Broker, delivery: Delivery, (point, passing): (&str, u64), with: With) {
    let t = Harness::start().await;
    let place = broker.place(t.database().name()).await;
    let plan = Plan {
        topic: place.topic().to_owned(),
        partitions: PARTITIONS,
        writers: 2,
        transactions: u64::MAX,
    };
    let load = Load::paced(t.database(), &plan, INTERVAL).await;
    let settings = broker.settings(&place, delivery, t.relay());
    let mut relay = settings.fault(&format!("{point}:{passing}:freeze")).spawn();
    relay.wait_log(&format!("fault: {point}")).await;
    broker.kill9();
    match with {
        With::Relay => relay.kill9().await,
        With::Nothing => relay.thaw(),
    }
    broker.restart();
    if with == With::Relay {
        relay.restart_with(None);
    }
    answers(broker, &place).await;
    more_arrives(&place).await;
    relay.wait_ready().await;
    load.stop().await;
    let truth = t.committed().await;
    let count = wait::until("all arrive", wait::PATIENCE, || async {
        match check::compare(&truth, &place.records().await, PARTITIONS) {
            count if count.lost == 0 => Ok(count),
            count => Err(count.to_string()),
        }
    });
    let count = count.await.expect("they do");
    match delivery {
        Delivery::ExactlyOnce | Delivery::Nats => count.assert_exactly_once(),
        _ => count.assert_at_least_once(),
    }
}

async fn at(points: &[Point], delivery: Delivery) {
    let mut broker = Broker::start(delivery).await;
    for point in points {
        let Some(Way::Running(passings)) = way(*point, delivery) else { continue };
        let passing = *passings.last().expect("a passing");
        for with in [With::Relay, With::Nothing] {
            report(&format!("{} of {delivery:?}, killed with the broker: {with:?}", point.name()));
            live(&mut broker, delivery, (point.name(), passing), with).await;
        }
    }
}

#[tokio::test]
async fn to_nats_exactly_once_holds_where_relay_and_server_are_killed_while_a_batch_is_stored() {
    at(&[Point::CommitUnderWay], Delivery::Nats).await;
}

#[tokio::test]
#[ignore = "minutes: `just long` runs it"]
async fn exactly_once_holds_where_the_broker_is_killed_at_any_point_with_the_relay_or_without() {
    at(&POINTS, Delivery::ExactlyOnce).await;
}

#[tokio::test]
#[ignore = "as above: `just long` runs it"]
async fn at_least_once_holds_where_the_broker_is_killed_at_any_point_with_the_relay_or_without() {
    at(&POINTS, Delivery::AtLeastOnce).await;
}

#[tokio::test]
#[ignore = "as above: `just long` runs it"]
async fn to_nats_exactly_once_holds_where_the_server_is_killed_at_any_point() {
    at(&POINTS, Delivery::Nats).await;
}

#[tokio::test]
#[ignore = "as above: `just long` runs it"]
async fn to_rabbitmq_at_least_once_holds_where_the_broker_is_killed_at_any_point() {
    at(&POINTS, Delivery::Rabbit).await;
}
