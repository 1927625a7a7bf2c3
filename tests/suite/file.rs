//! `sink.kind = "file"` and `"stdout"`: records as lines of JSON, progress in `outbox.progress`.

mod unread;

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use outbox_harness::{
    Harness, check,
    database::Role,
    event::Event,
    file,
    load::Plan,
    relay::{Relay, Settings},
    topic::Record,
    wait,
};
use outbox_relay::{
    core::secret::Secret,
    sink::{any, nats},
};
use serde_json::json;

use crate::{
    checks,
    grants::{change, of},
    obeyed::{obey, typed},
    repair::drop_slot,
};

const PARTITIONS: i32 = 8;
const ENDLESS: u64 = 1_000_000;

/// Settings of a relay that writes to the file, and where that is.
pub(crate) fn to_file(t: &Harness) -> (Settings, PathBuf) {
    let path = t.dir().join("records.jsonl");
    let settings = t.relay().to("file").set("sink.file.path", path.to_str().expect("UTF-8"));
    (settings, path)
}

/// Waits until all that is committed is in the file, and returns its records.
pub(crate) async fn all_written(t: &Harness, path: &Path) -> Vec<Record> {
    let truth = t.committed().await;
    wait::until("all is in the file", wait::PATIENCE, || async {
        match check::compare(&truth, &file::records(path, PARTITIONS), PARTITIONS).lost {
            0 => Ok(file::records(path, PARTITIONS)),
            lost => Err(format!("{lost} are missing")),
        }
    })
    .await
    .expect("it is")
}

async fn progress_rows(t: &Harness) -> i64 {
    let count = "select count(*) from outbox.progress";
    t.database().superuser().query_one(count, &[]).await.expect("a count").get(0)
}

#[tokio::test]
async fn events_become_lines_of_json_under_exactly_the_documented_grants() {
    let mut t = Harness::start().await;
    let (settings, path) = to_file(&t);
    let findings = checks::check(&settings).await;
    assert!(findings.iter().all(|finding| finding.verdict != "problem"), "{findings:?}");
    let mut relay = settings.start().await;
    t.commit([
        Event::to("orders").key("a").payload(json!({"n": 1})).header("tenant", "x"),
        Event::to("a topic of any name/…").key("b"),
    ])
    .await;
    t.commit([Event::to("orders").key("a").payload(json!({"n": 2}))]).await;
    let records = all_written(&t, &path).await;
    check::compare(&t.committed().await, &records, PARTITIONS).assert_exactly_once();
    assert_eq!(check::positions_that_step_back(&records), Vec::<String>::new());
    assert!(relay.sigterm().await.success());
    assert!(progress_rows(&t).await > 0);
    // A start that finds everything done writes nothing again.
    relay.restart();
    relay.wait_ready().await;
    t.commit([Event::to("orders").key("a")]).await;
    let records = all_written(&t, &path).await;
    check::compare(&t.committed().await, &records, PARTITIONS).assert_exactly_once();
}

#[tokio::test]
async fn without_any_single_grant_on_progress_check_and_run_name_it() {
    let t = Harness::start().await;
    let (settings, _) = to_file(&t);
    let grants = of(t.database(), Role::Relay, "outbox");
    let grants: Vec<_> = grants.iter().filter(|g| g.object == "outbox.progress").collect();
    assert_eq!(grants.len(), 3, "{grants:?}");
    let mut relay = settings.clone().start().await;
    for grant in grants {
        change(t.database(), &grant.revoke()).await;
        let statement = grant.to_string();
        let findings = checks::check(&settings).await;
        let named = findings.iter().filter(|f| f.verdict == "problem");
        assert!(named.clone().any(|f| f.remedy.contains(&statement)), "{statement}: {findings:?}");
        assert_eq!(named.count(), 1, "one cause, one problem: {findings:?}");
        relay.kill9().await;
        relay.restart();
        // What may not be deleted is noticed when there is something to delete.
        if grant.right != "delete" {
            relay.wait_log(&statement).await;
        }
        change(t.database(), &statement).await;
    }
    relay.wait_ready().await;
}

