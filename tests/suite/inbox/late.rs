//! What a deferred trigger of somebody's raises at COMMIT, with whatever SQLSTATE, is its message's failure.

use std::time::Duration;

use outbox_harness::wait;
use outbox_idempotency::{Failure, Message, Processor, Retry, Tx};

use super::effects::{Step, database, effects, inbox, message, number, take};

const TRIGGER: &str = "create function refuse() returns trigger language plpgsql as $$ begin \
        raise exception 'no' using errcode = new.key; end $$; \
    create constraint trigger late after insert on effects deferrable initially deferred \
    for each row when (new.key <> 'fine') execute function refuse()";

/// Of a statement that is not prepared, and one that is already: as a session says that lost its state.
#[tokio::test]
async fn what_looks_like_a_sessions_fault_at_commit_ends_no_consumer() {
    const STATES: [&str; 2] = ["26000", "42P05"];
    let database = database().await;
    database.superuser().batch_execute(TRIGGER).await.expect("a trigger");
    let each = |tx: Tx, message: Message<Step>| async move {
        take(&tx, &message.payload).await?;
        Ok::<_, Failure>(())
    };
    let many = |tx: Tx, messages: Vec<Message<Step>>| async move {
        for message in messages {
            take(&tx, &message.payload).await?;
        }
        Ok(())
    };
    let each = Processor::new(inbox(&database).await, each);
    let many = Processor::batch(inbox(&database).await, 10, many);
    let delay = Duration::from_millis(50);
    for processor in [each, many] {
        let processor = processor.retry(Retry::exponential(delay, delay).attempts(2));
        let messages = STATES.map(|state| message(state, 1));
        let [one, another] = messages;
        let messages = [one, message("fine", 1), another, message("fine", 2)];
        processor.process(&messages).await.expect("the consumer continues");
        let given_up = wait::until("both are dead letters", wait::PATIENCE, || async {
            let dead = "select count(*) from inbox.dead_letters where attempts = 2";
            match number(&database, dead).await {
                2 => Ok(()),
                others => Err(format!("{others} of 2")),
            }
        });
        tokio::select! {
            stop = processor.background() => panic!("{stop:?}"),
            done = given_up => done.expect("neither waits for ever"),
        }
        assert_eq!(effects(&database).await.len(), 2, "others took effect");
        let clear = "delete from inbox.dead_letters; delete from effects";
        database.superuser().batch_execute(clear).await.expect("cleared");
    }
}
