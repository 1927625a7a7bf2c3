//! The sink against a scripted service, which says of each request and message what a test wants it to say.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex},
};

use outbox_relay_aws::{Entry, Found, Said, Service};

use super::{AwsSink, client::Client, directory::Directory, settings::example, *};
use crate::core::{
    lsn::Lsn,
    position::RowPosition,
    record::{BatchLimits, RecordHead},
};

/// What it says of a request of these bodies; `None`: it stores all of them.
type Script = dyn FnMut(&[&str]) -> Option<Result<Vec<Result<(), Said>>, Said>> + Send;

struct Scripted {
    script: Mutex<Box<Script>>,
    requests: Mutex<Vec<Vec<String>>>,
    stored: Mutex<Vec<Entry>>,
    attributes: HashMap<String, String>,
    missing: BTreeSet<&'static str>,
}

impl std::fmt::Debug for Scripted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scripted").finish_non_exhaustive()
    }
}

#[async_trait::async_trait]
impl Service for Scripted {
    async fn find(&self, name: &str) -> Result<Found, Said> {
        if self.missing.contains(name) {
            return Err(Said::new("QueueDoesNotExist", "", true));
        }
        Ok(Found { address: format!("at {name}"), attributes: Ok(self.attributes.clone()) })
    }

    async fn send(
        &self,
        address: &str,
        entries: Vec<Entry>,
    ) -> Result<Vec<Result<(), Said>>, Said> {
        assert!(address.starts_with("at "), "{address}");
        let bodies: Vec<&str> = entries.iter().map(|it| it.body.as_str()).collect();
        self.requests.lock().unwrap().push(bodies.iter().map(|&it| it.to_owned()).collect());
        let said = (self.script.lock().unwrap())(&bodies);
        let outcomes = said.unwrap_or_else(|| Ok(entries.iter().map(|_| Ok(())).collect()))?;
        let stored = entries.into_iter().zip(&outcomes).filter(|(_, it)| it.is_ok());
        self.stored.lock().unwrap().extend(stored.map(|(entry, _)| entry));
        Ok(outcomes)
    }
}

impl Scripted {
    fn new(
        script: impl FnMut(&[&str]) -> Option<Result<Vec<Result<(), Said>>, Said>> + Send + 'static,
    ) -> Self {
        Scripted {
            script: Mutex::new(Box::new(script)),
            requests: Mutex::default(),
            stored: Mutex::default(),
            attributes: HashMap::new(),
            missing: BTreeSet::new(),
        }
    }

    fn stored(&self) -> Vec<String> {
        self.stored.lock().unwrap().iter().map(|it| it.body.clone()).collect()
    }
}

fn sink(service: Scripted, settings: Settings) -> (AwsSink, Arc<Scripted>) {
    let service = Arc::new(service);
    let shared: Arc<dyn Service> = Arc::<Scripted>::clone(&service);
    (AwsSink { client: Client::over(settings, shared), directory: Directory::default() }, service)
}

/// Records by topic, key and payload.
fn batch(records: &[(&str, &str, &str)]) -> Arc<Batch> {
    let mut batch = Batch::new(BatchLimits { records_max: 1_000, bytes_max: 8 << 20 });
    for (ordinal, (topic, key, payload)) in (0..).zip(records) {
        let mut writer = batch.start_record(RecordHead {
            position: RowPosition { commit: Lsn::new(1), ordinal },
            topic,
            key: Some(key.as_bytes()),
            payload: Some(payload.as_bytes()),
            partition: None,
            timestamp_ms: None,
        });
        writer.header("outbox-id", ordinal.to_string().as_bytes());
        writer.finish();
    }
    Arc::new(batch)
}

async fn deliver(sink: &mut AwsSink, batch: &Arc<Batch>) -> Result<Delivered, SinkError> {
    sink.deliver(batch, 0..batch.len()).await
}

fn all_but(bodies: &[&str], odd: &str, said: &Said) -> Option<Result<Vec<Result<(), Said>>, Said>> {
    let each = bodies.iter().map(|it| if *it == odd { Err(said.clone()) } else { Ok(()) });
    Some(Ok(each.collect()))
}

#[tokio::test]
async fn of_a_group_one_message_is_under_way_and_others_go_beside_it() {
    let (mut sink, service) = sink(Scripted::new(|_| None), example());
    let records: Vec<_> = (0..30).map(|n| (["a", "b"][n % 2], n.to_string())).collect();
    let records: Vec<_> = records.iter().map(|(key, n)| ("orders", *key, n.as_str())).collect();
    let _stored = deliver(&mut sink, &batch(&records)).await.expect("delivered");
    let stored: Vec<u32> = service.stored().iter().map(|it| it.parse().unwrap()).collect();
    for of_key in [0, 1] {
        let lane: Vec<_> = stored.iter().copied().filter(|n| n % 2 == of_key).collect();
        assert!(lane.is_sorted() && lane.len() == 15, "{lane:?}");
    }
    let requests = service.requests.lock().unwrap();
    assert!(requests.iter().all(|request| request.len() <= 2), "{requests:?}");
}

