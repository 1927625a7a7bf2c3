//! What is said, and done, about small things that a person on call meets.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use outbox_harness::{
    Harness,
    database::{Database, Role},
    event::Event,
    postgres::Postgres,
    postgres_version::Version,
    relay::{self, Relay, STOP},
    servers, wait,
};

use serde_json::Value;

use crate::{
    checks::check,
    dead_letters::{count_parked, list, wait_parked},
    grants::change,
    obeyed::{one_published, says, typed},
    rows::{each_once, insert},
};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn a_database_that_is_closed_to_connections_is_told_with_the_statement_that_opens_it() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let name = t.database().name().to_owned();
    // As a superuser in another database: this one takes no connection any more.
    let other = Database::create_in(t.database().postgres()).await;
    let other = other.superuser();
    let close = format!("alter database \"{name}\" allow_connections false");
    other.batch_execute(&close).await.expect("closed");
    let mut relay = t.relay().spawn();
    relay.wait_log("takes no connections").await;
    let findings = check(&t.relay()).await;
    let found = findings.iter().find(|found| found.verdict == "problem").expect("a problem");
    assert!(!found.remedy.contains("that the server is up"), "{found:?}");
    let open = typed(&found.remedy, "allow_connections true").to_owned();
    assert!(relay.logs_contain(&open), "{}", relay.log_text());
    other.batch_execute(&open).await.expect("the remedy is SQL");
    relay.wait_ready().await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
}

/// The variable stands in where the URL has nothing.
#[tokio::test]
async fn a_variable_of_libpq_that_stands_in_is_named_where_it_is_in_the_way() {
    let t = Harness::start().await;
    let settings = t.relay().env("PGSSLMODE", "require").env("PGOPTIONS", "-c work_mem=4MB");
    let settings = settings.env("PGPASSWORD", "never-shown");
    let shown = settings.command(&["config"]).await;
    let shown = text(&shown.stdout);
    for line in ["sslmode=require", "variable PGSSLMODE", "variable PGOPTIONS"] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    assert!(!shown.contains("never-shown"), "{shown}");
    let findings = check(&settings).await;
    let found = findings.iter().find(|found| found.verdict == "problem").expect("no TLS there");
    assert!(found.remedy.contains("PGSSLMODE"), "{found:?}");
}

#[tokio::test]
async fn a_hangup_stops_the_relay_in_good_order() {
    let (_t, _topic, mut relay) = one_published().await;
    signal(&relay, "-HUP");
    let ended = relay.wait_end(STOP).await;
    assert!(ended.success(), "{ended}");
    assert!(relay.logs_contain("stopping: finishing the delivery"), "{}", relay.log_text());
}

fn signal(relay: &Relay, signal: &str) {
    let sent = Command::new("kill").args([signal, &relay.pid().to_string()]).status();
    assert!(sent.expect("there is such a program").success());
}

/// Gives a running relay another limit, as prlimit takes it.
pub(crate) fn limit(relay: &Relay, limit: &str) {
    limit_as(Vec::new(), relay, limit);
}

/// As [`limit`], with words before it that make it a user's.
fn limit_as(user: Vec<String>, relay: &Relay, limit: &str) {
    let limited = Command::new("env")
        .args(user)
        .args(["prlimit", limit, "--pid", &relay.pid().to_string()])
        .stdout(Stdio::null())
        .status();
    assert!(limited.expect("there is such a program").success());
}

#[tokio::test]
async fn too_few_files_are_named_with_what_raises_the_limit() {
    let t = Harness::start().await;
    let mut relay = t.relay().start().await;
    limit(&relay, "--nofile=12:");
    // What it has open stays; the next connection is one too many.
    let ended = "select pg_terminate_backend(active_pid) from pg_replication_slots \
                 where database = current_database() and active";
    t.database().superuser().batch_execute(ended).await.expect("ended");
    relay.wait_log("has as many files open as it may").await;
    limit(&relay, "--nofile=1024:");
    relay.wait_ready().await;
}