#[tokio::test]
async fn five_kills_under_load_lose_no_line_and_repeat_the_same_ids() {
    let t = Harness::start().await;
    let (settings, path) = to_file(&t);
    let mut relay = settings.start().await;
    let plan =
        Plan { topic: "orders".into(), partitions: PARTITIONS, writers: 6, transactions: ENDLESS };
    let load = t.load(&plan).await;
    for _ in 0..5 {
        let before = file::records(&path, PARTITIONS).len();
        wait::until("more lines are written", wait::PATIENCE, || async {
            match file::records(&path, PARTITIONS).len() {
                found if found > before => Ok(()),
                found => Err(format!("{found} lines")),
            }
        })
        .await
        .expect("the relay delivers");
        relay.kill9().await;
        relay.restart();
    }
    load.stop().await;
    let records = all_written(&t, &path).await;
    check::compare(&t.committed().await, &records, PARTITIONS).assert_at_least_once();
}

/// Its own writes move the WAL, and would otherwise keep it busy with itself.
#[tokio::test]
async fn an_idle_relay_stores_no_progress_for_its_own_writes() {
    const IDLE: Duration = Duration::from_secs(8);
    let mut t = Harness::start().await;
    let (settings, path) = to_file(&t);
    let _relay = settings.start().await;
    t.commit([Event::to("orders").key("a")]).await;
    all_written(&t, &path).await;
    let rows = async || -> String {
        let query = "select coalesce(string_agg(format('%s at %s: %s', seq, stored_at::time, \
                         convert_from(record, 'UTF8')), e'\\n' order by seq), '') \
                     from outbox.progress";
        t.database().superuser().query_one(query, &[]).await.expect("rows").get(0)
    };
    let stored = async || {
        let before = rows().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        (rows().await == before).then_some(()).ok_or("rows are added")
    };
    wait::until("what is delivered is stored", wait::PATIENCE, stored).await.expect("it is");
    let end = async || -> i64 {
        let query = "select (pg_current_wal_insert_lsn() - '0/0')::int8";
        t.database().superuser().query_one(query, &[]).await.expect("a number").get(0)
    };
    let (begin, before) = (end().await, rows().await);
    tokio::time::sleep(IDLE).await;
    let (after, end) = (rows().await, end().await);
    let added = after.lines().count() - before.lines().count();
    // Other tests move the WAL of this server, which is worth a row for each mebibyte.
    let by_others = usize::try_from((end - begin) >> 20).expect("it grows");
    assert!(added <= 1 + by_others, "{added} rows were added in {IDLE:?}:\n{after}");
}

#[tokio::test]
async fn progress_in_the_database_keeps_few_rows() {
    let mut t = Harness::start().await;
    let (settings, path) = to_file(&t);
    let _relay = settings.start().await;
    let fill = "insert into outbox.progress (relay, seq, record) overriding system value \
                select p.relay, n, p.record from generate_series(100, 1999) n, \
                    (select * from outbox.progress order by seq desc limit 1) p";
    t.database().superuser().batch_execute(fill).await.expect("filled");
    t.commit([Event::to("orders").key("a")]).await;
    all_written(&t, &path).await;
    let few = async || match progress_rows(&t).await {
        ..100 => Ok(()),
        rows => Err(format!("{rows} rows")),
    };
    wait::until("older rows are deleted", wait::PATIENCE, few).await.expect("they are");
}

/// A relay that has written an event, and its file.
async fn stopped_after_an_event() -> (Harness, Relay, PathBuf) {
    let mut t = Harness::start().await;
    let (settings, path) = to_file(&t);
    let mut relay = settings.start().await;
    t.commit([Event::to("orders").key("a")]).await;
    all_written(&t, &path).await;
    assert!(relay.sigterm().await.success());
    (t, relay, path)
}

