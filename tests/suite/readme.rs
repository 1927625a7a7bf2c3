//! README.md from nothing to an effect in the consumer's table: its commands, SQL and Rust as they
//! stand there. Only the addresses and the programs' places are this machine's.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use outbox_harness::{
    Harness,
    database::{Database, Role},
    kafka::Kafka,
    relay, wait,
};
use tokio::process::Child;

use crate::checks::check;

const README: &str = include_str!("../../README.md");
const CONSUMER: &str = include_str!("../../docs/CONSUMER.md");
const UPGRADING: &str = include_str!("../../docs/UPGRADING.md");
const EXISTING: &str = include_str!("../../docs/EXISTING-TABLE.md");

/// The blocks of a section, in order: language and text.
fn blocks(section: &str) -> Vec<(&'static str, &'static str)> {
    blocks_in(README, section)
}

fn blocks_in(page: &'static str, section: &str) -> Vec<(&'static str, &'static str)> {
    let text = page.split("\n## ").find(|text| text.starts_with(section)).expect("the section");
    let mut blocks = text.split("```").skip(1).step_by(2);
    blocks.by_ref().map(|block| block.split_once('\n').expect("a language")).collect()
}

/// Of one language, in order.
fn of(language: &str, section: &str) -> Vec<&'static str> {
    let blocks = blocks(section).into_iter();
    blocks.filter(|(found, _)| *found == language).map(|(_, text)| text).collect()
}

fn program(name: &str) -> PathBuf {
    relay::binary().expect("the programs are built").with_file_name(name)
}

struct Machine {
    url: String,
    brokers: String,
    dir: tempfile::TempDir,
}

impl Machine {
    /// The script with this machine's names; building is done already.
    fn shell(&self, script: &str) -> Command {
        let relay = program("relay-under-test").display().to_string();
        let consumer = program("readme-consumer").display().to_string();
        let script = script
            .replace("cargo build --release -p outbox-relay\n", "")
            .replace(
                "cargo run --release -p outbox-idempotency --features kafka --example consumer",
                &format!("exec {consumer}"),
            )
            .replace("target/release/outbox-relay run", &format!("exec {relay} run"))
            .replace("target/release/outbox-relay", &relay)
            .replace("postgres://postgres@localhost/app", &self.url)
            .replace("localhost:9092", &self.brokers);
        assert!(!script.contains("cargo"), "{script}");
        let mut shell = Command::new("/bin/sh");
        shell.arg("-ec").arg(script).current_dir(self.dir.path());
        shell.env("OUTBOX_RELAY__ADMIN__LISTEN", "off").stdin(Stdio::null());
        shell
    }

    fn start(&self, script: &str, log: &str) -> Child {
        let file = std::fs::File::create(self.dir.path().join(log)).expect("a log");
        let mut shell = tokio::process::Command::from(self.shell(script));
        shell.stdout(file.try_clone().expect("a handle")).stderr(file).kill_on_drop(true);
        shell.spawn().expect("it starts")
    }

    fn log(&self, log: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(log)).unwrap_or_default()
    }
}

