//! RabbitMQ: each record is a message, confirmed by all queues that it went to.
//!
//! The broker stores what was published up to a cut, and may refuse one message and take later ones, so a lane
//! is sent in its own order (`lane_order`). A message that no queue takes is confirmed like any other: it is
//! published as mandatory, and what came back is not stored (`flight`). The broker has no place for progress;
//! that is in the app's database. So records are delivered at least once.

mod address;
mod flight;
mod line;
mod message;
mod preflight;
mod probe;
mod settings;
mod template;
mod topology;

use std::{collections::BTreeSet, ops::Range, sync::Arc, time::Duration};

use amqprs::channel::BasicPublishArguments;
use tokio::time::Instant;

pub(super) use self::preflight::examine;
use self::{
    flight::{Flight, Outcome},
    line::{Answer, Line, Returned},
    message::Destination,
    topology::Topology,
};
pub use self::{probe::Probe, settings::Settings, template::Template};
use super::{Delivered, RefusedRecord, Rest, Sink, SinkError, lane_order::LaneOrder, unavailable};
use crate::{
    core::{
        printable::counted,
        record::{Batch, Record},
    },
    fault::{self, Point},
};

/// A broker that says nothing for so long is given up. One under an alarm confirms nothing until it is over; one
/// whose queue is full says so of every message, and is waited for.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// So many messages, or so many bytes, are unconfirmed at once.
const IN_FLIGHT_MAX: usize = 2_000;
const IN_FLIGHT_BYTES_MAX: usize = 8 << 20;
/// How long a message rests that the broker does not take now.
const NOT_NOW_PAUSE: Duration = Duration::from_millis(50);

/// AMQP's codes for why a channel ended.
mod code {
    pub(super) const ACCESS_REFUSED: u16 = 403;
    pub(super) const NOT_FOUND: u16 = 404;
    pub(super) const PRECONDITION_FAILED: u16 = 406;
}

/// The RabbitMQ sink.
#[derive(Debug)]
pub struct RabbitSink {
    settings: Arc<Settings>,
    /// `None` until it is needed, and after its end.
    line: Option<Line>,
    topology: Topology,
    probe: Probe,
}

impl RabbitSink {
    /// Makes the sink. Connects to nothing yet.
    pub fn new(settings: Settings) -> Self {
        let settings = Arc::new(settings);
        let probe = Probe::new(Arc::clone(&settings));
        RabbitSink { settings, line: None, topology: Topology::default(), probe }
    }

    /// A handle that asks whether the broker answers, on a connection of its own.
    pub fn probe(&self) -> Probe {
        self.probe.clone()
    }

    /// Where the records of `range` go.
    ///
    /// # Errors
    /// `Refused` with all records from the range's start to the batch's end that can't be messages; nothing was
    /// sent.
    async fn judged(
        &mut self,
        line: &Line,
        batch: &Batch,
        range: &Range<usize>,
    ) -> Result<Vec<Destination>, SinkError> {
        let (destinations, mut records) = self.looked_at(line, batch, range.clone()).await?;
        if records.is_empty() {
            return Ok(destinations);
        }
        let (_, behind) = self.looked_at(line, batch, range.end..batch.len()).await?;
        records.extend(behind);
        Err(SinkError::Refused { records, rest: Rest::NotSent })
    }

    async fn looked_at(
        &mut self,
        line: &Line,
        batch: &Batch,
        range: Range<usize>,
    ) -> Result<(Vec<Destination>, Vec<RefusedRecord>), SinkError> {
        let mut destinations = Vec::with_capacity(range.len());
        let mut records = Vec::new();
        for (index, record) in batch.iter().enumerate().take(range.end).skip(range.start) {
            match message::judge(&self.settings, line.frame_bytes(), &record) {
                Ok(destination) => destinations.push((index, destination)),
                Err((reason, error)) => records.push(refused(index, reason, error)),
            }
        }
        let exchanges = destinations.iter().map(|(_, it)| it.exchange.as_str()).collect();
        let gone = self.topology.missing(line.connection(), &self.settings, exchanges).await?;
        if !gone.is_empty() {
            let gone = destinations.iter().filter(|(_, it)| gone.contains(&it.exchange));
            records.extend(
                gone.map(|(index, it)| refused(*index, "unknown_topic", missing(&it.exchange))),
            );
            records.sort_by_key(|record| record.index);
        }
        Ok((destinations.into_iter().map(|(_, it)| it).collect(), records))
    }

