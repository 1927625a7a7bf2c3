//! A database that a dump has moved to another cluster: halts whose remedy is obeyed to the letter, and the events counted.

use outbox_harness::{
    Harness, database::Role, event::Event, postgres::Postgres, servers, topic::Topic, wait,
};

use crate::{
    remedies::{halted, plan},
    repair::wait_snapshot,
};

/// Its WAL and its transaction ids are ahead of those of the other cluster, as after some minutes of its own.
#[tokio::test]
async fn a_cluster_that_a_dump_has_filled_is_not_taken_for_one_that_pg_upgrade_made() {
    let ((postgres, _first), (second, _second), kafka) =
        tokio::join!(Postgres::private(), Postgres::private(), servers::kafka());
    let t = Harness::with(postgres, kafka).await;
    let topic = t.topic("orders").create(2).await;
    let mut relay = t.relay().start().await;
    t.load(&plan(&topic)).await.finish().await;
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    t.load(&plan(&topic)).await.finish().await;
    let other = Harness::with(second, kafka).await;
    spend_ids(&other).await;
    let noise =
        "create table public.noise as select repeat('x', 1000) from generate_series(1, 20000)";
    other.database().superuser().batch_execute(noise).await.expect("some WAL");
    restore(&t, &other).await;
    let name = t.database().name();
    let settings = other.relay().set("name", name).set("postgres.slot", &format!("outbox_{name}"));
    let mut relay = settings.clone().spawn();
    let detail = halted(&relay).await;
    assert!(detail.contains("resume --at upgrade"), "{detail}");
    let output = settings.command(&["resume", "--at", "upgrade", "--yes"]).await;
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{words}");
    assert!(words.contains("not made by pg_upgrade") && words.contains("--at table"), "{words}");
    let output = settings.command(&["resume", "--at", "table", "--yes"]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    relay.wait_ready().await;
    all_published(&other, &topic).await;
}

/// Its rows carry transaction ids that this cluster has not given yet: a repair would skip them.
#[tokio::test]
async fn a_database_that_a_dump_has_moved_goes_on_as_the_halt_says_and_loses_nothing() {
    let ((postgres, _first), (second, _second), kafka) =
        tokio::join!(Postgres::private(), Postgres::private(), servers::kafka());
    let t = Harness::with(postgres, kafka).await;
    let topic = t.topic("orders").create(2).await;
    let mut relay = t.relay().start().await;
    spend_ids(&t).await;
    t.load(&plan(&topic)).await.finish().await;
    t.count(&topic, 2).await.assert_exactly_once();
    // A writer's clock runs ahead; Kafka takes up to an hour.
    let ahead = format!(
        "insert into outbox.events (topic, created_at) \
         values ('{}', clock_timestamp() + interval '55 minutes')",
        topic.name()
    );
    t.database().superuser().batch_execute(&ahead).await.expect("it is written");
    t.count(&topic, 2).await.assert_exactly_once();
    assert!(relay.sigterm().await.success());
    t.load(&plan(&topic)).await.finish().await;

    let mut other = Harness::with(second, kafka).await;
    restore(&t, &other).await;
    other.commit((0..10).map(|_| Event::to(topic.name()))).await;
    let name = t.database().name();
    let settings = other.relay().set("name", name).set("postgres.slot", &format!("outbox_{name}"));
    let mut relay = settings.clone().spawn();
    let detail = halted(&relay).await;
    assert!(detail.contains("`outbox-relay resume --at table`: it goes by the time"), "{detail}");
    assert!(detail.contains("asks first, with the number of older rows"), "{detail}");

    // One message has all that is to be typed, and what is agreed to by that.
    let output = settings.command(&["resume", "--at", "table"]).await;
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{words}");
    for word in ["as the table's owner", "again, with --yes if you agree", "It leaves out"] {
        assert!(words.contains(word), "{word:?} is not in: {words}");
    }
    let table = ["resume", "--at", "table", "--yes"];
    let typed = words.split('`').nth(1).expect("a statement to type");
    other.database().superuser().batch_execute(typed).await.expect("it can be typed");
    let output = settings.command(&table).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    relay.wait_ready().await;
    // All of before was restored, and what had arrived comes again with its id.
    all_published(&other, &topic).await;
}

/// Transaction ids go by.
async fn spend_ids(t: &Harness) {
    let spend =
        "do $$ begin for n in 1..5000 loop perform pg_current_xact_id(); commit; end loop; end $$";
    t.database().superuser().batch_execute(spend).await.expect("ids");
}

/// What a dump does with the rows of the table.
async fn restore(t: &Harness, other: &Harness) {
    let dump = "select jsonb_agg(to_jsonb(e))::text from outbox.events e";
    let rows = t.database().superuser().query_one(dump, &[]).await.expect("rows");
    let rows: &str = rows.get(0);
    let restore = "insert into outbox.events \
                   select * from jsonb_populate_recordset(null::outbox.events, $1::text::jsonb)";
    other.database().superuser().execute(restore, &[&rows]).await.expect("they are restored");
}

async fn all_published(t: &Harness, topic: &Topic) {
    let ids = "select id::text from outbox.events";
    let rows = t.database().superuser().query(ids, &[]).await.expect("rows");
    wait::until("all of the table is published", wait::PATIENCE, || async {
        let records = topic.records().await;
        let came = |id: &str| records.iter().any(|record| record.id() == Some(id));
        match rows.iter().filter(|row| !came(row.get(0))).count() {
            0 => Ok(()),
            missing => Err(format!("{missing} of {} are missing", rows.len())),
        }
    })
    .await
    .expect("nothing is lost");
}

/// A repair by time takes that event for published, since others that were created later are.
#[tokio::test]
async fn an_event_that_was_open_at_the_newest_published_one_comes_with_the_moment_that_is_asked_for()
 {
    let ((postgres, _first), (second, _second), kafka) =
        tokio::join!(Postgres::private(), Postgres::private(), servers::kafka());
    let t = Harness::with(postgres, kafka).await;
    let topic = t.topic("orders").create(2).await;
    let mut relay = t.relay().start().await;
    let open = t.database().connect(Role::Owner).await;
    open.batch_execute("begin").await.expect("it begins");
    let insert =
        "insert into outbox.events (topic, key) values ($1, 'open') returning created_at::text";
    let row = open.query_one(insert, &[&topic.name()]).await.expect("it is written");
    let began: String = row.get(0);
    t.load(&plan(&topic)).await.finish().await;
    t.count(&topic, 2).await.assert_exactly_once();
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    open.batch_execute("commit").await.expect("it ends");

    let other = Harness::with(second, kafka).await;
    spend_ids(&other).await;
    restore(&t, &other).await;
    let name = t.database().name();
    let settings = other.relay().set("name", name).set("postgres.slot", &format!("outbox_{name}"));
    let mut relay = settings.clone().spawn();
    let detail = halted(&relay).await;
    assert!(detail.contains("`--since` and an earlier time publish those as well"), "{detail}");
    let output = settings.command(&["resume", "--at", "table"]).await;
    let words = String::from_utf8_lossy(&output.stderr);
    let add = "add `--since` with the time when the oldest such transaction began";
    assert!(!output.status.success() && words.contains(add), "{words}");
    let at_now = settings.command(&["resume", "--at", "now", "--since", &began, "--yes"]).await;
    let refused = String::from_utf8_lossy(&at_now.stderr);
    assert!(!at_now.status.success() && refused.contains("`--at table` alone"), "{refused}");
    let since = ["resume", "--at", "table", "--since", &began, "--yes"];
    let output = settings.command(&since).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    relay.wait_ready().await;
    all_published(&other, &topic).await;
}
