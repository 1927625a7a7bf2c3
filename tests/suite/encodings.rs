//! Parking in databases whose encoding lacks what an event holds.

use outbox_harness::{
    Harness,
    database::{Database, Role},
    relay::Settings,
    wait,
};
use outbox_migrations::{Set, apply};
use serde_json::Value;

/// A table as ours, but with headers as they were written: a `jsonb` refuses what the encoding lacks.
const TABLE: &str = "
    create table public.own (like outbox.events including defaults);
    alter table public.own alter headers drop default, alter headers type json;
    alter publication outbox add table public.own;
    grant select on public.own to public;
";

async fn commands(settings: &Settings, arguments: &[&str]) -> Value {
    let output = settings.command(&[&["dead-letters"], arguments, &["--json"]].concat()).await;
    let text = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("{arguments:?}: {text}{error}"))
}

#[tokio::test]
async fn whatever_a_refused_event_holds_is_parked_and_released_exactly_in_any_server_encoding() {
    let t = Harness::start().await;
    for encoding in ["LATIN1", "WIN1252", "EUC_JP", "SQL_ASCII"] {
        let options = format!("encoding '{encoding}' locale 'C'");
        let database = Database::create_empty_with(&options).await;
        let mut owner = database.connect(Role::Owner).await;
        for set in [Set::Outbox, Set::Inbox] {
            apply(&mut owner, set).await.expect("migrated");
        }
        database.grant().await;
        database.superuser().batch_execute(TABLE).await.expect("a table");
        let topic = t.topic(&encoding.to_lowercase()).create(1).await;
        let settings = t.relay_of(&database).set_toml("outbox.tables", "[\"public.own\"]");
        let mut relay = settings.start().await;
        let insert = format!(
            "insert into public.own (topic, key, partition, headers) values \
                 ('{}', 'k', 9, '{{\"sign\": \"\\u20ac \\u3042 \\ud83d\\ude00\", \"\\u20ac\": \"x\"}}')",
            topic.name()
        );
        database.superuser().batch_execute(&insert).await.expect("inserted");
        let operator = t.relay_of(&database).set("postgres.url", &database.url(Role::Operator));
        let entries = wait::until("it is parked", wait::PATIENCE, || async {
            let found = "select count(*) from outbox.dead_letters";
            let row =
                database.superuser().query_one(found, &[]).await.map_err(|e| e.to_string())?;
            match row.get::<_, i64>(0) {
                1 => Ok(commands(&operator, &["list"]).await),
                found => Err(format!("{found} are")),
            }
        })
        .await
        .expect("it can be");
        let id = entries[0]["id"].to_string();
        let shown = commands(&operator, &["show", &id]).await;
        let headers = shown["headers"].to_string();
        assert!(headers.contains("[\"sign\",\"\u{20ac} \u{3042} \u{1f600}\"]"), "{headers}");
        commands(&operator, &["edit", &id, "--no-partition", "--type", "gr\u{fc}\u{20ac}"]).await;
        commands(&operator, &["release", "--all"]).await;
        let record = wait::until("it is delivered", wait::PATIENCE, || async {
            topic.records().await.pop().ok_or_else(|| "nothing".to_owned())
        });
        let record = record.await.expect("a record");
        assert_eq!(record.header("sign"), Some("\u{20ac} \u{3042} \u{1f600}"), "{encoding}");
        assert_eq!(record.header("\u{20ac}"), Some("x"), "{encoding}");
        assert_eq!(record.header("outbox-type"), Some("gr\u{fc}\u{20ac}"), "{encoding}");
        assert!(relay.sigterm().await.success());
    }
}
