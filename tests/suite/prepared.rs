//! Prepared transactions that were forgotten: they have no session, and are named with what ends them.

use std::time::Duration;

use outbox_harness::{Harness, database::Role, postgres::Postgres, servers, wait};

use crate::{
    obeyed::typed,
    rows::{each_once, insert, run},
};

const DEADLINE: Duration = Duration::from_secs(20);

/// A transaction that is prepared in any database of a server keeps every slot of it from being made.
async fn on_a_server_of_its_own() -> (Harness, outbox_relay::throwaway::LocalPostgres) {
    let ((postgres, server), kafka) = tokio::join!(Postgres::private(), servers::kafka());
    (Harness::with(postgres, kafka).await, server)
}

async fn checked(t: &Harness) -> (Option<i32>, String) {
    let output = t.relay().command(&["check"]).await;
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[tokio::test]
async fn one_that_has_locked_the_table_of_parked_events_is_named_by_relay_check_and_commands() {
    let (t, _server) = on_a_server_of_its_own().await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = t.relay().set_toml("leader.timeout", "\"3s\"").start().await;
    let ends = "rollback prepared 'it''s forgotten'";
    let owner = t.database().connect(Role::Owner).await;
    let lock = "begin; lock table outbox.dead_letters; prepare transaction 'it''s forgotten'";
    owner.batch_execute(lock).await.expect("prepared");
    let poison = "insert into outbox.events (topic, headers) values ('t', '{\"outbox-x\": \"1\"}')";
    run(&t, poison).await;
    relay.wait_for("/readyz", 503).await;
    let told = wait::until("what to type is said", DEADLINE, || async {
        let why = relay.status().await["not_ready_because"].to_string();
        if why.contains(ends) { Ok(why) } else { Err(why) }
    });
    let told = told.await.expect("said");
    assert!(told.contains("holds outbox.dead_letters"), "{told}");
    assert!(relay.logs_contain(ends), "{}", relay.log_text());
    let (_, found) = checked(&t).await;
    assert!(found.contains(ends), "{found}");
    let settings = t.relay().set("postgres.url", &t.database().url(Role::Operator));
    let list = settings.command_that_says(&["dead-letters", "list"], "rollback prepared");
    let (told, mut command) = list.await;
    let id = insert(&t, &topic, "now()").await;
    run(&t, typed(&told, "rollback prepared")).await;
    assert!(command.wait().await.expect("it ends").success(), "{told}");
    relay.wait_ready().await;
    each_once(&topic, &[&id]).await;
}

#[tokio::test]
async fn one_that_keeps_the_slot_from_being_made_is_named_by_relay_and_check() {
    let (t, _server) = on_a_server_of_its_own().await;
    let topic = t.topic("orders").create(1).await;
    let left = "begin; select pg_current_xact_id(); prepare transaction 'left_open'";
    run(&t, left).await;
    let (code, before) = checked(&t).await;
    assert_eq!(code, Some(0), "{before}");
    assert!(before.contains("rollback prepared 'left_open'"), "{before}");
    let mut relay = t.relay().spawn();
    relay.wait_log("the slot waits for open transactions").await;
    relay.wait_for("/readyz", 503).await;
    let why = relay.status().await["not_ready_because"].to_string();
    let (code, found) = checked(&t).await;
    assert_eq!(code, Some(1), "{found}");
    assert!(found.contains("rollback prepared 'left_open'"), "{found}");
    let id = insert(&t, &topic, "now()").await;
    run(&t, typed(&why, "rollback prepared")).await;
    relay.wait_ready().await;
    each_once(&topic, &[&id]).await;
}

/// Whoever prepares it chooses its name: what is printed must end it and nothing else.
#[tokio::test]
async fn what_ends_one_is_printed_so_that_it_can_be_typed_whatever_its_name_is() {
    let (t, _server) = on_a_server_of_its_own().await;
    let topic = t.topic("orders").create(1).await;
    let ends = r"rollback prepared E'x''; drop table outbox.events; --\\n\n\x1b[2J'";
    let prepare = "begin; select pg_current_xact_id(); \
                   prepare transaction E'x''; drop table outbox.events; --\\\\n\\n\\x1b[2J'";
    run(&t, prepare).await;
    let mut relay = t.relay().spawn();
    relay.wait_log("the slot waits for open transactions").await;
    relay.wait_for("/readyz", 503).await;
    let why = relay.status().await["not_ready_because"].as_str().expect("text").to_owned();
    assert_eq!(typed(&why, "rollback prepared"), ends);
    assert_eq!(typed(&checked(&t).await.1, "rollback prepared"), ends);
    let log = relay.log_text();
    assert_eq!(typed(&log, "rollback prepared"), ends);
    let id = insert(&t, &topic, "now()").await;
    run(&t, ends).await;
    relay.wait_ready().await;
    each_once(&topic, &[&id]).await;
}
