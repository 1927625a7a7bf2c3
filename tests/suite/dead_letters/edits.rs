//! Parked events that an operator edits: what is delivered then, and in which lane.

use outbox_harness::{Harness, check, event::Event};
use serde_json::Value;

use super::{
    count_parked, dead_letters, insert, list, parked_lanes, sequences, texts, try_dead_letters,
    wait_lanes, wait_parked, wait_parked_again, wait_records,
};

#[tokio::test]
async fn an_edited_event_is_delivered_and_one_that_is_not_is_parked_again() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(2).await;
    let relay = t.relay().start().await;
    let event = |key: &str| Event::to(topic.name()).key(key);
    t.commit([event("a"), event("a").partition(9), event("a"), event("b").partition(9)]).await;
    t.commit([event("a"), event("b"), event("c")]).await;
    wait_parked(&t, |parked| parked == 5).await;
    wait_records(&topic, 2).await;

    let released = dead_letters(&t, &["release", "--all"]).await;
    assert_eq!((&released["events"], &released["lanes"]), (&5.into(), &2.into()));
    let again = wait_parked_again(&t).await;
    assert_eq!(again, 5, "each is refused again, or behind one that is");
    assert_eq!(parked_lanes(&relay).await, Some(2));

    let entries = list(&t).await;
    let id = entries[0]["id"].to_string();
    let (code, _, stderr) = try_dead_letters(&t, &["edit", &id]).await;
    assert!(code == Some(1) && stderr.contains("nothing to change"), "{code:?} {stderr}");
    let headers = r#"{"sequence": "2", "fixed": "yes"}"#;
    let edited = dead_letters(&t, &["edit", &id, "--no-partition", "--headers", headers]).await;
    assert_eq!(edited["partition"], Value::Null);
    let fields = texts(edited["edited"].as_array().expect("what was changed"), "field");
    assert_eq!(fields, ["partition", "headers"]);
    dead_letters(&t, &["release", "--topic", topic.name(), "--key", "a"]).await;
    wait_parked(&t, |parked| parked == 2).await;
    wait_records(&topic, 5).await;
    wait_lanes(&relay, 1).await;
    assert_eq!(sequences(&topic, "a").await, [1, 2, 3, 4]);
    let records = topic.records().await;
    let fixed = records.iter().find(|record| record.header("fixed").is_some()).expect("there");
    assert_eq!(fixed.id(), entries[0]["event_id"].as_str());
    assert_eq!(check::positions_that_step_back(&records), Vec::<String>::new());

    let id = list(&t).await[0]["id"].to_string();
    let discarded = dead_letters(&t, &["discard", &id]).await;
    assert_eq!(discarded["state"], "discarded");
    let (code, _, stderr) = try_dead_letters(&t, &["discard", &id]).await;
    assert!(code == Some(1) && stderr.contains("is discarded"), "{code:?} {stderr}");
    dead_letters(&t, &["release", "--all"]).await;
    wait_parked(&t, |parked| parked == 0).await;
    t.commit([event("b")]).await;
    wait_records(&topic, 7).await;
    assert_eq!(sequences(&topic, "b").await, [2, 3], "the first was discarded");
    wait_lanes(&relay, 0).await;
    let Value::Array(history) = dead_letters(&t, &["list", "--all"]).await else {
        panic!("a list")
    };
    let expected = ["released", "released", "discarded", "released", "released"];
    assert_eq!(texts(&history, "state"), expected, "in the order of positions");
}

