//! Where the server says what has refused a row, that alone is named; and what can't refuse one is not.

use outbox_harness::{
    Harness, database::Role, postgres::Postgres, postgres_version::Version, servers,
};

use crate::{
    checks::check,
    dead_letters::wait_parked,
    obeyed::{says, typed},
    rows::{each_once, insert, run},
};

/// None of them has refused anything.
const HARMLESS: &str = "\
    alter table outbox.dead_letters add constraint harmless_check check (reason <> 'never'); \
    create unique index harmless_index on outbox.dead_letters (topic, commit_lsn, ordinal, headers); \
    create function outbox.harmless() returns trigger language plpgsql as $$ begin return null; end $$; \
    create trigger harmless_trigger after insert on outbox.dead_letters \
        for each row execute function outbox.harmless()";

#[tokio::test]
async fn of_several_changes_the_guilty_one_alone_is_named_where_the_server_tells_it() {
    let cases = [
        (
            "alter table outbox.dead_letters add constraint tidy check (reason <> 'unknown_topic') not valid",
            "drop constraint tidy",
        ),
        (
            "alter table outbox.dead_letters add column team text; \
             alter table outbox.dead_letters alter column team set not null",
            "alter column team drop not null",
        ),
        (
            "alter table outbox.dead_letters alter column reason type varchar(4)",
            "alter column reason type text",
        ),
        (
            "create function outbox.refuse() returns trigger language plpgsql as \
             $$ begin raise exception 'not here'; end $$; \
             create trigger guard after insert on outbox.dead_letters \
             for each row execute function outbox.refuse()",
            "disable trigger guard",
        ),
        ("drop index outbox.dead_letters_position", "create unique index dead_letters_position"),
    ];
    futures_util::future::join_all(cases.map(is_named_alone)).await;
}

async fn is_named_alone((done, statement): (&str, &str)) {
    let t = Harness::start().await;
    let (topic, late) = (t.topic("orders").create(1).await, t.topic("late"));
    let relay = t.relay().set("sink.topic_grace", "100ms").start().await;
    run(&t, HARMLESS).await;
    run(&t, done).await;
    let sql = format!("insert into outbox.events (topic) values ('{}')", late.name());
    run(&t, &sql).await;
    let halt = says(&relay, statement).await;
    assert!(!halt.contains("harmless"), "{done}: {halt}");
    let behind = insert(&t, &topic, "now()").await;
    let owner = t.database().connect(Role::Owner).await;
    let statement = typed(&halt, statement);
    owner.batch_execute(statement).await.unwrap_or_else(|e| panic!("{statement}: {e:?}"));
    wait_parked(&t, |parked| parked == 1).await;
    each_once(&topic, &[&behind]).await;
}

/// What `builds` of an index of `outbox.dead_letters` leaves behind that gives up while the index takes no rows yet
/// (`is_ready` false), or after.
async fn leave_behind(t: &Harness, builds: &str, is_ready: bool) {
    let other = t.database().connect(Role::Owner).await;
    let blocks = match is_ready {
        false => "begin; lock table outbox.dead_letters in row exclusive mode",
        true => "begin isolation level repeatable read; select count(*) from outbox.events",
    };
    other.batch_execute(blocks).await.expect("it blocks");
    let owner = t.database().connect(Role::Owner).await;
    owner.batch_execute("set lock_timeout = '300ms'").await.expect("set");
    owner.batch_execute(builds).await.expect_err("it gives up");
    other.batch_execute("rollback").await.expect("free");
    let newest = "select indisready and not indisvalid from pg_index \
                  where indrelid = 'outbox.dead_letters'::regclass order by indexrelid desc limit 1";
    let found: bool = t.database().superuser().query_one(newest, &[]).await.expect("left").get(0);
    assert_eq!(found, is_ready, "{builds}");
}

async fn what_refuses_nothing_is_not_blamed(t: Harness, knows_not_enforced: bool) {
    let late = t.topic("late");
    let settings = t.relay().set("sink.topic_grace", "100ms");
    let relay = settings.clone().start().await;
    for index in ["dead_letters_position", "dead_letters_pkey"] {
        for is_ready in [false, true] {
            let builds = format!("reindex index concurrently outbox.{index}");
            leave_behind(&t, &builds, is_ready).await;
        }
    }
    run(&t, "alter table outbox.dead_letters add constraint known unique (id, topic)").await;
    if knows_not_enforced {
        let not_enforced = "alter table outbox.dead_letters \
                            add constraint idle check (reason <> 'unknown_topic') not enforced";
        run(&t, not_enforced).await;
    }
    let found = check(&settings).await;
    let blamed: Vec<_> =
        found.iter().filter(|it| it.name == "parking" && it.verdict != "ok").collect();
    assert!(blamed.is_empty(), "{blamed:#?}");
    let sql = "insert into outbox.events (topic, key) select $1, 'k' from generate_series(1, 5)";
    t.database().superuser().execute(sql, &[&late.name()]).await.expect("inserted");
    wait_parked(&t, |parked| parked == 5).await;
    assert!(!relay.logs_contain("halted"), "{}", relay.log_text());

    // What refuses rows from now on, though not those that are there; and what is left behind of somebody's own index.
    let refuses = "alter table outbox.dead_letters add constraint tidy check (reason <> 'unknown_topic') not valid";
    run(&t, refuses).await;
    let builds =
        "create unique index concurrently once on outbox.dead_letters (commit_lsn, ordinal)";
    leave_behind(&t, builds, true).await;
    let found = check(&settings).await;
    for words in ["the constraint tidy of", "the index outbox.once of"] {
        assert!(found.iter().any(|it| it.seen.contains(words)), "{words}: {found:#?}");
    }
}

#[tokio::test]
async fn what_refuses_nothing_is_not_blamed_on_postgresql_18() {
    let (kafka, (postgres, _server)) =
        tokio::join!(servers::kafka(), Postgres::private_version(Version::V18));
    what_refuses_nothing_is_not_blamed(Harness::with(postgres, kafka).await, true).await;
}

#[tokio::test]
async fn what_refuses_nothing_is_not_blamed_on_the_suites_postgresql() {
    what_refuses_nothing_is_not_blamed(Harness::start().await, false).await;
}
