//! What the relay counts: every name, unit and label in one list (`list`).
//!
//! Handles are plain fields, registered once; nothing is looked up per row. Counters move as things
//! happen; gauges are set when `/metrics` is read, from what the board knows. Named by
//! `admin` (which owns the one instance), `pipeline` and `daemon`; imports none of them.

mod gauge;
mod list;

use std::{sync::atomic::AtomicU64, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::Registry,
};

use self::gauge::Maybe;
pub use self::list::{IGNORED, METRICS, Metric, REASONS};

/// Why the relay started again from its progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The connection to PostgreSQL.
    Postgres,
    /// The connection to the broker, or a delivery whose outcome is uncertain.
    Broker,
    /// Another relay of the same name.
    Fenced,
    /// Anything else.
    Other,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CauseLabel {
    cause: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RoleLabel {
    role: &'static str,
}

/// What gauges are set to when they are read; `None` is not known, and absent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gauges<'a> {
    /// Whether `/readyz` answers 200.
    pub ready: bool,
    /// `leader`, `standby` or `none`.
    pub role: &'a str,
    /// In bytes, as all the positions below.
    pub server_wal_end: Option<u64>,
    /// Received from PostgreSQL.
    pub received: Option<u64>,
    /// Stored by the broker.
    pub delivered: Option<u64>,
    /// Confirmed to PostgreSQL.
    pub confirmed: Option<u64>,
    /// Lanes.
    pub parked_lanes: Option<u64>,
    /// Events.
    pub parked_events: Option<u64>,
    /// Of those that were, what the table has lost.
    pub parked_lost: Option<u64>,
    /// Between the server's end and `delivered`.
    pub lag_bytes: Option<u64>,
    /// See the metric.
    pub lag_seconds: Option<f64>,
}

type IntGauge = Gauge<u64, AtomicU64>;

/// The one set of handles.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    ready: IntGauge,
    role: Family<RoleLabel, IntGauge>,
    server_wal_end: Maybe<u64>,
    received: Maybe<u64>,
    delivered: Maybe<u64>,
    confirmed: Maybe<u64>,
    lag_bytes: Maybe<u64>,
    lag_seconds: Maybe<f64>,
    resident_bytes: Maybe<u64>,
    records_delivered: Counter,
    records_restamped: Counter,
    bytes_delivered: Counter,
    batches: Counter,
    batch_records: Histogram,
    delivery_seconds: Histogram,
    reconnects: Family<CauseLabel, Counter>,
    refused: Family<ReasonLabel, Counter>,
    parked: Family<ReasonLabel, Counter>,
    rows_moved: Counter,
    parked_lanes: Maybe<u64>,
    parked_events: Maybe<u64>,
    parked_lost: Maybe<u64>,
    dead_letters_deleted: Counter,
    ignored_messages: Family<ReasonLabel, Counter>,
}

impl Metrics {
    /// Registers everything.
    pub fn new(name: &str, slot: &str, version: &str) -> Self {
        Metrics::with(name, slot, version, false)
    }

    /// The same, and each series of the relay has its name as the label `relay`.
    pub fn labelled(name: &str, slot: &str, version: &str) -> Self {
        Metrics::with(name, slot, version, true)
    }

    fn with(name: &str, slot: &str, version: &str, labelled: bool) -> Self {
        let mut metrics = Metrics {
            registry: Registry::default(),
            ready: Gauge::default(),
            role: Family::default(),
            server_wal_end: Maybe::default(),
            received: Maybe::default(),
            delivered: Maybe::default(),
            confirmed: Maybe::default(),
            lag_bytes: Maybe::default(),
            lag_seconds: Maybe::default(),
            resident_bytes: Maybe::default(),
            records_delivered: Counter::default(),
            records_restamped: Counter::default(),
            bytes_delivered: Counter::default(),
            batches: Counter::default(),
            // 1 to 1 M records, and 0.5 ms to 33 s.
            batch_records: Histogram::new(exponential_buckets(1.0, 4.0, 11)),
            delivery_seconds: Histogram::new(exponential_buckets(0.0005, 2.0, 17)),
            reconnects: Family::default(),
            refused: Family::default(),
            parked: Family::default(),
            rows_moved: Counter::default(),
            parked_lanes: Maybe::default(),
            parked_events: Maybe::default(),
            parked_lost: Maybe::default(),
            dead_letters_deleted: Counter::default(),
            ignored_messages: Family::default(),
        };
        let build = [("version", version), ("name", name), ("slot", slot)]
            .map(|(key, value)| (key.to_owned(), value.to_owned()));
        metrics.register(&build, labelled.then_some(name));
        // So that a rate exists from the first scrape on.
        for cause in [Cause::Postgres, Cause::Broker, Cause::Fenced, Cause::Other] {
            let _ = metrics.reconnects.get_or_create(&CauseLabel { cause: cause.word() });
        }
        for reason in IGNORED {
            let _ = metrics.ignored_messages.get_or_create(&ReasonLabel { reason });
        }
        for reason in REASONS {
            let _ = metrics.refused.get_or_create(&ReasonLabel { reason });
            let _ = metrics.parked.get_or_create(&ReasonLabel { reason });
        }
        metrics
    }

