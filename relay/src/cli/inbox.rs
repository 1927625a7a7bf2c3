//! `outbox-relay inbox`: what a consumer gave up, and what becomes of it.

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use outbox_idempotency::dead_letters::{self, DeadLetter, Letter, Selection};
use serde_json::{Value, json};
use tokio_postgres::Client;

use super::print;
use crate::{config::Config, postgres::sql, printable};

/// Listed at once, so that any number of them takes the same memory.
const PAGE: i64 = 1000;

/// What to look after.
#[derive(Debug, Subcommand)]
pub(super) enum Part {
    /// Look at messages that a consumer gave up, and replay or discard them
    #[command(after_help = "Examples:
  outbox-relay inbox dead-letters list --postgres postgres://operator@db/billing
  outbox-relay inbox dead-letters replay --code card-declined
  outbox-relay inbox dead-letters discard 7

A replayed message is handled again by its consumer alone, behind what waits of its key; a running
consumer takes it within a second.")]
    DeadLetters {
        #[command(subcommand)]
        action: Action,
    },
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// List them, oldest first
    List {
        /// Only those with this code
        #[arg(long)]
        code: Option<String>,
        /// Also what was replayed or discarded
        #[arg(long)]
        all: bool,
    },
    /// Show one with its payload and headers
    Show {
        /// Its number in the list
        #[arg(value_name = "ID")]
        id: i64,
    },
    /// Let them be handled again
    Replay(Chosen),
    /// Give them up for good; they stay as history
    Discard(Chosen),
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct Chosen {
    /// The one of this number
    #[arg(value_name = "ID")]
    id: Option<i64>,
    /// All with this code
    #[arg(long)]
    code: Option<String>,
    /// All
    #[arg(long)]
    all: bool,
}

/// Does it, and prints what came of it.
pub(super) async fn run(
    config: &Config,
    part: Part,
    consumer: Option<String>,
    json: bool,
) -> anyhow::Result<()> {
    let session = sql::connect(&config.connect()?, "outbox-relay inbox").await;
    let session = session.context("connecting to PostgreSQL")?;
    let client = session.client();
    let Part::DeadLetters { action } = part;
    match action {
        Action::List { code, all } => {
            list(client, &Selection { id: None, code, consumer }, all, json).await?;
        }
        Action::Show { id } => {
            let Some(letter) = dead_letters::show(client, id).await.context(READING)? else {
                bail!("there is no dead letter {id}");
            };
            print(&whole(&letter, json));
        }
        Action::Replay(chosen) => {
            let selection = chosen.selection(consumer);
            let count = dead_letters::replay(client, &selection).await.context(CHANGING)?;
            report(&selection, count, "replayed", json)?;
        }
        Action::Discard(chosen) => {
            let selection = chosen.selection(consumer);
            let count = dead_letters::discard(client, &selection).await.context(CHANGING)?;
            report(&selection, count, "discarded", json)?;
        }
    }
    if !session.is_closed() {
        session.close().await;
    }
    Ok(())
}

const READING: &str = "reading inbox.dead_letters";
const CHANGING: &str = "changing inbox.dead_letters; nothing was changed";

impl Chosen {
    fn selection(self, consumer: Option<String>) -> Selection {
        Selection { id: self.id, code: self.code, consumer }
    }
}

fn report(selection: &Selection, count: u64, done: &str, json: bool) -> anyhow::Result<()> {
    if let (Some(id), 0) = (selection.id, count) {
        bail!("there is no dead letter {id} that was not replayed or discarded before");
    }
    print(&if json { json!({ done: count }).to_string() } else { format!("{count} {done}") });
    Ok(())
}

async fn list(client: &Client, selection: &Selection, all: bool, json: bool) -> anyhow::Result<()> {
    let (mut after, mut count) = (i64::MIN, 0_u64);
    loop {
        let page =
            dead_letters::list(client, selection, all, after, PAGE).await.context(READING)?;
        let Some(last) = page.last() else { break };
        after = last.id;
        for letter in &page {
            if json {
                let letter = serde_json::to_string(letter).expect("plain data has a JSON form");
                print(&format!("{}{letter}", if count == 0 { "[" } else { "," }));
            } else {
                print(&printable::line(&line(letter)));
            }
            count += 1;
        }
    }
    match (json, count) {
        (true, 0) => print("[]"),
        (true, _) => print("]"),
        (false, 0) => print("there are no dead letters"),
        (false, _) => {}
    }
    Ok(())
}

/// One line: number, consumer, where, key, code, error.
fn line(letter: &DeadLetter) -> String {
    let DeadLetter { id, consumer, state, topic, partition, offset, code, error, died_at, .. } =
        letter;
    let key = match &letter.key {
        Value::Null => "-".to_owned(),
        Value::String(key) => key.clone(),
        other => other.to_string(),
    };
    let state = if state == "dead" { String::new() } else { format!("  {state}") };
    format!(
        "{id:>8}{state}  {consumer}  {topic}/{partition}@{offset}  {key}  {code}: {error}  ({died_at})"
    )
}

fn whole(letter: &Letter, json: bool) -> String {
    let value = json!(letter);
    if json {
        return serde_json::to_string_pretty(&value).expect("plain data has a JSON form");
    }
    let members = value.as_object().into_iter().flatten();
    members
        .map(|(name, value)| match value {
            Value::String(text) => format!("{name:<16} {}\n", printable::line(text)),
            other => format!("{name:<16} {}\n", printable::line(&other.to_string())),
        })
        .collect()
}
