//! Rights of the relay's principal: what lacks is named with what gives it, and what it may not write is parked.
//!
//! The relay delivers again once it may, and nothing else has to be done.

use std::time::{Duration, Instant};

use outbox_harness::{
    Harness,
    acl::{self, Operation, allow_transactions},
    check,
    event::Event,
    relay::Relay,
    topic::Topic,
    wait,
};

use super::{Case, NEWCOMER, PASSWORD, PRINCIPAL};
use crate::{
    dead_letters::{count_parked, dead_letters, list, texts, wait_parked, wait_parked_again},
    obeyed::typed,
};

/// Nothing, or no more than to see it; in the middle of the stream, or from the first event on.
async fn parks_what_it_may_not_write(delivery: &str) {
    let mut case = Case::new().await;
    let settings = case.relay_by_password("PLAIN", PASSWORD).set("sink.delivery", delivery);
    let (hidden, seen) = (case.other("hidden").await, case.other("seen").await);
    hidden.allow("User:somebody", Operation::Write).await;
    seen.allow(PRINCIPAL, Operation::Describe).await;
    let relay = settings.start().await;
    let revoked = case.topic.clone();
    let free = case.other("free").await;
    let (t, broker) = (&mut case.harness, case.broker.plain);
    let event = |topic: &Topic| Event::to(topic.name()).key("k");
    t.commit([event(&revoked), event(&free), event(&hidden), event(&seen), event(&free)]).await;
    wait_parked(t, |parked| parked == 2).await;
    revoked.allow("User:somebody", Operation::Write).await;
    // Until the broker has heard of it, they are delivered.
    let deadline = Instant::now() + wait::PATIENCE;
    while count_parked(t).await == 2 {
        assert!(Instant::now() < deadline, "it is still allowed");
        t.commit([event(&revoked), event(&free)]).await;
    }
    t.commit([event(&hidden), event(&free)]).await;
    let mut truth = t.committed().await;
    truth.retain(|row| row.topic == free.name());
    free.records_with(truth.into_iter().map(|row| row.id)).await;
    assert!(relay.logs_contain("not_authorised"), "{}", relay.log_text());
    let entries = list(t).await;
    let errors = texts(&entries, "error").into_iter().zip(texts(&entries, "topic"));
    for (reason, (error, topic)) in texts(&entries, "reason").into_iter().zip(errors) {
        let told = reason == "not_authorised"
            && error.contains(&format!("lacks Write on the topic {topic}"));
        assert!(told || reason == "lane_parked", "{reason}: {error}");
    }

    // Refused at a look before anything was sent, and by the broker that was sent it.
    for topic in [&hidden, &seen, &revoked] {
        let mut told = texts(&entries, "error").into_iter();
        let end = format!("--operation Write --operation DescribeConfigs --topic {}", topic.name());
        let error = told.find(|error| error.contains(&end)).expect("a command for the topic");
        acl::obey(broker, typed(error, &end)).await;
    }
    let deadline = Instant::now() + wait::PATIENCE;
    while count_parked(t).await > 0 {
        assert!(Instant::now() < deadline, "{:?}", list(t).await);
        dead_letters(t, &["release", "--all"]).await;
        wait_parked_again(t).await;
    }
    for topic in [&hidden, &seen, &revoked, &free] {
        let mut truth = t.committed().await;
        truth.retain(|row| row.topic == topic.name());
        let records = topic.records_with(truth.iter().map(|row| row.id.clone())).await;
        let count = check::compare(&truth, &records, 2);
        if delivery == "exactly-once" {
            count.assert_exactly_once();
        } else {
            count.assert_at_least_once();
        }
    }
}

#[tokio::test]
async fn what_the_principal_may_not_write_is_parked_and_comes_once_it_may() {
    parks_what_it_may_not_write("exactly-once").await;
}

#[tokio::test]
async fn with_at_least_once_what_the_principal_may_not_write_is_parked_too() {
    parks_what_it_may_not_write("at-least-once").await;
}

