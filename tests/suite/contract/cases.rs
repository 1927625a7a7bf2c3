//! What every kind of sink keeps.

use futures_util::FutureExt as _;
use outbox_harness::{topic::Record, wait};
use outbox_relay::sink::{ProgressStore as _, Publisher as _, Rest, SinkError};

use super::{
    kind::{Fence, Kind, Odd},
    publisher::{Bench, Given, Life, assert_in_order, batch},
};

pub(super) async fn records_are_stored_when_a_delivery_returns_in_the_order_of_each_key<K: Kind>() {
    let bench = Bench::<K>::new().await;
    let mut life = bench.begin().await;
    let given = bench.records(0..900);
    let all = batch(&given);
    for range in [0..1, 1..700, 700..900] {
        let end = range.end;
        let receipt = life.sink.publish(&all, range, Some("1".into())).await.expect("delivered");
        assert!(!K::CAN.one_step || receipt.progress.is_some(), "in one step");
        bench.kind.assert_durable(end).await;
        let found = bench.assert_delivered(given.get(..end).expect("a part of them")).await;
        assert_eq!(found.len(), end, "of the range alone, and once while all goes well");
    }
}

pub(super) async fn a_record_arrives_byte_for_byte<K: Kind>() {
    let bench = Bench::<K>::new().await;
    let plain = |n| Given::new(bench.kind.destination(), n);
    let value = if K::CAN.lines_in_headers { "1\n" } else { "1" };
    let odd: &[u8] = &[0, b'\n', b'"', 0xff, 0xfe, b'\\'];
    let given = [
        Given { key: Some(odd.to_vec()), payload: Some(odd.to_vec()), ..plain(0) },
        Given { key: Some(vec![]), payload: Some(vec![]), ..plain(1) },
        Given { key: None, payload: None, partition: Some(3), ..plain(2) },
        Given { headers: vec![("a", value.into()), ("a", String::new())], ..plain(3) },
        Given { headers: vec![("long", "ż".repeat(20_000))], ..plain(4) },
    ];
    let mut life = bench.begin().await;
    assert_eq!(life.deliver(&given, "1").await.len(), 0);
    let found = bench.kind.read(given.len()).await;
    for given in &given {
        let of_id = |record: &&Record| record.id() == Some(&given.id);
        let found = found.iter().find(of_id).expect("each is there");
        assert_eq!((&found.key, &found.payload), (&given.key, &given.payload));
        assert_eq!((&found.topic, found.timestamp_ms), (&given.topic, Some(given.timestamp_ms)));
        let headers = given.headers.iter().map(|(name, value)| (name.to_string(), value.clone()));
        let own = [("outbox-id".to_owned(), given.id.clone())];
        assert_eq!(found.headers, own.into_iter().chain(headers).collect::<Vec<_>>());
        assert!(given.partition.is_none_or(|partition| found.partition == partition));
    }
}

pub(super) async fn what_is_refused_is_named_with_its_reason_and_the_rest_is_delivered<K: Kind>() {
    let bench = Bench::<K>::new().await;
    let odd = |odd, n| odd_record(&bench, odd, n);
    let mut given = bench.records(0..60);
    for (kind, n) in Odd::ALL.into_iter().zip(100..) {
        given.insert(given.len() / 2, odd(kind, n));
    }
    let mut life = bench.begin().await;
    let mut refused: Vec<(String, &str)> = Vec::new();
    for (record, why) in life.deliver(&given, "1").await {
        assert!(!why.error.is_empty(), "a person is told what to do");
        refused.push((record.id, why.reason));
    }
    refused.sort();
    let expected = Odd::ALL.into_iter().zip(100..).filter_map(|(odd, n)| {
        let (_, reason) = K::CAN.refuses.iter().find(|(refused, _)| *refused == odd)?;
        Some((n.to_string(), *reason))
    });
    assert_eq!(refused, expected.collect::<Vec<_>>());
    given.retain(|given| !refused.iter().any(|(id, _)| *id == given.id));
    bench.assert_delivered(&given).await;
    // A refusal is certain, and ends nothing.
    let more = bench.records(200..210);
    assert_eq!(life.deliver(&more, "2").await.len(), 0);
    given.extend(more);
    bench.assert_delivered(&given).await;
    assert_eq!(bench.begin().await.found.as_deref(), Some(&b"2"[..]));
}

