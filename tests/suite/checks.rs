//! `check` finds in advance what would halt `run`, by the same looks, and disturbs no one.

mod events;

use outbox_harness::{Harness, database::Role, event::Event, relay::Settings, wait};
use serde_json::Value;

/// A finding: name, verdict, what was seen, remedy.
#[derive(Debug)]
pub(crate) struct Finding {
    pub(crate) name: String,
    pub(crate) verdict: String,
    pub(crate) seen: String,
    pub(crate) remedy: String,
}

/// What `check --json` finds; its exit code says whether there is a problem.
pub(crate) async fn check(settings: &Settings) -> Vec<Finding> {
    let output = settings.command(&["check", "--json"]).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let found: Vec<Value> = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{error}: {text}{:?}", output.stderr));
    let findings: Vec<Finding> = found
        .iter()
        .map(|found| {
            let text = |name| {
                let text = found.get(name).and_then(Value::as_str);
                text.unwrap_or_else(|| panic!("{name} in {found}")).to_owned()
            };
            let (name, verdict) = (text("name"), text("verdict"));
            Finding { name, verdict, seen: text("seen"), remedy: text("remedy") }
        })
        .collect();
    let bad = findings.iter().any(|finding| finding.verdict == "problem");
    assert_eq!(output.status.code(), Some(i32::from(bad)), "{findings:?}");
    findings
}

fn problems(findings: &[Finding]) -> Vec<&Finding> {
    findings.iter().filter(|finding| finding.verdict == "problem").collect()
}

#[track_caller]
fn named<'a>(findings: &'a [Finding], name: &str) -> &'a Finding {
    let found = findings.iter().find(|finding| finding.name == name);
    found.unwrap_or_else(|| panic!("no {name} in {findings:?}"))
}

#[tokio::test]
async fn each_right_that_the_relay_lacks_is_found_and_its_remedy_grants_it() {
    let t = Harness::start().await;
    let owner = t.database().connect(Role::Owner).await;
    let settings = t.relay();
    let role = t.database().config(Role::Relay).get_user().expect("a role").to_owned();
    for right in ["select on", "insert on", "update on", "delete on", "all on"] {
        let revoke = format!("revoke {right} outbox.dead_letters from {role}");
        owner.batch_execute(&revoke).await.expect("revoked");
        let findings = check(&settings).await;
        let found = named(&findings, "rights");
        let wanted = if right == "delete on" { "warning" } else { "problem" };
        assert_eq!(found.verdict, wanted, "{revoke}: {found:?}");
        owner.batch_execute(found.remedy.trim_matches('`')).await.expect("the remedy is SQL");
        let again = check(&settings).await;
        assert!(problems(&again).is_empty(), "after {}: {again:?}", found.remedy);
    }
}

/// Progress in PostgreSQL is looked at like progress at the broker.
#[tokio::test]
async fn what_the_table_of_progress_lacks_is_found_and_its_remedy_helps() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let settings = t.relay().set("sink.delivery", "at-least-once").set("sink.progress", "postgres");
    let passes = async |t: &Harness, after: &str| {
        let found = check(&settings).await;
        assert!(problems(&found).is_empty(), "after {after}: {found:#?}");
        assert_eq!(named(&found, "start").verdict, "ok", "{found:#?}");
        let row = t.database().superuser().query_one("select count(*) from outbox.progress", &[]);
        row.await.expect("a count").get::<_, i64>(0)
    };
    assert_eq!(passes(&t, "nothing").await, 0, "check stores nothing");
    let mut relay = settings.clone().start().await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_at_least_once();
    assert!(relay.sigterm().await.success());
    assert!(passes(&t, "a run").await > 0);

    let role = t.database().config(Role::Relay).get_user().expect("a role").to_owned();
    let superuser = t.database().superuser();
    for right in ["select", "insert", "delete"] {
        let revoke = format!("revoke {right} on outbox.progress from {role}");
        superuser.batch_execute(&revoke).await.expect("revoked");
        let found = check(&settings).await;
        let rights = named(&found, "rights");
        assert_eq!(rights.verdict, "problem", "{found:#?}");
        assert!(rights.seen.contains(&format!("lacks {right} on outbox.progress")), "{rights:?}");
        let grant = rights.remedy.trim_matches('`');
        superuser.batch_execute(grant).await.expect("the remedy is SQL");
        passes(&t, grant).await;
        // Where it is kept at the broker, no one needs the table.
        superuser.batch_execute(&revoke).await.expect("revoked");
        let broker = check(&settings.clone().set("sink.progress", "broker")).await;
        assert!(!broker.iter().any(|it| it.name == "rights" && it.verdict != "ok"), "{broker:#?}");
        superuser.batch_execute(grant).await.expect("the remedy is SQL");
    }

    superuser.batch_execute("drop table outbox.progress").await.expect("dropped");
    let found = check(&settings).await;
    let [missing] = problems(&found)[..] else { panic!("one cause, one problem: {found:#?}") };
    assert!(missing.seen.contains("there is no outbox.progress"), "{missing:?}");
    crate::obeyed::obey(&t, crate::obeyed::typed(&missing.remedy, "outbox-relay migrate")).await;
    let found = check(&settings).await;
    let start = named(&found, "start");
    assert!(start.remedy.contains("resume --at slot"), "its rows are gone: {found:#?}");
}

