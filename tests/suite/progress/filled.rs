//! A progress topic that others fill, or whose name somebody has taken.

use std::time::{Duration, Instant};

use outbox_harness::{Harness, event::Event, relay::Settings};

use super::{delivered, progress, store};
use crate::{checks::check, obeyed::typed, remedies::halted};

const ANSWER: &str = "sink.properties.\"fetch.message.max.bytes\"";
const BACKOFF: &str = "sink.properties.\"fetch.queue.backoff.ms\"";

/// Half of the rests of 2 s that reading the topic has: one for each MiB and a half or so.
const RESTS: Duration = Duration::from_secs(10);

/// The relay's settings, but that reading rests whenever librdkafka's queue is full, which each answer fills.
fn resting(t: &Harness, milliseconds: &str) -> Settings {
    t.relay().set(ANSWER, "2097152").set(BACKOFF, milliseconds)
}

/// From the start to the first `ok`.
async fn starts_in(settings: Settings) -> Duration {
    let begun = Instant::now();
    let mut relay = settings.start().await;
    let took = begun.elapsed();
    assert!(relay.sigterm().await.success());
    took
}

/// Each start reads the whole topic. librdkafka's own default rests for a second whenever its queue is full.
#[tokio::test]
async fn a_progress_topic_that_others_fill_is_read_without_pauses() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let _stopped = delivered(&mut t, &topic, "exactly-once").await;
    let record = |number| (format!("j{number}"), Some(vec![b'x'; 1_000]), Vec::new());
    store(&t, (0..16_000).map(record).collect()).await;
    t.commit([Event::to(topic.name()).key("k")]).await;

    // A reading that makes progress is told as one, and not as a broker that is silent.
    let findings = check(&resting(&t, "2000")).await;
    let name = progress(&t).name().to_owned();
    let about = |f: &&crate::checks::Finding| f.seen.contains("is still being read");
    let found = findings.iter().find(about).unwrap_or_else(|| panic!("{findings:#?}"));
    assert_eq!((found.name.as_str(), found.verdict.as_str()), ("start", "warning"));
    assert!(found.seen.contains(&name) && found.remedy.contains("kafka-acls"), "{found:?}");
    assert!(findings.iter().all(|finding| finding.verdict != "problem"), "{findings:#?}");

    // Twice as long as librdkafka's own default. What else a start takes is the same, whatever the machine is busy with.
    let resting = starts_in(resting(&t, "2000")).await;
    let ours = starts_in(t.relay().set(ANSWER, "2097152")).await;
    eprintln!("ready after {resting:?} with rests of 2 s, {ours:?} with ours");
    assert!(resting > ours + RESTS, "{resting:?} with rests of 2 s, {ours:?} with ours");
    let findings = check(&t.relay()).await;
    assert!(findings.iter().all(|finding| !finding.seen.contains("being read")), "{findings:#?}");
    t.count(&topic, 1).await.assert_exactly_once();
}

/// Whoever may create topics can take a name that differs in `.` and `_` alone before a relay's first start.
#[tokio::test]
async fn a_topic_in_the_way_of_the_progress_topic_is_named_with_what_helps() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let name = progress(&t).name().to_owned();
    let twin = name.replace('_', ".");
    assert_ne!(twin, name);
    let there = t.topic_named(&twin).create(1).await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    let findings = check(&t.relay()).await;
    let found = findings.iter().find(|finding| finding.seen.contains(&twin));
    let found = found.unwrap_or_else(|| panic!("{findings:#?}"));
    assert_eq!(found.verdict, "problem", "{found:?}");
    assert!(found.remedy.contains("another `name`"), "{found:?}");

    let mut relay = t.relay().spawn();
    let detail = halted(&relay).await;
    assert!(detail.contains(&name) && detail.contains(&twin), "{detail}");
    assert!(
        typed(&detail, "kafka-topics").ends_with(&format!("--delete --topic {twin}")),
        "{detail}"
    );
    there.delete().await;
    relay.wait_ready().await;
    t.count(&topic, 1).await.assert_exactly_once();
}
