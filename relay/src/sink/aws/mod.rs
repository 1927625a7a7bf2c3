//! Amazon SQS and SNS: each record is a message of a queue or topic, and the service says of each whether it is stored.
//!
//! A request has ten messages at most, and some of them may fail while others are stored. So a lane is sent in its own
//! order (`lane_order`): of a FIFO queue's group one message is under way at a time. Standard queues keep no order, and are
//! sent everything at once. The services have no place for progress; that is in the app's database. So records are
//! delivered at least once.
//!
//! All of it is compiled in every build; only what speaks with the services is in a crate of its own (`relay-aws`), behind
//! the feature `aws`.

mod attributes;
mod client;
mod delivery;
mod directory;
mod facts;
mod foreseen;
mod identifiers;
mod message;
mod preflight;
mod probe;
mod requests;
mod settings;
mod template;
mod throttle;

#[cfg(test)]
mod example;
#[cfg(test)]
mod tests;

use std::{ops::Range, sync::Arc};

pub use outbox_relay_aws::{BYTES_MAX, Kind};

use self::{
    client::Client,
    delivery::{Delivery, refusal},
    directory::Directory,
    message::Message,
};
pub(super) use self::{foreseen::foresee, preflight::examine};
pub use self::{probe::Probe, settings::Settings, template::Template, throttle::Throttle};
use super::{Delivered, RefusedRecord, Rest, Sink, SinkError, lane_order::LaneOrder};
use crate::core::record::Batch;

/// The sink to SQS or SNS.
#[derive(Debug)]
pub struct AwsSink {
    client: Client,
    directory: Directory,
}

impl AwsSink {
    /// Makes the sink. Connects to nothing yet.
    pub fn new(settings: Settings) -> Self {
        AwsSink { client: Client::new(settings), directory: Directory::default() }
    }

    /// A handle that asks whether the service answers.
    pub fn probe(&self) -> Probe {
        Probe::new(self.client.clone())
    }

    /// The messages of `range`.
    ///
    /// # Errors
    /// `Refused` with all records from the range's start to the batch's end that can't be messages; nothing was
    /// sent.
    async fn judged(
        &mut self,
        batch: &Batch,
        range: &Range<usize>,
    ) -> Result<Vec<Message>, SinkError> {
        let (messages, mut records) = self.looked_at(batch, range.clone()).await?;
        if records.is_empty() {
            return Ok(messages);
        }
        let (_, behind) = self.looked_at(batch, range.end..batch.len()).await?;
        records.extend(behind);
        Err(SinkError::Refused { records, rest: Rest::NotSent })
    }

    async fn looked_at(
        &mut self,
        batch: &Batch,
        range: Range<usize>,
    ) -> Result<(Vec<Message>, Vec<RefusedRecord>), SinkError> {
        let refused =
            |index, (reason, error)| RefusedRecord { index, reason, error, certain: true };
        let settings = Arc::clone(&self.client.settings);
        let (mut messages, mut records) = (Vec::with_capacity(range.len()), Vec::new());
        for (index, record) in batch.iter().enumerate().take(range.end).skip(range.start) {
            match message::message(&settings, &record) {
                Ok(message) => messages.push((index, message)),
                Err(why) => records.push(refused(index, why)),
            }
        }
        let names = messages.iter().map(|(_, it)| it.destination.as_str()).collect();
        let service = self.client.service().await?;
        let look = async |name: String| directory::destination(service, &settings, &name).await;
        let absent = self.directory.absent(names, look).await?;
        for (index, message) in &messages {
            let name = message.destination.as_str();
            if let Some(said) = absent.get(name) {
                records.push(refused(*index, refusal(&settings, name, said)));
            } else if let Some(known) = self.directory.get(name)
                && let Err(why) = message::fits(&settings, message, known.bytes_max)
            {
                records.push(refused(*index, why));
            }
        }
        records.sort_by_key(|record| record.index);
        Ok((messages.into_iter().map(|(_, it)| it).collect(), records))
    }
}

impl Sink for AwsSink {
    async fn deliver(
        &mut self,
        batch: &Arc<Batch>,
        range: Range<usize>,
    ) -> Result<Delivered, SinkError> {
        let messages = Box::pin(self.judged(batch, &range)).await?;
        let settings = &self.client.settings;
        let order = LaneOrder::new(batch, range.clone(), !settings.is_fifo());
        let service = self.client.service().await?;
        let delivery =
            Delivery::new(settings, service, &self.directory, &messages, range.start, order);
        let done = Box::pin(delivery.run()).await;
        if let Err(SinkError::Refused { records, .. }) = &done {
            // What is known of where they go was wrong.
            let of = |record: &RefusedRecord| messages.get(record.index - range.start);
            for message in records.iter().filter_map(of) {
                self.directory.forget(&message.destination);
            }
        }
        done
    }
}
