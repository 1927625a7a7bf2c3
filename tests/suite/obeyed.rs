//! Halts and endless retries, one row each: how the state comes about, and what of the text a person
//! types. The command is taken out of the text and run as it stands there; then the events are counted.

mod places;
mod progress;
mod roles;
mod tables;

use outbox_harness::{
    Harness,
    database::Role,
    event::Event,
    postgres::{Postgres, program},
    relay::Relay,
    servers, wait,
};
use outbox_relay::throwaway::Shutdown;
use serde_json::Value;

use crate::{remedies::halted, repair::wait_snapshot};

/// One state.
struct Case {
    /// What somebody does as a superuser while the relay is stopped and three events wait. `{slot}`,
    /// `{relay}` and `{role}` stand for names.
    done: &'static str,
    /// What the relay says, halt after halt, and what is typed of it: the first command in the text that
    /// has these words.
    road: &'static [(&'static str, &'static str)],
}

const DROP: &str = "select pg_drop_replication_slot('{slot}'); ";

const CASES: &[Case] = &[
    Case {
        done: "select pg_replication_slot_advance('{slot}', pg_current_wal_lsn())",
        road: &[("somebody moved the slot", "pg_drop_replication_slot")],
    },
    Case {
        done: "select pg_create_logical_replication_slot('{slot}', 'test_decoding')",
        road: &[("with plugin test_decoding", "pg_drop_replication_slot")],
    },
    Case {
        done: "select pg_create_physical_replication_slot('{slot}')",
        road: &[("is physical", "pg_drop_replication_slot")],
    },
    Case {
        done: "select pg_create_logical_replication_slot('{slot}', 'pgoutput', false, true)",
        road: &[("two_phase", "pg_drop_replication_slot")],
    },
    Case {
        done: "select pg_create_logical_replication_slot('{slot}', 'pgoutput')",
        road: &[("somebody moved the slot", "pg_drop_replication_slot")],
    },
    Case {
        done: "drop table outbox.dead_letters",
        road: &[("outbox.dead_letters", "outbox-relay migrate")],
    },
    Case { done: "drop table outbox.leaders", road: &[("outbox.leaders", "outbox-relay migrate")] },
    // With it goes what the relay knows its own progress by: it takes what is stored, as from a version
    // that knew no keys.
    Case {
        done: "drop table outbox.relay_keys",
        road: &[("outbox.relay_keys", "outbox-relay migrate")],
    },
    Case {
        done: "alter table outbox.relay_keys drop constraint relay_keys_key_check; \
               update outbox.relay_keys set key = '\\x00' where relay = '{relay}'",
        road: &[("can't be read as a key", "delete from outbox.relay_keys")],
    },
    // As where another's key was put there: what is stored is no one's that this relay knows.
    Case {
        done: "update outbox.relay_keys set key = sha256('another') where relay = '{relay}'",
        road: &[("that this relay did not store", "resume --at slot")],
    },
    Case {
        done: "revoke update on outbox.dead_letters from {role}",
        road: &[("lacks update on outbox.dead_letters", "grant update")],
    },
];

/// Between backticks is what is typed.
pub(crate) fn typed<'a>(text: &'a str, words: &str) -> &'a str {
    let mut commands = text.split('`').skip(1).step_by(2);
    commands.find(|one| one.contains(words)).unwrap_or_else(|| panic!("no {words} in: {text}"))
}

pub(crate) async fn obey(t: &Harness, command: &str) {
    let Some(arguments) = command.strip_prefix("outbox-relay ") else {
        let done = t.database().superuser().batch_execute(command).await;
        return done.unwrap_or_else(|error| panic!("{command}: {error:?}"));
    };
    let mut settings = t.relay();
    if arguments == "migrate" {
        settings = settings.set("postgres.url", &t.database().url(Role::Owner));
    }
    let arguments: Vec<&str> = arguments.split(' ').collect();
    let output = settings.command(&arguments).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    if arguments == ["migrate"] {
        // "… then grant what docs/ROLES.md lists".
        t.database().grant_outbox().await;
    }
}