    async fn delivered(
        &mut self,
        line: &mut Line,
        batch: &Batch,
        range: Range<usize>,
    ) -> Result<Delivered, SinkError> {
        let destinations = self.judged(line, batch, &range).await?;
        let mut delivery = Delivery {
            settings: &self.settings,
            batch,
            destinations: &destinations,
            order: LaneOrder::new(batch, range.clone(), self.settings.many_in_flight),
            flight: Flight::default(),
            refused: Vec::new(),
            later: Later::default(),
            range: range.clone(),
        };
        let mut until = Instant::now() + SILENCE_MAX;
        loop {
            delivery.send(line, until).await?;
            let later = delivery.later.at;
            if delivery.flight.len() == 0 && later.is_none() {
                break;
            }
            let wake = later.map_or(until, |later| later.min(until));
            let answer = match tokio::time::timeout_at(wake, line.answers.recv()).await {
                Ok(answer) => answer,
                Err(_) if later == Some(wake) => {
                    delivery.again();
                    continue;
                }
                Err(_) => return Err(delivery.unconfirmed()),
            };
            until = Instant::now() + SILENCE_MAX;
            match answer {
                Some(Answer::Confirmed { tag, multiple, stored }) => {
                    delivery.confirmed(tag, multiple, stored);
                }
                Some(Answer::Returned(returned)) => delivery.returned(&returned),
                Some(Answer::Closed { code, text }) => return Err(delivery.closed(code, &text)),
                None => return Err(delivery.closed(0, "the connection ended")),
            }
        }
        fault::point(Point::RecordsStored);
        delivery.ends()
    }
}

impl Sink for RabbitSink {
    async fn deliver(
        &mut self,
        batch: &Arc<Batch>,
        range: Range<usize>,
    ) -> Result<Delivered, SinkError> {
        // Of a delivery that is dropped half-way nothing may reach another one: its line goes with it.
        let mut line = match self.line.take() {
            Some(line) if line.connection().is_open() && line.channel.is_open() => line,
            _ => {
                self.topology.forget();
                Box::pin(Line::open(&self.settings, "")).await?
            }
        };
        let batch = Arc::clone(batch);
        let done = Box::pin(self.delivered(&mut line, &batch, range)).await;
        drop(batch);
        let is_settled = match &done {
            Ok(_) => true,
            Err(SinkError::Refused { rest, .. }) => *rest != Rest::NotStored,
            Err(_) => false,
        };
        if is_settled {
            self.line = Some(line);
        }
        done
    }
}

/// One delivery.
struct Delivery<'a> {
    settings: &'a Settings,
    batch: &'a Batch,
    /// Of each record of the range.
    destinations: &'a [Destination],
    order: LaneOrder,
    flight: Flight,
    refused: Vec<RefusedRecord>,
    later: Later,
    range: Range<usize>,
}

/// What a queue did not take now. It is sent again after a pause; the others go on meanwhile.
#[derive(Debug, Default)]
struct Later {
    /// In the order in which the broker said so.
    records: Vec<usize>,
    /// When they are sent again; `None` while there are no such records.
    at: Option<Instant>,
}

