//! A handler may do anything within its transaction; nothing of it reaches the next message.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use outbox_harness::{
    database::{Database, Role},
    wait,
};
use outbox_idempotency::{
    Classify, Dedup, Failure, Inbox, InboxError, Isolation, Message, Once, OnceError, Processor,
    RawMessage, Retry, Tx,
};
use tokio::task::JoinSet;

use super::{
    effects::{Step, assert_once_and_in_order, database, effects, message, number, take},
    watermark::published,
};

pub(super) const DEAD: &str = "select count(*) from inbox.dead_letters";

/// One session, so that the next message gets the very one.
pub(super) async fn one_session(database: &Database) -> Inbox {
    let pool = database.pool(Role::Consumer, 1);
    Inbox::open(pool, "billing").await.expect("the inbox opens")
}

/// Works on parked messages until `left` is zero.
pub(super) async fn work_off(processor: &Processor, database: &Database, left: &str) {
    let worked_off = wait::until(left, wait::PATIENCE, || async {
        match number(database, left).await {
            0 => Ok(()),
            left => Err(format!("{left} left")),
        }
    });
    tokio::select! {
        stop = processor.background() => panic!("{stop:?}"),
        done = worked_off => done.expect("nothing is left"),
    }
}

/// A role that the consumer may become, which may do nothing but write effects.
struct Tenant<'a> {
    name: String,
    database: &'a Database,
}

impl<'a> Tenant<'a> {
    async fn new(database: &'a Database) -> Self {
        let name = format!("{}_tenant", database.name());
        let consumer = database.name_of(Role::Consumer);
        let sql = format!(
            "create role {name}; grant {name} to {consumer}; grant insert on effects to {name}"
        );
        database.superuser().batch_execute(&sql).await.expect("a role");
        Tenant { name, database }
    }

    async fn drop(self) {
        let Tenant { name, database } = self;
        let sql = format!("drop owned by {name}; drop role {name}");
        database.superuser().batch_execute(&sql).await.expect("dropped");
    }
}

#[tokio::test]
async fn a_handler_that_becomes_another_role_is_committed_and_parked_and_given_up_like_any() {
    for (dedup, local) in [
        (Dedup::Rows, "local"),
        (Dedup::Rows, "session"),
        (Dedup::Watermark { relay: "orders".into() }, "local"),
    ] {
        let database = database().await;
        let tenant = Tenant::new(&database).await;
        let become_it = format!("set {local} role {}", tenant.name);
        let handler = move |tx: Tx, message: Message<Step>| {
            let become_it = become_it.clone();
            async move {
                tx.execute(&become_it, &[]).await?;
                take(&tx, &message.payload).await?;
                match (message.payload.key.as_str(), message.attempt) {
                    ("retried", 1..=2) => Err("not yet").transient()?,
                    ("given-up", _) => Err("never").permanent("never")?,
                    _ => Ok(()),
                }
            }
        };
        let retry = Retry::exponential(Duration::from_millis(1), Duration::from_millis(1));
        let processor = Processor::new(one_session(&database).await, handler);
        let processor = processor.retry(retry).dedup(dedup.clone());
        let keys = ["fine", "retried", "given-up", "fine", "retried", "given-up"];
        for (place, key) in keys.into_iter().enumerate() {
            let n = i32::try_from(place).expect("few");
            let message = published(key, n, u64::try_from(n).expect("not negative") + 1, n.into());
            processor.process(&[message]).await.expect("settled");
        }
        work_off(&processor, &database, "select count(*) from inbox.parked").await;
        let step = |key: &str, n| Step { key: key.to_owned(), n };
        let expected = [step("fine", 0), step("fine", 3), step("retried", 1), step("retried", 4)];
        assert_eq!(effects(&database).await, expected, "{dedup:?} {local}");
        assert_eq!(number(&database, DEAD).await, 2);
        tenant.drop().await;
    }
}

