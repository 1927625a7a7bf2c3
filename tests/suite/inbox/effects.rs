//! A table where each effect is a row, so that two, and a wrong order, are seen.

use std::collections::{BTreeMap, BTreeSet};

use outbox_harness::{
    database::{Database, Role},
    postgres::Postgres,
};
use outbox_idempotency::{Headers, Inbox, Message, MessageId, RawMessage, Source, Tx};
use outbox_migrations::{Set, apply};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What the messages of these tests say: the `n`-th of its key, from 1.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Step {
    pub(crate) key: String,
    pub(crate) n: i32,
}

const TABLE: &str = "create table effects (place bigint generated always as identity, \
                         key text not null, n int not null); \
                     grant select, insert on effects to public";

/// A consumer's database with the table in it.
pub(super) async fn database() -> Database {
    let database = Database::create_inbox().await;
    database.superuser().batch_execute(TABLE).await.expect("a table for effects");
    database
}

/// The same in a cluster of the test's own.
pub(super) async fn database_in(postgres: &'static Postgres, options: &str) -> Database {
    let database = Database::create_empty_in(postgres, options).await;
    let mut owner = database.connect(Role::Owner).await;
    for set in [Set::Outbox, Set::Inbox] {
        apply(&mut owner, set).await.expect("migrated");
    }
    database.grant().await;
    database.superuser().batch_execute(TABLE).await.expect("a table for effects");
    database
}

pub(super) async fn inbox(database: &Database) -> Inbox {
    Inbox::open(database.pool(Role::Consumer, 12), "billing").await.expect("the inbox opens")
}

/// The effect.
pub(super) async fn take(tx: &Tx, step: &Step) -> Result<u64, tokio_postgres::Error> {
    tx.execute("insert into effects (key, n) values ($1, $2)", &[&step.key, &step.n]).await
}

/// The effects so far, in their order.
pub(super) async fn effects(database: &Database) -> Vec<Step> {
    let sql = "select key, n from effects order by place";
    let rows = database.superuser().query(sql, &[]).await.expect("effects");
    rows.iter().map(|row| Step { key: row.get(0), n: row.get(1) }).collect()
}

/// A number from the database.
pub(super) async fn number(database: &Database, sql: &str) -> i64 {
    database.superuser().query_one(sql, &[]).await.expect("a number").get(0)
}

/// The message with something changed.
pub(crate) fn with(mut message: RawMessage, change: impl FnOnce(&mut RawMessage)) -> RawMessage {
    change(&mut message);
    message
}

pub(crate) fn message(key: &str, n: i32) -> RawMessage {
    let step = Step { key: key.to_owned(), n };
    let id = MessageId::from_uuid(Uuid::now_v7()).expect("version 7 has a time");
    let payload = Some(serde_json::to_vec(&step).expect("JSON").into());
    Message::new(id, Source::new("steps", 0, i64::from(n)), payload)
        .with_key(key)
        .with_headers(Headers::from_iter([("outbox-type", Some("step"))]))
}

/// # Panics
/// When one of `expected` is missing or doubled, or comes before an earlier one of its key.
pub(super) fn assert_once_and_in_order(found: &[Step], expected: impl IntoIterator<Item = Step>) {
    let expected: BTreeSet<Step> = expected.into_iter().collect();
    let distinct: BTreeSet<Step> = found.iter().cloned().collect();
    let lost: Vec<_> = expected.difference(&distinct).take(5).collect();
    assert!(lost.is_empty(), "lost {}, such as {lost:?}", expected.len() - distinct.len());
    let invented: Vec<_> = distinct.difference(&expected).take(5).collect();
    assert!(invented.is_empty(), "never sent: {invented:?}");
    assert_eq!(found.len(), expected.len(), "doubled");
    let mut last: BTreeMap<&str, i32> = BTreeMap::new();
    for Step { key, n } in found {
        let before = last.insert(key, *n).unwrap_or(0);
        assert!(before < *n, "{key}: {n} after {before}");
    }
}
