//! The relay's login at the broker.

use outbox_harness::{Harness, event::Event, servers, wait};

use super::{PARTITIONS, all_arrive, topic};
use crate::connect;

/// As where a mounted secret is replaced.
#[tokio::test]
async fn a_password_that_changes_while_the_relay_runs_is_read_from_its_file_and_all_arrives() {
    let mut t = Harness::start().await;
    let broker = servers::rabbit().await;
    let exchange = broker.exchange(&topic(&t), PARTITIONS).await;
    let user = t.database().name().to_owned();
    let file = t.dir().join("rabbit.url");
    let write = |password: &str| {
        let url = format!("amqp://{user}:{password}@{}\n", broker.address());
        std::fs::write(&file, url).expect("written");
    };
    broker.control(&["add_user", &user, "one"]);
    broker.control(&["set_permissions", &user, "", ".*", ""]);
    write("one");
    let path = file.to_str().expect("UTF-8");
    let settings = t
        .relay()
        .to("rabbitmq")
        .set("sink.rabbitmq.url_file", path)
        .set_toml("sink.rabbitmq.partitions", &PARTITIONS.to_string());
    let mut relay = settings.start().await;
    let topic = topic(&t);
    t.commit((0..4).map(|n| Event::to(&topic).key(&n.to_string()))).await;
    all_arrive(&t, broker, &exchange).await.assert_exactly_once();

    broker.control(&["change_password", &user, "two"]);
    broker.control(&["close_all_user_connections", &user, "its password has changed"]);
    connect::cut(&t).await;
    t.commit([Event::to(&topic).key("a")]).await;
    wait::until("the file is named", wait::PATIENCE, || async {
        let status = relay.try_status().await.map_err(|error| error.to_string())?.to_string();
        let named = format!("virtual host in {path} (sink.rabbitmq.url_file)");
        if status.contains(&named) { Ok(()) } else { Err(status) }
    })
    .await
    .expect("it is");
    // In the middle of a rotation.
    std::fs::write(&file, "").expect("emptied");
    relay.wait_log("sink.rabbitmq.url_file can't be used now").await;
    write("two");
    relay.wait_ready().await;
    all_arrive(&t, broker, &exchange).await.assert_at_least_once();
}
