//! The numbers of a run, and how they are shown.

use std::fmt::Write as _;

use anyhow::Result;
use outbox_harness::{local_kafka, servers};
use serde::Serialize;

use crate::{
    alone::Alone,
    backlog::Shape,
    inbox::Comparison,
    latency::Latency,
    process,
    sample::{Sample, median},
    sink::Sink,
    terminal::pretty,
};

/// Settings of the server that change the numbers.
const POSTGRES_SETTINGS: [&str; 7] = [
    "server_version",
    "fsync",
    "full_page_writes",
    "synchronous_commit",
    "shared_buffers",
    "max_wal_size",
    "logical_decoding_work_mem",
];

/// All of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: String,
    postgres: String,
    broker: String,
    command: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) drains: Vec<Contest>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) latencies: Vec<Latency>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) alone: Vec<Alone>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) comparisons: Vec<Comparison>,
}

/// One backlog, drained by several.
#[derive(Debug, Serialize)]
pub(crate) struct Contest {
    pub(crate) shape: Shape,
    /// The first is what the others are ratios of.
    pub(crate) contestants: Vec<Contestant>,
}

/// One that drained it, once a round.
#[derive(Debug, Serialize)]
pub(crate) struct Contestant {
    name: String,
    median_rows_per_second: f64,
    samples: Vec<Sample>,
}

impl Contestant {
    pub(crate) fn new(name: String, samples: Vec<Sample>) -> Self {
        let median_rows_per_second = median(samples.iter().map(Sample::rate)).unwrap_or(0.0);
        Contestant { name, median_rows_per_second, samples }
    }

    /// Median over the rounds of this one's rate by the other's in the same round.
    fn ratio_to(&self, other: &Contestant) -> f64 {
        let pairs = self.samples.iter().zip(&other.samples);
        median(pairs.map(|(mine, theirs)| mine.rate() / theirs.rate())).unwrap_or(0.0)
    }
}

impl Report {
    /// Without a number yet; starts PostgreSQL, to ask it for its settings.
    pub(crate) async fn of_this_machine(sink: Sink) -> Result<Self> {
        let t = outbox_harness::Harness::start().await;
        let mut settings = Vec::new();
        for name in POSTGRES_SETTINGS {
            let show = "select current_setting($1)";
            let row = t.database().superuser().query_one(show, &[&name]).await?;
            settings.push(format!("{name} {}", row.get::<_, String>(0)));
        }
        let broker = match servers::kafka().await.is_from_jars() {
            _ if sink == Sink::Nats => "NATS JetStream, one server, one replica".to_owned(),
            _ if sink == Sink::Rabbitmq => "RabbitMQ, one broker, quorum queues".to_owned(),
            true => {
                format!(
                    "Apache Kafka {}, one broker, JVM {}",
                    local_kafka::VERSION,
                    local_kafka::jvm_options()
                )
            }
            false => format!("the broker at {}", t.kafka().brokers()),
        };
        let (model, count) = process::processors();
        let gibibytes = process::memory_bytes() as f64 / f64::from(1 << 30);
        Ok(Report {
            machine: format!(
                "{count} × {model}, {gibibytes:.0} GiB, Linux {}; servers and clients share it",
                process::kernel()
            ),
            postgres: settings.join(", "),
            broker,
            command: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
            drains: Vec::new(),
            latencies: Vec::new(),
            alone: Vec::new(),
            comparisons: Vec::new(),
        })
    }

    pub(crate) fn json(&self) -> String {
        pretty(self)
    }

    pub(crate) fn text(&self) -> String {
        let Report { machine, postgres, broker, command, .. } = self;
        let mut text = format!(
            "outbox-bench {command}\nmachine: {machine}\nPostgreSQL: {postgres}\nbroker: {broker}\n"
        );
        for contest in &self.drains {
            contest.table(&mut text);
        }
        if !self.latencies.is_empty() {
            text.push_str("\n| latency, insert sent → consumed (read_committed) ");
            text.push_str("| commits/s | p50 ms | p99 ms | max ms | relay CPU |\n");
            text.push_str("|---|---|---|---|---|---|\n");
            for latency in &self.latencies {
                text.push_str(&latency.row());
            }
        }
        if !self.alone.is_empty() {
            text.push_str("\n| one event at a time, insert sent → consumed ");
            text.push_str("| events | p50 ms | p99 ms | max ms |\n|---|---|---|---|---|\n");
            self.alone.iter().for_each(|alone| text.push_str(&alone.row()));
        }
        for comparison in &self.comparisons {
            comparison.table(&mut text);
        }
        text
    }
}

impl Contest {
    fn table(&self, text: &mut String) {
        let Shape { name, rows, payload_bytes, keys, .. } = &self.shape;
        let title = format!("{rows} rows, {name}, payload {payload_bytes} bytes, {keys} keys");
        let columns = "rows/s (range) | ratio | relay CPU µs/row | peak RSS MiB | start s";
        let lines = format!("\n| {title} | {columns} |\n|---|---|---|---|---|---|\n");
        text.push_str(&lines);
        let Some(first) = self.contestants.first() else { return };
        for contestant in &self.contestants {
            let rates = contestant.samples.iter().map(Sample::rate);
            let (low, high) = (rates.clone().reduce(f64::min), rates.reduce(f64::max));
            let per_sample = |value: fn(&Sample) -> Option<f64>| {
                median(contestant.samples.iter().filter_map(value))
            };
            let cpu = per_sample(|s| s.cpu_us_per_event);
            let start = per_sample(|s| s.start_seconds);
            let peak = contestant.samples.iter().filter_map(|s| s.peak_resident_bytes).max();
            let peak = peak.map(|bytes| bytes as f64 / f64::from(1 << 20));
            let shown = |value: Option<f64>, digits: usize| {
                value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
            };
            // Writing to a String does not fail.
            let _ = writeln!(
                text,
                "| {} | {} k ({}–{}) | {:.2} | {} | {} | {} |",
                contestant.name,
                shown(Some(contestant.median_rows_per_second / 1e3), 0),
                shown(low.map(|rate| rate / 1e3), 0),
                shown(high.map(|rate| rate / 1e3), 0),
                contestant.ratio_to(first),
                shown(cpu, 2),
                shown(peak, 0),
                shown(start, 2),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_pair_the_turns_of_a_round() {
        let of = |rates: &[f64]| {
            let samples = rates.iter().map(|rate| Sample::of(100, 100.0 / rate)).collect();
            Contestant::new(String::new(), samples)
        };
        let (fast, slow) = (of(&[20.0, 200.0, 2_000.0]), of(&[10.0, 100.0, 4_000.0]));
        assert!((fast.ratio_to(&slow) - 2.0).abs() < 1e-9);
        assert!((fast.median_rows_per_second - 200.0).abs() < 1e-9);
        assert_eq!(median([1.0, 3.0].into_iter()), Some(2.0));
        assert_eq!(median([].into_iter()), None);
    }
}
