//! Another table in the place of the published one: what it has is not taken for what the old one had.

use std::time::Duration;

use outbox_harness::{Harness, database::Role, postgres::Postgres, servers, wait};

use super::{after_three, after_three_on, arrives, run, stopped_after_three, write};
use crate::{
    obeyed::{obey, says, typed},
    partitions::{ATTACH, ID, TABLE, insert_old},
    remedies::halted,
    repair::{drop_slot, wait_snapshot},
    rows::insert,
};

/// Another table of the same name, shape and rights; `with` fills `outbox.copy` before it takes the place.
async fn remake_table(t: &Harness, with: &[&str]) {
    run(t, "create table outbox.copy (like outbox.events including all)").await;
    for statement in with {
        run(t, statement).await;
    }
    for statement in [
        "drop table outbox.events",
        "alter table outbox.copy rename to events",
        "alter publication outbox add table outbox.events",
        "do $$ declare r record; begin \
             for r in select rolname from pg_roles where rolname like 'outbox_%' loop \
             execute format('grant select, insert on outbox.events to %I', r.rolname); end loop; end $$",
    ] {
        run(t, statement).await;
    }
}

#[tokio::test]
async fn a_table_made_anew_halts_instead_of_being_read_for_the_old_one() {
    let (mut t, topic, mut relay) = stopped_after_three().await;
    write(&mut t, &topic, 2).await;
    remake_table(&t, &[]).await;
    relay.restart();
    let detail = halted(&relay).await;
    assert!(detail.contains("is another table"), "{detail}");
    // The slot has what was written into the former one.
    let output = t.relay().command(&["resume", "--at", "progress", "--yes"]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    relay.wait_ready().await;
    wait::until("what the slot has arrives", wait::PATIENCE, || async {
        match topic.records().await.len() {
            5 => Ok(()),
            found => Err(found),
        }
    })
    .await
    .expect("all that was written before");
}

/// The right comes before the publication: as it is printed, the owner of both can type it, one after the other.
#[tokio::test]
async fn what_a_table_put_in_the_place_of_the_published_one_lacks_is_named_in_the_order_that_works()
{
    let (t, topic, mut relay) = after_three().await;
    let owner = t.database().connect(Role::Owner).await;
    let swap = "create table outbox.copy (like outbox.events including all); \
                drop table outbox.events; alter table outbox.copy rename to events; \
                select outbox.note_deletions('outbox.events')";
    owner.batch_execute(swap).await.expect("swapped");
    let behind = insert(&t, &topic, "now()").await;
    let detail = says(&relay, "what is written meanwhile").await;
    let statements: Vec<&str> = detail.split('`').skip(1).step_by(2).collect();
    assert!(
        matches!(&statements[..], [grant, publish]
            if grant.starts_with("grant select") && publish.starts_with("alter publication")),
        "{detail}"
    );
    for words in ["as the table's owner, `grant", "as the owner of publication and table, `alter"] {
        assert!(detail.contains(words), "{words:?} is not in: {detail}");
    }
    for statement in statements {
        owner.batch_execute(statement).await.unwrap_or_else(|e| panic!("{statement}: {e:?}"));
    }
    let detail = says(&relay, "is another table").await;
    let command = typed(&detail, "resume --at table");
    obey(&t, &format!("{command} --yes")).await;
    relay.wait_ready().await;
    let last = insert(&t, &topic, "now()").await;
    topic.records_with([behind, last]).await;
    let count = t.count(&topic, 2).await;
    assert_eq!((count.delivered, count.lost, count.duplicated), (2, 0, 0), "{count}");
}

/// The slot waits for a transaction that is open. What the former table had is in the one in its place.
#[tokio::test]
async fn a_table_that_is_replaced_while_the_slot_of_a_repair_is_made_halts_and_loses_nothing() {
    // Slots of other tests would wait for the transaction, too.
    let ((postgres, _server), kafka) = tokio::join!(Postgres::private(), servers::kafka());
    let (mut t, topic, mut relay) = after_three_on(Harness::with(postgres, kafka).await).await;
    assert!(relay.sigterm().await.success());
    drop_slot(&t).await;
    write(&mut t, &topic, 2).await;
    let open = t.database().connect(Role::Writer).await;
    open.batch_execute("begin; select pg_current_xact_id()").await.expect("a transaction");
    relay.restart();
    relay.wait_log("the slot waits for open transactions").await;
    let rows = "insert into outbox.copy select * from outbox.events";
    remake_table(&t, &[rows, "select outbox.note_deletions('outbox.copy')"]).await;
    open.batch_execute("commit").await.expect("it ends");
    relay.wait_log("outbox.events is another table than when the repair was decided").await;
    let detail = says(&relay, "is another table").await;
    let command = typed(&detail, "resume --at table");
    obey(&t, &format!("{command} --yes")).await;
    relay.wait_ready().await;
    write(&mut t, &topic, 2).await;
    let count = t.count(&topic, 2).await;
    count.assert_exactly_once();
    assert_eq!(count.delivered, 7, "{count}");
}

/// As after the database was restored from a dump in its place.
#[tokio::test]
async fn a_table_that_came_from_a_dump_is_published_from_the_newest_event_on_as_the_halt_says() {
    let (mut t, topic, mut relay) = stopped_after_three().await;
    drop_slot(&t).await;
    // A dump has the rows, and the triggers of the account of deletions.
    let rows = "insert into outbox.copy select * from outbox.events";
    remake_table(&t, &[rows, "select outbox.note_deletions('outbox.copy')"]).await;
    write(&mut t, &topic, 2).await;
    relay.restart();
    let detail = halted(&relay).await;
    assert!(detail.contains("with `outbox-relay resume --at table`; or, to leave out"), "{detail}");
    let output = t.relay().command(&["resume", "--at", "table"]).await;
    let asked = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{asked}");
    for words in ["The newest published event was created at", "It leaves out 3 rows", "give --yes"]
    {
        assert!(asked.contains(words), "{words} is not in: {asked}");
    }
    let output = t.relay().command(&["resume", "--at", "table", "--yes"]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    relay.wait_ready().await;
    write(&mut t, &topic, 2).await;
    let count = t.count(&topic, 2).await;
    count.assert_at_least_once();
    assert_eq!(count.lost, 0);
}

/// Without the slot they are not told from the rows that the dump brought. The question says so, and how to lose none.
#[tokio::test]
async fn unpublished_rows_that_were_attached_to_a_table_from_a_dump_arrive_as_the_question_says() {
    let (mut t, topic, mut relay) = stopped_after_three().await;
    run(&t, &format!("{TABLE}; {}", insert_old(&topic, ID))).await;
    relay.restart();
    relay.wait_ready().await;
    write(&mut t, &topic, 1).await;
    arrives(&t, &topic).await;
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    drop_slot(&t).await;
    let copied = [
        "drop table outbox.copy; create table outbox.copy (like outbox.events including all) \
             partition by range (created_at); \
         create table outbox.rest partition of outbox.copy default; \
         insert into outbox.copy select * from outbox.events",
        "select outbox.note_deletions('outbox.copy')",
    ];
    remake_table(&t, &copied).await;
    relay.restart();
    let detail = says(&relay, "is another table").await;
    let command = typed(&detail, "resume --at table");
    // Whoever types the command has read what was said before.
    run(&t, ATTACH).await;
    let output = t.relay().command(&["resume", "--at", "table"]).await;
    let asked = String::from_utf8_lossy(&output.stderr).into_owned();
    for words in ["It leaves out 5 rows", "answer no, detach it, run this command again"] {
        assert!(asked.contains(words), "{words:?} is not in: {asked}");
    }
    run(&t, "alter table outbox.events detach partition outbox.events_old").await;
    obey(&t, &format!("{command} --yes")).await;
    relay.wait_ready().await;
    run(&t, ATTACH).await;
    let detail = halted(&relay).await;
    obey(&t, typed(&detail, "with rows as")).await;
    topic.records_with([ID.to_owned()]).await;
    relay.wait_ready().await;
    write(&mut t, &topic, 2).await;
    arrives(&t, &topic).await;
}

/// Under its other name it is no table of the relay's; its rows are the outbox's all the same.
#[tokio::test]
async fn rows_written_under_another_name_of_the_table_while_the_relay_is_away_are_not_passed_over()
{
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(2).await;
    let mut relay = t.relay().start().await;
    for (away, name, back) in [
        (
            "alter table outbox.events rename to former",
            "outbox.former",
            "alter table outbox.former rename to events",
        ),
        (
            "alter table outbox.events set schema public",
            "public.events",
            "alter table public.events set schema outbox",
        ),
    ] {
        write(&mut t, &topic, 3).await;
        arrives(&t, &topic).await;
        wait_snapshot(&t).await;
        assert!(relay.sigterm().await.success());
        write(&mut t, &topic, 3).await;
        run(&t, away).await;
        let insert = format!(
            "insert into {name} (topic, payload) select '{}', '1' from generate_series(1, 3)",
            topic.name()
        );
        run(&t, &insert).await;
        run(&t, back).await;
        write(&mut t, &topic, 3).await;
        relay.restart();
        arrives(&t, &topic).await;
    }
}

/// The server announces a partitioned table when a partition has its first row, by the name that it has then, and not
/// again once it has its own name back.
#[tokio::test]
async fn a_table_that_is_announced_under_another_name_is_known_by_its_oid() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(2).await;
    let mut relay = t.relay().start().await;
    for (year, away, name, back) in [
        (
            2020,
            "alter table outbox.events rename to former",
            "outbox.former",
            "alter table outbox.former rename to events",
        ),
        (
            2021,
            "alter schema outbox rename to former",
            "former.events",
            "alter schema former rename to outbox",
        ),
    ] {
        write(&mut t, &topic, 3).await;
        arrives(&t, &topic).await;
        let under_another_name = format!(
            "insert into {name} (id, topic, payload, created_at) \
             select gen_random_uuid(), '{}', '1', '{year}-01-05' from generate_series(1, 3)",
            topic.name()
        );
        let no_row_yet = format!(
            "create table y{year} partition of outbox.events \
             for values from ('{year}-01-01') to ('{year}-02-01')"
        );
        run(&t, &no_row_yet).await;
        // While it streams: the relay's look at the catalogs sees nothing of it.
        run(&t, &format!("begin; {away}; {under_another_name}; {back}; commit")).await;
        write(&mut t, &topic, 3).await;
        arrives(&t, &topic).await;
        // While it is away: the first row that it sees of any partition has the other name.
        assert!(relay.sigterm().await.success());
        for statement in [away, &under_another_name, back] {
            run(&t, statement).await;
        }
        write(&mut t, &topic, 3).await;
        relay.restart();
        arrives(&t, &topic).await;
        write(&mut t, &topic, 3).await;
        arrives(&t, &topic).await;
    }
}

/// It was created before the newest published event, and committed after it: by time alone it would be left out.
#[tokio::test]
async fn what_a_transaction_wrote_that_was_open_is_published_from_the_table_that_took_the_place() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(2).await;
    let mut relay = t.relay().start().await;
    write(&mut t, &topic, 1).await;
    let mut writer = t.database().connect(Role::Writer).await;
    let open = writer.transaction().await.expect("a transaction");
    let sql = "select outbox.publish($1, key => 'late', payload => '{}')::text";
    let late: String = open.query_one(sql, &[&topic.name()]).await.expect("written").get(0);
    write(&mut t, &topic, 2).await;
    arrives(&t, &topic).await;
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    open.commit().await.expect("committed");
    write(&mut t, &topic, 2).await;
    let rows = "insert into outbox.copy select * from outbox.events";
    remake_table(&t, &[rows, "select outbox.note_deletions('outbox.copy')"]).await;
    relay.restart();
    let detail = says(&relay, "is another table").await;
    let command = typed(&detail, "resume --at table");
    obey(&t, &format!("{command} --yes")).await;
    relay.wait_ready().await;
    topic.records_with([late]).await;
    let count = t.count(&topic, 2).await;
    count.assert_at_least_once();
    assert_eq!(count.lost, 0, "{count}");
}

