//! The grants of `docs/ROLES.md`: with all of them everything that is documented works, and without
//! any single one something fails and says which right which role lacks.

use outbox_harness::{
    Harness,
    database::{Database, Grant, Role},
    event::Event,
    relay::{Relay, Settings},
    topic::Topic,
    wait,
};
use outbox_migrations::grants::{
    self, INBOX_CONSUMER, INBOX_OPERATOR, OPERATOR, RELAY, RELAY_PROGRESS,
};
use tokio_postgres::error::SqlState;

use crate::{
    checks::check,
    dead_letters::{dead_letters, list, try_dead_letters, wait_parked, wait_records},
    repair::{drop_slot, wait_snapshot},
};

/// The single grants of one role on the objects of one schema.
pub(crate) fn of(database: &Database, role: Role, schema: &str) -> Vec<Grant> {
    let name = database.name_of(role);
    let is_of = |grant: &Grant| {
        grant.role == name
            && [format!("schema {schema}"), format!("{schema}."), format!("function {schema}.")]
                .iter()
                .any(|object| grant.object.starts_with(object))
    };
    database.documented_grants().into_iter().filter(is_of).collect()
}

pub(crate) async fn change(database: &Database, statement: &str) {
    database.superuser().batch_execute(statement).await.expect(statement);
}

/// The same life for whoever writes, relays and operates: each step by its own role.
async fn operate(t: &mut Harness, topic: &Topic) {
    let event = |key: &str| Event::to(topic.name()).key(key).partition(9);
    t.commit([event("released"), event("discarded")]).await;
    wait_parked(t, |parked| parked == 2).await;
    let entries = list(t).await;
    let id = |key: &str| {
        let of_key = entries.iter().find(|entry| entry["key"] == key);
        of_key.expect("it is parked")["id"].to_string()
    };
    dead_letters(t, &["show", &id("released")]).await;
    dead_letters(t, &["edit", &id("released"), "--no-partition"]).await;
    dead_letters(t, &["release", "--topic", topic.name(), "--key", "released"]).await;
    dead_letters(t, &["discard", &id("discarded"), "--why", "a test"]).await;
    wait_parked(t, |parked| parked == 0).await;
}

#[tokio::test]
async fn a_whole_life_works_under_exactly_the_documented_grants() {
    let mut t = Harness::start().await;
    change(t.database(), &format!("revoke all on database {} from public", t.database().name()))
        .await;
    let topic = t.topic("orders").create(1).await;
    let plain = format!("insert into outbox.events (topic, key) values ('{}', 'k')", topic.name());
    let published = format!("select outbox.publish('{}', '1', key => 'k')", topic.name());
    let writer = t.database().connect(Role::Writer).await;
    writer.batch_execute(&format!("{plain}; {published}")).await.expect("the writer may");
    let settings = t.relay();
    let found = check(&settings).await;
    assert!(found.iter().all(|finding| finding.verdict != "problem"), "{found:?}");
    assert!(!found.iter().any(|finding| finding.name == "rights" && finding.verdict != "ok"));
    let mut relay = settings.clone().start().await;
    wait_records(&topic, 2).await;
    operate(&mut t, &topic).await;
    wait_records(&topic, 3).await;
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    drop_slot(&t).await;
    writer.batch_execute(&plain).await.expect("the writer may");
    // Older than any snapshot that a repair may go by, too.
    let old = "update outbox.dead_letters set changed_at = now() - interval '60 days', \
                   commit_lsn = '0/20'::pg_lsn + id";
    change(t.database(), old).await;
    relay.restart();
    relay.wait_ready().await;
    wait_records(&topic, 4).await;
    wait::until("old history is deleted", wait::PATIENCE, || async {
        let rows = "select count(*) from outbox.dead_letters";
        match t.database().superuser().query_one(rows, &[]).await?.get::<_, i64>(0) {
            0 => Ok(()),
            rows => anyhow::bail!("{rows} are there"),
        }
    })
    .await
    .expect("it is");
    assert!(relay.sigterm().await.success());
    let resumed = settings.command(&["resume", "--at", "now", "--yes"]).await;
    assert!(resumed.status.success(), "{resumed:?}");
    assert!(!relay.logs_contain(" lacks "), "{}", relay.log_text());
}

