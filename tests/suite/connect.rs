//! Ways in, and ways back in: hosts, sockets, and connections that are cut.

use outbox_harness::{
    Harness, database::Role, event::Event, host, postgres::Postgres, servers, wait,
};

/// Ends the stream of the database's relay, which begins anew.
pub(crate) async fn cut(t: &Harness) {
    let cut = "select count(pg_terminate_backend(active_pid)) from pg_replication_slots \
               where database = current_database() and active";
    wait::until("the relay's connection is cut", wait::PATIENCE, || async {
        let row = t.database().superuser().query_one(cut, &[]).await;
        match row.map_err(|e| e.to_string())?.get::<_, i64>(0) {
            0 => Err("no active slot".to_owned()),
            _ => Ok(()),
        }
    })
    .await
    .expect("a relay streams");
}

#[tokio::test]
async fn a_cut_replication_connection_is_made_again_and_nothing_is_doubled() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(2).await;
    let _relay = t.relay().start().await;
    for _ in 0..3 {
        t.commit((0..50).map(|_| Event::to(topic.name()).key("k"))).await;
        cut(&t).await;
    }
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 2).await.assert_exactly_once();
}

async fn limit(t: &Harness, connections: i32) {
    let name = t.database().name();
    let sql = format!("alter database \"{name}\" connection limit {connections}");
    t.database().superuser().batch_execute(&sql).await.expect("limited");
}

#[tokio::test]
async fn where_all_connections_are_taken_it_is_said_who_has_them_and_what_to_type() {
    let t = Harness::start().await;
    limit(&t, 0).await;
    let settings = t.relay();
    let mut relay = settings.clone().spawn();
    relay.wait_log("nothing is lost").await;
    let check = settings.command(&["check"]).await;
    let check = String::from_utf8_lossy(&check.stdout).into_owned();
    for said in [&relay.log_text(), &check] {
        assert!(
            said.contains("connection limit -1") && said.contains("pg_stat_activity"),
            "{said}"
        );
    }
    assert!(!check.contains("that the server is up"), "{check}");
    limit(&t, -1).await;
    relay.wait_ready().await;
}

#[tokio::test]
async fn a_frozen_walsender_that_keeps_the_slot_is_named_with_what_to_type() {
    let ((postgres, _server), kafka) = tokio::join!(Postgres::private(), servers::kafka());
    let mut t = Harness::with(postgres, kafka).await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = t.relay().start().await;
    let walsender = "select active_pid from pg_replication_slots where active";
    let pid: i32 =
        t.database().superuser().query_one(walsender, &[]).await.expect("it streams").get(0);
    signal(pid, "-STOP").await;
    relay.kill9().await;
    relay.restart();
    relay.wait_log(&format!("by process {pid} (application 'outbox-relay")).await;
    assert!(relay.logs_contain(&format!("kill -CONT {pid}")), "{}", relay.log_text());
    assert!(!relay.logs_contain("ended what an older leader left"), "{}", relay.log_text());
    signal(pid, "-CONT").await;
    relay.wait_ready().await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
}

async fn signal(pid: i32, signal: &str) {
    let mut kill = tokio::process::Command::new("kill");
    assert!(kill.args([signal, &pid.to_string()]).status().await.expect("kill").success());
}

#[tokio::test]
async fn of_several_hosts_the_one_that_answers_is_used() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let (host, port) = servers::postgres().await.address();
    let url = t.database().url(Role::Relay);
    let several = url.replace(
        &format!("@{host}:{port}/"),
        &format!("@{host}:{},{host}:{port}/", host::free_port()),
    );
    assert_ne!(url, several);
    let several = format!("{several}?connect_timeout=2&target_session_attrs=read-write");
    let _relay = t.relay().set("postgres.url", &several).start().await;
    t.commit([Event::to(topic.name())]).await;
    t.count(&topic, 1).await.assert_exactly_once();
}
