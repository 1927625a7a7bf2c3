//! Settings: read once into a validated value, from a file, the environment and flags.
//!
//! Promises that a [`Config`] holds together: every key is known, every value fits, nothing was
//! clamped or ignored in silence, and if something is wrong, all of it is said at once. Leaves to
//! each module what its settings do; only `config` knows the file. Called by `cli`.
//!
//! Two stages: `written` is what the user typed, [`Config`] is what the program needs.

mod broker;
mod check;
mod checker;
mod env_key;
mod identity;
pub mod keys;
mod kind;
mod layers;
mod misnamed;
pub mod parts;
mod print;
mod problem;
mod properties;
mod reader;
mod route;
mod routes;
mod shown;
pub mod sizes;
mod sources;
mod written;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

pub use kind::Kind;
pub use misnamed::misnamed;
pub use problem::{Origin, Problem, Problems};
pub use properties::Properties;
pub use route::Route;
use sizes::Size;
pub use sources::{Environment, Overrides, Sources};

use crate::{
    core::{finding::Finding, secret::Secret},
    sink::any as sink,
};

/// The settings file that is read when none is named.
pub const DEFAULT_FILE: &str = "outbox-relay.toml";

/// What the command needs: a required setting is missed only by a command that uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Everything: database and broker.
    Relay,
    /// The database alone (`migrate`); the broker's address may be missing.
    Database,
    /// Neither (`status`); the connection string may be empty, the name a stand-in.
    Admin,
}

/// The effective settings. No secret prints, not even with `{:?}`.
#[derive(Clone, Debug)]
pub struct Config {
    /// Slot, transactional id and progress topic derive from it: `[a-z0-9_]{1,56}`.
    pub name: String,
    /// The database.
    pub postgres: PostgresConfig,
    /// Tables and how their rows become records.
    pub outbox: OutboxConfig,
    /// The broker.
    pub sink: SinkConfig,
    /// Bounds of memory.
    pub batch: BatchConfig,
    /// Parked lanes.
    pub parking: ParkingConfig,
    /// What is kept, and for how long.
    pub retention: RetentionConfig,
    /// Which of several relays of one name is active.
    pub leader: LeaderConfig,
    /// The admin address.
    pub admin: AdminConfig,
    /// The log.
    pub log: LogConfig,
    /// Where this is one of several relays of the process.
    pub route: Option<Route>,
    origins: BTreeMap<String, Origin>,
}

/// The database and its slot.
#[derive(Clone, Debug)]
pub struct PostgresConfig {
    /// Connection string, from `url` or `url_file`, as libpq understands it.
    pub url: Secret,
    /// The file that the connection string came from.
    pub url_file: Option<PathBuf>,
    /// Logical replication slot.
    pub slot: String,
    /// Publication to stream.
    pub publication: String,
    /// What the first stream begins with; `None` leaves it to the tables.
    pub start: Option<Start>,
}

/// What a slot that is first made begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// What is committed from then on.
    Now,
    /// The rows that are already there, too.
    All,
}

/// Outbox tables and how their rows become records.
#[derive(Clone, Debug)]
pub struct OutboxConfig {
    /// `schema.table` as typed; not empty, none twice.
    pub tables: Vec<String>,
    /// What unset columns and topic mean.
    pub preset: Preset,
    /// Mapped columns.
    pub columns: Columns,
    /// No row is deleted before the relay has published it.
    pub rows_kept: bool,
    /// Topic template, `{column}` in it; `None` leaves it to the preset.
    pub topic: Option<String>,
    /// Names of the record headers.
    pub headers: HeaderStyle,
    /// Further columns that become headers: column → header name.
    pub header_columns: BTreeMap<String, String>,
    /// What mapped columns were called before: former name → present one.
    pub former_columns: BTreeMap<String, String>,
}

/// A known table layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// `outbox.events`.
    Default,
    /// Debezium's outbox event router.
    Debezium,
}

/// Which column serves a purpose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Column {
    /// As the preset has it.
    #[default]
    Preset,
    /// That one.
    Named(String),
    /// The table has none.
    Absent,
}

/// Mapped columns.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "each is the column of the thing it is named after")]
pub struct Columns {
    pub id: Column,
    pub topic: Column,
    pub key: Column,
    pub r#type: Column,
    pub payload: Column,
    pub headers: Column,
    pub partition: Column,
    pub created_at: Column,
}

/// Names of the record headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderStyle {
    /// `outbox-*`.
    Outbox,
    /// The CloudEvents Kafka binding, `ce_*`.
    CloudEvents,
}

/// The broker.
#[derive(Clone, Debug)]
pub struct SinkConfig {
    /// Where records go.
    pub kind: Kind,
    /// With [`Kind::File`], the file.
    pub file_path: Option<PathBuf>,
    /// With a kind that has a section of its own, what that says.
    pub broker: Option<sink::Settings>,
    /// What a crash may cost.
    pub delivery: Delivery,
    /// Where the relay keeps its progress.
    pub progress: Progress,
    /// How missing topics are made; `None`: they are not.
    pub create_topics: Option<CreateTopics>,
    /// How many of them within a day.
    pub created_topics_max: usize,
    /// How long an unknown topic is waited for.
    pub topic_grace: Duration,
    /// Patterns of topics that are no destination, beside those that never are one.
    pub reserved_topics: Vec<String>,
    /// librdkafka's properties, `bootstrap.servers` among them.
    pub properties: Properties,
    /// The file that some of them came from, and those that did not.
    pub properties_file: Option<(PathBuf, Properties)>,
}

