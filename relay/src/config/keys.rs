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
    key("name", "`[a-z0-9_]{1,56}`", "the database's name, made to fit", "The relay's name. Slot, transactional id and progress topic derive from it; no two relays of one broker share it. Under another name a relay is a new one: it halts at its first start if another has published events of the database."),
    key("postgres.url", "connection string", "", "`postgres://…` or `host=… dbname=…`, with every parameter libpq knows for TLS, several hosts and `target_session_attrs`. Required, here or by `url_file`."),
    key("postgres.url_file", "path", "", "File that holds the connection string, for a mounted secret; read again for each connection. Not together with `url`."),
    key("postgres.slot", "`[a-z0-9_]{1,63}`", "`outbox_<name>`", "Logical replication slot; made when it is missing."),
    key("postgres.publication", "text", "`outbox`", "Publication to stream. Another one costs a repair: the relay makes a new slot and publishes from the tables what may be missing."),
    key("postgres.start", "`now` or `all`", "`all` for `outbox.events`, else `now`", "At a first start, when the slot is made: the rows that are already there too, or only what is committed from then on, with the number of rows that are left out in the log. It counts at a first start alone."),
    key("outbox.tables", "list of `schema.table`", "`outbox.events`", "Outbox tables. Required with a preset."),
    key("outbox.preset", "`default` or `debezium`", "`default`", "Column names and topic to start from: the relay's own table, or Debezium's outbox layout."),
    key("outbox.rows_kept", "`true` or `false`", "`false`", "Says that no row is deleted, truncated or dropped before the relay has published it. Where a slot is lost, the relay then publishes what is in the tables without asking for proof of that."),
    key("outbox.topic", "template", "the row's topic column; with `debezium` `outbox.event.{aggregatetype}`", "Topic of a row; `{column}` stands for a column's value."),
    key("outbox.headers", "`outbox` or `cloudevents`", "`outbox`", "Names of the record headers: `outbox-*`, or the CloudEvents Kafka binding."),
    key("outbox.columns.id", "column or `false`", "`id`", "Column of the event's id. `false`, here and below: the table has none."),
    key("outbox.columns.topic", "column or `false`", "`topic`; with `debezium` none", "Column of the topic."),
    key("outbox.columns.key", "column or `false`", "`key`; with `debezium` `aggregateid`", "Column of the partition key."),
    key("outbox.columns.type", "column or `false`", "`type`", "Column of the event's type."),
    key("outbox.columns.payload", "column or `false`", "`payload`", "Column of the payload: `json`, `jsonb`, `text` or `bytea`."),
    key("outbox.columns.headers", "column or `false`", "`headers`; with `debezium` none", "Column of the headers, a flat JSON object of strings."),
    key("outbox.columns.partition", "column or `false`", "`partition`; with `debezium` none", "Column of the explicit partition."),
    key("outbox.columns.created_at", "column or `false`", "`created_at`; with `debezium` none", "Column of the record's timestamp; without it, the commit's time."),
    key("outbox.header_columns.*", "header name", "", "Further columns that become headers: `tenant_id = \"tenant\"` sends column `tenant_id` as header `tenant`."),
    key("outbox.former_columns.*", "column", "", "What a column of the settings was called before: `body = \"payload\"` takes `body` where a row has no `payload`, or a null one. For rows that were written before the column was renamed, and while writers change over; take it out when they are published."),
    key("sink.kind", "`kafka`, `file` or `stdout`", "`kafka`", "Where records go: Kafka's topics; or, as lines of JSON, a file or standard output, with the relay's progress in the table `outbox.progress`."),
    key("sink.delivery", "`exactly-once` or `at-least-once`", "`exactly-once`; with `file` and `stdout` `at-least-once`, which is all that they can", "One Kafka transaction a batch; or none but one at each start: lower latency, duplicates after a crash."),
    key("sink.file.path", "path", "", "With `file`: the file that lines are added to, made when it is missing. When another program renames it, as for a rotation, the next line goes to a new file."),
    key("sink.create_topics", "`false` or a table", "`false`", "Whether the relay creates a missing topic. With `false`, events for it are parked at once, and released if it appears within `sink.topic_grace`."),
    key("sink.create_topics.partitions", "number, 1 or more", "", "Partitions of a topic the relay makes."),
    key("sink.create_topics.replication_factor", "number, 1 or more", "", "Replicas of a topic the relay makes."),
    key("sink.topic_grace", "duration", "`10s`", "How long after an event was parked because its topic does not exist that topic's appearance releases it by itself; no one waits meanwhile."),
    key("sink.reserved_topics", "list of patterns", "Kafka Streams', Connect's and MirrorMaker's names", "Topics that are no destination, because others keep state in them; `*` stands for anything. In place of `*-changelog`, `*-repartition`, `connect-configs`, `connect-offsets`, `connect-status`, `connect-cluster-configs`, `connect-cluster-offsets`, `connect-cluster-status` and `mm2-*.internal`. Always reserved: `__*`, `outbox-relay-progress-*`, `_schemas*`, `_confluent*` and what the broker calls internal."),
    key("sink.properties_file", "path", "", "File of `key=value` lines with further librdkafka properties, for a mounted secret; `sink.properties` wins over it. Read again when the relay connects anew."),
    key("sink.properties.*", "text, number or boolean", "", "Any librdkafka property; `bootstrap.servers` is required. `[sink.kafka.properties]` means the same, as `[sink.kafka]` does for `properties_file` and `create_topics`. In the environment `_` stands for `.`: `OUTBOX_RELAY__SINK__PROPERTIES__BOOTSTRAP_SERVERS`."),
    key("batch.records_max", "number, 1 to 1000000", "`10000`", "Records in a batch, at most."),
    key("batch.bytes_max", "size, 64 KiB to 1 GiB", "`16 MiB`", "Bytes in a batch, at most; two batches are in memory at once."),
    key("batch.record_bytes_max", "size, 1 KiB to `bytes_max`", "`16 MiB`, at most `bytes_max`", "A row above it is refused without being stored in memory."),
    key("parking.lanes_max", "number, 1 to 10000000", "`100000`", "Parked lanes that are kept in memory, some 50 bytes each; of more than these the table is asked, which takes the batches that may concern them a query each."),
    key("retention.keep_dead_letters", "duration, 1h or more, or `off`", "`30d`", "How long released and discarded dead letters are kept as history, counted from their release or discard; `off`: for ever. What is parked is never deleted."),
    key("leader.timeout", "duration, 2s or more", "`10s`", "A leader without a sign of life for so long is replaced by a standby."),
    key("admin.listen", "`host:port` or `off`", "`127.0.0.1:9464`", "Where `/livez`, `/readyz`, `/metrics`, `/status` and the page at `/` are served; `off` or empty: nowhere."),
    key("admin.hosts", "list of names", "", "Further names under which the admin address answers. By IP address, as `localhost` and by the name in `admin.listen` it always does; another name is refused, so that no web page reads it through a browser (DNS rebinding)."),
    key("log.format", "`text` or `json`", "`text`", "Form of the log on standard error."),
    key("log.level", "level or filter", "`info`", "`error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,outbox_relay::source=debug`. `RUST_LOG` is read too; this variable wins over it."),
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
    const SECTIONS: [&str; 14] = [
        "postgres",
        "outbox",
        "outbox.columns",
        "outbox.header_columns",
        "outbox.former_columns",
        "sink",
        "sink.file",
        "sink.properties",
        "batch",
        "parking",
        "retention",
        "leader",
        "admin",
        "log",
    ];
    KEYS.iter().map(|key| key.name).filter(|name| !name.ends_with('*')).chain(SECTIONS)
}
