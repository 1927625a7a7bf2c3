//! NATS JetStream: records and progress in one atomic batch of one stream, so exactly once.
//!
//! The last message of a batch is the relay's progress. The server stores all of a batch or nothing, and
//! nothing if the progress that it replaces is not the last one any more (`progress`): a relay that was
//! replaced stores neither. What the server acknowledged and then lost, it lost with its progress, so the
//! next start sees it. Needs a server of 2.12 or later, and a stream that allows it (`stream`).

mod errors;
mod forbidden;
mod link;
mod message;
mod preflight;
mod progress;
mod settings;
mod stream;
mod subject;

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

pub(crate) use self::link::with_login;
pub(super) use self::preflight::examine;
use self::{
    errors::{Failed, WRONG_LAST},
    link::Link,
    message::{Outgoing, Rules},
    progress::ProgressSubject,
    stream::Stream,
};
pub use self::{
    settings::{PROGRESS_PREFIX, Settings},
    subject::Template,
};
use super::{
    ProgressStore, Publisher, Receipt, RefusedRecord, Rest, SinkError, Stored, StoredProgress,
    unavailable,
};
use crate::{
    core::{printable::counted, record::Batch},
    fault::{self, Point},
    seal::SealKey,
};

/// A delivery takes no longer; a server gives up a batch that it hears no more of after 10 s.
const DELIVERY_LIMIT: Duration = Duration::from_secs(8);
/// Servers take 1,000 messages in a batch, of which one is progress.
const RECORDS_MAX: usize = 999;
/// What a stream is may be this old.
const STREAM_KNOWN_FOR: Duration = Duration::from_secs(30);

const BATCH_ID: &str = "Nats-Batch-Id";
const BATCH_SEQUENCE: &str = "Nats-Batch-Sequence";
const BATCH_COMMIT: &str = "Nats-Batch-Commit";

/// The NATS sink.
#[derive(Debug)]
pub struct NatsSink {
    link: Arc<Link>,
    progress: ProgressSubject,
    /// The stream, and when it was looked at.
    stream: Option<(Stream, std::time::Instant)>,
    /// An outcome is uncertain.
    spent: bool,
}

impl NatsSink {
    /// Makes the sink. Connects to nothing yet.
    pub fn new(settings: Settings, key: SealKey) -> Self {
        let progress = ProgressSubject::new(settings.progress_subject(), key);
        NatsSink { link: Arc::new(Link::new(settings)), progress, stream: None, spent: false }
    }

    /// A handle that asks whether the stream answers; it works while a delivery is under way.
    pub fn probe(&self) -> Probe {
        Probe { link: Arc::clone(&self.link), progress_subject: self.progress.subject.clone() }
    }

    async fn looked_at(&mut self) -> Result<Stream, SinkError> {
        match &self.stream {
            Some((stream, at)) if at.elapsed() < STREAM_KNOWN_FOR => Ok(stream.clone()),
            _ => {
                let stream = Stream::read(&self.link).await?;
                self.progress.for_ever = stream.keeps_for_ever();
                self.stream = Some((stream.clone(), std::time::Instant::now()));
                Ok(stream)
            }
        }
    }

    /// The messages of `range`.
    ///
    /// # Errors
    /// `Refused` with all records of the batch from its start on that can't be one; nothing was sent.
    async fn messages(
        &mut self,
        batch: &Batch,
        range: Range<usize>,
    ) -> Result<Vec<Outgoing>, SinkError> {
        let mut is_fresh = false;
        loop {
            let client = self.link.client().await?;
            let stream = self.looked_at().await?;
            let rules = Rules {
                settings: &self.link.settings,
                stream: &stream,
                progress_subject: &self.progress.subject,
                bytes_max: stream.message_bytes_max(client.max_payload()),
            };
            let mut made = Vec::with_capacity(range.len());
            let mut records = Vec::new();
            for (index, record) in batch.iter().enumerate().skip(range.start) {
                match rules.message(&record) {
                    Ok(message) if index < range.end => made.push(message),
                    Ok(_) => {}
                    Err((reason, error)) => {
                        records.push(RefusedRecord { index, reason, error, certain: true });
                    }
                }
                if index >= range.end && records.is_empty() {
                    break;
                }
            }
            if records.first().is_none_or(|refused| refused.index >= range.end) {
                return Ok(made);
            }
            // Nothing is refused by what was true a while ago.
            if is_fresh {
                return Err(SinkError::Refused { records, rest: Rest::NotSent });
            }
            (self.stream, is_fresh) = (None, true);
        }
    }