/// Each right of docs/KAFKA-ACLS.md: with the others and without it, `check` and the relay name it
/// and what gives it; once it is given, the relay delivers.
async fn names_what_is_missing(delivery: &str) {
    let rights = [Operation::Read, Operation::Write, Operation::DescribeConfigs];
    for missing in
        [Some(Operation::Read), Some(Operation::Write), Some(Operation::DescribeConfigs), None]
    {
        let mut case = Case::new().await;
        let name = case.harness.database().name().to_owned();
        let progress = Topic::new(case.broker.plain, format!("outbox-relay-progress-{name}"));
        let progress = progress.create_with(1, &[("cleanup.policy", "compact")]).await;
        for right in rights {
            if missing.map(|missing| format!("{missing:?}")) != Some(format!("{right:?}")) {
                progress.allow(PRINCIPAL, right).await;
            }
        }
        let id = format!("outbox-relay-{name}");
        // What an entry speaks of is closed to all others.
        let user = if missing.is_some() { PRINCIPAL } else { "User:somebody" };
        allow_transactions(case.broker.plain, &id, user).await;
        case.topic.allow(PRINCIPAL, Operation::Write).await;

        let settings = case.relay_by_password("PLAIN", PASSWORD).set("sink.delivery", delivery);
        let word = missing.map_or_else(|| "Write".to_owned(), |right| format!("{right:?}"));
        let said = case.refused(&settings).await;
        let command = format!("--allow-principal {PRINCIPAL} --operation {word} ");
        assert!(said.contains(&command) && said.contains(&format!("lacks {word} on")), "{said}");
        let mut relay = settings.spawn();
        relay.wait_for("/readyz", 503).await;
        relay.wait_log(&format!("lacks {word} on")).await;

        match missing {
            Some(right) => progress.allow(PRINCIPAL, right).await,
            None => allow_transactions(case.broker.plain, &id, PRINCIPAL).await,
        }
        relay.wait_ready().await;
        case.harness.commit([Event::to(case.topic.name()).key("k")]).await;
        case.harness.count(&case.topic, 2).await.assert_exactly_once();
        // Asked while it runs, the question about its transactional id fences no one.
        let output = case.relay_by_password("PLAIN", PASSWORD).command(&["check"]).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        case.harness.commit([Event::to(case.topic.name()).key("k")]).await;
        case.harness.count(&case.topic, 2).await.assert_exactly_once();
        assert!(!relay.logs_contain("fenced"), "{}", relay.log_text());
    }
}

#[tokio::test]
async fn each_right_that_is_missing_is_named_with_what_gives_it() {
    names_what_is_missing("exactly-once").await;
}

#[tokio::test]
async fn each_right_that_is_missing_is_named_with_at_least_once_too() {
    names_what_is_missing("at-least-once").await;
}

/// The other rights name the topic by then, as whoever obeys the halt before this one gives them.
#[tokio::test]
async fn a_progress_topic_that_may_not_be_created_halts_with_the_command_that_creates_it() {
    let mut case = Case::new().await;
    let name = format!("outbox-relay-progress-{}", case.harness.database().name());
    let progress = Topic::new(case.broker.plain, name.clone());
    for right in [Operation::Read, Operation::Write, Operation::DescribeConfigs] {
        progress.allow(&format!("User:{NEWCOMER}"), right).await;
    }
    let settings = case.relay_of(NEWCOMER, "PLAIN", PASSWORD);
    let said = case.refused(&settings).await;
    let command =
        format!("--create --topic {name} --partitions 1 --config cleanup.policy=compact ");
    assert!(said.contains(&command), "{said}");
    let mut relay = settings.spawn();
    relay.wait_for("/readyz", 503).await;
    relay.wait_log(&command).await;
    assert!(relay.logs_contain("halted"), "{}", relay.log_text());

    progress.create_with(1, &[("cleanup.policy", "compact")]).await;
    relay.wait_ready().await;
    case.harness.commit([Event::to(case.topic.name()).key("k")]).await;
    case.harness.count(&case.topic, 2).await.assert_exactly_once();
}

/// A right, or a setting of the progress topic, is taken away in the middle of the stream and given back:
/// what lacks is named with what gives it, and nothing else has to be done.
async fn goes_on_after(delivery: &str, takes_transactions: bool) {
    let mut case = Case::new().await;
    let name = case.harness.database().name().to_owned();
    let progress = Topic::new(case.broker.plain, format!("outbox-relay-progress-{name}"));
    let id = format!("outbox-relay-{name}");
    let settings = case.relay_by_password("PLAIN", PASSWORD).set("sink.delivery", delivery);
    let mut relay = settings.start().await;
    let topic = case.topic.clone();
    let event = || Event::to(topic.name()).key("k");
    case.harness.commit([event()]).await;

    let lacking = |what: String| format!("lacks Write on the {what}");
    let taken = if takes_transactions {
        // The first entry shuts out all others.
        allow_transactions(case.broker.plain, &id, "User:somebody").await;
        lacking(format!("transactional id {id}"))
    } else {
        progress.allow(PRINCIPAL, Operation::Read).await;
        progress.allow(PRINCIPAL, Operation::DescribeConfigs).await;
        lacking(format!("topic outbox-relay-progress-{name}"))
    };
    not_ready_for(&mut case.harness, &relay, &event, &taken).await;
    case.harness.commit([event(), event()]).await;
    match takes_transactions {
        true => allow_transactions(case.broker.plain, &id, PRINCIPAL).await,
        false => progress.allow(PRINCIPAL, Operation::Write).await,
    }
    relay.wait_ready().await;
    if !takes_transactions {
        let compacted = [("cleanup.policy", "compact")];
        progress.set_beside(&compacted, "max.message.bytes", "150").await;
        let wanted = "--add-config max.message.bytes=";
        not_ready_for(&mut case.harness, &relay, &event, wanted).await;
        progress.set_beside(&compacted, "max.message.bytes", "1048588").await;
        relay.wait_ready().await;
    }
    case.harness.commit([event()]).await;
    let truth = case.harness.committed().await;
    let records = topic.records_with(truth.iter().map(|row| row.id.clone())).await;
    let count = check::compare(&truth, &records, 2);
    match delivery {
        "exactly-once" => count.assert_exactly_once(),
        _ => count.assert_at_least_once(),
    }
    assert_eq!(count_parked(&case.harness).await, 0, "no event is to blame");
}

