//! For a user's own tests: whether a handler keeps the promise ([`assert_effectively_once`], on a
//! real PostgreSQL, since a handler's SQL is what is tested), and what its failures lead to
//! ([`MemoryInbox`], without one).

mod memory;

pub use memory::{Dead, Fate, MemoryInbox};

use std::{fmt::Debug, sync::Arc};

use serde::de::DeserializeOwned;

use crate::{
    error::OnceError,
    failure::Failure,
    handler::{self, Handler, Work as _},
    inbox::{Inbox, Once},
    message::RawMessage,
};

/// Copies that are delivered at the same time.
const COPIES: usize = 8;

/// Delivers `message` to `handler` as a broker may at worst, and compares what `state` says about the
/// world in between:
///
/// 1. a process that dies before the commit must leave everything as it was;
/// 2. of many copies at once one must take effect;
/// 3. a copy that comes later must change nothing.
///
/// `state` reads what the handler changes: rows of the inbox's database, but also calls that a
/// stand-in of another service has counted; what the handler does outside its transaction is found
/// by the first comparison. The message must be one that changes it, or nothing is shown.
///
/// ```no_run
/// # use outbox_idempotency::{testing::assert_effectively_once, *};
/// # async fn charge(tx: Tx, order: Message<i64>) -> Result<(), Failure> { Ok(()) }
/// # async fn test(pool: deadpool_postgres::Pool, inbox: Inbox, message: RawMessage) {
/// assert_effectively_once(&inbox, charge, &message, async || {
///     let client = pool.get().await.unwrap();
///     let row = client.query_one("select count(*), sum(cents) from charges", &[]).await.unwrap();
///     (row.get::<_, i64>(0), row.get::<_, Option<i64>>(1))
/// })
/// .await;
/// # }
/// ```
///
/// # Panics
/// With what differs, or why the handler failed. Also when the message was handled before: give
/// each test a consumer's name or a message of its own.
pub async fn assert_effectively_once<T, H, S>(
    inbox: &Inbox,
    handler: H,
    message: &RawMessage,
    state: impl AsyncFn() -> S,
) where
    T: DeserializeOwned + Send + 'static,
    H: Handler<T>,
    S: PartialEq + Debug,
{
    let work = Arc::new(handler::one(handler, handler::json));
    let before = state().await;

    let dies = inbox
        .once(&message.id, |tx| async {
            work.run(tx, vec![message.clone()]).await.map_err(Died::Failed)?;
            Err::<(), _>(Died::BeforeTheCommit)
        })
        .await;
    match dies {
        Err(OnceError::Work(Died::BeforeTheCommit)) => {}
        Err(OnceError::Work(Died::Failed(failure))) => {
            panic!("the handler failed: {}", failure.text())
        }
        Err(OnceError::Inbox(error)) => panic!("{error}"),
        Ok(known) => panic!("the message is not new to this consumer: {known:?}"),
    }
    let after = state().await;
    assert!(
        before == after,
        "the handler has effects outside its transaction: it was rolled back, and still {before:?} \
         became {after:?}"
    );

    let copies = (0..COPIES)
        .map(|_| inbox.once(&message.id, |tx| async { work.run(tx, vec![message.clone()]).await }));
    let mut applied = 0;
    for outcome in futures_util::future::join_all(copies).await {
        match outcome {
            Ok(Once::Applied(())) => applied += 1,
            Ok(Once::Duplicate) => {}
            Ok(Once::OutsideWindow) => panic!("the message is outside of the inbox's window"),
            Err(OnceError::Work(failure)) => {
                panic!("of several copies, one failed: {}", failure.text())
            }
            Err(OnceError::Inbox(error)) => panic!("of several copies, one failed: {error}"),
        }
    }
    assert_eq!(applied, 1, "of several copies at once, so many took effect");
    let once = state().await;
    assert!(
        once != before,
        "the message took effect and left no trace: {once:?} before and after. Either `state` does \
         not look there, or the handler remembers outside its transaction that it was called before"
    );

    let later = inbox.once(&message.id, |tx| work.run(tx, vec![message.clone()])).await;
    assert!(matches!(later, Ok(Once::Duplicate)), "a later copy: {later:?}");
    let twice = state().await;
    assert!(once == twice, "a later copy turned {once:?} into {twice:?}");
}

#[derive(Debug)]
enum Died {
    BeforeTheCommit,
    Failed(Failure),
}