    async fn published(
        &mut self,
        batch: &Arc<Batch>,
        range: Range<usize>,
        progress: Bytes,
    ) -> Result<Receipt, SinkError> {
        if self.spent {
            return Err(SinkError::spent());
        }
        loop {
            let messages = self.messages(batch, range.clone()).await.inspect_err(|error| {
                self.spent = !matches!(error, SinkError::Refused { .. });
            })?;
            self.spent = true;
            let began = Instant::now();
            let limited =
                tokio::time::timeout(DELIVERY_LIMIT, self.deliver(messages, progress.clone()));
            let doing = || format!("storing {}", counted(range.len() as u64, "record"));
            match limited.await {
                Ok(Ok(())) => {
                    self.spent = false;
                    return Ok(Receipt { restamped: 0, progress: Some(Stored(())) });
                }
                Ok(Err(Failed::Refused(error))) => {
                    match self.refused(error, batch, range.clone(), began).await? {
                        Refused::Again => {}
                        Refused::These(records) => {
                            self.spent = false;
                            return Err(SinkError::Refused { records, rest: Rest::NotStored });
                        }
                    }
                }
                Ok(Err(error)) => return Err(error.into_error(doing(), &self.link.settings)),
                Err(_) => {
                    return Err(unavailable(
                        doing(),
                        format!("no answer within {DELIVERY_LIMIT:?}"),
                    ));
                }
            }
        }
    }

    async fn deliver(&mut self, messages: Vec<Outgoing>, progress: Bytes) -> Result<(), Failed> {
        let client = self.link.client().await?;
        let id = format!("{:032x}", rand::random::<u128>());
        fault::point(Point::TransactionBegun);
        let mut sequence = 0_u64;
        for Outgoing { subject, mut headers, payload } in messages {
            sequence += 1;
            headers.insert(BATCH_ID, id.as_str());
            headers.insert(BATCH_SEQUENCE, sequence.to_string());
            let sent = client.publish_with_headers(subject, headers, payload).await;
            sent.map_err(|error| Failed::Unknown(error.into()))?;
        }
        fault::point(Point::RecordsStored);
        let mut headers = self.progress.headers(&progress);
        headers.insert(BATCH_ID, id.as_str());
        headers.insert(BATCH_SEQUENCE, (sequence + 1).to_string());
        headers.insert(BATCH_COMMIT, "1");
        fault::soon(Point::CommitUnderWay);
        let stored = self
            .link
            .store(self.progress.subject.clone(), headers, progress, DELIVERY_LIMIT)
            .await?;
        self.progress.stored_at(stored);
        fault::point(Point::Committed);
        Ok(())
    }

    /// A delivery that the server did not take: nothing of it is stored.
    async fn refused(
        &mut self,
        error: errors::ApiError,
        batch: &Batch,
        range: Range<usize>,
        began: Instant,
    ) -> Result<Refused, SinkError> {
        if WRONG_LAST.contains(&error.err_code) {
            return match self.progress.why_not_last(&self.link).await? {
                Some(error) => Err(error),
                None => Ok(Refused::Again),
            };
        }
        // A message that the server would not let pass leaves a gap, by which the batch is refused.
        let forbidden = self.link.forbidden_since(began);
        let mut records = Vec::new();
        for (index, record) in batch.iter().enumerate().take(range.end).skip(range.start) {
            let topic = record.topic;
            if forbidden.iter().any(|subject| self.link.settings.subject.is_of(topic, subject)) {
                let error = format!(
                    "the relay may not publish to the subjects of {topic}: allow its user to publish to them"
                );
                records.push(RefusedRecord {
                    index,
                    reason: "not_authorised",
                    error,
                    certain: true,
                });
            }
        }
        match records.is_empty() {
            true => Err(unavailable(
                format!("storing {}", counted(range.len() as u64, "record")),
                error.explained(&self.link.settings),
            )),
            false => Ok(Refused::These(records)),
        }
    }
}

