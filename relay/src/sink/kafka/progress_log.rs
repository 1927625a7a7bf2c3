//! Which record of the progress topic counts. Pure; `progress_topic` reads them.
//!
//! Only what this relay has sealed counts ([`crate::seal`]), and only with a higher number than what
//! counted before it: somebody who may write to the topic can add no record of his own and no copy of
//! an old one. What a relay stored before there were seals is read by the same rules, apart.
//!
//! Progress is stored under the relay's name, in transactions, which a relay that was replaced
//! can't end any more. At-least-once delivers without them, and a relay that was frozen may store
//! progress long after another has taken its place. So there each start claims the topic, in a
//! transaction of its own: it stores under `<name>/writer` a word that it made up, and its
//! progress under `<name>/<word>` from then on. What an older relay stores late is under a word
//! that no one looks for any more. A claim copies the progress that it found to the relay's name,
//! so that compaction may forget what it was copied from.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::native::Read;
use crate::seal::SealKey;

/// Of the record that names the newest claim's word; no word is this one.
const WRITER: &str = "writer";

/// The header that holds a record's seal.
pub(super) const SEAL: &str = "outbox-relay-seal";

/// The key of progress, of the relay itself or of a claim's word.
pub(super) fn key(relay_name: &str, writer: Option<&str>) -> String {
    match writer {
        Some(writer) => format!("{relay_name}/{writer}"),
        None => relay_name.to_owned(),
    }
}

/// Gives each record its seal.
#[derive(Debug)]
pub(super) struct Sealer {
    key: SealKey,
    /// Of the last record.
    number: AtomicU64,
}

impl Sealer {
    pub(super) fn new(key: SealKey) -> Self {
        Sealer { key, number: AtomicU64::new(0) }
    }

    pub(super) fn key(&self) -> &SealKey {
        &self.key
    }

    /// Numbers continue after this one.
    pub(super) fn go_on_after(&self, number: u64) {
        self.number.fetch_max(number, Ordering::Relaxed);
    }

    pub(super) fn seal(&self, key: &[u8], value: Option<&[u8]>) -> String {
        let number = self.number.fetch_add(1, Ordering::Relaxed) + 1;
        self.key.seal(number, key, value)
    }
}

/// What a reader has found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The newest progress record that counts, `None` when there is none.
    pub value: Option<Bytes>,
    /// The word under which the newest claim's relay stores it.
    pub writer: Option<String>,
    /// The highest number of what counted.
    pub number: u64,
    /// The newest progress record without our seal, if it is newer than all that counts.
    pub stranger: Option<Bytes>,
}

impl Found {
    /// The records, key and value, that make `writer` the one whose progress counts, or, without
    /// one, whoever stores it under the relay's name.
    pub(super) fn claim(
        &self,
        relay_name: &str,
        writer: Option<&str>,
    ) -> Vec<(String, Option<Bytes>)> {
        let word = writer.map(|word| Bytes::copy_from_slice(word.as_bytes()));
        let mut records = vec![(key(relay_name, Some(WRITER)), word)];
        if let Some(value) = &self.value {
            records.insert(0, (relay_name.to_owned(), Some(value.clone())));
        }
        if let Some(before) = &self.writer {
            records.push((key(relay_name, Some(before)), None));
        }
        records
    }
}

/// What counts of the records of one kind.
#[derive(Debug, Default)]
struct Track {
    value: Option<Bytes>,
    writer: Option<String>,
    /// Offset of the last record that counted.
    offset: i64,
    number: u64,
}

impl Track {
    /// `rest` is what the record's key has behind the relay's name.
    fn take(&mut self, offset: i64, number: u64, rest: &[u8], payload: Option<Vec<u8>>) {
        let payload = payload.map(Bytes::from);
        match rest.strip_prefix(b"/") {
            None if rest.is_empty() => self.value = payload,
            Some(word) if word == WRITER.as_bytes() => {
                self.writer = payload.and_then(|word| String::from_utf8(word.to_vec()).ok());
            }
            Some(word) if self.writer.as_ref().is_some_and(|writer| writer.as_bytes() == word) => {
                self.value = payload;
            }
            // Another relay's, or one that was replaced.
            _ => return,
        }
        (self.offset, self.number) = (offset, number);
    }
}

/// What was found by the offset up to which all is known.
pub(super) struct Newest<'a> {
    relay_name: &'a str,
    key: &'a SealKey,
    own: Track,
    unsealed: Track,
    pub(super) position: i64,
}

impl<'a> Newest<'a> {
    pub(super) fn new(relay_name: &'a str, key: &'a SealKey, position: i64) -> Self {
        let (own, unsealed) = (Track::default(), Track::default());
        Newest { relay_name, key, own, unsealed, position }
    }

    pub(super) fn take(&mut self, read: Read) {
        match read {
            Read::Record { offset, key, payload, seal } => {
                let key = key.unwrap_or_default();
                self.record(offset, &key, payload, seal.as_deref());
                self.position = self.position.max(offset + 1);
            }
            Read::End { offset } => self.position = self.position.max(offset),
            Read::Error(_) => {}
        }
    }