pub(super) async fn a_refused_delivery_stores_no_progress_and_tells_what_became_of_the_rest<
    K: Kind,
>() {
    let bench = Bench::<K>::new().await;
    let Some((odd, _)) = K::CAN.refuses.iter().find(|(odd, _)| *odd == Odd::Large) else {
        return assert_eq!(K::CAN.refuses, [], "what refuses anything has a size that it refuses");
    };
    let given = [bench.records(0..5), vec![odd_record(&bench, *odd, 100)], bench.records(5..10)];
    let mut life = bench.begin().await;
    drop(life.sink.store("before".into()).await.expect("stored"));
    let refused = life.publish(&given.concat(), "during").await.expect_err("one is refused");
    let SinkError::Refused { rest, .. } = refused else { panic!("{refused:?}") };
    drop(life);
    let mut next = bench.begin().await;
    assert_eq!(next.found.as_deref(), Some(&b"before"[..]));
    let rest = if rest == Rest::Stored { 10 } else { 0 };
    assert_eq!(bench.kind.read(rest).await.len(), rest);
    next.deliver(&given.concat(), "after").await;
    bench.assert_delivered(&bench.records(0..10)).await;
}

fn odd_record<K: Kind>(bench: &Bench<K>, odd: Odd, n: u32) -> Given {
    let plain = Given::new(bench.kind.destination(), n);
    match odd {
        Odd::Missing => Given { topic: format!("{}.missing", bench.t.database().name()), ..plain },
        Odd::Unnameable => Given { topic: "a topic of any name/…".into(), ..plain },
        Odd::Reserved => {
            Given { topic: format!("outbox-relay-progress-{}", bench.t.database().name()), ..plain }
        }
        Odd::Nowhere => Given { partition: Some(99), ..plain },
        Odd::Large => Given { payload: Some(vec![b'x'; 150_000]), ..plain },
    }
}

pub(super) async fn a_record_up_to_the_limit_is_delivered_and_one_beyond_it_is_refused<K: Kind>() {
    /// A broker counts the record's frame, key and headers as well.
    const FRAME: usize = 1_000;
    let bench = Bench::<K>::new().await;
    let plain = |n| Given::new(bench.kind.destination(), n);
    let sized = |n, bytes| Given { payload: Some(vec![b'x'; bytes]), ..plain(n) };
    let mut life = bench.begin().await;
    let largest = K::CAN.record_bytes.unwrap_or(8 << 20);
    let fits = [plain(0), sized(1, largest - FRAME), plain(2)];
    assert_eq!(life.deliver(&fits, "1").await.len(), 0);
    bench.assert_delivered(&fits).await;
    let Some(limit) = K::CAN.record_bytes else { return };
    let refused = life.deliver(&[plain(3), sized(4, limit), plain(5)], "2").await;
    let refused: Vec<_> = refused.iter().map(|(given, why)| (&*given.id, why.reason)).collect();
    assert_eq!(refused, [("4", "too_large")]);
}

pub(super) async fn what_is_away_refuses_no_record_and_takes_all_of_them_when_it_is_back<
    K: Kind,
>() {
    let bench = Bench::<K>::breakable().await;
    let given = bench.records(0..50);
    let (first, rest) = given.split_at(20);
    let mut life = bench.begin().await;
    life.deliver(first, "before").await;
    bench.kind.take_away();
    let error = life.publish(rest, "during").await.expect_err("it is away");
    assert_passes(&error);
    bench.kind.give_back();
    assert_ended(&mut life, rest).await;
    drop(life);
    let mut next = bench.begin_again().await;
    assert_eq!(next.found.as_deref(), Some(&b"before"[..]), "nothing says more than there is");
    next.deliver(rest, "after").await;
    bench.assert_delivered(&given).await;
    assert_eq!(bench.begin().await.found.as_deref(), Some(&b"after"[..]));
}