#[tokio::test]
async fn a_system_without_a_thread_left_is_named_with_what_raises_the_limit_and_loses_nothing() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let program = as_one_of_many(&t);
    let mut relay = t.relay().program(&program).start().await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    limit_as(as_user(""), &relay, "--nproc=1:");
    let ended = "select pg_terminate_backend(active_pid) from pg_replication_slots \
                 where database = current_database() and active";
    t.database().superuser().batch_execute(ended).await.expect("ended");
    t.commit([Event::to(topic.name()).key("k")]).await;
    relay.wait_log("the system gives the relay no further thread").await;
    relay.wait_for("/readyz", 503).await;
    limit_as(as_user(""), &relay, "--nproc=4096:");
    relay.wait_ready().await;
    t.count(&topic, 1).await.assert_exactly_once();
    assert!(!relay.logs_contain("halted"), "{}", relay.log_text());
}

/// The relay as a user whose threads the system counts: root's are not counted.
fn as_one_of_many(t: &Harness) -> PathBuf {
    let program = t.dir().join("as-a-user");
    let user = as_user("--inh-caps +dac_override --ambient-caps +dac_override").join(" ");
    let relay = relay::binary().expect("it is built");
    let script = format!("#!/bin/sh\nexec {user} '{}' \"$@\"\n", relay.display());
    std::fs::write(&program, script).expect("written");
    let mode = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(&program, mode).expect("it may be run");
    program
}

/// What makes another user of root; no one else needs it.
fn as_user(further: &str) -> Vec<String> {
    // SAFETY: geteuid has no preconditions and cannot fail.
    let words = match unsafe { libc::geteuid() } {
        0 => format!("setpriv --reuid 61234 --regid 61234 --clear-groups {further}"),
        _ => String::new(),
    };
    words.split_whitespace().map(str::to_owned).collect()
}

#[tokio::test]
async fn a_parked_event_is_released_by_its_number_with_its_whole_lane() {
    let mut t = Harness::start().await;
    let topic = t.topic("late").name().to_owned();
    let _relay = t.relay().set("sink.topic_grace", "0s").start().await;
    t.commit(["a", "a", "b"].map(|key| Event::to(&topic).key(key))).await;
    wait_parked(&t, |parked| parked == 3).await;
    let entries = list(&t).await;
    let of_a = entries.iter().find(|entry| entry["key"] == "a").expect("it is parked");
    let settings = t.relay().set("postgres.url", &t.database().url(Role::Operator));
    let none = settings.command(&["dead-letters", "release", "1000000"]).await;
    assert_eq!(none.status.code(), Some(1), "{}", text(&none.stderr));
    let created = t.topic_named(&topic).create(1).await;
    let id = of_a["id"].to_string();
    let released = settings.command(&["dead-letters", "release", &id]).await;
    assert!(released.status.success(), "{}", text(&released.stderr));
    wait_parked(&t, |parked| parked == 1).await;
    wait::until("the lane arrives", wait::PATIENCE, || async {
        match created.records().await.len() {
            2 => Ok(()),
            found => Err(format!("{found} records")),
        }
    })
    .await
    .expect("it does");
    assert_eq!(count_parked(&t).await, 1, "the other lane stays");
}

#[tokio::test]
async fn a_decision_is_not_asked_for_while_a_relay_is_at_work() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let relay = t.relay().start().await;
    // It leads, and events wait, so that there is something to ask for.
    signal(&relay, "-STOP");
    t.commit((0..3).map(|_| Event::to(topic.name()).key("k"))).await;
    let output = t.relay().command(&["resume", "--at", "now"]).await;
    signal(&relay, "-CONT");
    let said = text(&output.stderr);
    assert!(said.contains("a relay is at work on slot"), "{said}");
    assert!(!said.contains("give --yes"), "it is not asked: {said}");
    t.count(&topic, 1).await.assert_exactly_once();
}