#[tokio::test]
async fn readme_leads_from_nothing_to_an_effect_in_the_consumers_table() {
    let (database, (kafka, _broker)) =
        tokio::join!(Database::create_empty(), Kafka::start_private(&[]));
    let dir = tempfile::tempdir().expect("a directory");
    let (url, brokers) = (database.superuser_url(), kafka.brokers().to_owned());
    let machine = Machine { url, brokers, dir };
    let commands = of("sh", "Try it");
    let mut relay = machine.start(commands.first().expect("commands"), "relay.log");
    wait::until("the relay streams", wait::PATIENCE, || async {
        let log = machine.log("relay.log");
        if log.contains("streaming from") { Ok(()) } else { Err(log) }
    })
    .await
    .expect("migrate, check and run go through");
    assert!(machine.log("relay.log").contains("0 problems"), "{}", machine.log("relay.log"));
    for sql in of("sql", "Try it") {
        database.superuser().batch_execute(sql).await.expect(sql);
    }

    let [migrate, consume] = of("sh", "Consume")[..] else { panic!("two scripts") };
    // The variables of the first section are still set in a reader's shell.
    let exports: Vec<&str> =
        commands.iter().flat_map(|c| c.lines()).filter(|l| l.starts_with("export")).collect();
    let migrated = machine.shell(&format!("{}\n{migrate}", exports.join("\n"))).output();
    let migrated = migrated.expect("it runs");
    assert!(migrated.status.success(), "{migrated:?}");
    for sql in of("sql", "Consume") {
        database.superuser().batch_execute(sql).await.expect(sql);
    }
    let mut consumer = machine.start(consume, "consumer.log");
    wait::until("order 42 is charged", wait::PATIENCE, || async {
        let charges = "select order_id, cents from charges";
        let rows = database.superuser().query(charges, &[]).await?;
        let charged: Vec<(i64, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        anyhow::ensure!(charged == [(42, 1200)], "{charged:?} {}", machine.log("consumer.log"));
        Ok::<_, anyhow::Error>(())
    })
    .await
    .expect("the event takes effect");
    let rust = of("rust", "Consume");
    let example = include_str!("../../idempotency/examples/consumer.rs");
    let code = example.split_once("\n\n").expect("code below its comment").1;
    assert_eq!(rust, [code], "README shows what the example is");
    let pid = consumer.id().expect("it runs").try_into().expect("a pid");
    // SAFETY: no memory is passed; the child is not reaped yet, so the pid is its own.
    unsafe { libc::kill(pid, libc::SIGTERM) };
    let ended = consumer.wait().await.expect("it ends");
    assert!(ended.success(), "it leaves its group, as a container's is to: {ended}");
    relay.kill().await.expect("it is ended");
    remove(&database).await;
}

/// Types what UPGRADING.md has for the relay `app`, and looks whether anything is left.
async fn remove(database: &Database) {
    let client = database.superuser();
    let slots = "select slot_name::text, active from pg_replication_slots \
                 where database = current_database()";
    let slot = wait::until("the slot is free", wait::PATIENCE, || async {
        let row = client.query_one(slots, &[]).await?;
        anyhow::ensure!(!row.get::<_, bool>(1), "it is active");
        Ok::<String, anyhow::Error>(row.get(0))
    });
    let slot = slot.await.expect("the relay has ended");
    for (_, sql) in blocks_in(UPGRADING, "Removing a relay") {
        client.batch_execute(&sql.replace("outbox_app", &slot)).await.expect(sql);
    }
    let left = "select (select count(*) from pg_replication_slots where database = current_database()) \
                + (select count(*) from pg_publication) \
                + (select count(*) from pg_namespace where nspname in ('outbox', 'inbox'))";
    let left: i64 = client.query_one(left, &[]).await.expect("an answer").get(0);
    assert_eq!(left, 0, "slots, publications and schemas that are left");
}

#[tokio::test]
async fn the_consumer_for_other_brokers_is_what_its_page_shows_and_takes_each_message_once() {
    let example = include_str!("../../idempotency/examples/deliveries.rs");
    let shown = blocks_in(CONSUMER, "Other brokers");
    assert_eq!(shown.len(), 2);
    for (language, code) in shown {
        assert!(language == "rust" && example.contains(code), "the example has not: {code}");
    }
    let database = Database::create_empty().await;
    let mut program = tokio::process::Command::new(program("deliveries-consumer"));
    program.env("DATABASE_URL", database.superuser_url()).kill_on_drop(true);
    let ended = tokio::time::timeout(wait::PATIENCE, program.output()).await.expect("it ends");
    let ended = ended.expect("it runs");
    assert!(ended.status.success(), "{ended:?}");
    let rows = database.superuser().query("select order_id from charges order by 1", &[]).await;
    let charged: Vec<i64> = rows.expect("charges").iter().map(|row| row.get(0)).collect();
    assert_eq!(charged, [1, 2, 3], "one of which came twice");
}

#[tokio::test]
async fn the_service_that_does_a_request_once_is_what_its_page_shows() {
    let example = include_str!("../../idempotency/examples/once.rs");
    let shown = blocks_in(CONSUMER, "Identity");
    assert_eq!(shown.iter().map(|(language, _)| *language).collect::<Vec<_>>(), ["sql", "rust"]);
    for (_, code) in shown {
        assert!(example.contains(code.trim_end()), "the example has not: {code}");
    }
    let database = Database::create_empty().await;
    let mut program = tokio::process::Command::new(program("once-service"));
    program.env("DATABASE_URL", database.superuser_url()).kill_on_drop(true);
    let ended = tokio::time::timeout(wait::PATIENCE, program.output()).await.expect("it ends");
    let ended = ended.expect("it runs");
    assert!(ended.status.success(), "{ended:?}");
    let said = String::from_utf8_lossy(&ended.stdout);
    for answer in ["a key: 201", "another key: 201", "a key: 200"] {
        assert_eq!(said.lines().filter(|line| *line == answer).count(), 1, "{said}");
    }
    let rows = database.superuser().query("select order_id from charges order by 1", &[]).await;
    let charged: Vec<i64> = rows.expect("charges").iter().map(|row| row.get(0)).collect();
    assert_eq!(charged, [1, 2], "one of which came twice");
}

#[tokio::test]
async fn the_page_of_existing_tables_leads_to_a_first_record() {
    let t = Harness::start().await;
    let database = Database::create_empty().await;
    let blocks = blocks_in(EXISTING, "#");
    let [(_, table), (_, toml), (_, rights), (_, prepare)] = blocks[..] else {
        panic!("four blocks")
    };
    // An owner of the table who has nothing else: this one can write to the outbox, too.
    let table_owner = database.name_of(Role::Writer);
    let creates = format!("grant create on schema public to {table_owner}");
    database.superuser().batch_execute(&creates).await.expect("granted");
    let app_owner = database.connect(Role::Writer).await;
    app_owner.batch_execute(table).await.expect(table);
    let (mut settings, mut section) = (t.relay_of(&database), "");
    for line in toml.lines() {
        match line.split_once(" = ") {
            // Other servers are here than at the reader's.
            Some(("url" | "\"bootstrap.servers\"", _)) => {}
            Some((key, value)) => settings = settings.set_toml(&format!("{section}.{key}"), value),
            None => section = line.trim_matches(['[', ']']),
        }
    }
    // Topics are everybody's here.
    let name = format!("{}.orders", database.name());
    let topic = t.topic_named(&name).create(1).await;
    let settings = settings.set("outbox.topic", &name);
    let owner = settings.clone().set("postgres.url", &database.url(Role::Owner));
    let migrated = owner.command(&["migrate"]).await;
    assert!(migrated.status.success(), "{migrated:?}");
    database.grant_outbox().await;
    let rights = rights
        .replace("app_owner", &table_owner)
        .replace("database app", &format!("database {}", database.name()));
    database.superuser().batch_execute(&rights).await.expect("as the page has it");
    let prepare = prepare.replace("outbox_relay", database.name_of(Role::Relay).as_str());
    app_owner.batch_execute(&prepare).await.expect("as the page has it");
    let findings = check(&settings).await;
    assert!(findings.iter().all(|finding| finding.verdict != "problem"), "{findings:#?}");
    let _relay = settings.start().await;
    let insert = "insert into orders_events (kind, customer, body) values ('Placed', '7', '{}')";
    app_owner.batch_execute(insert).await.expect("inserted");
    topic.records_with(["1".to_owned()]).await;
}
