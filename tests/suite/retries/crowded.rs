//! A slot that begins among thousands of open transactions.

use outbox_harness::{
    Harness,
    database::Role,
    event::Event,
    postgres::{Postgres, Session},
    servers, wait,
};
use outbox_relay::throwaway::Shutdown;

use crate::{
    obeyed::published,
    repair::{drop_slot, wait_snapshot},
    rows::run,
};

/// Their ids take more than the 28 KiB that progress has room for.
const SUBTRANSACTIONS: usize = 7_000;

/// A session with a transaction that has an id, which is returned.
async fn open(t: &Harness) -> (Session, String) {
    let session = t.database().connect(Role::Writer).await;
    session.batch_execute("begin").await.expect("it begins");
    let row = session.query_one("select pg_current_xact_id()::text", &[]).await;
    let xid = row.expect("an id").get(0);
    (session, xid)
}

/// Waits until whoever makes the slot waits for this transaction.
async fn waited_for(t: &Harness, xid: &str) {
    let waits = "select count(*) from pg_locks where locktype = 'transactionid' and not granted \
                 and transactionid::text = $1";
    wait::until("the slot waits for it", wait::PATIENCE, || async {
        match t
            .database()
            .superuser()
            .query_one(waits, &[&xid])
            .await
            .map(|row| row.get::<_, i64>(0))
        {
            Ok(1) => Ok(()),
            found => Err(format!("{found:?}")),
        }
    })
    .await
    .expect("it was open before");
}

/// A slot's snapshot has the transactions that began while the slot was being made and have not ended: those that
/// began before are waited for. The server has room for as many of them as it may have sessions and prepared
/// transactions.
#[tokio::test]
async fn a_slot_among_too_many_open_transactions_is_made_once_they_have_ended_and_loses_nothing() {
    let ((postgres, mut server), kafka) = tokio::join!(Postgres::private(), servers::kafka());
    let mut t = Harness::with(postgres, kafka).await;
    run(&t, "alter system set max_prepared_transactions = 10000").await;
    server.stop(Shutdown::Fast).expect("it ends");
    server.leave_out("max_prepared_transactions");
    server.restart().expect("it starts");
    t.reconnect().await;
    run(&t, "create table public.many (n int); grant all on public.many to public").await;
    let topic = t.topic("orders").create(1).await;
    let event = || Event::to(topic.name()).key("k");
    let mut relay = published(&mut t, &topic, event()).await;
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    drop_slot(&t).await;
    t.commit([event(), event()]).await;

    let (first, xid) = open(&t).await;
    relay.restart();
    waited_for(&t, &xid).await;
    let (second, xid) = open(&t).await;
    first.batch_execute("commit").await.expect("it ends");
    waited_for(&t, &xid).await;
    // From here on nothing is waited for.
    let (third, _) = open(&t).await;
    event().key("many").insert(&third).await.expect("inserted");
    let many = format!(
        "do $$ begin for n in 1 .. {SUBTRANSACTIONS} loop \
             begin insert into public.many values (n); exception when division_by_zero then null; end; \
         end loop; end $$"
    );
    third.batch_execute(&many).await.expect("subtransactions");
    t.commit([event()]).await;
    second.batch_execute("commit").await.expect("it ends");

    relay.wait_log("so many transactions are open that the snapshot of the new slot takes").await;
    assert_eq!(topic.records().await.len(), 1, "everything waits");
    third.batch_execute("commit").await.expect("it ends");
    relay.wait_ready().await;
    t.commit([event()]).await;
    let count = t.count(&topic, 1).await;
    count.assert_exactly_once();
    assert_eq!(count.delivered, 6, "{count}");
    assert!(relay.sigterm().await.success());
}
