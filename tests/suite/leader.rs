//! Two relays of one name: one delivers, the other takes over, and never both.

mod frozen;

use std::time::{Duration, Instant};

use outbox_harness::{
    Harness,
    event::Event,
    host::report,
    load::{Load, Plan},
    relay::{Relay, Settings},
    topic::Topic,
    wait,
};
use serde_json::Value;

use crate::{obeyed::says, remedies::halted};

const ENDLESS: u64 = 1_000_000;

/// Settings of the `n`-th of several relays that share everything but their files and ports.
fn peer(t: &Harness, n: u32) -> Settings {
    let name = t.database().name();
    t.relay().files(&format!("{name}-{n}"))
}

async fn role(relay: &Relay) -> String {
    let status = relay.status().await;
    status.get("role").and_then(Value::as_str).unwrap_or_default().to_owned()
}

async fn wait_role(relay: &Relay, expected: &str, deadline: Duration) {
    wait::until(&format!("its role is {expected}"), deadline, || async {
        match role(relay).await {
            found if found == expected => Ok(()),
            found => Err(found),
        }
    })
    .await
    .expect("the role is taken");
}

/// A leader and a standby that has said so, and is ready.
async fn pair(t: &Harness) -> (Relay, Relay) {
    let leader = peer(t, 1).start().await;
    let standby = peer(t, 2).start().await;
    wait_role(&standby, "standby", wait::PATIENCE).await;
    assert_eq!(role(&leader).await, "leader");
    (leader, standby)
}

async fn load(t: &Harness, topic: &Topic) -> Load {
    let topic = topic.name().to_owned();
    t.load(&Plan { topic, partitions: 8, writers: 4, transactions: ENDLESS }).await
}

async fn delivered(relay: &Relay) -> u64 {
    relay.status().await.get("records_delivered").and_then(Value::as_u64).unwrap_or(0)
}

async fn wait_delivers(relay: &Relay) {
    wait::until("it delivers", wait::PATIENCE, || async {
        match delivered(relay).await {
            0 => Err("nothing yet"),
            _ => Ok(()),
        }
    })
    .await
    .expect("records are delivered");
}

/// How often `text` is in the log of a relay.
fn said(relay: &Relay, text: &str) -> usize {
    relay.log_text().matches(text).count()
}

/// The next start would halt, and no standby could take over.
#[tokio::test]
async fn the_table_of_leaders_that_is_dropped_is_missed_while_the_relay_streams_and_claimed_anew() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = t.relay().start().await;
    t.database().superuser().batch_execute("drop table outbox.leaders").await.expect("dropped");
    relay.wait_log("no standby can take over").await;
    let page = relay.page("/readyz").await;
    assert!(page.starts_with("ok\nbut") && page.contains("outbox-relay migrate"), "{page}");
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    crate::obeyed::obey(&t, "outbox-relay migrate").await;
    wait::until("it leads again", wait::PATIENCE, || async {
        let leads = "select count(*) from outbox.leaders l join pg_stat_activity using (pid)";
        let row = t.database().superuser().query_one(leads, &[]).await;
        let leads: i64 = row.map_err(|error| error.to_string())?.get(0);
        if leads == 1 { Ok(()) } else { Err(format!("{leads} lead")) }
    })
    .await
    .expect("the claim stands again");
    relay.wait_ready().await;
    wait::until("nothing is of concern", wait::PATIENCE, || async {
        let page = relay.page("/readyz").await;
        if page == "ok\n" { Ok(()) } else { Err(page) }
    })
    .await
    .expect("it is as it was");
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
}

/// How long until the other one leads, of three times to and fro. The quickest counts: the promise is the relay's,
/// and the machine may do other things as well.
async fn quickest_takeover(how: &str, end: impl AsyncFn(&mut Relay)) -> Duration {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(8).await;
    let (mut leader, mut standby) = pair(&t).await;
    let load = load(&t, &topic).await;
    let mut quickest = Duration::MAX;
    for _ in 0..3 {
        wait_delivers(&leader).await;
        end(&mut leader).await;
        let ended = Instant::now();
        wait_role(&standby, "leader", wait::PATIENCE).await;
        report(&format!("took over {:?} after the {how}", ended.elapsed()));
        quickest = quickest.min(ended.elapsed());
        leader.restart();
        leader.wait_ready().await;
        wait_role(&leader, "standby", wait::PATIENCE).await;
        std::mem::swap(&mut leader, &mut standby);
    }
    wait_delivers(&leader).await;
    load.stop().await;
    t.count(&topic, 8).await.assert_exactly_once();
    quickest
}

