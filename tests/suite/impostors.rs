//! Whatever others create under PostgreSQL's own names, nothing of ours calls it.

use std::{fs, path::PathBuf, time::Duration};

use outbox_harness::{
    Harness,
    database::{Database, Role},
    impostors,
    postgres::Postgres,
    postgres_version::Version,
    servers, wait,
};
use outbox_idempotency::{
    Dedup, Event, Failure, Inbox, Message, MessageId, Processor, Retry, Tx,
    dead_letters::{self, Page, Selection},
};
use outbox_relay::throwaway::{LocalPostgres, Shutdown};
use uuid::Uuid;

use crate::{
    dead_letters::{dead_letters as command, wait_parked, wait_records},
    inbox::{
        effects::{Step, message},
        watermark::{published, watermark},
    },
    repair::{drop_slot, wait_snapshot},
};

/// A server's log, from here on.
struct Log {
    file: PathBuf,
    begin: usize,
}

impl Log {
    fn from_now(server: &LocalPostgres) -> Self {
        let file = server.log();
        let begin = fs::read(&file).expect("a log").len();
        Log { file, begin }
    }

    fn assert_no_impostor(&self) {
        let log = fs::read(&self.file).expect("a log");
        let log = String::from_utf8_lossy(log.get(self.begin..).unwrap_or_default()).into_owned();
        let lines: Vec<&str> = log.lines().collect();
        // With what follows it, which is the statement.
        let met = lines.iter().enumerate().filter(|(_, line)| line.contains("ERROR:"));
        let met: Vec<String> = met
            .map(|(n, _)| lines.iter().skip(n).take(5).copied().collect::<Vec<_>>().join("\n"))
            .collect();
        assert!(met.is_empty(), "{}", met.join("\n\n"));
    }
}

/// An empty database in which impostors come first for every role.
async fn planted(postgres: &'static Postgres) -> Database {
    let database = Database::create_empty_in(postgres, "").await;
    impostors::plant(&database).await;
    for role in [Role::Writer, Role::Relay, Role::Operator, Role::Owner, Role::Consumer] {
        let session = database.connect(role).await;
        for sql in [
            "select now()",
            "select 1 = 1",
            "select 'x'::text",
            "select * from pg_class",
            "select 'b'::pg_catalog.text || 'c'::pg_catalog.text",
            "select octet_length('a'::pg_catalog.text)",
            // PostgreSQL's own takes any type.
            "select concat('a'::pg_catalog.text)",
        ] {
            assert!(impostors::meets_one(&session, sql).await, "{role:?}: {sql}");
        }
    }
    database
}

async fn migrate(t: &Harness, set: &str) {
    let settings = t.relay().set("postgres.url", &t.database().url(Role::Owner));
    for _ in 0..2 {
        let migrated = settings.command(&["migrate", "--set", set]).await;
        assert!(migrated.status.success(), "{migrated:?}");
    }
}

