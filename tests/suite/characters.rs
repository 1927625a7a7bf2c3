//! Texts of databases in other encodings than UTF-8: what has a form in Unicode is published in it; what
//! has none is parked with its lane, and holds up no one, in the stream and in a repair.

use std::collections::BTreeSet;

use outbox_harness::{
    Harness,
    database::{Database, Role},
    relay::Settings,
    topic::{Record, Topic},
    wait,
};
use outbox_migrations::{Set, apply};
use serde_json::Value;

/// An encoding, a character of it that is not ASCII as SQL writes its bytes and as it is, and bytes that
/// the server takes for a text and that are no character, or one without a Unicode form.
type Sample = (&'static str, &'static str, &'static str, Option<&'static str>);

const SAMPLES: [Sample; 5] = [
    ("LATIN1", r"\xe9", "\u{e9}", None),
    ("WIN1252", r"\x80", "\u{20ac}", Some(r"\x81")),
    ("EUC_JP", r"\xa4\xa2", "\u{3042}", Some(r"\xa9\xa1")),
    ("EUC_KR", r"\xb0\xa1", "\u{ac00}", Some(r"\xfe\xfe")),
    ("EUC_TW", r"\xc4\xe3", "\u{4e2d}", Some(r"\xfd\xfe")),
];

async fn database(encoding: &str) -> Database {
    let options = format!("encoding '{encoding}' locale 'C'");
    let database = Database::create_empty_with(&options).await;
    let mut owner = database.connect(Role::Owner).await;
    for set in [Set::Outbox, Set::Inbox] {
        apply(&mut owner, set).await.expect("migrated");
    }
    database.grant().await;
    database
}

async fn run(database: &Database, sql: &str) {
    database.superuser().batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
}

/// Key and payload as SQL writes them.
async fn insert(database: &Database, table: &str, topic: &str, key: &str, payload: &str) {
    let insert = format!(
        "insert into {table} (topic, key, type, payload) values (E'{topic}', E'{key}', E'{key}', \
         E'{{\"text\": \"{payload}\"}}')"
    );
    run(database, &insert).await;
}

