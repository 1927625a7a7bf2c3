//! From an existing table to its first record, by obeying what is printed and nothing else.
//!
//! A new user knows which of the table's columns is what, and which role may do what; all else comes
//! from the remedies of `check`, or of `run` where that is typed at once.

use std::collections::BTreeMap;

use outbox_harness::{
    Harness,
    database::{Database, Role},
    relay::Settings,
    wait,
};

use crate::checks::check;

/// A table, and what its owner knows of it.
struct Layout {
    table: &'static str,
    create: &'static str,
    /// Settings that name a thing by its purpose; what is not here, the table has not.
    columns: &'static [(&'static str, &'static str)],
    preset: Option<&'static str>,
    insert: &'static str,
    id: &'static str,
}

const LAYOUTS: [Layout; 4] = [
    Layout {
        table: "public.outboxevent",
        create: "create table public.outboxevent (id uuid primary key, aggregatetype text not null, \
                 aggregateid text not null, type text not null, payload jsonb)",
        columns: &[],
        preset: Some("debezium"),
        insert: "insert into public.outboxevent values \
                 ('406c07f3-26f0-4eea-a50c-109940064b8f', 'TOPIC', '21', 'placed', '{\"a\": 1}')",
        id: "406c07f3-26f0-4eea-a50c-109940064b8f",
    },
    Layout {
        table: "public.mail",
        create: "create table public.mail (no bigint primary key, body text, customer int)",
        columns: &[("id", "no"), ("key", "customer"), ("payload", "body")],
        preset: None,
        insert: "insert into public.mail values (42, 'plain text', 7)",
        id: "42",
    },
    Layout {
        table: "sales.\"Outbox Events\"",
        create: "create schema sales; create table sales.\"Outbox Events\" (\"eventId\" text primary \
                 key, destination text not null, \"Body\" bytea, at timestamptz default now())",
        columns: &[
            ("id", "eventId"),
            ("topic", "destination"),
            ("payload", "Body"),
            ("created_at", "at"),
        ],
        preset: None,
        insert: "insert into sales.\"Outbox Events\" values ('e-1', 'TOPIC', '\\x00ff')",
        id: "e-1",
    },
    Layout {
        table: "public.events",
        create: "create table public.events (id uuid primary key, topic text, key text, type text, \
                 payload json, headers jsonb, partition int, created_at timestamptz)",
        columns: &[],
        preset: None,
        insert: "insert into public.events values ('0198c0de-0000-7000-8000-000000000001', \
                 'TOPIC', 'k', 't', '{}')",
        id: "0198c0de-0000-7000-8000-000000000001",
    },
];

/// Settings as they grow, and the database that they are about.
struct Newcomer<'a> {
    t: &'a Harness,
    database: Database,
    layout: &'a Layout,
    topic: String,
    settings: BTreeMap<String, String>,
}