/// Migration, main road, check, parking, commands, repair.
async fn relay_meets_none(postgres: &'static Postgres, server: &LocalPostgres) {
    let database = planted(postgres).await;
    let log = Log::from_now(server);
    let t = Harness::over(database, servers::kafka().await).await;
    migrate(&t, "outbox").await;
    migrate(&t, "inbox").await;
    let mut owner = t.database().connect(Role::Owner).await;
    outbox_idempotency::migrate(&mut owner).await.expect("it is up to date");
    assert_types_are_postgresqls(t.database()).await;
    t.database().grant().await;

    let topic = t.topic("orders").create(1).await;
    let (missing, settings) = (t.topic("later"), t.relay().set("sink.topic_grace", "100ms"));
    let writer = t.database().connect(Role::Writer).await;
    let write = async |topic: &str| {
        let write = format!(
            "select outbox.publish('{topic}', '{{}}', 'k', 'a', '{{\"h\": \"v\"}}'); \
             insert into outbox.events (topic, key, payload) values ('{topic}', 'k', '{{}}')"
        );
        writer.batch_execute(&write).await.expect("written");
    };
    let check = settings.command(&["check"]).await;
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    let mut relay = settings.start().await;
    write(topic.name()).await;
    wait_records(&topic, 2).await;
    write(missing.name()).await;
    wait_parked(&t, |parked| parked == 2).await;
    let check = t.relay().command(&["check"]).await;
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));

    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    drop_slot(&t).await;
    write(topic.name()).await;
    relay.restart();
    relay.wait_ready().await;
    wait_records(&topic, 4).await;

    let list = command(&t, &["list"]).await;
    let id = |n: usize| list.get(n).map(|entry| entry["id"].to_string()).expect("it is parked");
    command(&t, &["show", &id(0)]).await;
    command(&t, &["edit", &id(0), "--type", "b"]).await;
    command(&t, &["discard", &id(1)]).await;
    let missing = missing.create(1).await;
    command(&t, &["release", "--all"]).await;
    wait_records(&missing, 1).await;
    wait_parked(&t, |parked| parked == 0).await;
    assert!(relay.sigterm().await.success());
    let moved = t.relay().command(&["resume", "--at", "slot", "--yes"]).await;
    assert!(moved.status.success(), "{moved:?}");
    log.assert_no_impostor();
}

async fn assert_types_are_postgresqls(database: &Database) {
    let foreign = "select c.oid::regclass || '.' || a.attname from pg_class c \
                   join pg_attribute a on a.attrelid = c.oid and not a.attisdropped \
                   join pg_type t on t.oid = a.atttypid \
                   where c.relnamespace in ('outbox'::regnamespace, 'inbox'::regnamespace) \
                       and t.typnamespace = 'public'::regnamespace";
    let rows = database.superuser().query(foreign, &[]).await.expect("columns");
    let columns: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert!(columns.is_empty(), "of an impostor's type: {columns:?}");
}

/// A pool, in whose sessions relations and types of the session's own come first, too.
fn pool(database: &Database, role: Role) -> deadpool_postgres::Pool {
    let config = database.config(role);
    let manager = deadpool_postgres::Manager::new(config, tokio_postgres::NoTls);
    let plant =
        deadpool_postgres::Hook::async_fn(|client: &mut deadpool_postgres::ClientWrapper, _| {
            Box::pin(async move {
                impostors::plant_temporary(client).await.expect("temporary impostors");
                Ok(())
            })
        });
    deadpool_postgres::Pool::builder(manager)
        .max_size(4)
        .post_create(plant)
        .build()
        .expect("a pool")
}

/// Everything that a consumer does: rows, batches, a watermark, parking, retries, dead letters.
async fn consumer_meets_none(postgres: &'static Postgres, server: &LocalPostgres) {
    let database = planted(postgres).await;
    let log = Log::from_now(server);
    let mut owner = database.connect(Role::Owner).await;
    for set in ["outbox", "inbox"] {
        outbox_migrations::apply(&mut owner, set.parse().expect("a set")).await.expect("migrated");
    }
    database.grant().await;
    let effects = "create table public.effects (key pg_catalog.text, n pg_catalog.int4); \
                   grant insert on public.effects to public";
    database.superuser().batch_execute(effects).await.expect("a table");

    let pools = [Role::Consumer, Role::Operator].map(|role| pool(&database, role));
    let [pool, operators] = &pools;
    let inbox = Inbox::open(pool.clone(), "billing").await.expect("opened");
    inbox.maintain().await.expect("maintained");
    claims(&inbox, pool).await;
    let handler = |tx: Tx, message: Message<Step>| async move {
        let insert = "insert into public.effects (key, n) values ($1, $2)";
        tx.execute(insert, &[&message.payload.key, &message.payload.n]).await?;
        tx.publish(&Event::new("done", serde_json::json!({})).key("k").kind("a")).await?;
        match message.payload.key.as_str() {
            "never" => Err(Failure::permanent("never", "no")),
            "later" if message.attempt < 3 => Err(Failure::transient("not yet")),
            _ => Ok(()),
        }
    };
    let retry = || Retry::exponential(Duration::from_millis(5), Duration::from_millis(20));
    let rows = Processor::new(inbox.clone(), handler).retry(retry());
    let marked = Processor::new(inbox.clone(), handler).retry(retry()).dedup(watermark());
    let off = Processor::new(inbox, handler).retry(retry()).dedup(Dedup::Off);
    let background = async {
        tokio::select! {
            stop = rows.background() => panic!("{stop:?}"),
            stop = marked.background() => panic!("{stop:?}"),
        }
    };
    let work = async {
        for messages in [
            vec![message("a", 1)],
            vec![message("a", 2), message("b", 1), message("later", 1), message("later", 2)],
            vec![message("later", 3)],
            vec![message("never", 1), message("never", 2)],
        ] {
            rows.process(&messages).await.expect("settled");
        }
        off.process(&[message("a", 3), message("later", 4)]).await.expect("settled");
        let mut no_key = published("a", 6, 30, 2);
        no_key.key = None;
        let messages = [published("a", 4, 10, 0), published("later", 5, 20, 1), no_key];
        marked.process(&messages).await.expect("settled");
        until_empty(&database, "inbox.parked").await;
        replay(operators).await;
        until_empty(&database, "inbox.parked").await;
    };
    tokio::select! { () = work => {}, () = background => {} }
    log.assert_no_impostor();
}

