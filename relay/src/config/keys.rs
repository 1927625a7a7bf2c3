//! Every setting there is: the one list that reading, printing and `docs/CONFIG.md` agree with.

/// One setting.
#[derive(Debug)]
pub struct Key {
    /// Full name; a last part `*` stands for any name.
    pub name: &'static str,
    /// What is written there.
    pub takes: &'static str,
    /// What holds when it is not given, as printed in the docs.
    pub default: &'static str,
    /// What it does.
    pub meaning: &'static str,
}

impl Key {
    /// Its row in the table of `docs/CONFIG.md`.
    pub fn docs_row(&self) -> String {
        let Key { name, takes, default, meaning } = self;
        let default = if default.is_empty() { "—" } else { default };
        format!("| `{name}` | {takes} | {default} | `{}` | {meaning} |", env_name(name))
    }
}

const fn key(
    name: &'static str,
    takes: &'static str,
    default: &'static str,
    meaning: &'static str,
) -> Key {
    Key { name, takes, default, meaning }
}

/// In the order of the docs and of `outbox-relay config`.
#[rustfmt::skip]
pub const KEYS: &[Key] = &[
    key("name", "`[a-z0-9_]{1,56}`", "the database's name, made to fit", "The relay's name. The names of slot, transactional id and progress topic are derived from it. It must be unique among the relays of a Kafka cluster. If you change it, the relay counts as a new one, and halts at its first start if another relay has published events of the database."),
    key("postgres.url", "connection string", "", "`postgres://…` or `host=… dbname=…`, with all of libpq's parameters for TLS, several hosts and `target_session_attrs`. Required, unless `url_file` is set."),
    key("postgres.url_file", "path", "", "File that holds the connection string, for a mounted secret; read again for each connection. Not together with `url`."),
    key("postgres.slot", "`[a-z0-9_]{1,63}`", "`outbox_<name>`", "Logical replication slot; made when it is missing."),
    key("postgres.publication", "text", "`outbox`", "Publication to stream. Changing it causes a repair: the relay makes a new slot and publishes from the tables what may be missing."),
    key("postgres.start", "`now` or `all`", "`all` for `outbox.events`, else `now`", "What the relay publishes at its first start, when it makes the slot. `all`: also the rows that are already in the tables. `now`: only rows that are committed from then on; the log says how many rows are left out. Later starts ignore this setting."),
    key("outbox.tables", "list of `schema.table`", "`outbox.events`", "Outbox tables. Required with a preset."),
    key("outbox.preset", "`default` or `debezium`", "`default`", "Defaults for column names and topic: those of `outbox.events`, or those of Debezium's outbox layout."),
    key("outbox.rows_kept", "`true` or `false`", "`false`", "Set it to `true` if no row is ever deleted, truncated or dropped before the relay has published it. If a slot is lost, the relay then publishes what is in the tables without checking that no row was deleted."),
    key("outbox.topic", "template", "the row's topic column; with `debezium` `outbox.event.{aggregatetype}`", "Topic of a row; `{column}` stands for a column's value."),
    key("outbox.headers", "`outbox` or `cloudevents`", "`outbox`", "Names of the record headers: `outbox-*`, or the CloudEvents Kafka binding."),
    key("outbox.columns.id", "column or `false`", "`id`", "Column of the event's id. `false`, here and below, means that the table has no such column."),
    key("outbox.columns.topic", "column or `false`", "`topic`; with `debezium` none", "Column of the topic."),
    key("outbox.columns.key", "column or `false`", "`key`; with `debezium` `aggregateid`", "Column of the partition key."),
    key("outbox.columns.type", "column or `false`", "`type`", "Column of the event's type."),
    key("outbox.columns.payload", "column or `false`", "`payload`", "Column of the payload: `json`, `jsonb`, `text` or `bytea`."),
    key("outbox.columns.headers", "column or `false`", "`headers`; with `debezium` none", "Column of the headers, a flat JSON object of strings."),
    key("outbox.columns.partition", "column or `false`", "`partition`; with `debezium` none", "Column of the explicit partition."),
    key("outbox.columns.created_at", "column or `false`", "`created_at`; with `debezium` none", "Column of the record's timestamp. Without it, the timestamp is the commit time."),
    key("outbox.header_columns.*", "header name", "", "Further columns that become headers: `tenant_id = \"tenant\"` sends column `tenant_id` as header `tenant`."),
    key("outbox.former_columns.*", "column", "", "Former name of a mapped column: with `body = \"payload\"` the relay reads `body` if a row has no `payload`, or null in it. For rows that were written before the column was renamed, and while writers switch to the new name. Remove it after these rows are published."),
    key("sink.kind", "`kafka`, `nats`, `rabbitmq`, `sqs`, `sns`, `pulsar`, `file` or `stdout`", "`kafka`", "Where records go: to Kafka topics; to a stream of NATS JetStream; to exchanges of RabbitMQ; to queues of Amazon SQS or topics of Amazon SNS, if the relay was built with `--features aws`; to topics of Apache Pulsar, if it was built with `--features pulsar`; or, as lines of JSON, to a file or standard output. With all but `kafka` and `nats` the relay's progress is in the table `outbox.progress`."),
    key("sink.delivery", "`exactly-once` or `at-least-once`", "`exactly-once`; with `rabbitmq`, `sqs`, `sns`, `pulsar`, `file` and `stdout` `at-least-once`, which is all that they can", "`exactly-once`: one Kafka transaction for each batch. `at-least-once`: no transactions except one at each start (none with `sink.progress = \"postgres\"`); this gives lower latency, and duplicates after a crash."),
    key("sink.progress", "`broker` or `postgres`", "`broker`; with `rabbitmq`, `sqs`, `sns`, `pulsar`, `file` and `stdout` `postgres`, which is all that they can", "Where the relay keeps its progress. `broker`: in Kafka's progress topic, or in the stream of NATS. `postgres`: in the table `outbox.progress`. With Kafka and `at-least-once`, `postgres` is for brokers without transactions or compacted topics: the relay then needs neither, only idempotent producers. After a change the relay halts at its next start; if it was stopped in an orderly way before, `resume --at slot` leaves out nothing."),
    key("sink.file.path", "path", "", "With `file`: the file to which lines are appended. If it is missing it is created, with mode 0600; an existing file keeps its mode. If another program renames it (log rotation), the next line goes to a new file."),
    key("sink.nats.url", "`nats://host:4222`", "", "With `nats`: the server, or several with commas between; `tls://` for TLS. User and password, or a token, can stand before the host: `nats://relay:secret@nats:4222`. Required with `nats`."),
    key("sink.nats.stream", "name", "", "With `nats`: the stream that takes the records, and the relay's progress. It must exist and allow atomic batches and roll-ups. Required with `nats`."),
    key("sink.nats.subject", "text with `{topic}`", "`{topic}.{partition}`", "With `nats`: the subject of a record. The stream must have it."),
    key("sink.nats.partitions", "number, 1 to 100000", "`1`", "With `nats`: how many partitions a topic has. The partition of a key is the same that Kafka's Java client chooses. With another number keys move to other partitions: their order is kept only for who reads the whole stream."),
    key("sink.nats.progress_subject", "subject", "`outbox-relay-progress.` and the relay's name", "With `nats`: where the relay stores its progress. The stream must have it, and only the relay may publish to it."),
    key("sink.nats.on_broker_loss", "`repair` or `halt`", "`repair`", "With `nats`: what the relay does if the server has lost what it had confirmed, as after a power cut. `repair`: it publishes the lost events again, from the tables, with the header `outbox-repaired`. `halt`: it halts, and says which positions are missing."),
    key("sink.nats.credentials_file", "path", "", "With `nats`: a file with the user's credentials (JWT and nkey), as NATS's tools make it. Read again for each connection."),
    key("sink.nats.nkey_file", "path", "", "With `nats`: a file with an nkey's seed. Read again for each connection."),
    key("sink.nats.ca_file", "path", "", "With `nats`: certificates that are trusted beside the system's, in PEM."),
    key("sink.nats.certificate_file", "path", "", "With `nats`: the relay's own certificate, in PEM."),
    key("sink.nats.key_file", "path", "", "With `nats`: the key of `certificate_file`, in PEM."),
    key("sink.rabbitmq.url", "`amqp://user:password@host:5672/vhost`", "", "With `rabbitmq`: the broker, or several of one cluster with commas between; `amqps://` for TLS. The virtual host `/` is written `%2f`, or left out. Required with `rabbitmq`, unless `url_file` is set."),
    key("sink.rabbitmq.url_file", "path", "", "With `rabbitmq`: a file that holds the address, for a mounted secret; read again for each connection. Not together with `url`."),
    key("sink.rabbitmq.exchange", "text", "`{topic}`", "With `rabbitmq`: the exchange of a record. `{topic}`, `{partition}`, `{key}` and `{type}` stand for what the event has. Empty: the default exchange, where the routing key is a queue's name."),
    key("sink.rabbitmq.routing_key", "text", "`{partition}`", "With `rabbitmq`: the routing key of a record, made in the same way. It or the exchange must have `{topic}`."),
    key("sink.rabbitmq.partitions", "number, 1 to 100000", "`1`", "With `rabbitmq`: how many partitions a topic has. The partition of a key is the same that Kafka's Java client chooses. With another number keys move to other partitions, and their order across the change is not kept."),
    key("sink.rabbitmq.in_flight_per_lane", "`1` or `many`", "`1`", "With `rabbitmq`: how many messages of a key may be unconfirmed. `many` is faster for few keys; but if a queue refuses one for a while (`reject-publish`), later ones of its key may be stored before it."),
    key("sink.rabbitmq.declare", "`true` or `false`", "`false`", "With `rabbitmq`: whether the relay makes a missing exchange: durable and direct, named after the topic, with a quorum queue for each partition (`orders.0`, `orders.1`, …), each with a single active consumer."),
    key("sink.rabbitmq.message_bytes_max", "size, 1 KiB to 512 MiB", "`16 MiB`", "With `rabbitmq`: the size of a payload, at most, as the brokers' `max_message_size` is. A larger event is parked."),
    key("sink.rabbitmq.ca_file", "path", "", "With `rabbitmq`: certificates that are trusted beside the system's, in PEM."),
    key("sink.rabbitmq.certificate_file", "path", "", "With `rabbitmq`: the relay's own certificate, in PEM."),
    key("sink.rabbitmq.key_file", "path", "", "With `rabbitmq`: the key of `certificate_file`, in PEM."),
    key("sink.sqs.queue", "text with `{topic}`", "`{topic}.fifo`", "With `sqs`: the name of a record's queue. One that ends with `.fifo` is a FIFO queue, which keeps the order of each key; another one is a standard queue, which keeps none."),
    key("sink.sqs.account", "number of an account", "", "With `sqs`: who owns the queues, if it is another account than the relay's."),
    key("sink.sqs.region", "region", "", "With `sqs`: such as `eu-west-1`. Without it, the region that the AWS SDK finds (`AWS_REGION`, the profile, the instance)."),
    key("sink.sqs.endpoint", "URL", "", "With `sqs`: where requests go instead of the region's own address, such as a VPC endpoint or an emulator."),
    key("sink.sqs.credentials_file", "path", "", "With `sqs`: a file of profiles, as `~/.aws/credentials` is one. Credentials in the environment come first. Without it, the AWS SDK looks where it always does. Read again when the relay reconnects."),
    key("sink.sqs.ca_file", "path", "", "With `sqs`: certificates that are trusted beside the system's, in PEM."),
    key("sink.sqs.message_bytes_max", "size, 1 KiB to 1 MiB", "`1 MiB`", "With `sqs`: the size of a message, at most: payload and attributes. If the queue's `MaximumMessageSize` is smaller, that counts. A larger event is parked."),
    key("sink.sqs.requests_in_flight", "number, 1 to 256", "`32`", "With `sqs`: requests that are under way at once, each with up to ten messages."),
    key("sink.sns.topic", "ARN with `{topic}`", "", "With `sns`: the ARN of a record's topic, such as `arn:aws:sns:eu-west-1:123456789012:{topic}.fifo`. Names that end with `.fifo` are FIFO topics, as for `sink.sqs.queue`. Required with `sns`."),
    key("sink.sns.region", "region", "the ARN's", "With `sns`: as `sink.sqs.region`."),
    key("sink.sns.endpoint", "URL", "", "With `sns`: as `sink.sqs.endpoint`."),
    key("sink.sns.credentials_file", "path", "", "With `sns`: as `sink.sqs.credentials_file`."),
    key("sink.sns.ca_file", "path", "", "With `sns`: as `sink.sqs.ca_file`."),
    key("sink.sns.message_bytes_max", "size, 1 KiB to 1 MiB", "`1 MiB`", "With `sns`: as `sink.sqs.message_bytes_max`. A topic's `MaximumMessageSize` is 256 KiB unless someone has raised it."),
    key("sink.sns.requests_in_flight", "number, 1 to 256", "`32`", "With `sns`: as `sink.sqs.requests_in_flight`."),
    key("sink.pulsar.url", "`pulsar://host:6650`", "", "With `pulsar`: a broker or proxy of the cluster, or several with commas between; `pulsar+ssl://` for TLS. Required with `pulsar`."),
    key("sink.pulsar.topic", "text with `{topic}`", "`persistent://public/default/{topic}`", "With `pulsar`: the topic of a record, in its tenant and namespace. It must exist: the relay makes none."),
    key("sink.pulsar.exclusive", "`true` or `false`", "`true`", "With `pulsar`: whether the relay is the only producer of its topics. Whoever else produces there is closed when the relay comes, and refused while it is there. A relay that was replaced can then store nothing more. With `false` others may produce there too, and what a replaced relay still had under way may come as copies."),
    key("sink.pulsar.one_broker", "`true` or `false`", "`false`", "With `pulsar`: whether the relay sends everything to the address in `url`, and not to the addresses that brokers give of one another. For a single broker behind a forwarded port."),
    key("sink.pulsar.message_bytes_max", "size, 1 KiB to 512 MiB", "`5 MiB`", "With `pulsar`: the size of a message, at most: payload, key and properties. If the brokers' `maxMessageSize` is smaller, that counts. A larger event is parked."),
    key("sink.pulsar.token_file", "path", "", "With `pulsar`: a file with a token (JWT). Read again for each connection, and when a broker asks for a new one."),
    key("sink.pulsar.ca_file", "path", "", "With `pulsar`: certificates that are trusted beside the system's, in PEM."),
    key("sink.pulsar.certificate_file", "path", "", "With `pulsar`: the relay's own certificate, in PEM. Without a token, it also says who the relay is."),
    key("sink.pulsar.key_file", "path", "", "With `pulsar`: the key of `certificate_file`, in PEM."),
    key("sink.create_topics", "`false` or a table", "`false`", "Whether the relay creates a missing topic. With `false`, events for a missing topic are parked immediately, and released if the topic appears within `sink.topic_grace`."),
    key("sink.create_topics.partitions", "number, 1 or more", "", "Partitions of a topic that the relay creates."),
    key("sink.create_topics.replication_factor", "number, 1 or more", "", "Replicas of a topic that the relay creates."),
    key("sink.created_topics_max", "number, 1 to 1000000", "`1000`", "Topics that one process of the relay creates in a day, if `sink.create_topics` is set. Events for further missing topics are parked. Every topic costs the brokers memory and files, and anyone who may insert an event can name one."),
    key("sink.topic_grace", "duration", "`10s`", "If a missing topic appears within this time after an event for it was parked, the relay releases the event by itself. Other lanes do not wait meanwhile."),
    key("sink.reserved_topics", "list of patterns", "Kafka Streams', Connect's and MirrorMaker's names", "Topics to which the relay never produces, because other programs keep state in them; `*` matches any text. Your list replaces the default `*-changelog`, `*-repartition`, `connect-configs`, `connect-offsets`, `connect-status`, `connect-cluster-configs`, `connect-cluster-offsets`, `connect-cluster-status` and `mm2-*.internal`. Always reserved: `__*`, `outbox-relay-progress-*`, `_schemas*`, `_confluent*` and what the broker calls internal."),
    key("sink.properties_file", "path", "", "File of `key=value` lines with further librdkafka properties, for a mounted secret; `sink.properties` overrides it. Read again when the relay reconnects."),
    key("sink.properties.*", "text, number or boolean", "", "Any librdkafka property; `bootstrap.servers` is required. `[sink.kafka.properties]` means the same, as `[sink.kafka]` does for `properties_file` and `create_topics`. In the environment `_` stands for `.`: `OUTBOX_RELAY__SINK__PROPERTIES__BOOTSTRAP_SERVERS`."),
    key("routes.*.topics", "list of patterns", "all topics", "Topics whose events this route publishes; `*` matches any text. What no route takes is parked by the first one. Every other setting but `postgres.url`, `postgres.url_file`, `[admin]` and `[log]` may stand below `[routes.<r>]` too; docs/ROUTES.md."),
    key("routes.*.required", "`true` or `false`", "`false`", "Whether `/readyz` answers 503 while this route alone is not ready. Otherwise it does so only while no route is ready."),
    key("batch.records_max", "number, 1 to 1000000", "`10000`", "Records in a batch, at most."),
    key("batch.bytes_max", "size, 64 KiB to 1 GiB", "`16 MiB`", "Bytes in a batch, at most; two batches are in memory at once, and with `at-least-once` up to two more of events that are being parked."),
    key("batch.record_bytes_max", "size, 1 KiB to `bytes_max`", "`16 MiB`, at most `bytes_max`", "The size of a row, at most. A larger row is refused, and is not kept in memory as a whole."),
    key("parking.lanes_max", "number, 1 to 10000000", "`100000`", "Parked lanes that are kept in memory, at most; about 50 bytes each. Lanes beyond this are looked up in the table: one query for each batch that may contain their events."),
    key("retention.keep_dead_letters", "duration, 1h or more, or `off`", "`30d`", "How long released and discarded dead letters are kept as history, counted from their release or discard; `off`: they are never deleted. Parked events are never deleted."),
    key("leader.timeout", "duration, 2s or more", "`10s`", "A standby replaces a leader that has shown no sign of life for this long."),
    key("admin.listen", "`host:port` or `off`", "`127.0.0.1:9464`", "Where `/livez`, `/readyz`, `/metrics`, `/status` and the page at `/` are served. `off` or empty: they are not served. If another program has the address, the relay streams all the same, warns, and serves there once it is free. An address of another machine, or one that the relay may not use, ends the start."),
    key("admin.hosts", "list of names", "", "Further host names that the admin server accepts. It always accepts IP addresses, `localhost` and the name in `admin.listen`. It refuses other names, so that no web page can read it through a browser (DNS rebinding)."),
    key("log.format", "`text` or `json`", "`text`", "Form of the log on standard error."),
    key("log.level", "level or filter", "`info`", "`error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,outbox_relay::source=debug`. `RUST_LOG` is read too; `OUTBOX_RELAY__LOG__LEVEL` overrides it."),
];

