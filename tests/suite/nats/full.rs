//! A stream that takes no more, or no message as large as the relay's progress: both wait, and are told with what to type.

use outbox_harness::{Harness, event::Event, nats::Stream, relay::Relay, servers, wait};
use serde_json::{Value, json};

use super::{all_arrive, stream, to, topic};
use crate::checks;

async fn says(relay: &Relay, words: &str) {
    wait::until(words, wait::PATIENCE, || async {
        let status = relay.try_status().await.map_err(|error| error.to_string())?;
        match status.get("not_ready_because").and_then(Value::as_str) {
            Some(why) if why.contains(words) => Ok(()),
            _ => Err(status.to_string()),
        }
    })
    .await
    .expect("it says so");
}

fn edit(stream: &Stream, flag: &str) -> String {
    format!("`nats stream edit {} {flag}=-1`", stream.name())
}

/// What is typed sets this.
async fn raise(stream: &Stream, limit: &str) {
    stream.change(&Value::from_iter([(limit, -1)])).await;
}

#[tokio::test]
async fn a_full_stream_is_named_by_readyz_and_by_check_with_the_limit_to_raise_and_all_arrives() {
    for (limit, flag, enough) in
        [("max_msgs", "--max-msgs", 3), ("max_bytes", "--max-bytes", 2_000)]
    {
        let mut t = Harness::start().await;
        let settings = Value::from_iter([("discard", json!("new")), (limit, json!(enough))]);
        let stream = stream(&t, servers::nats().await, &settings).await;
        let mut relay = to(&stream, t.relay()).start().await;
        let topic = topic(&t);
        t.commit((0..9).map(|n| Event::to(&topic).key(&format!("key {n}")))).await;
        says(&relay, &edit(&stream, flag)).await;
        let running = to(&stream, t.relay()).set("admin.listen", &relay.admin().to_string());
        let told = |found: &checks::Finding| {
            found.verdict == "problem" && found.seen.contains(&edit(&stream, flag))
        };
        // Between two attempts it may not have failed yet.
        wait::until("check tells of it", wait::PATIENCE, || async {
            let findings = checks::check(&running).await;
            if findings.iter().any(told) { Ok(()) } else { Err(format!("{findings:#?}")) }
        })
        .await
        .expect("it does");
        raise(&stream, limit).await;
        all_arrive(&t, &stream).await;
        relay.wait_ready().await;
    }
}

#[tokio::test]
async fn a_stream_that_takes_no_message_as_large_as_progress_is_named_and_flows_once_it_does() {
    let mut t = Harness::start().await;
    let stream = stream(&t, servers::nats().await, &json!({ "max_msg_size": 100 })).await;
    let settings = to(&stream, t.relay());
    let command = edit(&stream, "--max-msg-size");
    let findings = checks::check(&settings).await;
    let warned = findings.iter().find(|found| found.remedy.contains(&command));
    assert_eq!(warned.expect("it is foreseen").verdict, "warning", "{findings:#?}");
    let mut relay = settings.spawn();
    says(&relay, &command).await;
    raise(&stream, "max_msg_size").await;
    relay.wait_ready().await;
    t.commit([Event::to(&topic(&t)).key("a")]).await;
    all_arrive(&t, &stream).await;
}
