//! Which record of the progress topic counts. Pure; `progress_topic` reads them.
//!
//! Progress is stored under the relay's name, in transactions, which a relay that was replaced
//! can't end any more. At-least-once delivers without them, and a relay that was frozen may store
//! progress long after another has taken its place. So there each start claims the topic, in a
//! transaction of its own: it stores under `<name>/writer` a word that it made up, and its
//! progress under `<name>/<word>` from then on. What an older relay stores late is under a word
//! that nobody looks for any more. A claim copies the progress that it found to the relay's name,
//! so that compaction may forget what it was copied from.

use bytes::Bytes;

use super::native::Read;

/// Of the record that names the newest claim's word; no word is this one.
const WRITER: &str = "writer";

/// The key of progress, of the relay itself or of a claim's word.
pub(super) fn key(relay_name: &str, writer: Option<&str>) -> String {
    match writer {
        Some(writer) => format!("{relay_name}/{writer}"),
        None => relay_name.to_owned(),
    }
}

/// What a reader has found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The newest progress record that counts, `None` when there is none.
    pub value: Option<Bytes>,
    /// The word under which the newest claim's relay stores it.
    pub writer: Option<String>,
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

/// What was found by the offset up to which all is known.
pub(super) struct Newest<'a> {
    relay_name: &'a str,
    pub(super) found: Found,
    pub(super) position: i64,
}

impl<'a> Newest<'a> {
    pub(super) fn new(relay_name: &'a str, position: i64) -> Self {
        Newest { relay_name, found: Found::default(), position }
    }

    pub(super) fn take(&mut self, read: Read) {
        match read {
            Read::Record { offset, key, payload } => {
                self.record(&key.unwrap_or_default(), payload);
                self.position = self.position.max(offset + 1);
            }
            Read::End { offset } => self.position = self.position.max(offset),
            Read::Error(_) => {}
        }
    }

    fn record(&mut self, key: &[u8], payload: Option<Vec<u8>>) {
        let Some(rest) = key.strip_prefix(self.relay_name.as_bytes()) else { return };
        let Found { value, writer } = &mut self.found;
        match rest.strip_prefix(b"/") {
            None if rest.is_empty() => *value = payload.map(Bytes::from),
            Some(word) if word == WRITER.as_bytes() => {
                *writer = payload.and_then(|word| String::from_utf8(word).ok());
            }
            Some(word) if writer.as_ref().is_some_and(|writer| writer.as_bytes() == word) => {
                *value = payload.map(Bytes::from);
            }
            // Another relay's, or one that was replaced.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(offset: i64, key: &str, payload: Option<&str>) -> Read {
        Read::Record { offset, key: Some(key.into()), payload: payload.map(Into::into) }
    }

    #[test]
    fn the_newest_value_of_the_relays_own_key_counts_and_a_tombstone_clears_it() {
        let mut newest = Newest::new("orders", 0);
        newest.take(record(0, "orders", Some("1")));
        newest.take(record(2, "orders_too", Some("2")));
        assert_eq!((newest.found.value.as_deref(), newest.position), (Some(&b"1"[..]), 3));
        newest.take(Read::End { offset: 5 });
        assert_eq!(newest.position, 5);
        newest.take(record(5, "orders", None));
        assert_eq!((newest.found.value, newest.position), (None, 6));
    }

    /// A progress topic, compacted or not.
    fn read_all(log: &[(String, Option<Bytes>)], compacted: bool) -> Found {
        let mut newest = Newest::new("orders", 0);
        for (offset, (key, value)) in log.iter().enumerate() {
            let later = log.iter().skip(offset + 1).any(|(other, _)| other == key);
            if !(compacted && later) {
                newest.record(key.as_bytes(), value.as_ref().map(|value| value.to_vec()));
            }
        }
        newest.found
    }

    #[test]
    fn what_a_replaced_relay_stores_late_does_not_count() {
        fn stored(writer: Option<&str>, value: &'static str) -> (String, Option<Bytes>) {
            (key("orders", writer), Some(Bytes::from_static(value.as_bytes())))
        }
        let mut log = vec![stored(None, "1")];
        // Exactly-once, then two relays at-least-once, then exactly-once again.
        for (writer, value) in [(Some("a"), "2"), (Some("b"), "3"), (None, "4")] {
            let found = read_all(&log, false);
            log.extend(found.claim("orders", writer));
            let late = stored(found.writer.as_deref().or(Some("nobody")), "late");
            for compacted in [false, true] {
                log.push(late.clone());
                assert_eq!(read_all(&log, compacted).value, found.value, "{log:?}");
                log.pop();
            }
            log.push(late);
            log.push(stored(writer, value));
            for compacted in [false, true] {
                let now = read_all(&log, compacted);
                assert_eq!(now.value.as_deref(), Some(value.as_bytes()), "{log:?}");
                assert_eq!(now.writer.as_deref(), writer);
            }
        }
    }
}