#[tokio::test]
async fn check_prints_the_grants_that_the_halt_prints() {
    let ((postgres, _server), kafka) = tokio::join!(Postgres::private(), servers::kafka());
    let t = Harness::with(postgres, kafka).await;
    let role = t.database().name_of(Role::Relay);
    change(t.database(), &format!("drop owned by {role}")).await;
    let relay = t.relay().spawn();
    let detail = says(&relay, "lacks").await;
    let grants = typed(&detail, "grant ").to_owned();
    let findings = check(&t.relay()).await;
    let found = findings.iter().find(|found| found.name == "rights").expect("it is named");
    assert_eq!(typed(&found.remedy, "grant "), grants);
}

/// From PostgreSQL 17 on anything may run before a login ends, and no setting of the session limits it.
#[tokio::test]
async fn a_login_that_an_event_trigger_holds_up_is_told_in_time_with_what_ends_that() {
    let (postgres, _server) = Postgres::private_version(Version::V17).await;
    let t = Harness::with(postgres, servers::kafka().await).await;
    let superuser = t.database().superuser();
    let trigger = format!(
        "create function public.slow() returns event_trigger language plpgsql as $$ begin \
             if session_user = '{}' then perform pg_sleep(600); end if; end $$; \
         create event trigger slow on login execute function public.slow()",
        t.database().name_of(Role::Relay)
    );
    superuser.batch_execute(&trigger).await.expect("an event trigger");
    let url = t.database().url(Role::Relay);
    let join = if url.contains('?') { '&' } else { '?' };
    let settings = t.relay().set("postgres.url", &format!("{url}{join}connect_timeout=2"));
    let mut relay = settings.clone().spawn();
    relay.wait_log("did not finish the login").await;
    wait::until("it is told", wait::PATIENCE, || async {
        let status = relay.try_status().await.map_err(|error| error.to_string())?;
        let why = status["not_ready_because"].as_str().unwrap_or_default();
        if why.contains("alter event trigger") { Ok(()) } else { Err(status.to_string()) }
    })
    .await
    .expect("by /readyz, too");
    let findings = check(&settings).await;
    let found = findings.iter().find(|found| found.verdict == "problem").expect("a problem");
    assert!(found.seen.contains("where evtevent = 'login'"), "{found:?}");
    let named = typed(&found.seen, "pg_event_trigger");
    let named: String = superuser.query_one(named, &[]).await.expect("it can be typed").get(0);
    superuser.batch_execute(&format!("alter event trigger {named} disable")).await.expect("ended");
    relay.wait_ready().await;
}

/// PostgreSQL takes the lock before it sees that the role has no right, and each login reads this catalog.
#[tokio::test]
async fn a_login_that_a_lock_on_a_catalog_holds_up_is_told_with_what_ends_that_on_the_servers_host()
{
    let (postgres, _server) = Postgres::private().await;
    let t = Harness::with(postgres, servers::kafka().await).await;
    let topic = t.topic("orders").create(1).await;
    let url = t.database().url(Role::Relay);
    let join = if url.contains('?') { '&' } else { '?' };
    let settings = t.relay().set("postgres.url", &format!("{url}{join}connect_timeout=2"));
    let mut relay = settings.start().await;
    let reader = t.database().connect(Role::Writer).await;
    reader.batch_execute("begin; select from pg_database limit 1").await.expect("anyone may");
    let writer = t.database().connect(Role::Writer).await;
    let pid = "select pg_backend_pid()";
    let pid: i32 = writer.query_one(pid, &[]).await.expect("a number").get(0);
    let alter = "set lock_timeout = '1min'; \
                 alter materialized view pg_catalog.pg_database depends on extension plpgsql";
    let waiting = tokio::spawn(async move { writer.batch_execute(alter).await });
    // `pg_stat_activity` would read the catalog, and wait as well.
    let waits = "select count(*) from pg_locks where not granted and pid = $1";
    wait::until("it waits", wait::PATIENCE, || async {
        let row = t.database().superuser().query_one(waits, &[&pid]).await.expect("a count");
        (row.get::<_, i64>(0) == 1).then_some(()).ok_or("not yet")
    })
    .await
    .expect("for the lock");
    relay.kill9().await;
    relay.restart();
    relay.wait_log("`ps ax | grep 'postgres.*waiting'` shows that process").await;
    // As it is said: the title of the process has the word, and the number is this one's.
    let title = std::fs::read(format!("/proc/{pid}/cmdline")).expect("it runs");
    let title = String::from_utf8_lossy(&title).into_owned();
    assert!(title.contains("postgres") && title.contains("waiting"), "{title}");
    // SAFETY: kill takes any numbers, and this process waits.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
    assert!(waiting.await.expect("no panic").is_err(), "it was ended");
    relay.wait_ready().await;
    let id = insert(&t, &topic, "now()").await;
    each_once(&topic, &[&id]).await;
}

