//! Lines to PostgreSQL that die without a word, in every phase: neither side hears of it, and new
//! connections are as good as any. Each wait has its limit; what may take long is told from what is
//! lost.

use std::time::Duration;

use outbox_harness::{
    Harness,
    database::Role,
    event::Event,
    probes::Probes,
    proxy::Proxy,
    relay::{Relay, Settings},
    wait,
};
use tokio::time::Instant;

use crate::repair::{drop_slot, wait_snapshot};

/// A lost answer is noticed within this.
const SEEN: Duration = Duration::from_secs(20);

async fn line(t: &Harness) -> Proxy {
    let (host, port) = t.database().postgres().address();
    Proxy::to(&format!("{host}:{port}")).await
}

/// The same settings, with the role's connections through `line`.
fn through(t: &Harness, settings: Settings, role: Role, line: &Proxy) -> Settings {
    let (host, port) = t.database().postgres().address();
    let url = t.database().url(role).replace(&format!("{host}:{port}"), &line.address());
    settings.set("postgres.url", &url)
}

async fn gives_up(relay: &Relay, within: Duration) {
    wait::until("it gives the line up", within, || async {
        if relay.logs_contain("will try again") { Ok(()) } else { Err(relay.log_text()) }
    })
    .await
    .expect("a lost answer is noticed");
}

/// The relay is stopped at the point, its lines die, and it continues.
async fn loses_its_lines_at(relay: &mut Relay, line: &Proxy, point: &str) {
    relay.wait_log(&format!("fault: {point}")).await;
    line.strand();
    relay.thaw();
    gives_up(relay, SEEN).await;
    relay.wait_ready().await;
}

/// One step a test: the end of a test holds up its own thread while its database is dropped, and with it
/// the lines of whatever else runs there.
async fn are_noticed_at(point: &str) {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let line = line(&t).await;
    let settings = through(&t, t.relay(), Role::Relay, &line).set("leader.timeout", "2s");
    let mut relay = settings.fault(&format!("{point}:1:freeze")).spawn();
    loses_its_lines_at(&mut relay, &line, point).await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
}

#[tokio::test]
async fn lines_that_die_when_it_leads_are_noticed() {
    are_noticed_at("leading").await;
}

#[tokio::test]
async fn lines_that_die_when_progress_is_read_are_noticed() {
    are_noticed_at("progress-read").await;
}

#[tokio::test]
async fn lines_that_die_when_parked_lanes_are_read_are_noticed() {
    are_noticed_at("lanes-read").await;
}

#[tokio::test]
async fn lines_that_die_when_the_stream_starts_are_noticed() {
    are_noticed_at("stream-started").await;
}

#[tokio::test]
async fn a_standby_whose_line_dies_is_not_ready_until_it_could_take_over_again() {
    let t = Harness::start().await;
    let _leader = t.relay().files("leader").start().await;
    let line = line(&t).await;
    let standby = through(&t, t.relay(), Role::Relay, &line).files("standby").start().await;
    standby.wait_log("standing by").await;
    let probes = Probes::of(&standby);
    line.strand();
    gives_up(&standby, SEEN).await;
    let over = Instant::now();
    probes.ready_within(SEEN, over).await;
    line.freeze();
    probes.not_ready_within(SEEN, Instant::now()).await;
    line.heal();
    probes.ready_within(Duration::from_secs(10), Instant::now()).await;
    probes.assert_always_live();
}

#[tokio::test]
async fn making_a_slot_waits_for_writers_but_not_for_a_line_that_is_dead() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let writer = t.database().connect(Role::Writer).await;
    let publish = format!("begin; select outbox.publish('{}', '{{}}')", topic.name());
    writer.batch_execute(&publish).await.expect("it has written");
    let line = line(&t).await;
    let settings = through(&t, t.relay(), Role::Relay, &line).set("leader.timeout", "2s");
    let mut relay = settings.spawn();
    let waits = || relay.log_text().matches("the slot waits for open transactions").count();
    // Far longer than an answer may take that is not being worked on.
    wait::until("it has waited for long", wait::PATIENCE, || async {
        if waits() >= 4 { Ok(()) } else { Err(relay.log_text()) }
    })
    .await
    .expect("it says so every five seconds");
    assert!(!relay.logs_contain("will try again"), "{}", relay.log_text());
    line.strand();
    gives_up(&relay, SEEN).await;
    writer.batch_execute("commit").await.expect("committed");
    relay.wait_ready().await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
}

#[tokio::test]
async fn lines_that_die_during_a_repair_are_noticed_and_it_goes_on() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let line = line(&t).await;
    let settings = through(&t, t.relay(), Role::Relay, &line)
        .set("leader.timeout", "2s")
        .set_toml("batch.records_max", "10");
    let mut relay = settings.start().await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    drop_slot(&t).await;
    t.commit((0..100).map(|n| Event::to(topic.name()).key(&format!("k{}", n % 7)))).await;
    relay.restart_with(Some("repair-page-stored:3:freeze"));
    loses_its_lines_at(&mut relay, &line, "repair-page-stored").await;
    t.count(&topic, 1).await.assert_exactly_once();
}

/// A command, who types it, and the table that it needs first: while that is locked, it waits.
const COMMANDS: [(&[&str], Role, &str); 6] = [
    (&["dead-letters", "list"], Role::Operator, "outbox.dead_letters"),
    (&["dead-letters", "release", "--all"], Role::Operator, "outbox.dead_letters"),
    (&["dead-letters", "discard", "--all", "--yes"], Role::Operator, "outbox.dead_letters"),
    (&["resume", "--at", "now", "--yes"], Role::Relay, "outbox.relay_keys"),
    (&["resume", "--at", "slot", "--yes"], Role::Relay, "outbox.leaders"),
    (&["migrate"], Role::Owner, "outbox.migrations"),
];

#[tokio::test]
async fn an_operators_command_whose_line_dies_ends_with_the_reason() {
    // None is dropped before all have ended: that holds up the lines of the others.
    let tests = futures_util::future::join_all(COMMANDS.map(|_| Harness::start())).await;
    let dies = tests.iter().zip(COMMANDS).map(|(t, command)| ends_with_the_reason(t, command));
    futures_util::future::join_all(dies).await;
}

async fn ends_with_the_reason(t: &Harness, (command, role, table): (&[&str], Role, &str)) {
    let line = line(t).await;
    let superuser = t.database().superuser();
    let lock = format!("begin; lock table {table} in access exclusive mode");
    superuser.batch_execute(&lock).await.expect("locked");
    let settings = through(t, t.relay(), role, &line);
    let dies = async {
        let waits = "select count(*) from pg_locks l join pg_database d on d.oid = l.database \
                     where d.datname = current_database() and not granted";
        wait::until("the command waits", wait::PATIENCE, || async {
            let row = superuser.query_one(waits, &[]).await.map_err(|e| e.to_string())?;
            if row.get::<_, i64>(0) == 1 { Ok(()) } else { Err(format!("not yet: {command:?}")) }
        })
        .await
        .expect("it has asked");
        line.strand();
        superuser.batch_execute("commit").await.expect("the server answers");
        Instant::now()
    };
    let (output, since) = tokio::join!(settings.command(command), dies);
    let took = since.elapsed();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{command:?}: {said}");
    assert!(said.contains("PostgreSQL has not answered"), "{command:?}: {said}");
    assert!(took < SEEN, "{command:?}: {took:?}");
}