/// In transactions of the caller's own.
async fn claims(inbox: &Inbox, pool: &deadpool_postgres::Pool) {
    let mut client = pool.get().await.expect("a connection");
    let transaction = client.transaction().await.expect("begun");
    let id = || MessageId::from_uuid(Uuid::now_v7()).expect("a time");
    let far = MessageId::at(Uuid::now_v7(), std::time::UNIX_EPOCH);
    inbox.claim(&transaction, &id()).await.expect("claimed");
    inbox.claim_batch(&transaction, &[id(), id(), far]).await.expect("claimed");
    transaction.commit().await.expect("committed");
    inbox.once(&id(), |_| async { Ok::<_, std::convert::Infallible>(()) }).await.expect("done");
}

async fn replay(pool: &deadpool_postgres::Pool) {
    let client = pool.get().await.expect("a connection");
    let all = Selection::default();
    let some = all.clone().with_consumer("billing");
    let dead = dead_letters::list(&**client, &some, Page::first(100)).await.expect("listed");
    let [first, _] = &*dead else { panic!("{dead:?}") };
    dead_letters::show(&**client, first.id).await.expect("shown");
    let one = some.with_id(first.id).with_code("never");
    assert_eq!(dead_letters::replay(&**client, &one).await.expect("replayed"), 1);
    assert_eq!(dead_letters::discard(&**client, &all).await.expect("discarded"), 1);
}

async fn until_empty(database: &Database, table: &str) {
    let sql = format!("select count(*) from {table}");
    wait::until(&sql, wait::PATIENCE, || async {
        let row = database.superuser().query_one(&sql, &[]).await.map_err(|e| e.to_string())?;
        match row.get::<_, i64>(0) {
            0 => Ok(()),
            left => Err(format!("{left} left")),
        }
    })
    .await
    .expect("it is emptied");
}

#[tokio::test]
async fn whatever_others_create_nothing_of_ours_calls_it() {
    let (postgres, server) = Postgres::private().await;
    nothing_meets_one(postgres, server).await;
}

/// Where everybody may create in `public`.
#[tokio::test]
async fn whatever_others_create_nothing_of_ours_calls_it_on_postgresql_14() {
    let (postgres, server) = Postgres::private_version(Version::V14).await;
    nothing_meets_one(postgres, server).await;
}

async fn nothing_meets_one(postgres: &'static Postgres, mut server: LocalPostgres) {
    relay_meets_none(postgres, &server).await;
    consumer_meets_none(postgres, &server).await;
    server.stop(Shutdown::Immediate).expect("it ends");
}