#[tokio::test]
async fn the_programs_ask_for_exactly_the_documented_grants() {
    let database = Database::create().await;
    for (role, schema, asked) in [
        (Role::Relay, "outbox", &*[RELAY, RELAY_PROGRESS].concat()),
        (Role::Operator, "outbox", OPERATOR),
        (Role::Operator, "inbox", INBOX_OPERATOR),
        (Role::Consumer, "inbox", INBOX_CONSUMER),
    ] {
        let pair = |grant: &Grant| (grant.right.clone(), grant.object.clone());
        let mut documented: Vec<_> = of(&database, role, schema).iter().map(pair).collect();
        let pair = |grant: &grants::Grant| (grant.right.to_owned(), grant.object.to_owned());
        let mut asked: Vec<_> = asked.iter().map(pair).collect();
        documented.sort();
        asked.sort();
        assert_eq!(documented, asked, "{role:?} in {schema}");
    }
}

#[tokio::test]
async fn without_any_single_grant_a_writer_is_refused_with_the_objects_name() {
    let t = Harness::start().await;
    let grants = of(t.database(), Role::Writer, "outbox");
    let columns: Vec<&str> = grants.iter().filter_map(|grant| column(&grant.right)).collect();
    assert!(columns.len() > 3 && grants.len() > columns.len() + 2, "{grants:?}");
    let columns = columns.join(", ");
    let all = format!(
        "insert into outbox.events ({columns}) \
         select {columns} from jsonb_populate_record(null::outbox.events, $${{\
             \"id\": \"00000000-0000-7000-8000-000000000000\", \"topic\": \"t\", \
             \"headers\": {{}}, \"created_at\": \"2026-01-01\"}}$$)"
    );
    for grant in &grants {
        change(t.database(), &grant.revoke()).await;
        let writer = t.database().connect(Role::Writer).await;
        let plain = "insert into outbox.events (topic) values ('t')";
        let published = "select outbox.publish('t', '1')";
        let mut refused = Vec::new();
        for sql in [plain, published, &all] {
            if let Err(error) = writer.batch_execute(sql).await {
                assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{error:?}");
                refused.push(error.as_db_error().expect("the server's").message().to_owned());
            }
        }
        let name = grant.object.split('(').next().unwrap_or_default();
        let name = name.rsplit(['.', ' ']).next().unwrap_or_default();
        assert!(refused.iter().any(|told| told.contains(name)), "without {grant}: {refused:?}");
        change(t.database(), &grant.to_string()).await;
    }
}

/// The column that a right is for.
fn column(right: &str) -> Option<&str> {
    right.split_once(" (")?.1.strip_suffix(')')
}

/// A relay of a name of its own, which has everything before it: a first start, a refused event, old
/// history, and a lost slot. Returns its log once that has `told`.
async fn told_by_run(t: &mut Harness, settings: Settings, topic: &Topic, told: &str) {
    let name = settings.value("name");
    let mut relay = settings.spawn();
    t.commit([Event::to(topic.name()).key("k").partition(9)]).await;
    let is_told = |relay: &Relay| relay.logs_contain(told);
    let is_ready = async |relay: &Relay| {
        relay
            .try_status()
            .await
            .is_ok_and(|status| status.get("ready").is_some_and(|ready| ready == true))
    };
    let parked = format!("select count(*) from outbox.dead_letters where relay = '{name}'");
    wait::until(&format!("{told}, or an event is parked"), wait::PATIENCE, || async {
        let count: i64 = t.database().superuser().query_one(&parked, &[]).await?.get(0);
        let goes_on = count > 0 && is_ready(&relay).await;
        anyhow::ensure!(goes_on || is_told(&relay), "{}", relay.log_text());
        Ok(())
    })
    .await
    .expect("it goes on or says why not");
    if !is_told(&relay) {
        relay.kill9().await;
        let old = "update outbox.dead_letters set state = 'released', system_id = 'another', \
                       release_id = null, changed_at = now() - interval '60 days'";
        change(t.database(), old).await;
        crate::repair::drop_slot_named(t, &format!("outbox_{name}")).await;
        relay.restart();
        relay.wait_log(told).await;
    }
    relay.kill9().await;
}

#[tokio::test]
async fn without_any_single_grant_the_relay_names_it_beforehand_and_when_it_runs() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    let mut grants = of(t.database(), Role::Relay, "outbox");
    // Kafka keeps it; `file` has those who need this table.
    grants.retain(|grant| grant.object != "outbox.progress");
    assert_eq!(grants.len(), 14, "{grants:?}");
    for (index, grant) in grants.iter().enumerate() {
        change(t.database(), &grant.revoke()).await;
        let name = format!("{}_{index}", t.database().name());
        // Those before it have delivered what is there.
        let settings = t.relay().set("name", &name).set("postgres.start", "all");
        let statement = grant.to_string();
        let findings = check(&settings).await;
        let named: Vec<_> = findings.iter().filter(|f| f.remedy.contains(&statement)).collect();
        let verdicts: Vec<_> = named.iter().map(|finding| finding.verdict.as_str()).collect();
        assert!(matches!(verdicts[..], ["problem"] | ["warning"]), "{statement}: {findings:?}");
        let others = findings.iter().filter(|f| f.verdict == "problem" && f.name != named[0].name);
        assert_eq!(others.count(), 0, "one cause, one problem: {findings:?}");
        // The history of migrations is for `check` alone.
        if grant.object != "outbox.migrations" {
            told_by_run(&mut t, settings, &topic, &statement).await;
        }
        change(t.database(), &statement).await;
    }
}

