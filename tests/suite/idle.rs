//! An idle outbox beside busy tables: the slot follows, and never past what is undelivered.

use std::time::Duration;

use outbox_harness::{
    Harness, event::Event, host::report, postgres::Postgres, relay::Relay, servers, topic::Topic,
    wait,
};
use serde_json::Value;
use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, sleep},
};

/// The slot follows other tables' WAL within this; a loaded machine is given some of it.
const FOLLOWS: Duration = Duration::from_secs(10);

/// Other tables' transactions, one after another, each with some WAL.
struct Neighbours {
    stop: oneshot::Sender<()>,
    task: JoinHandle<u64>,
}

impl Neighbours {
    async fn begin(t: &Harness) -> Self {
        let superuser = t.database().superuser();
        superuser
            .batch_execute("create table public.noise (n int, text text)")
            .await
            .expect("a table");
        let (stop, mut stopped) = oneshot::channel();
        let config = t.database().superuser_settings();
        let task = tokio::spawn(async move {
            let (client, connection) =
                tokio_postgres::connect(&config, tokio_postgres::NoTls).await.expect("a session");
            let connection = tokio::spawn(connection);
            let mut transactions = 0;
            while stopped.try_recv().is_err() {
                let noise =
                    "insert into noise select n, repeat('x', 100) from generate_series(1, 200) n";
                client.batch_execute(noise).await.expect("written");
                transactions += 1;
            }
            connection.abort();
            transactions
        });
        Neighbours { stop, task }
    }

    /// Returns how many transactions there were.
    async fn end(self) -> u64 {
        let Neighbours { stop, task } = self;
        stop.send(()).expect("they were at work");
        task.await.expect("they wrote")
    }
}

pub(crate) async fn lsn(t: &Harness, of: &str) -> String {
    let query = format!("select ({of})::text");
    t.database().superuser().query_one(&query, &[]).await.expect("an LSN").get(0)
}

/// An LSN of the test's slot.
fn of_slot(t: &Harness, column: &str) -> String {
    let name = t.database().name();
    format!("select {column} from pg_replication_slots where slot_name = 'outbox_{name}'")
}

/// Waits until that LSN of the slot is at `lsn` or past it.
pub(crate) async fn passes(t: &Harness, column: &str, lsn: &str) {
    let query = format!("select ({}) >= $1::text::pg_lsn", of_slot(t, column));
    let begun = Instant::now();
    wait::until(&format!("{column} passes {lsn}"), FOLLOWS, || async {
        let row = t.database().superuser().query_one(&query, &[&lsn]).await;
        if row.map_err(|e| e.to_string())?.get(0) { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await
    .expect("the slot follows");
    report(&format!("{column} followed after {:.1?}", begun.elapsed()));
}

fn progress(t: &Harness) -> Topic {
    t.topic_named(&format!("outbox-relay-progress-{}", t.database().name()))
}

#[tokio::test]
async fn an_idle_outbox_in_a_busy_database_holds_no_wal_back() {
    // A transaction that is open in any database of the server holds back every slot's restart_lsn.
    let (postgres, _server) = Postgres::private().await;
    let t = Harness::with(postgres, servers::kafka().await).await;
    let _relay = t.relay().start().await;
    let first = lsn(&t, "pg_current_wal_insert_lsn()").await;
    let neighbours = Neighbours::begin(&t).await;
    let begun = Instant::now();
    let before = progress(&t).records().await.len();
    for _ in 0..3 {
        let now = lsn(&t, "pg_current_wal_insert_lsn()").await;
        passes(&t, "confirmed_flush_lsn", &now).await;
    }
    let after = progress(&t).records().await.len();
    let most = usize::try_from(begun.elapsed().as_secs()).expect("seconds") + 2;
    let transactions = neighbours.end().await;
    report(&format!("{transactions} transactions of others, {} progress records", after - before));
    assert!(after - before <= most, "{} records in {:?}", after - before, begun.elapsed());
    assert!(transactions > 20, "there was something to fall behind");

    // The WAL itself may go once the server has looked, which it does with each checkpoint.
    let wal = wait::until("restart_lsn follows", FOLLOWS, || async {
        t.database().superuser().batch_execute("checkpoint").await.map_err(|e| e.to_string())?;
        let restart = lsn(&t, &of_slot(&t, "restart_lsn")).await;
        let superuser = t.database().superuser();
        let query = "select $1::text::pg_lsn > $2::text::pg_lsn";
        let row = superuser.query_one(query, &[&restart, &first]).await;
        if row.map_err(|e| e.to_string())?.get(0) { Ok(restart) } else { Err(restart) }
    });
    wal.await.expect("no WAL of before is kept");
}

/// The server continues saying how far its WAL goes, and asks where we are.
#[tokio::test]
async fn no_keepalive_moves_the_slot_past_an_event_that_is_not_delivered() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let line = t.kafka().line().await;
    let mut relay =
        t.relay().set("sink.properties.\"bootstrap.servers\"", &line.address()).start().await;
    // The topic is known by then: a delivery waits for longer than a look for its topic.
    t.commit([Event::to(topic.name()).key("customer-0")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    line.freeze();
    let pending = lsn(&t, "pg_current_wal_insert_lsn()").await;
    for n in 0..20 {
        t.commit([Event::to(topic.name()).key(&format!("customer-{}", n % 3))]).await;
    }
    let neighbours = Neighbours::begin(&t).await;
    let behind = lsn(&t, "pg_current_wal_insert_lsn()").await;
    received(&t, &relay, &behind).await;
    // Several status messages, one a second, and replies that the server asks for.
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        let confirmed = of_slot(&t, "confirmed_flush_lsn");
        let query = format!("select ({confirmed}) <= $1::text::pg_lsn, ({confirmed})::text");
        let row = t.database().superuser().query_one(&query, &[&pending]).await.expect("a slot");
        assert!(row.get::<_, bool>(0), "{} is past {pending}", row.get::<_, &str>(1));
        sleep(Duration::from_millis(50)).await;
    }
    neighbours.end().await;
    relay.kill9().await;
    line.heal();
    relay.restart();
    t.count(&topic, 1).await.assert_exactly_once();
    let now = lsn(&t, "pg_current_wal_insert_lsn()").await;
    passes(&t, "confirmed_flush_lsn", &now).await;
}

/// Waits until the relay has received what lies before `lsn`.
pub(crate) async fn received(t: &Harness, relay: &Relay, lsn: &str) {
    wait::until("the relay has received it", wait::PATIENCE, || async {
        let status = relay.status().await;
        let received = status.get("received").and_then(Value::as_str).unwrap_or("0/0").to_owned();
        let superuser = t.database().superuser();
        let query = "select $1::text::pg_lsn >= $2::text::pg_lsn";
        let row = superuser.query_one(query, &[&received, &lsn]).await;
        if row.map_err(|e| e.to_string())?.get(0) { Ok(()) } else { Err(received) }
    })
    .await
    .expect("the stream goes on while the broker is away");
}
