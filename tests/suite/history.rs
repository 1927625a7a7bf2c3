//! What became of parked events is kept for as long as the settings say, and no longer; whatever
//! guards against a second delivery is kept until it does not matter any more.

use std::os::unix::process::ExitStatusExt;

use outbox_harness::{Harness, database::Role, event::Event, relay::Relay, wait};

use crate::dead_letters::{dead_letters, list, wait_parked, wait_records};

/// Makes all rows of the table look as old as `age`.
async fn age(t: &Harness, age: &str) {
    let sql = format!(
        "update outbox.dead_letters \
         set parked_at = parked_at - interval '{age}', changed_at = changed_at - interval '{age}'"
    );
    t.database().superuser().batch_execute(&sql).await.expect("aged");
}

/// How many there are in each state: `parked 1, released 2`.
async fn states(t: &Harness) -> String {
    let sql = "select coalesce(string_agg(state || ' ' || count, ', ' order by state), '') from ( \
                   select state, count(*) from outbox.dead_letters group by state) s";
    t.database().superuser().query_one(sql, &[]).await.expect("states").get(0)
}

async fn wait_states(t: &Harness, wanted: &str) {
    wait::until(&format!("dead letters: {wanted}"), wait::PATIENCE, || async {
        match states(t).await {
            found if found == wanted => Ok(()),
            found => Err(found),
        }
    })
    .await
    .expect("as many as wanted");
}

/// The rows are gone a moment before the relay counts them.
async fn wait_deleted(relay: &Relay, wanted: u64) {
    let name = "outbox_relay_dead_letters_deleted_total ";
    wait::until("as many are counted as deleted", wait::PATIENCE, || async {
        let metrics = relay.page("/metrics").await;
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        match line.and_then(|count| count.parse::<u64>().ok()) {
            Some(found) if found == wanted => Ok(()),
            found => Err(format!("{found:?}")),
        }
    })
    .await
    .expect("they are");
}

#[tokio::test]
async fn history_older_than_it_is_kept_is_deleted_and_nothing_else_is() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let settings = t.relay().set("retention.keep_dead_letters", "1h");
    let mut relay = settings.start().await;
    let event = |key: &str| Event::to(topic.name()).key(key).partition(9);
    t.commit([event("discarded"), event("released"), event("parked")]).await;
    wait_parked(&t, |parked| parked == 3).await;
    let id = |key: &str| {
        let key = key.to_owned();
        let t = &t;
        async move {
            let of_key = list(t).await.into_iter().find(|entry| entry["key"] == key.as_str());
            of_key.expect("it is parked")["id"].to_string()
        }
    };
    let released = id("released").await;
    dead_letters(&t, &["discard", &id("discarded").await]).await;
    dead_letters(&t, &["edit", &released, "--no-partition"]).await;
    dead_letters(&t, &["release", "--topic", topic.name(), "--key", "released"]).await;
    wait_records(&topic, 1).await;
    wait_states(&t, "discarded 1, parked 1, released 1").await;
    assert!(relay.sigterm().await.success());

    age(&t, "59 minutes").await;
    // What the stream may still send, and what another cluster has sent; more than one statement takes.
    let more = format!(
        "insert into outbox.dead_letters (relay, system_id, commit_lsn, ordinal, headers, fit, \
             reason, error, state, changed_at) \
         select '{name}', case n when 0 then s.id when 1 then s.id else 'another' end, \
             case n when 1 then '0/10' else 'FFFFFFFF/0' end::pg_lsn, n, '[]', true, '', '', \
             case n when 0 then 'discarded' else 'released' end, now() - interval '2 hours' \
         from generate_series(0, 1200) n, \
             (select system_identifier::text as id from pg_control_system()) s",
        name = t.database().name()
    );
    t.database().superuser().batch_execute(&more).await.expect("older ones");
    relay.restart();
    relay.wait_ready().await;
    wait_states(&t, "discarded 2, parked 1, released 1").await;
    wait_deleted(&relay, 1200).await;
    assert!(relay.sigterm().await.success());

    // They are confirmed, and a repair would still read what they were written with.
    age(&t, "2 minutes").await;
    let run = async |sql: &str| t.database().superuser().batch_execute(sql).await.expect(sql);
    run("update outbox.dead_letters set system_id = 'another' where commit_lsn = 'FFFFFFFF/0'; \
         insert into outbox.dead_letters (relay, system_id, commit_lsn, ordinal, headers, fit, reason, \
             error, state, changed_at) \
         select relay, s.system_identifier::text, 'FFFFFFFF/0', 7, '[]', true, '', '', 'discarded', \
             now() - interval '2 hours' from outbox.dead_letters, pg_control_system() s \
         where state = 'parked'")
    .await;
    relay.restart();
    relay.wait_ready().await;
    wait_states(&t, "discarded 2, parked 1, released 1").await;
    // A repair may read the others.
    wait_deleted(&relay, 1).await;
    assert!(relay.sigterm().await.success());

    // As if they lay before the oldest snapshot.
    run("update outbox.dead_letters set commit_lsn = '0/20' \
         where state <> 'parked' and commit_lsn <> 'FFFFFFFF/0'")
    .await;
    relay.restart();
    relay.wait_ready().await;
    wait_states(&t, "discarded 1, parked 1").await;
    wait_deleted(&relay, 2).await;
    let left = "select commit_lsn::text from outbox.dead_letters where state = 'discarded'";
    let left: String = t.database().superuser().query_one(left, &[]).await.expect("one").get(0);
    assert_eq!(left, "FFFFFFFF/0", "what the stream may still send is kept, whatever its age");
    assert_eq!(topic.records().await.len(), 1, "the other is parked");
}

#[tokio::test]
async fn an_event_parked_just_before_a_crash_and_discarded_stays_left_out_however_old_that_is() {
    let mut t = Harness::start().await;
    let topic = t.topic("late");
    let settings = t.relay().set("retention.keep_dead_letters", "1h");
    let settings = settings.set("sink.topic_grace", "100ms");
    let mut relay = settings.clone().fault("parked").start().await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    let status = relay.wait_end(wait::PATIENCE).await;
    assert_eq!(status.signal(), Some(libc::SIGKILL), "{status}");
    assert!(relay.logs_contain("fault: parked"));
    let id = list(&t).await[0]["id"].to_string();
    dead_letters(&t, &["discard", &id]).await;
    age(&t, "2 hours").await;
    // By now it could be delivered: only the row keeps it from that.
    let topic = topic.create(1).await;
    let _relay = settings.start().await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    wait_records(&topic, 1).await;
    wait_states(&t, "discarded 1").await;
    age(&t, "2 hours").await;
    // By hand, as the documentation allows it once the discard has had its effect.
    let owner = t.database().connect(Role::Owner).await;
    wait::until("the discard is settled", wait::PATIENCE, || async {
        let sql = "delete from outbox.dead_letters where state in ('released', 'discarded')";
        match owner.execute(sql, &[]).await {
            Ok(1) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
    .expect("it may go");
    assert_eq!(topic.records().await.len(), 1);
}
