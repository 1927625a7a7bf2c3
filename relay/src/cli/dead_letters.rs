//! `outbox-relay dead-letters`: what is parked, and what becomes of it.

use std::{io::Read as _, path::PathBuf};

use anyhow::Context;
use clap::{ArgGroup, Args, Subcommand};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::print;
use crate::{
    config::Config,
    dead_letter::{
        Edit,
        operator::{Entry, Letter, Operator, Released, Selection},
    },
    postgres::sql,
    printable,
};

/// What to do.
#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// List what is parked, in order
    List {
        /// Also what was released or discarded
        #[arg(long)]
        all: bool,
    },
    /// Show one dead letter with its payload and headers
    Show {
        /// Its number in the list
        #[arg(value_name = "ID")]
        id: i64,
    },
    /// Change a parked event before it is released
    #[command(after_help = "Examples:
  outbox-relay dead-letters edit 7 --topic orders
  outbox-relay dead-letters edit 7 --headers '{\"traceparent\": \"00-1-2-01\"}'
  outbox-relay dead-letters edit 7 --payload smaller.json

Its place and what waits behind it stay as they are. An event that is given another topic, key or
partition enters its new lane where it is released; that lane must not be parked itself.")]
    Edit(EditArgs),
    /// Deliver parked events, whole lanes at a time
    #[command(after_help = "Examples:
  outbox-relay dead-letters release --topic orders --key customer-1
  outbox-relay dead-letters release --all

The relay delivers them, in order, when its stream has come to this command, and then what is
committed later. An event that is refused again is parked again, with all behind it in its lane.")]
    Release(ReleaseArgs),
    /// Leave one event out, for good
    Discard {
        /// Its number in the list
        #[arg(value_name = "ID")]
        id: i64,
    },
}

/// What to release.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).args(["topic", "all"]))]
pub(super) struct ReleaseArgs {
    /// Lanes of this topic
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// Only the lane of this key
    #[arg(long, value_name = "KEY", requires = "topic")]
    key: Option<String>,
    /// Everything that is parked
    #[arg(long)]
    all: bool,
}

/// What to change.
#[derive(Debug, Args)]
pub(super) struct EditArgs {
    /// Its number in the list
    #[arg(value_name = "ID")]
    id: i64,
    /// Destination
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// Partition key
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// No partition key
    #[arg(long, conflicts_with = "key")]
    no_key: bool,
    /// Explicit partition
    #[arg(long, value_name = "N")]
    partition: Option<i32>,
    /// No explicit partition
    #[arg(long, conflicts_with = "partition")]
    no_partition: bool,
    /// Event type
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// File with the payload's bytes; - reads standard input
    #[arg(long, value_name = "FILE")]
    payload: Option<PathBuf>,
    /// No payload
    #[arg(long, conflicts_with = "payload")]
    tombstone: bool,
    /// The row's own headers, all of them: a flat JSON object of strings
    #[arg(long, value_name = "JSON")]
    headers: Option<String>,
    /// Record timestamp, as in 2026-11-24T18:31:27Z
    #[arg(long, value_name = "TIME")]
    timestamp: Option<Timestamp>,
}

impl EditArgs {
    fn edit(self) -> anyhow::Result<Edit> {
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

/// Does it, and prints what came of it.
pub(super) async fn run(config: &Config, action: Action, json: bool) -> anyhow::Result<()> {
    let application = format!("outbox-relay {} dead-letters", config.name);
    let mut session =
        sql::connect(&config.connect()?, &application).await.context("connecting to PostgreSQL")?;
    let mut operator = Operator::new(session.client_mut(), &config.name);
    match action {
        Action::List { all } => list(&mut operator, all, json).await?,
        Action::Show { id } => print(&letter(&operator.show(id).await?, json)),
        Action::Edit(arguments) => {
            let id = arguments.id;
            print(&letter(&operator.edit(id, &arguments.edit()?).await?, json));
        }
        Action::Release(ReleaseArgs { topic, key, .. }) => {
            print(&released(&operator.release(&Selection { topic, key }).await?, json));
        }
        Action::Discard { id } => {
            let discarded = operator.discard(id).await?;
            if json {
                print(&letter(&discarded, true));
            } else {
                let event = discarded.entry.event_id.as_deref().unwrap_or("without an id");
                let event = printable::line(event);
                print(&format!("dead letter {id}, event {event}, will not be delivered"));
            }
        }
    }
    if !session.is_closed() {
        session.close().await;
    }
    Ok(())
}

async fn list(operator: &mut Operator<'_>, all: bool, json: bool) -> anyhow::Result<()> {
    let mut count = 0_u64;
    let each = |entry: Entry| {
        if json {
            let entry = serde_json::to_string(&entry).expect("plain data has a JSON form");
            print(&format!("{}{entry}", if count == 0 { "[" } else { "," }));
        } else {
            print(&printable::line(&line(&entry)));
        }
        count += 1;
    };
    operator.list(all, each).await?;
    match (json, count) {
        (true, 0) => print("[]"),
        (true, _) => print("]"),
        (false, 0) => print("nothing is parked"),
        (false, _) => {}
    }
    Ok(())
}

/// One line: number, position, topic, key, reason, error.
fn line(entry: &Entry) -> String {
    let Entry { id, position, reason, error, parked_at, .. } = entry;
    let topic = entry.topic.as_deref().unwrap_or("(no topic)");
    let key = match &entry.key {
        Value::Null => "-".to_owned(),
        Value::String(key) => key.clone(),
        other => other.to_string(),
    };
    let state = entry.state.as_ref().map_or_else(String::new, |state| format!("  {state}"));
    format!("{id:>8}{state}  {position:<20}  {topic}  {key}  {reason}: {error}  ({parked_at})")
}

fn letter(letter: &Letter, json: bool) -> String {
    let value = json!(letter);
    if json {
        return serde_json::to_string_pretty(&value).expect("plain data has a JSON form");
    }
    let members = value.as_object().into_iter().flatten();
    members
        .map(|(name, value)| match value {
            Value::String(text) => format!("{name:<13} {}\n", printable::line(text)),
            other => format!("{name:<13} {}\n", printable::line(&other.to_string())),
        })
        .collect()
}

fn released(released: &Released, json: bool) -> String {
    if json {
        return serde_json::to_string_pretty(released).expect("plain data has a JSON form");
    }
    let Released { release, events, lanes, unfit } = released;
    let Some(release) = release else { return "nothing of this is parked".into() };
    let mut text = format!(
        "release {release}: {events} events of {lanes} lanes are delivered when the relay comes to it"
    );
    if !unfit.is_empty() {
        let unfit: Vec<String> = unfit.iter().map(ToString::to_string).collect();
        text.push_str(&format!(
            "\nno records, to be edited or discarded: {}; they will be parked again, with what is \
             behind them",
            unfit.join(", ")
        ));
    }
    text
}
