//! `outbox-relay dead-letters`: what is parked, and what becomes of it.

use std::{
    io::{IsTerminal as _, Read as _},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{output::eprint, print};
use crate::{
    config::Config,
    dead_letter::{
        Edit,
        operator::{self, Entry, Group, Letter, Operator, Released, Selection},
    },
    postgres::sql,
    printable,
};

/// What to do.
#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// List what is parked, in order
    #[command(after_help = "Examples:
  outbox-relay dead-letters list --by lane
  outbox-relay dead-letters list --topic orders --key customer-1 --limit 1000")]
    List(ListArgs),
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
    /// Leave events out for good: they will not be delivered
    #[command(after_help = "Examples:
  outbox-relay dead-letters discard 7 --why 'sent by hand'
  outbox-relay dead-letters discard --topic orders --key customer-1
  outbox-relay dead-letters discard --topic typo --reason unknown_topic --yes

It asks first, with the number of events. Without a terminal, a selection needs --yes. Who did it, and
why, is kept with each event. What waits behind a discarded event stays parked until it is released.")]
    Discard(DiscardArgs),
}

/// What to list.
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Also what was released or discarded
    #[arg(long)]
    all: bool,
    /// Count, instead of listing each
    #[arg(long, value_enum, conflicts_with = "all")]
    by: Option<By>,
    /// At most so many [default: 100, without --json]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
    limit: Option<i64>,
    #[command(flatten)]
    of: OfArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum By {
    /// Topic and key: what waits for one another
    Lane,
    /// Topic and reason
    Reason,
}

/// Which events.
#[derive(Debug, Args)]
struct OfArgs {
    /// Of this topic
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// Of this key
    #[arg(long, value_name = "KEY", requires = "topic")]
    key: Option<String>,
    /// Parked for this reason, as the list names it
    #[arg(long, value_name = "REASON")]
    reason: Option<String>,
}

impl OfArgs {
    fn selection(self, ids: Vec<i64>) -> Selection {
        Selection { ids, topic: self.topic, key: self.key, reason: self.reason }
    }
}

/// What to release.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).multiple(true).args(["topic", "reason", "all"]))]
pub(super) struct ReleaseArgs {
    #[command(flatten)]
    of: OfArgs,
    /// Everything that is parked
    #[arg(long, conflicts_with_all = ["topic", "key", "reason"])]
    all: bool,
}

/// What to discard.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("which").required(true).multiple(true).args(["ids", "topic", "reason", "all"]))]
pub(super) struct DiscardArgs {
    /// Their numbers in the list
    #[arg(value_name = "ID", conflicts_with_all = ["topic", "key", "reason", "all"])]
    ids: Vec<i64>,
    #[command(flatten)]
    of: OfArgs,
    /// Everything that is parked
    #[arg(long, conflicts_with_all = ["topic", "key", "reason"])]
    all: bool,
    /// Why; it is kept with the events
    #[arg(long, value_name = "TEXT")]
    why: Option<String>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
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
    operator.is_known(&config.postgres.slot).await?;
    match action {
        Action::List(arguments) => list(&mut operator, arguments, json).await?,
        Action::Show { id } => print(&letter(&operator.show(id).await?, json)),
        Action::Edit(arguments) => {
            let id = arguments.id;
            print(&letter(&operator.edit(id, &arguments.edit()?).await?, json));
        }
        Action::Release(ReleaseArgs { of, .. }) => release(&mut operator, of, json).await?,
        Action::Discard(arguments) => discard(&mut operator, arguments, json).await?,
    }
    if !session.is_closed() {
        session.close().await;
    }
    Ok(())
}

/// Lines of a list that nobody limited.
const LINES: i64 = 100;
/// A person sees how far a release is this often.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

async fn list(operator: &mut Operator<'_>, arguments: ListArgs, json: bool) -> anyhow::Result<()> {
    let ListArgs { all, by, limit, of } = arguments;
    let selection = of.selection(vec![]);
    let limit = limit.or((!json).then_some(LINES));
    if let Some(by) = by {
        return groups(operator, &selection, by, limit, json).await;
    }
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
    let more = operator.list(&selection, all, limit, each).await?;
    match (json, count) {
        (true, 0) => print("[]"),
        (true, _) => print("]"),
        (false, 0) if !all && selection != Selection::default() => {
            operator.count(&selection).await?;
        }
        (false, 0) => print("nothing is parked"),
        (false, _) if more > 0 => print(&format!(
            "… and {more} more: --limit N lists more of them, --by lane counts them, --topic, --key and --reason choose"
        )),
        (false, _) => {}
    }
    Ok(())
}

