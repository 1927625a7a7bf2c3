//! One address, and two servers behind it: a balancer that knows the promoted standby, and has the former primary
//! still.

use outbox_harness::{
    Harness,
    cluster::Pair,
    database::Role,
    event::Event,
    postgres::Postgres,
    proxy::{Proxy, contains},
    servers,
    topic::Topic,
};

use super::{says, through};
use crate::repair::wait_snapshot;

/// In order of drop: the servers last.
struct Behind {
    topic: Topic,
    t: Harness,
    balancer: Proxy,
    pair: Pair,
}

impl Behind {
    /// The standby was promoted, and the former primary answers again. Three events were delivered before, three
    /// have waited since before, and three since.
    async fn a_failover() -> Self {
        let mut pair = Pair::start().await;
        let mut t = Harness::with(pair.primary(), servers::kafka().await).await;
        let topic = t.topic("orders").create(1).await;
        let mut relay = t.relay().start().await;
        three(&mut t, &topic).await;
        t.count(&topic, 1).await.assert_exactly_once();
        wait_snapshot(&t).await;
        assert!(relay.sigterm().await.success());
        three(&mut t, &topic).await;
        pair.catch_up().await;
        pair.fail_over().await;
        t.fail_over(pair.standby()).await;
        pair.revive().await;
        three(&mut t, &topic).await;
        let balancer = Proxy::to(&address(pair.standby())).await;
        Behind { topic, t, balancer, pair }
    }

    /// Connections whose first message has `words` come to the former primary. What the relay says then has `told`,
    /// and its remedy is obeyed: a URL that names the host of one cluster, and no balancer.
    async fn divides(mut self, words: String, told: &str) {
        let former = address(self.pair.primary());
        self.balancer.divert(move |first| contains(first, words.as_bytes()), &former);
        let mut relay = through(&self.t, &self.balancer).spawn();
        says(&relay, &[told, "next attempt in"]).await;
        assert_eq!(self.topic.records().await.len(), 3, "everything waits");
        assert!(relay.sigterm().await.success());
        let url = self.t.database().url(Role::Relay);
        let mut relay = self.t.relay().set("postgres.url", &url).start().await;
        three(&mut self.t, &self.topic).await;
        let count = self.t.count(&self.topic, 1).await;
        count.assert_exactly_once();
        assert_eq!(count.delivered, 12, "{count}");
        assert!(relay.sigterm().await.success());
    }
}

fn address(postgres: &Postgres) -> String {
    let (host, port) = postgres.address();
    format!("{host}:{port}")
}

async fn three(t: &mut Harness, topic: &Topic) {
    for _ in 0..3 {
        t.commit([Event::to(topic.name()).key("k")]).await;
    }
}

#[tokio::test]
async fn a_replication_connection_to_another_server_streams_nothing_until_the_url_names_one_cluster()
 {
    let behind = Behind::a_failover().await;
    behind
        .divides("replication\0database\0".to_owned(), "another server answers for replication")
        .await;
}

#[tokio::test]
async fn a_repair_whose_session_is_on_another_server_reads_nothing_until_the_url_names_one_cluster()
{
    let behind = Behind::a_failover().await;
    let session = format!("outbox-relay {} repair\0", behind.t.database().name());
    behind.divides(session, "is another server than").await;
}
