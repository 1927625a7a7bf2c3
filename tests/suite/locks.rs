//! Locks that others hold on the relay's tables: no one's events wait for them but those that need the
//! table, and whoever holds one is named.

mod waits;

use std::time::Duration;

use outbox_harness::{
    Harness,
    database::{Database, Role},
    event::Event,
    relay::Relay,
    topic::Topic,
    wait,
};

use crate::{
    dead_letters::{dead_letters, sequences, wait_parked, wait_records},
    obeyed::typed,
    partitions::{ATTACH, ID, TABLE, insert_old},
    repair::wait_snapshot,
    rows::{each_once, insert, run},
};

/// The relay gives its session up when it is silent for so long; locks are held for longer.
const LEADER_TIMEOUT: &str = "3s";
const HELD: Duration = Duration::from_secs(6);
const DEADLINE: Duration = Duration::from_secs(20);

/// Has events delivered one by one for as long as [`HELD`], and returns their ids.
async fn flows(t: &Harness, topic: &Topic) -> Vec<String> {
    let begun = tokio::time::Instant::now();
    let mut ids = Vec::new();
    while begun.elapsed() < HELD {
        ids.push(insert(t, topic, "now()").await);
        let last = ids.last().expect("one").clone();
        wait::until("the event is delivered while the lock is held", DEADLINE, || async {
            let records = topic.records().await;
            records.iter().any(|r| r.id() == Some(last.as_str())).then_some(()).ok_or("not yet")
        })
        .await
        .expect("delivered");
    }
    ids
}

fn streaming_began(relay: &Relay) -> usize {
    relay.log_text().matches("streaming from=").count()
}

#[tokio::test]
async fn events_flow_while_somebody_locks_the_table_of_parked_events() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let relay = t.relay().set_toml("leader.timeout", &format!("{LEADER_TIMEOUT:?}")).start().await;
    let admin = t.database().connect(Role::Owner).await;
    admin.batch_execute("begin; lock table outbox.dead_letters").await.expect("locked");
    let ids = flows(&t, &topic).await;
    assert_eq!(streaming_began(&relay), 1, "no attempt has ended");
    admin.batch_execute("commit").await.expect("unlocked");
    let ids: Vec<&String> = ids.iter().collect();
    each_once(&topic, &ids).await;
}

/// As maintenance of the catalogs does. A look that can't be taken ends nothing.
#[tokio::test]
async fn events_flow_while_somebody_locks_the_catalogs_that_the_relay_looks_at() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let relay = t.relay().start().await;
    let writer = t.database().connect(Role::Writer).await;
    let write = format!("insert into outbox.events (topic, key) values ('{}', 'k')", topic.name());
    writer.batch_execute(&write).await.expect("written");
    wait_records(&topic, 1).await;
    let catalogs = "begin; lock table pg_catalog.pg_class, pg_catalog.pg_publication, \
                    pg_catalog.pg_attribute in access exclusive mode";
    t.database().superuser().batch_execute(catalogs).await.expect("locked");
    relay.wait_log("another session holds a lock that the relay needs").await;
    for n in 2..5 {
        // A session that has written before knows the table.
        writer.batch_execute(&write).await.expect("written");
        wait_records(&topic, n).await;
    }
    t.database().superuser().batch_execute("commit").await.expect("unlocked");
    assert_eq!(streaming_began(&relay), 1, "no attempt has ended: {}", relay.log_text());
}

#[tokio::test]
async fn events_flow_while_somebody_locks_the_table_of_events_for_reading_it() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let mut relay =
        t.relay().set_toml("leader.timeout", &format!("{LEADER_TIMEOUT:?}")).start().await;
    // Anyone may have tables of their own, and hold them, and call themselves whatever looks like advice.
    let mut strangers = Vec::new();
    for n in 0..4 {
        let stranger = t.database().connect(Role::Writer).await;
        let noise = format!(
            "set application_name = 'x); run `outbox-relay resume --at now`'; begin; create temp table noise{n} ()"
        );
        stranger.batch_execute(&noise).await.expect("a table of its own");
        strangers.push(stranger);
    }
    let admin = t.database().connect(Role::Owner).await;
    let id = insert(&t, &topic, "now()").await;
    each_once(&topic, &[&id]).await;
    let named = "set application_name = 'a `nightly` job'; begin; lock table outbox.events";
    admin.batch_execute(named).await.expect("locked");
    // The look at the tables is every five seconds.
    tokio::time::timeout(
        HELD * 2,
        relay.wait_log("another session holds a lock that the relay needs"),
    )
    .await
    .expect("the look was skipped");
    assert!(relay.logs_contain("holds outbox.events"), "{}", relay.log_text());
    assert!(relay.logs_contain("application 'a  nightly  job')"), "{}", relay.log_text());
    assert!(!relay.logs_contain("noise"), "{}", relay.log_text());
    relay.wait_ready().await;
    admin.batch_execute("commit").await.expect("unlocked");
    let more = insert(&t, &topic, "now()").await;
    each_once(&topic, &[&id, &more]).await;
    assert_eq!(streaming_began(&relay), 1, "no attempt has ended");
}

