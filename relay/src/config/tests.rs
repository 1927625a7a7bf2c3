mod broker;
mod routes;
mod shown;

use super::*;

/// The settings that a file, variables and flags amount to.
fn load_from(
    file: &str,
    env: &[(&str, &str)],
    flags: Overrides,
    purpose: Purpose,
) -> Result<Config, Vec<String>> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("outbox-relay.toml");
    std::fs::write(&path, file).expect("writable");
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let sources =
        Sources { file: Some(path.clone()), explicit: true, env: Environment(env), flags };
    let shorten = |text: String| text.replace(&path.display().to_string(), "FILE");
    load(&sources, purpose)
        .map_err(|problems| problems.0.iter().map(|p| shorten(p.to_string())).collect())
}

fn file(text: &str) -> Result<Config, Vec<String>> {
    load_from(text, &[], Overrides::default(), Purpose::Relay)
}

fn least() -> Overrides {
    Overrides::default()
        .with("--postgres", "postgres.url", Some("postgres://relay:hunter2@db/My-App"))
        .with("--kafka", "sink.properties.bootstrap.servers", Some("localhost:9092"))
}

#[test]
fn two_flags_are_enough_and_the_rest_has_the_documented_defaults() {
    let config = load(&Sources { flags: least(), ..Sources::default() }, Purpose::Relay);
    let config = config.expect("complete");
    assert_eq!(config.name, "my_app");
    assert_eq!(config.postgres.slot, "outbox_my_app");
    assert_eq!(config.postgres.publication, "outbox");
    assert_eq!(config.postgres.start, None);
    assert_eq!(config.outbox.tables, ["outbox.events"]);
    assert_eq!(config.sink.delivery, Delivery::ExactlyOnce);
    assert_eq!(config.sink.create_topics, None);
    assert_eq!(config.sink.topic_grace, Duration::from_secs(10));
    assert_eq!(
        config.batch,
        BatchConfig { records_max: 10_000, bytes_max: 16 << 20, record_bytes_max: 16 << 20 }
    );
    assert_eq!(config.retention.keep_dead_letters, Some(Duration::from_hours(30 * 24)));
    assert_eq!(config.leader.timeout, Duration::from_secs(10));
    assert_eq!(config.admin.listen.as_deref(), Some("127.0.0.1:9464"));
    assert_eq!(config.log, LogConfig { format: LogFormat::Text, level: "info".into() });
}

#[test]
fn every_key_can_be_written_in_the_file() {
    let config = file(
        r#"
        name = "orders"
        [postgres]
        url = "host=db dbname=app"
        slot = "s"
        publication = "P"
        start = "all"
        [outbox]
        tables = ["public.outboxevent"]
        preset = "debezium"
        topic = "events.{aggregatetype}"
        headers = "cloudevents"
        header_columns = { tenant_id = "tenant" }
        former_columns = { body = "payload" }
        [outbox.columns]
        key = "aggregateid"
        type = "type"
        id = "id"
        payload = "payload"
        created_at = false
        topic = false
        headers = false
        partition = false
        [sink]
        kind = "kafka"
        delivery = "at-least-once"
        create_topics = { partitions = 6, replication_factor = 3 }
        topic_grace = "3s"
        reserved_topics = ["audit-*"]
        [sink.properties]
        bootstrap.servers = "a:1,b:2"
        "linger.ms" = 5
        "enable.metrics.push" = false
        [batch]
        records_max = 7
        bytes_max = "1MB"
        record_bytes_max = 65536
        [leader]
        timeout = "1m"
        [admin]
        listen = "off"
        hosts = ["relay.internal"]
        [log]
        format = "json"
        level = "debug"
        "#,
    )
    .expect("all of it fits");
    assert_eq!(config.outbox.columns.key, Column::Named("aggregateid".into()));
    assert_eq!(config.outbox.columns.created_at, Column::Absent);
    assert_eq!(config.outbox.header_columns.get("tenant_id").map(String::as_str), Some("tenant"));
    assert_eq!(config.outbox.former_columns.get("body").map(String::as_str), Some("payload"));
    assert_eq!(
        config.sink.create_topics,
        Some(CreateTopics { partitions: 6, replication_factor: 3 })
    );
    let properties: Vec<_> = config.sink.properties.iter().collect();
    assert_eq!(
        properties,
        [("bootstrap.servers", "a:1,b:2"), ("enable.metrics.push", "false"), ("linger.ms", "5")]
    );
    assert_eq!((config.batch.bytes_max, config.batch.record_bytes_max), (1_000_000, 65_536));
    assert_eq!(config.admin, AdminConfig { listen: None, hosts: vec!["relay.internal".into()] });
}

