//! How long an event takes with nothing else under way.

use serde::Serialize;

use crate::sink::Sink;

/// How long an event takes alone.
#[derive(Debug, Serialize)]
pub(crate) struct Alone {
    sink: &'static str,
    events: usize,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

impl Alone {
    /// Of these times.
    pub(crate) fn of(sink: Sink, mut took_ms: Vec<f64>) -> Self {
        took_ms.sort_by(f64::total_cmp);
        let at = |percent: usize| {
            let index = (took_ms.len() * percent / 100).min(took_ms.len().saturating_sub(1));
            took_ms.get(index).copied().unwrap_or_default()
        };
        let (p50_ms, p99_ms, max_ms) = (at(50), at(99), at(100));
        Alone { sink: sink.name(), events: took_ms.len(), p50_ms, p99_ms, max_ms }
    }

    /// A row of the table.
    pub(crate) fn row(&self) -> String {
        let Alone { sink, events, p50_ms, p99_ms, max_ms } = self;
        format!("| outbox-relay, {sink} | {events} | {p50_ms:.1} | {p99_ms:.1} | {max_ms:.0} |\n")
    }
}