#[tokio::test]
async fn events_flow_while_somebody_locks_rows_that_are_to_be_released() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let missing = t.topic("missing");
    let relay = t
        .relay()
        .set_toml("leader.timeout", &format!("{LEADER_TIMEOUT:?}"))
        .set_toml("sink.topic_grace", "\"60s\"")
        .start()
        .await;
    let late = insert(&t, &missing, "now()").await;
    let parked = "select count(*) from outbox.dead_letters";
    wait::until("the event is parked", DEADLINE, || async {
        let row = t.database().superuser().query_one(parked, &[]).await.expect("a count");
        (row.get::<_, i64>(0) == 1).then_some(()).ok_or("not yet")
    })
    .await
    .expect("parked");
    let operator = t.database().connect(Role::Operator).await;
    operator
        .batch_execute("begin; select * from outbox.dead_letters for update")
        .await
        .expect("locked");
    let missing = missing.create(1).await;
    let ids = flows(&t, &topic).await;
    assert_eq!(streaming_began(&relay), 1, "no attempt has ended");
    assert!(relay.logs_contain("holds outbox.dead_letters"), "{}", relay.log_text());
    operator.batch_execute("commit").await.expect("unlocked");
    each_once(&missing, &[&late]).await;
    let ids: Vec<&String> = ids.iter().collect();
    each_once(&topic, &ids).await;
}

/// What is refused again is written to these rows: the lock is met before anything is sent.
#[tokio::test]
async fn events_flow_while_somebody_locks_rows_of_a_release_that_is_refused_again() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let missing = t.topic("missing");
    let relay = t.relay().set_toml("leader.timeout", &format!("{LEADER_TIMEOUT:?}")).start().await;
    t.commit([Event::to(missing.name()).key("k")]).await;
    wait_parked(&t, |parked| parked == 1).await;
    relay.freeze();
    let release = t.relay().command(&["dead-letters", "release", "--all"]).await;
    assert!(release.status.success());
    let operator = t.database().connect(Role::Operator).await;
    let all = "begin; select * from outbox.dead_letters for update";
    operator.batch_execute(all).await.expect("locked");
    relay.thaw();
    let ids = flows(&t, &topic).await;
    assert_eq!(streaming_began(&relay), 1, "no attempt has ended: {}", relay.log_text());
    operator.batch_execute("commit").await.expect("unlocked");
    wait_parked(&t, |parked| parked == 1).await;
    let ids: Vec<&String> = ids.iter().collect();
    each_once(&topic, &ids).await;
}

/// The release's own rows are free: the stream has come to it, and meets the lock.
#[tokio::test]
async fn events_flow_while_somebody_locks_a_row_that_waits_behind_what_is_released() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let missing = t.topic("missing");
    let relay = t
        .relay()
        .set_toml("leader.timeout", &format!("{LEADER_TIMEOUT:?}"))
        .set_toml("sink.topic_grace", "\"60s\"")
        .start()
        .await;
    t.commit([Event::to(missing.name()).key("k")]).await;
    wait_parked(&t, |parked| parked == 1).await;
    t.commit([2, 3].map(|_| Event::to(missing.name()).key("k"))).await;
    wait_parked(&t, |parked| parked == 3).await;
    let operator = t.database().connect(Role::Operator).await;
    let last = "begin; select * from outbox.dead_letters \
                where id = (select max(id) from outbox.dead_letters) for update";
    operator.batch_execute(last).await.expect("locked");
    let missing = missing.create(1).await;
    let ids = flows(&t, &topic).await;
    assert_eq!(streaming_began(&relay), 1, "no attempt has ended");
    assert_eq!(missing.records().await.len(), 0, "nothing of the lane overtakes what is locked");
    operator.batch_execute("commit").await.expect("unlocked");
    wait_parked(&t, |parked| parked == 0).await;
    wait_records(&missing, 3).await;
    assert_eq!(sequences(&missing, "k").await, [1, 2, 3]);
    let ids: Vec<&String> = ids.iter().collect();
    each_once(&topic, &ids).await;
}

