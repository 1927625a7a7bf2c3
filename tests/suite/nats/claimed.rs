//! A stranger that publishes to the progress subject without end while a relay starts.

use outbox_harness::{Harness, event::Event, nats::Nats, wait};
use serde_json::json;

use super::{all_arrive, progress, to, topic};

/// The server's settings; the stranger may publish to this.
fn rights(subject: &str) -> String {
    format!(
        "authorization {{ users = [ {{ user: admin, password: admin }}, {{ user: stranger, password: stranger, \
         permissions: {{ publish: [{subject:?}] }} }} ] }}\n"
    )
}

#[tokio::test]
async fn whoever_stores_to_the_progress_subject_without_end_is_named_until_that_right_is_taken_away()
 {
    let mut t = Harness::start().await;
    let nats = Nats::start_with(&rights(&progress(&t))).expect("a server of its own");
    let name = t.database().name().to_owned();
    let subjects = [format!("{name}.orders.*"), progress(&t)];
    let subjects = subjects.each_ref().map(String::as_str);
    let admin = format!("admin:admin@{}", nats.address());
    let stream = nats.stream_of(&admin, &name, &subjects, &json!({})).await;
    let mut relay = to(&stream, t.relay()).start().await;
    let topic = topic(&t);
    let events = || ["a", "b", "a"].map(|key| Event::to(&topic).key(key));
    t.commit(events()).await;
    all_arrive(&t, &stream).await;
    assert!(relay.sigterm().await.success());

    let _stranger = nats.flood("stranger", "stranger", progress(&t)).await;
    t.commit(events()).await;
    relay.restart();
    let told =
        "others store to it again and again: only the relay may publish to its progress subject";
    wait::until("the relay says so", 2 * wait::PATIENCE, || async {
        let status = relay.try_status().await.map_err(|error| error.to_string())?;
        match status["not_ready_because"].as_str() {
            Some(why) if why.contains(told) => Ok(()),
            _ => Err(status.to_string()),
        }
    })
    .await
    .expect("it does");
    nats.reload(&rights("elsewhere"));
    relay.wait_ready().await;
    t.commit(events()).await;
    all_arrive(&t, &stream).await;
    assert!(relay.sigterm().await.success());
}