impl SinkConfig {
    /// As the file has them by now; while it can't be read, as it had them.
    fn renewed_properties(&self) -> Properties {
        let Some((file, own)) = &self.properties_file else { return self.properties.clone() };
        match properties::read_file(file) {
            Ok(mut found) => {
                own.iter().for_each(|(name, value)| found.set(name.to_owned(), value.to_owned()));
                found
            }
            Err(errors) => {
                let (file, error) = (file.display(), errors.join("; "));
                tracing::warn!(%file, error, "sink.properties_file can't be read now");
                self.properties.clone()
            }
        }
    }
}

/// What a crash may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Nothing, for readers of committed records.
    ExactlyOnce,
    /// Records repeated with the same id.
    AtLeastOnce,
}

/// Where the relay keeps its progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Where the records go.
    Broker,
    /// In the table `outbox.progress`.
    Postgres,
}

/// How a missing topic is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreateTopics {
    /// 1 or more.
    pub partitions: i32,
    /// 1 or more.
    pub replication_factor: i32,
}

/// Bounds of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchConfig {
    /// Records in a batch.
    pub records_max: usize,
    /// Bytes in a batch.
    pub bytes_max: usize,
    /// Bytes of a row that is taken; at most `bytes_max`.
    pub record_bytes_max: usize,
}

/// Parked lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParkingConfig {
    /// Lanes that may be parked at once.
    pub lanes_max: usize,
}

/// What is kept, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetentionConfig {
    /// Released and discarded dead letters; `None`: for ever.
    pub keep_dead_letters: Option<Duration>,
}

/// Which of several relays of one name is active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaderConfig {
    /// Silence after which a leader is replaced.
    pub timeout: Duration,
}

/// The admin address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminConfig {
    /// `host:port`; `None` serves nothing.
    pub listen: Option<String>,
    /// Names under which it answers, besides its own, addresses and `localhost`.
    pub hosts: Vec<String>,
}

impl AdminConfig {
    /// Where a client on this machine reaches it: loopback where the server listens everywhere.
    pub fn reach(&self) -> Option<String> {
        let listen = self.listen.as_ref()?;
        let Ok(address) = listen.parse::<SocketAddr>() else { return Some(listen.clone()) };
        let ip = match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            ip => ip,
        };
        Some(SocketAddr::new(ip, address.port()).to_string())
    }
}

/// The log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Form of a line.
    pub format: LogFormat,
    /// Level or filter, checked.
    pub level: String,
}

/// Form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Reads all sources and checks them together; of several routes only what stands above them.
///
/// # Errors
/// Everything that is wrong, in the order of sources, then of keys. Print it and exit with 2.
pub fn load(sources: &Sources, purpose: Purpose) -> Result<Config, Problems> {
    let mut problems = Vec::new();
    let (merged, file_was_read) = layers::merge(sources, &mut problems);
    let purpose = if file_was_read { purpose } else { Purpose::Admin };
    let config = routes::base(merged, purpose, &mut problems);
    if problems.is_empty() { Ok(config) } else { Err(Problems(problems)) }
}

/// The settings of each relay: one, or one for each route. Asks the modules too, so that what only they can know is
/// reported together with the rest. Where a problem was found already, a default stands in for the value that
/// `modules` sees, and what it finds there is left out.
///
/// # Errors
/// As [`load`].
pub fn load_relays(
    sources: &Sources,
    purpose: Purpose,
    modules: impl Fn(&Config) -> Vec<Finding>,
) -> Result<Vec<Config>, Problems> {
    let mut problems = Vec::new();
    let (merged, file_was_read) = layers::merge(sources, &mut problems);
    let purpose = if file_was_read { purpose } else { Purpose::Admin };
    let configs = routes::read(merged, purpose, &mut problems);
    for config in &configs {
        for Finding { key, what, remedy } in modules(config) {
            let origin = config.origin(&key);
            let key = config.route.as_ref().map_or_else(|| key.clone(), |route| route.full(&key));
            if !problems.iter().any(|known| known.key == key) {
                problems.push(Problem { origin, key, what, remedy });
            }
        }
    }
    if problems.is_empty() { Ok(configs) } else { Err(Problems(problems)) }
}

/// The effective settings of all relays as TOML, as [`Config::print`].
pub fn print(configs: &[Config]) -> String {
    print::print(configs)
}

impl Config {
    /// Where a key's value came from.
    pub fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).cloned().unwrap_or(Origin::Default)
    }

    /// The effective settings as TOML, each with its origin, secrets as `***`.
    pub fn print(&self) -> String {
        print(std::slice::from_ref(self))
    }
}

#[cfg(test)]
mod tests;