enum Refused {
    /// The same may be taken now.
    Again,
    These(Vec<RefusedRecord>),
}

impl ProgressStore for NatsSink {
    async fn peek(&mut self) -> Result<StoredProgress, SinkError> {
        self.progress.peek(&self.link).await
    }

    async fn fence(&mut self) -> Result<(), SinkError> {
        let stream = Stream::read(&self.link).await?;
        stream.verify(&self.link.settings.stream, &self.progress.subject)?;
        self.progress.for_ever = stream.keeps_for_ever();
        self.progress.claim(&self.link).await
    }

    async fn read(&mut self) -> Result<StoredProgress, SinkError> {
        self.progress.read(&self.link).await
    }

    async fn store(&mut self, progress: Bytes) -> Result<Stored, SinkError> {
        let nothing = Batch::new(crate::core::record::BatchLimits { records_max: 1, bytes_max: 1 });
        self.publish(&Arc::new(nothing), 0..0, Some(progress)).await?;
        Ok(Stored(()))
    }
}

impl Publisher for NatsSink {
    fn delivery_limit(&self) -> Option<Duration> {
        Some(DELIVERY_LIMIT)
    }

    fn is_apart(&self) -> bool {
        false
    }

    fn records_max(&self) -> usize {
        RECORDS_MAX
    }

    async fn publish(
        &mut self,
        batch: &Arc<Batch>,
        range: Range<usize>,
        progress: Option<Bytes>,
    ) -> Result<Receipt, SinkError> {
        const DOING: &str = "storing records";
        let together = "records go with their progress, and there was none";
        let progress = progress.ok_or_else(|| unavailable(DOING, together))?;
        // The library's futures are large.
        Box::pin(self.published(batch, range, progress)).await
    }
}

/// Asks whether the stream answers.
#[derive(Clone, Debug)]
pub struct Probe {
    link: Arc<Link>,
    progress_subject: String,
}

impl Probe {
    /// Asks, within some seconds, also whether progress may be published. Cancel safe.
    ///
    /// # Errors
    /// `Unavailable` if no one answers, `Misconfigured` if the right was revoked.
    pub async fn check(&self) -> Result<(), SinkError> {
        Stream::read(&self.link).await?;
        match self.link.refused(&self.progress_subject).await {
            Err(Failed::NotSent(error @ SinkError::Misconfigured { .. })) => Err(error),
            // The server has answered by now, and the stream does not take the message.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Looks whether the stream can still be used. Cancel safe.
    ///
    /// # Errors
    /// `Misconfigured` if not.
    pub async fn progress_topic(&self) -> Result<(), SinkError> {
        let stream = Stream::read(&self.link).await?;
        let name = &self.link.settings.stream;
        stream.verify(name, &self.progress_subject)?;
        // A start accepts it, and a person should know.
        match stream.deletes_unread(name) {
            Some((what, remedy)) => Err(SinkError::Misconfigured { what, remedy }),
            None => Ok(()),
        }
    }

    /// How long a subject that the stream lacks is watched for.
    pub fn grace(&self) -> Duration {
        self.link.settings.topic_grace
    }

    /// Those of `topics` of which the stream takes a subject by now.
    ///
    /// # Errors
    /// `Unavailable` if no one answers.
    pub async fn appeared(&self, topics: &[String]) -> Result<Vec<String>, SinkError> {
        let stream = Stream::read(&self.link).await?;
        let taken = |topic: &&String| stream.takes(&self.link.settings.subject.subject(topic, 0));
        Ok(topics.iter().filter(taken).cloned().collect())
    }
}