/// The variable that sets a key. A last `*` stays: it is replaced by the name in upper case.
pub fn env_name(key: &str) -> String {
    format!("{ENV_PREFIX}{}", key.replace('.', "__").to_uppercase())
}

/// What every variable of ours begins with.
pub const ENV_PREFIX: &str = "OUTBOX_RELAY__";

/// What a full key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A setting that has a value.
    Known,
    /// A table that holds settings.
    Section,
    /// A table whose keys are free.
    Open,
    /// A setting that may be a value or a table (`sink.create_topics`).
    Either,
    /// Nothing that there is.
    Unknown,
}

pub(super) fn place(full: &str) -> Place {
    if let Some(of_route) = full.strip_prefix("routes") {
        return match of_route.strip_prefix('.').map(|it| it.split_once('.')) {
            None if of_route.is_empty() => Place::Section,
            Some(None) => Place::Section,
            Some(Some((_, "topics" | "required"))) => Place::Known,
            Some(Some((_, key))) if may_have(key) => place(key),
            _ => Place::Unknown,
        };
    }
    let is_key = KEYS.iter().any(|key| match key.name.strip_suffix('*') {
        Some(open) => full.strip_prefix(open).is_some_and(|name| !name.is_empty()),
        None => key.name == full,
    });
    let mut below =
        KEYS.iter().filter_map(|key| key.name.strip_prefix(full)?.strip_prefix('.')).peekable();
    match (is_key, below.peek()) {
        (true, None) => Place::Known,
        (true, Some(_)) => Place::Either,
        (false, Some(&"*")) => Place::Open,
        (false, Some(_)) => Place::Section,
        (false, None) => Place::Unknown,
    }
}

