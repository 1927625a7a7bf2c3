//! Halts whose remedy is obeyed to the letter: the events are counted.

use outbox_tests::{
    Harness,
    event::Event,
    load::Plan,
    postgres::Postgres,
    relay::{Relay, Settings},
    servers,
    topic::Topic,
    wait,
};
use serde_json::Value;

use crate::repair::wait_snapshot;

fn plan(topic: &Topic) -> Plan {
    Plan { topic: topic.name().to_owned(), partitions: 2, writers: 3, transactions: 10 }
}

/// What a relay that needs a person says.
pub(crate) async fn halted(relay: &Relay) -> String {
    let status = wait::until("it halts", wait::PATIENCE, || async {
        let status = relay.try_status().await.map_err(|error| error.to_string())?;
        let text = |name| status.get(name).and_then(Value::as_str).unwrap_or_default();
        match text("phase") {
            "halted" => Ok(text("detail").to_owned()),
            _ => Err(status.to_string()),
        }
    });
    status.await.expect("a person must decide")
}

/// Runs the `n`-th command that a halt names, as it is printed.
pub(crate) async fn obey(settings: &Settings, detail: &str, n: usize) {
    let commands: Vec<&str> =
        detail.split('`').filter_map(|part| part.strip_prefix("outbox-relay ")).collect();
    let command = commands.get(n).unwrap_or_else(|| panic!("{n} of the commands: {detail}"));
    let arguments: Vec<&str> = command.split(' ').collect();
    let output = settings.command(&arguments).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// It has another system identifier, and neither the slot nor what was not delivered of it.
#[tokio::test]
async fn a_cluster_that_pg_upgrade_made_goes_on_as_the_halt_says_and_loses_nothing() {
    let ((postgres, mut server), kafka) = tokio::join!(Postgres::private(), servers::kafka());
    let mut t = Harness::with(postgres, kafka).await;
    let topic = t.topic("orders").create(2).await;
    let mut relay = t.relay().start().await;
    t.load(&plan(&topic)).await.finish().await;
    t.count(&topic, 2).await.assert_exactly_once();
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    t.load(&plan(&topic)).await.finish().await;

    let (upgraded, _server) = Postgres::upgrade(&mut server).await;
    t.fail_over(upgraded).await;
    t.load(&plan(&topic)).await.finish().await;
    let mut relay = t.relay().spawn();
    let detail = halted(&relay).await;
    assert!(detail.contains("resume --at upgrade"), "{detail}");
    let output = t.relay().command(&["resume", "--at", "upgrade"]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    relay.wait_ready().await;
    t.commit([Event::to(topic.name()).key("after")]).await;
    t.count(&topic, 2).await.assert_exactly_once();
}

/// A cluster of its own knows nothing of the other's transactions.
#[tokio::test]
async fn a_cluster_that_pg_upgrade_did_not_make_is_not_taken_for_one() {
    let ((postgres, _first), (second, _second), kafka) =
        tokio::join!(Postgres::private(), Postgres::private(), servers::kafka());
    let t = Harness::with(postgres, kafka).await;
    let topic = t.topic("orders").create(2).await;
    let mut relay = t.relay().start().await;
    t.database().superuser().batch_execute("do $$ begin for n in 1..5000 loop perform pg_current_xact_id(); commit; end loop; end $$").await.expect("ids");
    t.load(&plan(&topic)).await.finish().await;
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    let other = Harness::with(second, kafka).await;
    let name = t.database().name();
    let settings = other.relay().set("name", name).set("postgres.slot", &format!("outbox_{name}"));
    let output = settings.command(&["resume", "--at", "upgrade"]).await;
    assert!(!output.status.success());
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(words.contains("was not made by pg_upgrade"), "{words}");
}
