//! Whoever makes a slot dies between the statement and the slot's being ready, while an open
//! transaction holds that up: nothing is missed, nothing halts, and no slot is left over.

use std::collections::BTreeSet;

use outbox_harness::{
    Harness, check, database::Role, event::Event, postgres::Postgres, relay::Relay, servers, wait,
};

use crate::repair::{drop_slot, wait_snapshot};

/// What dies.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Dies {
    /// The relay, and is started again while the transaction is open.
    Relay,
    /// The relay, for so long that the server makes the slot for no one, or gives up.
    RelayForLong,
    /// The relay's line, ended at the server.
    Line,
    /// The server's process: the server restarts, and the transaction is gone.
    Server,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Makes {
    FirstWithAll,
    FirstWithNow,
    Repair,
}

async fn says_again(relay: &Relay, before: usize) -> usize {
    let waits = "the slot waits for open transactions";
    wait::until("it waits for the transaction", wait::PATIENCE, || async {
        match relay.log_text().matches(waits).count() {
            found if found > before => Ok(found),
            _ => Err(relay.log_text()),
        }
    })
    .await
    .expect("its slot is being made")
}

/// The server's process that has the slot, and how many slots there are.
async fn slots(t: &Harness) -> (Option<i32>, i64) {
    let sql = "select max(active_pid), count(*) from pg_replication_slots \
               where database = current_database()";
    let row = t.database().superuser().query_one(sql, &[]).await.expect("a count");
    (row.get(0), row.get(1))
}

async fn loses_nothing(mut t: Harness, dies: Dies, makes: Makes) {
    let topic = t.topic("orders").create(1).await;
    let settings = t.relay();
    let settings = match makes {
        Makes::FirstWithNow => settings.set("postgres.start", "now"),
        _ => settings,
    };
    let event = || Event::to(topic.name()).key("k");
    if makes == Makes::Repair {
        let mut relay = settings.clone().start().await;
        t.commit([event()]).await;
        t.count(&topic, 1).await.assert_exactly_once();
        wait_snapshot(&t).await;
        assert!(relay.sigterm().await.success());
        drop_slot(&t).await;
    }
    let mut writer = t.database().connect(Role::Writer).await;
    let open = writer.transaction().await.expect("it begins");
    Event::to(topic.name()).key("late").insert(open.client()).await.expect("inserted");
    t.commit([event()]).await;
    let mut relay = settings.spawn();
    let waited = says_again(&relay, 0).await;
    match dies {
        Dies::Relay => {
            relay.kill9().await;
            relay.restart();
            says_again(&relay, waited).await;
            open.commit().await.expect("committed");
        }
        Dies::RelayForLong => {
            relay.kill9().await;
            open.commit().await.expect("committed");
            wait::until("the slot is nobody's", wait::PATIENCE, || async {
                let found = slots(&t).await;
                if found.0.is_none() { Ok(()) } else { Err(format!("{found:?}")) }
            })
            .await
            .expect("the server has made it, or given up");
        }
        Dies::Line => {
            let end = "select pg_terminate_backend($1, 5000)";
            let pid = slots(&t).await.0.expect("who makes it");
            t.database().superuser().query_one(end, &[&pid]).await.expect("ended");
            says_again(&relay, waited).await;
            open.commit().await.expect("committed");
        }
        Dies::Server => {
            let pid = slots(&t).await.0.expect("who makes it");
            // SAFETY: a process of this test's own server.
            assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
            drop(open);
            wait::until("the server goes down", wait::PATIENCE, || async {
                let asked = t.database().superuser().batch_execute("select 1").await;
                asked.err().map(drop).ok_or("it still answers")
            })
            .await
            .expect("it ends all that it has");
            t.reconnect().await;
        }
    }
    t.commit([event()]).await;
    if dies == Dies::RelayForLong {
        relay.restart();
    }
    relay.wait_ready().await;
    // Where the server had made the slot before it gave up, the last one of them is in it.
    let left_out = match makes {
        Makes::FirstWithNow => t.committed().await,
        _ => vec![],
    };
    t.commit([event(), event()]).await;
    let left_out: BTreeSet<_> = left_out.iter().map(|row| row.id.as_str()).collect();
    let mut truth = t.committed().await;
    truth.retain(|row| !left_out.contains(row.id.as_str()));
    assert!(truth.len() >= 2);
    let records = topic.records_with(truth.iter().map(|row| row.id.clone())).await;
    let in_truth = |id: &str| truth.iter().any(|row| row.id == id);
    let records = records
        .into_iter()
        .filter(|r| makes != Makes::FirstWithNow || r.id().is_some_and(in_truth));
    check::compare(&truth, &records.collect::<Vec<_>>(), 1).assert_exactly_once();
    assert!(!relay.logs_contain("halted"), "{}", relay.log_text());
    assert!(relay.sigterm().await.success());
    assert_eq!(slots(&t).await.1, 1, "{dies:?} {makes:?}");
}

#[tokio::test]
async fn whoever_makes_a_slot_may_die_while_it_waits_and_nothing_is_lost_or_left_over() {
    let cases = [
        (Dies::Relay, Makes::FirstWithAll),
        (Dies::Relay, Makes::Repair),
        (Dies::RelayForLong, Makes::FirstWithAll),
        (Dies::RelayForLong, Makes::FirstWithNow),
        (Dies::RelayForLong, Makes::Repair),
        (Dies::Line, Makes::FirstWithAll),
    ];
    // One after the other: an open transaction of one would hold up the slot of every other.
    for (dies, makes) in cases {
        loses_nothing(Harness::start().await, dies, makes).await;
    }
}

#[tokio::test]
async fn a_server_that_crashes_while_it_makes_a_slot_leaves_none_behind_and_nothing_is_lost() {
    let ((postgres, _server), kafka) = tokio::join!(Postgres::private(), servers::kafka());
    for makes in [Makes::FirstWithAll, Makes::Repair] {
        loses_nothing(Harness::with(postgres, kafka).await, Dies::Server, makes).await;
    }
}