#[test]
fn the_environment_wins_over_the_file_and_a_flag_over_both() {
    let config = load_from(
        "name = \"file\"\n[batch]\nrecords_max = 1\n[sink.properties]\nbootstrap.servers = \"f:1\"\n",
        &[
            ("OUTBOX_RELAY__NAME", "env"),
            ("OUTBOX_RELAY__BATCH__RECORDS_MAX", "2"),
            ("OUTBOX_RELAY__BATCH__BYTES_MAX", "2 MiB"),
            ("OUTBOX_RELAY__OUTBOX__TABLES", "a.b, c.d"),
            ("OUTBOX_RELAY__OUTBOX__COLUMNS__PARTITION", "false"),
            ("OUTBOX_RELAY__SINK__PROPERTIES__BOOTSTRAP_SERVERS", "e:1"),
            ("OUTBOX_RELAY__SINK__PROPERTIES__SSL_KEY_PASSWORD", "pw"),
            ("RUST_LOG", "debug"),
            ("OTHER", "x"),
        ],
        least().with("--name", "name", Some("flag")),
        Purpose::Relay,
    )
    .expect("it fits together");
    assert_eq!(config.name, "flag");
    assert_eq!(config.origin("name"), Origin::Flag("--name".into()));
    assert_eq!(config.batch.records_max, 2);
    assert_eq!(config.batch.record_bytes_max, 2 << 20, "the default follows bytes_max down");
    assert_eq!(config.outbox.tables.len(), 2);
    assert_eq!(config.outbox.columns.partition, Column::Absent);
    assert_eq!(config.sink.properties.get("bootstrap.servers"), Some("localhost:9092"));
    assert_eq!(config.sink.properties.get("ssl.key.password"), Some("pw"));
    assert_eq!(config.log.level, "debug");
    assert_eq!(config.origin("log.level"), Origin::Env("RUST_LOG".into()));
}

#[test]
fn all_problems_are_reported_at_once_each_with_its_key_origin_and_remedy() {
    let problems = load_from(
        r#"
        nmae = "orders"
        admin = "here"
        [postgres]
        url = "mysql://root:hunter2@db"
        start = "yesterday"
        [outbox]
        tables = ["events", "a.b", "a.b"]
        preset = "debezium"
        headers = 3
        header_columns = { tenant = "outbox-tenant" }
        [sink]
        delivery = "exactly_once"
        bytes_max = "1 MiB"
        linger = 5
        create_topics = { partitions = 0 }
        [batch]
        records_max = "10000"
        bytes_max = "1 MiB"
        record_bytes_max = "2 MiB"
        [leader]
        timeout = 10
        "#,
        &[("OUTBOX_RELAY__BATCH__RECORD_BYTE_MAX", "1"), ("OUTBOX_RELAY__LOG__FORMAT", "yaml")],
        Overrides::default().with("--name", "name", Some("Orders!")),
        Purpose::Relay,
    )
    .expect_err("nothing fits");
    let expected = [
        "admin (FILE): must be a table; write [admin] and its settings below it",
        "nmae (FILE): there is no such setting; did you mean name?",
        "sink.bytes_max (FILE): there is no such setting; did you mean batch.bytes_max?",
        "sink.linger (FILE): there is no such setting; properties of librdkafka go under [sink.properties]",
        "batch.record_byte_max (OUTBOX_RELAY__BATCH__RECORD_BYTE_MAX): there is no such setting; did you mean OUTBOX_RELAY__BATCH__RECORD_BYTES_MAX (batch.record_bytes_max)?",
        r#"postgres.start (FILE): "yesterday" is not valid; write "now" or "all""#,
        r#"outbox.headers (FILE): 3 is not valid; write "outbox" or "cloudevents""#,
        r#"sink.delivery (FILE): "exactly_once" is not valid; write "exactly-once" or "at-least-once""#,
        r#"batch.records_max (FILE): "10000" is not valid; write a whole number, not negative"#,
        r#"leader.timeout (FILE): 10 is not valid; write a duration with its unit, such as "10s" or "500ms""#,
        r#"log.format (OUTBOX_RELAY__LOG__FORMAT): "yaml" is not valid; write "text" or "json""#,
        "postgres.url (FILE): is not a connection string; write postgres://user@host/database or host=… dbname=…",
        r#"name (--name): "Orders!" is not valid; use 1 to 56 of a-z, 0-9 and _: a slot's name is made of it"#,
        r#"outbox.tables (FILE): "events" is not a table with its schema; write schema.table"#,
        "outbox.tables (FILE): a.b is there twice; remove one",
        r#"outbox.header_columns.tenant (FILE): "outbox-tenant" can't be a header's name; use a name that does not begin with outbox-"#,
        "sink.create_topics.partitions (FILE): 0 is out of range; use 1 to 100000",
        "sink.create_topics.replication_factor (FILE): is not set; write create_topics = { partitions = 6, replication_factor = 3 }",
        "sink.properties.bootstrap.servers: is not set; set it, or give --kafka host:9092",
        "batch.record_bytes_max (FILE): 2 MiB is more than batch.bytes_max, 1 MiB; lower it, or raise batch.bytes_max",
    ];
    assert_eq!(problems, expected);
}

