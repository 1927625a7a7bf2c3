//! A server that sends a row which does not match its columns, as announced.

use outbox_harness::{Harness, event::Event, postgres::Postgres, proxy::Proxy, servers};
use outbox_relay::throwaway::Shutdown;

use super::{says, through};
use crate::dead_letters::count_parked;

/// The event is not to blame: it is neither parked nor passed over.
#[tokio::test]
async fn a_row_that_can_not_be_read_waits_and_comes_once_from_a_server_that_was_restarted() {
    let ((postgres, mut server), kafka) = tokio::join!(Postgres::private(), servers::kafka());
    let mut t = Harness::with(postgres, kafka).await;
    let topic = t.topic("orders").create(1).await;
    let line = Proxy::to(&format!("127.0.0.1:{}", server.port())).await;
    let mut relay = through(&t, &line).start().await;
    let event = |n: i32| Event::to(topic.name()).key("k").payload(serde_json::json!({"n": n}));
    t.commit([event(1)]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    // What marks a column as one in binary form, its length, and its value of 9 bytes.
    let column = |marker: u8| [&[marker, 0, 0, 0, 9][..], b"\x01{\"n\": 2}"].concat();
    line.alter(&column(b'b'), &column(b'?'));
    t.commit((2..5).map(event)).await;
    t.commit([event(5)]).await;
    says(&relay, &["reading a row", "can't be read", "next attempt in"]).await;
    assert_eq!(topic.records().await.len(), 1, "everything waits");
    assert_eq!(count_parked(&t).await, 0, "the event is not to blame");
    server.stop(Shutdown::Fast).expect("it ends");
    line.heal();
    server.restart().expect("it starts");
    t.reconnect().await;
    relay.wait_ready().await;
    t.commit([event(6)]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    assert!(relay.sigterm().await.success());
}
