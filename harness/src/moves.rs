//! Partitions that move from broker to broker, as an operator moves them: with Kafka's own tools.

use std::io::Write as _;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use serde_json::json;

use crate::{
    kafka::{ASK, Kafka, ask},
    kafka_tools, wait,
};

/// Where a partition is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    topic: String,
    partition: i32,
    /// Brokers that have it; the first is the preferred leader.
    replicas: Vec<i32>,
    leader: i32,
}

impl Kafka {
    /// Moves every partition of the topics: one that has a single replica to another broker, others to another
    /// leader. Returns when all are led by the new ones.
    ///
    /// # Panics
    /// When a topic is missing, or the brokers don't move it.
    pub async fn move_leaders(&self, topics: &[&str]) {
        let (mut wanted, brokers) = self.places(topics).await;
        for place in &mut wanted {
            match place.replicas.as_mut_slice() {
                [one] => *one = one_after(&brokers, *one),
                several => several.rotate_left(1),
            }
            place.leader = *place.replicas.first().expect("a replica");
        }
        let moves = wanted.iter().map(|Place { topic, partition, replicas, .. }| {
            json!({"topic": topic, "partition": partition, "replicas": replicas})
        });
        let plan = json!({"version": 1, "partitions": moves.collect::<Vec<_>>()}).to_string();
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(plan.as_bytes()).expect("written");
        let (servers, path) = (self.brokers(), file.path().display());
        kafka_tools::run(&format!(
            "kafka-reassign-partitions --bootstrap-server {servers} --reassignment-json-file {path} --execute"
        ))
        .await;
        let replicas = |places: &[Place]| {
            places.iter().map(|place| place.replicas.clone()).collect::<Vec<_>>()
        };
        wait::until("the partitions have moved", wait::PATIENCE, || async {
            let (found, _) = self.places(topics).await;
            if replicas(&found) == replicas(&wanted) { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await
        .expect("the brokers obey");
        kafka_tools::run(&format!(
            "kafka-leader-election --bootstrap-server {servers} --election-type preferred --all-topic-partitions"
        ))
        .await;
        wait::until("the partitions have their new leaders", wait::PATIENCE, || async {
            let (found, _) = self.places(topics).await;
            if found == wanted { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await
        .expect("the brokers obey");
    }

    /// Which broker leads partition 0 of a topic; -1 where none does.
    ///
    /// # Panics
    /// When the topic is missing, or no broker answers.
    pub async fn leader(&self, topic: &str) -> i32 {
        let (places, _) = self.places(&[topic]).await;
        places.first().expect("it is there").leader
    }

    /// Every partition of the topics, and the cluster's brokers.
    async fn places(&self, topics: &[&str]) -> (Vec<Place>, Vec<i32>) {
        let client = self.client();
        let topics: Vec<String> = topics.iter().map(|&topic| topic.to_owned()).collect();
        let asked = ask("the brokers tell where partitions are", move || {
            let consumer: BaseConsumer = client.create()?;
            let metadata = consumer.fetch_metadata(None, ASK)?;
            let named = metadata.topics().iter();
            let named = named.filter(|topic| topics.iter().any(|name| name == topic.name()));
            let places = named.flat_map(|topic| {
                topic.partitions().iter().map(|partition| Place {
                    topic: topic.name().to_owned(),
                    partition: partition.id(),
                    replicas: partition.replicas().to_vec(),
                    leader: partition.leader(),
                })
            });
            let mut places: Vec<Place> = places.collect();
            places.sort_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
            let mut brokers: Vec<i32> =
                metadata.brokers().iter().map(|broker| broker.id()).collect();
            brokers.sort_unstable();
            Ok((places, brokers))
        });
        asked.await.expect("the brokers answer")
    }
}

/// The broker that follows another, the first one after the last.
fn one_after(brokers: &[i32], one: i32) -> i32 {
    let further = brokers.iter().find(|broker| **broker > one);
    *further.or(brokers.first()).expect("a broker")
}