/// A program that reads the answer reads the error as well.
#[tokio::test]
async fn under_json_an_error_is_an_object_with_what_is_to_be_done() {
    let t = Harness::start().await;
    let error = |output: &Output| -> Value {
        let words = text(&output.stderr);
        serde_json::from_str(&words).unwrap_or_else(|error| panic!("{error}: {words}"))
    };
    let output = t.relay().command(&["dead-letters", "show", "7", "--json"]).await;
    let told = error(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told["error"].as_str().is_some_and(|what| what.contains("no relay of the name")),
        "{told}"
    );
    assert!(told["remedy"].as_str().is_some_and(|remedy| remedy.contains("--name")), "{told}");
    let output = t.relay().set("batch.bytes_max", "soon").command(&["check", "--json"]).await;
    let told = error(&output);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told["error"].as_str().is_some_and(|what| what.contains("batch.bytes_max")), "{told}");
    assert!(told["remedy"].is_string(), "{told}");
    let url = t.database().url(Role::Operator).replace(t.database().name(), "no_such_database");
    let output =
        t.relay().set("postgres.url", &url).command(&["dead-letters", "list", "--json"]).await;
    let told = error(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told["error"].is_string() && told["remedy"].is_string(), "{told}");
    let output = t.relay().command(&["dead-letters", "list", "--by", "colour", "--json"]).await;
    let told = error(&output);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told["error"].as_str().is_some_and(|what| what.contains("--by")), "{told}");
    // Without it a person reads.
    let output = t.relay().command(&["dead-letters", "show", "7"]).await;
    assert!(text(&output.stderr).starts_with("outbox-relay: "), "{}", text(&output.stderr));
}

#[tokio::test]
async fn a_list_of_dead_letters_says_what_its_columns_are() {
    let mut t = Harness::start().await;
    let missing = t.topic("missing");
    let _relay = t.relay().set("sink.topic_grace", "100ms").start().await;
    t.commit([Event::to(missing.name()).key("k")]).await;
    wait_parked(&t, |parked| parked == 1).await;
    for (arguments, heading) in [
        (&["list"][..], ["ID", "POSITION", "TOPIC"]),
        (&["list", "--all"], ["ID", "STATE", "POSITION"]),
        (&["list", "--by", "lane"], ["EVENTS", "TOPIC", "KEY"]),
        (&["list", "--by", "reason"], ["EVENTS", "TOPIC", "REASON"]),
    ] {
        let output = t.relay().command(&[&["dead-letters"], arguments].concat()).await;
        let shown = text(&output.stdout);
        let first: Vec<&str> =
            shown.lines().next().unwrap_or_default().split_whitespace().collect();
        assert_eq!(first.get(..3), Some(&heading[..]), "{arguments:?}: {shown}");
        assert_eq!(shown.lines().count(), 2, "{arguments:?}: {shown}");
    }
}
