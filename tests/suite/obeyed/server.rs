//! Halts and endless retries that come from how the server is set, or from what others have of it:
//! each test has a server of its own.

use outbox_harness::{
    Harness,
    database::Role,
    event::Event,
    postgres::{Postgres, Session, program},
    servers,
    topic::Topic,
    wait,
};
use outbox_relay::throwaway::{LocalPostgres, Shutdown};

use super::{obey, says, typed};
use crate::checks;

const ALL_LOCKS: &str = "select count(pg_advisory_lock(n)) from generate_series(1, 10000000) n";

/// A server that this test alone uses, and a topic.
struct Own {
    t: Harness,
    topic: Topic,
    server: LocalPostgres,
}

impl Own {
    async fn start() -> Self {
        let ((postgres, server), kafka) = tokio::join!(Postgres::private(), servers::kafka());
        let t = Harness::with(postgres, kafka).await;
        let topic = t.topic("orders").create(1).await;
        Self { t, topic, server }
    }

    /// Types it, and restarts the server, for what is read only at its start.
    async fn set(&mut self, command: &str) {
        obey(&self.t, command).await;
        self.server.stop(Shutdown::Fast).expect("it ends");
        self.server.restart().expect("it starts");
        self.t.reconnect().await;
    }

    async fn commit_one(&mut self) {
        self.t.commit([Event::to(self.topic.name()).key("k")]).await;
    }

    async fn one_is_delivered(&mut self) {
        self.commit_one().await;
        self.t.count(&self.topic, 1).await.assert_exactly_once();
    }

    /// A session that has all the locks for which the server has room.
    async fn hog(&self) -> Session {
        let hog = self.t.database().connect(Role::Owner).await;
        let full = hog.batch_execute(ALL_LOCKS).await.expect_err("there is no room for so many");
        assert_eq!(full.code().map(|code| code.code()), Some("53200"), "{full:?}");
        hog
    }
}

/// Nothing streams from it, and somebody has set it so.
#[tokio::test]
async fn a_server_without_wal_senders_is_named_by_check_and_by_the_run_and_one_is_enough() {
    let mut own = Own::start().await;
    own.server.leave_out("max_wal_senders");
    own.set("alter system set max_wal_senders = 0").await;
    let relay = own.t.relay().spawn();
    let detail = says(&relay, "max_wal_senders is 0").await;
    let command = typed(&detail, "alter system set max_wal_senders").to_owned();
    let output = own.t.relay().command(&["check"]).await;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(told.contains(&command) && told.contains("max_wal_senders is 0"), "{told}");
    own.commit_one().await;
    own.set(&command).await;
    own.t.count(&own.topic, 1).await.assert_exactly_once();
    // The only one is the relay's own.
    own.set("alter system set max_wal_senders = 1").await;
    own.one_is_delivered().await;
    let findings = crate::checks::check(&own.t.relay()).await;
    assert!(findings.iter().all(|found| found.verdict != "problem"), "{findings:#?}");
}