    fn register(&mut self, build: &[(String, String)], label: Option<&str>) {
        for metric in METRICS {
            // The library adds the suffix that the kind has.
            let name = metric.name.trim_end_matches("_total").trim_end_matches("_info");
            // What the process has is not one relay's.
            let label = label.filter(|_| !name.starts_with("process_"));
            let registry = match label {
                Some(label) => {
                    let label = ("relay".into(), label.to_owned().into());
                    self.registry.sub_registry_with_label(label)
                }
                None => &mut self.registry,
            };
            let mut add = Adder { registry, name, help: metric.help };
            match metric.name {
                "outbox_relay_build_info" => add.it(Info::new(build.to_vec())),
                "outbox_relay_ready" => add.it(self.ready.clone()),
                "outbox_relay_role" => add.it(self.role.clone()),
                "outbox_relay_server_wal_end_lsn" => add.it(self.server_wal_end.handle()),
                "outbox_relay_received_lsn" => add.it(self.received.handle()),
                "outbox_relay_delivered_lsn" => add.it(self.delivered.handle()),
                "outbox_relay_confirmed_lsn" => add.it(self.confirmed.handle()),
                "outbox_relay_lag_bytes" => add.it(self.lag_bytes.handle()),
                "outbox_relay_lag_seconds" => add.it(self.lag_seconds.handle()),
                "outbox_relay_records_delivered_total" => add.it(self.records_delivered.clone()),
                "outbox_relay_records_restamped_total" => add.it(self.records_restamped.clone()),
                "outbox_relay_delivered_bytes_total" => add.it(self.bytes_delivered.clone()),
                "outbox_relay_batches_total" => add.it(self.batches.clone()),
                "outbox_relay_batch_records" => add.it(self.batch_records.clone()),
                "outbox_relay_delivery_seconds" => add.it(self.delivery_seconds.clone()),
                "outbox_relay_reconnects_total" => add.it(self.reconnects.clone()),
                "outbox_relay_refused_total" => add.it(self.refused.clone()),
                "outbox_relay_parked_total" => add.it(self.parked.clone()),
                "outbox_relay_rows_moved_total" => add.it(self.rows_moved.clone()),
                "outbox_relay_parked_lanes" => add.it(self.parked_lanes.handle()),
                "outbox_relay_parked_events" => add.it(self.parked_events.handle()),
                "outbox_relay_lost_parked_events" => add.it(self.parked_lost.handle()),
                "outbox_relay_dead_letters_deleted_total" => {
                    add.it(self.dead_letters_deleted.clone())
                }
                "outbox_relay_ignored_messages_total" => add.it(self.ignored_messages.clone()),
                "process_resident_memory_bytes" => add.it(self.resident_bytes.handle()),
                name => debug_assert!(false, "{name} is in the list and has no handle"),
            }
        }
    }

    /// A delivery is stored.
    pub fn delivered(&self, records: u64, bytes: u64, took: Duration) {
        self.batches.inc();
        if records == 0 {
            return; // Progress alone: its size and time would hide those of real batches.
        }
        self.records_delivered.inc_by(records);
        self.bytes_delivered.inc_by(bytes);
        self.batch_records.observe(records as f64);
        self.delivery_seconds.observe(took.as_secs_f64());
    }

    /// Records of a delivery that were given the time of their delivery.
    pub fn restamped(&self, records: u64) {
        self.records_restamped.inc_by(records);
    }

    /// The relay starts again from its progress.
    pub fn reconnect(&self, cause: Cause) {
        self.reconnects.get_or_create(&CauseLabel { cause: cause.word() }).inc();
    }

