//! A stranger that may publish to the progress subject, and deletes the whole stream by it.

use outbox_harness::{Harness, event::Event, servers};
use serde_json::json;

use super::{all_arrive, progress, stream, to, topic};
use crate::obeyed::says;

#[tokio::test]
async fn what_a_roll_up_of_all_took_is_published_again_by_obeying_the_halt() {
    let mut t = Harness::start().await;
    let stream = stream(&t, servers::nats().await, &json!({})).await;
    let mut relay = to(&stream, t.relay()).start().await;
    t.commit((0..9).map(|n| Event::to(&topic(&t)).key(&format!("key {n}"))).collect::<Vec<_>>())
        .await;
    all_arrive(&t, &stream).await;
    stream.publish(&progress(&t), &[("Nats-Rollup", "all")], "{}").await;
    assert_eq!(stream.records(&format!("{}.*", topic(&t))).await.len(), 0, "they are gone");
    t.commit([Event::to(&topic(&t)).key("a")]).await;
    let detail = says(&relay, "that this relay did not store").await;
    let (at_slot, every) =
        detail.split_once("events that were not read yet").expect("what to type");
    assert!(at_slot.contains("resume --at slot"), "{detail}");
    let (_, every) = every.split_once("`--at slot`").expect("it does not publish them");
    for typed in every.split('`').skip(1).step_by(2) {
        if typed
            == format!("nats stream purge {} --subject {} --force", stream.name(), progress(&t))
        {
            stream.purge().await; // Nothing else is in it.
            continue;
        }
        let typed_as = t.database().superuser().batch_execute(typed).await;
        typed_as.unwrap_or_else(|error| panic!("{typed}: {error}"));
    }
    relay.wait_ready().await;
    all_arrive(&t, &stream).await;
}