#[tokio::test]
async fn a_database_whose_migrations_are_behind_is_a_problem_and_migrate_fixes_it() {
    let t = Harness::start().await;
    let drop = "drop table outbox.dead_letters; \
                delete from outbox.migrations where version > 1";
    t.database().superuser().batch_execute(drop).await.expect("as an older version left it");
    let settings = t.relay();
    let findings = check(&settings).await;
    let [found] = problems(&findings)[..] else { panic!("one cause, one problem: {findings:?}") };
    assert_eq!(found.name, "migrations");
    assert!(found.remedy.contains("`outbox-relay migrate`"), "{found:?}");
    let owner = settings.set("postgres.url", &t.database().url(Role::Owner));
    let migrated = owner.command(&["migrate"]).await;
    assert!(migrated.status.success(), "{migrated:?}");
    assert_eq!(named(&check(&t.relay()).await, "migrations").verdict, "ok");
}

#[tokio::test]
async fn a_history_that_migrate_refuses_is_found_and_nothing_says_that_it_is_as_it_should_be() {
    for (done, verdict, words) in [
        (
            "insert into outbox.migrations select 99, 'later', applied_on, '7' \
             from outbox.migrations where version = 1",
            "warning",
            "has V99__later, which this version does not have",
        ),
        (
            "update outbox.migrations set checksum = '1' where version = 3",
            "problem",
            "has V3__leaders with another text than this version's",
        ),
        (
            "delete from outbox.migrations where version = 2",
            "problem",
            "lacks V2__dead_letters, and has later ones",
        ),
    ] {
        let t = Harness::start().await;
        t.database().superuser().batch_execute(done).await.expect(done);
        let findings = check(&t.relay()).await;
        let found: Vec<_> = findings.iter().filter(|found| found.name == "migrations").collect();
        let told = found.iter().find(|finding| finding.seen.contains(words));
        assert_eq!(told.map(|found| found.verdict.as_str()), Some(verdict), "{found:#?}");
        let owner = t.relay().set("postgres.url", &t.database().url(Role::Owner));
        let migrated = owner.command(&["migrate"]).await;
        assert_eq!(migrated.status.code(), Some(1), "{migrated:?}");
        // What it says of the rest is said as well.
        assert_eq!(named(&findings, "parking").verdict, "ok", "{findings:#?}");
    }
}

#[tokio::test]
async fn what_would_halt_the_start_is_found_in_the_words_of_the_halt() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let settings = t.relay();
    let mut relay = settings.clone().start().await;
    t.commit([Event::to(topic.name())]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    assert!(relay.sigterm().await.success());
    let streams = check(&settings).await;
    assert!(problems(&streams).is_empty(), "{streams:?}");
    assert!(named(&streams, "start").seen.starts_with("streams what comes after"), "{streams:?}");

    t.commit([Event::to(topic.name())]).await;
    let moved = "select pg_replication_slot_advance(slot_name, pg_current_wal_lsn()) \
                 from pg_replication_slots where database = current_database()";
    t.database().superuser().batch_execute(moved).await.expect("the slot is moved");
    let findings = check(&settings).await;
    let found = named(&findings, "start");
    assert_eq!(found.verdict, "problem", "{found:?}");
    assert!(found.remedy.contains("resume --at slot"), "{found:?}");
    relay.restart();
    relay.wait_log("halted").await;
    let halted = wait::until("the status says so", wait::PATIENCE, || async {
        let status = relay.try_status().await?;
        let is_halted = status.get("phase").is_some_and(|phase| phase == "halted");
        anyhow::ensure!(is_halted, "{status}");
        Ok::<_, anyhow::Error>(status.to_string())
    });
    let halted = halted.await.expect("it halts");
    assert!(halted.contains(&found.seen), "{halted} says what check said: {}", found.seen);
}