/// What a session may keep: how it is left, and how it is seen.
fn remains(tenant: &str) -> Vec<(String, &'static str)> {
    let plain = [
        (
            "select set_config('app.tenant', 'acme', false)",
            "coalesce(current_setting('app.tenant', true), '') <> ''",
        ),
        ("set search_path = pg_temp", "current_setting('search_path') = 'pg_temp'"),
        (
            "set default_transaction_read_only = on",
            "current_setting('default_transaction_read_only') = 'on'",
        ),
        ("set statement_timeout = '1h'", "current_setting('statement_timeout') = '1h'"),
        ("create temporary table scratch ()", "to_regclass('pg_temp.scratch') is not null"),
        (
            "prepare scratch as select 1",
            "exists (select from pg_prepared_statements where name = 'scratch')",
        ),
        (
            "declare scratch cursor with hold for select 1",
            "exists (select from pg_cursors where name = 'scratch')",
        ),
        ("listen scratch", "exists (select from pg_listening_channels())"),
        (
            "select pg_advisory_lock(42)",
            "exists (select from pg_locks where locktype = 'advisory' and pid = pg_backend_pid())",
        ),
    ];
    let mut remains: Vec<_> = plain.into_iter().map(|(sql, seen)| (sql.to_owned(), seen)).collect();
    remains.push((format!("set role {tenant}"), "current_user <> session_user"));
    remains
}

#[tokio::test]
async fn what_a_message_leaves_in_its_session_is_not_met_by_the_next() {
    let database = database().await;
    let tenant = Tenant::new(&database).await;
    let inbox = one_session(&database).await;
    for (leave, seen) in remains(&tenant.name) {
        for fails in [false, true] {
            let leaves = |tx: Tx| {
                let leave = leave.clone();
                async move {
                    tx.execute(&leave, &[]).await?;
                    if fails { tx.execute("select 1 / 0", &[]).await } else { Ok(0) }
                }
            };
            let left = inbox.once(&message("a", 1).id, leaves).await;
            assert_eq!(left.is_err(), fails, "{leave}: {left:?}");
            let look = |tx: Tx| async move {
                let row = tx.query_one(&format!("select {seen}"), &[]).await?;
                row.try_get::<_, bool>(0)
            };
            let met = inbox.once(&message("a", 1).id, look).await.expect("looked");
            assert_eq!(met, Once::Applied(false), "{leave} (fails: {fails})");
        }
    }
    tenant.drop().await;
}

#[tokio::test]
async fn settings_that_the_pool_gives_a_session_are_there_for_each_message() {
    let database = database().await;
    let manager =
        deadpool_postgres::Manager::new(database.config(Role::Consumer), tokio_postgres::NoTls);
    let hook =
        deadpool_postgres::Hook::async_fn(|client: &mut deadpool_postgres::ClientWrapper, _| {
            Box::pin(async move {
                let sql = "set search_path = public, pg_temp; set timezone = 'Asia/Tokyo'";
                client.batch_execute(sql).await.map_err(deadpool_postgres::HookError::Backend)
            })
        });
    let pool = deadpool_postgres::Pool::builder(manager).max_size(1).post_create(hook);
    let inbox = Inbox::open(pool.build().expect("a pool"), "billing").await.expect("it opens");
    for _ in 0..3 {
        let look = |tx: Tx| async move {
            let sql = "select current_setting('search_path'), current_setting('timezone')";
            let row = tx.query_one(sql, &[]).await?;
            let seen = (row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?);
            tx.batch_execute("set search_path = pg_temp; set timezone = 'UTC'").await?;
            Ok::<_, tokio_postgres::Error>(seen)
        };
        let seen = inbox.once(&message("a", 1).id, look).await.expect("looked");
        let expected = ("public, pg_temp".to_owned(), "Asia/Tokyo".to_owned());
        assert_eq!(seen, Once::Applied(expected));
    }
}