/// Whether it comes back is for a person or for time; either way no record is to blame.
fn assert_passes(error: &SinkError) {
    let passes = matches!(error, SinkError::Unavailable { .. } | SinkError::Misconfigured { .. });
    assert!(passes, "{error:?}");
}

/// Panics unless a publisher with an uncertain outcome takes nothing more: retry is replay.
async fn assert_ended(life: &mut Life, given: &[Given]) {
    let published = life.publish(given, "none").await.map(drop);
    let stored = life.sink.store("none".into()).await.map(drop);
    for answer in [published, stored] {
        let error = answer.expect_err("an outcome is uncertain");
        assert!(matches!(error, SinkError::Unavailable { .. }), "{error:?}");
        assert!(format!("{error:?}").contains("the sink must be opened again"), "{error:?}");
    }
}

pub(super) async fn records_without_progress_are_stored_only_where_it_follows_them<K: Kind>() {
    let bench = Bench::<K>::new().await;
    let given = bench.records(0..30);
    let mut life = bench.begin().await;
    let batch = batch(&given);
    let alone = life.sink.publish(&batch, 0..batch.len(), None).await;
    if K::CAN.one_step {
        let error = alone.expect_err("they go together");
        assert!(matches!(error, SinkError::Unavailable { .. }), "{error:?}");
        drop(life);
        bench.begin_again().await.deliver(&given, "1").await;
    } else {
        assert!(alone.expect("delivered").progress.is_none());
        drop(life.sink.store("1".into()).await.expect("stored"));
    }
    assert_eq!(bench.begin_again().await.found.as_deref(), Some(&b"1"[..]));
    assert_eq!(bench.assert_delivered(&given).await.len(), given.len(), "each once");
}

pub(super) async fn a_delivery_that_was_dropped_half_way_ends_the_publisher<K: Kind>() {
    let bench = Bench::<K>::new().await;
    let given = bench.records(0..900);
    let (first, rest) = given.split_at(10);
    let mut life = bench.begin().await;
    life.deliver(first, "before").await;
    let answer = life.publish(rest, "during").now_or_never();
    assert!(answer.is_none(), "it takes its time");
    assert_ended(&mut life, rest).await;
    drop(life);
    let found = bench.begin_again().await.found.expect("progress");
    match found.as_ref() {
        b"during" if K::CAN.one_step => {} // It was committed all the same, as a whole.
        b"during" => assert_in_order(&given, &bench.kind.read(given.len()).await),
        b"before" => {
            // What was dropped may be at work still, and hold the file.
            let again = || async {
                let mut next = bench.begin_again().await;
                next.publish_and_store(rest, "after").await.map_err(|error| format!("{error:?}"))
            };
            wait::until("it is delivered", wait::PATIENCE, again).await.expect("delivered");
        }
        other => panic!("{}", other.escape_ascii()),
    }
    bench.assert_delivered(&given).await;
}

pub(super) async fn stored_progress_is_read_back_whenever_the_publisher_ends<K: Kind>() {
    let bench = Bench::<K>::new().await;
    let given = bench.records(0..30);
    assert_eq!(bench.begin().await.found, None, "a first start");
    drop(bench.fenced(None).await.expect("fenced, and nothing read"));
    let found = async |wanted: &str| {
        let life = bench.begin().await;
        assert_eq!(life.found.as_deref(), Some(wanted.as_bytes()));
        life
    };
    let mut life = bench.begin().await;
    assert_eq!(life.found, None);
    drop(life.sink.store("1".into()).await.expect("stored"));
    drop(life);
    let mut life = found("1").await;
    let proof = life.publish(&given, "2").await.expect("delivered");
    drop(life);
    let mut life = found(if proof.is_some() { "2" } else { "1" }).await;
    life.publish_and_store(&bench.records(30..60), "3").await.expect("stored");
    // Who only looks disturbs no one.
    let mut looks = bench.made(None).await.expect("it is made");
    let seen = looks.sink.peek().await.expect("it can be read");
    assert_eq!(seen.own.as_deref(), Some(&b"3"[..]));
    // Progress without a record, as when others have written.
    life.publish_and_store(&[], "4").await.expect("stored");
    drop(life);
    found("4").await;
    bench.assert_delivered(&bench.records(0..60)).await;
}