#[tokio::test]
async fn check_makes_nothing_and_leaves_a_running_relay_alone() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let progress = t.topic_named(&format!("outbox-relay-progress-{}", t.database().name()));
    let settings = t.relay();
    let first = check(&settings).await;
    assert!(problems(&first).is_empty(), "{first:?}");
    assert!(!progress.exists().await, "the progress topic is made by the first start");
    let slots = "select count(*) from pg_replication_slots where database = current_database()";
    let made: i64 = t.database().superuser().query_one(slots, &[]).await.expect("a count").get(0);
    assert_eq!(made, 0);

    let relay = settings.clone().start().await;
    t.commit([Event::to(topic.name())]).await;
    let during = check(&settings).await;
    assert!(problems(&during).is_empty(), "{during:?}");
    assert!(named(&during, "start").seen.contains("is in use"), "{during:?}");
    t.commit([Event::to(topic.name())]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    let metrics = relay.page("/metrics").await;
    for cause in ["postgres", "broker", "fenced", "other"] {
        let none = format!("outbox_relay_reconnects_total{{cause=\"{cause}\"}} 0\n");
        assert!(metrics.contains(&none), "{cause}: {metrics}");
    }
}

#[tokio::test]
async fn a_slot_that_nobody_reads_from_is_named_with_what_it_keeps() {
    let t = Harness::start().await;
    let name = format!("forgotten_{}", t.database().name());
    let make = format!("select pg_create_logical_replication_slot('{name}', 'pgoutput')");
    t.database().superuser().batch_execute(&make).await.expect("a slot");
    let findings = check(&t.relay()).await;
    let found = named(&findings, "other slots");
    assert_eq!(found.verdict, "warning");
    let more = "more"; // Other tests' slots may be there too, and only a few are named.
    assert!(found.seen.contains(&name) || found.seen.contains(more), "{found:?}");
    assert!(found.seen.contains("of WAL"), "{found:?}");
    assert!(problems(&findings).is_empty(), "a neighbour's slot is no problem of the start");
}

#[tokio::test]
async fn what_the_start_says_in_more_words_is_not_said_twice() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = t.relay().start().await;
    t.commit([Event::to(topic.name())]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    assert!(relay.sigterm().await.success());
    let hidden = "alter publication outbox drop table outbox.events";
    t.database().superuser().batch_execute(hidden).await.expect("as somebody may do");
    let findings = check(&t.relay()).await;
    let [found] = problems(&findings)[..] else { panic!("one cause, one problem: {findings:?}") };
    assert!(found.seen.contains("written meanwhile"), "{found:?}");
}

/// The limit is the one that `check --help` promises.
#[tokio::test]
async fn check_ends_within_its_time_whatever_both_servers_leave_unanswered() {
    const PROMISED: std::time::Duration = std::time::Duration::from_secs(15);
    let t = Harness::start().await;
    let listen = || std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    // They accept, and never answer.
    let (postgres, kafka) = (listen(), listen());
    let at = |silent: &std::net::TcpListener| silent.local_addr().expect("bound").to_string();
    // No one listens there.
    let nobody = at(&listen());
    for (postgres, kafka) in [(at(&postgres), at(&kafka)), (nobody.clone(), nobody)] {
        let settings = t
            .relay()
            .set("postgres.url", &format!("postgres://relay@{postgres}/app?sslmode=disable"))
            .set("sink.properties.\"bootstrap.servers\"", &kafka);
        let begun = std::time::Instant::now();
        let findings = check(&settings).await;
        let took = begun.elapsed();
        assert!(took < PROMISED, "{took:?}: {findings:?}");
        let both: Vec<&str> = problems(&findings).iter().map(|found| found.name.as_str()).collect();
        assert_eq!(both, ["PostgreSQL", "Kafka"], "{findings:?}");
    }
}

