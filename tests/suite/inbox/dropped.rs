//! A table of the inbox that somebody has dropped: `migrate` recreates it as it was, or says why it does not.

use outbox_harness::{
    Harness,
    database::{Database, Role},
};
use outbox_idempotency::{Failure, Inbox, Message, Processor, Tx};

use super::effects::{Step, database, effects, message, number, take};

/// Everything in the schema that a migration makes, as text.
async fn shape(database: &Database) -> String {
    let sql = "select string_agg(line, e'\\n' order by line) from ( \
                   select format('%s.%s %s %s %s', attrelid::regclass, attname, atttypid::regtype, attnotnull, \
                       (select pg_get_expr(adbin, adrelid) from pg_attrdef where adrelid = attrelid and adnum = attnum)) \
                   from pg_attribute join pg_class c on c.oid = attrelid \
                   where c.relnamespace = 'inbox'::regnamespace and attnum > 0 and not attisdropped \
                       and c.relkind in ('r', 'p', 'i', 'I') \
                   union all select pg_get_functiondef(oid) from pg_proc where pronamespace = 'inbox'::regnamespace \
                   union all select format('%s %s %s', conrelid::regclass, conname, pg_get_constraintdef(oid)) \
                   from pg_constraint where connamespace = 'inbox'::regnamespace \
                   union all select format('%s %s %s', tgrelid::regclass, tgname, tgenabled) from pg_trigger \
                   join pg_class c on c.oid = tgrelid where c.relnamespace = 'inbox'::regnamespace \
                   union all select format('%s %s', oid::regclass, relreplident) from pg_class \
                   where relnamespace = 'inbox'::regnamespace and relkind in ('r', 'p')) as x (line) \
               where line !~ '^inbox.messages_[0-9]'";
    database.superuser().query_one(sql, &[]).await.expect("the catalog").get(0)
}

#[tokio::test]
async fn what_somebody_dropped_of_the_inbox_is_made_again_by_the_command_that_the_consumer_names() {
    let t = Harness::start().await;
    let database = database().await;
    let settings = t.relay_of(&database).set("postgres.url", &database.url(Role::Owner));
    let migrate = async || {
        let output = settings.command(&["migrate", "--set", "inbox"]).await;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout) + &text(&output.stderr))
    };
    let superuser = database.superuser();
    // A day that was forgotten stays so, and one that is kept beyond the default is not dropped.
    let kept = "update inbox.settings set retention_days = 20; select inbox.maintain(); \
                update inbox.upkeep set forgotten_through = now()::date - 20";
    superuser.batch_execute(kept).await.expect("a longer retention");
    let before = shape(&database).await;
    let mut taken = 0;
    for (table, meaning) in [
        ("messages", "takes effect again"),
        ("parked_lanes", "inbox_consumer"),
        ("parked", "the group's offsets"),
        ("dead_letters", "the group's offsets"),
        ("watermarks", "takes effect again"),
        ("applied", "takes effect again"),
        ("settings", "inbox_consumer"),
    ] {
        if table == "parked_lanes" {
            let waits = "insert into inbox.parked (consumer_id, lane, message_id, day, topic, headers) \
                         values (99, gen_random_uuid(), gen_random_uuid(), now()::date, 'steps', '[]')";
            superuser.batch_execute(waits).await.expect("a message that waits");
        }
        let drop = format!("drop table inbox.{table} cascade");
        superuser.batch_execute(&drop).await.expect("it is dropped");
        let (done, text) = migrate().await;
        let named = format!("inbox.{table}");
        assert!(done && text.contains(&named) && text.contains(meaning), "{table}: {text}");
        database.grant().await;
        let after = shape(&database).await;
        assert_eq!(before, after, "{table}");

        if table == "parked_lanes" {
            let lanes = "select count(*) from inbox.parked_lanes join inbox.parked using (consumer_id, lane)";
            assert_eq!(number(&database, lanes).await, 1, "the message still waits for its turn");
        }
        let pool = database.pool(Role::Consumer, 8);
        let inbox = Inbox::open(pool, "billing").await.expect("it opens");
        let handler = |tx: Tx, message: Message<Step>| async move {
            take(&tx, &message.payload).await?;
            Ok::<(), Failure>(())
        };
        taken += 1;
        let processor = Processor::new(inbox, handler);
        processor.process(&[message("a", taken)]).await.expect("it is handled");
        let found = effects(&database).await.len();
        assert_eq!(found, usize::try_from(taken).expect("a few"), "after {table}");
        let (done, text) = migrate().await;
        assert!(done && text.contains("up to date"), "{table}: {text}");
    }
    let days: i32 = superuser
        .query_one("select retention_days from inbox.settings", &[])
        .await
        .expect("settings")
        .get(0);
    assert!(days >= 19, "days that were kept stay: {days}");

    superuser.batch_execute("drop table inbox.consumers cascade").await.expect("dropped");
    let (done, text) = migrate().await;
    assert!(!done && text.contains("nothing was changed"), "{text}");
    assert!(text.contains("backup"), "{text}");
}

#[tokio::test]
async fn what_somebody_dropped_of_the_inbox_is_recreated_by_the_crates_own_function_as_well() {
    let database = database().await;
    let superuser = database.superuser();
    let forgotten = "update inbox.upkeep set forgotten_through = now()::date - 3; \
                     do $$ declare d record; begin for d in select c.oid::regclass as name \
                         from pg_class c where c.relname between 'messages_0' \
                             and 'messages_' || to_char(now() - interval '3 days', 'YYYYMMDD') \
                             and c.relkind = 'r' and c.relnamespace = 'inbox'::regnamespace \
                     loop execute format('drop table %s', d.name); end loop; end $$";
    superuser.batch_execute(forgotten).await.expect("days are forgotten");
    let oldest = "select (now() at time zone 'utc')::date - oldest from inbox.window()";
    let days =
        async || -> i32 { superuser.query_one(oldest, &[]).await.expect("the window").get(0) };
    let (before, days_before) = (shape(&database).await, days().await);
    let mut owner = database.connect(Role::Owner).await;
    for table in ["parked", "applied", "settings"] {
        let drop = format!("drop table inbox.{table} cascade");
        superuser.batch_execute(&drop).await.expect("it is dropped");
        outbox_idempotency::migrate(&mut owner).await.expect("it is recreated");
        database.grant().await;
        assert_eq!(before, shape(&database).await, "{table}");
        assert_eq!(days().await, days_before, "{table}: days that were forgotten stay so");
    }
    superuser.batch_execute("drop table inbox.consumers cascade").await.expect("dropped");
    let refused = outbox_idempotency::migrate(&mut owner).await.expect_err("it is not");
    assert!(refused.to_string().contains("backup"), "{refused}");
}