/// The halt that speaks of this; the relay may still be at the one before.
pub(crate) async fn says(relay: &Relay, words: &str) -> String {
    wait::until(words, wait::PATIENCE, || async {
        let status = relay.try_status().await.map_err(|error| error.to_string())?;
        let text = |name| status.get(name).and_then(Value::as_str).unwrap_or_default();
        match text("phase") == "halted" && text("detail").contains(words) {
            true => Ok(text("detail").to_owned()),
            false => Err(status.to_string()),
        }
    })
    .await
    .expect("it says so")
}

async fn is_obeyed(case: &Case) {
    is_obeyed_in(Harness::start().await, case).await;
}

async fn is_obeyed_in(mut t: Harness, case: &Case) {
    let topic = t.topic("orders").create(1).await;
    let mut relay = t.relay().start().await;
    t.commit([Event::to(topic.name()).key("k"), Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    t.commit((0..3).map(|_| Event::to(topic.name()).key("k"))).await;
    let (name, role) = (t.database().name().to_owned(), t.database().name_of(Role::Relay));
    let makes_slot = case.done.starts_with("select pg_create");
    let done = [if makes_slot { DROP } else { "" }, case.done].concat();
    let done = done.replace("{slot}", &format!("outbox_{name}"));
    let done = done.replace("{relay}", &name).replace("{role}", &role);
    for statement in done.split("; ") {
        let run = t.database().superuser().batch_execute(statement).await;
        run.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    }
    relay.restart();
    halted(&relay).await;
    for (words, command) in case.road {
        let detail = says(&relay, words).await;
        obey(&t, typed(&detail, command)).await;
    }
    relay.wait_ready().await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    let count = t.count(&topic, 1).await;
    assert_eq!((count.lost, count.duplicated), (0, 0), "{}: {count}", case.done);
}

#[tokio::test]
async fn what_a_halt_says_can_be_typed_and_loses_and_doubles_nothing() {
    // Roles are everybody's: these are of a server of its own.
    let (postgres, _server) = Postgres::private().await;
    let t = Harness::with(postgres, servers::kafka().await).await;
    let unable = Case {
        done: "alter role {role} noreplication",
        road: &[("replication role", "alter role")],
    };
    is_obeyed_in(t, &unable).await;
    let t = Harness::with(postgres, servers::kafka().await).await;
    let unable =
        Case { done: "alter role {role} nologin", road: &[("not permitted to log in", "login")] };
    is_obeyed_in(t, &unable).await;
    // Some at a time: each is a relay of its own.
    for cases in CASES.chunks(4) {
        futures_util::future::join_all(cases.iter().map(is_obeyed)).await;
    }
}

/// Nothing streams from it, and somebody has set it so.
#[tokio::test]
async fn a_server_without_wal_senders_is_named_by_check_and_by_the_run_and_one_is_enough() {
    let ((postgres, mut server), kafka) = tokio::join!(Postgres::private(), servers::kafka());
    let mut t = Harness::with(postgres, kafka).await;
    let topic = t.topic("orders").create(1).await;
    server.leave_out("max_wal_senders");
    let mut set = async |t: &mut Harness, command: &str| {
        obey(t, command).await;
        server.stop(Shutdown::Fast).expect("it ends");
        server.restart().expect("it starts");
        t.reconnect().await;
    };
    set(&mut t, "alter system set max_wal_senders = 0").await;
    let relay = t.relay().spawn();
    let detail = says(&relay, "max_wal_senders is 0").await;
    let command = typed(&detail, "alter system set max_wal_senders").to_owned();
    let output = t.relay().command(&["check"]).await;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(told.contains(&command) && told.contains("max_wal_senders is 0"), "{told}");
    t.commit([Event::to(topic.name()).key("k")]).await;
    set(&mut t, &command).await;
    t.count(&topic, 1).await.assert_exactly_once();
    // The only one is the relay's own.
    set(&mut t, "alter system set max_wal_senders = 1").await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    let findings = crate::checks::check(&t.relay()).await;
    assert!(findings.iter().all(|found| found.verdict != "problem"), "{findings:#?}");
}

/// Backups and standbys of others.
#[tokio::test]
async fn a_server_whose_wal_senders_others_have_is_told_with_who_has_them() {
    let ((postgres, mut server), kafka) = tokio::join!(Postgres::private(), servers::kafka());
    let mut t = Harness::with(postgres, kafka).await;
    let topic = t.topic("orders").create(1).await;
    server.leave_out("max_wal_senders");
    obey(&t, "alter system set max_wal_senders = 1").await;
    server.stop(Shutdown::Fast).expect("it ends");
    server.restart().expect("it starts");
    t.reconnect().await;
    let database = t.database();
    let make = "select pg_create_physical_replication_slot('theirs', true)";
    database.superuser().batch_execute(make).await.expect("a slot");
    let mut other = std::process::Command::new(program("pg_receivewal").expect("a program"))
        .current_dir(t.dir())
        .args(["--directory", ".", "--slot", "theirs"])
        .args(["--dbname", &database.superuser_settings()])
        .spawn()
        .expect("it starts");
    wait::until("the WAL sender is taken", wait::PATIENCE, || async {
        let sql = "select count(*) from pg_stat_replication";
        let row = database.superuser().query_one(sql, &[]).await;
        match row.map_err(|error| error.to_string())?.get::<_, i64>(0) {
            0 => Err("no one has it"),
            _ => Ok(()),
        }
        .map_err(str::to_owned)
    })
    .await
    .expect("it is");
    let relay = t.relay().spawn();
    relay.wait_log("from pg_stat_activity").await;
    let log = relay.log_text();
    let who = typed(&log, "from pg_stat_activity").to_owned();
    let found = database.superuser().query(&who, &[]).await.expect("the remedy is SQL");
    let sender = found.iter().find(|row| row.get::<_, Option<&str>>(3) == Some("walsender"));
    let pid: i32 = sender.expect("it names who has it").get(0);
    other.kill().and_then(|()| other.wait()).expect("its owner ends it");
    let end = typed(&log, "pg_terminate_backend").replace("pid", &pid.to_string());
    database.superuser().batch_execute(&end).await.expect("the remedy is SQL");
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
}

/// Whoever never releases an advisory lock fills the server's table of locks for everybody.
#[tokio::test]
async fn a_server_whose_locks_are_all_taken_is_told_with_who_has_them() {
    let ((postgres, mut server), kafka) = tokio::join!(Postgres::private(), servers::kafka());
    let mut t = Harness::with(postgres, kafka).await;
    let topic = t.topic("orders").create(1).await;
    obey(&t, "alter system set max_locks_per_transaction = 10").await;
    server.stop(Shutdown::Fast).expect("it ends");
    server.restart().expect("it starts");
    t.reconnect().await;
    let hog = t.database().connect(Role::Owner).await;
    let pid: i32 = hog.query_one("select pg_backend_pid()", &[]).await.expect("a pid").get(0);
    let all = "select count(pg_advisory_lock(n)) from generate_series(1, 10000000) n";
    let full = hog.batch_execute(all).await.expect_err("there is no room for so many");
    assert_eq!(full.code().map(|code| code.code()), Some("53200"), "{full:?}");
    let relay = t.relay().spawn();
    relay.wait_log("max_locks_per_transaction").await;
    let log = relay.log_text();
    let who = typed(&log, "from pg_locks").to_owned();
    let most = t.database().superuser().query(&who, &[]).await.expect("the remedy is SQL");
    assert_eq!(most.first().map(|row| row.get::<_, i32>(0)), Some(pid), "it names who has them");
    // The server has no room for the statement that ends it, as the text foresees.
    let kill = typed(&log, "kill PID").replace("PID", &pid.to_string());
    let words: Vec<&str> = kill.split(' ').collect();
    let ended = std::process::Command::new(words[0]).args(&words[1..]).status();
    assert!(ended.expect("there is such a program").success(), "{kill}");
    wait::until("its locks are free", wait::PATIENCE, || async {
        let held = format!("select count(*) from pg_locks where pid = {pid}");
        let row = t.database().superuser().query_one(&held, &[]).await;
        match row.map_err(|error| error.to_string())?.get::<_, i64>(0) {
            0 => Ok(()),
            held => Err(format!("{held} locks")),
        }
    })
    .await
    .expect("it has ended");
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
}

/// The stream needs no look: what fails there is tried again.
#[tokio::test]
async fn events_flow_while_the_servers_locks_are_all_taken_and_looks_fail() {
    let ((postgres, mut server), kafka) = tokio::join!(Postgres::private(), servers::kafka());
    let mut t = Harness::with(postgres, kafka).await;
    let topic = t.topic("orders").create(1).await;
    obey(&t, "alter system set max_locks_per_transaction = 10").await;
    server.stop(Shutdown::Fast).expect("it ends");
    server.restart().expect("it starts");
    t.reconnect().await;
    let relay = t.relay().start().await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    // A writer's statement needs room as well; what it has written by then is committed later.
    let writer = t.database().connect(Role::Writer).await;
    let insert = format!("insert into outbox.events (topic, key) values ('{}', 'k')", topic.name());
    writer.batch_execute(&format!("begin; {insert}; {insert}; {insert}")).await.expect("written");
    let hog = t.database().connect(Role::Owner).await;
    let all = "select count(pg_advisory_lock(n)) from generate_series(1, 10000000) n";
    let full = hog.batch_execute(all).await.expect_err("there is no room for so many");
    assert_eq!(full.code().map(|code| code.code()), Some("53200"), "{full:?}");
    relay.wait_log("a look at PostgreSQL failed").await;
    assert!(relay.logs_contain("max_locks_per_transaction"), "{}", relay.log_text());
    writer.batch_execute("commit").await.expect("committed");
    let delivered = wait::until("the events arrive", wait::PATIENCE, || async {
        let found = topic.records().await.len();
        if found == 4 { Ok(()) } else { Err(format!("{found} records")) }
    });
    delivered.await.expect("they do");
    let ready = relay.page("/readyz").await;
    assert!(ready.contains("but a look at PostgreSQL fails"), "{ready}");
    hog.batch_execute("select pg_advisory_unlock_all()").await.expect("its locks are free");
    wait::until("looks succeed again", wait::PATIENCE, || async {
        let ready = relay.page("/readyz").await;
        if ready == "ok\n" { Ok(()) } else { Err(ready) }
    })
    .await
    .expect("they do");
    t.count(&topic, 1).await.assert_exactly_once();
    let began = relay.log_text().matches("streaming from=").count();
    assert_eq!(began, 1, "no attempt has ended: {}", relay.log_text());
}

/// The server forgets how it is set to at its next start, and a slot must not be there then.
#[tokio::test]
async fn a_server_that_can_not_decode_is_halted_at_in_the_words_of_check() {
    let ((postgres, mut server), kafka) = tokio::join!(Postgres::private(), servers::kafka());
    let mut t = Harness::with(postgres, kafka).await;
    let topic = t.topic("orders").create(1).await;
    t.database()
        .superuser()
        .batch_execute("alter system set wal_level = replica")
        .await
        .expect("set");
    server.leave_out("wal_level");
    server.stop(Shutdown::Fast).expect("it ends");
    server.restart().expect("it starts");
    t.reconnect().await;
    let relay = t.relay().spawn();
    let detail = says(&relay, "wal_level").await;
    let output = t.relay().command(&["check"]).await;
    let command = typed(&detail, "alter system set wal_level");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(told.contains(command), "{told}");
    t.commit([Event::to(topic.name()).key("k")]).await;
    obey(&t, command).await;
    server.stop(Shutdown::Fast).expect("it ends");
    server.restart().expect("it starts");
    t.reconnect().await;
    t.count(&topic, 1).await.assert_exactly_once();
}
