//! Without any single right of `inbox_consumer` something says which right which role lacks.

use std::{
    io::Write,
    sync::{Arc, Mutex},
    time::Duration,
};

use outbox_harness::{
    database::{Database, Role},
    wait,
};
use outbox_idempotency::{Failure, Inbox, Message, Processor, RawMessage, Retry, Tx};
use tracing_subscriber::{
    filter::{LevelFilter, dynamic_filter_fn},
    layer::SubscriberExt as _,
};

use super::{
    effects::{Step, database, message, number, take},
    watermark::{published, watermark},
};
use crate::grants::{change, of};

#[derive(Clone, Default)]
pub(super) struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// What this thread logs at `level` or above, until the second value is dropped.
    pub(super) fn written(level: LevelFilter) -> (Self, impl Sized) {
        ask_at_each_line();
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(level)
            .with_writer(move || writer.clone())
            .finish();
        (log, tracing_subscriber::util::SubscriberInitExt::set_default(subscriber))
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("no panic")).into_owned()
    }
}

/// While one thread reaches a line of the log for the first time, another one's `set_default` may pass unseen, and the line
/// stays off for both: `tracing` has noted that no one wants it. With this it notes that each time is to be asked.
fn ask_at_each_line() {
    let no_one = tracing_subscriber::registry().with(dynamic_filter_fn(|_, _| false));
    let _set_before = tracing::subscriber::set_global_default(no_one);
}

/// With its causes.
fn words(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

async fn handle(tx: Tx, message: Message<Step>) -> Result<(), Failure> {
    take(&tx, &message.payload).await?;
    match (message.payload.key.as_str(), message.attempt) {
        ("again", 1) => Err(Failure::transient("not yet")),
        ("never", _) => Err(Failure::permanent("never", "never")),
        _ => Ok(()),
    }
}

async fn handle_all(tx: Tx, messages: Vec<Message<Step>>) -> Result<(), Failure> {
    for message in messages {
        take(&tx, &message.payload).await?;
    }
    Ok(())
}

/// All that a consumer does, until something is refused: what is said then, or logged.
async fn live(database: &Database, name: &str, partition: i32, log: &Log) -> String {
    let pool = database.pool(Role::Consumer, 4);
    let inbox = match Inbox::open(pool, name).await {
        Ok(inbox) => inbox,
        Err(error) => return words(&error),
    };
    let retry = Retry::exponential(Duration::from_millis(1), Duration::from_millis(1));
    let one = Processor::new(inbox.clone(), handle).retry(retry);
    let batch = Processor::batch(inbox.clone(), 10, handle_all);
    let marked = Processor::batch(inbox, 10, handle_all).dedup(watermark());
    let mut repaired = published("a", 2, 2, 1);
    repaired.headers.push("outbox-repaired", Some(b"1".to_vec()));
    let mut of_relay: Vec<RawMessage> = vec![published("a", 1, 1, 0), repaired];
    of_relay.iter_mut().for_each(|message| message.source.partition = Some(partition));
    for (processor, messages) in [
        (&one, vec![message("a", 1)]),
        (&one, vec![message("again", 1), message("again", 2), message("never", 1)]),
        (&batch, vec![message("b", 1), message("b", 2)]),
        (&marked, of_relay),
    ] {
        if let Err(stop) = processor.process(&messages).await {
            return words(&stop);
        }
    }
    let waits = "select count(*) from inbox.parked";
    let all_done =
        wait::until("nothing waits, and old ids were looked for", wait::PATIENCE, || async {
            let trimmed =
                "select count(*) from inbox.applied where applied_at < now() - interval '1 hour'";
            match number(database, waits).await + number(database, trimmed).await {
                0 => Ok(()),
                left if log.text().is_empty() => Err(format!("{left}")),
                _ => Ok(()),
            }
        });
    let old = "insert into inbox.applied (consumer_id, topic, partition, applied_at, ids) \
        select consumer_id, topic, partition, now() - interval '2 hours', '{}' from inbox.applied";
    database.superuser().batch_execute(old).await.expect("old ids");
    let stopped = tokio::select! {
        stop = one.background() => Some(stop),
        stop = marked.background() => Some(stop),
        done = all_done => { done.expect("it comes to that"); None }
    };
    stopped.map_or_else(|| log.text(), |stop| words(&stop))
}

#[tokio::test]
async fn without_any_single_grant_the_consumer_names_it_with_the_role_and_what_to_type() {
    let database = database().await;
    let grants = of(&database, Role::Consumer, "inbox");
    assert_eq!(grants.len(), 26, "{grants:?}");
    let (log, _until_the_end) = Log::written(LevelFilter::ERROR);
    assert_eq!(live(&database, "whole", 0, &log).await, "", "with all of them nothing is refused");
    for (index, grant) in (1..).zip(&grants) {
        change(&database, &grant.revoke()).await;
        let said = live(&database, &format!("c{index}"), index, &log).await;
        let statement = grant.to_string();
        assert!(said.contains(&statement), "{statement}: {said}");
        log.0.lock().expect("no panic").clear();
        change(&database, &statement).await;
        // What waits of this one's name is no one's now.
        // In the consumer's own order, for it may be at work still.
        let clear = "delete from inbox.parked_lanes; delete from inbox.parked; \
            delete from inbox.applied";
        change(&database, clear).await;
    }
}

/// It publishes updates and deletes, which PostgreSQL refuses where a row has no identity.
#[tokio::test]
async fn a_publication_of_all_tables_keeps_no_consumer_from_anything() {
    let database = database().await;
    change(&database, "create publication everything for all tables").await;
    change(&database, "alter table effects replica identity full").await;
    let (log, _until_the_end) = Log::written(LevelFilter::ERROR);
    assert_eq!(live(&database, "whole", 0, &log).await, "");
}