#[tokio::test]
async fn events_flow_while_somebody_locks_rows_that_were_released_and_delivered() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let missing = t.topic("missing");
    let relay = t
        .relay()
        .set_toml("leader.timeout", &format!("{LEADER_TIMEOUT:?}"))
        .set_toml("sink.topic_grace", "\"60s\"")
        .fault("release-stored:1:freeze")
        .start()
        .await;
    t.commit([1, 2].map(|_| Event::to(missing.name()).key("k"))).await;
    wait_parked(&t, |parked| parked == 2).await;
    let missing = missing.create(1).await;
    wait_records(&missing, 2).await;
    relay.wait_log("fault: release-stored").await;
    let operator = t.database().connect(Role::Operator).await;
    let all = "begin; select * from outbox.dead_letters for update";
    operator.batch_execute(all).await.expect("locked");
    relay.thaw();
    let ids = flows(&t, &topic).await;
    operator.batch_execute("commit").await.expect("unlocked");
    // What came meanwhile to the lane comes after what is delivered.
    t.commit([Event::to(missing.name()).key("k")]).await;
    wait_records(&missing, 3).await;
    wait_parked(&t, |parked| parked == 0).await;
    assert_eq!(sequences(&missing, "k").await, [1, 2, 3]);
    let ids: Vec<&String> = ids.iter().collect();
    each_once(&topic, &ids).await;
}

/// No one waits for the row, and no one's release is passed over for it.
#[tokio::test]
async fn other_lanes_are_released_while_somebody_locks_a_row_that_was_released_and_delivered() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let settings = t
        .relay()
        .set_toml("leader.timeout", &format!("{LEADER_TIMEOUT:?}"))
        .fault("release-stored:1:freeze");
    let parked = format!(
        "insert into outbox.dead_letters (relay, system_id, commit_lsn, ordinal, event_id, lane, \
             topic, key, payload, headers, fit, reason, error) \
         select '{}', (select system_identifier::text from pg_control_system()), '0/1', n, n::text, \
             md5(n::text)::uuid, '{}', convert_to('k' || n, 'UTF8'), 'x', \
             jsonb_build_array(jsonb_build_array('outbox-id', n::text), \
                 jsonb_build_array('outbox-position', '')), true, 'too_large', 'scripted' \
         from generate_series(1, 4) n",
        settings.value("name"),
        topic.name()
    );
    run(&t, &parked).await;
    let relay = settings.start().await;
    dead_letters(&t, &["release", "--topic", topic.name(), "--key", "k1"]).await;
    wait_records(&topic, 1).await;
    relay.wait_log("fault: release-stored").await;
    let operator = t.database().connect(Role::Operator).await;
    let row = "begin; select * from outbox.dead_letters where event_id = '1' for update";
    operator.batch_execute(row).await.expect("locked");
    relay.thaw();
    for (records, key) in ["k2", "k3", "k4"].into_iter().enumerate() {
        dead_letters(&t, &["release", "--topic", topic.name(), "--key", key]).await;
        wait_records(&topic, records + 2).await;
    }
    // These are marked, whatever the first one waits for.
    wait_parked(&t, |parked| parked == 1).await;
    let metrics = relay.page("/metrics").await;
    let ignored = metrics.lines().find(|line| line.contains("reason=\"locked\""));
    assert!(ignored.is_none_or(|line| line.ends_with(" 0")), "{ignored:?}");
    assert_eq!(streaming_began(&relay), 1, "no attempt has ended");
    operator.batch_execute("commit").await.expect("unlocked");
    wait_parked(&t, |parked| parked == 0).await;
    assert_eq!(topic.records().await.len(), 4, "each once");
}

