//! What can be typed: commands, flags, their help, and the settings that follow.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use jiff::Timestamp;
use outbox_migrations::Set;

use super::command::{dead_letters, demo, inbox, resume};
use crate::{
    config::{
        self, Config, DEFAULT_FILE, Environment, Origin, Overrides, Problems, Purpose, Sources,
        parts,
    },
    core::position::RowPosition,
};

/// What all subcommands have stands behind their own options.
const BEHIND: usize = 100;

const AFTER_HELP: &str = "\
Examples:
  outbox-relay demo                                        see it work; needs nothing but PostgreSQL
  outbox-relay migrate --postgres postgres://owner@db/app  create the outbox table
  outbox-relay check   --postgres postgres://relay@db/app --kafka kafka:9092
  outbox-relay run     --postgres postgres://relay@db/app --kafka kafka:9092
  outbox-relay status

These examples publish to Kafka. For NATS JetStream, RabbitMQ, SQS, SNS, Pulsar or a file, set sink.kind in outbox-relay.toml.
Settings come from outbox-relay.toml, then from OUTBOX_RELAY__SECTION__KEY in the environment, then
from flags; `outbox-relay config` prints the effective ones.
Exit codes: 0 done, 1 failed or problems found, 2 wrong usage or settings.";

/// Publishes a PostgreSQL outbox through logical replication: to Kafka, NATS JetStream, RabbitMQ, SQS, SNS, Pulsar, or a file
#[derive(Debug, Parser)]
#[command(name = "outbox-relay", version, after_help = AFTER_HELP, max_term_width = 100)]
pub(super) struct Cli {
    /// Settings file [default: outbox-relay.toml, if it is there]
    #[arg(long, global = true, value_name = "FILE", display_order = BEHIND)]
    pub(super) config: Option<PathBuf>,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the relay until SIGTERM or SIGINT
    #[command(after_help = "Example:
  outbox-relay run --postgres postgres://relay@db/app --kafka kafka:9092

A password on the command line is visible to everyone on the machine: set OUTBOX_RELAY__POSTGRES__URL
or postgres.url_file instead.

Exit code 0 after SIGTERM or SIGINT; 1 if it can't start; 2 for wrong settings. Outages and halts do
not end it: see `outbox-relay status`.")]
    Run(Flags),
    /// Check every precondition, and print a remedy for each that fails
    #[command(after_help = "Ends within 15 s; exit code 1 if there is a problem.")]
    Check {
        #[command(flatten)]
        flags: Flags,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Create or upgrade the tables in a database
    #[command(after_help = "Examples:
  outbox-relay migrate --postgres postgres://owner@db/app
  outbox-relay migrate --print | psql -1 -v ON_ERROR_STOP=1 service=app

Exit code 0, also if there was nothing to do; 1 if it failed, and then nothing was changed.")]
    Migrate {
        /// Connection string of the owner of the tables
        #[arg(long, value_name = "URL")]
        postgres: Option<String>,
        /// Which tables: `outbox`, the producer's, or `inbox`, a consumer's
        #[arg(long, default_value = "outbox")]
        set: Set,
        /// Print the SQL instead of applying it; needs no database
        #[arg(long)]
        print: bool,
    },
    /// Show how a running relay is doing
    #[command(after_help = "\
Exit code 0 if the relay is ready: it delivers, or could take over immediately. 1 if it is not (it
starts, waits, repairs, or has halted: the phase says which, and the reason), or if no relay answers.")]
    Status {
        /// Address of the relay's admin server [default: admin.listen]
        #[arg(long, value_name = "HOST:PORT")]
        admin: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Resume a halted relay with an explicit decision
    #[command(after_help = "Examples:
  outbox-relay resume --at slot              continue at the slot's confirmed position
  outbox-relay resume --at progress          continue at stored progress; leave out events that
                                             the slot lacks
  outbox-relay resume --at upgrade           continue after pg_upgrade; leave out nothing
  outbox-relay resume --at table             make a new slot; publish what was created since the
                                             newest published event
  outbox-relay resume --at table --since 2026-05-04T10:00:00Z
                                             the same, and once more what was created since then
  outbox-relay resume --at now               make a new slot; leave out what is not published yet
  outbox-relay resume --skip 16/B374D848:12  leave this one event out

The log and /readyz of a halted relay name the command to type. A halted relay looks again within ten
seconds and finds the decision by itself. A relay that works, or waits for a broker, must be stopped
first.

If the decision leaves events out or repeats them, the command says how many, where that can be
known, and asks. Without a terminal it then needs --yes.

Exit code 1: a relay is at work, or the decision does not match what is there; nothing was changed.")]
    Resume {
        #[command(flatten)]
        flags: Flags,
        #[command(flatten)]
        decision: ResumeArgs,
    },
    /// Look at events that were rejected permanently, and edit, release or discard them
    #[command(after_help = "Examples:
  outbox-relay dead-letters list
  outbox-relay dead-letters release --topic orders --key customer-1

It needs PostgreSQL alone, and the rights of docs/ROLES.md's operator. Exit code 0, also if nothing
is parked; 1 if the given relay, topic, key, reason or number does not exist, or nothing was
changed.")]
    DeadLetters {
        /// Connection string of an operator [setting: postgres.url]
        #[arg(long, global = true, value_name = "URL", display_order = BEHIND + 1)]
        postgres: Option<String>,
        /// The relay's name [setting: name; default: the database's name]
        #[arg(long, global = true, display_order = BEHIND + 2)]
        name: Option<String>,
        /// The route whose relay it is, if the settings have routes
        #[arg(long, global = true, value_name = "NAME", display_order = BEHIND + 3)]
        route: Option<String>,
        /// Print JSON
        #[arg(long, global = true, display_order = BEHIND + 4)]
        json: bool,
        #[command(subcommand)]
        action: dead_letters::Action,
    },
    /// Inspect and replay a consumer's dead letters
    Inbox {
        /// Connection string of an operator of the consumer's database [setting: postgres.url]
        #[arg(long, global = true, value_name = "URL", display_order = BEHIND + 1)]
        postgres: Option<String>,
        /// Only this consumer, such as billing/charge
        #[arg(long, global = true, value_name = "NAME", display_order = BEHIND + 2)]
        consumer: Option<String>,
        /// Print JSON
        #[arg(long, global = true, display_order = BEHIND + 3)]
        json: bool,
        #[command(subcommand)]
        part: inbox::Part,
    },
    /// Print the effective settings, each with where it came from; secrets as ***
    #[command(after_help = "Exit code 2 if a setting is wrong; all that are wrong are named.")]
    Config(Flags),
    /// See it work: writers, a relay that is killed repeatedly, a consumer, and a count of every event
    #[command(after_help = demo::AFTER_HELP)]
    Demo(demo::DemoArgs),
}

impl Command {
    /// Whether a program reads what it prints: then its error is JSON, too.
    pub(super) fn prints_json(&self) -> bool {
        match self {
            Command::Check { json, .. }
            | Command::Status { json, .. }
            | Command::DeadLetters { json, .. }
            | Command::Inbox { json, .. } => *json,
            _ => false,
        }
    }
}

/// Settings that have a flag.
#[derive(Debug, Args)]
pub(super) struct Flags {
    /// Connection string of the database [setting: postgres.url]
    #[arg(long, value_name = "URL")]
    postgres: Option<String>,
    /// Addresses of the brokers, separated by commas [setting: sink.properties."bootstrap.servers"]
    #[arg(long, value_name = "BROKERS")]
    kafka: Option<String>,
    /// The relay's name [setting: name; default: the database's name]
    #[arg(long)]
    name: Option<String>,
    /// Where to serve health, metrics and status, or "off" [setting: admin.listen]
    #[arg(long, value_name = "HOST:PORT")]
    admin: Option<String>,
    /// Level or filter of the log [setting: log.level]
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct ResumeArgs {
    /// Where to continue
    #[arg(long, value_enum, required_unless_present = "skip", conflicts_with = "skip")]
    at: Option<At>,
    /// The position of the event to leave out, as the relay names it
    #[arg(long, value_name = "POSITION")]
    skip: Option<RowPosition>,
    /// With --at table: also publish again what was created since this moment, such as
    /// 2026-05-04T10:00:00Z, which may be earlier than the newest published event
    #[arg(long, value_name = "TIME", requires = "at", conflicts_with = "skip")]
    since: Option<Timestamp>,
    /// Do not ask, even if more events are left out than the command names
    #[arg(long)]
    pub(super) yes: bool,
    /// The route whose relay it is, if the settings have routes
    #[arg(long, value_name = "NAME")]
    pub(super) route: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum At {
    /// At the slot's confirmed position
    Slot,
    /// At stored progress, with what the slot still has
    Progress,
    /// Where the old cluster ended, after pg_upgrade
    Upgrade,
    /// At a new slot, after publishing from the table what was created since the newest published event
    Table,
    /// At a new slot, made at the next start; leaves out everything before it
    Now,
}

impl ResumeArgs {
    /// # Errors
    /// A moment, where the decision does not go by one.
    pub(super) fn decision(&self) -> anyhow::Result<resume::Decision> {
        if self.since.is_some() && !matches!(self.at, Some(At::Table)) {
            bail!("--since goes with `--at table` alone: nothing was changed");
        }
        Ok(match (self.skip, self.at) {
            (Some(row), _) => resume::Decision::Skip(row),
            (None, Some(At::Slot)) => resume::Decision::AtSlot,
            (None, Some(At::Progress)) => resume::Decision::AtProgress,
            (None, Some(At::Upgrade)) => resume::Decision::AtUpgrade,
            (None, Some(At::Table)) => {
                let since_ms = self.since.map(Timestamp::as_millisecond);
                resume::Decision::AtTable { since_ms }
            }
            (None, Some(At::Now)) => resume::Decision::AtNow,
            (None, None) => unreachable!("one of them is required"),
        })
    }
}

/// The settings for commands that concern the whole relay: of each route, if there are any.
pub(super) fn relay_settings(
    file: Option<PathBuf>,
    flags: &Flags,
) -> Result<Vec<Config>, Problems> {
    config::load_relays(&sources(file, flags.overrides()), Purpose::Relay, parts::examine)
}

/// What is the same for all relays of the process, as the log is.
///
/// # Errors
/// None: there is always one.
pub(super) fn of_process(configs: &[Config]) -> anyhow::Result<&Config> {
    configs.first().context("there are no settings")
}

/// The relay that a command is for.
///
/// # Errors
/// The settings have several routes and no name was given, or no route has that name.
pub(super) fn one_of(configs: Vec<Config>, named: Option<&str>) -> anyhow::Result<Config> {
    let routes = configs.iter().filter_map(|it| it.route.as_ref());
    let routes: Vec<&str> = routes.map(|route| route.name.as_str()).collect();
    let there =
        routes.iter().map(|route| format!("--route {route}")).collect::<Vec<_>>().join(" or ");
    match named {
        None if routes.len() <= 1 => {
            return configs.into_iter().next().context("there are no settings");
        }
        Some(named) if routes.contains(&named) => {}
        None => bail!("the settings have several routes: add {there}. Nothing was changed"),
        Some(named) if routes.is_empty() => {
            bail!("the settings have no routes, so there is no route {named:?}: leave --route out")
        }
        Some(named) => bail!("the settings have no route {named:?}: give {there}"),
    }
    let is_it = |it: &Config| it.route.as_ref().map(|route| route.name.as_str()) == named;
    configs.into_iter().find(is_it).context("there are no settings")
}

impl Flags {
    fn overrides(&self) -> Overrides {
        Overrides::default()
            .with("--postgres", "postgres.url", self.postgres.as_deref())
            .with("--kafka", "sink.properties.bootstrap.servers", self.kafka.as_deref())
            .with("--name", "name", self.name.as_deref())
            .with("--admin", "admin.listen", self.admin.as_deref())
            .with("--log", "log.level", self.log.as_deref())
    }
}

pub(super) fn sources(file: Option<PathBuf>, flags: Overrides) -> Sources {
    Sources {
        explicit: file.is_some(),
        file: Some(file.unwrap_or_else(|| PathBuf::from(DEFAULT_FILE))),
        env: Environment::of_process(),
        flags,
    }
}

/// For commands whose output is the point: the log only warns, unless a level was asked for.
pub(super) fn quiet(config: &Config) -> config::LogConfig {
    let mut log = config.log.clone();
    if config.origin("log.level") == Origin::Default {
        log.level = "warn".into();
    }
    log
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn help_names_every_kind_of_sink() {
        let help = Cli::command().render_help().to_string();
        let (about, rest) = help.split_once("Usage:").expect("both");
        for kind in ["Kafka", "NATS JetStream", "RabbitMQ", "SQS", "SNS", "Pulsar", "file"] {
            assert!(about.contains(kind), "{about}");
        }
        assert!(rest.contains("sink.kind"), "{rest}");
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_become_settings() {
        let cli = Cli::parse_from([
            "outbox-relay",
            "run",
            "--postgres",
            "postgres://h/app",
            "--kafka",
            "a:1,b:2",
            "--name",
            "n",
            "--admin",
            "off",
            "--log",
            "debug",
            "--config",
            "x.toml",
        ]);
        assert_eq!(cli.config, Some(PathBuf::from("x.toml")));
        let Command::Run(flags) = cli.command else { panic!("run was typed") };
        let sources = Sources { flags: flags.overrides(), ..Sources::default() };
        let config = config::load(&sources, Purpose::Relay).expect("complete");
        assert_eq!(config.name, "n");
        assert_eq!(config.sink.properties.get("bootstrap.servers"), Some("a:1,b:2"));
        assert_eq!((config.admin.listen, config.log.level.as_str()), (None, "debug"));
    }

    #[test]
    fn migrate_knows_its_sets() {
        let parse = |set| Cli::try_parse_from(["outbox-relay", "migrate", "--set", set]);
        assert!(parse("outbox").is_ok() && parse("inbox").is_ok());
        assert!(parse("both").is_err());
    }
}