/// A failed entry holds later ones of its group, and no other.
#[tokio::test]
async fn what_is_not_taken_now_is_sent_again_before_later_ones_of_its_key() {
    let mut left = 3;
    let service = Scripted::new(move |bodies| {
        if bodies.contains(&"a1") && left > 0 {
            left -= 1;
            return all_but(bodies, "a1", &Said::new("InternalError", "", false));
        }
        None
    });
    let (mut sink, service) = sink(service, example());
    let records = [
        ("orders", "a", "a1"),
        ("orders", "b", "b1"),
        ("orders", "a", "a2"),
        ("orders", "b", "b2"),
    ];
    let _stored = deliver(&mut sink, &batch(&records)).await.expect("delivered");
    let stored = service.stored();
    let of =
        |key: &str| stored.iter().filter(|it| it.starts_with(key)).cloned().collect::<Vec<_>>();
    assert_eq!(
        (of("a"), of("b")),
        (vec!["a1".into(), "a2".into()], vec!["b1".into(), "b2".into()])
    );
    assert_eq!(stored.len(), 4, "none of the others is sent again");
}

#[tokio::test]
async fn what_is_refused_is_named_and_those_behind_it_are_not_sent() {
    let service = Scripted::new(|bodies| {
        all_but(bodies, "a1", &Said::new("InvalidMessageContents", "why", true))
    });
    let (mut sink, service) = sink(service, example());
    let records = [("orders", "a", "a1"), ("orders", "b", "b1"), ("orders", "a", "a2")];
    let told = deliver(&mut sink, &batch(&records)).await.expect_err("one is refused");
    let SinkError::Refused { records, rest } = told else { panic!("{told:?}") };
    assert_eq!(rest, Rest::StoredButFollowers);
    let named: Vec<_> = records.iter().map(|it| (it.index, it.reason)).collect();
    assert_eq!(named, [(0, "invalid_record")]);
    assert!(records[0].error.contains("InvalidMessageContents: why"), "{}", records[0].error);
    assert_eq!(service.stored(), ["b1"]);
}

/// Which of them is to blame is not said of a request as a whole.
#[tokio::test]
async fn where_a_request_is_refused_each_of_its_messages_is_asked_for_by_itself() {
    let service = Scripted::new(|bodies| {
        let said = Said::new("InvalidParameterValue", "Message must be shorter than 9 bytes", true);
        bodies.contains(&"large").then_some(Err(said))
    });
    let (mut sink, service) = sink(service, example());
    let records = [("orders", "a", "a"), ("orders", "b", "large"), ("orders", "c", "c")];
    let told = deliver(&mut sink, &batch(&records)).await.expect_err("one is refused");
    let SinkError::Refused { records, .. } = told else { panic!("{told:?}") };
    let named: Vec<_> = records.iter().map(|it| (it.index, it.reason)).collect();
    assert_eq!(named, [(1, "too_large")]);
    let mut stored = service.stored();
    stored.sort();
    assert_eq!(stored, ["a", "c"]);
}

#[tokio::test]
async fn a_service_that_throttles_is_asked_more_slowly_and_takes_all_in_the_end() {
    let mut left = 8;
    let service = Scripted::new(move |_| {
        left -= 1;
        (left >= 0).then(|| Err(Said::new("RequestThrottled", "Rate exceeded", true)))
    });
    let (mut sink, service) = sink(service, example());
    let records: Vec<_> = (0..40).map(|n| n.to_string()).collect();
    let records: Vec<_> = records.iter().map(|n| ("orders", n.as_str(), n.as_str())).collect();
    let begun = tokio::time::Instant::now();
    let _stored = deliver(&mut sink, &batch(&records)).await.expect("delivered");
    assert!(begun.elapsed() > std::time::Duration::from_millis(250), "{:?}", begun.elapsed());
    assert_eq!(service.stored().len(), 40);
    let requests = service.requests.lock().unwrap().len();
    assert!(requests < 16, "{requests} requests");
}

#[tokio::test]
async fn an_outcome_that_is_uncertain_ends_the_delivery() {
    for said in [Said::uncertain("the line broke"), Said::new("ExpiredToken", "", true)] {
        let (mut sink, _) = sink(Scripted::new(move |_| Some(Err(said.clone()))), example());
        let told = deliver(&mut sink, &batch(&[("orders", "a", "a")])).await;
        assert!(matches!(told, Err(SinkError::Unavailable { .. })), "{told:?}");
    }
}

#[tokio::test]
async fn what_is_missing_or_too_large_is_known_before_anything_is_sent() {
    let mut service = Scripted::new(|_| None);
    service.missing.insert("gone.fifo");
    service.attributes.insert("MaximumMessageSize".into(), "1024".into());
    let (mut sink, service) = sink(service, example());
    let large = "x".repeat(1_024);
    let records =
        [("orders", "a", "a"), ("gone", "a", "a"), ("orders", "b", &large), ("a b", "c", "c")];
    let told = deliver(&mut sink, &batch(&records)).await.expect_err("some are refused");
    let SinkError::Refused { records, rest: Rest::NotSent } = told else { panic!("{told:?}") };
    let named: Vec<_> = records.iter().map(|it| (it.index, it.reason)).collect();
    assert_eq!(named, [(1, "unknown_topic"), (2, "too_large"), (3, "invalid_topic")]);
    assert_eq!(service.stored(), [""; 0]);
}

#[tokio::test]
async fn a_standard_queue_is_sent_everything_at_once_and_has_no_groups() {
    let settings = Settings { destination: "{topic}".parse().unwrap(), ..example() };
    let (mut sink, service) = sink(Scripted::new(|_| None), settings);
    let records: Vec<_> = (0..20).map(|n| n.to_string()).collect();
    let records: Vec<_> = records.iter().map(|n| ("orders", "a", n.as_str())).collect();
    let _stored = deliver(&mut sink, &batch(&records)).await.expect("delivered");
    assert_eq!(service.requests.lock().unwrap().len(), 2);
    assert!(service.stored.lock().unwrap().iter().all(|it| it.fifo.is_none()));
}
