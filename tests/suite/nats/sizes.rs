//! What the protocol itself can't carry, whatever is set: longer headers, and a longer subject.

use outbox_harness::{Harness, event::Event, servers, wait};
use serde_json::json;

use super::{progress, to, topic};
use crate::dead_letters::wait_parked;

/// Of all headers of a message: 65,535 bytes. Of a subject: 4,000. Each with what the relay adds.
#[tokio::test]
async fn an_event_that_no_message_can_carry_is_parked_with_its_lane_and_holds_no_other() {
    let mut t = Harness::start().await;
    let name = t.database().name().to_owned();
    let subjects = [format!("{name}.>"), progress(&t)];
    let subjects = subjects.each_ref().map(String::as_str);
    let stream = servers::nats().await.stream(&name, &subjects, &json!({})).await;
    let _relay = to(&stream, t.relay()).start().await;
    let of = |bytes: usize| "k".repeat(bytes);
    let long = |bytes: usize| format!("{name}.{}", "x".repeat(bytes - name.len() - 3));
    let orders = topic(&t);
    let fits = [
        Event::to(&orders).key(&of(65_000)),
        Event::to(&orders).key("a").header("note", &of(65_000)),
        Event::to(&long(4_000)).key("a"),
    ];
    let refused = [
        Event::to(&orders).key(&of(70_000)),
        Event::to(&orders).key("b").header("note", &of(65_535)),
        Event::to(&long(4_001)).key("a"),
        Event::to(&format!("{name}.{}", of(100_000))).key("a"),
    ];
    let (carried, parked) = (fits.len(), refused.len());
    t.commit(fits).await;
    t.commit(refused).await;
    t.commit([Event::to(&orders).key("other")]).await;
    wait_parked(&t, |now| usize::try_from(now).is_ok_and(|now| now == parked)).await;
    wait::until("the others are there", wait::PATIENCE, || async {
        match stream.records(&format!("{name}.>")).await.len() {
            all if all == carried + 1 => Ok(()),
            some => Err(format!("{some} of {}", carried + 1)),
        }
    })
    .await
    .expect("they come");
    let reasons = "select reason from outbox.dead_letters order by commit_lsn, ordinal";
    let reasons = t.database().superuser().query(reasons, &[]).await.expect("the parked ones");
    let reasons: Vec<String> = reasons.iter().map(|row| row.get(0)).collect();
    assert_eq!(reasons, ["too_large", "too_large", "invalid_topic", "invalid_topic"]);
}