/// Whoever streams writes progress and reads it at the next start only.
#[tokio::test]
async fn the_right_to_read_progress_is_missed_while_the_relay_streams() {
    let mut case = Case::new().await;
    let name = case.harness.database().name().to_owned();
    let progress = Topic::new(case.broker.plain, format!("outbox-relay-progress-{name}"));
    let relay = case.relay_by_password("PLAIN", PASSWORD).start().await;
    // The first entry shuts out all others.
    progress.allow(PRINCIPAL, Operation::Write).await;
    progress.allow(PRINCIPAL, Operation::DescribeConfigs).await;
    relay.wait_log(&format!("lacks Read on the topic {}", progress.name())).await;
    let page = relay.page("/readyz").await;
    assert!(page.starts_with("ok\nbut") && page.contains("--operation Read"), "{page}");
    case.harness.commit([Event::to(case.topic.name()).key("k")]).await;
    case.harness.count(&case.topic, 2).await.assert_exactly_once();
    progress.allow(PRINCIPAL, Operation::Read).await;
    wait::until("nothing is of concern", wait::PATIENCE, || async {
        let page = relay.page("/readyz").await;
        if page == "ok\n" { Ok(()) } else { Err(page) }
    })
    .await
    .expect("it may read again");
}

/// Until the broker has heard of it events are delivered, so they are written until they are not.
async fn not_ready_for(t: &mut Harness, relay: &Relay, event: &impl Fn() -> Event, wanted: &str) {
    let deadline = Instant::now() + wait::PATIENCE;
    loop {
        let status = relay.status().await;
        let because = status.get("not_ready_because").and_then(|because| because.as_str());
        let because = because.unwrap_or_default();
        if because.contains(wanted) {
            assert!(because.contains("kafka-"), "it says what to type: {because}");
            return;
        }
        assert!(Instant::now() < deadline, "{because}: {}", relay.log_text());
        if because.is_empty() {
            t.commit([event()]).await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn what_keeps_progress_from_being_stored_is_named_while_the_relay_streams() {
    goes_on_after("exactly-once", false).await;
}

#[tokio::test]
async fn with_at_least_once_what_keeps_progress_from_being_stored_is_named_too() {
    goes_on_after("at-least-once", false).await;
}

#[tokio::test]
async fn a_transactional_id_that_is_taken_away_while_the_relay_streams_is_named() {
    goes_on_after("exactly-once", true).await;
}

/// It delivers nothing that could fail, and says so all the same.
#[tokio::test]
async fn an_idle_relay_that_may_no_longer_see_its_progress_topic_says_what_it_lacks() {
    let mut case = Case::new().await;
    let name = case.harness.database().name().to_owned();
    let progress = Topic::new(case.broker.plain, format!("outbox-relay-progress-{name}"));
    let mut relay = case.relay_by_password("PLAIN", PASSWORD).start().await;
    case.harness.commit([Event::to(case.topic.name()).key("k")]).await;
    case.harness.count(&case.topic, 2).await.assert_exactly_once();
    // The first entry shuts out all others.
    progress.allow("User:somebody", Operation::Describe).await;
    let lacking = format!("lacks Read, Write, DescribeConfigs on the topic {}", progress.name());
    let because = wait::until("it says so", wait::PATIENCE, || async {
        let status = relay.try_status().await.map_err(|error| error.to_string())?;
        match status["not_ready_because"].as_str() {
            Some(because) if because.contains(&lacking) => Ok(because.to_owned()),
            _ => Err(status.to_string()),
        }
    });
    let because = because.await.expect("it does");
    case.harness.commit([Event::to(case.topic.name()).key("k")]).await;
    acl::obey(case.broker.plain, typed(&because, "kafka-acls")).await;
    relay.wait_ready().await;
    case.harness.commit([Event::to(case.topic.name()).key("k")]).await;
    case.harness.count(&case.topic, 2).await.assert_exactly_once();
    assert_eq!(count_parked(&case.harness).await, 0, "no event is to blame");
}
