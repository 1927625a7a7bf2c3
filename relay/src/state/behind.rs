//! Whether the stream does not move while WAL waits for it, or is only late.
//!
//! No one can know whether there are events in WAL that is not decoded yet. But while it does not move, an
//! event that is committed now does not flow: so the relay is not ready. A stream that moves is ready, however
//! late it is, and says that it is late. Pure.

use std::time::Duration;

use super::status::approximate;
use crate::core::lsn::Lsn;

/// What it is a concern about.
pub(super) const LATE: &str = "lateness";
/// Less may be a record that an idle server has written half of, until its next look.
pub(super) const BEHIND_BYTES_MIN: u64 = 256 << 10;
/// An idle stream moves each second. No shorter than a delivery may take.
pub(super) const STILL_MAX: Duration = Duration::from_secs(15);
/// From then on what is delivered is called late.
const LATE_MIN: Duration = Duration::from_secs(10);

/// That events are late.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lateness {
    /// For a person.
    pub words: String,
    /// The stream does not move at all.
    pub still: bool,
}

/// How far the stream is behind the server's WAL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Behind {
    /// WAL that is not delivered.
    pub(super) bytes: u64,
    /// How long the first of it has waited.
    pub(super) late: Duration,
    /// For how long neither an event was delivered nor the position moved; zero where it waits for
    /// something that is reported by itself.
    pub(super) still: Duration,
    /// The end of the transaction that is coming in, where one is.
    pub(super) receiving: Option<Lsn>,
}

impl Behind {
    /// Why no event flows; `None` where the stream moves.
    pub(super) fn stands_still(&self) -> Option<String> {
        let seconds = self.still.as_secs();
        let cause = match self.receiving {
            Some(end) => format!(
                "the transaction that was committed at {end} is being decoded, read or parked: large rows in it \
                 take long, also such as the WAL has in few bytes because they compress well"
            ),
            None => "PostgreSQL is decoding and has sent nothing of it: a large transaction, also of other tables \
                     or rolled back, above all one with many savepoints (a higher logical_decoding_work_mem helps), \
                     or many changes of the catalog, such as temporary tables. Or the line to it is dead; then the \
                     relay connects again by itself"
                .to_owned(),
        };
        let wait = approximate(self.bytes);
        (self.still > STILL_MAX).then(|| {
            format!(
                "nothing was delivered for {seconds} s, though {wait} of WAL wait: {cause}. Nothing is lost, and \
                 what was committed since waits"
            )
        })
    }

    /// That the stream does not move or is late; `None` where it is neither.
    pub(super) fn lateness(&self) -> Option<Lateness> {
        let late = || {
            format!(
                "what is delivered is {} s late, and {} of WAL wait: the relay or PostgreSQL's decoding does not keep \
                 up, as after an outage, under much load, after a transaction with many savepoints, or while many \
                 temporary tables are made",
                self.late.as_secs(),
                approximate(self.bytes)
            )
        };
        let still = self.stands_still();
        let is_still = still.is_some();
        let words = still.or_else(|| (self.late >= LATE_MIN).then(late))?;
        Some(Lateness { words, still: is_still })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_stream_that_moves_is_late_and_one_that_stands_still_is_not_ready() {
        let behind = Behind { bytes: 3 << 20, late: s(9), still: s(9), receiving: None };
        assert_eq!(behind.lateness(), None);
        let moves = Behind { late: s(300), still: s(2), ..behind.clone() };
        assert_eq!(moves.stands_still(), None);
        assert!(moves.lateness().is_some_and(|it| !it.still && it.words.contains("300 s late")));
        let decoding = Behind { late: s(16), still: s(16), ..behind };
        let told = decoding.stands_still().expect("it stands");
        assert!(told.contains("nothing was delivered for 16 s"), "{told}");
        assert!(told.contains("PostgreSQL is decoding"), "{told}");
        let receiving = Behind { receiving: Some(Lsn::new(0x100)), ..decoding };
        let told = receiving.stands_still().expect("it stands");
        assert!(told.contains("committed at 0/100 is being decoded, read or parked"), "{told}");
    }
}
