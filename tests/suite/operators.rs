//! What the commands of parked events say to a person, and what they refuse to do unasked.

use outbox_harness::{Harness, database::Role, event::Event, wait};
use outbox_relay::dead_letter::operator::{Counted, Operator, Selection};
use serde_json::Value;

use crate::{
    dead_letters::{count_parked, dead_letters, list, texts, wait_parked},
    rows::run,
};

/// Exit code, output and errors of a command, as a person sees them.
async fn typed(t: &Harness, arguments: &[&str]) -> (Option<i32>, String, String) {
    let settings = t.relay().set("postgres.url", &t.database().url(Role::Operator));
    let settings = settings.without("sink.properties.\"bootstrap.servers\"");
    let output = settings.command(&[&["dead-letters"], arguments].concat()).await;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test]
async fn a_name_or_topic_that_is_not_there_is_an_error_and_a_list_has_a_limit() {
    let mut t = Harness::start().await;
    let missing = t.topic("missing").name().to_owned();
    let relay = t.relay().set("sink.topic_grace", "100ms").start().await;
    let (code, stdout, _) = typed(&t, &["list"]).await;
    assert_eq!((code, stdout.trim()), (Some(0), "nothing is parked"));
    t.commit((0..120).map(|n| Event::to(&missing).key(&format!("k{}\x1b[31m", n % 2)))).await;
    wait_parked(&t, |parked| parked == 120).await;

    let (code, _, stderr) = typed(&t, &["list", "--name", "nosuch"]).await;
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("nosuch") && stderr.contains(t.database().name()), "{stderr}");
    for command in [&["release"][..], &["list"], &["discard", "--yes"]] {
        let arguments = [command, &["--topic", "typo"]].concat();
        let (code, stdout, stderr) = typed(&t, &arguments).await;
        assert_eq!(code, Some(1), "{arguments:?} {stdout}");
        assert!(stderr.contains("typo") && stderr.contains(&missing), "{stderr}");
    }

    let (_, stdout, _) = typed(&t, &["list"]).await;
    // The headings, and what is left out, have a line each.
    assert_eq!(stdout.lines().count(), 102, "{stdout}");
    assert!(stdout.contains("and 20 more"), "{stdout}");
    assert!(stdout.contains("\\u{1b}[31m") && !stdout.contains('\x1b'), "{stdout}");
    let (_, stdout, _) = typed(&t, &["list", "--limit", "120"]).await;
    assert_eq!(stdout.lines().count(), 121, "{stdout}");
    let groups = dead_letters(&t, &["list", "--by", "lane"]).await;
    let groups = groups.as_array().expect("groups");
    assert_eq!(texts(groups, "key"), ["k0\x1b[31m", "k1\x1b[31m"]);
    assert_eq!(groups[0]["events"], 60);
    assert_eq!(texts(groups, "reason"), ["unknown_topic", "unknown_topic"]);
    let (_, stdout, _) = typed(&t, &["list", "--by", "reason"]).await;
    assert!(stdout.contains("lane_parked") && stdout.contains("unknown_topic"), "{stdout}");
    let filtered = dead_letters(&t, &["list", "--reason", "unknown_topic"]).await;
    assert!(filtered.as_array().is_some_and(|list| list.len() < 120), "{filtered}");
    let hint = format!("dead-letters release --name {}", t.database().name());
    assert!(relay.logs_contain(&hint), "what is to be typed is in the log");
}

