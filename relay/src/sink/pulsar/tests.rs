//! The sink against a scripted cluster, which says of each message what a test wants it to say.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use outbox_relay_pulsar::{Access, Cluster, Held, Message, Producer, Said, What};

use super::{client::Client, settings::example, *};
use crate::core::{
    lsn::Lsn,
    position::RowPosition,
    record::{BatchLimits, RecordHead},
};

const PARTITIONS: u32 = 3;

#[derive(Debug, Default)]
struct Script {
    /// What the topic takes, which it tells no one.
    bytes_max: Option<usize>,
    /// A message of this payload is not stored now.
    not_now: Option<&'static str>,
    /// After so many messages the producers end.
    ends_after: Option<usize>,
    is_fenced: bool,
    /// No one says what there is.
    is_silent: bool,
    /// Topic and payload.
    stored: Vec<(String, String)>,
    /// Sent and without an answer: now, and at most.
    in_flight: usize,
    in_flight_max: usize,
    opened: usize,
}

#[derive(Clone, Debug, Default)]
struct Scripted(Arc<Mutex<Script>>);

#[derive(Debug)]
struct ScriptedProducer {
    script: Arc<Mutex<Script>>,
    topic: String,
    answers: VecDeque<Result<(), Said>>,
}

#[async_trait::async_trait]
impl Cluster for Scripted {
    async fn version(&self) -> Result<String, Said> {
        Ok("Scripted".into())
    }

    async fn partitions(&self, topic: &str) -> Result<Option<u32>, Said> {
        match topic.rsplit('/').next() {
            _ if self.0.lock().unwrap().is_silent => Err(Said::uncertain("no answer within 10s")),
            Some("missing") => Err(Said::new(What::Missing, "")),
            Some("single") => Ok(None),
            _ => Ok(Some(PARTITIONS)),
        }
    }

    async fn producer(&self, topic: &str, access: Access) -> Result<Box<dyn Producer>, Said> {
        assert_eq!(access, Access::Fencing);
        self.0.lock().unwrap().opened += 1;
        let (script, topic) = (Arc::clone(&self.0), topic.to_owned());
        Ok(Box::new(ScriptedProducer { script, topic, answers: VecDeque::new() }))
    }

    async fn is_fenced(&self, _: &str, held: &Held) -> bool {
        held.epoch == 7 && self.0.lock().unwrap().is_fenced
    }
}

#[async_trait::async_trait]
impl Producer for ScriptedProducer {
    fn bytes_max(&self) -> usize {
        500_000
    }

    fn held(&self) -> Option<Held> {
        Some(Held { epoch: 7, name: "it".into() })
    }

    async fn send(&mut self, message: &Message<'_>) -> Result<(), Said> {
        let mut script = self.script.lock().unwrap();
        script.in_flight += 1;
        script.in_flight_max = script.in_flight_max.max(script.in_flight);
        if script.bytes_max.is_some_and(|max| message.bytes() > max) {
            self.answers.push_back(Err(Said::new(What::TooLarge, "Exceed maximum message size")));
            return Ok(());
        }
        let payload = message.payload.unwrap_or_default();
        let text = String::from_utf8_lossy(payload).trim_end().to_owned();
        if script.not_now == Some(text.as_str()) {
            self.answers.push_back(Err(Said::new(What::NotNow, "PersistenceError")));
            return Ok(());
        }
        script.stored.push((self.topic.clone(), text));
        self.answers.push_back(Ok(()));
        Ok(())
    }

    async fn receipt(&mut self) -> Result<Result<(), Said>, Said> {
        let mut script = self.script.lock().unwrap();
        if script.ends_after.is_some_and(|count| script.stored.len() >= count) {
            return Err(Said::uncertain("the broker closed the connection"));
        }
        script.in_flight -= 1;
        Ok(self.answers.pop_front().expect("one is under way"))
    }
}

impl Scripted {
    fn sink(&self) -> PulsarSink {
        PulsarSink {
            client: Client::over(example(), Arc::new(self.clone())),
            directory: Directory::default(),
            producers: Producers::default(),
        }
    }

    fn payloads(&self) -> Vec<String> {
        self.0.lock().unwrap().stored.iter().map(|(_, payload)| payload.clone()).collect()
    }
}