impl Newcomer<'_> {
    fn settings(&self) -> Settings {
        let named = self.t.relay_of(&self.database);
        let table = serde_json::json!([self.layout.table]).to_string();
        let settings = named.set_toml("outbox.tables", &table);
        self.settings.iter().fold(settings, |settings, (key, value)| settings.set_toml(key, value))
    }

    fn set(&mut self, key: &str, text: &str) {
        self.settings.insert(key.to_owned(), serde_json::Value::from(text).to_string());
    }

    /// Does what a remedy says, its first choice where it leaves one; one step for each that it names
    /// between semicolons.
    async fn obey(&mut self, remedy: &str) {
        let mut obeyed = false;
        for step in remedy.split("; ") {
            obeyed |= self.obey_step(step).await;
        }
        assert!(obeyed, "nobody could obey this: {remedy}");
    }

    async fn obey_step(&mut self, step: &str) -> bool {
        if step.starts_with("or ") || step.starts_with("where ") {
            return false; // Another way.
        }
        if step.contains("`outbox-relay migrate`") {
            return self.migrate().await;
        }
        if let Some(rest) = step.strip_prefix("set outbox.topic to the topic") {
            match self.layout.columns.iter().find(|(purpose, _)| *purpose == "topic") {
                Some((_, column)) if rest.contains("outbox.columns.topic") => {
                    self.set("outbox.columns.topic", column);
                }
                _ => self.set("outbox.topic", &self.topic.clone()),
            }
            return true;
        }
        if let Some(rest) = step.strip_prefix("set outbox.columns.") {
            let (purpose, rest) = rest.split_once(' ').expect("what to set it to");
            let key = format!("outbox.columns.{purpose}");
            match self.layout.columns.iter().find(|(known, _)| *known == purpose) {
                Some((_, column)) => self.set(&key, column),
                None => {
                    assert!(rest.contains("or to false"), "{step}: the table has none");
                    self.settings.insert(key, "false".to_owned());
                }
            }
            return true;
        }
        let Some(sql) = step.split('`').nth(1) else { return false };
        let done = self.database.superuser().batch_execute(sql).await;
        done.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        true
    }

    /// As the owner; a refusal is obeyed too.
    async fn migrate(&mut self) -> bool {
        let owner = self.settings().set("postgres.url", &self.database.url(Role::Owner));
        let output = owner.command(&["migrate"]).await;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            let rename = "alter publication outbox rename to outbox_mapped";
            assert!(text.contains(rename), "migrate refuses without a way on: {text}");
            self.database.superuser().batch_execute(rename).await.expect("the hint is SQL");
            assert!(text.contains("postgres.publication = \"outbox_mapped\""), "{text}");
            self.set("postgres.publication", "outbox_mapped");
            let again = owner.command(&["migrate"]).await;
            assert!(again.status.success(), "{again:?}");
        }
        // docs/ROLES.md, as its text says: after the migration.
        self.database.grant_outbox().await;
        true
    }

    /// Obeys `check` until it finds no problem: in each round all that is said of one thing.
    async fn walk_by_check(&mut self) {
        for _ in 0..10 {
            let findings = check(&self.settings()).await;
            let problems = findings.iter().filter(|finding| finding.verdict == "problem");
            let problems: Vec<_> = problems.collect();
            let Some(first) = problems.first() else { return };
            for finding in problems.iter().filter(|finding| finding.name == first.name) {
                self.obey(&finding.remedy).await;
            }
        }
        panic!("check is never content: {:?}", check(&self.settings()).await);
    }

    /// Obeys what `run` halts with, until it is ready.
    async fn walk_by_run(&mut self) {
        for _ in 0..10 {
            let relay = self.settings().spawn();
            let look = wait::until("it halts or is ready", wait::PATIENCE, || async {
                let status = relay.try_status().await?;
                let phase = status.get("phase").and_then(serde_json::Value::as_str);
                match phase {
                    Some("halted") => {
                        let detail = status.get("detail").and_then(serde_json::Value::as_str);
                        Ok(Some(detail.unwrap_or_default().to_owned()))
                    }
                    Some("streaming") => Ok(None),
                    _ => Err(anyhow::anyhow!("{status}")),
                }
            });
            match look.await.expect("it halts or streams") {
                None => return,
                Some(halt) => {
                    let (_, remedy) = halt.split_once("; ").expect("a remedy");
                    self.obey(remedy).await;
                }
            }
        }
        panic!("the relay halts for ever");
    }

    async fn first_record_arrives(&self) {
        let topic = self.t.topic_named(&self.topic).create(1).await;
        let _relay = self.settings().start().await;
        let insert = self.layout.insert.replace("TOPIC", &self.topic.replace("outbox.event.", ""));
        self.database.superuser().batch_execute(&insert).await.expect("inserted");
        topic.records_with([self.layout.id.to_owned()]).await;
    }
}

async fn newcomer<'a>(t: &'a Harness, layout: &'a Layout) -> Newcomer<'a> {
    let database = Database::create_empty().await;
    let owns = format!("grant create on schema public to {}", database.name_of(Role::Owner));
    database.superuser().batch_execute(&owns).await.expect("granted");
    database.superuser().batch_execute(layout.create).await.expect("the table");
    // The topic goes with the table's own names; Debezium's router puts a prefix before it.
    let prefix = if layout.preset.is_some() { "outbox.event." } else { "" };
    let topic = format!("{prefix}{}.{}", t.database().name(), layout.table.len());
    let mut newcomer = Newcomer { t, database, layout, topic, settings: BTreeMap::new() };
    if let Some(preset) = layout.preset {
        newcomer.set("outbox.preset", preset);
    }
    newcomer
}

#[tokio::test]
async fn an_existing_table_reaches_its_first_record_by_obeying_check() {
    let t = Harness::start().await;
    for layout in &LAYOUTS {
        let mut newcomer = newcomer(&t, layout).await;
        newcomer.walk_by_check().await;
        newcomer.first_record_arrives().await;
    }
}

#[tokio::test]
async fn an_existing_table_reaches_its_first_record_by_obeying_run() {
    let t = Harness::start().await;
    for layout in &LAYOUTS {
        let mut newcomer = newcomer(&t, layout).await;
        newcomer.walk_by_run().await;
        newcomer.first_record_arrives().await;
    }
}

#[tokio::test]
async fn a_publication_that_was_made_by_hand_before_the_migration_is_no_dead_end() {
    let t = Harness::start().await;
    let mut newcomer = newcomer(&t, &LAYOUTS[1]).await;
    let publication = "create publication outbox for table public.mail with (publish = 'insert')";
    newcomer.database.superuser().batch_execute(publication).await.expect("made");
    newcomer.walk_by_check().await;
    newcomer.first_record_arrives().await;
}
