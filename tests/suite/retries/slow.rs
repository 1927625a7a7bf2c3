//! WAL waits, and nothing of it is delivered for long: the server answers, and its walsender sends nothing, or a row
//! is long on its way.

use outbox_harness::{
    Harness,
    database::Role,
    event::Event,
    proxy::{Proxy, contains},
    relay::Relay,
    servers,
    topic::Topic,
};

use super::{says, through};

/// More than half a minute for the row's bytes would be too long for the other waits.
const BYTES_PER_SECOND: u64 = 25_000;
/// Of a text that does not compress.
const ROW_BYTES: usize = 600_000;

/// Only the stream leads through `line`. One event is delivered.
struct Slow {
    relay: Relay,
    topic: Topic,
    t: Harness,
    line: Proxy,
    _other: Proxy,
}

impl Slow {
    async fn start() -> Self {
        let t = Harness::start().await;
        let topic = t.topic("orders").create(1).await;
        let (host, port) = servers::postgres().await.address();
        let server = format!("{host}:{port}");
        let (line, other) = (Proxy::to(&server).await, Proxy::to(&server).await);
        other.divert(|first| contains(first, b"replication\0database\0"), &line.address());
        let relay = through(&t, &other).start().await;
        let mut slow = Slow { relay, topic, t, line, _other: other };
        slow.commit("first".into()).await;
        slow.t.count(&slow.topic, 1).await.assert_exactly_once();
        slow
    }

    async fn commit(&mut self, payload: String) {
        let event = Event::to(self.topic.name()).key("k");
        self.t.commit([event.payload(payload.into())]).await;
    }

    /// A large row, and what comes behind it.
    async fn commit_large(&mut self) {
        let random = format!(
            "select left(string_agg(md5(random()::text), ''), {ROW_BYTES}) \
             from generate_series(1, {ROW_BYTES} / 32 + 1)"
        );
        let session = self.t.database().connect(Role::Writer).await;
        let random = session.query_one(&random, &[]).await.expect("a text").get(0);
        self.commit(random).await;
        self.commit("behind".into()).await;
    }

    /// It was a wait within the attempt, which continues: all has come over the same connection.
    async fn ends(mut self) {
        let count = self.t.count(&self.topic, 1).await;
        count.assert_exactly_once();
        assert_eq!(count.delivered, 3, "{count}");
        self.relay.wait_ready().await;
        assert_eq!(self.relay.log_text().matches("streaming from=").count(), 1);
        assert!(self.relay.sigterm().await.success());
    }
}

#[tokio::test]
async fn a_row_that_is_long_on_its_way_is_said_to_hold_what_comes_behind_it_and_arrives() {
    let mut slow = Slow::start().await;
    slow.line.throttle(BYTES_PER_SECOND);
    slow.commit_large().await;
    let told = says(&slow.relay, &["nothing was delivered for", "of WAL wait: "]).await;
    assert!(told.contains("Nothing is lost, and what was committed since waits"), "{told}");
    // The remedy is to wait.
    slow.ends().await;
}

#[tokio::test]
async fn a_walsender_that_sends_nothing_of_what_waits_is_not_taken_for_a_server_that_is_away() {
    let mut slow = Slow::start().await;
    slow.line.freeze();
    slow.commit_large().await;
    let told = says(&slow.relay, &["nothing was delivered for"]).await;
    assert!(told.contains("of WAL wait: PostgreSQL is decoding and has sent nothing"), "{told}");
    slow.line.heal();
    slow.ends().await;
}
