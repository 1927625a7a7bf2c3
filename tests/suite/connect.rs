//! Ways in, and ways back in: hosts, sockets, and connections that are cut.

use outbox_tests::{Harness, database::Role, event::Event, servers, wait};

#[tokio::test]
async fn a_cut_replication_connection_is_made_again_and_nothing_is_doubled() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(2).await;
    let _relay = t.relay().start().await;
    for round in 0..3 {
        t.commit((0..50).map(|_| Event::to(topic.name()).key("k"))).await;
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
        .unwrap_or_else(|error| panic!("round {round}: {error:#}"));
    }
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 2).await.assert_exactly_once();
}

#[tokio::test]
async fn of_several_hosts_the_one_that_answers_is_used() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let (host, port) = servers::postgres().await.address();
    let url = t.database().url(Role::Relay);
    let several = url.replace(
        &format!("@{host}:{port}/"),
        &format!("@{host}:{},{host}:{port}/", servers::free_port()),
    );
    assert_ne!(url, several);
    let several = format!("{several}?connect_timeout=2&target_session_attrs=read-write");
    let _relay = t.relay().set("postgres.url", &several).start().await;
    t.commit([Event::to(topic.name())]).await;
    t.count(&topic, 1).await.assert_exactly_once();
}
