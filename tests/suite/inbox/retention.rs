//! What the inbox forgets, and that it never takes what it forgot for new.

use std::{
    cell::Cell,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use outbox_harness::database::{Database, Role, pool};
use outbox_idempotency::{Inbox, InboxError, Message, MessageId, Once, OnceError, Processor, Tx};
use tokio_postgres::error::SqlState;
use uuid::Uuid;

use super::{
    effects::{self, Step, with},
    watermark,
};

const DAY: Duration = Duration::from_secs(86_400);

/// Midnight (UTC) that began today, by the database's clock.
async fn today(database: &Database) -> SystemTime {
    let today = "select extract(epoch from date_trunc('day', now() at time zone 'utc'))::bigint";
    let row = database.superuser().query_one(today, &[]).await.expect("a time");
    UNIX_EPOCH + Duration::from_secs(u64::try_from(row.get::<_, i64>(0)).expect("after 1970"))
}

async fn keep_days(database: &Database, inbox: &Inbox, days: i32) {
    let keep = "update inbox.settings set retention_days = $1";
    database.superuser().execute(keep, &[&days]).await.expect("updated");
    inbox.maintain().await.expect("maintained");
}

async fn take(inbox: &Inbox, id: &MessageId) -> Once<()> {
    let work = |_| async { Ok::<_, std::convert::Infallible>(()) };
    inbox.once(id, work).await.expect("no failure")
}

#[tokio::test]
async fn a_message_is_looked_for_on_its_own_day_whenever_it_comes() {
    let database = Database::create_inbox().await;
    let inbox = Inbox::open(database.pool(Role::Consumer, 2), "billing").await.expect("opened");
    let midnight = today(&database).await;
    // The last moment of a day and the first of the next are two buckets, and each message has one.
    for occurred in [midnight - Duration::from_millis(1), midnight, midnight + DAY] {
        let id = MessageId::at(Uuid::from_u128(7), occurred);
        assert_eq!(take(&inbox, &id).await, Once::Applied(()), "{occurred:?}");
        assert_eq!(take(&inbox, &id).await, Once::Duplicate, "{occurred:?}");
    }
}

#[tokio::test]
async fn what_is_forgotten_is_outside_the_window_and_never_new_again() {
    let database = Database::create_inbox().await;
    let inbox = Inbox::open(database.pool(Role::Consumer, 2), "billing").await.expect("opened");
    // Another process that does not hear of what the first one drops.
    let other = Inbox::open(database.pool(Role::Consumer, 2), "billing").await.expect("opened");
    let midnight = today(&database).await;
    // Retention is 14 days: the oldest day kept begins 14 days before today's midnight.
    let (too_old, oldest, next) = (
        MessageId::at(Uuid::now_v7(), midnight - 14 * DAY - Duration::from_millis(1)),
        MessageId::at(Uuid::now_v7(), midnight - 14 * DAY),
        MessageId::at(Uuid::now_v7(), midnight - 13 * DAY),
    );
    assert_eq!(take(&inbox, &too_old).await, Once::OutsideWindow);
    assert_eq!(take(&inbox, &oldest).await, Once::Applied(()));
    assert_eq!(take(&inbox, &next).await, Once::Applied(()));

    keep_days(&database, &inbox, 13).await;
    for inbox in [&inbox, &other] {
        assert_eq!(take(inbox, &oldest).await, Once::OutsideWindow);
        assert_eq!(take(inbox, &next).await, Once::Duplicate);
    }
    // A longer retention does not bring an empty day back.
    keep_days(&database, &inbox, 30).await;
    assert_eq!(take(&inbox, &oldest).await, Once::OutsideWindow);
    assert_eq!(take(&inbox, &next).await, Once::Duplicate);
}

#[tokio::test]
async fn a_message_whose_day_another_process_has_dropped_is_a_dead_letter_with_that_reason() {
    let database = effects::database().await;
    let other = effects::inbox(&database).await;
    let handler = |tx: Tx, message: Message<Step>| async move {
        effects::take(&tx, &message.payload).await?;
        Ok(())
    };
    let (rows, marked) = (effects::inbox(&database).await, effects::inbox(&database).await);
    let rows = Processor::new(rows, handler);
    let marked = Processor::new(marked, handler).dedup(watermark::watermark());
    let midnight = today(&database).await;
    let old = |n, offset| {
        let id = MessageId::at(Uuid::now_v7(), midnight - 14 * DAY);
        // Without a key a watermark looks for the id.
        with(watermark::published("a", n, 10, offset), |m| {
            m.id = id;
            m.key = None;
        })
    };
    keep_days(&database, &other, 13).await;
    rows.process(&[old(1, 0), effects::message("a", 2)]).await.expect("settled");
    marked.process(&[old(3, 0), watermark::published("a", 4, 20, 1)]).await.expect("settled");
    let taken = [2, 4].map(|n| Step { key: "a".into(), n });
    assert_eq!(effects::effects(&database).await, taken);
    let letters = "select count(*) from inbox.dead_letters \
                   where code = 'outside-window' and attempts = 0";
    assert_eq!(effects::number(&database, letters).await, 2);
}

#[tokio::test]
async fn days_ahead_are_prepared_and_beyond_them_nothing_is_taken() {
    let database = Database::create_inbox().await;
    let inbox = Inbox::open(database.pool(Role::Consumer, 2), "billing").await.expect("opened");
    let midnight = today(&database).await;
    let (last, beyond) = (
        MessageId::at(Uuid::now_v7(), midnight + 8 * DAY - Duration::from_millis(1)),
        MessageId::at(Uuid::now_v7(), midnight + 8 * DAY),
    );
    assert_eq!(take(&inbox, &last).await, Once::Applied(()));
    assert_eq!(take(&inbox, &beyond).await, Once::OutsideWindow);
    let ahead = "update inbox.settings set ahead_days = 8";
    database.superuser().batch_execute(ahead).await.expect("updated");
    inbox.maintain().await.expect("maintained");
    assert_eq!(take(&inbox, &beyond).await, Once::Applied(()));
}

#[tokio::test]
async fn a_busy_table_is_not_waited_for_and_its_old_days_stay_until_next_time() {
    let database = Database::create_inbox().await;
    let inbox = Inbox::open(database.pool(Role::Consumer, 2), "billing").await.expect("opened");
    let midnight = today(&database).await;
    let oldest = MessageId::at(Uuid::now_v7(), midnight - 14 * DAY);
    let mut session = database.connect(Role::Consumer).await;
    let transaction = session.transaction().await.expect("begun");
    inbox.claim(&transaction, &oldest).await.expect("claimed");
    keep_days(&database, &inbox, 13).await;
    transaction.commit().await.expect("committed");
    assert_eq!(take(&inbox, &oldest).await, Once::Duplicate, "its day is still there");
    assert!(format!("{inbox:?}").contains("overdue: true"), "it comes again soon: {inbox:?}");
    inbox.maintain().await.expect("maintained");
    assert!(format!("{inbox:?}").contains("overdue: false"), "{inbox:?}");
    assert_eq!(take(&inbox, &oldest).await, Once::OutsideWindow);
}

/// The server itself counts how long a consumer waits: one that waits behind the maintenance for
/// longer than 200 ms, four times what that waits for the table, is told so. A machine that is busy may have one
/// wait for long; where the maintenance does, each visit keeps the consumer at least once.
#[tokio::test]
async fn no_consumer_at_work_waits_for_long_behind_a_maintenance_that_waits_for_the_table() {
    const VISITS: u32 = 10;
    const LATE_MAX: u32 = VISITS / 2;
    let database = Database::create_inbox().await;
    let inbox = Inbox::open(database.pool(Role::Consumer, 1), "billing").await.expect("opened");
    let mut config = database.config(Role::Consumer);
    config.options("-c lock_timeout=200ms");
    let worker = Inbox::open(pool(config, 1), "billing").await.expect("opened");
    let oldest = MessageId::at(Uuid::now_v7(), today(&database).await - 14 * DAY);
    let mut session = database.connect(Role::Consumer).await;
    let transaction = session.transaction().await.expect("begun");
    inbox.claim(&transaction, &oldest).await.expect("claimed");
    // While that is open, whoever drops a partition waits, and all others behind it.
    let maintained = async {
        for _ in 0..VISITS {
            keep_days(&database, &inbox, 13).await;
            assert!(format!("{inbox:?}").contains("overdue: true"), "it has waited in vain");
        }
    };
    let (late, taken) = (Cell::new(0), Cell::new(0));
    let worked = async {
        loop {
            let id = MessageId::from_uuid(Uuid::now_v7()).expect("a time");
            let work = |_| async { Ok::<_, std::convert::Infallible>(()) };
            let count = match worker.once(&id, work).await {
                Ok(Once::Applied(())) => &taken,
                Err(OnceError::Inbox(InboxError::Conflict(error)))
                    if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) =>
                {
                    &late
                }
                other => panic!("{other:?}"),
            };
            count.set(count.get() + 1);
        }
    };
    tokio::select! { () = maintained => {}, () = worked => unreachable!() };
    let (late, taken) = (late.get(), taken.get());
    assert!(late < LATE_MAX && taken > VISITS, "{late} times too late, {taken} times in time");
    transaction.commit().await.expect("committed");
}