#[tokio::test]
async fn a_standby_takes_over_within_two_seconds_of_an_orderly_stop() {
    let stop = async |leader: &mut Relay| assert!(leader.sigterm().await.success());
    let took = quickest_takeover("stop", stop).await;
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn a_standby_takes_over_within_five_seconds_of_a_kill() {
    let kill = async |leader: &mut Relay| leader.kill9().await;
    let took = quickest_takeover("kill", kill).await;
    assert!(took < Duration::from_secs(5), "{took:?}");
}

/// Waits until the slot is confirmed up to now.
pub(crate) async fn wait_confirmed(t: &Harness) {
    let superuser = t.database().superuser();
    let now = superuser.query_one("select pg_current_wal_insert_lsn()::text", &[]).await;
    let now: String = now.expect("an LSN").get(0);
    let query = "select confirmed_flush_lsn >= $1::text::pg_lsn from pg_replication_slots \
                 where slot_name = $2";
    let slot = format!("outbox_{}", t.database().name());
    wait::until("all is confirmed", wait::PATIENCE, || async {
        let row = superuser.query_one(query, &[&now, &slot]).await.map_err(|e| e.to_string())?;
        if row.get(0) { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await
    .expect("the slot follows");
}

#[tokio::test]
async fn a_relay_of_another_name_on_the_same_database_and_topics_disturbs_nothing() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(4).await;
    let other = format!("{}_b", t.database().name());
    let first = t.relay().start().await;
    let second = t.relay().set("name", &other).start().await;
    t.commit((0..100).map(|n| Event::to(topic.name()).key(&format!("customer-{}", n % 7)))).await;
    for relay in [&first, &second] {
        wait::until("it delivers all", wait::PATIENCE, || async {
            match delivered(relay).await {
                100 => Ok(()),
                found => Err(found),
            }
        })
        .await
        .expect("all are delivered");
        assert_eq!(said(relay, "will try again") + said(relay, "fenced at the broker"), 0);
    }
    let records = topic.records().await;
    for name in [t.database().name(), &other] {
        let of_one = records.iter().filter(|r| r.header("outbox-relay") == Some(name)).cloned();
        let of_one: Vec<_> = of_one.collect();
        outbox_harness::check::compare(&t.committed().await, &of_one, 4).assert_exactly_once();
    }
}

#[tokio::test]
async fn a_namesake_with_another_slot_is_stopped_before_it_fences_anyone() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let leader = peer(&t, 1).start().await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    let namesake = format!("outbox_{}_b", t.database().name());
    let mut mistaken = peer(&t, 2).set("postgres.slot", &namesake).spawn();
    mistaken.wait_log("belongs to slot").await;
    mistaken.wait_for("/readyz", 503).await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    assert_eq!(said(&leader, "fenced at the broker") + said(&leader, "will try again"), 0);
}

#[tokio::test]
async fn a_relay_that_is_set_to_anothers_slot_names_it_and_disturbs_nothing() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let name = t.database().name().to_owned();
    let (other, slot) = (format!("{name}_b"), format!("outbox_{name}"));
    let mut first = peer(&t, 1).start().await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    let settings = peer(&t, 2).set("name", &other).set("postgres.slot", &slot);
    let mut second = settings.clone().spawn();
    let used = format!("slot {slot} is used by relay {name}");
    assert!(halted(&second).await.contains(&used));
    second.wait_for("/readyz", 503).await;
    let output = settings.command(&["check"]).await;
    let words = format!("{output:?}");
    assert!(!output.status.success() && words.contains(&used), "{words}");
    // While that one is away, the database still knows of it.
    assert!(first.sigterm().await.success());
    wait::until("it says whose slot it is", wait::PATIENCE, || async {
        match second.status().await.to_string() {
            found if found.contains(&format!("relay {name}'s slot")) => Ok(found),
            found => Err(found),
        }
    })
    .await
    .map(|found| assert!(!found.contains("pg_drop_replication_slot"), "{found}"))
    .expect("it halts for that");
    let resumed = settings.command(&["resume", "--at", "slot", "--yes"]).await;
    let words = String::from_utf8_lossy(&resumed.stderr).into_owned();
    assert!(
        !resumed.status.success() && words.contains(&format!("relay {name}'s slot")),
        "{words}"
    );
    first.restart();
    first.wait_ready().await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    // And the last road: this one takes the other's place.
    assert!(first.sigterm().await.success());
    t.commit([Event::to(topic.name()).key("k")]).await;
    // It may have looked while the first one ran.
    says(&second, &format!("set `name` to {name}")).await;
    assert!(second.sigterm().await.success());
    let _heir = peer(&t, 2).set("postgres.slot", &slot).start().await;
    t.count(&topic, 1).await.assert_exactly_once();
}

/// Its host is gone, and the server does not know it yet.
#[tokio::test]
async fn the_session_of_another_relay_that_runs_no_more_is_ended_as_the_halt_says() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let name = t.database().name().to_owned();
    let slot = format!("outbox_{name}");
    let mut first = peer(&t, 1).start().await;
    first.freeze();
    let second = peer(&t, 2).set("name", &format!("{name}_b")).set("postgres.slot", &slot).spawn();
    let detail = halted(&second).await;
    let end = detail.split('`').find(|it| it.starts_with("select pg_terminate_backend("));
    let end = end.unwrap_or_else(|| panic!("it says how: {detail}"));
    t.database().superuser().batch_execute(end).await.expect("it is ended");
    first.kill9().await;
    drop(second);
    let _heir = peer(&t, 2).set("postgres.slot", &slot).start().await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
}