    /// A row or record can't be delivered; `reason` is one of the fixed words.
    pub fn refused(&self, reason: &'static str) {
        debug_assert!(REASONS.contains(&reason), "{reason}");
        self.refused.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// An event is parked; `reason` is one of the fixed words.
    pub fn parked(&self, reason: &'static str) {
        debug_assert!(REASONS.contains(&reason), "{reason}");
        self.parked.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// A row was moved or copied, and is not published again.
    pub fn row_moved(&self) {
        self.rows_moved.inc();
    }

    /// So many dead letters were deleted as too old.
    pub fn dead_letters_deleted(&self, count: u64) {
        self.dead_letters_deleted.inc_by(count);
    }

    /// A WAL message was ignored; `reason` is one of the fixed words. Whether it is the first.
    pub fn message_ignored(&self, reason: &'static str) -> bool {
        debug_assert!(IGNORED.contains(&reason), "{reason}");
        self.ignored_messages.get_or_create(&ReasonLabel { reason }).inc() == 0
    }

    /// The OpenMetrics text, with gauges as given.
    pub fn render(&self, now: &Gauges<'_>) -> String {
        self.ready.set(u64::from(now.ready));
        for role in ["leader", "standby", "none"] {
            self.role.get_or_create(&RoleLabel { role }).set(u64::from(role == now.role));
        }
        for (gauge, value) in [
            (&self.server_wal_end, now.server_wal_end),
            (&self.received, now.received),
            (&self.delivered, now.delivered),
            (&self.confirmed, now.confirmed),
            (&self.parked_lanes, now.parked_lanes),
            (&self.parked_events, now.parked_events),
            (&self.parked_lost, now.parked_lost),
            (&self.lag_bytes, now.lag_bytes),
            (&self.resident_bytes, resident_bytes()),
        ] {
            gauge.set(value);
        }
        self.lag_seconds.set(now.lag_seconds);
        let mut text = String::new();
        text::encode(&mut text, &self.registry).expect("writing to a string can't fail");
        text
    }
}

impl Cause {
    fn word(self) -> &'static str {
        match self {
            Cause::Postgres => "postgres",
            Cause::Broker => "broker",
            Cause::Fenced => "fenced",
            Cause::Other => "other",
        }
    }
}

struct Adder<'a> {
    registry: &'a mut Registry,
    name: &'static str,
    help: &'static str,
}

impl Adder<'_> {
    fn it(&mut self, metric: impl prometheus_client::registry::Metric) {
        self.registry.register(self.name, self.help, metric);
    }
}

/// From `/proc`; `None` where there is none.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_of_the_list_is_scraped_under_its_name() {
        let metrics = Metrics::new("orders", "outbox_orders", "1.2.3");
        metrics.delivered(3, 100, Duration::from_millis(5));
        metrics.reconnect(Cause::Broker);
        metrics.refused("too_large");
        metrics.parked("too_large");
        let now = Gauges { role: "leader", received: Some(7), ..Gauges::default() };
        let text = metrics.render(&now);
        for metric in METRICS {
            let family = metric.name.trim_end_matches("_total").trim_end_matches("_info");
            assert!(
                text.contains(&format!("# TYPE {family} {}\n", metric.kind)),
                "{family}\n{text}"
            );
        }
        for line in [
            "outbox_relay_build_info{version=\"1.2.3\",name=\"orders\",slot=\"outbox_orders\"} 1\n",
            "outbox_relay_role{role=\"leader\"} 1\n",
            "outbox_relay_received_lsn 7\n",
            "outbox_relay_records_delivered_total 3\n",
            "outbox_relay_delivered_bytes_total 100\n",
            "outbox_relay_batch_records_count 1\n",
            "outbox_relay_reconnects_total{cause=\"broker\"} 1\n",
            "outbox_relay_reconnects_total{cause=\"postgres\"} 0\n",
            "outbox_relay_refused_total{reason=\"too_large\"} 1\n",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn what_is_not_known_any_more_is_absent_and_a_zero_is_a_zero() {
        let metrics = Metrics::new("orders", "outbox_orders", "1.2.3");
        let zero = Gauges { lag_bytes: Some(0), lag_seconds: Some(0.0), ..Gauges::default() };
        let text = metrics.render(&zero);
        assert!(text.contains("outbox_relay_lag_bytes 0\n"), "{text}");
        assert!(text.contains("outbox_relay_lag_seconds 0.0\n"), "{text}");
        let text = metrics.render(&Gauges::default());
        assert!(!text.contains("\noutbox_relay_lag"), "{text}");
    }

    #[test]
    fn the_docs_list_exactly_the_metrics_there_are() {
        let docs = include_str!("../../docs/METRICS.md");
        for reason in REASONS {
            assert!(docs.contains(&format!("`{reason}`")), "{reason} is missing");
        }
        let rows: Vec<&str> = docs.lines().filter(|line| line.starts_with("| `")).collect();
        let expected: Vec<String> = METRICS
            .iter()
            .map(|m| {
                let labels = if m.labels.is_empty() { "—" } else { m.labels };
                format!("| `{}` | {} | {labels} | {} |", m.name, m.kind, m.help)
            })
            .collect();
        assert_eq!(rows, expected, "write the left side as the right side says");
    }
}