    fn record(&mut self, offset: i64, key: &[u8], payload: Option<Vec<u8>>, seal: Option<&[u8]>) {
        let Some(rest) = key.strip_prefix(self.relay_name.as_bytes()) else { return };
        match seal.and_then(|seal| self.key.verify(seal, key, payload.as_deref())) {
            // A copy of an old one, or a frozen relay's.
            Some(number) if number <= self.own.number => {}
            Some(number) => self.own.take(offset, number, rest, payload),
            None => self.unsealed.take(offset, 0, rest, payload),
        }
    }

    pub(super) fn found(self) -> Found {
        let Newest { own, unsealed, .. } = self;
        let newer = own.value.is_none() || unsealed.offset > own.offset;
        let stranger = unsealed.value.filter(|_| newer);
        Found { value: own.value, writer: own.writer, number: own.number, stranger }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Log {
        sealer: Sealer,
        records: Vec<(String, Option<Bytes>, Option<Vec<u8>>)>,
    }

    impl Log {
        fn new() -> Log {
            Log { sealer: Sealer::new(SealKey::random()), records: Vec::new() }
        }

        fn own(&mut self, records: impl IntoIterator<Item = (String, Option<Bytes>)>) {
            for (key, value) in records {
                let seal = self.sealer.seal(key.as_bytes(), value.as_deref());
                self.records.push((key, value, Some(seal.into_bytes())));
            }
        }

        fn stranger(&mut self, key: &str, value: Option<&'static str>) {
            let value = value.map(|value| Bytes::from_static(value.as_bytes()));
            self.records.push((key.to_owned(), value, None));
        }

        fn read(&self, compacted: bool) -> Found {
            let mut newest = Newest::new("orders", self.sealer.key(), 0);
            for (offset, (key, value, seal)) in self.records.iter().enumerate() {
                let later = self.records.iter().skip(offset + 1).any(|(other, ..)| other == key);
                if !(compacted && later) {
                    newest.take(Read::Record {
                        offset: i64::try_from(offset).expect("few"),
                        key: Some(key.clone().into_bytes()),
                        payload: value.as_ref().map(|value| value.to_vec()),
                        seal: seal.clone(),
                    });
                }
            }
            newest.found()
        }
    }

    fn stored(writer: Option<&str>, value: &'static str) -> (String, Option<Bytes>) {
        (key("orders", writer), Some(Bytes::from_static(value.as_bytes())))
    }

    fn text(value: Option<&Bytes>) -> Option<&str> {
        value.and_then(|bytes| std::str::from_utf8(bytes).ok())
    }

    #[test]
    fn the_newest_record_of_the_relays_own_key_counts_and_what_is_read_over_moves_the_position() {
        let mut log = Log::new();
        log.own([stored(None, "1"), ("orders_too".to_owned(), None)]);
        assert_eq!(text(log.read(false).value.as_ref()), Some("1"));
        let mut newest = Newest::new("orders", log.sealer.key(), 0);
        newest.take(Read::Record { offset: 3, key: None, payload: None, seal: None });
        assert_eq!(newest.position, 4);
        newest.take(Read::End { offset: 6 });
        assert_eq!(newest.position, 6);
    }

    #[test]
    fn what_another_stores_does_not_count_whatever_its_key_and_when() {
        let mut log = Log::new();
        log.stranger("orders", Some("before"));
        let found = log.read(false);
        assert_eq!((found.value, text(found.stranger.as_ref())), (None, Some("before")));
        log.own([stored(None, "1"), stored(None, "2")]);
        assert_eq!(log.read(false).stranger, None, "it is older than ours");
        let old = log.records.get(1).cloned().expect("the first of ours");
        log.records.push(old);
        let found = log.read(false);
        assert_eq!((text(found.value.as_ref()), found.stranger), (Some("2"), None), "a copy");
        log.stranger("orders", None);
        log.stranger("orders/writer", Some("me"));
        log.stranger("orders/me", Some("forged"));
        let found = log.read(false);
        assert_eq!(text(found.value.as_ref()), Some("2"));
        assert_eq!(text(found.stranger.as_ref()), Some("forged"), "it is told of");
    }

    #[test]
    fn what_a_replaced_relay_stores_late_does_not_count() {
        let mut log = Log::new();
        log.own([stored(None, "1")]);
        // Exactly-once, then two relays at-least-once, then exactly-once again.
        for (writer, value) in [(Some("a"), "2"), (Some("b"), "3"), (None, "4")] {
            let found = log.read(false);
            log.own(found.claim("orders", writer));
            let late = stored(found.writer.as_deref().or(Some("nobody")), "late");
            log.own([late]);
            for compacted in [false, true] {
                assert_eq!(log.read(compacted).value, found.value);
            }
            log.own([stored(writer, value)]);
            for compacted in [false, true] {
                let now = log.read(compacted);
                assert_eq!(text(now.value.as_ref()), Some(value));
                assert_eq!(now.writer.as_deref(), writer);
            }
        }
    }

    #[test]
    fn progress_from_before_there_were_seals_is_read_by_the_same_rules() {
        let mut log = Log::new();
        log.stranger("orders", Some("1"));
        log.stranger("orders/writer", Some("a"));
        log.stranger("orders/a", Some("2"));
        log.stranger("orders/b", Some("late"));
        let found = log.read(false);
        assert_eq!((found.value, text(found.stranger.as_ref())), (None, Some("2")));
    }
}
