//! What can be typed after `outbox-relay dead-letters`.

use std::{io::Read as _, path::PathBuf};

use anyhow::Context;
use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use jiff::Timestamp;

use crate::{
    cli::listed::listed,
    dead_letter::{Edit, operator::Selection},
};

/// What to do.
#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Action {
    /// List parked events, in order
    #[command(after_help = "Examples:
  outbox-relay dead-letters list --by lane
  outbox-relay dead-letters list --topic orders --key customer-1 --limit 1000")]
    List(ListArgs),
    /// Show one dead letter with its payload and headers
    Show {
        /// Its number in the list
        #[arg(value_name = "ID", value_parser = listed)]
        id: i64,
    },
    /// Change a parked event before it is released
    #[command(after_help = "Examples:
  outbox-relay dead-letters edit 7 --topic orders
  outbox-relay dead-letters edit 7 --headers '{\"traceparent\": \"00-1-2-01\"}'
  outbox-relay dead-letters edit 7 --payload smaller.json

Its place and what waits behind it stay as they are. An event that is given another topic, key or
partition enters its new lane where it is released; that lane must not be parked itself. The command
prints what it has changed; `show` prints the event.")]
    Edit(EditArgs),
    /// Deliver parked events: always whole lanes, each the parked events of one topic and key
    #[command(after_help = "Examples:
  outbox-relay dead-letters release 7
  outbox-relay dead-letters release --topic orders --key customer-1
  outbox-relay dead-letters release --all

The relay delivers them, in order, as soon as it has delivered what was committed before this command.
What is committed later follows them. An event that is refused again is parked again, with all behind it in its lane.

It asks only about events that were put back into the table from a copy of it: those that were released
or discarded after the copy was made would come a second time. Without a terminal it then needs --yes.")]
    Release(ReleaseArgs),
    /// Discard events permanently: they will not be delivered
    #[command(after_help = "Examples:
  outbox-relay dead-letters discard 7 --why 'sent by hand'
  outbox-relay dead-letters discard --topic orders --key customer-1
  outbox-relay dead-letters discard --topic typo --reason unknown_topic --yes

It asks first, with the number of events. Without a terminal, events that are named by their numbers
are discarded without a question, and a selection needs --yes. Who did it, and why, is kept with
each event. What waits behind a discarded event stays parked until it is released.")]
    Discard(DiscardArgs),
}

/// What to list.
#[derive(Debug, Args)]
pub(in crate::cli) struct ListArgs {
    /// Also list released and discarded events
    #[arg(long)]
    pub(super) all: bool,
    /// Print counts instead of events
    #[arg(long, value_enum, conflicts_with = "all")]
    pub(super) by: Option<By>,
    /// Maximum number of lines [default: 100; with --json no limit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
    pub(super) limit: Option<i64>,
    #[command(flatten)]
    pub(super) of: OfArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(in crate::cli) enum By {
    /// By topic and key
    Lane,
    /// By topic and reason
    Reason,
}

/// Which events.
#[derive(Debug, Args)]
pub(in crate::cli) struct OfArgs {
    /// Only this topic
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// Only this key; needs --topic
    #[arg(long, value_name = "KEY", requires = "topic")]
    key: Option<String>,
    /// Only events parked for this reason, as the list prints it
    #[arg(long, value_name = "REASON")]
    reason: Option<String>,
}

impl OfArgs {
    pub(super) fn selection(self, ids: Vec<i64>) -> Selection {
        Selection { ids, topic: self.topic, key: self.key, reason: self.reason }
    }
}

/// What to release.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).multiple(true).args(["ids", "topic", "key", "reason", "all"]))]
pub(in crate::cli) struct ReleaseArgs {
    /// Numbers in the list; the whole lane of each is released
    #[arg(value_name = "ID", value_parser = listed, conflicts_with_all = ["topic", "key", "reason", "all"])]
    pub(super) ids: Vec<i64>,
    #[command(flatten)]
    pub(super) of: OfArgs,
    /// Everything that is parked
    #[arg(long, conflicts_with_all = ["topic", "key", "reason"])]
    pub(super) all: bool,
    /// Do not ask, even if events were put back from a copy of the table
    #[arg(long)]
    pub(super) yes: bool,
}

/// What to discard.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("which").required(true).multiple(true).args(["ids", "topic", "key", "reason", "all"]))]
pub(in crate::cli) struct DiscardArgs {
    /// Their numbers in the list
    #[arg(value_name = "ID", value_parser = listed, conflicts_with_all = ["topic", "key", "reason", "all"])]
    pub(super) ids: Vec<i64>,
    #[command(flatten)]
    pub(super) of: OfArgs,
    /// Everything that is parked
    #[arg(long, conflicts_with_all = ["topic", "key", "reason"])]
    pub(super) all: bool,
    /// The reason; stored with the events
    #[arg(long, value_name = "TEXT")]
    pub(super) why: Option<String>,
    /// Do not ask
    #[arg(long)]
    pub(super) yes: bool,
}

/// What to change.
#[derive(Debug, Args)]
pub(in crate::cli) struct EditArgs {
    /// Its number in the list
    #[arg(value_name = "ID", value_parser = listed)]
    pub(super) id: i64,
    /// New topic
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// New partition key
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Remove the partition key
    #[arg(long, conflicts_with = "key")]
    no_key: bool,
    /// New explicit partition
    #[arg(long, value_name = "N")]
    partition: Option<i32>,
    /// Remove the explicit partition
    #[arg(long, conflicts_with = "partition")]
    no_partition: bool,
    /// New event type
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// File with the new payload; - reads standard input
    #[arg(long, value_name = "FILE")]
    payload: Option<PathBuf>,
    /// Remove the payload
    #[arg(long, conflicts_with = "payload")]
    tombstone: bool,
    /// New headers of the row, all of them: a flat JSON object of strings
    #[arg(long, value_name = "JSON")]
    headers: Option<String>,
    /// New record timestamp, such as 2026-11-24T18:31:27Z
    #[arg(long, value_name = "TIME")]
    timestamp: Option<Timestamp>,
}

impl EditArgs {
    pub(super) fn edit(self) -> anyhow::Result<Edit> {
        let given = |none: bool, some: bool| none || some;
        let payload = match self.payload {
            Some(file) => Some(Some(read(&file)?)),
            None => self.tombstone.then_some(None),
        };
        Ok(Edit {
            topic: self.topic,
            key: given(self.no_key, self.key.is_some()).then_some(self.key),
            partition: given(self.no_partition, self.partition.is_some()).then_some(self.partition),
            event_type: self.event_type,
            payload,
            headers: self.headers,
            timestamp_ms: self.timestamp.map(Timestamp::as_millisecond),
        })
    }
}

fn read(file: &std::path::Path) -> anyhow::Result<Vec<u8>> {
    if file.as_os_str() == "-" {
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes).context("reading standard input")?;
        return Ok(bytes);
    }
    std::fs::read(file).with_context(|| format!("reading {}", file.display()))
}
