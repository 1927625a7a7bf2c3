//! `[routes.<r>]`: several relays by one file.

use super::*;

fn relays(text: &str, env: &[(&str, &str)], flags: Overrides) -> Result<Vec<Config>, Vec<String>> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("outbox-relay.toml");
    std::fs::write(&path, text).expect("writable");
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let sources =
        Sources { file: Some(path.clone()), explicit: true, env: Environment(env), flags };
    load_relays(&sources, Purpose::Relay, parts::examine).map_err(|problems| {
        let shown = problems.0.iter().map(ToString::to_string);
        shown.map(|text| text.replace(&path.display().to_string(), "FILE")).collect()
    })
}

const TWO: &str = "
    name = \"shop\"
    [postgres]
    url = \"postgres://relay@db/app\"
    [batch]
    records_max = 500
    [sink.properties]
    \"bootstrap.servers\" = \"kafka:9092\"
    [routes.orders]
    topics = [\"orders.*\"]
    required = true
    batch.records_max = 100
    [routes.audit.sink]
    kind = \"file\"
    file.path = \"/tmp/audit\"
";

#[test]
fn a_route_is_a_relay_with_a_name_a_slot_and_a_sink_of_its_own() {
    let found = relays(TWO, &[], Overrides::default()).expect("two relays");
    let [audit, orders] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!([&audit.name, &orders.name], ["shop_audit", "shop_orders"]);
    let slots = [&audit.postgres.slot, &orders.postgres.slot];
    assert_eq!(slots, ["outbox_shop_audit", "outbox_shop_orders"]);
    assert_eq!([audit.sink.kind, orders.sink.kind], [Kind::File, Kind::Kafka]);
    assert_eq!([audit.batch.records_max, orders.batch.records_max], [500, 100]);
    assert_eq!(audit.sink.properties.iter().count(), 0, "the other's sink is not its own");
    assert_eq!(audit.postgres.url.expose(), orders.postgres.url.expose());
    let route = |config: &Config| config.route.clone().expect("it is one");
    let [audit, orders] = [route(audit), route(orders)];
    assert_eq!(orders.topics.as_deref(), Some(&["orders.*".to_owned()][..]));
    assert_eq!(
        (orders.elsewhere, orders.required, orders.beside),
        (None, true, vec!["shop_audit".into()])
    );
    assert_eq!(
        (audit.topics, audit.required, audit.beside),
        (None, false, vec!["shop_orders".into()])
    );
}

#[test]
fn variables_and_flags_reach_routes_and_what_is_above_them() {
    let env = [
        ("OUTBOX_RELAY__ROUTES__ORDERS__SINK__PROPERTIES__LINGER_MS", "7"),
        ("OUTBOX_RELAY__ROUTES__ORDERS__NAME", "shop"),
        ("OUTBOX_RELAY__ROUTES__AUDIT__TOPICS", "a,b"),
    ];
    let flags = Overrides::default().with("--name", "name", Some("store"));
    let found = relays(TWO, &env, flags).expect("two relays");
    let [audit, orders] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(
        [&audit.name, &orders.name],
        ["store_audit", "shop"],
        "a route may have a name of its own"
    );
    assert!(orders.sink.properties.iter().any(|pair| pair == ("linger.ms", "7")));
    assert_eq!(audit.route.as_ref().and_then(|it| it.topics.clone()).map(|it| it.len()), Some(2));
    let elsewhere = |at: &Config| at.route.as_ref().and_then(|route| route.elsewhere.clone());
    assert_eq!(elsewhere(orders), Some(vec!["a".to_owned(), "b".to_owned()]));
}

#[test]
fn what_is_wrong_is_told_where_it_stands_and_what_is_above_the_routes_once() {
    let cases: [(&str, &[&str]); 6] = [
        (
            "[sink]\ntopic_grace = \"soon\"\n[routes.a]\n[routes.a.batch]\nrecords_max = 0\n[routes.b]\ntopics = []",
            &[
                "routes.b.topics (FILE): takes no topic",
                "sink.topic_grace (FILE)",
                "sink.properties.bootstrap.servers: is not set",
                "routes.a.batch.records_max (FILE): 0 is out of range",
            ],
        ),
        (
            "[routes.a]\nadmin.listen = \"x:1\"\n[routes.b.postgres]\nurl = \"postgres://x@y/z\"\n[sink]\nkind = \"stdout\"",
            &[
                "routes.a.admin (FILE): there is no such setting; it is the same for all routes: write admin outside",
                "routes.b.postgres.url (FILE): there is no",
            ],
        ),
        (
            "[sink]\nkind = \"stdout\"\n[postgres]\nslot = \"s\"\n[routes.a.batch]\nrecords_max = 7\n[routes.b]\nname = \"x\"",
            &["routes.b.postgres.slot: is \"s\", as that of route a is"],
        ),
        ("[routes.A]\nsink.kind = \"stdout\"", &["routes.A: \"A\" is not valid as a route's name"]),
        (
            "[sink]\nkind = \"file\"\nfile.path = \"/x\"\n[routes.a]\nrequired = true\n[routes.b]\nrequired = true",
            &["routes.b.sink.file.path: is the file of route a"],
        ),
        (
            "[routes.a.sink]\nkind = \"nats\"",
            &["routes.a.sink.nats.url: is not set", "routes.a.sink.nats.stream: is not set"],
        ),
    ];
    for (text, expected) in cases {
        let text = match text.contains("[postgres]") {
            true => text.replace("[postgres]", "[postgres]\nurl = \"postgres://relay@db/app\""),
            false => format!("[postgres]\nurl = \"postgres://relay@db/app\"\n{text}"),
        };
        let found = relays(&text, &[], Overrides::default()).expect_err("it is wrong");
        assert_eq!(found.len(), expected.len(), "{text}: {found:#?}");
        for words in expected {
            assert!(found.iter().any(|it| it.starts_with(words)), "{words} is not in {found:#?}");
        }
    }
}

#[test]
fn what_is_printed_is_the_same_when_it_is_read() {
    let found = relays(TWO, &[], Overrides::default()).expect("two relays");
    let printed = print(&found);
    for line in
        ["[routes.orders]", "[routes.audit.sink]", "[routes.orders.batch]", "required = true"]
    {
        assert!(printed.lines().any(|it| it.starts_with(line)), "{line} is not in:\n{printed}");
    }
    assert_eq!(printed.matches("[postgres]").count(), 1, "{printed}");
    let said = |line: &str| printed.lines().any(|it| it.starts_with(line) && it.ends_with("toml"));
    assert!(said("topics = [\"orders.*\"]"), "{printed}");
    let again = relays(&printed, &[], Overrides::default()).expect("it is read");
    let without_origins = |text: &str| {
        let lines = text.lines().map(|line| line.split(" # ").next().unwrap_or(line).trim_end());
        lines.collect::<Vec<_>>().join("\n")
    };
    assert_eq!(without_origins(&print(&again)), without_origins(&printed));
}

#[test]
fn commands_in_texts_name_the_route() {
    let found = relays(TWO, &[], Overrides::default()).expect("two relays");
    let route = found.first().and_then(|it| it.route.as_ref()).expect("a route");
    let text = "run `outbox-relay resume --at slot`, or `outbox-relay dead-letters release --all`; `outbox-relay migrate`";
    assert_eq!(
        route.in_commands(&route.in_commands(text)),
        route.in_commands(text),
        "once is enough"
    );
    assert_eq!(
        route.in_commands("the same `resume --at slot`"),
        "the same `resume --route audit --at slot`"
    );
    assert_eq!(
        route.in_commands(text),
        "run `outbox-relay resume --route audit --at slot`, or `outbox-relay dead-letters --route audit release --all`; `outbox-relay migrate`"
    );
}