/// A look that finds no table must not forget how it was published: what comes back may be published anew.
#[tokio::test]
async fn a_table_that_is_away_while_its_publication_changes_loses_no_row() {
    const AWAY: [(&str, &str, &str, &str, &str); 2] = [
        (
            "alter table public.t rename to gone",
            "alter publication outbox drop table public.gone",
            "public.gone",
            "alter publication outbox add table public.gone",
            "alter table public.gone rename to t",
        ),
        (
            "alter table public.t set schema aside",
            "alter publication outbox set table outbox.events",
            "aside.t",
            "alter table aside.t set schema public",
            "alter publication outbox add table public.t",
        ),
    ];
    for (leave, hide, other, back, end) in AWAY {
        let t = Harness::start().await;
        let topic = t.topic("orders").create(1).await;
        for statement in [
            "create schema aside",
            "create table public.t (like outbox.events including all)",
            "select outbox.note_deletions('public.t')",
            "alter publication outbox add table public.t",
            &format!("grant select on public.t to {}", t.database().name_of(Role::Relay)),
        ] {
            run(&t, statement).await;
        }
        let tables = "[\"outbox.events\", \"public.t\"]";
        let mut relay = t.relay().set_toml("outbox.tables", tables).start().await;
        let insert_into = async |table: &str| {
            let insert = format!(
                "insert into {table} (topic, key) values ('{}', 'k') returning id::text",
                topic.name()
            );
            let row = t.database().superuser().query_one(&insert, &[]).await;
            row.expect("inserted").get::<_, String>(0)
        };
        let mut ids = vec![insert_into("public.t").await];
        topic.records_with(ids.clone()).await;
        wait_snapshot(&t).await;
        run(&t, leave).await;
        // Looks are a second apart.
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        run(&t, hide).await;
        for _ in 0..3 {
            ids.push(insert_into(other).await);
        }
        run(&t, back).await;
        run(&t, end).await;
        ids.push(insert_into("public.t").await);
        topic.records_with(ids).await;
        relay.wait_ready().await;
    }
}
