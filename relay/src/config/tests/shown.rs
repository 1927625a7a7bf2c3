//! What of the settings is shown, and what never is.

use std::collections::BTreeSet;

use super::*;

#[test]
fn secrets_in_files_of_their_own_are_read_and_never_shown() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (url, properties) = (dir.path().join("url"), dir.path().join("kafka.properties"));
    std::fs::write(&url, "postgres://relay:hunter2@db/app\n").expect("writable");
    std::fs::write(&properties, "sasl.password=hunter3\nbootstrap.servers=k:1\n")
        .expect("writable");
    let text = format!(
        "[postgres]\nurl_file = {url:?}\n[sink]\nproperties_file = {properties:?}\n[sink.properties]\n\"ssl.key.password\" = \"hunter4\"\n"
    );
    let config = file(&text).expect("both are there");
    assert_eq!(config.postgres.url.expose(), "postgres://relay:hunter2@db/app");
    assert_eq!(config.sink.properties.get("sasl.password"), Some("hunter3"));
    for shown in [format!("{config:?}"), format!("{config:#?}"), config.print()] {
        assert!(!shown.contains("hunter"), "{shown}");
        assert!(shown.contains("***"));
    }
    let mistaken = file("[postgres]\nurl_file = \"postgres://u:hunter2@db/app\"\n");
    assert!(!mistaken.expect_err("not a file").join("\n").contains("hunter"));
    let broken = file("[postgres]\nurl = \"postgres://u:hunter2@db/app\n").expect_err("no end");
    let expected = "FILE: TOML parse error at line 2, column 35: invalid basic string, expected `\"`; correct the TOML there; the settings in it were not read";
    assert_eq!(broken, [expected], "and nothing is said to be missing");
    let sources = Sources { flags: least(), ..Sources::default() };
    assert!(!format!("{sources:?}").contains("hunter"));
}

#[test]
fn a_table_of_topics_to_create_prints_with_the_origins_of_its_parts() {
    let shown = |text: &str, variables: &[(&str, &str)]| {
        let config = load_from(text, variables, least(), Purpose::Relay).expect("complete");
        let printed = config.print();
        let line = printed.lines().find(|line| line.starts_with("create_topics")).expect("a line");
        line.rsplit_once(" # ").expect("an origin").1.to_owned()
    };
    const WHOLE: &str = "OUTBOX_RELAY__SINK__CREATE_TOPICS";
    const PARTITIONS: &str = "OUTBOX_RELAY__SINK__CREATE_TOPICS__PARTITIONS";
    let table = "{ partitions = 6, replication_factor = 1 }";
    let file = format!("[sink]\ncreate_topics = {table}\n");
    assert_eq!(shown("", &[]), "default");
    assert_eq!(shown("", &[(WHOLE, table)]), WHOLE);
    assert!(shown(&file, &[]).ends_with(".toml"));
    assert_eq!(shown(&file, &[(WHOLE, "false")]), WHOLE);
    let both = shown(&file, &[(PARTITIONS, "3")]);
    assert!(both.starts_with(&format!("{PARTITIONS}, ")) && both.ends_with(".toml"), "{both}");
}

#[test]
fn effective_settings_print_as_toml_with_their_origins() {
    let sources = Sources { flags: least(), ..Sources::default() };
    let printed = load(&sources, Purpose::Relay).expect("complete").print();
    let first = [
        format!("{:<50} # default", "name = \"my_app\""),
        String::new(),
        "[postgres]".to_owned(),
        format!("{:<50} # --postgres", "url = \"postgres://relay:***@db/My-App\""),
    ];
    assert_eq!(printed.lines().take(4).collect::<Vec<_>>(), first);
    for sink in [
        "[sink]\nkind = \"file\"\n[sink.file]\npath = \"/tmp/x\"\n",
        "[sink]\nkind = \"nats\"\n[sink.nats]\nurl = \"nats://n:4222\"\nstream = \"S\"\n",
        "[sink]\nkind = \"rabbitmq\"\n[sink.rabbitmq]\nurl = \"amqp://r:5672\"\n",
        "[sink]\nkind = \"sqs\"\n[sink.sqs]\nregion = \"eu-west-1\"\n",
        "[sink]\nkind = \"sns\"\n[sink.sns]\ntopic = \"arn:aws:sns:eu-west-1:1:{topic}.fifo\"\n",
        "[sink]\nkind = \"pulsar\"\n[sink.pulsar]\nurl = \"pulsar://p:6650\"\n",
    ] {
        let url = "[postgres]\nurl = \"postgres://relay@db/app\"\n";
        let printed = file(&format!("{url}{sink}")).expect("complete").print();
        for kafkas in ["create_topics", "created_topics_max"] {
            assert!(!printed.contains(kafkas), "{kafkas} means nothing there: {printed}");
        }
        let tables: Vec<&str> = printed.lines().filter(|line| line.starts_with('[')).collect();
        assert_eq!(tables.len(), tables.iter().collect::<BTreeSet<_>>().len(), "{printed}");
    }
    let again = file(&printed).expect("what is printed can be read");
    assert_eq!(
        (again.batch, again.log),
        (
            load(&sources, Purpose::Relay).expect("complete").batch,
            LogConfig { format: LogFormat::Text, level: "info".into() }
        )
    );
}
