//! A delivery, without a broker.

use super::*;
use crate::core::{
    lsn::Lsn,
    position::RowPosition,
    record::{BatchLimits, RecordHead},
    secret::Secret,
};

const RECORDS: usize = 40;

fn settings() -> Settings {
    Settings {
        relay_name: "r".into(),
        url: Secret::new("amqp://h"),
        url_file: None,
        exchange: Template::exchange(),
        routing_key: Template::routing_key(),
        partitions: 1,
        many_in_flight: false,
        declare: false,
        message_bytes_max: 1 << 20,
        ca_file: None,
        certificate: None,
        topic_grace: Duration::from_secs(10),
        reserved_topics: vec![],
    }
}

/// Of as many lanes as records.
fn batch() -> Batch {
    let mut batch = Batch::new(BatchLimits { records_max: 1000, bytes_max: 1 << 20 });
    for n in 0..RECORDS as u64 {
        let position = RowPosition { commit: Lsn::new(1), ordinal: n };
        let key = n.to_be_bytes();
        let head = RecordHead {
            position,
            topic: "t",
            key: Some(&key),
            payload: None,
            partition: None,
            timestamp_ms: None,
        };
        batch.start_record(head).finish();
    }
    batch
}

/// As a full queue among others answers.
#[test]
fn what_is_refused_for_now_is_put_off_once_and_keeps_its_order() {
    let (settings, batch) = (settings(), batch());
    let mut delivery = Delivery {
        settings: &settings,
        batch: &batch,
        destinations: &[],
        order: LaneOrder::new(&batch, 0..RECORDS, false),
        flight: Flight::default(),
        refused: vec![],
        later: Later::default(),
        range: 0..RECORDS,
    };
    let mut sent = Vec::new();
    while let Some(index) = delivery.order.take() {
        sent.push(index);
        delivery.flight.sent(sent.len() as u64, index, 1);
    }
    delivery.confirmed(1, false, false);
    let at = delivery.later.at;
    assert!(at.is_some_and(|at| at <= Instant::now() + NOT_NOW_PAUSE));
    for tag in 2..=RECORDS as u64 {
        delivery.confirmed(tag, false, false);
    }
    assert_eq!(delivery.later.at, at, "one pause for all");
    assert_eq!(delivery.order.take(), None, "none before that");
    delivery.again();
    let again: Vec<usize> = std::iter::from_fn(|| delivery.order.take()).collect();
    assert_eq!(again, sent);
}