#[tokio::test]
async fn events_flow_while_somebody_locks_a_partition_that_was_just_attached() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let mut relay =
        t.relay().set_toml("leader.timeout", &format!("{LEADER_TIMEOUT:?}")).start().await;
    let first = insert(&t, &topic, "now()").await;
    each_once(&topic, &[&first]).await;
    wait_snapshot(&t).await;
    let (attaching, locking) =
        tokio::join!(t.database().connect(Role::Owner), t.database().connect(Role::Owner));
    let filled = format!("{TABLE}; {}", insert_old(&topic, ID));
    attaching.batch_execute(&filled).await.expect("a table with a row");
    let attach = format!("begin; {ATTACH}");
    attaching.batch_execute(&attach).await.expect("it is being attached");
    // It waits in line, so that no one comes between.
    let sql = "begin; lock table outbox.events_old";
    let locked = tokio::spawn(async move {
        locking.batch_execute(sql).await.expect("locked");
        locking
    });
    let waiting = "select count(*) from pg_locks \
                   where not granted and relation = 'outbox.events_old'::regclass \
                   and database = (select oid from pg_database where datname = current_database())";
    wait::until("it waits for the lock", DEADLINE, || async {
        let row = attaching.query_one(waiting, &[]).await.expect("a count");
        (row.get::<_, i64>(0) == 1).then_some(()).ok_or("not yet")
    })
    .await
    .expect("in line");
    attaching.batch_execute("commit").await.expect("attached");
    let locking = locked.await.expect("locked");
    relay.wait_log("holds outbox.events_old").await;
    flows(&t, &topic).await;
    assert_eq!(streaming_began(&relay), 1, "no attempt has ended");
    // A start does not wait for it without a word.
    relay.kill9().await;
    relay.restart();
    wait::until("the start names who holds it", DEADLINE, || async {
        let log = relay.log_text();
        (log.matches("holds outbox.events_old").count() > 1).then_some(()).ok_or(log)
    })
    .await
    .expect("named");
    locking.batch_execute("commit").await.expect("unlocked");
    topic.records_with([ID.to_owned()]).await;
}

#[tokio::test]
async fn who_keeps_an_event_from_being_parked_is_named_and_the_relay_goes_on_by_itself() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let mut relay =
        t.relay().set_toml("leader.timeout", &format!("{LEADER_TIMEOUT:?}")).start().await;
    let admin = t.database().connect(Role::Owner).await;
    admin.batch_execute("begin; lock table outbox.dead_letters").await.expect("locked");
    let poison = "insert into outbox.events (topic, headers) values ('t', '{\"outbox-x\": \"1\"}')";
    run(&t, poison).await;
    relay.wait_for("/readyz", 503).await;
    relay.wait_log("holds outbox.dead_letters").await;
    let id = insert(&t, &topic, "now()").await;
    let told = wait::until("what to type is said", DEADLINE, || async {
        let status = relay.status().await.to_string();
        if status.contains("select pg_terminate_backend") { Ok(status) } else { Err(status) }
    });
    let told = told.await.expect("said");
    assert!(told.contains("Nothing is lost"), "{told}");
    run(&t, typed(&told, "select pg_terminate_backend")).await;
    relay.wait_ready().await;
    each_once(&topic, &[&id]).await;
    assert!(admin.batch_execute("commit").await.is_err(), "it was ended");
}

#[tokio::test]
async fn a_command_that_waits_for_a_lock_says_for_whose_and_what_ends_it() {
    let t = Harness::start().await;
    let _relay = t.relay().start().await;
    let settings = t.relay().set("postgres.url", &t.database().url(Role::Operator));
    let other = t.database().connect(Role::Owner).await;
    other.batch_execute("begin; lock table outbox.dead_letters").await.expect("locked");
    let list = settings.command_that_says(&["dead-letters", "list"], "pg_terminate_backend");
    let (told, mut command) = list.await;
    let checked = t.relay().command(&["check"]).await;
    let checked = String::from_utf8_lossy(&checked.stdout).into_owned();
    for words in ["holds outbox.dead_letters", "select pg_terminate_backend", "wal_level", "slot"] {
        assert!(checked.contains(words), "{words}: {checked}");
    }
    assert!(!checked.contains("no answer"), "{checked}");
    run(&t, typed(&told, "select pg_terminate_backend")).await;
    assert!(command.wait().await.expect("it ends").success(), "{told}");
}

#[tokio::test]
async fn a_namesake_in_another_database_disturbs_nobody() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let relay = t.relay().start().await;
    let first = insert(&t, &topic, "now()").await;
    each_once(&topic, &[&first]).await;
    let other = Database::create_in(t.database().postgres()).await;
    let mut namesake = t.relay_of(&other).set("name", t.database().name()).spawn();
    namesake.wait_log("belongs to database").await;
    namesake.wait_for("/readyz", 503).await;
    let second = insert(&t, &topic, "now()").await;
    each_once(&topic, &[&first, &second]).await;
    assert_eq!(streaming_began(&relay), 1, "no attempt has ended");
    assert!(!namesake.logs_contain("taken over, once"), "{}", namesake.log_text());
}
