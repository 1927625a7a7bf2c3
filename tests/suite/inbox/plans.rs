//! Sessions that have looked among parked messages while there were few.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use outbox_harness::{database::Role, wait};
use outbox_idempotency::{Classify as _, Inbox, Message, Processor, RawMessage, Retry, Tx};

use super::{
    effects::{Step, database, message, number, take},
    processor::{Background, PARKED, WAITING, until_zero},
};

/// Parked messages that were read without an index; sessions say so when they end.
const READ: &str = "select sum(seq_tup_read)::bigint from pg_stat_user_tables \
    where schemaname = 'inbox' and relname = 'parked'";

#[tokio::test]
async fn plans_that_were_made_while_little_was_parked_are_not_used_for_a_backlog() {
    const KEYS: i32 = 300;
    let database = database().await;
    let never = "alter table inbox.parked set (autovacuum_enabled = false); \
        alter table inbox.parked_lanes set (autovacuum_enabled = false)";
    database.superuser().batch_execute(never).await.expect("no autovacuum");
    let away = Arc::new(AtomicBool::new(true));
    let handler = {
        let away = Arc::clone(&away);
        move |tx: Tx, message: Message<Step>| {
            let away = away.load(SeqCst);
            async move {
                take(&tx, &message.payload).await?;
                if away { Err("away").transient() } else { Ok(()) }
            }
        }
    };
    let pool = database.pool(Role::Consumer, 2);
    let inbox = Inbox::open(pool.clone(), "billing").await.expect("the inbox opens");
    let retry = Retry::exponential(Duration::from_millis(1), Duration::from_millis(1));
    let processor = Processor::new(inbox, handler).retry(retry.attempts(1_000_000));
    // Twice: with the tables empty as VACUUM has found them, a plan becomes one for all values.
    for _ in 0..2 {
        let analyze = "vacuum analyze inbox.parked; vacuum analyze inbox.parked_lanes";
        for sql in analyze.split("; ") {
            database.superuser().batch_execute(sql).await.expect("analyzed");
        }
        for key in 0..10 {
            away.store(true, SeqCst);
            let few: Vec<_> = (1..=3).map(|n| message(&format!("few {key}"), n)).collect();
            processor.process(&few).await.expect("settled");
            away.store(false, SeqCst);
            let background = Background::start(&processor);
            until_zero(&database, WAITING).await;
            background.stop().await;
        }
    }
    away.store(true, SeqCst);
    let many: Vec<RawMessage> =
        (0..KEYS).flat_map(|key| (1..=5).map(move |n| message(&key.to_string(), n))).collect();
    processor.process(&many).await.expect("settled");
    away.store(false, SeqCst);
    let background = Background::start(&processor);
    // Whoever waits by counting the parked messages reads them all each time.
    let all = i64::try_from(60 + many.len()).expect("not many");
    wait::until("all take effect", wait::PATIENCE, || async {
        match number(&database, "select count(*) from effects").await {
            count if count == all => Ok(()),
            count => Err(format!("{count} of {all}")),
        }
    })
    .await
    .expect("none is left");
    background.stop().await;
    assert_eq!(number(&database, PARKED).await, 0);
    pool.close();
    drop(processor);
    let gone = "select count(*) from pg_stat_activity where datname = current_database() \
        and usename <> current_user";
    wait::until("its sessions end", wait::PATIENCE, || async {
        match number(&database, gone).await {
            0 => Ok(()),
            left => Err(format!("{left} left")),
        }
    })
    .await
    .expect("they end");
    let read = number(&database, READ).await;
    assert!(read < 100_000, "{read} rows of {} messages", many.len());
}