/// As where rows were moved by a tool that leaves sequences behind.
#[tokio::test]
async fn what_is_stored_is_newer_than_what_is_there_whatever_the_sequence_says() {
    let (mut t, mut relay, path) = stopped_after_an_event().await;
    let moved = "create table public.moved as select * from outbox.progress; \
                 delete from outbox.progress; \
                 insert into outbox.progress overriding system value \
                     select relay, seq + 40000, record, stored_at from public.moved; \
                 alter table outbox.progress alter column seq restart with 1";
    t.database().superuser().batch_execute(moved).await.expect("moved");
    for _ in 0..2 {
        relay.restart();
        relay.wait_ready().await;
        t.commit([Event::to("orders").key("a")]).await;
        all_written(&t, &path).await;
        assert!(relay.sigterm().await.success());
    }
    let records = all_written(&t, &path).await;
    check::compare(&t.committed().await, &records, PARTITIONS).assert_exactly_once();
}

#[tokio::test]
async fn standard_output_ends_what_a_crash_left_of_a_line() {
    const LEFT: &str = "{\"topic\":\"orders\",\"ke";
    let mut t = Harness::start().await;
    let (settings, path) = to_file(&t);
    let settings = settings.set("sink.kind", "stdout").without("sink.file.path");
    let output = t.dir().join("output");
    std::fs::write(&output, LEFT).expect("written");
    let _relay = settings.stdout(&output).start().await;
    t.commit([Event::to("orders").key("a")]).await;
    let written = wait::until("a line follows", wait::PATIENCE, || async {
        let text = std::fs::read_to_string(&output).map_err(|error| error.to_string())?;
        match text.strip_prefix(LEFT) {
            Some(rest) if rest.trim_end().contains('}') => Ok(rest.to_owned()),
            _ => Err(text),
        }
    });
    let written = written.await.expect("an event is written");
    let lines = written.strip_prefix('\n').expect("a line of its own");
    std::fs::write(&path, lines).expect("written");
    all_written(&t, &path).await;
}

#[tokio::test]
async fn a_lost_slot_is_repaired_from_the_table() {
    let (mut t, mut relay, path) = stopped_after_an_event().await;
    drop_slot(&t).await;
    t.commit([Event::to("orders").key("a"), Event::to("orders").key("b")]).await;
    relay.restart();
    relay.wait_ready().await;
    let records = all_written(&t, &path).await;
    check::compare(&t.committed().await, &records, PARTITIONS).assert_at_least_once();
}

#[tokio::test]
async fn resume_continues_where_a_person_says() {
    let mut t = Harness::start().await;
    let (settings, path) = to_file(&t);
    let mut relay = settings.clone().start().await;
    t.commit([Event::to("orders").key("a")]).await;
    all_written(&t, &path).await;
    assert!(relay.sigterm().await.success());
    change(t.database(), "delete from outbox.progress").await;
    t.commit([Event::to("orders").key("a")]).await;
    relay.restart();
    relay.wait_log("outbox-relay resume --at slot").await;
    let resumed = settings.command(&["resume", "--at", "slot", "--yes"]).await;
    assert!(resumed.status.success(), "{resumed:?}");
    relay.kill9().await;
    relay.restart();
    let records = all_written(&t, &path).await;
    check::compare(&t.committed().await, &records, PARTITIONS).assert_at_least_once();
}

#[tokio::test]
async fn a_file_that_another_process_has_is_waited_for() {
    let mut t = Harness::start().await;
    let (settings, path) = to_file(&t);
    let held = std::fs::File::create(&path).expect("a file");
    held.lock().expect("it is free");
    let relay = settings.spawn();
    t.commit([Event::to("orders").key("a")]).await;
    relay.wait_log(&format!("process {} (", std::process::id())).await;
    assert!(relay.logs_contain("has the file locked"), "{}", relay.log_text());
    held.unlock().expect("it was locked");
    all_written(&t, &path).await;
}