/// The table of routes.
pub(super) const ROUTES: &str = "routes";

/// Whether a route's table may have a setting of this name, because it is one relay's and not the process's.
pub(super) fn may_have(key: &str) -> bool {
    !is_of_process(key) && section(key) != ROUTES
}

/// Whether it is the same for all relays of the process.
pub(super) fn is_of_process(key: &str) -> bool {
    ["postgres.url", "postgres.url_file"].contains(&key) || ["admin", "log"].contains(&section(key))
}

/// Its first part.
pub(super) fn section(key: &str) -> &str {
    key.split('.').next().unwrap_or(key)
}

/// What is written there, as plain text; empty for a key that there isn't.
pub(super) fn takes(full: &str) -> String {
    let key = KEYS.iter().find(|key| key.name == full);
    key.map_or("", |key| key.takes).replace('`', "")
}

/// The setting or section that was probably meant.
pub(super) fn nearest(unknown: &str) -> Option<&'static str> {
    let last = |name: &'static str| name.rsplit('.').next().unwrap_or(name);
    let typed = unknown.rsplit('.').next().unwrap_or(unknown);
    // The right name in the wrong section comes first: `sink.bytes_max`.
    if let Some(key) = names().find(|name| last(name) == typed) {
        return Some(key);
    }
    names()
        .map(|name| (strsim::damerau_levenshtein(unknown, name), name))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, _)| *distance <= 1 + typed.len() / 4)
        .map(|(_, name)| name)
}

/// Keys without the open ones, and sections.
fn names() -> impl Iterator<Item = &'static str> {
    const SECTIONS: [&str; 20] = [
        "postgres",
        "outbox",
        "outbox.columns",
        "outbox.header_columns",
        "outbox.former_columns",
        "sink",
        "sink.file",
        "sink.nats",
        "sink.rabbitmq",
        "sink.sqs",
        "sink.sns",
        "sink.pulsar",
        "sink.properties",
        "batch",
        "routes",
        "parking",
        "retention",
        "leader",
        "admin",
        "log",
    ];
    KEYS.iter().map(|key| key.name).filter(|name| !name.ends_with('*')).chain(SECTIONS)
}