#[tokio::test]
async fn a_discard_of_a_selection_asks_and_who_did_it_and_why_is_kept() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let _relay = t.relay().start().await;
    let event = |key: &str| Event::to(topic.name()).key(key);
    t.commit([event("a").partition(9), event("a"), event("b").partition(9)]).await;
    wait_parked(&t, |parked| parked == 3).await;
    let of_a = ["discard", "--topic", topic.name(), "--key", "a"];
    let (code, _, stderr) = typed(&t, &of_a).await;
    assert_eq!(code, Some(1));
    assert!(stderr.contains("2 events") && stderr.contains("--yes"), "{stderr}");
    assert_eq!(count_parked(&t).await, 3, "nothing was discarded");
    let (code, _, stderr) = typed(&t, &["discard", "1000000", "1000001"]).await;
    assert!(code == Some(1), "{stderr}");
    let why = ["--why", "paid by hand", "--yes"];
    let discarded = dead_letters(&t, &[&of_a[..], &why].concat()).await;
    assert_eq!(discarded["discarded"], 2);
    t.commit([event("a")]).await;
    wait::until("the lane flows again", wait::PATIENCE, || async {
        match topic.records().await.len() {
            1 => Ok(()),
            found => Err(format!("{found} records")),
        }
    })
    .await
    .expect("it does");
    let Value::Array(history) = dead_letters(&t, &["list", "--all"]).await else {
        panic!("a list")
    };
    let id = history[0]["id"].to_string();
    let shown = dead_letters(&t, &["show", &id]).await;
    assert_eq!(shown["discarded_why"], "paid by hand");
    let login = Role::Operator;
    assert!(t.database().url(login).contains(shown["discarded_by"].as_str().expect("who")));
}

/// Counted in rows that the server touched, which does not depend on how busy the machine is. Half of the
/// events are of one lane: what compares each of a release with all others takes minutes.
#[tokio::test]
async fn a_release_of_many_events_touches_each_a_bounded_number_of_times() {
    const EVENTS: i64 = 30_000;
    let t = Harness::start().await;
    let topic = t.topic("late").create(1).await;
    let _relay = t.relay().start().await;
    let touched = "select seq_tup_read + idx_tup_fetch from pg_stat_user_tables \
                   where relname = 'dead_letters'";
    let parked = format!(
        "insert into outbox.dead_letters (relay, system_id, commit_lsn, ordinal, event_id, lane, \
             topic, key, headers, fit, reason, error) \
         select '{}', system_identifier::text, '0/10', n, n::text, \
             case when n <= 15000 or n % 3 > 0 then md5(k::text)::uuid end, '{}', \
             convert_to(k::text, 'UTF8'), \
             jsonb_build_array(jsonb_build_array('outbox-id', n::text)), true, 'too_large', '' \
         from generate_series(1, {EVENTS}) n, pg_control_system(), \
             lateral (select case when n <= 15000 then 0 else n / 5 end as k) k",
        t.database().name(),
        topic.name()
    );
    t.database().superuser().batch_execute(&parked).await.expect("as if they were parked");
    let released = dead_letters(&t, &["release", "--all"]).await;
    assert_eq!(released["events"], EVENTS);
    let releases = released["releases"].as_array().map_or(0, Vec::len);
    assert!(releases > 5, "some lanes at a time: {releases}");
    // Asking the table whether it is done would touch more rows than the release.
    let ids: Vec<String> = (1..=EVENTS).map(|n| n.to_string()).collect();
    assert_eq!(topic.records_with(ids).await.len() as i64, EVENTS);
    // The relay's session tells what it did when it is idle, at the latest after some seconds: what
    // is told by then is most of it. Chosen and announced (4), begun (4), read, delivered and noted (3):
    // the rest is for what else looks at the table meanwhile. Reading all that is parked for each of
    // the releases takes hundreds.
    let row = t.database().superuser().query_one(touched, &[]).await.expect("a count");
    let touched: i64 = row.get(0);
    assert!(touched < 25 * EVENTS, "{touched} rows were touched for {EVENTS} events");
}

/// It made lines of twice as many megabytes, in the log and in the list.
#[tokio::test]
async fn a_topic_of_megabytes_is_cut_where_people_see_it_and_whole_in_json() {
    let t = Harness::start().await;
    let mut relay = t.relay().start().await;
    let topic = "t".repeat(900_000);
    run(&t, &format!("insert into outbox.events (topic, key) values ('{topic}', 'k')")).await;
    wait_parked(&t, |parked| parked == 1).await;
    let (code, text, _) = typed(&t, &["list"]).await;
    assert_eq!(code, Some(0));
    assert!(text.len() < 3_000 && text.contains("900000 bytes in all"), "{} bytes", text.len());
    assert_eq!(texts(&list(&t).await, "topic"), [topic]);
    let longest = relay.log_text().lines().map(str::len).max();
    assert!(longest < Some(10_000), "{longest:?}");
    assert!(relay.sigterm().await.success());
}