#[tokio::test]
async fn several_that_maintain_at_once_do_not_clash() {
    let database = Database::create_inbox().await;
    let drop_all = "do $$ declare t text; begin \
                    for t in select inhrelid::regclass from pg_inherits \
                        where inhparent = 'inbox.messages'::regclass \
                    loop execute 'drop table ' || t; end loop; end $$";
    database.superuser().batch_execute(drop_all).await.expect("an inbox that was never maintained");
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let pool = database.pool(Role::Consumer, 1);
        tasks.spawn(async move { Inbox::open(pool, "billing").await });
    }
    for opened in tasks.join_all().await {
        opened.expect("none of them fails");
    }
    let inbox = Inbox::open(database.pool(Role::Consumer, 1), "billing").await.expect("opened");
    let id = MessageId::from_uuid(Uuid::now_v7()).expect("a time");
    assert_eq!(take(&inbox, &id).await, Once::Applied(()));
}

/// What the database's functions take for the time, from now on: `days` ahead.
async fn clock_is_ahead(database: &Database, days: i32) {
    let sql = "
        create table if not exists public.clock (ahead interval not null);
        grant select on public.clock to public;
        delete from public.clock;
        do $$
        declare
            definition text;
        begin
            for definition in
                select pg_get_functiondef(p.oid) from pg_proc as p
                where p.pronamespace = 'inbox'::regnamespace and p.proname in ('maintain', 'window')
            loop
                if definition not like '%public.clock%' then
                    execute replace(definition, 'statement_timestamp()',
                        '(statement_timestamp() + (select ahead from public.clock))');
                end if;
            end loop;
        end
        $$;";
    database.superuser().batch_execute(sql).await.expect("a clock");
    let set = "insert into public.clock values (make_interval(days => $1))";
    database.superuser().execute(set, &[&days]).await.expect("set");
}

