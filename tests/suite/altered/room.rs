//! What someone puts on the table of parked events refuses only some of them: a value that is too long for an index or
//! for its row, or one from which something is computed. And its sequence gives no id. No change is left without what
//! undoes it, and one that the relay does not know is told with PostgreSQL's words.

use outbox_harness::{Harness, database::Role, relay::Settings, topic::Topic};

use crate::{
    checks::check,
    dead_letters::{dead_letters, wait_parked},
    obeyed::{says, typed},
    rows::{each_once, insert, run},
};

/// Characters that do not compress, as long as that.
const LONG: &str = "(select string_agg(md5(i::text), '') from generate_series(1, 338) i)";

struct Case {
    done: &'static str,
    /// What is said of it.
    words: &'static str,
    /// Words of the statement.
    typed: &'static str,
    /// Key and payload of the event that is refused, as SQL.
    event: (&'static str, &'static str),
    /// Whether `check` finds it in advance.
    is_foreseen: bool,
}

const CASES: &[Case] = &[
    Case {
        done: "create index kk on outbox.dead_letters (key) where id > 0",
        words: "the index outbox.kk of outbox.dead_letters is not the relay's, and has no room",
        typed: "drop index outbox.kk",
        event: (LONG, "'1'"),
        is_foreseen: true,
    },
    Case {
        done: "create index \"Ee\" on outbox.dead_letters (lower(topic || encode(key, 'hex')))",
        words: "the index outbox.\"Ee\" of outbox.dead_letters is not the relay's, and has no room",
        typed: "drop index outbox.\"Ee\"",
        event: (LONG, "'1'"),
        is_foreseen: true,
    },
    Case {
        done: "alter table outbox.dead_letters alter payload set storage plain",
        words: "the column payload of outbox.dead_letters has storage plain",
        typed: "alter column payload set storage extended",
        event: ("'k'", "to_jsonb(repeat('0123456789', 10000))"),
        is_foreseen: true,
    },
    Case {
        done: "create index cc on outbox.dead_letters ((1 / (length(topic) - length(topic))))",
        words: "the index cc of outbox.dead_letters may be what refuses it",
        typed: "drop index outbox.cc",
        event: ("'k'", "'1'"),
        is_foreseen: false,
    },
    Case {
        done: "alter table outbox.dead_letters \
               add column c bigint generated always as (1 / (ordinal - ordinal)) stored",
        words: "the column c of outbox.dead_letters may be what refuses it",
        typed: "alter column c drop expression",
        event: ("'k'", "'1'"),
        is_foreseen: false,
    },
    Case {
        done: "create rule r as on insert to outbox.dead_letters do also select 1",
        words: "the rule r of outbox.dead_letters may be what refuses it",
        typed: "drop rule r on outbox.dead_letters",
        event: ("'k'", "'1'"),
        is_foreseen: false,
    },
];

#[tokio::test]
async fn an_event_that_alone_is_refused_is_parked_once_what_refuses_it_is_undone_as_the_halt_says()
{
    for cases in CASES.chunks(3) {
        futures_util::future::join_all(cases.iter().map(is_obeyed)).await;
    }
}

async fn is_obeyed(Case { done, words, typed: statement, event, is_foreseen }: &Case) {
    let t = Harness::start().await;
    let (topic, late) = (t.topic("orders").create(1).await, t.topic("late"));
    let settings = t.relay().set("sink.topic_grace", "100ms");
    let mut relay = settings.clone().start().await;
    run(&t, done).await;
    let found = check(&settings).await;
    let found = found.into_iter().find(|it| it.name == "parking" && it.seen.contains(words));
    assert_eq!(found.is_some(), *is_foreseen, "{done}: {found:?}");
    if let Some(found) = found {
        assert!(found.verdict == "warning" && found.remedy.contains(statement), "{found:?}");
    }
    let refused = write(&t, &late, *event).await;
    let behind = insert(&t, &topic, "now()").await;
    let halt = says(&relay, words).await;
    for told in ["nothing is lost", "as the table's owner", &refused] {
        assert!(halt.contains(told), "{told:?} is not in: {halt}");
    }
    let owner = t.database().connect(Role::Owner).await;
    let statement = typed(&halt, statement);
    owner.batch_execute(statement).await.unwrap_or_else(|e| panic!("{statement}: {e:?}"));
    wait_parked(&t, |parked| parked == 1).await;
    assert!(!is_named(&settings, words).await, "{done}");
    released_once(&t, late, &[&refused]).await;
    each_once(&topic, &[&behind]).await;
    relay.wait_ready().await;
    assert!(relay.sigterm().await.success());
}