/// Waits until these keys and payloads are delivered, whether a repair repeats some or not.
async fn arrive(topic: &Topic, expected: &BTreeSet<(String, String)>, what: &str) {
    wait::until(what, wait::PATIENCE, || async {
        let found = texts(&topic.records().await);
        if found == *expected { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await
    .expect("nothing is held up");
}

async fn parked(operator: &Settings, count: usize) -> Vec<Value> {
    wait::until("they are parked", wait::PATIENCE, || async {
        let output = operator.command(&["dead-letters", "list", "--json"]).await;
        let found: Vec<Value> = serde_json::from_slice(&output.stdout)?;
        anyhow::ensure!(found.len() == count, "{} of {count}", found.len());
        Ok(found)
    })
    .await
    .expect("they can be")
}

async fn dead_letters(operator: &Settings, arguments: &[&str]) -> String {
    let output = operator.command(&[&["dead-letters"], arguments].concat()).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn texts(records: &[Record]) -> BTreeSet<(String, String)> {
    let text = |bytes: &Option<Vec<u8>>| {
        String::from_utf8(bytes.clone().expect("there is one")).expect("UTF-8")
    };
    records.iter().map(|record| (text(&record.key), text(&record.payload))).collect()
}

/// Rows of `table` in each of their forms, through the stream and through a repair.
async fn told_or_parked(t: &Harness, sample: Sample, table: &str, settings: Settings) {
    let (encoding, sql, text, no_character) = sample;
    let database = database(encoding).await;
    if table != "outbox.events" {
        let make = format!(
            "create table {table} (like outbox.events including defaults); \
             alter publication outbox add table {table}; grant select on {table} to public"
        );
        run(&database, &make).await;
    }
    let topic = t.topic_named(&format!("{}.orders", database.name())).create(1).await;
    let settings = settings
        .set("name", database.name())
        .set("postgres.url", &database.url(Role::Relay))
        .set_toml("outbox.tables", &format!("[{table:?}]"));
    let operator = settings.clone().set("postgres.url", &database.url(Role::Operator));
    let mut relay = settings.start().await;
    let slot = format!("outbox_{}", database.name());
    let write = async |key: &str, payload: &str| {
        insert(&database, table, topic.name(), key, payload).await;
    };
    let (mut expected, mut held) = (BTreeSet::new(), 0);
    for (round, name) in ["stream", "repair"].iter().enumerate() {
        if round > 0 {
            assert!(relay.sigterm().await.success());
            let drop = format!("select pg_drop_replication_slot('{slot}')");
            wait::until("the slot is dropped", wait::PATIENCE, || async {
                database.superuser().batch_execute(&drop).await
            })
            .await
            .expect("it was there");
        }
        // Whoever may connect may have the server send a prefix that it can't encode.
        if let Some(none) = no_character {
            let emit = format!("select pg_logical_emit_message(true, E'{none}', '')");
            run(&database, &emit).await;
            write(&format!("{name} lane"), none).await;
            write(&format!("{name} lane"), "behind").await;
            write(&format!("{name} {none}"), "key").await;
            held += 3;
        }
        write(&format!("{name} {sql}"), &format!("a{sql}{sql}z")).await;
        write(&format!("{name} plain"), "plain").await;
        if round > 0 {
            relay.restart();
        }
        expected.insert((format!("{name} {text}"), format!("{{\"text\": \"a{text}{text}z\"}}")));
        expected.insert((format!("{name} plain"), "{\"text\": \"plain\"}".to_owned()));
        arrive(&topic, &expected, &format!("{encoding}: the {name}")).await;
        if held > 0 {
            parked(&operator, held).await;
        }
    }
    assert!(!relay.logs_contain("will try again"), "{encoding}: {}", relay.log_text());
    if no_character.is_none() {
        return;
    }
    // What is kept of it can be seen, corrected, and delivered in its place.
    let letters = parked(&operator, held).await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "fixed").expect("written");
    let mut fixed = Vec::new();
    for letter in &letters {
        let (id, key) = (letter["id"].to_string(), letter["key"].as_str().unwrap_or_default());
        let path = file.path().to_str().expect("a path");
        if letter["reason"] == "lane_parked" {
            fixed.push("{\"text\": \"behind\"}".to_owned());
            continue;
        }
        assert_eq!(letter["reason"], "malformed_value", "{letter}");
        let error = letter["error"].as_str().unwrap_or_default();
        assert!(error.contains(encoding) && error.contains("Unicode"), "{error}");
        let whole = key.ends_with("lane");
        let key = if whole { key.to_owned() } else { format!("fixed {id}") };
        dead_letters(&operator, &["edit", &id, "--key", &key, "--payload", path, "--type", "t"])
            .await;
        fixed.push("fixed".to_owned());
    }
    dead_letters(&operator, &["release", "--all"]).await;
    wait::until("what was fixed arrives in its order", wait::PATIENCE, || async {
        let payloads = topic.records().await.into_iter().filter_map(|record| record.payload);
        let payloads = payloads.filter_map(|payload| String::from_utf8(payload).ok());
        let released: Vec<_> = payloads.filter(|payload| fixed.contains(payload)).collect();
        if released == fixed { Ok(()) } else { Err(format!("{released:?}")) }
    })
    .await
    .expect("each once");
    assert!(relay.sigterm().await.success());
}

#[tokio::test]
async fn a_character_without_a_unicode_form_is_parked_and_holds_up_nobody() {
    let t = Harness::start().await;
    for sample in SAMPLES {
        told_or_parked(&t, sample, "outbox.events", t.relay()).await;
    }
}

#[tokio::test]
async fn a_character_without_a_unicode_form_in_a_mapped_table_is_parked_and_holds_up_nobody() {
    let t = Harness::start().await;
    let settings = t.relay().set_toml("outbox.rows_kept", "true");
    for sample in [SAMPLES[1], SAMPLES[2]] {
        told_or_parked(&t, sample, "public.mine", settings.clone()).await;
    }
}

/// Names come in the server's encoding, those of the settings and those of strangers.
#[tokio::test]
async fn names_in_another_encoding_are_known_and_strange_ones_hold_up_nobody() {
    names_are_known("WIN1252", "\u{e9}", Some("\\x81")).await;
    names_are_known("KOI8R", "\u{444}", None).await;
    // Here the server converts nothing: bytes are as they were sent.
    names_are_known("SQL_ASCII", "\u{444}", Some("\\x81")).await;
}

/// With this letter in the relay's names, and these bytes in a stranger's.
async fn names_are_known(encoding: &str, letter: &str, strange: Option<&str>) {
    let t = Harness::start().await;
    let database = database(encoding).await;
    let (table, column) = (format!("commandes{letter}"), format!("cl{letter}"));
    let publication = format!("{letter}v{letter}nements");
    let prepare = format!(
        "create table public.\"{table}\" (like outbox.events including defaults); \
         alter table public.\"{table}\" rename column key to \"{column}\"; \
         grant select on public.\"{table}\" to public; \
         create publication \"{publication}\" for all tables with (publish = 'insert', \
             publish_via_partition_root = true)"
    );
    run(&database, &prepare).await;
    let stranger = strange.map(|bytes| format!("public.\"strange {bytes}\""));
    if let (Some(table), Some(bytes)) = (&stranger, strange) {
        let make =
            format!("do $$ begin execute E'create table {table} (\"column {bytes}\" int)'; end $$");
        run(&database, &make).await;
    }
    let topic = t.topic_named(&format!("{}.orders", database.name())).create(1).await;
    let settings = t
        .relay_of(&database)
        .set("postgres.publication", &publication)
        .set_toml("outbox.tables", &format!("[\"public.{table}\"]"))
        .set("outbox.columns.key", &column);
    let mut relay = settings.spawn();
    if let Some(table) = &stranger {
        run(&database, &format!("do $$ begin execute E'insert into {table} values (1)'; end $$"))
            .await;
    }
    let insert = format!(
        "insert into public.\"{table}\" (topic, \"{column}\") values ('{}', 'caf{letter}')",
        topic.name()
    );
    relay.wait_ready().await;
    run(&database, &insert).await;
    let key = wait::until("it arrives", wait::PATIENCE, || async {
        topic.records().await.pop().and_then(|record| record.key).ok_or("nothing")
    });
    assert_eq!(key.await.expect("a record"), format!("caf{letter}").as_bytes(), "{encoding}");
    assert!(!relay.logs_contain("will try again"), "{}", relay.log_text());
}
