//! One delivery: what goes to each partition, in its order, and what becomes of it.
//!
//! Many messages of a partition are under way at once: a broker that fails to store one closes the topic and stores none
//! behind it. It refuses single ones only for their size, by a limit of the topic that it does not tell. So before one that is
//! larger than all that this producer has had stored, everything must be confirmed, and nothing is sent behind it until it is.
//! If it is refused, the later ones of its key are not sent.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    ops::Range,
    time::Duration,
};

use futures_util::future::try_join_all;
use outbox_relay_pulsar::{Said, What};
use tokio::time::timeout;

use super::{
    client::{Client, refusal, unavailable},
    message,
    producers::{Open, Producers},
};
use crate::{
    core::{
        printable::counted,
        record::{Batch, Record},
    },
    fault::{self, Point},
    sink::{Delivered, RefusedRecord, Rest, SinkError},
};

/// A broker that says nothing for so long is given up.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// So many messages of a partition are under way at once.
const IN_FLIGHT_MAX: usize = 500;

/// One delivery.
#[derive(Debug)]
pub(super) struct Delivery<'a> {
    client: &'a Client,
    batch: &'a Batch,
    /// What goes to each topic or partition, in the order of the range.
    lots: BTreeMap<&'a str, Vec<usize>>,
}

/// What of a partition was sent.
struct Sent {
    topic: String,
    open: Open,
    refused: Vec<RefusedRecord>,
}

impl<'a> Delivery<'a> {
    /// `topics` are those of each record of the range.
    pub(super) fn new(
        client: &'a Client,
        batch: &'a Batch,
        topics: &'a [String],
        range: Range<usize>,
    ) -> Self {
        let mut lots: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (index, topic) in range.zip(topics) {
            lots.entry(topic).or_default().push(index);
        }
        Delivery { client, batch, lots }
    }

    /// # Errors
    /// See [`SinkError`]; after any but `Refused` nothing of `producers` may be used again.
    pub(super) async fn run(self, producers: &mut Producers) -> Result<Delivered, SinkError> {
        let taken = producers.take(self.client, self.lots.keys().copied().collect()).await?;
        let (mut refused, mut sending) = (Vec::new(), Vec::new());
        for (topic, taken) in taken {
            let lot = self.lots.get(topic.as_str()).map(Vec::as_slice).unwrap_or_default();
            match taken {
                Ok(open) => sending.push(self.send(topic, open, lot)),
                Err(said) => {
                    refused.extend(lot.iter().map(|index| refused_for(*index, &topic, &said)));
                }
            }
        }
        for sent in Box::pin(try_join_all(sending)).await? {
            refused.extend(sent.refused);
            producers.give_back(sent.topic, sent.open);
        }
        fault::point(Point::RecordsStored);
        if refused.is_empty() {
            return Ok(Delivered { restamped: 0 });
        }
        refused.sort_by_key(|record| record.index);
        Err(SinkError::Refused { records: refused, rest: Rest::StoredButFollowers })
    }

    /// Sends the records of a topic or partition.
    async fn send(&self, topic: String, mut open: Open, lot: &[usize]) -> Result<Sent, SinkError> {
        let mut refused = Vec::new();
        let mut stopped = HashSet::new();
        let mut to_send: VecDeque<usize> = lot.iter().copied().collect();
        let mut in_flight: VecDeque<(usize, usize)> = VecDeque::new();
        // Nothing is sent behind one of which it is not known whether the topic takes so large ones.
        let mut alone = false;
        loop {
            while !alone && in_flight.len() < IN_FLIGHT_MAX {
                let Some(index) = to_send.front().copied() else { break };
                let record = self.record(index);
                if lane(&record).is_some_and(|lane| stopped.contains(&lane)) {
                    to_send.pop_front();
                    continue;
                }
                let message = message::message(&record);
                let bytes = message.bytes();
                if bytes > open.proven && !in_flight.is_empty() {
                    break;
                }
                to_send.pop_front();
                if bytes > open.producer.bytes_max() {
                    let text = format!(
                        "the message has {bytes} bytes, and the brokers' maxMessageSize is {}",
                        open.producer.bytes_max()
                    );
                    let said = Said::new(What::TooLarge, text);
                    stopped.extend(lane(&record));
                    refused.push(refused_for(index, &topic, &said));
                    continue;
                }
                alone = bytes > open.proven;
                let sent = timeout(SILENCE_MAX, open.producer.send(&message)).await;
                match sent {
                    Ok(Ok(())) => in_flight.push_back((index, bytes)),
                    Ok(Err(said)) => return Err(self.failed(&topic, &open, said).await),
                    Err(_) => return Err(silent(in_flight.len())),
                }
            }
            fault::point(Point::RecordsProduced);
            let Some((index, bytes)) = in_flight.pop_front() else { break };
            match timeout(SILENCE_MAX, open.producer.receipt()).await {
                Ok(Ok(Ok(()))) => open.proven = open.proven.max(bytes),
                Ok(Ok(Err(said))) if is_refused(&said) => {
                    stopped.extend(lane(&self.record(index)));
                    refused.push(refused_for(index, &topic, &said));
                }
                Ok(Ok(Err(said)) | Err(said)) => {
                    return Err(self.failed(&topic, &open, said).await);
                }
                Err(_) => return Err(silent(in_flight.len() + 1)),
            }
            alone = false;
        }
        Ok(Sent { topic, open, refused })
    }

    fn record(&self, index: usize) -> Record<'a> {
        self.batch.get(index).expect("an index of the range")
    }

    /// Whether that is because another relay has taken the topic over.
    async fn failed(&self, topic: &str, open: &Open, said: Said) -> SinkError {
        /// Longer than the answers together that this takes.
        const LIMIT: Duration = Duration::from_secs(5);
        if let (Some(held), Ok(cluster)) = (open.producer.held(), self.client.cluster())
            && timeout(LIMIT, cluster.is_fenced(topic, &held)).await.unwrap_or(false)
        {
            let text = format!("another producer has taken over {topic} ({said})");
            return SinkError::Fenced(text.into());
        }
        unavailable(format!("sending to {topic}"), said)
    }
}

/// What must stay in order within a partition.
#[derive(PartialEq, Eq, Hash)]
enum Lane<'a> {
    Key(&'a [u8]),
    /// Of events without a key that name it.
    Partition,
}

fn lane<'a>(record: &Record<'a>) -> Option<Lane<'a>> {
    match (record.key, record.partition) {
        (Some(key), _) => Some(Lane::Key(key)),
        (None, Some(_)) => Some(Lane::Partition),
        (None, None) => None,
    }
}

fn is_refused(said: &Said) -> bool {
    matches!(said.what, What::TooLarge | What::Refused | What::Denied | What::Missing)
}

fn refused_for(index: usize, topic: &str, said: &Said) -> RefusedRecord {
    let (reason, error) = refusal(topic, said);
    RefusedRecord { index, reason, error, certain: true }
}

fn silent(in_flight: usize) -> SinkError {
    let doing = format!("waiting for {} to be confirmed", counted(in_flight as u64, "message"));
    unavailable(doing, Said::uncertain(format!("no answer within {SILENCE_MAX:?}")))
}