#[tokio::test]
async fn a_clock_that_jumps_ahead_and_back_costs_no_day() {
    for ahead in [10, 40, 20_000] {
        let database = Database::create_inbox().await;
        let open = || async {
            let opened = Inbox::open(database.pool(Role::Consumer, 2), "billing").await;
            opened.expect("opened")
        };
        let inbox = open().await;
        let midnight = today(&database).await;
        let days = |n: u32| MessageId::at(Uuid::from_u128(n.into()), midnight - n * DAY);
        for n in [0, 1, 13] {
            assert_eq!(take(&inbox, &days(n)).await, Once::Applied(()));
        }
        clock_is_ahead(&database, ahead).await;
        for _ in 0..3 {
            let visitor = open().await;
            visitor.maintain().await.expect("maintained");
            if ahead < 400 {
                assert_eq!(take(&visitor, &days(0)).await, Once::Duplicate, "while it is ahead");
            }
        }
        clock_is_ahead(&database, 0).await;
        for inbox in [inbox, open().await] {
            inbox.maintain().await.expect("maintained");
            for n in [0, 1, 13] {
                assert_eq!(
                    take(&inbox, &days(n)).await,
                    Once::Duplicate,
                    "{ahead} ahead, day -{n}"
                );
            }
        }
        assert_eq!(take(&open().await, &days(2)).await, Once::Applied(()));
        let tomorrow = MessageId::at(Uuid::now_v7(), midnight + DAY);
        assert_eq!(take(&open().await, &tomorrow).await, Once::Applied(()));
    }
}

#[tokio::test]
async fn a_clock_that_has_been_ahead_for_a_day_is_believed() {
    let database = Database::create_inbox().await;
    let inbox = Inbox::open(database.pool(Role::Consumer, 2), "billing").await.expect("opened");
    let midnight = today(&database).await;
    clock_is_ahead(&database, 40).await;
    inbox.maintain().await.expect("maintained");
    assert!(format!("{inbox:?}").contains("overdue"), "{inbox:?}");
    let oldest = "select (now() at time zone 'utc')::date - oldest from inbox.window()";
    let kept = || async {
        database.superuser().query_one(oldest, &[]).await.expect("a day").get::<_, i32>(0)
    };
    assert_eq!(kept().await, 14, "nothing is dropped yet");
    clock_is_ahead(&database, 41).await;
    inbox.maintain().await.expect("maintained");
    assert_eq!(kept().await, -27, "14 days before the clock's today");
    let old = MessageId::at(Uuid::now_v7(), midnight);
    assert_eq!(take(&inbox, &old).await, Once::OutsideWindow, "never new again");
}

#[tokio::test]
async fn a_retention_that_is_raised_before_the_first_start_is_kept_from_the_start() {
    let database = Database::create_inbox().await;
    let longer = "update inbox.settings set retention_days = 60";
    database.superuser().batch_execute(longer).await.expect("updated");
    let inbox = Inbox::open(database.pool(Role::Consumer, 2), "billing").await.expect("opened");
    let midnight = today(&database).await;
    for n in [0, 14, 40, 60] {
        let id = MessageId::at(Uuid::from_u128(n.into()), midnight - n * DAY);
        assert_eq!(take(&inbox, &id).await, Once::Applied(()), "day -{n}");
        assert_eq!(take(&inbox, &id).await, Once::Duplicate, "day -{n}");
    }
    let older = MessageId::at(Uuid::now_v7(), midnight - 61 * DAY);
    assert_eq!(take(&inbox, &older).await, Once::OutsideWindow);
}
