//! `outbox-relay inbox`: what a consumer gave up, and what becomes of it.

use std::io::IsTerminal as _;

use anyhow::{Context, bail};
use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use outbox_idempotency::dead_letters::{self, Counted, DeadLetter, Group, Letter, Page, Selection};
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::{
    cli::{
        ask::ask,
        listed::listed,
        output::{members, print},
    },
    config::Config,
    core::printable::{self, counted},
    postgres::sql,
};

/// Read at once, so that any number of them takes the same memory.
const PAGE: i64 = 1000;
/// Lines of a list that no one limited.
const LINES: i64 = 100;
/// Groups that are named where no dead letter matches.
const THERE_MAX: i64 = 20;

/// What to look after.
#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Part {
    /// List messages that a consumer gave up, and replay or discard them
    #[command(after_help = "Examples:
  outbox-relay inbox dead-letters list --by code --postgres postgres://operator@db/billing
  outbox-relay inbox dead-letters replay --code card-declined
  outbox-relay inbox dead-letters discard 7

A replayed message is handled again by its consumer alone, behind what waits of its key; a running
consumer takes it within a second. Exit code 1 if no dead letter matches.")]
    DeadLetters {
        #[command(subcommand)]
        action: Action,
    },
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Action {
    /// List them, oldest first
    List {
        #[command(flatten)]
        of: Of,
        /// Also list replayed and discarded ones
        #[arg(long)]
        all: bool,
        /// Print counts instead of messages
        #[arg(long, value_enum, conflicts_with = "all")]
        by: Option<By>,
        /// Maximum number of lines [default: 100; with --json no limit]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
        limit: Option<i64>,
    },
    /// Show one with its payload and headers
    Show {
        /// Its number in the list
        #[arg(value_name = "ID", value_parser = listed)]
        id: i64,
    },
    /// Replay: the consumer handles them again
    #[command(after_help = "\
It asks first, with the number of messages, unless one is named by its number. Without a terminal, a
selection needs --yes.")]
    Replay(Chosen),
    /// Discard permanently; they stay in the table as history
    #[command(after_help = "\
It asks first, with the number of messages. Without a terminal, a message that is named by its number
is discarded without a question, and a selection needs --yes.")]
    Discard(Chosen),
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(in crate::cli) enum By {
    /// By consumer, topic and code
    Code,
}

/// Which of them.
#[derive(Debug, Args)]
pub(in crate::cli) struct Of {
    /// Only those with this code
    #[arg(long)]
    code: Option<String>,
    /// Only those of this topic
    #[arg(long)]
    topic: Option<String>,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("which").required(true).multiple(true).args(["id", "code", "topic", "all"]))]