/// As a service that keeps its tenants apart by a setting would, and one that needs a work table.
#[tokio::test]
async fn parked_messages_of_a_key_share_neither_settings_nor_temporary_tables_nor_locks() {
    const MESSAGES: i32 = 30;
    let database = database().await;
    let broken = Arc::new(AtomicBool::new(true));
    let handler = {
        let broken = Arc::clone(&broken);
        move |tx: Tx, message: Message<Step>| {
            let broken = broken.load(SeqCst);
            async move {
                if broken {
                    return Err(Failure::transient("the service is away"));
                }
                let look = "select coalesce(current_setting('app.tenant', true), ''), \
                    (select count(*) from pg_locks where locktype = 'advisory' \
                        and pid = pg_backend_pid())";
                let row = tx.query_one(look, &[]).await?;
                let (tenant, locks): (String, i64) = (row.get(0), row.get(1));
                if (tenant.as_str(), locks) != ("", 0) {
                    return Err(Failure::permanent("shared", format!("{tenant:?}, {locks}")));
                }
                tx.query("select set_config('app.tenant', 'acme', true)", &[]).await?;
                let lock = "select pg_advisory_xact_lock($1)";
                tx.query(lock, &[&i64::from(message.payload.n)]).await?;
                tx.execute("create temporary table scratch (n int) on commit drop", &[]).await?;
                take(&tx, &message.payload).await?;
                Ok(())
            }
        }
    };
    let pool = database.pool(Role::Consumer, 12);
    let retry = Retry::exponential(Duration::from_millis(1), Duration::from_millis(1));
    let inbox = Inbox::open(pool, "billing").await.expect("the inbox opens");
    let processor = Processor::new(inbox, handler).retry(retry);
    let messages: Vec<RawMessage> = (1..=MESSAGES).map(|n| message("a", n)).collect();
    processor.process(&messages).await.expect("settled");
    assert_eq!(number(&database, "select count(*) from inbox.parked").await, i64::from(MESSAGES));
    broken.store(false, SeqCst);
    work_off(&processor, &database, "select count(*) from inbox.parked").await;
    let expected = (1..=MESSAGES).map(|n| Step { key: "a".into(), n });
    assert_once_and_in_order(&effects(&database).await, expected);
    assert_eq!(number(&database, DEAD).await, 0);
}

#[tokio::test]
async fn a_table_that_is_altered_under_load_makes_no_dead_letter_and_costs_no_attempt() {
    const MESSAGES: i32 = 400;
    let database = database().await;
    let made = "create table rates (v int); insert into rates values (1); \
                grant select on rates to public";
    database.superuser().batch_execute(made).await.expect("a table");
    let handler = |tx: Tx, message: Message<Step>| async move {
        assert_eq!(message.attempt, 1);
        tx.query("select * from rates", &[]).await?;
        take(&tx, &message.payload).await?;
        Ok(())
    };
    let pool = database.pool(Role::Consumer, 8);
    let inbox = Inbox::open(pool, "billing").await.expect("the inbox opens");
    let processor = Processor::new(inbox, handler).retry(Retry::default().attempts(1));
    let mut owners = JoinSet::new();
    for key in 0..8 {
        let processor = processor.clone();
        owners.spawn(async move {
            for n in 1..=MESSAGES / 8 {
                let message = message(&format!("k{key}"), n);
                processor.process(&[message]).await.expect("settled");
            }
        });
    }
    for half in 1..=4 {
        wait::until("some took effect", wait::PATIENCE, || async {
            match effects(&database).await.len() {
                few if few < half * 60 => Err(format!("{few}")),
                _ => Ok(()),
            }
        })
        .await
        .expect("they go on");
        let alter = format!("alter table rates add column c{half} int default 1");
        database.superuser().batch_execute(&alter).await.expect("altered");
    }
    owners.join_all().await;
    assert_eq!(number(&database, DEAD).await, 0);
    assert_eq!(effects(&database).await.len(), usize::try_from(MESSAGES).expect("few"));
}

#[tokio::test]
async fn a_handler_may_forget_all_prepared_statements() {
    let database = database().await;
    let inbox = one_session(&database).await;
    for forget in ["deallocate all", "do $$ begin execute 'deallocate all'; end $$"] {
        let handler = move |tx: Tx, message: Message<Step>| async move {
            tx.execute("select 1", &[]).await?;
            tx.execute(forget, &[]).await?;
            if message.payload.key == "by-name" {
                tx.execute("select 1", &[]).await?;
            }
            take(&tx, &message.payload).await?;
            Ok(())
        };
        let processor = Processor::new(inbox.clone(), handler);
        let key = if forget == "deallocate all" { "by-name" } else { "by-code" };
        for n in 1..=3 {
            processor.process(&[message(key, n)]).await.expect("settled");
        }
    }
    assert_eq!(effects(&database).await.len(), 6);
    assert_eq!(number(&database, DEAD).await, 0);
}

