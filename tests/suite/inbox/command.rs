//! `outbox-relay inbox dead-letters`, as an operator types it.

use outbox_harness::{Harness, database::Role};
use outbox_idempotency::{Failure, Message, Processor, Tx};
use serde_json::Value;

use super::effects::{Step, database, inbox, message, number, take};
use crate::operators::{HOSTILE, is_harmless};

#[tokio::test]
async fn an_operator_lists_shows_replays_and_discards() {
    let t = Harness::start().await;
    let database = database().await;
    let handler = |tx: Tx, message: Message<Step>| async move {
        take(&tx, &message.payload).await?;
        Err::<(), _>(Failure::permanent(format!("code-{}", message.payload.key), "no"))
    };
    let processor = Processor::new(inbox(&database).await, handler);
    let messages = [message("a", 1), message("b", 1), message("b", 2)];
    processor.process(&messages).await.expect("settled");

    let settings = t.relay_of(&database).set("postgres.url", &database.url(Role::Operator));
    let run = async |arguments: &[&str]| {
        let arguments = [&["inbox", "dead-letters"][..], arguments].concat();
        let output = settings.command(&arguments).await;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout) + &text(&output.stderr))
    };
    let json = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");

    let (code, text) = run(&["list"]).await;
    assert_eq!((code, text.lines().count()), (Some(0), 4), "{text}");
    let heading = ["ID", "CONSUMER", "FROM", "KEY", "CODE:", "ERROR", "(DIED", "AT)"];
    let first = text.lines().next().unwrap_or_default();
    assert_eq!(first.split_whitespace().collect::<Vec<_>>(), heading, "{text}");
    assert!(text.contains("billing  steps/0@1  a  code-a: no"), "{text}");
    let (_, text) = run(&["list", "--code", "code-b", "--json"]).await;
    let list = json(&text);
    assert_eq!(list.as_array().map(Vec::len), Some(2), "{text}");
    let id = list[0]["id"].to_string();
    let (_, text) = run(&["show", &id, "--json"]).await;
    assert_eq!(json(&text)["payload"], r#"{"key":"b","n":1}"#, "{text}");

    let (code, text) = run(&["replay", &id]).await;
    assert_eq!((code, text.as_str()), (Some(0), "1 replayed\n"));
    let (code, text) = run(&["replay", &id]).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("no dead letter"), "{text}");
    assert_eq!(number(&database, "select count(*) from inbox.parked").await, 1);
    // What is not there is an error that says what is.
    for (arguments, there) in [
        (&["discard", "--all", "--consumer", "mail"][..], "there are: billing"),
        (&["list", "--consumer", "mail"], "there are: billing"),
        (&["list", "--code", "typo"], "there are: steps (code-a), steps (code-b)"),
        (&["replay", "--topic", "typo", "--yes"], "there are: steps (code-a), steps (code-b)"),
        (&["discard", "--code", "typo", "--yes"], "there are: steps (code-a), steps (code-b)"),
    ] {
        let (code, text) = run(arguments).await;
        assert!(code == Some(1) && text.contains(there), "{arguments:?}: {text}");
    }
    // What changes many asks, with their number.
    for action in ["replay", "discard"] {
        let (code, text) = run(&[action, "--all"]).await;
        assert!(code == Some(1) && text.contains("2 messages will"), "{text}");
        let (code, text) = run(&[action, "--topic", "steps", "--code", "code-a"]).await;
        assert!(code == Some(1) && text.contains("1 message will"), "{text}");
        assert!(text.contains("give --yes") && text.contains("nothing was changed"), "{text}");
    }
    assert_eq!(number(&database, "select count(*) from inbox.parked").await, 1);
    let (_, text) = run(&["list", "--limit", "1"]).await;
    assert!(text.lines().count() == 3 && text.contains("… and 1 more: --limit N"), "{text}");
    let (_, text) = run(&["list", "--by", "code"]).await;
    assert!(text.contains("MESSAGES  CONSUMER  TOPIC  CODE  FIRST ID"), "{text}");
    assert!(text.contains("1  billing  steps  code-a  1\n"), "{text}");
    let (_, text) = run(&["list", "--by", "code", "--json"]).await;
    assert_eq!(json(&text)[1]["code"], "code-b", "{text}");
    let (_, text) = run(&["discard", "--all", "--yes", "--json"]).await;
    assert_eq!(json(&text)["discarded"], 2);
    assert_eq!(run(&["list", "--json"]).await.1, "[]\n");
    let (_, text) = run(&["list", "--all"]).await;
    assert_eq!((text.matches("discarded").count(), text.matches("replayed").count()), (2, 1));
    assert_eq!(run(&["replay"]).await.0, Some(2), "which ones must be said");
    let (code, text) = run(&["list"]).await;
    assert_eq!((code, text.as_str()), (Some(0), "there are no dead letters\n"));
    let (code, text) = run(&["replay", "--all"]).await;
    assert_eq!((code, text.as_str()), (Some(0), "0 replayed\n"));
}

/// They come from whoever produces records, and from what handlers make of them.
#[tokio::test]
async fn texts_of_others_are_spelled_out_in_what_a_consumer_gave_up() {
    let t = Harness::start().await;
    let database = database().await;
    let handler =
        |_: Tx, _: Message<Step>| async { Err::<(), _>(Failure::permanent("no", HOSTILE)) };
    let processor = Processor::new(inbox(&database).await, handler);
    processor.process(&[message("a", 1)]).await.expect("settled");
    let hostile = "update inbox.dead_letters set topic = $1, code = $1, key = convert_to($1, 'UTF8'), \
                       payload = convert_to($1, 'UTF8'), headers = jsonb_build_object($1, $1); \
                   ";
    database.superuser().execute(hostile, &[&HOSTILE]).await.expect("as others' records have it");
    let consumer = "update inbox.consumers set name = $1";
    database.superuser().execute(consumer, &[&HOSTILE]).await.expect("renamed");
    let settings = t.relay_of(&database).set("postgres.url", &database.url(Role::Operator));
    let id = number(&database, "select id from inbox.dead_letters").await.to_string();
    for arguments in [
        &["list"][..],
        &["list", "--by", "code"],
        &["show", &id],
        &["list", "--consumer", "typo"],
        &["discard", "--code", "typo", "--yes"],
    ] {
        let output = settings.command(&[&["inbox", "dead-letters"], arguments].concat()).await;
        let seen = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        is_harmless(&arguments.join(" "), &seen);
    }
}