pub(in crate::cli) struct Chosen {
    /// The dead letter with this number
    #[arg(value_name = "ID", value_parser = listed, conflicts_with_all = ["code", "topic", "all"])]
    id: Option<i64>,
    #[command(flatten)]
    of: Of,
    /// All of them
    #[arg(long, conflicts_with_all = ["code", "topic"])]
    all: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// Does it, and prints what came of it.
pub(in crate::cli) async fn run(
    config: &Config,
    part: Part,
    consumer: Option<String>,
    json: bool,
) -> anyhow::Result<()> {
    let session = sql::connect(&config.connect()?, "outbox-relay inbox").await;
    let session = session.context("connecting to PostgreSQL")?;
    let client = session.client();
    is_known(client, consumer.as_deref()).await?;
    let Part::DeadLetters { action } = part;
    match action {
        Action::List { of: Of { code, topic }, all, by, limit } => {
            let selection = selection(consumer, code, topic);
            let selection = if all { selection.with_history() } else { selection };
            let limit = limit.or((!json).then_some(LINES)).unwrap_or(i64::MAX);
            match by {
                Some(By::Code) => groups(client, &selection, limit, json).await?,
                None => list(client, &selection, limit, json).await?,
            }
        }
        Action::Show { id } => {
            let Some(letter) = dead_letters::show(client, id).await? else {
                bail!("there is no dead letter {id}");
            };
            print(&whole(&letter, json));
        }
        Action::Replay(chosen) => {
            let (of, will) = (chosen.selection(consumer), "will be handled again. Replay?");
            let asks = of.id().is_none() && !chosen.yes;
            let of = agreed(client, of, asks, will, "replayed").await?;
            report(dead_letters::replay(client, &of).await?, "replayed", json);
        }
        Action::Discard(chosen) => {
            let (of, will) = (chosen.selection(consumer), "will never be handled. Discard?");
            // Without a terminal, a number is an answer by itself.
            let asks = !chosen.yes && (of.id().is_none() || std::io::stdin().is_terminal());
            let of = agreed(client, of, asks, will, "discarded").await?;
            report(dead_letters::discard(client, &of).await?, "discarded", json);
        }
    }
    if !session.is_closed() {
        session.close().await;
    }
    Ok(())
}

fn selection(consumer: Option<String>, code: Option<String>, topic: Option<String>) -> Selection {
    let mut selection = Selection::default();
    if let Some(consumer) = consumer {
        selection = selection.with_consumer(consumer);
    }
    if let Some(code) = code {
        selection = selection.with_code(code);
    }
    if let Some(topic) = topic {
        selection = selection.with_topic(topic);
    }
    selection
}

impl Chosen {
    fn selection(&self, consumer: Option<String>) -> Selection {
        let Of { code, topic } = &self.of;
        let chosen = selection(consumer, code.clone(), topic.clone());
        match self.id {
            Some(id) => chosen.with_id(id),
            None => chosen,
        }
    }
}

/// A consumer that never was here is a slip of the pen.
async fn is_known(client: &Client, consumer: Option<&str>) -> anyhow::Result<()> {
    let Some(consumer) = consumer else { return Ok(()) };
    let known = dead_letters::consumers(client).await?;
    if known.iter().any(|name| name == consumer) {
        return Ok(());
    }
    let there = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    bail!("there is no consumer {consumer} in this database; there are: {there}")
}

/// No dead letter matches: says which there are.
async fn nothing(client: &Client, selection: &Selection) -> anyhow::Error {
    if let Some(id) = selection.id() {
        return anyhow::anyhow!(
            "there is no dead letter {id} that was not replayed or discarded before"
        );
    }
    let of_consumer = self::selection(selection.consumer().map(str::to_owned), None, None);
    let there = match dead_letters::groups(client, &of_consumer, THERE_MAX).await {
        Ok(groups) => groups,
        Err(error) => return error.into(),
    };
    let there: Vec<String> =
        there.iter().map(|group| format!("{} ({})", group.topic, group.code)).collect();
    let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
    anyhow::anyhow!("no dead letter is of that code and topic; there are: {there}")
}

/// Asks where many would be changed, or one could not be taken back. Returns what was spoken of: what
/// comes meanwhile is not part of it.
async fn agreed(
    client: &Client,
    selection: Selection,
    asks: bool,
    will: &str,
    done: &str,
) -> anyhow::Result<Selection> {
    let found = dead_letters::count(client, &selection).await?;
    let Counted { letters: count, newest, .. } = found;
    let all = [selection.code(), selection.topic()] == [None; 2] && selection.id().is_none();
    if count == 0 && !all {
        return Err(nothing(client, &selection).await);
    }
    if count > 0 && asks && !ask(&format!("{} {will}", counted(count.unsigned_abs(), "message")))? {
        bail!("nothing was {done}");
    }
    Ok(selection.until(newest))
}

fn report(count: u64, done: &str, json: bool) {
    print(&if json { json!({ done: count }).to_string() } else { format!("{count} {done}") });
}

async fn groups(
    client: &Client,
    selection: &Selection,
    limit: i64,
    json: bool,
) -> anyhow::Result<()> {
    let groups = dead_letters::groups(client, selection, limit).await?;
    if json {
        print(&serde_json::to_string_pretty(&groups).expect("plain data has a JSON form"));
        return Ok(());
    }
    if groups.is_empty() {
        return none(client, selection).await;
    }
    print(&format!("{:>8}  CONSUMER  TOPIC  CODE  FIRST ID", "MESSAGES"));
    for Group { consumer, topic, code, letters, first, .. } in &groups {
        let line = format!("{letters:>8}  {consumer}  {topic}  {code}  {first}");
        print(&printable::line(&line));
    }
    if groups.len() as u64 == limit.unsigned_abs() {
        print("there may be more: --limit N lists more of them");
    }
    Ok(())
}

async fn none(client: &Client, selection: &Selection) -> anyhow::Result<()> {
    if selection.code().is_some() || selection.topic().is_some() {
        return Err(nothing(client, selection).await);
    }
    print("there are no dead letters");
    Ok(())
}

async fn list(
    client: &Client,
    selection: &Selection,
    limit: i64,
    json: bool,
) -> anyhow::Result<()> {
    let (mut after, mut count) = (i64::MIN, 0);
    while count < limit {
        let page = Page::first(PAGE.min(limit - count)).after(after);
        let page = dead_letters::list(client, selection, page).await?;
        let Some(last) = page.last() else { break };
        after = last.id;
        for letter in &page {
            if json {
                let letter = serde_json::to_string(letter).expect("plain data has a JSON form");
                print(&format!("{}{letter}", if count == 0 { "[" } else { "," }));
            } else {
                if count == 0 {
                    print(&format!("{:>8}  CONSUMER  FROM  KEY  CODE: ERROR  (DIED AT)", "ID"));
                }
                print(&printable::line(&line(letter)));
            }
            count += 1;
        }
    }
    match (json, count) {
        (true, 0) => print("[]"),
        (true, _) => print("]"),
        (false, 0) => return none(client, selection).await,
        (false, _) if count == limit => {
            let all = dead_letters::count(client, selection).await?.letters;
            if all > count {
                print(&format!(
                    "… and {} more: --limit N lists more of them, --by code counts them, --code, \
                     --topic and --consumer choose",
                    all - count
                ));
            }
        }
        (false, _) => {}
    }
    Ok(())
}

/// Characters of an error in a list; `show` has it whole.
const ERROR_MAX: usize = 1_000;

/// One line: number, consumer, where, key, code, error.
fn line(letter: &DeadLetter) -> String {
    let DeadLetter { id, consumer, state, code, error, died_at, .. } = letter;
    let source = letter.source();
    let died_at = jiff::Timestamp::try_from(*died_at);
    let died_at = died_at.map_or_else(|_| "-".to_owned(), |at| format!("{at:.3}"));
    let key = match &letter.key {
        Value::Null => "-".to_owned(),
        Value::String(key) => printable::short(key).into_owned(),
        other => printable::short(&other.to_string()).into_owned(),
    };
    let error = printable::cut(error, ERROR_MAX);
    let state = if state == "dead" { String::new() } else { format!(", {state}") };
    format!("{id:>8}  {consumer}  {source}  {key}  {code}: {error}  ({died_at}{state})")
}

fn whole(letter: &Letter, json: bool) -> String {
    members(&json!(letter), json)
}
