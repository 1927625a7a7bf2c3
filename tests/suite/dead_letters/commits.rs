//! When what is parked and released is durable, and visible: the server's settings of commits.

use std::time::Duration;

use super::*;

/// A server of the test's own, whose settings it may change.
async fn on_a_server_of_its_own() -> (Harness, LocalPostgres) {
    let ((postgres, server), kafka) = tokio::join!(Postgres::private(), servers::kafka());
    (Harness::with(postgres, kafka).await, server)
}

async fn set_server(t: &Harness, setting: &str) {
    for statement in [&format!("alter system set {setting}"), "select pg_reload_conf()"] {
        t.database().superuser().batch_execute(statement).await.expect(setting);
    }
}

/// How the relay's session commits there is noted by the table itself.
#[tokio::test]
async fn a_park_is_durable_also_where_the_database_commits_asynchronously() {
    let mut t = Harness::start().await;
    let noted = format!(
        "alter database {} set synchronous_commit = off; \
         create table public.commits (how text); \
         create function public.note() returns trigger security definer language plpgsql as $$ \
         begin \
             insert into public.commits values (pg_catalog.current_setting('synchronous_commit')); \
             return null; \
         end $$; \
         create trigger noted after insert on outbox.dead_letters \
             for each statement execute function public.note()",
        t.database().name()
    );
    t.database().superuser().batch_execute(&noted).await.expect("a trigger");
    let topic = t.topic("orders").create(1).await;
    let _relay = t.relay().start().await;
    t.commit([Event::to(topic.name()).key("a").partition(9)]).await;
    wait_parked(&t, |parked| parked == 1).await;
    let how = "select distinct how from public.commits";
    let how = t.database().superuser().query_one(how, &[]).await.expect("it was noted");
    assert_eq!(how.get::<_, &str>(0), "on");
}

/// The server sends what it has written; others see it once the standbys have it, too.
#[tokio::test]
async fn a_release_that_waits_for_a_standby_holds_no_one_and_is_carried_out_once_it_is_visible() {
    let (mut t, _server) = on_a_server_of_its_own().await;
    let topic = t.topic("orders").create_with(1, &[(LIMIT, "4000")]).await;
    let relay = t.relay().start().await;
    t.commit([Event::to(topic.name()).key("a").payload(payload(8_000))]).await;
    wait_parked(&t, |parked| parked == 1).await;
    topic.set(LIMIT, "100000").await;
    set_server(&t, "synchronous_standby_names = 'nobody'").await;
    let arrives = async {
        let waiting = "select pg_current_wal_flush_lsn()::text from pg_stat_activity \
                       where datname = current_database() and wait_event = 'SyncRep'";
        let lsn = wait::until("the release waits", wait::PATIENCE, || async {
            let row = t.database().superuser().query_opt(waiting, &[]).await;
            row.map_err(|error| error.to_string())?.ok_or_else(|| "it does not".to_owned())
        });
        let lsn: String = lsn.await.expect("it is under way").get(0);
        received(&t, &relay, &lsn).await;
        // Whoever wrote it, others do not wait for it.
        let event = format!(
            "begin; set local synchronous_commit = local; \
             insert into outbox.events (topic, key, headers) \
                 values ('{}', 'b', '{{\"sequence\": \"1\"}}'); \
             commit",
            topic.name()
        );
        t.database().superuser().batch_execute(&event).await.expect("inserted");
        wait_records(&topic, 1).await;
        set_server(&t, "synchronous_standby_names = ''").await;
    };
    tokio::join!(dead_letters(&t, &["release", "--all"]), arrives);
    t.count(&topic, 1).await.assert_exactly_once();
}

/// Its own stream is a standby then, and confirms what is parked after the park.
#[tokio::test]
async fn a_park_does_not_wait_for_the_relay_itself_where_everybody_is_a_synchronous_standby() {
    let (mut t, _server) = on_a_server_of_its_own().await;
    set_server(&t, "synchronous_standby_names = '*'").await;
    let topic = t.topic("orders").create(1).await;
    let relay = t.relay().start().await;
    t.commit([Event::to(topic.name()).key("a").partition(9)]).await;
    t.commit([Event::to(topic.name()).key("b")]).await;
    wait_records(&topic, 1).await;
    wait_parked(&t, |parked| parked == 1).await;
    assert!(relay.logs_contain("counts as a synchronous standby"), "{}", relay.log_text());
    assert!(!relay.logs_contain("will try again"), "{}", relay.log_text());
    set_server(&t, "synchronous_standby_names = ''").await;
}

