//! What a start begins with, and what it leads to: values that its steps hand on.

use std::time::Duration;

use crate::{
    core::{
        charset::Charset,
        landmark::{AnotherHistory, Recognition},
        lsn::Lsn,
        position::Position,
        progress::Progress,
        published::Published,
    },
    dead_letter::Store,
    pipeline::delivery::Delivery,
    postgres::catalog::publication::Look,
    repair::Table,
    route::{Format, Origin, Router, TableName},
    sink::any::{AnyProbe, AnySink, AnyWatch},
    source::{connect::Accepted, stream::SILENCE_MAX},
};

/// What only the stream has told so far; the catalogs say what holds for what is written now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Learnt {
    /// That it has rows for.
    pub(super) format: Format,
    /// Whether its publication was missing where it is to continue.
    pub(super) unpublished_once: bool,
    /// What the last attempt has found instead of what was delivered; of no meaning after the next.
    pub(super) another_history: Option<AnotherHistory>,
    /// How long the server may be silent before the connection is given up.
    pub(super) silence_max: Duration,
    /// Up to where delivery had come when it was silent last.
    silent_at: Option<Lsn>,
}

impl Learnt {
    /// How long it may be after more and more of these silences.
    const SILENCE_MOST: Duration = Duration::from_secs(1024 * 60);

    /// The catalogue tells what rows need that are written now; older ones may need the other, and
    /// only the stream tells that. The text format carries all.
    pub(super) fn nothing() -> Self {
        Learnt {
            format: Format::Binary,
            unpublished_once: false,
            another_history: None,
            silence_max: SILENCE_MAX,
            silent_at: None,
        }
    }

    /// The connection was given up after such a silence. What the server was at, it does from the beginning then: were it
    /// given no more time, it would never come to an end.
    pub(super) fn was_silent(&mut self, delivered: Option<Lsn>) {
        // What it was at the last time, it has done since.
        if delivered > self.silent_at {
            self.silence_max = SILENCE_MAX;
        }
        self.silent_at = delivered;
        self.silence_max = (self.silence_max * 2).min(Self::SILENCE_MOST);
    }
}

/// What a start leads to.
pub(super) enum Started {
    /// The stream.
    Stream(Box<Streaming>),
    /// A repair; the start after it streams.
    Repair(Box<Repairing>),
}

impl Started {
    /// What is stored when it begins.
    pub(super) fn progress(&self) -> &Progress {
        match self {
            Started::Stream(streaming) => streaming.delivery.progress(),
            Started::Repair(repairing) => repairing.delivery.progress(),
        }
    }
}

/// Everything that a repair needs; what is to be read is in the delivery's progress.
pub(super) struct Repairing {
    pub(super) delivery: Delivery<AnySink, Store>,
    pub(super) probe: AnyProbe,
    /// Which tables there are.
    pub(super) look: Look,
    pub(super) tables: Vec<Table>,
    pub(super) origin: Origin,
    pub(super) charset: Charset,
}

/// Everything that streaming needs.
pub(super) struct Streaming {
    pub(super) delivery: Delivery<AnySink, Store>,
    pub(super) probe: AnyProbe,
    pub(super) watch: AnyWatch,
    /// How the tables were published when the stream began, and how to look again.
    pub(super) look: (Look, Published),
    /// A snapshot of that moment, as `pg_snapshot`.
    pub(super) snapshot: String,
    /// Tables of which the column `xid` is the transaction that inserted the row.
    pub(super) stamped: Vec<TableName>,
    pub(super) from: Position,
    /// Of what is delivered, in the WAL that is streamed.
    pub(super) recognition: Recognition,
    /// What the stream was asked for.
    pub(super) format: Format,
    pub(super) charset: Charset,
    pub(super) router: Router,
    pub(super) accepted: Accepted,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_was_silent_is_given_more_time_and_not_without_end() {
        let mut learnt = Learnt::nothing();
        let mut silent = |at| {
            learnt.was_silent(Some(Lsn::new(at)));
            learnt.silence_max.as_secs()
        };
        assert_eq!([silent(7), silent(7), silent(7), silent(7)], [120, 240, 480, 960]);
        let minutes = (0..9).map(|_| silent(7) / 60).last();
        assert_eq!(minutes, Some(1024));
        assert_eq!([silent(8), silent(8)], [120, 240], "it has come further since");
    }
}
