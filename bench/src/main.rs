//! `outbox-bench`: the relay and the consumer against their yardsticks, on real servers, in one run.
//!
//! ```text
//! backlog ─► slots at one position ─┬─► relay ─► Kafka ─► consumer (counts)
//!                                   ├─► pg_recvlogical to nowhere
//!                                   └─► the server's own decoding
//! ```
//!
//! Numbers of different runs don't compare; the ratios within one do. The servers are the test
//! harness's; the relay is this same program, with the tests' fault points compiled in and none armed.

mod alone;
mod backlog;
mod consumer;
mod drain;
mod inbox;
mod latency;
mod memory;
mod neighbours;
mod process;
mod ratio;
mod relay;
mod release;
mod report;
mod sample;
mod sink;
mod soak;
mod storm;
mod terminal;
mod yardstick;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};

use self::{backlog::Shape, report::Report};

/// Measures the relay against pg_recvlogical, the server's own decoding and librdkafka.
#[derive(Debug, Parser)]
#[command(
    name = "outbox-bench",
    version,
    max_term_width = 100,
    after_help = "Examples:
  cargo run --release -p outbox-bench
  cargo run --release -p outbox-bench -- drain --only large --rounds 1 --rows 200000
  cargo run --release -p outbox-bench -- drain --json > bench.json
  cargo run --release -p outbox-bench -- drain --sink rabbitmq
  cargo run --release -p outbox-bench -- inbox
  cargo run --release -p outbox-bench -- memory
  cargo run --release -p outbox-bench -- neighbours
  cargo run --release -p outbox-bench -- release --events 1000000
  cargo run --release -p outbox-bench -- soak --minutes 20 --seed 7
  cargo run --release -p outbox-bench -- soak --minutes 5 --delivery at-least-once
  cargo run --release -p outbox-bench -- soak --sink rabbitmq --minutes 5
  cargo run --release -p outbox-bench -- storm --minutes 5 --seed 7

PostgreSQL and Kafka start by themselves and are gone afterwards, as in the tests. Every run is
counted; one that lost, doubled or reordered anything is an error.
Exit codes: 0 done, 1 a run failed or counted wrong, 2 wrong usage."
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Drain backlogs, and measure memory and latency (the default)
    Drain(DrainArgs),
    /// Measure what remembering messages costs a consumer, and what batches save
    Inbox(InboxArgs),
    /// Measure a consumer's memory beside its `in_flight`, with small and large messages
    Memory(MemoryArgs),
    /// Measure what others' refused events cost a healthy lane, against none
    Neighbours(NeighboursArgs),
    /// Release parked events beside a healthy lane: how long it takes, and what it costs the lane
    Release(ReleaseArgs),
    /// Break everything there is, again and again, under load, and count what a consumer got
    Soak(SoakArgs),
    /// Let members of three consumer groups come, stop, die and freeze, and count what took effect
    Storm(StormArgs),
}

#[derive(Clone, Debug, Args)]
struct StormArgs {
    /// Minutes of changes
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    minutes: u32,
    /// What happens to the members; made up and printed where it is not given
    #[arg(long)]
    seed: Option<u64>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, Args)]
struct MemoryArgs {
    /// Most bytes of messages that the consumer may have in memory, in MiB
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    in_flight_mib: u32,
    /// Only compressed topics
    #[arg(long)]
    compressed: bool,
    /// Only the largest messages
    #[arg(long, conflicts_with = "compressed")]
    large: bool,
    /// How often each row is measured; its highest peak counts
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// A property for the consumer's librdkafka; may be given more than once
    #[arg(long, value_name = "NAME=VALUE", value_parser = property)]
    kafka: Vec<(String, String)>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, Args)]
struct NeighboursArgs {
    /// What the neighbours do; all of it by default, which takes some four minutes
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<neighbours::Trouble>,
    /// Seconds of load with each of them
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(5..=600))]
    seconds: u32,
    /// Another relay to measure instead of the one built with this program
    #[arg(long, value_name = "PROGRAM")]
    relay: Option<PathBuf>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, Args)]
struct ReleaseArgs {
    /// How the relay delivers; both by default, one after the other
    #[arg(long, value_enum)]
    only: Option<relay::Mode>,
    /// Parked events
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1_000..=10_000_000))]
    events: u32,
    /// Parked events of each key
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    of_a_key: u32,
    /// Seconds of load beside the release, and without it
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(5..=600))]
    seconds: u32,
    /// Release beside no load
    #[arg(long)]
    without_load: bool,
    /// Another relay to measure instead of the one built with this program
    #[arg(long, value_name = "PROGRAM")]
    relay: Option<PathBuf>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, Args)]
struct SoakArgs {
    /// Minutes of faults
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    minutes: u32,
    /// Which faults come, and in which order; made up and printed where it is not given
    #[arg(long)]
    seed: Option<u64>,
    /// Where to
    #[arg(long, value_enum, default_value_t)]
    sink: sink::Sink,
    /// How the relays deliver; exactly once, where the broker can
    #[arg(long, value_enum)]
    delivery: Option<relay::Mode>,
    /// Another relay instead of the one built with this program
    #[arg(long, value_name = "PROGRAM")]
    relay: Option<PathBuf>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, Args)]