#[test]
fn single_mistakes_are_named_once() {
    let base =
        "[sink.properties]\nbootstrap.servers = \"a:1\"\n[postgres]\nurl = \"postgres://h/app\"\n";
    let cases: [(&str, &[&str]); 9] = [
        (
            "[admin]\nlisten = \"9464\"",
            &[
                r#"admin.listen (FILE): "9464" is not an address; write host:port, such as 127.0.0.1:9464, or off"#,
            ],
        ),
        (
            "slot = \"Slot\"",
            &[
                r#"postgres.slot (FILE): "Slot" is not a slot's name; use 1 to 63 of a-z, 0-9 and _"#,
            ],
        ),
        (
            "url_file = \"/nowhere\"",
            &["postgres.url_file (FILE): contradicts postgres.url; give one of the two"],
        ),
        (
            "[sink]\nkind = \"rabbitmq\"\n[sink.rabbitmq]\nurl = \"amqp://h\"\nurl_file = \"/nowhere\"",
            &[
                "sink.properties.bootstrap.servers (FILE): is for sink.kind = \"kafka\" only; remove it, or set sink.kind",
                "sink.rabbitmq.url_file (FILE): contradicts sink.rabbitmq.url; give one of the two",
            ],
        ),
        (
            "[outbox]\npreset = \"debezium\"",
            &[
                "outbox.tables: is not set, and outbox.preset says that the table is not our own; name it, such as tables = [\"public.outboxevent\"]",
            ],
        ),
        (
            "[sink]\ncreate_topics = true",
            &[
                "sink.create_topics (FILE): true does not say how many partitions and replicas; write create_topics = { partitions = 6, replication_factor = 3 }",
            ],
        ),
        (
            "[bacth]\nrecords_max = 1\nbytes_max = 1",
            &["bacth (FILE): there is no such setting; did you mean batch?"],
        ),
        (
            "[batch.records_max]\na = 1",
            &["batch.records_max (FILE): is a table; write number, 1 to 1000000"],
        ),
        (
            "[log]\nlevel = \"inof\"",
            &[
                "log.level (FILE): \"inof\" is not a level; write error, warn, info, debug, trace, or a filter such as info,outbox_relay=debug",
            ],
        ),
    ];
    for (extra, expected) in cases {
        assert_eq!(file(&format!("{base}{extra}\n")).expect_err(extra), expected);
    }
    assert_eq!(
        file("").expect_err("nothing is set"),
        [
            "postgres.url: is not set; set it, or postgres.url_file, or give --postgres postgres://user@host/database",
            "sink.properties.bootstrap.servers: is not set; set it, or give --kafka host:9092",
        ]
    );
}

#[test]
fn what_a_command_does_not_need_may_be_missing() {
    let none = Overrides::default;
    assert!(load_from("", &[], none(), Purpose::Admin).is_ok());
    let url = [("OUTBOX_RELAY__POSTGRES__URL", "postgres://h/app")];
    assert!(load_from("", &url, none(), Purpose::Database).is_ok());
    assert!(load_from("", &[], none(), Purpose::Database).is_err());
    assert!(load_from("", &url, none(), Purpose::Relay).is_err());
}

