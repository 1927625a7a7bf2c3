//! The check that users run on their own handlers: it finds what breaks the promise.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::SeqCst},
};

use outbox_idempotency::{Message, Tx, testing::assert_effectively_once};

use super::effects::{Step, database, effects, inbox, message, take};

#[tokio::test]
async fn a_handler_that_stays_in_its_transaction_passes() {
    let database = database().await;
    let handler = |tx: Tx, message: Message<Step>| async move {
        take(&tx, &message.payload).await?;
        Ok(())
    };
    let inbox = inbox(&database).await;
    assert_effectively_once(&inbox, handler, &message("a", 1), async || effects(&database).await)
        .await;
    assert_eq!(effects(&database).await, [Step { key: "a".into(), n: 1 }]);
}

#[tokio::test]
#[should_panic(expected = "effects outside its transaction")]
async fn a_handler_that_calls_another_service_is_found_out() {
    let database = database().await;
    let calls = Arc::new(AtomicU32::new(0));
    let handler = {
        let calls = Arc::clone(&calls);
        move |tx: Tx, message: Message<Step>| {
            calls.fetch_add(1, SeqCst);
            async move {
                take(&tx, &message.payload).await?;
                Ok(())
            }
        }
    };
    let inbox = inbox(&database).await;
    let state = async || (effects(&database).await, calls.load(SeqCst));
    assert_effectively_once(&inbox, handler, &message("a", 1), state).await;
}

#[tokio::test]
#[should_panic(expected = "can not end its transaction")]
async fn a_handler_that_commits_by_itself_is_found_out() {
    let database = database().await;
    let handler = |tx: Tx, message: Message<Step>| async move {
        take(&tx, &message.payload).await?;
        tx.execute("commit", &[]).await?;
        Ok(())
    };
    let inbox = inbox(&database).await;
    let state = async || effects(&database).await;
    assert_effectively_once(&inbox, handler, &message("a", 1), state).await;
}

#[tokio::test]
#[should_panic(expected = "left no trace")]
async fn a_handler_that_remembers_in_its_process_what_it_has_seen_is_found_out() {
    let database = database().await;
    let calls = Arc::new(AtomicU32::new(0));
    let handler = move |tx: Tx, message: Message<Step>| {
        let seen = calls.fetch_add(1, SeqCst) > 0;
        async move {
            // The first time was rolled back, so nothing will ever come of it.
            if !seen {
                take(&tx, &message.payload).await?;
            }
            Ok(())
        }
    };
    let inbox = inbox(&database).await;
    let state = async || effects(&database).await;
    assert_effectively_once(&inbox, handler, &message("a", 1), state).await;
}

#[tokio::test]
#[should_panic(expected = "a statement of the transaction had failed")]
async fn a_handler_that_ignores_a_failed_statement_is_found_out() {
    let database = database().await;
    let handler = |tx: Tx, message: Message<Step>| async move {
        take(&tx, &message.payload).await?;
        let _ignored = tx.execute("select 1 / 0", &[]).await;
        Ok(())
    };
    let inbox = inbox(&database).await;
    let state = async || effects(&database).await;
    assert_effectively_once(&inbox, handler, &message("a", 1), state).await;
}

#[tokio::test]
#[should_panic(expected = "kept beyond the end of its work")]
async fn a_handler_that_leaves_its_transaction_to_a_task_is_found_out() {
    let database = database().await;
    let handler = |tx: Tx, message: Message<Step>| async move {
        take(&tx, &message.payload).await?;
        tokio::spawn(async move {
            std::future::pending::<()>().await;
            drop(tx);
        });
        Ok(())
    };
    let inbox = inbox(&database).await;
    let state = async || effects(&database).await;
    assert_effectively_once(&inbox, handler, &message("a", 1), state).await;
}
