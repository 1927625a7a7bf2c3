//! `outbox-relay demo`: what is typed, what is shown while it runs, and how it ends.

use std::{
    cell::RefCell,
    io::{IsTerminal, Write},
    time::{Duration, Instant},
};

use anyhow::bail;
use clap::{Args, ValueEnum, value_parser};

use crate::cli::{output::print, signal};
use crate::demo::{self, Options, Sink, Summary, Update};

pub(in crate::cli) const AFTER_HELP: &str = "\
It creates everything it needs, and removes it at the end. PostgreSQL is the server of --postgres (the
demo creates and drops a database of its own in it), else an installed one, started in a temporary
directory, else a container. Kafka is the brokers of --kafka, else librdkafka's mock cluster, which
has no transactions: there the relay delivers at least once and the consumer drops repetitions.
NATS is the server of --nats, else an installed nats-server, started in a temporary directory.

Examples:
  outbox-relay demo
  outbox-relay demo --sink nats             exactly-once, proven on NATS JetStream
  outbox-relay demo --kafka localhost:9092  exactly-once, proven on a real Kafka
  outbox-relay demo --tamper; echo $?       see that the count detects damage

Exit code 1 if anything was lost, duplicated or out of order.";

/// Without a terminal, progress is a line from time to time.
const LINE_EVERY: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
pub(in crate::cli) struct DemoArgs {
    /// Connection string of a server with wal_level = logical, to use instead of a throwaway one
    #[arg(long, value_name = "URL")]
    postgres: Option<String>,
    /// The broker to publish to
    #[arg(long, value_enum, default_value_t = Kind::Kafka)]
    sink: Kind,
    /// Addresses of Kafka brokers, separated by commas, to use instead of the mock cluster
    #[arg(long, value_name = "BROKERS", conflicts_with = "nats")]
    kafka: Option<String>,
    /// A NATS server with JetStream to use, and with it --sink nats: nats://HOST:PORT
    #[arg(long, value_name = "URL")]
    nats: Option<String>,
    /// Events to commit
    #[arg(long, default_value_t = 12_000, value_parser = value_parser!(u64).range(1..=1_000_000))]
    events: u64,
    /// Concurrent writers
    #[arg(long, default_value_t = 6, value_parser = value_parser!(u32).range(1..=50))]
    writers: u32,
    /// How many times the relay is killed
    #[arg(long, default_value_t = 5, value_parser = value_parser!(u32).range(0..=50))]
    kills: u32,
    /// Damage the consumer's table before counting, to prove that the count detects it
    #[arg(long)]
    tamper: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A broker that the demo has, or can start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    Kafka,
    Nats,
}

/// Runs it, and returns whether all was as promised.
pub(in crate::cli) async fn run(arguments: DemoArgs) -> anyhow::Result<bool> {
    let DemoArgs { postgres, sink, kafka, nats, events, writers, kills, tamper, json } = arguments;
    let sink = match (sink, kafka, nats) {
        (Kind::Nats, Some(_), _) => {
            bail!("--kafka has no use with --sink nats: leave one of them out")
        }
        (Kind::Kafka, kafka, None) => Sink::Kafka(kafka),
        (_, _, nats) => Sink::Nats(nats),
    };
    let options = Options { events, writers, kills, postgres, sink, tamper };
    let screen = RefCell::new(Screen::new(events));
    let stop = signal::stop_on_signal()?;
    let tell = |update: Update| screen.borrow_mut().show(&update);
    let outcome = Box::pin(demo::run(&options, &stop, &tell)).await;
    screen.borrow_mut().clear();
    let summary = outcome?;
    print(&if json { serde_json::to_string_pretty(&summary)? } else { closing(&summary) });
    Ok(summary.is_as_promised())
}

/// Standard error while the demo runs: lines, and below them, on a terminal, how far it is.
struct Screen {
    events: u64,
    terminal: bool,
    shown: Instant,
}

impl Screen {
    fn new(events: u64) -> Self {
        Screen { events, terminal: std::io::stderr().is_terminal(), shown: Instant::now() }
    }

    fn show(&mut self, update: &Update) {
        match update {
            Update::Line(line) => {
                self.clear();
                write(&format!("{line}\n"));
            }
            Update::Progress { committed, delivered } => {
                let (events, end) = (self.events, if self.terminal { "" } else { "\n" });
                if self.terminal {
                    self.clear();
                } else if self.shown.elapsed() < LINE_EVERY {
                    return;
                }
                self.shown = Instant::now();
                write(&format!("  {committed} of {events} committed, {delivered} delivered{end}"));
            }
        }
    }

    /// Takes the line of progress away.
    fn clear(&mut self) {
        if self.terminal {
            write("\r\x1b[K");
        }
    }
}

fn write(text: &str) {
    let mut out = std::io::stderr().lock();
    // No one is left to tell it to.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// The end of the output; its last line is the count.
fn closing(summary: &Summary) -> String {
    let Summary { count, rolled_back, repeated_by_broker, kills, seen_by, seconds, .. } = summary;
    format!(
        "\n{kills} kills in {seconds:.1} s · rolled back {rolled_back} · of these delivered \
         {uncommitted}\nrepeated by the broker {repeated_by_broker} ({seen_by})\n{count}",
        uncommitted = count.uncommitted,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::Count;

    #[test]
    fn the_last_line_is_the_count() {
        let count = Count { committed: 3, delivered: 2, lost: 1, ..Count::default() };
        let summary = Summary {
            count,
            rolled_back: 4,
            repeated_by_broker: 5,
            kills: 2,
            mock: true,
            seen_by: "mock: no transactions",
            seconds: 1.26,
        };
        assert_eq!(
            closing(&summary),
            "\n2 kills in 1.3 s · rolled back 4 · of these delivered 0\n\
             repeated by the broker 5 (mock: no transactions)\n\
             committed 3 · delivered 2 · lost 1 · duplicated 0 · out of order 0"
        );
    }
}