impl Delivery<'_> {
    /// What was put off may be sent now.
    fn again(&mut self) {
        let Later { records, .. } = std::mem::take(&mut self.later);
        records.into_iter().rev().for_each(|index| self.order.again(index));
    }

    /// Sends what may be sent.
    async fn send(&mut self, line: &mut Line, until: Instant) -> Result<(), SinkError> {
        while self.flight.len() < IN_FLIGHT_MAX && self.flight.bytes() < IN_FLIGHT_BYTES_MAX {
            let Some(index) = self.order.take() else { break };
            let record = self.record(index);
            let Destination { exchange, routing_key } = self.destination(index);
            let mut arguments = BasicPublishArguments::new(exchange, routing_key);
            arguments.mandatory(true);
            let payload = record.payload.unwrap_or_default().to_vec();
            let properties = message::properties(&record);
            line.published += 1;
            self.flight.sent(line.published, index, record.size_bytes());
            let published = line.channel.basic_publish(properties, payload, arguments);
            match tokio::time::timeout_at(until, published).await {
                Ok(Ok(())) => {}
                // The channel says why it ended.
                Ok(Err(error)) => {
                    let last = std::iter::from_fn(|| line.answers.try_recv().ok()).last();
                    return Err(match last {
                        Some(Answer::Closed { code, text }) => self.closed(code, &text),
                        _ => self.closed(0, &error.to_string()),
                    });
                }
                Err(_) => return Err(self.unconfirmed()),
            }
        }
        fault::point(Point::RecordsProduced);
        Ok(())
    }

    fn record(&self, index: usize) -> Record<'_> {
        self.batch.get(index).expect("an index of the range")
    }

    fn destination(&self, index: usize) -> &Destination {
        self.destinations.get(index - self.range.start).expect("an index of the range")
    }

    fn confirmed(&mut self, tag: u64, multiple: bool, stored: bool) {
        for (index, outcome) in self.flight.confirmed(tag, multiple, stored) {
            match outcome {
                Outcome::Stored => self.order.stored(index),
                Outcome::NotNow => {
                    self.later.records.push(index);
                    self.later.at.get_or_insert_with(|| Instant::now() + NOT_NOW_PAUSE);
                }
                Outcome::Unroutable(text) => {
                    let Destination { exchange, routing_key } = &self
                        .destinations
                        .get(index - self.range.start)
                        .expect("an index of the range");
                    let error = format!(
                        "no queue takes it: the exchange {exchange:?} sent back a message with the routing key \
                         {routing_key:?} ({text}). Bind a queue, and `outbox-relay dead-letters release --reason \
                         unknown_topic`"
                    );
                    self.refused.push(refused(index, "unknown_topic", error));
                }
            }
        }
    }

    fn returned(&mut self, returned: &Returned) {
        let (batch, destinations, start) = (self.batch, self.destinations, self.range.start);
        let is_it = |index: usize| {
            let destination = destinations.get(index - start);
            destination.is_some_and(|it| {
                it.exchange == returned.exchange && it.routing_key == returned.routing_key
            }) && batch.get(index).is_some_and(|record| {
                message::message_id(&record) == returned.message_id.as_deref()
            })
        };
        if !self.flight.returned(&returned.text, is_it) {
            tracing::warn!(?returned, "the broker sent back a message that is not under way");
        }
    }

    fn unconfirmed(&self) -> SinkError {
        unavailable(
            format!("waiting for {} to be confirmed", counted(self.flight.len() as u64, "message")),
            format!(
                "no answer within {SILENCE_MAX:?}. A broker confirms nothing while it has an alarm for memory or \
                 disk (`rabbitmq-diagnostics alarms`), and while a quorum queue has no majority"
            ),
        )
    }

    /// The broker ended the channel. Where it says which records are to blame, these are refused, and all of the
    /// range is sent again without them.
    fn closed(&self, code: u16, text: &str) -> SinkError {
        let to = |exchange: &str| {
            // The default exchange has no name but where rights are looked at.
            let name = if exchange.is_empty() { "amq.default" } else { exchange };
            text.contains(&format!("exchange '{name}'"))
        };
        let guilty = |reason: &'static str, is_guilty: &dyn Fn(usize) -> bool, error: &str| {
            let indexes = self.range.clone().filter(|index| is_guilty(*index));
            let records: Vec<_> =
                indexes.map(|index| refused(index, reason, error.to_owned())).collect();
            (!records.is_empty()).then_some(SinkError::Refused { records, rest: Rest::NotStored })
        };
        let to_it = |index: usize| to(&self.destination(index).exchange);
        let blamed = match code {
            code::ACCESS_REFUSED => {
                let error = format!(
                    "the broker refuses it ({text}): give the relay's user the right to write there \
                     (`rabbitmqctl set_permissions`), then `outbox-relay dead-letters release --reason not_authorised`"
                );
                guilty("not_authorised", &to_it, &error)
            }
            code::NOT_FOUND => {
                let names: BTreeSet<_> = self.destinations.iter().map(|it| &it.exchange).collect();
                let gone = names.into_iter().find(|exchange| to(exchange));
                gone.and_then(|gone| guilty("unknown_topic", &to_it, &missing(gone)))
            }
            code::PRECONDITION_FAILED => {
                let max = text.rsplit(' ').find_map(|word| word.parse::<usize>().ok());
                let error = format!(
                    "the broker refuses it ({text}): raise its max_message_size, or publish a reference to the \
                     data; and set sink.rabbitmq.message_bytes_max to what it takes"
                );
                let is_larger = |index: usize| {
                    let bytes = self.record(index).payload.map_or(0, <[u8]>::len);
                    max.is_some_and(|max| bytes > max)
                };
                guilty("too_large", &is_larger, &error)
            }
            _ => None,
        };
        blamed.unwrap_or_else(|| {
            let doing = format!(
                "waiting for {} to be confirmed",
                counted(self.flight.len() as u64, "message")
            );
            unavailable(doing, format!("the broker ended the channel: {code} {text}"))
        })
    }

    fn ends(mut self) -> Result<Delivered, SinkError> {
        if self.refused.is_empty() {
            return Ok(Delivered { restamped: 0 });
        }
        self.refused.sort_by_key(|record| record.index);
        let rest = match self.settings.many_in_flight {
            true => Rest::Stored,
            false => Rest::StoredButFollowers,
        };
        Err(SinkError::Refused { records: self.refused, rest })
    }
}

fn refused(index: usize, reason: &'static str, error: String) -> RefusedRecord {
    RefusedRecord { index, reason, error, certain: true }
}

fn missing(exchange: &str) -> String {
    format!(
        "the exchange {exchange:?} does not exist: create it, with a queue for each partition, or set \
         sink.rabbitmq.declare = true; then `outbox-relay dead-letters release --reason unknown_topic`"
    )
}

#[cfg(test)]
mod tests;