/// Whoever may open the file may lock it.
#[tokio::test]
async fn the_file_is_its_users_alone_and_check_names_one_that_others_may_lock() {
    let (t, _relay, path) = stopped_after_an_event().await;
    let mode = || path.metadata().expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode(), 0o600);
    let (settings, _) = to_file(&t);
    let warned = async || {
        let found = checks::check(&settings).await;
        found.into_iter().find(|found| found.verdict == "warning" && found.seen.contains("lock it"))
    };
    assert!(warned().await.is_none());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("open");
    let warning = warned().await.expect("others may read it");
    let typed = typed(&warning.remedy, "chmod").to_owned();
    let done = std::process::Command::new("sh").args(["-c", &typed]).status().expect("a shell");
    assert!(done.success(), "{typed}");
    assert!(warned().await.is_none());
}

/// As it stored until this version, by the sequence.
#[tokio::test]
async fn what_upgrading_says_makes_progress_of_a_former_version_count() {
    let (t, _relay, _path) = stopped_after_an_event().await;
    let upgrading = include_str!("../../docs/UPGRADING.md");
    obey(&t, typed(upgrading, "outbox.progress")).await;
    let stored = "insert into outbox.progress (relay, record) select relay, 'former' \
                  from outbox.progress limit 1";
    t.database().superuser().batch_execute(stored).await.expect("stored");
    let newest =
        "select convert_from(record, 'UTF8') from outbox.progress order by seq desc limit 1";
    let row = t.database().superuser().query_one(newest, &[]).await.expect("a row");
    assert_eq!(row.get::<_, String>(0), "former");
}

#[tokio::test]
async fn a_file_that_is_rotated_loses_no_line() {
    let mut t = Harness::start().await;
    let (settings, path) = to_file(&t);
    let _relay: Relay = settings.start().await;
    t.commit([Event::to("orders").key("a")]).await;
    all_written(&t, &path).await;
    let old = t.dir().join("old.jsonl");
    std::fs::rename(&path, &old).expect("renamed");
    t.commit([Event::to("orders").key("a")]).await;
    let truth = t.committed().await;
    wait::until("the second is in a new file", wait::PATIENCE, || async {
        let mut records = file::records(&old, PARTITIONS);
        records.extend(file::records(&path, PARTITIONS));
        let count = check::compare(&truth, &records, PARTITIONS);
        if count.lost == 0 { Ok(count) } else { Err(count.to_string()) }
    })
    .await
    .expect("it is")
    .assert_exactly_once();
}

#[tokio::test]
async fn standard_output_gets_the_lines_and_nothing_else() {
    let mut t = Harness::start().await;
    let (settings, path) = to_file(&t);
    let settings = settings.set("sink.kind", "stdout").without("sink.file.path");
    let relay = settings.stdout(&path).start().await;
    t.commit([Event::to("orders").key("a"), Event::to("orders").key("b")]).await;
    let records = all_written(&t, &path).await;
    check::compare(&t.committed().await, &records, PARTITIONS).assert_exactly_once();
    drop(relay);
}

#[test]
fn the_role_needs_a_grant_on_progress_where_the_database_keeps_it_and_none_where_a_stream_does() {
    let stream = nats::Settings {
        relay_name: "relay".into(),
        url: Secret::new("nats://127.0.0.1"),
        stream: "ORDERS".into(),
        subject: nats::Template::default(),
        partitions: 1,
        progress_subject: None,
        credentials_file: None,
        nkey_file: None,
        ca_file: None,
        certificate: None,
        repairs_broker_loss: true,
        topic_grace: Duration::ZERO,
        reserved_topics: Vec::new(),
    };
    let file = outbox_relay::sink::file::Settings { path: None };
    for (settings, expected) in
        [(any::Settings::File(file), true), (any::Settings::Nats(stream), false)]
    {
        let needs = settings.grants().iter().any(|grant| grant.object == "outbox.progress");
        assert_eq!(needs, expected, "{settings:?}");
    }
}