/// The server sends a commit before it is visible, so what is delivered may still run there.
#[tokio::test]
async fn a_commit_that_waits_for_a_standby_and_is_delivered_is_no_volume_that_was_put_back() {
    let (t, _server) = on_a_server_of_its_own().await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = t.relay().start().await;
    set_server(&t, "synchronous_standby_names = 'nobody'").await;
    let writer = t.database().connect(Role::Writer).await;
    let event = format!(
        "insert into outbox.events (topic, key, headers) \
         values ('{}', 'a', '{{\"sequence\": \"1\"}}')",
        topic.name()
    );
    let waits = async move { writer.batch_execute(&event).await.expect("inserted") };
    let looks = async {
        wait_records(&topic, 1).await;
        let checked = t.relay().command(&["check"]).await;
        relay.kill9().await;
        relay.restart();
        let started = tokio::time::timeout(wait::PATIENCE, relay.wait_ready()).await;
        // Before anything is said of it: the test's end waits for commits, too.
        set_server(&t, "synchronous_standby_names = ''").await;
        let checked = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(checked.contains("start    "), "{checked}");
        assert!(!checked.contains("put back"), "{checked}");
        started.unwrap_or_else(|_| panic!("it streams: {}", relay.log_text()));
        assert!(!relay.logs_contain("put back"), "{}", relay.log_text());
    };
    tokio::join!(waits, looks);
    t.count(&topic, 1).await.assert_exactly_once();
}

/// What keeps them waiting is said before an event must be parked, and while one is.
#[tokio::test]
async fn a_synchronous_standby_that_is_away_is_named_before_and_while_a_park_waits_for_it() {
    let (mut t, _server) = on_a_server_of_its_own().await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = t.relay().start().await;
    set_server(&t, "synchronous_standby_names = 'nobody'").await;
    let names = "no standby of synchronous_standby_names = 'nobody' is connected";
    let told = wait::until("a concern", wait::PATIENCE, || async {
        let status = relay.status().await;
        let concerns = status["concerns"].to_string();
        if concerns.contains(names) { Ok(status["ready"].clone()) } else { Err(concerns) }
    });
    let told = told.await;
    let checked = t.relay().command(&["check"]).await;
    // A commit that does not wait, so that the relay's own is the only one.
    let event = format!(
        "begin; set local synchronous_commit = local; \
         insert into outbox.events (topic, key, partition) values ('{}', 'a', 9); \
         commit",
        topic.name()
    );
    t.database().superuser().batch_execute(&event).await.expect("inserted");
    let begun = tokio::time::Instant::now();
    let stuck = wait::until("/readyz says so", wait::PATIENCE, || async {
        let status = relay.status().await;
        let why = status["not_ready_because"].to_string();
        if why.contains(names) { Ok(why) } else { Err(why) }
    });
    let stuck = stuck.await;
    let took = begun.elapsed();
    let checked_again = t.relay().command(&["check"]).await;
    // The commit waits on without its process, and the lock with it.
    relay.kill9().await;
    relay.restart();
    let again = wait::until("a standby says so", wait::PATIENCE, || async {
        let why = relay.try_status().await.map_err(|error| error.to_string())?;
        let why = why["not_ready_because"].to_string();
        if why.contains(names) { Ok(()) } else { Err(why) }
    });
    let again = again.await;
    set_server(&t, "synchronous_standby_names = ''").await;
    assert_eq!(told.expect("named"), true, "events flow");
    again.expect("named");
    let stuck = stuck.expect("named");
    for words in ["Nothing is lost", "alter system set synchronous_standby_names = ''"] {
        assert!(stuck.contains(words), "{stuck}");
    }
    assert!(took < Duration::from_secs(10), "{took:?}");
    for checked in [checked, checked_again] {
        let checked = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(checked.contains(names), "{checked}");
    }
    assert!(relay.logs_contain("a commit of the leader does not end"), "{}", relay.log_text());
    relay.wait_ready().await;
    wait_parked(&t, |parked| parked == 1).await;
    t.commit([Event::to(topic.name()).key("b")]).await;
    wait_records(&topic, 1).await;
    let over = wait::until("no concern", wait::PATIENCE, || async {
        let concerns = relay.status().await["concerns"].to_string();
        if concerns.contains(names) { Err(concerns) } else { Ok(()) }
    });
    over.await.expect("it is over");
}
