//! WAL that a stranger's open transaction keeps: who it is is said before the slot is lost, and nothing is lost
//! with it.

use std::time::Duration;

use outbox_harness::{Harness, database::Role, postgres::Postgres, relay::Relay, servers, wait};
use tokio_postgres::Client;

use crate::{
    obeyed::typed,
    rows::{each_once, insert, run},
};

const DEADLINE: Duration = Duration::from_secs(60);

/// Writes WAL as any role that may connect can, 4 MB at a time.
async fn write(stranger: &Client, times: u32) {
    for _ in 0..times {
        let message =
            "select pg_logical_emit_message(false, 'x', repeat('0123456789abcdef', 250000))";
        stranger.batch_execute(message).await.expect("written");
    }
}

async fn concern(relay: &Relay, words: &str) -> String {
    let told = wait::until(words, DEADLINE, || async {
        let concerns =
            relay.status().await.get("concerns").map(ToString::to_string).unwrap_or_default();
        if concerns.contains(words) { Ok(concerns) } else { Err(concerns) }
    });
    told.await.expect("named")
}

#[tokio::test]
async fn a_strangers_open_transaction_that_keeps_wal_is_named_before_the_slot_is_lost_and_then() {
    let ((postgres, _server), kafka) = tokio::join!(Postgres::private(), servers::kafka());
    let t = Harness::with(postgres, kafka).await;
    for setting in ["max_slot_wal_keep_size = '64MB'", "max_wal_size = '64MB'"] {
        run(&t, &format!("alter system set {setting}")).await;
    }
    run(&t, "select pg_reload_conf()").await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = t.relay().start().await;
    let stranger = t.database().connect(Role::Consumer).await;
    let pin = "begin; select pg_logical_emit_message(true, 'x', 'y'); prepare transaction 'pin'";
    stranger.batch_execute(pin).await.expect("prepared");
    let before = insert(&t, &topic, "now()").await;
    write(&stranger, 6).await;
    let told = concern(&relay, "rollback prepared 'pin'").await;
    assert!(told.contains("max_slot_wal_keep_size"), "{told}");
    assert_eq!(relay.status().await["ready"], true, "events flow");
    let checked = t.relay().command(&["check"]).await;
    let checked = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.contains("rollback prepared 'pin'"), "{checked}");
    each_once(&topic, &[&before]).await;
    // The limit is looked at by a checkpoint.
    write(&stranger, 30).await;
    run(&t, "checkpoint").await;
    let waits = wait::until("a new slot waits for it", DEADLINE, || async {
        let why = relay.status().await["not_ready_because"].to_string();
        if why.contains("open transactions") { Ok(why) } else { Err(why) }
    });
    let why = waits.await.expect("it is named");
    let held = insert(&t, &topic, "now()").await;
    run(&t, typed(&why, "rollback prepared 'pin'")).await;
    relay.wait_ready().await;
    each_once(&topic, &[&before, &held]).await;
}

#[tokio::test]
async fn a_strangers_idle_session_that_keeps_wal_is_named_with_what_ends_it() {
    let ((postgres, _server), kafka) = tokio::join!(Postgres::private(), servers::kafka());
    let t = Harness::with(postgres, kafka).await;
    run(&t, "alter system set max_slot_wal_keep_size = '64MB'").await;
    run(&t, "select pg_reload_conf()").await;
    let relay = t.relay().start().await;
    let (idle, stranger) =
        tokio::join!(t.database().connect(Role::Consumer), t.database().connect(Role::Consumer));
    let pin = "begin; select pg_logical_emit_message(true, 'x', 'y')";
    idle.batch_execute(pin).await.expect("it has written");
    write(&stranger, 6).await;
    let told = concern(&relay, "pg_terminate_backend").await;
    run(&t, typed(&told, "pg_terminate_backend")).await;
    let over = wait::until("it is over", DEADLINE, || async {
        run(&t, "checkpoint").await;
        let concerns =
            relay.status().await.get("concerns").map(ToString::to_string).unwrap_or_default();
        if concerns.contains("pg_terminate_backend") { Err(concerns) } else { Ok(()) }
    });
    over.await.expect("no WAL is kept");
}