async fn checked(own: &Own) -> String {
    let output = own.t.relay().command(&["check"]).await;
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Backups and standbys of others.
#[tokio::test]
async fn a_server_whose_wal_senders_others_have_is_told_with_who_has_them() {
    let mut own = Own::start().await;
    own.server.leave_out("max_wal_senders");
    own.set("alter system set max_wal_senders = 1").await;
    let database = own.t.database();
    let make = "select pg_create_physical_replication_slot('theirs', true)";
    database.superuser().batch_execute(make).await.expect("a slot");
    let mut other = std::process::Command::new(program("pg_receivewal").expect("a program"))
        .current_dir(own.t.dir())
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
    let relay = own.t.relay().spawn();
    relay.wait_log("from pg_stat_activity").await;
    let log = relay.log_text();
    let raise = typed(&log, "alter system set max_wal_senders").to_owned();
    let told = checked(&own).await;
    assert!(told.contains(&raise) && !told.contains("pg_hba.conf"), "{told}");
    let who = typed(&log, "from pg_stat_activity").to_owned();
    let found = database.superuser().query(&who, &[]).await.expect("the remedy is SQL");
    let sender = found.iter().find(|row| row.get::<_, Option<&str>>(3) == Some("walsender"));
    let pid: i32 = sender.expect("it names who has it").get(0);
    other.kill().and_then(|()| other.wait()).expect("its owner ends it");
    let end = typed(&log, "pg_terminate_backend").replace("pid", &pid.to_string());
    database.superuser().batch_execute(&end).await.expect("the remedy is SQL");
    own.one_is_delivered().await;
}

/// Whoever never releases an advisory lock fills the server's table of locks for everybody.
#[tokio::test]
async fn a_server_whose_locks_are_all_taken_is_told_with_who_has_them() {
    let mut own = Own::start().await;
    own.set("alter system set max_locks_per_transaction = 10").await;
    let hog = own.hog().await;
    let pid: i32 = hog.query_one("select pg_backend_pid()", &[]).await.expect("a pid").get(0);
    let relay = own.t.relay().spawn();
    relay.wait_log("max_locks_per_transaction").await;
    let log = relay.log_text();
    let who = typed(&log, "from pg_locks").to_owned();
    let most = own.t.database().superuser().query(&who, &[]).await.expect("the remedy is SQL");
    assert_eq!(most.first().map(|row| row.get::<_, i32>(0)), Some(pid), "it names who has them");
    // The server has no room for the statement that ends it, as the text foresees.
    let kill = typed(&log, "kill PID").replace("PID", &pid.to_string());
    let words: Vec<&str> = kill.split(' ').collect();
    let ended = std::process::Command::new(words[0]).args(&words[1..]).status();
    assert!(ended.expect("there is such a program").success(), "{kill}");
    wait::until("its locks are free", wait::PATIENCE, || async {
        let held = format!("select count(*) from pg_locks where pid = {pid}");
        let row = own.t.database().superuser().query_one(&held, &[]).await;
        match row.map_err(|error| error.to_string())?.get::<_, i64>(0) {
            0 => Ok(()),
            held => Err(format!("{held} locks")),
        }
    })
    .await
    .expect("it has ended");
    own.one_is_delivered().await;
}

/// The stream needs no look: what fails there is tried again.
#[tokio::test]
async fn events_flow_while_the_servers_locks_are_all_taken_and_looks_fail() {
    let mut own = Own::start().await;
    own.set("alter system set max_locks_per_transaction = 10").await;
    let relay = own.t.relay().start().await;
    own.one_is_delivered().await;
    // A writer's statement needs room as well; what it has written by then is committed later.
    let writer = own.t.database().connect(Role::Writer).await;
    let insert =
        format!("insert into outbox.events (topic, key) values ('{}', 'k')", own.topic.name());
    writer.batch_execute(&format!("begin; {insert}; {insert}; {insert}")).await.expect("written");
    let hog = own.hog().await;
    relay.wait_log("a look at PostgreSQL failed").await;
    assert!(relay.logs_contain("max_locks_per_transaction"), "{}", relay.log_text());
    writer.batch_execute("commit").await.expect("committed");
    let delivered = wait::until("the events arrive", wait::PATIENCE, || async {
        let found = own.topic.records().await.len();
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
    own.t.count(&own.topic, 1).await.assert_exactly_once();
    let began = relay.log_text().matches("streaming from=").count();
    assert_eq!(began, 1, "no attempt has ended: {}", relay.log_text());
}

/// The server forgets how it is set to at its next start, and a slot must not be there then.
#[tokio::test]
async fn a_server_that_can_not_decode_is_halted_at_in_the_words_of_check() {
    let mut own = Own::start().await;
    own.server.leave_out("wal_level");
    own.set("alter system set wal_level = replica").await;
    let relay = own.t.relay().spawn();
    let detail = says(&relay, "wal_level").await;
    let output = own.t.relay().command(&["check"]).await;
    let command = typed(&detail, "alter system set wal_level");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(told.contains(command), "{told}");
    own.commit_one().await;
    own.set(command).await;
    own.t.count(&own.topic, 1).await.assert_exactly_once();
}

/// What a role or a database is set back to changes nothing here.
#[tokio::test]
async fn a_server_on_which_triggers_do_not_fire_is_named_by_check_with_what_resets_the_servers_setting()
 {
    let own = Own::start().await;
    let told = async || {
        let findings = checks::check(&own.t.relay()).await;
        let told = findings.into_iter().find(|it| it.seen.contains("session_replication_role"));
        told.map(|it| it.remedy)
    };
    obey(&own.t, "alter system set session_replication_role = replica").await;
    obey(&own.t, "select pg_reload_conf()").await;
    // Each process is told, and reads it in its own time.
    let remedy = wait::until("check tells of it", wait::PATIENCE, || async {
        told().await.ok_or("it has not yet")
    });
    let remedy = remedy.await.expect("it does");
    for words in ["alter system reset", "pg_reload_conf"] {
        obey(&own.t, typed(&remedy, words)).await;
    }
    wait::until("check tells no more of it", wait::PATIENCE, || async {
        told().await.map_or(Ok(()), Err)
    })
    .await
    .expect("it is corrected");
}
