//! What a reader of the progress topic says while somebody's open transaction hides the topic's end.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::settings::Settings;

/// The log is told this often.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// A transaction that is open for less is nothing to tell of: a relay at work always has one.
const OPEN_FOR: Duration = Duration::from_secs(5);

/// Where the reader was told that nothing more can be read now, and since when. A reader that is not there has
/// more to read, however long it takes, and no transaction keeps it.
#[derive(Debug, Default)]
pub(super) struct StableEnd(Option<(i64, Instant)>);

impl StableEnd {
    /// Whether it has been the same end for long. The reader has come to `position`, and `is_end` if it was
    /// told there that this is the end.
    pub(super) fn is_still_at(&mut self, position: i64, is_end: bool) -> bool {
        self.0 = self.0.filter(|(at, _)| *at == position);
        if is_end {
            self.0.get_or_insert((position, Instant::now()));
        }
        self.0.is_some_and(|(_, since)| since.elapsed() >= OPEN_FOR)
    }

    /// As if it had been so for so long.
    #[cfg(test)]
    fn is_late(&mut self) {
        self.0 = self.0.and_then(|(at, since)| Some((at, since.checked_sub(OPEN_FOR)?)));
    }
}

/// A reading that may have to wait.
pub(super) struct Waits<'a> {
    settings: &'a Settings,
    topic: &'a str,
    since: Timestamp,
    told: Option<Instant>,
}

impl<'a> Waits<'a> {
    /// It begins now.
    pub(super) fn new(settings: &'a Settings, topic: &'a str) -> Self {
        Waits { settings, topic, since: Timestamp::now(), told: None }
    }

    /// It waits: up to `stable` all is read, of `high`.
    pub(super) fn tell(&mut self, stable: i64, high: i64) {
        let what = open_transaction(self.settings, self.topic, stable, high);
        let what = format!("{what}. Waited for since {:.0}", self.since);
        if self.told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            self.told = Some(Instant::now());
            tracing::warn!("{what}");
        }
        self.settings.reach.waits(Some(what));
    }
}

/// Nothing is waited for any more, however the reading ended.
impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.settings.reach.waits(None);
    }
}

/// Why the end can't be read: the relay's own transactions were ended by its fence. What it hides could be
/// read, and not whether it was committed.
fn open_transaction(settings: &Settings, name: &str, stable: i64, high: i64) -> String {
    let servers = settings.servers();
    format!(
        "a transaction that is open in partition 0 of the topic {name} hides what lies from offset {stable} to the end, \
         {high}, which may be the newest progress. Whoever may write to that topic can have begun it. The broker ends \
         it after its transaction.timeout.ms, at most 15 minutes by the brokers' default for \
         transaction.max.timeout.ms; nothing is lost, and the relay continues by itself. Not to wait: `kafka-transactions \
         --bootstrap-server {servers} abort --topic {name} --partition 0 --start-offset {stable}` (while no relay of the name \
         runs but this one, so that it is not a relay's own); that none but the relay may write there, look with `kafka-acls --bootstrap-server {servers} --list --topic {name}`"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_end_that_does_not_move_is_taken_for_an_open_transaction() {
        let mut end = StableEnd::default();
        assert!(!end.is_still_at(7, false), "there is more to read");
        end.is_late();
        assert!(!end.is_still_at(7, false), "a slow reader is at no end");
        assert!(!end.is_still_at(7, true), "it is open for a moment");
        end.is_late();
        assert!(end.is_still_at(7, false));
        assert!(!end.is_still_at(8, false), "it was committed");
        assert!(!end.is_still_at(8, true), "the next one");
    }
}
