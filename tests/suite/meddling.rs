//! What others put on the outbox's tables and that keeps rows out of them.

use outbox_harness::{Harness, check as check_records, event::Event};

use crate::{
    checks::check,
    dead_letters::{count_parked, wait_parked},
    remedies::halted,
    rows::{check_says, run},
};

const NOTHING: &str = "create function nothing() returns trigger language plpgsql as \
    $$ begin return null; end $$";

#[tokio::test]
async fn a_parked_event_that_a_trigger_keeps_out_of_its_table_halts_the_relay_and_is_not_lost() {
    let mut t = Harness::start().await;
    let missing = t.topic("missing").name().to_owned();
    let settings = t.relay().set("sink.topic_grace", "100ms");
    let relay = settings.clone().start().await;
    let event = || Event::to(&missing).key("a");
    t.commit([event()]).await;
    wait_parked(&t, |parked| parked == 1).await;
    run(&t, NOTHING).await;
    let trigger = "create trigger t before insert on outbox.dead_letters for each row \
                   execute function nothing()";
    run(&t, trigger).await;
    t.commit([event(), event()]).await;
    let halt = halted(&relay).await;
    assert!(halt.contains("outbox.dead_letters, though the statement succeeded"), "{halt}");
    assert_eq!(count_parked(&t).await, 1);
    check_says(&settings, &["drop trigger t on outbox.dead_letters"]).await;
    run(&t, "drop trigger t on outbox.dead_letters").await;
    wait_parked(&t, |parked| parked == 3).await;
}

#[tokio::test]
async fn progress_that_a_trigger_keeps_out_or_changes_halts_the_relay_and_is_stored_afterwards() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let settings = t.relay().set("sink.delivery", "at-least-once").set("sink.progress", "postgres");
    let mut relay = settings.clone().start().await;
    run(&t, NOTHING).await;
    let other = "create function other() returns trigger language plpgsql as \
        $$ begin new.relay := new.relay || '2'; return new; end $$";
    run(&t, other).await;
    for (harms, (harm, remedy)) in (1..).zip([
        (
            "create trigger t before insert on outbox.progress for each row execute function nothing()",
            "drop trigger t on outbox.progress",
        ),
        (
            "create trigger t before insert on outbox.progress for each row execute function other()",
            "drop trigger t on outbox.progress",
        ),
        (
            "create rule r as on insert to outbox.progress do instead nothing",
            "drop rule r on outbox.progress",
        ),
    ]) {
        run(&t, harm).await;
        t.commit([Event::to(topic.name()).key("k")]).await;
        let halt = halted(&relay).await;
        assert!(
            halt.contains("outbox.progress as it was sent"),
            "{halt}"
        );
        check_says(&settings, &[remedy]).await;
        run(&t, remedy).await;
        relay.wait_ready().await;
        // What was delivered and not stored is delivered again, so its position steps back.
        let truth = t.committed().await;
        let records = topic.records_with(truth.iter().map(|row| row.id.clone())).await;
        let count = check_records::compare(&truth, &records, 1);
        count.assert_at_least_once();
        assert!(count.duplicated <= harms, "once for each of {harms}: {count}");
    }
    run(&t, "alter table outbox.progress set unlogged").await;
    check_says(&settings, &["alter table outbox.progress set logged"]).await;
}

/// Of a constraint that somebody added. The server quotes the row that it refuses.
#[tokio::test]
async fn no_page_and_no_log_has_the_payload_of_an_event_that_its_table_refuses() {
    let mut t = Harness::start().await;
    let missing = t.topic("missing").name().to_owned();
    let mut relay = t.relay().set("sink.topic_grace", "100ms").start().await;
    run(&t, "alter table outbox.dead_letters add column tenant text not null").await;
    t.commit([Event::to(&missing).key("secret")]).await;
    relay.wait_for("/readyz", 503).await;
    relay.wait_log("violates not-null constraint").await;
    let status = relay.status().await.to_string();
    assert!(status.contains("violates not-null constraint"), "{status}");
    let key = "736563726574"; // As bytea is written.
    for said in [status, relay.log_text()] {
        assert!(!said.contains("Failing row") && !said.contains(key), "{said}");
    }
    run(&t, "alter table outbox.dead_letters drop column tenant").await;
    wait_parked(&t, |parked| parked == 1).await;
}

#[tokio::test]
async fn check_names_what_may_keep_events_out_or_forgets_what_is_parked() {
    let t = Harness::start().await;
    let settings = t.relay();
    let of_events = async || {
        let found = check(&settings).await.into_iter().find(|finding| finding.name == "triggers");
        found.map(|finding| (finding.verdict, finding.remedy))
    };
    assert_eq!(of_events().await, None);
    run(&t, NOTHING).await;
    let on = "for each row execute function nothing()";
    run(&t, &format!("create trigger after_each after insert on outbox.events {on}")).await;
    assert_eq!(of_events().await, None, "it only looks on");
    for (harm, remedy) in [
        (
            format!("create trigger t before insert on outbox.events {on}"),
            "drop trigger t on outbox.events",
        ),
        (
            format!("create trigger t before insert on outbox.events_default {on}"),
            "drop trigger t on outbox.events_default",
        ),
        (
            "create rule r as on insert to outbox.events do instead nothing".to_owned(),
            "drop rule r on outbox.events",
        ),
    ] {
        run(&t, &harm).await;
        let (verdict, said) = of_events().await.expect("it is found");
        assert!(verdict == "warning" && said.contains(&format!("`{remedy}`")), "{said}");
        run(&t, remedy).await;
        assert_eq!(of_events().await, None);
    }
    run(&t, "alter table outbox.dead_letters set unlogged").await;
    check_says(&settings, &["alter table outbox.dead_letters set logged"]).await;
}
