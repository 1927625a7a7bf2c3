//! A row that the server can't decode: its walsender fails at it again and again.

use outbox_harness::{
    Harness,
    event::Event,
    relay::{Relay, Settings},
    topic::Topic,
    wait,
};

use super::says;
use crate::{
    obeyed::typed,
    repair::wait_snapshot,
    rows::{insert, run},
};

const TYPE: &str = "create type public.odd; \
    create function public.odd_in(cstring) returns public.odd \
        language internal immutable strict as 'textin'";
const COLUMN: &str = "create type public.odd (input = public.odd_in, output = public.odd_out, like = text); \
     alter table outbox.events add column odd public.odd";

/// A value of that type can't be shown while `out` is another function than `textout`. A walsender decodes a row with
/// the function that was there when the row was written, whatever there is by now.
fn shown_by(out: &str) -> String {
    format!(
        "create or replace function public.odd_out(public.odd) returns cstring \
         language internal immutable strict as '{out}'"
    )
}

/// Rows that have such a value, in one transaction.
async fn odd(t: &Harness, topic: &Topic, sequence: std::ops::RangeInclusive<usize>) {
    let rows = format!(
        "insert into outbox.events (topic, key, headers, odd) \
         select '{}', 'odd', jsonb_build_object('sequence', n::text), 'odd' \
         from generate_series({}, {}) n",
        topic.name(),
        sequence.start(),
        sequence.end()
    );
    run(t, &rows).await;
}

/// One row was delivered while it could be shown; three that can't be shown by now wait, and one behind them.
async fn undecodable(settings: impl Fn(Settings) -> Settings) -> (Harness, Topic, Relay) {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    for statement in [TYPE, &shown_by("textout"), COLUMN] {
        run(&t, statement).await;
    }
    let relay = settings(t.relay()).start().await;
    odd(&t, &topic, 1..=1).await;
    t.count(&topic, 1).await.assert_exactly_once();
    wait_snapshot(&t).await;
    run(&t, &shown_by("any_out")).await;
    odd(&t, &topic, 2..=4).await;
    insert(&t, &topic, "now()").await;
    (t, topic, relay)
}

/// Types the statement that drops the slot; between two attempts it is not active.
async fn drop_as_told(t: &Harness, relay: &Relay) {
    let words =
        ["Nothing is lost, and everything waits", "the server can't decode", "outbox.events"];
    let told = says(relay, &words).await;
    let statement = typed(&told, "pg_drop_replication_slot");
    wait::until("the slot is dropped", wait::PATIENCE, || async {
        t.database().superuser().batch_execute(statement).await
    })
    .await
    .expect("between two attempts it is not active");
}

async fn all_arrive(mut t: Harness, topic: Topic, mut relay: Relay) {
    relay.wait_ready().await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    let truth = t.committed().await;
    assert_eq!(truth.len(), 6);
    let records = topic.records_with(truth.iter().map(|row| row.id.clone())).await;
    assert_eq!(records.len(), 6, "each once");
    assert!(relay.sigterm().await.success());
}

#[tokio::test]
async fn a_row_that_the_server_can_not_decode_is_published_from_the_table_once_the_slot_is_dropped()
{
    let (t, topic, relay) = undecodable(|settings| settings).await;
    let told = says(&relay, &["If it stays so"]).await;
    assert!(told.contains("cannot display a value"), "{told}");
    // It stays so, whatever there is by now.
    run(&t, &shown_by("textout")).await;
    drop_as_told(&t, &relay).await;
    all_arrive(t, topic, relay).await;
}

/// As of a row that takes more than 1 GB as text, in a column that the relay reads.
#[tokio::test]
async fn a_row_that_can_not_be_read_from_the_table_either_is_published_once_it_can() {
    let (t, topic, relay) = undecodable(|settings| settings.set("outbox.columns.key", "odd")).await;
    drop_as_told(&t, &relay).await;
    says(&relay, &["reading the outbox tables", "cannot display a value"]).await;
    assert_eq!(topic.records().await.len(), 1, "everything waits");
    run(&t, &shown_by("textout")).await;
    all_arrive(t, topic, relay).await;
}