/// A pooler's habit: one name for the sessions of all.
#[tokio::test]
async fn sessions_that_the_url_names_are_not_taken_for_another_relays() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let named = |n| {
        let url = peer(&t, n).value("postgres.url");
        let join = if url.contains('?') { '&' } else { '?' };
        peer(&t, n)
            .set("postgres.url", &format!("{url}{join}application_name=outbox-relay%20shared"))
    };
    let mut leader = named(1).start().await;
    let _standby = named(2).start().await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    leader.kill9().await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
}

#[tokio::test]
async fn making_a_slot_that_waits_for_a_writer_is_given_up_with_the_relay() {
    let t = Harness::start().await;
    let writer = t.database().connect(outbox_harness::database::Role::Writer).await;
    writer.batch_execute("begin; select outbox.publish('t', '{}')").await.expect("it has written");
    let mut relay = t.relay().spawn();
    relay.wait_log("the slot waits for open transactions").await;
    relay.wait_for("/livez", 200).await;
    relay.wait_for("/readyz", 503).await;
    assert!(relay.sigterm().await.success());
    let slots = "select count(*) from pg_replication_slots where slot_name = $1";
    let slot = format!("outbox_{}", t.database().name());
    wait::until("nobody makes the slot any more", wait::PATIENCE, || async {
        let row = t.database().superuser().query_one(slots, &[&slot]).await;
        match row.map_err(|e| e.to_string())?.get::<_, i64>(0) {
            0 => Ok(()),
            found => Err(format!("{found} slots")),
        }
    })
    .await
    .expect("it is given up on the server too");
    writer.batch_execute("commit").await.expect("committed");
    relay.restart();
    relay.wait_ready().await;
}

/// Advisory locks are open to everybody who can connect.
#[tokio::test]
async fn a_strangers_lock_is_no_leader_and_keeps_no_relay_from_leading() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let (leader, standby) = pair(&t).await;
    let superuser = t.database().superuser();
    let key = "select key from outbox.leaders where slot = $1";
    let slot = format!("outbox_{}", t.database().name());
    let key: i64 = superuser.query_one(key, &[&slot]).await.expect("the claim").get(0);
    // It waits for the leader's own lock, and so has it before any standby could.
    let stranger = t.database().connect(outbox_harness::database::Role::Writer).await;
    let stranger = tokio::spawn(async move {
        stranger.execute("select pg_advisory_lock($1)", &[&key]).await.expect("the lock");
        stranger
    });
    let waits = "select count(*) from pg_locks where locktype = 'advisory' and not granted \
                 and database = (select oid from pg_database where datname = current_database())";
    wait::until("the stranger waits for the lock", wait::PATIENCE, || async {
        let row = superuser.query_one(waits, &[]).await.map_err(|e| e.to_string())?;
        if row.get::<_, i64>(0) == 1 { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await
    .expect("it does");
    let mut leader = leader;
    leader.kill9().await;
    let stranger = stranger.await.expect("it has the lock");
    wait_role(&standby, "leader", wait::PATIENCE).await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    leader.restart();
    leader.wait_ready().await;
    wait_role(&leader, "standby", wait::PATIENCE).await;
    drop(stranger);
}

#[tokio::test]
async fn without_rights_on_the_leaders_table_the_relay_halts_and_the_grant_it_names_helps() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let config = t.database().config(outbox_harness::database::Role::Relay);
    let role = config.get_user().expect("a role");
    let revoke = format!("revoke all on outbox.leaders from {role}");
    t.database().superuser().batch_execute(&revoke).await.expect("revoked");
    let check = t.relay().command(&["check"]).await;
    let found = String::from_utf8_lossy(&check.stdout);
    let grant = format!("grant select, insert, update on outbox.leaders to {role}");
    assert!(!check.status.success() && found.contains(&grant), "{found}");
    let mut relay = t.relay().spawn();
    relay.wait_log(&grant).await;
    relay.wait_for("/readyz", 503).await;
    t.database().superuser().batch_execute(&grant).await.expect("granted");
    relay.wait_ready().await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
}

/// Of a standby, that is: the leader does not ask for a right that it has used.
#[tokio::test]
async fn a_standby_that_could_not_lead_any_more_is_not_ready_and_says_why() {
    let t = Harness::start().await;
    let (_leader, mut standby) = pair(&t).await;
    let config = t.database().config(outbox_harness::database::Role::Relay);
    let role = config.get_user().expect("a role");
    for table in ["outbox.leaders", "outbox.dead_letters"] {
        let right = format!("insert on {table}");
        let revoke = format!("revoke {right} from {role}");
        t.database().superuser().batch_execute(&revoke).await.expect("revoked");
        standby.wait_for("/readyz", 503).await;
        standby.wait_log(&format!("grant {right} to {role}")).await;
        let grant = format!("grant {right} to {role}");
        t.database().superuser().batch_execute(&grant).await.expect("granted");
        standby.wait_ready().await;
        wait_role(&standby, "standby", wait::PATIENCE).await;
    }
}