#[tokio::test]
async fn an_event_whose_headers_someone_has_written_by_hand_is_not_delivered_without_its_id() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(2).await;
    let _relay = t.relay().start().await;
    t.commit([Event::to(topic.name()).key("a").partition(9)]).await;
    wait_parked(&t, |parked| parked == 1).await;
    let entries = list(&t).await;
    let id = entries[0]["id"].to_string();
    let by_hand = "update outbox.dead_letters set headers = '{\"a\": \"b\"}', partition = null";
    t.database().superuser().batch_execute(by_hand).await.expect("changed");
    dead_letters(&t, &["release", "--all"]).await;
    assert_eq!(wait_parked_again(&t).await, 1);
    assert_eq!(texts(&list(&t).await, "reason"), ["headers_shape"]);
    assert_eq!(topic.records().await.len(), 0);
    dead_letters(&t, &["edit", &id, "--headers", r#"{"a": "b"}"#]).await;
    dead_letters(&t, &["release", "--all"]).await;
    wait_records(&topic, 1).await;
    let record = topic.records().await.remove(0);
    assert_eq!(record.id(), entries[0]["event_id"].as_str());
    assert!(record.header("outbox-position").is_some());
}

#[tokio::test]
async fn a_row_too_large_to_keep_is_delivered_with_the_payload_that_an_edit_gives_it() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let _relay = t.relay().set("batch.record_bytes_max", "8 KiB").start().await;
    let large = "(select to_jsonb(string_agg(md5(n::text), '')) from generate_series(1, 4000) n)";
    insert(&t, "topic, key, payload", &format!("'{}', 'a', {large}", topic.name())).await;
    wait_parked(&t, |parked| parked == 1).await;
    let entries = list(&t).await;
    assert_eq!(texts(&entries, "reason"), ["too_large"]);
    let id = entries[0]["id"].to_string();
    let shown = dead_letters(&t, &["show", &id]).await;
    assert_eq!((&shown["payload"], &shown["fit"]), (&Value::Null, &false.into()));
    let released = dead_letters(&t, &["release", "--all"]).await;
    assert_eq!(released["unfit"].as_array().map(Vec::len), Some(1), "the command says so");
    assert_eq!(wait_parked_again(&t).await, 1);
    for command in ["release", "discard"] {
        let (code, _, told) = try_dead_letters(&t, &[command, "--key", "a"]).await;
        assert!(
            code == Some(2) && told.contains(r"not provided:\n  --topic <TOPIC>\n\n"),
            "{told}"
        );
    }
    let (code, _, stderr) = try_dead_letters(&t, &["edit", &id, "--key", "a"]).await;
    assert!(code == Some(1) && stderr.contains("--payload"), "{code:?} {stderr}");
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("payload");
    std::fs::write(&file, "{\"reference\": 1}").expect("written");
    dead_letters(&t, &["edit", &id, "--payload", file.to_str().expect("a path")]).await;
    dead_letters(&t, &["release", "--topic", topic.name(), "--key", "a"]).await;
    wait_records(&topic, 1).await;
    let record = topic.records().await.remove(0);
    assert_eq!(record.payload.as_deref(), Some(b"{\"reference\": 1}".as_slice()));
    assert_eq!(record.id(), entries[0]["event_id"].as_str());
}

#[tokio::test]
async fn an_edit_to_a_lane_that_is_parked_itself_is_refused() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let _relay = t.relay().start().await;
    let event = |key: &str| Event::to(topic.name()).key(key).partition(9);
    t.commit([event("a"), event("b")]).await;
    wait_parked(&t, |parked| parked == 2).await;
    let id = list(&t).await[0]["id"].to_string();
    let (code, _, stderr) = try_dead_letters(&t, &["edit", &id, "--key", "b"]).await;
    assert!(code == Some(1) && stderr.contains("overtake"), "{code:?} {stderr}");
    dead_letters(&t, &["edit", &id, "--key", "c", "--no-partition"]).await;
    dead_letters(&t, &["release", "--topic", topic.name(), "--key", "c"]).await;
    wait_records(&topic, 1).await;
    assert_eq!(topic.records().await.remove(0).key.as_deref(), Some(b"c".as_slice()));
    assert_eq!(count_parked(&t).await, 1);
}

/// The row keeps the lane that it was parked in, which is still refused.
#[tokio::test]
async fn an_event_that_an_edit_took_out_of_its_lane_is_released_once() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let _relay = t.relay().start().await;
    let event = |key: &str| Event::to(topic.name()).key(key);
    t.commit([event("a").partition(9), event("a")]).await;
    wait_parked(&t, |parked| parked == 2).await;
    let id = list(&t).await[1]["id"].to_string();
    dead_letters(&t, &["edit", &id, "--key", "c"]).await;
    for _ in 0..2 {
        dead_letters(&t, &["release", "--all"]).await;
        assert_eq!(wait_parked_again(&t).await, 1, "the first is refused again, and it alone");
    }
    let keys: Vec<_> = topic.records().await.into_iter().map(|record| record.key).collect();
    assert_eq!(keys, [Some(b"c".to_vec())]);
    let Value::Array(history) = dead_letters(&t, &["list", "--all"]).await else {
        panic!("a list")
    };
    assert_eq!(texts(&history, "state"), ["parked", "released"]);
}
