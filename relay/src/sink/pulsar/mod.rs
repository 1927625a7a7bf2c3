//! Apache Pulsar: each record is a message of a topic or of one of its partitions, confirmed when it is stored.
//!
//! A broker stores what one producer sends in its order, and after a failure nothing that was sent later (`delivery` says
//! with which exception). So many messages of a partition are under way at once. What fails ends the producers, and the
//! delivery is repeated from the stored progress, which is in the app's database: records are delivered at least once. That
//! Pulsar could drop the copies by their numbers is not used (docs/PULSAR.md says why). A producer has its partition to
//! itself, so one of a relay that was replaced can store nothing more.
//!
//! All of it is compiled in every build; only what speaks with Pulsar is in a crate of its own (`relay-pulsar`), behind the
//! feature `pulsar`.

mod address;
mod client;
mod delivery;
mod directory;
mod foreseen;
mod message;
mod preflight;
mod probe;
mod producers;
mod settings;
mod template;

#[cfg(test)]
mod tests;

use std::{ops::Range, sync::Arc};

use self::{client::Client, delivery::Delivery, directory::Directory, producers::Producers};
pub(super) use self::{foreseen::foresee, preflight::examine};
pub use self::{probe::Probe, settings::Settings, template::Template};
use super::{Delivered, RefusedRecord, Rest, Sink, SinkError};
use crate::core::record::Batch;

/// The sink to Pulsar.
#[derive(Debug)]
pub struct PulsarSink {
    client: Client,
    directory: Directory,
    producers: Producers,
}

impl PulsarSink {
    /// Makes the sink. Connects to nothing yet.
    pub fn new(settings: Settings) -> Self {
        PulsarSink {
            client: Client::new(settings),
            directory: Directory::default(),
            producers: Producers::default(),
        }
    }

    /// A handle that asks whether a broker answers, on connections of its own.
    pub fn probe(&self) -> Probe {
        Probe::new(self.client.settings.as_ref().clone())
    }

    /// The topic or partition of each record of `range`.
    ///
    /// # Errors
    /// `Refused` with all records from the range's start to the batch's end that can't be messages; nothing was sent.
    async fn judged(
        &mut self,
        batch: &Batch,
        range: &Range<usize>,
    ) -> Result<Vec<String>, SinkError> {
        let (topics, mut records) = self.looked_at(batch, range.clone()).await?;
        if records.is_empty() {
            return Ok(topics);
        }
        let (_, behind) = self.looked_at(batch, range.end..batch.len()).await?;
        records.extend(behind);
        Err(SinkError::Refused { records, rest: Rest::NotSent })
    }

    async fn looked_at(
        &mut self,
        batch: &Batch,
        range: Range<usize>,
    ) -> Result<(Vec<String>, Vec<RefusedRecord>), SinkError> {
        let refused =
            |index, (reason, error)| RefusedRecord { index, reason, error, certain: true };
        let settings = Arc::clone(&self.client.settings);
        let (mut judged, mut records) = (Vec::with_capacity(range.len()), Vec::new());
        for (index, record) in batch.iter().enumerate().take(range.end).skip(range.start) {
            match message::judge(&settings, &record) {
                Ok(topic) => judged.push((index, record, topic)),
                Err(why) => records.push(refused(index, why)),
            }
        }
        let names = judged.iter().map(|(_, _, topic)| topic.as_str()).collect();
        let client = &self.client;
        let look = async |name: String| directory::look(client, &name).await;
        let absent = self.directory.absent(names, look).await?;
        let mut topics = Vec::with_capacity(range.len());
        for (index, record, topic) in judged {
            let judged = match absent.get(&topic) {
                Some(said) => Err(client::refusal(&topic, said)),
                None => {
                    message::place(&record, &topic, self.directory.get(&topic).copied().flatten())
                }
            };
            match judged {
                Ok(topic) => topics.push(topic),
                Err(why) => records.push(refused(index, why)),
            }
        }
        records.sort_by_key(|record| record.index);
        Ok((topics, records))
    }
}

impl Sink for PulsarSink {
    async fn deliver(
        &mut self,
        batch: &Arc<Batch>,
        range: Range<usize>,
    ) -> Result<Delivered, SinkError> {
        // Of a delivery that is dropped half-way nothing may reach another one: its producers go with it.
        let mut producers = std::mem::take(&mut self.producers);
        let done = match Box::pin(self.judged(batch, &range)).await {
            Ok(topics) => {
                let delivery = Delivery::new(&self.client, batch, &topics, range);
                Box::pin(delivery.run(&mut producers)).await
            }
            Err(error) => Err(error),
        };
        match &done {
            Ok(_) => self.producers = producers,
            Err(SinkError::Refused { records, .. }) => {
                // What is known of where they go was wrong.
                for record in records {
                    let topic =
                        batch.get(record.index).map(|it| self.client.settings.topic.of(it.topic));
                    topic.into_iter().for_each(|topic| self.directory.forget(&topic));
                }
                self.producers = producers;
            }
            // Connections go too: what waits in one must not come behind what is sent again.
            Err(_) => {
                drop(producers);
                self.client.close();
            }
        }
        done
    }
}