#[test]
fn a_file_that_was_named_must_be_there_and_the_default_one_need_not() {
    let at = |explicit| Sources {
        file: Some("/nowhere/outbox-relay.toml".into()),
        explicit,
        flags: least(),
        ..Sources::default()
    };
    assert!(load(&at(false), Purpose::Relay).is_ok());
    let problems = load(&at(true), Purpose::Relay).expect_err("it is not there");
    assert!(
        problems
            .to_string()
            .contains("/nowhere/outbox-relay.toml: the settings file can't be read")
    );
}

#[test]
fn what_modules_find_is_reported_with_the_rest_and_never_twice() {
    let finding = |key: &str| Finding {
        key: key.into(),
        what: "is odd".into(),
        remedy: "make it even".into(),
    };
    let sources =
        Sources { flags: least().with("--name", "name", Some("A")), ..Sources::default() };
    let found = load_relays(&sources, Purpose::Relay, |_| {
        vec![finding("name"), finding("sink.properties.bootstrap.servers")]
    });
    let problems = found.expect_err("two of them").0;
    assert_eq!(
        problems.iter().map(|p| p.key.as_str()).collect::<Vec<_>>(),
        ["name", "sink.properties.bootstrap.servers"]
    );
    assert_eq!(
        problems.iter().map(ToString::to_string).next_back().as_deref(),
        Some("sink.properties.bootstrap.servers (--kafka): is odd; make it even")
    );
}

#[test]
fn a_flag_wins_over_the_files_url_file() {
    let config = load_from("[postgres]\nurl_file = \"/nowhere\"\n", &[], least(), Purpose::Relay);
    assert_eq!(config.expect("the file is not read").name, "my_app");
}

#[test]
fn a_variable_gives_a_table_as_a_file_does_and_a_refusal_asks_for_what_is_taken() {
    const VARIABLE: &str = "OUTBOX_RELAY__SINK__CREATE_TOPICS";
    let load = |value: &str| load_from("", &[(VARIABLE, value)], least(), Purpose::Relay);
    let made = Some(CreateTopics { partitions: 6, replication_factor: 3 });
    let whole = load("{ partitions = 6, replication_factor = 3 }").expect("a table");
    assert_eq!(whole.sink.create_topics, made);
    assert_eq!(whole.origin("sink.create_topics.partitions"), Origin::Env(VARIABLE.into()));
    assert_eq!(load("false").expect("a flag").sink.create_topics, None);
    for refused in
        ["true", "yes", "6", "{ partitions = 6", "{ partitions = 6 }", "{ partition = 6 }"]
    {
        let problems = load(refused).expect_err(refused);
        assert!(!problems.is_empty());
        for problem in problems {
            let taken = problem.split_once("write ").map(|(_, remedy)| remedy);
            if let Some(remedy) = taken {
                let value = remedy.find('{').map(|at| &remedy[at..]).expect("a table to copy");
                assert_eq!(load(value).expect(value).sink.create_topics, made, "{problem}");
            } else {
                assert!(problem.contains("did you mean"), "{problem}");
            }
        }
    }
}

#[test]
fn the_admin_address_is_reached_through_loopback() {
    for (listen, reach) in [
        ("0.0.0.0:9464", "127.0.0.1:9464"),
        ("[::]:9464", "[::1]:9464"),
        ("10.0.0.7:1", "10.0.0.7:1"),
        ("localhost:9464", "localhost:9464"),
    ] {
        let admin = AdminConfig { listen: Some(listen.into()), hosts: Vec::new() };
        assert_eq!(admin.reach().as_deref(), Some(reach));
    }
}

/// Every key has its row in the docs, with type, default, variable and meaning as in the code.
#[test]
fn the_docs_list_exactly_the_keys_there_are() {
    let docs = include_str!("../../../docs/CONFIG.md");
    let rows: Vec<&str> = docs.lines().filter(|line| line.starts_with("| `")).collect();
    let expected: Vec<String> = keys::KEYS.iter().map(keys::Key::docs_row).collect();
    assert_eq!(rows, expected, "write the left side as the right side says");
}
