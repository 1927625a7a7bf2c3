//! Progress in the stream: the last message of one subject, which only the newest relay can replace.
//!
//! Whoever stores names the message that it believes to be the last (`Nats-Expected-Last-Subject-Sequence`);
//! the server stores nothing if another one is. A start claims the subject: it stores the progress that it
//! found once more, under a word that it made up. What an older relay has under way then fails, records
//! too. Each record has the relay's seal: what others store there does not count.

use async_nats::HeaderMap;
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;

use super::{
    errors::{Failed, NO_MESSAGE, WRONG_LAST},
    link::{ASK_LIMIT, EXPECTED, Link},
};
use crate::{
    seal::SealKey,
    sink::{SinkError, StoredProgress, unavailable},
};

const SEAL: &str = "outbox-relay-seal";
/// The word of the claim that a record was stored under.
const CLAIM: &str = "outbox-relay-claim";
/// Of a claim that was made before anything of the relay's own was there: its payload is what it found, of somebody else. What
/// becomes of that is decided later, perhaps by another start.
const FOUND: &str = "outbox-relay-found";
/// Of the server's headers: what came before may go.
const ROLLUP: &str = "Nats-Rollup";
/// Also one of the server's: no age ends this message.
const TTL: &str = "Nats-TTL";
/// A claim that others disturb is tried so often.
const TRIES: usize = 10;
/// Messages of others between ours that are looked through.
const LOOKED_THROUGH: usize = 1_000;

/// Progress of one relay.
#[derive(Debug)]
pub(super) struct ProgressSubject {
    pub(super) subject: String,
    key: SealKey,
    /// This start's word, made by its claim.
    word: String,
    /// Where the last message of the subject is stored, as far as is known; 0: nowhere.
    last: u64,
    /// Of the newest seal.
    number: u64,
    /// What the claim found beside what is the relay's own.
    stranger: Option<Bytes>,
    /// Whether the stream takes messages that no age ends.
    pub(super) for_ever: bool,
}

/// A message of the subject.
#[derive(Debug, Deserialize)]
struct Message {
    seq: u64,
    /// Base64, as all bytes in JetStream's JSON.
    #[serde(default)]
    hdrs: String,
    #[serde(default)]
    data: String,
}

#[derive(Deserialize)]
struct Answer {
    message: Message,
}

/// What the newest record of the relay's own says.
#[derive(Debug, Default)]
struct Own {
    number: u64,
    word: String,
    value: Bytes,
    /// What its claim found in place of a value.
    found: Option<Bytes>,
}

impl ProgressSubject {
    pub(super) fn new(subject: String, key: SealKey) -> Self {
        let (word, number) = (format!("{:032x}", rand::random::<u128>()), 0);
        ProgressSubject { subject, key, word, last: 0, number, stranger: None, for_ever: false }
    }

    /// The newest record, whoever has it.
    pub(super) async fn peek(&self, link: &Link) -> Result<StoredProgress, SinkError> {
        let (own, stranger, _) = self.found(link).await?;
        Ok(StoredProgress { own: own.and_then(|own| stored(own.value)), stranger })
    }

    /// Makes this start the only one that can store.
    pub(super) async fn claim(&mut self, link: &Link) -> Result<(), SinkError> {
        const DOING: &str = "claiming the progress subject";
        for _ in 0..TRIES {
            let (own, stranger, last) = self.found(link).await?;
            let own = own.unwrap_or_default();
            (self.last, self.number) = (last, own.number);
            self.stranger = stranger.or(self.stranger.take());
            match self.store_claim(link, own.value).await {
                Ok(()) => return Ok(()),
                // Somebody stored between the look and the claim.
                Err(Failed::Refused(error)) if WRONG_LAST.contains(&error.err_code) => {}
                Err(error) => return Err(error.into_error(DOING, &link.settings)),
            }
        }
        Err(unavailable(
            DOING,
            "others store to it again and again: only the relay may publish to its progress subject",
        ))
    }

    /// Reads progress back after the claim.
    pub(super) async fn read(&mut self, link: &Link) -> Result<StoredProgress, SinkError> {
        let (own, stranger, last) = self.found(link).await?;
        let own = own.unwrap_or_default();
        if own.word != self.word {
            return Err(fenced());
        }
        self.last = last;
        let stranger = stranger.or(self.stranger.clone());
        Ok(StoredProgress { own: stored(own.value), stranger })
    }

    /// One record alone.
    pub(super) async fn store(&mut self, link: &Link, value: Bytes) -> Result<(), Failed> {
        let headers = self.headers(&value);
        let stored = link.store(self.subject.clone(), headers, value, ASK_LIMIT).await?;
        self.stored_at(stored);
        Ok(())
    }

    /// What is stored takes the place of what it found, so it has that.
    async fn store_claim(&mut self, link: &Link, value: Bytes) -> Result<(), Failed> {
        let Some(found) = self.stranger.clone().filter(|_| value.is_empty()) else {
            return self.store(link, value).await;
        };
        let mut headers = self.headers_of(&found_under(&self.subject), &found);
        headers.insert(FOUND, "1");
        let stored = link.store(self.subject.clone(), headers, found, ASK_LIMIT).await?;
        self.stored_at(stored);
        Ok(())
    }

