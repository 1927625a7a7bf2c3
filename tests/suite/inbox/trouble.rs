//! What the database, or one that it asks, can't do now, by its own word: no message's fault, however long it takes.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use outbox_harness::{database::Database, wait};
use outbox_idempotency::{Alert, Message, Processor, Retry, Tx};
use tokio::task::JoinSet;

use super::{
    effects::{Step, database, effects, inbox, message, number, take},
    processor::{PARKED, WAITING},
    sessions::{DEAD, work_off},
};

/// No room is waited for in its place for a minute, and all else for some seconds.
const FULL: &str = "53100";
const STATES: [&str; 7] = ["53200", "53300", "58030", "57P03", "08001", "25006", "53400"];

/// Fails with the SQLSTATE that the key names, in the handler or at the commit, until the trouble is over.
const TROUBLE: &str = "create table trouble (); alter table trouble add since timestamptz default now(); \
    insert into trouble default values; grant select on trouble to public; \
    create function fail(state text) returns void language plpgsql as $$ begin \
        if exists (select from trouble) then raise exception 'no' using errcode = state; end if; end $$; \
    create function refuse() returns trigger language plpgsql as $$ begin \
        perform fail(split_part(new.key, ' ', 2)); return null; end $$; \
    create constraint trigger late after insert on effects deferrable initially deferred \
    for each row when (new.key like 'late %') execute function refuse()";

async fn until_parked(database: &Database, count: usize) {
    wait::until("they wait beside the others", wait::PATIENCE, || async {
        match number(database, PARKED).await {
            parked if parked == i64::try_from(count).expect("few") => Ok(()),
            parked => Err(format!("{parked} of {count}, {} dead", number(database, DEAD).await)),
        }
    })
    .await
    .expect("none is a dead letter");
}

#[tokio::test]
async fn trouble_of_the_database_counts_no_attempt_and_holds_no_other_key() {
    let database = database().await;
    database.superuser().batch_execute(TROUBLE).await.expect("a trigger");
    let alerts = Arc::new(Mutex::new(Vec::new()));
    let handler = |tx: Tx, message: Message<Step>| async move {
        take(&tx, &message.payload).await?;
        if let Some(state) = message.payload.key.strip_prefix("now ") {
            tx.execute("select fail($1)", &[&state]).await?;
        }
        Ok(())
    };
    // Whatever is counted makes a dead letter.
    let processor = Processor::new(inbox(&database).await, handler)
        .retry(Retry::exponential(Duration::from_millis(1), Duration::from_millis(1)).attempts(1))
        .on_alert({
            let alerts = Arc::clone(&alerts);
            move |alert| alerts.lock().expect("no panic").push(alert.clone())
        });
    let each = |state: &'static str| {
        ["now", "late"].map(|when| {
            let processor = processor.clone();
            let messages = [message(&format!("{when} {state}"), 1), message("fine", 1)];
            async move { processor.process(&messages).await }
        })
    };
    let (mut full, mut others) = (JoinSet::new(), JoinSet::new());
    for one in each(FULL) {
        full.spawn(one);
    }
    for one in STATES.into_iter().flat_map(each) {
        others.spawn(one);
    }
    for done in others.join_all().await {
        done.expect("the consumer continues");
    }
    let waiting = 2 * STATES.len();
    until_parked(&database, waiting).await;
    assert_eq!(full.try_join_next().map(|done| done.is_ok()), None, "no room is waited for");
    let fine = "select count(*) from effects where key = 'fine'";
    assert_eq!(number(&database, fine).await, i64::try_from(waiting).expect("few"));
    let said = alerts.lock().expect("no panic").clone();
    let told = said.iter().filter(|alert| matches!(alert, Alert::Trouble { .. })).count();
    assert_eq!((told, said.len()), (waiting, waiting), "{said:?}");

    // Tried again while it lasts, too.
    let again = "select count(*) from inbox.parked_lanes where due_at < now()";
    work_off(&processor, &database, again).await;
    let said_again = wait::until("it is said again", wait::PATIENCE, || async {
        match alerts.lock().expect("no panic").len() {
            said if said > waiting => Ok(()),
            said => Err(format!("{said} alerts")),
        }
    });
    tokio::select! {
        stop = processor.background() => panic!("{stop:?}"),
        said = said_again => said.expect("of each retry"),
    }
    let counted = "select count(*) from inbox.parked_lanes where attempts > 0";
    assert_eq!(number(&database, counted).await, 0);
    database.superuser().batch_execute("delete from trouble").await.expect("over");
    for done in full.join_all().await {
        done.expect("settled");
    }
    work_off(&processor, &database, WAITING).await;
    assert_eq!(number(&database, DEAD).await, 0, "it was no message's fault");
    assert_eq!(effects(&database).await.len(), 2 * (waiting + 2), "each took effect once");
}

/// Whose statements meet it is found by halving, and what is halved has waited already.
#[tokio::test]
async fn a_batch_waits_for_trouble_once_and_not_again_for_each_of_its_parts() {
    // Five waits, and then once for each part: of 8 messages of which one, or each, meets it.
    for (troubled, calls_expected, parked) in [(5..=5, 6 + 6, 1), (1..=8, 6 + 14, 8)] {
        let database = database().await;
        let calls = Arc::new(AtomicU32::new(0));
        let handler = {
            let calls = Arc::clone(&calls);
            move |tx: Tx, messages: Vec<Message<Step>>| {
                let troubled = troubled.clone();
                calls.fetch_add(1, SeqCst);
                async move {
                    for message in &messages {
                        take(&tx, &message.payload).await?;
                        if troubled.contains(&message.payload.n) {
                            let no = "do $$ begin raise 'no' using errcode = '53400'; end $$";
                            tx.batch_execute(no).await?;
                        }
                    }
                    Ok(())
                }
            }
        };
        let processor = Processor::batch(inbox(&database).await, 100, handler);
        let messages: Vec<_> = (1..=8).map(|n| message(&format!("key {n}"), n)).collect();
        processor.process(&messages).await.expect("settled");
        assert_eq!(calls.load(SeqCst), calls_expected, "calls of the handler");
        assert_eq!(number(&database, PARKED).await, parked);
        let taken = i64::try_from(effects(&database).await.len()).expect("few");
        assert_eq!((taken, number(&database, DEAD).await), (8 - parked, 0));
    }
}