#[tokio::test]
async fn without_any_single_grant_the_operators_commands_name_it() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let _relay = t.relay().start().await;
    t.commit([Event::to(topic.name()).key("k").partition(9)]).await;
    wait_parked(&t, |parked| parked == 1).await;
    let grants = of(t.database(), Role::Operator, "outbox");
    assert_eq!(grants.len(), 3, "{grants:?}");
    for grant in grants {
        change(t.database(), &grant.revoke()).await;
        let mut told = Vec::new();
        for command in [&["list"][..], &["discard", "--topic", topic.name(), "--yes"]] {
            let (code, _, stderr) = try_dead_letters(&t, command).await;
            if code == Some(1) {
                told.push(stderr);
            }
        }
        let statement = grant.to_string();
        assert!(told.iter().any(|told| told.contains(&statement)), "{statement}: {told:?}");
        assert!(told.iter().all(|told| told.contains("nothing was changed")), "{told:?}");
        change(t.database(), &statement).await;
    }
}

#[tokio::test]
async fn a_role_that_may_not_connect_or_an_owner_that_may_not_create_is_told_what_to_grant() {
    let t = Harness::start().await;
    let database = Database::create_empty().await;
    let name = database.name();
    change(&database, &format!("revoke all on database {name} from public")).await;
    for (role, right, command) in [
        (Role::Owner, "create", &["migrate"][..]),
        (Role::Owner, "connect", &["migrate"]),
        (Role::Relay, "connect", &["check"]),
        (Role::Operator, "connect", &["dead-letters", "list"]),
    ] {
        let login = database.name_of(role);
        change(&database, &format!("revoke {right} on database {name} from {login}")).await;
        let settings = t.relay_of(&database).set("postgres.url", &database.url(role));
        let output = settings.command(command).await;
        let told = [output.stdout, output.stderr].concat();
        let told = String::from_utf8_lossy(&told).into_owned();
        assert_eq!(output.status.code(), Some(1), "{told}");
        let statement = format!("grant {right} on database {name} to {login}");
        assert!(told.contains(&statement), "without {statement}: {told}");
        change(&database, &statement).await;
    }
}

/// Someone ran the first `migrate` as a superuser.
#[tokio::test]
async fn a_schema_that_another_migrated_first_is_handed_over_as_the_page_of_roles_says() {
    let t = Harness::start().await;
    let database = Database::create_empty().await;
    let settings = |url: &str| t.relay_of(&database).set("postgres.url", url);
    let first = settings(&database.superuser_url()).command(&["migrate"]).await;
    assert!(first.status.success(), "{first:?}");
    let (owner, me) = (settings(&database.url(Role::Owner)), database.name_of(Role::Owner));
    let refused = owner.command(&["migrate"]).await;
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{told}");
    assert!(told.contains(&format!("alter schema outbox owner to {me}")), "{told}");
    assert!(!told.contains("db error") && !told.contains("\\n"), "{told}");

    let block = include_str!("../../docs/ROLES.md").split("```sql\n").nth(5);
    let block = block.and_then(|rest| rest.split("```").next()).expect("the last statement");
    change(&database, &block.replace("outbox_owner", &me)).await;
    let output = owner.command(&["migrate"]).await;
    assert!(String::from_utf8_lossy(&output.stdout).contains("up to date"), "{output:?}");
}

#[tokio::test]
async fn a_table_that_somebody_dropped_is_made_again_by_the_command_that_the_halt_names() {
    let t = Harness::start().await;
    let mut relay = t.relay().start().await;
    change(t.database(), "drop table outbox.dead_letters").await;
    let _ = relay.sigterm().await;
    relay.restart();
    relay.wait_log("outbox-relay migrate").await;
    let owner = t.relay().set("postgres.url", &t.database().url(Role::Owner));
    let output = owner.command(&["migrate"]).await;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && told.contains("outbox.dead_letters"), "{output:?}");
    t.database().grant_outbox().await;
    relay.wait_ready().await;
    let again = owner.command(&["migrate"]).await;
    assert!(String::from_utf8_lossy(&again.stdout).contains("up to date"), "{again:?}");
}