/// While a person thinks, others are parked, discarded or put back.
#[tokio::test]
async fn a_selection_is_discarded_as_it_was_when_somebody_was_asked() {
    let mut t = Harness::start().await;
    let missing = t.topic("missing").name().to_owned();
    let _relay = t.relay().start().await;
    t.commit([Event::to(&missing).key("a"), Event::to(&missing).key("b")]).await;
    wait_parked(&t, |parked| parked == 2).await;
    let mut session = t.database().connect(Role::Operator).await;
    let selection = Selection { topic: Some(missing.clone()), ..Selection::default() };
    let mut operator = Operator::new(&mut session, t.database().name());
    let asked = operator.count(&selection).await.expect("counted");
    t.commit([Event::to(&missing).key("c")]).await;
    wait_parked(&t, |parked| parked == 3).await;
    operator.discard_all(&selection, asked, None).await.expect("those two");
    assert_eq!(count_parked(&t).await, 1, "nobody was asked about the third");
    let asked = operator.count(&selection).await.expect("counted");
    let more = Counted { events: 2, ..asked };
    let error = operator.discard_all(&selection, more, None).await.expect_err("one is gone");
    assert!(error.to_string().contains("had 2 parked events and has 1"), "{error}");
    assert_eq!(count_parked(&t).await, 1);
}

/// Ends a line and begins one of its own, clears a screen, colours, turns the direction of writing.
pub(crate) const HOSTILE: &str = "a\nPROBLEM  forged\x1b[2J\u{9b}31m\r\x7f\u{202e}b";

/// What people see of a text from outside has all of it spelled out, and nothing in it that steers.
pub(crate) fn is_harmless(what: &str, seen: &str) {
    shows_no_control(what, seen);
    let spelled_out = r"a\nPROBLEM  forged\u{1b}[2J\u{9b}31m\r\u{7f}\u{202e}b";
    assert!(seen.contains(spelled_out), "{what} says nothing of it: {seen:?}");
}

fn shows_no_control(what: &str, seen: &str) {
    let steers = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    assert!(!seen.contains(steers), "{what}: {seen:?}");
    assert!(!seen.lines().any(|line| line.starts_with("PROBLEM  forged")), "{what}: {seen:?}");
}

/// Of who writes rows, and of who makes tables.
#[tokio::test]
async fn texts_of_others_are_spelled_out_wherever_people_see_them() {
    let t = Harness::start().await;
    let make = "create table public.mine (like outbox.events including defaults); \
         alter table public.mine alter column id type text; \
         create publication mine for table public.mine with (publish = 'insert'); \
         grant select on public.mine to public";
    run(&t, make).await;
    let settings = t
        .relay()
        .set("postgres.publication", "mine")
        .set_toml("outbox.tables", "[\"public.mine\"]")
        .set_toml("outbox.rows_kept", "true");
    let relay = settings.clone().start().await;
    let insert = "insert into public.mine (id, topic, key, type, headers) \
                  select t, t, t, t, jsonb_build_object(t, t) from (select $1::text) as a (t)";
    t.database().superuser().execute(insert, &[&HOSTILE]).await.expect("inserted");
    wait_parked(&t, |parked| parked == 1).await;
    let id = list(&t).await[0]["id"].to_string();
    for arguments in [&["list"][..], &["list", "--by", "lane"], &["show", &id]] {
        let (_, seen, _) = typed(&t, arguments).await;
        is_harmless(&arguments.join(" "), &seen);
    }
    let (code, _, stderr) = typed(&t, &["release", "--topic", "typo"]).await;
    assert_eq!(code, Some(1));
    is_harmless("release", &stderr);

    run(&t, &format!("create table public.\"{HOSTILE}\" () inherits (public.mine)")).await;
    relay.wait_log("halted").await;
    let admin = relay.admin().to_string();
    for arguments in [&["check"][..], &["status", "--admin", &admin]] {
        let output = settings.command(arguments).await;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        is_harmless(arguments[0], &String::from_utf8_lossy(&output.stdout));
    }
    is_harmless("the log", &relay.log_text());
    // What it shows comes from /status, as text (`textContent`).
    shows_no_control("the page", &relay.page("/").await);
}