struct InboxArgs {
    /// What to compare; all of it by default, which takes some three minutes on two cores
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<inbox::Question>,
    /// Rounds, in each of which every contestant has one turn; medians are reported
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
    /// Messages of every turn, instead of each contestant's own number
    #[arg(long, value_parser = clap::value_parser!(u32).range(1_000..=5_000_000))]
    messages: Option<u32>,
    /// Handlers of a runner at work at once, instead of its default, where they don't wait
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=256))]
    concurrency: Option<u32>,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, Args)]
struct DrainArgs {
    /// To which broker; to others than Kafka there are `large` and `latency`, the latter one event at a time
    #[arg(long, value_enum, default_value_t)]
    sink: sink::Sink,
    /// What to measure; all of it by default, which takes about ten minutes on two cores
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Scenario>,
    /// Rounds of a drain, in each of which every contestant has one turn; medians are reported
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
    /// Contestants beside pg_recvlogical and the relay over TCP, exactly once
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = drain::Extra::ALL)]
    extras: Vec<drain::Extra>,
    /// Rows of every backlog, instead of each scenario's own number
    #[arg(long, value_parser = clap::value_parser!(u32).range(1_000..=20_000_000))]
    rows: Option<u32>,
    /// Seconds of load per delivery mode of the latency scenario
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(2..=600))]
    seconds: u32,
    /// Another relay to measure instead of the one built with this program
    #[arg(long, value_name = "PROGRAM")]
    relay: Option<PathBuf>,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// 1,000,000 rows in transactions of 10,000
    Large,
    /// 200,000 transactions of one row
    Small,
    /// One transaction of 1,500,000 rows of 400 bytes: memory
    Huge,
    /// 1,000 commits of one row a second
    Latency,
}

fn property(text: &str) -> std::result::Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn main() -> ExitCode {
    if relay::is_asked_for() {
        return outbox_relay::cli::main();
    }
    if storm::is_asked_for() {
        return storm::member().unwrap_or_else(|error| {
            terminal::progress(&format!("error: {error:#}"));
            ExitCode::from(1)
        });
    }
    let cli = Cli::parse();
    let command = cli.command.unwrap_or_else(|| {
        // The default command with its own defaults, which only a parse can tell.
        Cli::parse_from(["outbox-bench", "drain"]).command.expect("a command was given")
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let outcome = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        runtime.block_on(async {
            match command {
                Command::Drain(args) => {
                    let report = drain_all(&args).await?;
                    Ok((if args.json { report.json() } else { report.text() }, true))
                }
                Command::Inbox(args) => {
                    let mut report = Report::of_this_machine(sink::Sink::Kafka).await?;
                    report.comparisons = inbox::run(&args).await?;
                    let held = report.comparisons.iter().all(inbox::Comparison::held);
                    Ok((if args.json { report.json() } else { report.text() }, held))
                }
                Command::Memory(args) => {
                    let memory = memory::run(&args).await?;
                    Ok((if args.json { memory.json() } else { memory.text() }, memory.held()))
                }
                Command::Neighbours(args) => {
                    let outcome = neighbours::run(&args).await?;
                    Ok((if args.json { outcome.json() } else { outcome.text() }, outcome.held()))
                }
                Command::Release(args) => {
                    let outcome = release::run(&args).await?;
                    Ok((if args.json { outcome.json() } else { outcome.text() }, true))
                }
                Command::Soak(args) => {
                    let outcome = soak::run(&args).await?;
                    Ok((if args.json { outcome.json() } else { outcome.text() }, outcome.held()))
                }
                Command::Storm(args) => {
                    let storm = storm::run(&args).await?;
                    Ok((if args.json { storm.json() } else { storm.text() }, storm.held()))
                }
            }
        })
    });
    match outcome {
        Ok((text, held)) => {
            terminal::print(&text);
            if held { ExitCode::SUCCESS } else { ExitCode::from(1) }
        }
        Err(error) => {
            terminal::progress(&format!("error: {error:#}"));
            ExitCode::from(1)
        }
    }
}

async fn drain_all(args: &DrainArgs) -> Result<Report> {
    let wants = |scenario| args.only.is_empty() || args.only.contains(&scenario);
    let mut report = Report::of_this_machine(args.sink).await?;
    if args.sink != sink::Sink::Kafka {
        (report.drains, report.alone) = ratio::run(args).await?;
        return Ok(report);
    }
    for (scenario, shape) in [(Scenario::Large, Shape::LARGE), (Scenario::Small, Shape::SMALL)] {
        if wants(scenario) {
            let shape = shape.with_rows(args.rows);
            report.drains.push(drain::run(&shape, args, args.rounds).await?);
        }
    }
    if wants(Scenario::Huge) {
        // Memory hardly varies, and the rate is not the point.
        let args = DrainArgs { extras: Vec::new(), ..args.clone() };
        report.drains.push(drain::run(&Shape::HUGE.with_rows(args.rows), &args, 1).await?);
    }
    if wants(Scenario::Latency) {
        report.latencies = latency::run(args).await?;
    }
    Ok(report)
}