pub(super) async fn progress_is_found_by_its_own_name_alone<K: Kind>() {
    let bench = Bench::<K>::new().await;
    let mut life = bench.begin().await;
    let name = format!("{}_b", bench.t.database().name());
    let mut other = bench.fenced(Some(&name)).await.expect("fenced");
    other.read().await.expect("read");
    drop(life.sink.store("a".into()).await.expect("the other has fenced nobody"));
    drop(other.sink.store("b".into()).await.expect("stored"));
    drop((life, other));
    assert_eq!(bench.begin().await.found.as_deref(), Some(&b"a"[..]));
    let mut other = bench.fenced(Some(&name)).await.expect("fenced");
    other.read().await.expect("read");
    assert_eq!(other.found.as_deref(), Some(&b"b"[..]));
}

pub(super) async fn one_that_was_replaced_stores_no_progress_that_counts<K: Kind>() {
    let bench = Bench::<K>::new().await;
    let given = bench.records(0..40);
    let (first, rest) = given.split_at(20);
    let late = bench.records(40..50);
    let mut old = bench.begin().await;
    old.deliver(first, "old").await;
    bench.depose(&old).await;
    let mut new = bench.begin().await;
    assert_eq!(new.found.as_deref(), Some(&b"old"[..]));
    new.deliver(rest, "new").await;
    // It was frozen meanwhile, and knows of nothing.
    let told = old.publish_and_store(&late, "late").await;
    match K::CAN.fence {
        Fence::Broker | Fence::SessionAndBroker => {
            assert!(matches!(told, Err(SinkError::Fenced(_))), "{told:?}")
        }
        Fence::Session => assert!(matches!(told, Err(SinkError::Unavailable { .. })), "{told:?}"),
        Fence::Claim => {
            told.expect("its own progress, which does not count");
            for _ in 0..5 {
                drop(old.sink.store("later".into()).await.expect("nor does more of it"));
            }
        }
    }
    let seen = bench.made(None).await.expect("it is made").sink.peek().await;
    let seen = seen.expect("it can be read").own;
    assert_eq!(seen.as_deref(), Some(&b"new"[..]));
    // The newer one is not disturbed.
    let more = bench.records(50..60);
    new.deliver(&more, "newer").await;
    let counts = [&given[..], &more].concat();
    let found = bench.kind.read(counts.len()).await;
    let (late, found): (Vec<_>, Vec<_>) = found.into_iter().partition(|record| {
        late.iter().any(|late| Some(&*late.id) == record.id()) // Copies of what a newer one delivers.
    });
    assert_in_order(&counts, &found);
    let keeps_out = matches!(K::CAN.fence, Fence::Broker | Fence::SessionAndBroker);
    assert!(!keeps_out || late.is_empty(), "{late:?}");
    drop((old, new));
    assert_eq!(bench.begin().await.found.as_deref(), Some(&b"newer"[..]));
}

pub(super) async fn what_was_proven_stored_is_what_a_successor_reads<K: Kind>() {
    let bench = Bench::<K>::new().await;
    let given = bench.records(0..40);
    let (first, rest) = given.split_at(20);
    let mut old = bench.begin().await;
    old.deliver(first, "before").await;
    bench.depose(&old).await;
    let mut new = bench.fenced(None).await.expect("fenced");
    // Between the other's fence and its reading.
    let told = old.publish_and_store(rest, "between").await;
    new.read().await.expect("read");
    match told {
        Ok(()) => assert_eq!(new.found.as_deref(), Some(&b"between"[..])),
        Err(_) => assert_eq!(new.found.as_deref(), Some(&b"before"[..])),
    }
    assert_eq!(told.is_ok(), K::CAN.fence == Fence::Claim);
    if told.is_err() {
        new.deliver(rest, "after").await;
    }
    drop((old, new));
    // A sink that is dropped ends by itself.
    let read = async || match bench.kind.read(given.len()).await {
        found if found.len() >= given.len() => Ok(()),
        found => Err(format!("{} records", found.len())),
    };
    wait::until("all are there", wait::PATIENCE, read).await.expect("they are");
    bench.assert_delivered(&given).await;
}