    /// Headers of the next record.
    pub(super) fn headers(&self, value: &Bytes) -> HeaderMap {
        self.headers_of(&self.subject, value)
    }

    /// `name` is what the seal says that the value is.
    fn headers_of(&self, name: &str, value: &Bytes) -> HeaderMap {
        let seal =
            self.key.seal(self.number + 1, name.as_bytes(), Some(&sealed(&self.word, value)));
        let mut headers = HeaderMap::new();
        headers.insert(SEAL, seal);
        headers.insert(CLAIM, self.word.as_str());
        headers.insert(EXPECTED, self.last.to_string());
        headers.insert(ROLLUP, "sub");
        if self.for_ever {
            headers.insert(TTL, "never");
        }
        headers
    }

    /// The next record is stored there.
    pub(super) fn stored_at(&mut self, seq: u64) {
        self.last = seq;
        self.number += 1;
    }

    /// Why the server says that the last record is another one; nothing was stored. `None`: a stranger
    /// stored there, and what was refused for it can be tried again.
    pub(super) async fn why_not_last(
        &mut self,
        link: &Link,
    ) -> Result<Option<SinkError>, SinkError> {
        let (own, _, last) = self.found(link).await?;
        Ok(match own {
            Some(own) if own.word == self.word && last > self.last => {
                tracing::warn!(
                    subject = self.subject,
                    "somebody else has stored a message under the relay's progress subject; it does not count, and is removed"
                );
                self.last = last;
                None
            }
            Some(own) if own.word != self.word => Some(fenced()),
            _ => Some(unavailable(
                "storing progress",
                "the server no longer has what it said was stored; the relay starts again from what is there",
            )),
        })
    }

    /// The newest record of the relay's own, the newest of another if that is newer, and the last one's place.
    async fn found(&self, link: &Link) -> Result<(Option<Own>, Option<Bytes>, u64), SinkError> {
        let Some(newest) = self.message(link, json!({ "last_by_subj": self.subject })).await?
        else {
            return Ok((None, None, 0));
        };
        let last = newest.seq;
        if let Some(mut own) = self.own(&newest) {
            let found = own.found.take();
            return Ok((Some(own), found, last));
        }
        let stranger = Some(data(&newest));
        let (mut own, mut from): (Option<Own>, u64) = (None, 1);
        for _ in 0..LOOKED_THROUGH {
            let next = json!({ "seq": from, "next_by_subj": self.subject });
            let Some(message) = self.message(link, next).await? else { break };
            own = match (own, self.own(&message)) {
                (Some(known), Some(seen)) if seen.number > known.number => Some(seen),
                (None, seen) => seen,
                (known, _) => known,
            };
            from = message.seq + 1;
            if message.seq >= last {
                break;
            }
        }
        Ok((own, stranger, last))
    }

    async fn message(
        &self,
        link: &Link,
        which: serde_json::Value,
    ) -> Result<Option<Message>, SinkError> {
        let stream = &link.settings.stream;
        // Asked of the stream's leader: a replica may not know the newest one yet.
        let answer = link.api::<Answer>(&format!("STREAM.MSG.GET.{stream}"), &which).await;
        match answer {
            Ok(answer) => Ok(Some(answer.message)),
            Err(Failed::Refused(error)) if error.err_code == NO_MESSAGE => Ok(None),
            Err(error) => Err(error.into_error("reading progress", &link.settings)),
        }
    }

    /// What it says, if it is the relay's own.
    fn own(&self, message: &Message) -> Option<Own> {
        let headers = BASE64.decode(&message.hdrs).ok()?;
        let headers = String::from_utf8(headers).ok()?;
        let header = |name: &str| {
            let found = headers.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            found.map(str::trim)
        };
        let (word, value) = (header(CLAIM)?.to_owned(), data(message));
        let seal = header(SEAL)?.as_bytes();
        let is_found = header(FOUND).is_some();
        let name = if is_found { found_under(&self.subject) } else { self.subject.clone() };
        let number = self.key.verify(seal, name.as_bytes(), Some(&sealed(&word, &value)))?;
        Some(match is_found {
            true => Own { number, word, value: Bytes::new(), found: Some(value) },
            false => Own { number, word, value, found: None },
        })
    }
}

/// What the seal of such a claim is made for: no subject has a space.
fn found_under(subject: &str) -> String {
    format!("found under {subject}")
}

/// What a seal is made over: the word has one length.
fn sealed(word: &str, value: &[u8]) -> Vec<u8> {
    [word.as_bytes(), value].concat()
}

fn data(message: &Message) -> Bytes {
    BASE64.decode(&message.data).unwrap_or_default().into()
}

/// A claim before there was any progress has an empty value.
fn stored(value: Bytes) -> Option<Bytes> {
    (!value.is_empty()).then_some(value)
}

fn fenced() -> SinkError {
    SinkError::Fenced("another start of this relay has claimed the progress subject".into())
}