#[tokio::test]
async fn handlers_that_ask_for_it_are_serializable_and_collisions_cost_nothing() {
    const MESSAGES: i32 = 40;
    let database = database().await;
    let made = "create table shifts (on_call bool not null); \
                insert into shifts select true from generate_series(1, 40); \
                grant select, update on shifts to public";
    database.superuser().batch_execute(made).await.expect("a table");
    // Each takes one off call, but for the last: a write skew unless they are serializable.
    let handler = |tx: Tx, message: Message<Step>| async move {
        let sql =
            "select count(*), current_setting('transaction_isolation') from shifts where on_call";
        let row = tx.query_one(sql, &[]).await?;
        let (on_call, isolation): (i64, String) = (row.get(0), row.get(1));
        assert_eq!(isolation, "serializable");
        if on_call > 1 {
            let off = "update shifts set on_call = false where ctid = \
                (select ctid from shifts where on_call order by random() limit 1)";
            tx.execute(off, &[]).await?;
        }
        take(&tx, &message.payload).await?;
        Ok(())
    };
    let inbox = Inbox::open(database.pool(Role::Consumer, 4), "billing").await.expect("it opens");
    let processor = Processor::new(inbox.isolation(Isolation::Serializable), handler);
    let mut owners = JoinSet::new();
    for key in 0..4 {
        let processor = processor.clone();
        owners.spawn(async move {
            for n in 1..=MESSAGES / 4 {
                processor.process(&[message(&format!("k{key}"), n)]).await.expect("settled");
            }
        });
    }
    owners.join_all().await;
    work_off(&processor, &database, "select count(*) from inbox.parked").await;
    assert_eq!(number(&database, DEAD).await, 0);
    assert_eq!(effects(&database).await.len(), 40);
    assert_eq!(number(&database, "select count(*) from shifts where on_call").await, 1);
}

#[tokio::test]
async fn a_handler_may_copy_in_and_out() {
    let database = database().await;
    let inbox = one_session(&database).await;
    let copies = |tx: Tx| async move {
        let rows = [Bytes::from_static(b"a,1\nb,"), Bytes::from_static(b"2\n")];
        let copied = tx.copy_in("copy effects (key, n) from stdin (format csv)", rows).await?;
        let out = tx.copy_out("copy (select key, n from effects order by n) to stdout").await?;
        Ok::<_, tokio_postgres::Error>((copied, out))
    };
    let copied = inbox.once(&message("a", 1).id, copies).await.expect("copied");
    assert_eq!(copied, Once::Applied((2, b"a\t1\nb\t2\n".to_vec())));
    assert_eq!(effects(&database).await.len(), 2);
    let wrong = |tx: Tx| async move {
        let rows = [Bytes::from_static(b"no number\n")];
        drop(tx.copy_in("copy effects (n) from stdin", rows).await);
        Ok::<_, InboxError>(())
    };
    let error = inbox.once(&message("a", 2).id, wrong).await.expect_err("it had failed");
    assert!(matches!(error, OnceError::Inbox(InboxError::Aborted(_))), "{error:?}");
}

#[tokio::test]
async fn a_deferral_to_the_past_is_not_called_again_at_once() {
    let database = database().await;
    let calls = Arc::new(AtomicU32::new(0));
    let handler = {
        let calls = Arc::clone(&calls);
        move |tx: Tx, message: Message<Step>| {
            let call = calls.fetch_add(1, SeqCst);
            async move {
                take(&tx, &message.payload).await?;
                if call < 4 { Err(Failure::defer(std::time::UNIX_EPOCH)) } else { Ok(()) }
            }
        }
    };
    let inbox = Inbox::open(database.pool(Role::Consumer, 4), "billing").await.expect("it opens");
    let processor = Processor::new(inbox, handler);
    let began = std::time::Instant::now();
    processor.process(&[message("a", 1)]).await.expect("settled");
    work_off(&processor, &database, "select count(*) from inbox.parked").await;
    assert!(began.elapsed() >= Duration::from_millis(4 * 200), "{:?}", began.elapsed());
    assert_eq!(effects(&database).await.len(), 1);
}
