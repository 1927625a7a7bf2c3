//! The numbers of a comparison, and its part of the table.

use std::{fmt::Write as _, time::Duration};

use serde::Serialize;

use super::question::Question;
use crate::sample::median;

/// One contestant's turn: counted, and found right.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Turn {
    messages: usize,
    seconds: f64,
    /// Of the consumer's process.
    cpu_us_per_message: Option<f64>,
    wal_bytes_per_message: Option<f64>,
}

impl Turn {
    pub(super) fn of(messages: usize, seconds: f64) -> Self {
        Turn { messages, seconds, cpu_us_per_message: None, wal_bytes_per_message: None }
    }

    pub(super) fn measured(messages: usize, seconds: f64, cpu: Duration, wal_bytes: f64) -> Self {
        Turn {
            cpu_us_per_message: Some(cpu.as_secs_f64() * 1e6 / messages as f64),
            wal_bytes_per_message: Some(wal_bytes / messages as f64),
            ..Turn::of(messages, seconds)
        }
    }

    pub(super) fn rate(&self) -> f64 {
        self.messages as f64 / self.seconds
    }
}

/// A question, and what the rounds say to it.
#[derive(Debug, Serialize)]
pub(crate) struct Comparison {
    question: String,
    floor: f64,
    /// Median over the rounds of the first one's rate by the second one's in the same round.
    ratio: f64,
    /// The first is measured, the second is what it is a ratio of.
    contestants: Vec<Contestant>,
    /// Below the floor, the run counts as failed.
    #[serde(skip)]
    is_cliff: bool,
}

#[derive(Debug, Serialize)]
struct Contestant {
    name: String,
    median_messages_per_second: f64,
    turns: Vec<Turn>,
}

impl Comparison {
    /// Whether no cliff was found; the other floors are compared by whoever reads them.
    pub(crate) fn held(&self) -> bool {
        !self.is_cliff || self.ratio >= self.floor
    }

    pub(super) fn new(
        question: Question,
        floor: f64,
        contestants: impl Iterator<Item = (String, Vec<Turn>)>,
    ) -> Self {
        let contestants: Vec<Contestant> = contestants
            .map(|(name, turns)| Contestant {
                name,
                median_messages_per_second: median(turns.iter().map(Turn::rate)).unwrap_or(0.0),
                turns,
            })
            .collect();
        let is_cliff = question.is_cliff();
        let ratio = match contestants.as_slice() {
            [first, second, ..] => {
                let pairs = first.turns.iter().zip(&second.turns);
                median(pairs.map(|(mine, theirs)| mine.rate() / theirs.rate())).unwrap_or(0.0)
            }
            _ => 0.0,
        };
        let question = format!("{question:?}").to_lowercase();
        Comparison { question, floor, ratio, contestants, is_cliff }
    }

    pub(crate) fn table(&self, text: &mut String) {
        let Comparison { question, floor, ratio, contestants, .. } = self;
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "\n| {question}: {ratio:.2}, at least {floor} | messages/s (range) | consumer CPU \
             µs/message | WAL bytes/message |\n|---|---|---|---|"
        );
        for Contestant { name, median_messages_per_second, turns } in contestants {
            let rates = turns.iter().map(Turn::rate);
            let low = rates.clone().reduce(f64::min).unwrap_or(0.0);
            let high = rates.reduce(f64::max).unwrap_or(0.0);
            let shown = |value: fn(&Turn) -> Option<f64>| {
                let value = median(turns.iter().filter_map(value));
                value.map_or_else(|| "–".to_owned(), |value| format!("{value:.0}"))
            };
            let _ = writeln!(
                text,
                "| {name} | {median_messages_per_second:.0} ({low:.0}–{high:.0}) | {} | {} |",
                shown(|turn| turn.cpu_us_per_message),
                shown(|turn| turn.wal_bytes_per_message),
            );
        }
    }
}