async fn groups(
    operator: &mut Operator<'_>,
    selection: &Selection,
    by: By,
    limit: Option<i64>,
    json: bool,
) -> anyhow::Result<()> {
    let by = match by {
        By::Lane => operator::By::Lane,
        By::Reason => operator::By::Reason,
    };
    let groups = operator.groups(selection, by, limit).await?;
    if json {
        print(&serde_json::to_string_pretty(&groups).expect("plain data has a JSON form"));
        return Ok(());
    }
    if groups.is_empty() {
        operator.count(selection).await?;
        print("nothing is parked");
    }
    for Group { topic, key, reason, events, first, parked_at } in &groups {
        let topic = topic.as_deref().unwrap_or("(no topic)");
        let key = key.as_ref().map_or_else(String::new, |key| format!("  {}", shown(key)));
        let reason = reason.as_deref().unwrap_or("-");
        print(&printable::line(&format!(
            "{events:>8}  {topic}{key}  {reason}  from {first} on, since {parked_at}"
        )));
    }
    if limit.is_some_and(|limit| groups.len() as u64 == limit.unsigned_abs()) {
        print("there may be more: --limit N lists more of them");
    }
    Ok(())
}

async fn release(operator: &mut Operator<'_>, of: OfArgs, json: bool) -> anyhow::Result<()> {
    let selection = of.selection(vec![]);
    let total = operator.count(&selection).await?;
    let mut reported = Instant::now();
    let done = operator
        .release(&selection, |events| {
            if reported.elapsed() >= REPORT_INTERVAL {
                reported = Instant::now();
                eprint(&format!("{events} of about {total} events are announced"));
            }
        })
        .await?;
    print(&released(&done, json));
    Ok(())
}

/// Asks first: nothing brings back what was left out.
async fn discard(
    operator: &mut Operator<'_>,
    arguments: DiscardArgs,
    json: bool,
) -> anyhow::Result<()> {
    let DiscardArgs { ids, of, all: _, why, yes } = arguments;
    let why = why.as_deref();
    let selection = of.selection(ids);
    let count = match selection.ids.as_slice() {
        [id] => i64::from(operator.show(*id).await?.entry.id == *id),
        _ => operator.count(&selection).await?,
    };
    let named = u64::try_from(selection.ids.len()).unwrap_or(u64::MAX);
    if named > 1 && count.unsigned_abs() < named {
        bail!(
            "{count} of these {named} are parked; nothing was discarded: see `dead-letters list`"
        );
    }
    let events = if count == 1 { "1 event".to_owned() } else { format!("{count} events") };
    let question = format!("{events} will never be delivered. Discard?");
    if !(yes || ask(&question, named == 0)?) {
        bail!("nothing was discarded");
    }
    if let [id] = selection.ids.as_slice() {
        let discarded = operator.discard(*id, why).await?;
        let event = printable::line(discarded.entry.event_id.as_deref().unwrap_or("without an id"));
        print(&match json {
            true => letter(&discarded, true),
            false => format!("dead letter {id}, event {event}, will not be delivered"),
        });
        return Ok(());
    }
    let count = operator.discard_all(&selection, why).await?;
    print(&match json {
        true => json!({ "discarded": count }).to_string(),
        false => format!("{count} events will not be delivered"),
    });
    Ok(())
}

/// A person's answer. Without a terminal, what names each event is an answer by itself; a selection
/// is none, for it may have more than was thought of.
fn ask(question: &str, selects: bool) -> anyhow::Result<bool> {
    let input = std::io::stdin();
    if !input.is_terminal() {
        if selects {
            bail!("{question} There is nobody to ask: give --yes; nothing was discarded");
        }
        return Ok(true);
    }
    eprint(&format!("{question} [y/N]"));
    let mut answer = String::new();
    input.read_line(&mut answer).context("reading the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// One line: number, position, topic, key, reason, error.
fn line(entry: &Entry) -> String {
    let Entry { id, position, reason, error, parked_at, .. } = entry;
    let topic = entry.topic.as_deref().unwrap_or("(no topic)");
    let key = shown(&entry.key);
    let state = entry.state.as_ref().map_or_else(String::new, |state| format!("  {state}"));
    format!("{id:>8}{state}  {position:<20}  {topic}  {key}  {reason}: {error}  ({parked_at})")
}

fn shown(key: &Value) -> String {
    match key {
        Value::Null => "-".to_owned(),
        Value::String(key) => key.clone(),
        other => other.to_string(),
    }
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
    let Released { releases, events, lanes, unfit } = released;
    if releases.is_empty() {
        return "nothing is parked".into();
    }
    let mut text = format!(
        "{events} events of {lanes} lanes are announced, in {} releases: they are delivered when the \
         relay comes to them",
        releases.len()
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