/// Topic, key, payload, and how many bytes that has.
fn batch(records: &[(&str, &str, &str, usize)]) -> Arc<Batch> {
    let mut batch = Batch::new(BatchLimits { records_max: 10_000, bytes_max: 1 << 24 });
    for (ordinal, (topic, key, payload, bytes)) in (0..).zip(records) {
        let padding = " ".repeat(bytes.saturating_sub(payload.len()));
        let payload = format!("{payload}{padding}");
        let head = RecordHead {
            position: RowPosition { commit: Lsn::new(1), ordinal },
            topic,
            key: Some(key.as_bytes()),
            payload: Some(payload.as_bytes()),
            partition: None,
            timestamp_ms: None,
        };
        batch.start_record(head).finish();
    }
    Arc::new(batch)
}

fn refused(done: Result<Delivered, SinkError>) -> (Vec<(usize, &'static str)>, Rest) {
    match done {
        Err(SinkError::Refused { records, rest }) => {
            (records.iter().map(|it| (it.index, it.reason)).collect(), rest)
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn many_messages_of_a_key_are_under_way_at_once_in_their_order() {
    let cluster = Scripted::default();
    let numbers: Vec<String> = (0..1_000).map(|n| format!("{n:04}")).collect();
    let records: Vec<_> = numbers.iter().map(|n| ("orders", "a", n.as_str(), 4)).collect();
    let all = batch(&records);
    let mut sink = cluster.sink();
    drop(sink.deliver(&all, 0..500).await.expect("delivered"));
    drop(sink.deliver(&all, 500..1_000).await.expect("delivered"));
    assert_eq!(cluster.payloads(), numbers);
    let script = cluster.0.lock().unwrap();
    assert_eq!((script.in_flight_max, script.opened), (500, 1));
}

#[tokio::test]
async fn a_key_has_the_partition_that_it_has_elsewhere_and_a_topic_without_them_none() {
    let cluster = Scripted::default();
    let all =
        batch(&[("orders", "21", "1", 1), ("orders", "abc", "2", 1), ("single", "21", "3", 1)]);
    drop(cluster.sink().deliver(&all, 0..3).await.expect("delivered"));
    let of = |key: &[u8]| crate::sink::partition::partition_for_key(key, 3);
    let mut stored = cluster.0.lock().unwrap().stored.clone();
    stored.sort_by(|a, b| a.1.cmp(&b.1));
    let topics: Vec<_> = stored.into_iter().map(|(topic, _)| topic).collect();
    let partition = |key| format!("persistent://public/default/orders-partition-{}", of(key));
    assert_eq!(
        topics,
        [partition(b"21"), partition(b"abc"), "persistent://public/default/single".into()]
    );
}

#[tokio::test]
async fn nothing_is_under_way_behind_one_that_may_be_too_large_and_its_key_ends_with_it() {
    let cluster = Scripted::default();
    cluster.0.lock().unwrap().bytes_max = Some(5_000);
    let all = batch(&[
        ("single", "a", "1", 100),
        ("single", "b", "2", 100),
        ("single", "a", "3", 9_000),
        ("single", "a", "4", 100),
        ("single", "b", "5", 100),
    ]);
    let done = cluster.sink().deliver(&all, 0..5).await;
    assert_eq!(refused(done), (vec![(2, "too_large")], Rest::StoredButFollowers));
    assert_eq!(cluster.payloads(), ["1", "2", "5"]);
}

#[tokio::test]
async fn what_can_t_be_a_message_is_named_before_anything_is_sent() {
    let cluster = Scripted::default();
    let all = batch(&[
        ("orders", "a", "1", 1),
        ("missing", "a", "2", 1),
        ("a/b", "a", "3", 1),
        ("orders-partition-1", "a", "4", 1),
        ("orders", "a", "5", 2_000_000),
    ]);
    let expected =
        [(1, "unknown_topic"), (2, "invalid_topic"), (3, "reserved_topic"), (4, "too_large")];
    let done = cluster.sink().deliver(&all, 0..2).await;
    assert_eq!(refused(done), (expected.to_vec(), Rest::NotSent));
    assert_eq!(cluster.payloads(), [""; 0]);
}

#[tokio::test]
async fn a_producer_that_ends_is_not_used_again_and_another_relay_is_named() {
    for is_fenced in [false, true] {
        let cluster = Scripted::default();
        *cluster.0.lock().unwrap() = Script { ends_after: Some(2), is_fenced, ..Script::default() };
        let all =
            batch(&[("single", "a", "1", 1), ("single", "a", "2", 1), ("single", "a", "3", 1)]);
        let mut sink = cluster.sink();
        let done = sink.deliver(&all, 0..3).await;
        let fenced = matches!(done, Err(SinkError::Fenced(_)));
        let unavailable = matches!(done, Err(SinkError::Unavailable { .. }));
        assert_eq!((fenced, unavailable), (is_fenced, !is_fenced), "{done:?}");
        assert_eq!(format!("{:?}", sink.producers), format!("{:?}", Producers::default()));
    }
}

#[tokio::test]
async fn the_producers_stay_open_where_nothing_was_sent_and_all_ends_where_no_one_answers() {
    let cluster = Scripted::default();
    let all = batch(&[("single", "a", "1", 1), ("missing", "a", "2", 1)]);
    let mut sink = cluster.sink();
    drop(sink.deliver(&all, 0..1).await.expect("delivered"));
    assert_eq!(
        refused(sink.deliver(&all, 0..2).await),
        (vec![(1, "unknown_topic")], Rest::NotSent)
    );
    drop(sink.deliver(&all, 0..1).await.expect("delivered"));
    assert_eq!(cluster.0.lock().unwrap().opened, 1);
    cluster.0.lock().unwrap().is_silent = true;
    let done = sink.deliver(&batch(&[("later", "a", "3", 1)]), 0..1).await;
    assert!(matches!(done, Err(SinkError::Unavailable { .. })), "{done:?}");
    // A line that is dead without a word would be asked again and again.
    assert_eq!(Arc::strong_count(&cluster.0), 1, "the sink has let go of the cluster");
}

#[tokio::test]
async fn a_message_that_is_not_stored_now_is_sent_again_with_all_behind_it_and_is_not_parked() {
    let cluster = Scripted::default();
    cluster.0.lock().unwrap().not_now = Some("2");
    let all = batch(&[("single", "a", "1", 1), ("single", "b", "2", 1), ("single", "c", "3", 1)]);
    let mut sink = cluster.sink();
    let done = sink.deliver(&all, 0..3).await;
    assert!(matches!(done, Err(SinkError::Unavailable { .. })), "{done:?}");
    assert_eq!(Arc::strong_count(&cluster.0), 1, "the sink has let go of the cluster");
}

#[tokio::test]
async fn what_is_larger_than_the_brokers_take_is_not_sent_and_neither_is_its_key_behind_it() {
    let cluster = Scripted::default();
    let all = batch(&[
        ("single", "a", "1", 10),
        ("single", "a", "2", 600_000),
        ("single", "a", "3", 10),
        ("single", "b", "4", 10),
    ]);
    let done = cluster.sink().deliver(&all, 0..4).await;
    assert_eq!(refused(done), (vec![(1, "too_large")], Rest::StoredButFollowers));
    assert_eq!(cluster.payloads(), ["1", "4"]);
}

#[tokio::test]
async fn events_without_a_key_that_name_their_partition_are_one_lane_and_others_are_none() {
    for (partition, stored) in [(Some(0), &["1"][..]), (None, &["1", "3"])] {
        let cluster = Scripted::default();
        cluster.0.lock().unwrap().bytes_max = Some(5_000);
        let mut all = Batch::new(BatchLimits { records_max: 10, bytes_max: 1 << 20 });
        for (ordinal, bytes) in [(1, 1), (2, 9_000), (3, 1)] {
            let payload = format!("{ordinal:<bytes$}");
            let head = RecordHead {
                position: RowPosition { commit: Lsn::new(1), ordinal },
                topic: "single",
                key: None,
                payload: Some(payload.as_bytes()),
                partition,
                timestamp_ms: None,
            };
            all.start_record(head).finish();
        }
        let done = cluster.sink().deliver(&Arc::new(all), 0..3).await;
        assert_eq!(refused(done), (vec![(1, "too_large")], Rest::StoredButFollowers));
        assert_eq!(cluster.payloads(), stored);
    }
}

#[tokio::test]
async fn that_a_message_was_stored_says_nothing_of_a_larger_one() {
    let cluster = Scripted::default();
    cluster.0.lock().unwrap().bytes_max = Some(5_000);
    let all = batch(&[
        ("single", "a", "1", 2_000),
        ("single", "a", "2", 4_000),
        ("single", "b", "3", 4_000),
        ("single", "a", "4", 6_000),
        ("single", "a", "5", 4_000),
        ("single", "b", "6", 4_000),
    ]);
    let done = cluster.sink().deliver(&all, 0..6).await;
    assert_eq!(refused(done), (vec![(3, "too_large")], Rest::StoredButFollowers));
    assert_eq!(cluster.payloads(), ["1", "2", "3", "6"]);
}
