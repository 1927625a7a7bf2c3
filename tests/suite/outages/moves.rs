//! Partitions move from broker to broker while the relay streams, and no broker is away.

use outbox_harness::{Harness, kafka::Kafka, relay::Settings, servers};

use super::day::{Day, PARTITIONS};
use crate::dead_letters::count_parked;

/// How often everything moves, from one of three brokers to the next.
const ROUNDS: usize = 2;

/// Writers at work, a topic without replicas that its leaders could leave it to.
async fn begin(t: Harness, settings: Settings) -> Day {
    let topic = t.topic("orders").create(PARTITIONS).await;
    Day::begin_with(t, topic, settings).await
}

/// The topics of both relays move together with their progress topics and with what coordinates transactions.
#[tokio::test]
async fn partitions_that_move_to_other_brokers_lose_repeat_and_park_nothing() {
    let (postgres, (kafka, _brokers)) = tokio::join!(servers::postgres(), Kafka::start_cluster());
    let (exactly, at_least) =
        tokio::join!(Harness::with(postgres, kafka), Harness::with(postgres, kafka));
    let settings = [exactly.relay(), at_least.relay().set("sink.delivery", "at-least-once")];
    let [first, second] = settings;
    let days: [Day; 2] = tokio::join!(begin(exactly, first), begin(at_least, second)).into();
    let mut topics = vec!["__transaction_state".to_owned()];
    for day in &days {
        topics.push(day.topic.name().to_owned());
        topics.push(format!("outbox-relay-progress-{}", day.t.database().name()));
    }
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    for _ in 0..ROUNDS {
        kafka.move_leaders(&topics).await;
        for day in &days {
            day.flows().await;
        }
    }
    for day in days {
        day.probes.assert_never_halted();
        assert_eq!(count_parked(&day.t).await, 0);
        // None is to blame for a move, not even for a moment.
        assert!(!day.relay.logs_contain("can't be delivered"), "{}", day.relay.log_text());
        day.ends_exactly_once().await;
    }
}