/// An event of a topic that is not there. As a writer does.
async fn write(t: &Harness, topic: &Topic, (key, payload): (&str, &str)) -> String {
    let sql = format!(
        "insert into outbox.events (topic, key, payload) values ('{}', {key}, {payload}) returning id::text",
        topic.name()
    );
    t.database().superuser().query_one(&sql, &[]).await.expect("inserted").get(0)
}

async fn is_named(settings: &Settings, words: &str) -> bool {
    check(settings).await.iter().any(|it| it.seen.contains(words))
}

async fn released_once(t: &Harness, topic: Topic, ids: &[&String]) {
    let topic = topic.create(1).await;
    dead_letters(t, &["release", "--reason", "unknown_topic"]).await;
    each_once(&topic, ids).await;
}

/// Nothing waits: the relay gives the ids.
#[tokio::test]
async fn where_the_sequence_gives_no_id_events_are_parked_all_the_same_and_check_says_what_sets_it_right()
 {
    let changes = [
        "select setval('outbox.dead_letters_id_seq', 2); \
         alter sequence outbox.dead_letters_id_seq maxvalue 2",
        "select setval('outbox.dead_letters_id_seq', 2); \
         alter sequence outbox.dead_letters_id_seq maxvalue 2 cycle",
        "alter sequence outbox.dead_letters_id_seq increment by -1",
        "alter table outbox.dead_letters alter column id set generated always; \
         select setval('outbox.dead_letters_id_seq', 2); \
         alter sequence outbox.dead_letters_id_seq as smallint maxvalue 2",
    ];
    futures_util::future::join_all(changes.map(parks_all_the_same)).await;
}

async fn parks_all_the_same(done: &str) {
    let t = Harness::start().await;
    let late = t.topic("late");
    let settings = t.relay().set("sink.topic_grace", "100ms");
    let mut relay = settings.clone().start().await;
    let mut ids = vec![write(&t, &late, ("'k'", "'1'")).await];
    wait_parked(&t, |parked| parked == 1).await;
    run(&t, done).await;
    let words = "the sequence outbox.dead_letters_id_seq of the column id of outbox.dead_letters";
    let found = check(&settings).await;
    let found = found.into_iter().find(|it| it.seen.contains(words)).expect(done);
    assert_eq!(found.verdict, "warning", "{found:?}");
    for parked in 2..4 {
        ids.push(write(&t, &late, ("'k'", "'1'")).await);
        wait_parked(&t, |it| it == parked).await;
    }
    assert!(!relay.logs_contain("halted"), "{}", relay.log_text());
    assert!(relay.logs_contain("ids after the highest"), "{}", relay.log_text());
    assert!(relay.sigterm().await.success());

    let owner = t.database().connect(Role::Owner).await;
    let statement = typed(&found.remedy, "alter sequence");
    owner.batch_execute(statement).await.unwrap_or_else(|e| panic!("{statement}: {e:?}"));
    assert!(!is_named(&settings, words).await, "{done}");
    let before = relay.log_text().len();
    relay.restart();
    ids.push(write(&t, &late, ("'k'", "'1'")).await);
    wait_parked(&t, |parked| parked == 4).await;
    let log = relay.log_text();
    assert!(!log.get(before..).unwrap_or_default().contains("ids after the highest"), "{log}");
    released_once(&t, late, &ids.iter().collect::<Vec<_>>()).await;
}

/// A publication of only some of the parked events, as of nothing that the relay looks for.
#[tokio::test]
async fn a_refusal_that_nothing_explains_names_the_event_and_postgresqls_words_and_ends_with_its_cause()
 {
    let t = Harness::start().await;
    let (topic, late) = (t.topic("orders").create(1).await, t.topic("late"));
    let relay = t.relay().set("sink.topic_grace", "100ms").start().await;
    run(&t, "create publication filtered for table outbox.dead_letters where (topic = 'x')").await;
    let refused = write(&t, &late, ("'k'", "'1'")).await;
    let halt = says(&relay, "PostgreSQL refuses what the relay writes").await;
    relay.wait_log(&format!("parking events (event {refused} of topic {}", late.name())).await;
    for told in ["42P10", "\\d+ outbox.dead_letters", "Nothing is lost"] {
        assert!(halt.contains(told), "{told:?} is not in: {halt}");
    }
    let behind = insert(&t, &topic, "now()").await;
    run(&t, "drop publication filtered").await;
    wait_parked(&t, |parked| parked == 1).await;
    each_once(&topic, &[&behind]).await;
    released_once(&t, late, &[&refused]).await;
}