#[tokio::test]
async fn status_ends_with_1_for_a_relay_that_is_not_ready_and_with_0_for_one_that_is() {
    let t = Harness::start().await;
    let mut relay = t.relay().start().await;
    let admin = relay.admin().to_string();
    let settings = t.relay();
    for json in [&["status", "--admin", &admin][..], &["status", "--admin", &admin, "--json"]] {
        assert_eq!(settings.command(json).await.status.code(), Some(0));
    }
    let hidden = "alter publication outbox drop table outbox.events";
    t.database().superuser().batch_execute(hidden).await.expect("as somebody may do");
    relay.wait_log("halted").await;
    relay.wait_for("/readyz", 503).await;
    for json in [&["status", "--admin", &admin][..], &["status", "--admin", &admin, "--json"]] {
        let output = settings.command(json).await;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("halted"), "{output:?}");
    }
    relay.kill9().await;
    assert_eq!(settings.command(&["status", "--admin", &admin]).await.status.code(), Some(1));
}

/// Databases that were migrated before the grants named columns have it.
#[tokio::test]
async fn a_writer_that_may_write_every_column_is_named_with_the_statements() {
    let t = Harness::start().await;
    let owner = t.database().connect(Role::Owner).await;
    let writer = t.database().name_of(Role::Writer);
    assert!(check(&t.relay()).await.iter().all(|finding| finding.name != "writers"));
    for grant in ["insert", "insert (xid)"] {
        let grant = format!("grant {grant} on outbox.events to {writer}");
        owner.batch_execute(&grant).await.expect("granted");
        let findings = check(&t.relay()).await;
        let found = named(&findings, "writers");
        assert!(found.verdict == "warning" && found.seen.contains(&writer), "{found:?}");
        owner.batch_execute(found.remedy.trim_matches('`')).await.expect("the remedy is SQL");
        assert!(check(&t.relay()).await.iter().all(|finding| finding.name != "writers"));
        let writes = "insert into outbox.events (topic) values ('t')";
        let writer = t.database().connect(Role::Writer).await;
        writer.batch_execute(writes).await.expect("what it needs it still may");
    }
}

#[tokio::test]
async fn each_column_that_is_missing_is_a_finding_of_its_own() {
    let t = Harness::start().await;
    let make = "create table public.few (id uuid primary key, payload jsonb not null); \
                grant select on public.few to public; \
                alter publication outbox add table public.few";
    t.database().superuser().batch_execute(make).await.expect("a table of somebody's");
    let findings = check(&t.relay().set_toml("outbox.tables", "[\"public.few\"]")).await;
    let found = problems(&findings);
    for column in ["topic", "key", "type", "headers", "partition", "created_at"] {
        let names = |finding: &&&Finding| finding.seen.contains(&format!("no column {column},"));
        let found = found.iter().filter(names).count();
        assert_eq!(found, 1, "{column}: {findings:#?}");
    }
    let longest = found.iter().map(|finding| finding.seen.len()).max();
    assert!(longest < Some(200), "{findings:#?}");
}

#[tokio::test]
async fn all_that_someone_s_table_lacks_is_found_at_once() {
    let t = Harness::start().await;
    let make = "create unlogged table public.few (no bigint, payload jsonb not null); \
                create table public.other (no bigint, payload jsonb not null)";
    let database = t.database().superuser();
    database.batch_execute(make).await.expect("tables of somebody's");
    let settings = t.relay().set_toml("outbox.tables", "[\"public.few\", \"public.other\"]");
    let settings = settings.set("outbox.columns.id", "no");
    let findings = check(&settings).await;
    let ids = named(&findings, "ids");
    assert!(ids.seen.contains("public.few, public.other"), "{ids:?}");
    let lacks = |findings: &[Finding], words: &[&str]| {
        for word in words {
            let found = problems(findings).iter().any(|finding| finding.seen.contains(word));
            assert!(found, "{word}: {findings:#?}");
        }
    };
    lacks(
        &findings,
        &[
            "few is unlogged",
            "not publish public.few",
            "not publish public.other",
            "no column topic,",
        ],
    );
    database.batch_execute("drop schema outbox cascade").await.expect("not migrated");
    let findings = check(&settings).await;
    lacks(&findings, &["outbox", "no column topic,"]);
}
