//! One delivery: requests under way beside one another, and what became of each of their messages.

use std::{collections::HashMap, sync::Arc, time::Duration};

use outbox_relay_aws::{Entry, Said, Service, What};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use super::{
    client::unavailable,
    directory::{Destination, Directory},
    message::Message,
    requests::Requests,
    settings::Settings,
    throttle::Pace,
};
use crate::{
    core::{printable::counted, record::RefusedRecord},
    fault::{self, Point},
    sink::{Delivered, Rest, SinkError, lane_order::LaneOrder},
};

/// A request that is not answered for so long is given up.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// So many bytes are under way at once, unless one request has more.
const IN_FLIGHT_BYTES_MAX: usize = 8 << 20;

/// Messages of a range, and what is known of them.
pub(super) struct Delivery<'a> {
    settings: &'a Settings,
    service: &'a Arc<dyn Service>,
    destinations: HashMap<&'a str, Destination>,
    /// Index of the first record.
    start: usize,
    messages: &'a [Message],
    order: LaneOrder,
    requests: Requests<'a>,
    flight: JoinSet<Answer>,
    /// Of each request under way.
    under_way: HashMap<tokio::task::Id, Request>,
    bytes_in_flight: usize,
    pace: Pace,
    /// Nothing is sent before.
    quiet_until: Option<Instant>,
    refused: Vec<RefusedRecord>,
}

type Answer = Result<Vec<Result<(), Said>>, Said>;

struct Request {
    indexes: Vec<usize>,
    bytes: usize,
}

impl<'a> Delivery<'a> {
    pub(super) fn new(
        settings: &'a Settings,
        service: &'a Arc<dyn Service>,
        directory: &Directory,
        messages: &'a [Message],
        start: usize,
        order: LaneOrder,
    ) -> Self {
        let names = messages.iter().map(|it| it.destination.as_str());
        let destinations = names.filter_map(|it| Some((it, directory.get(it)?.clone()))).collect();
        Delivery {
            settings,
            service,
            destinations,
            start,
            messages,
            order,
            requests: Requests::default(),
            flight: JoinSet::new(),
            under_way: HashMap::new(),
            bytes_in_flight: 0,
            pace: Pace::new(settings.requests_in_flight),
            quiet_until: None,
            refused: Vec::new(),
        }
    }

    /// Sends all of them, each when those before it in its lane are stored.
    ///
    /// # Errors
    /// `Refused` with those that the service never takes, after all others that may be are stored; `Unavailable` where an
    /// outcome is uncertain.
    pub(super) async fn run(mut self) -> Result<Delivered, SinkError> {
        loop {
            if self.quiet_until.is_none() {
                self.send();
            }
            fault::point(Point::RecordsProduced);
            match (self.flight.is_empty(), self.quiet_until) {
                (true, None) => break,
                (_, Some(until)) => tokio::select! {
                    biased;
                    Some(answered) = self.flight.join_next_with_id() => self.answered(answered)?,
                    () = sleep_until(until) => self.quiet_until = None,
                },
                (false, None) => {
                    if let Some(answered) = self.flight.join_next_with_id().await {
                        self.answered(answered)?;
                    }
                }
            }
        }
        fault::point(Point::RecordsStored);
        self.ends()
    }

    /// Sends what may be sent.
    fn send(&mut self) {
        while let Some(index) = self.order.take() {
            let message = self.message(index);
            self.requests.add(index, &message.destination, message.bytes);
        }
        while self.flight.len() < self.pace.allowed() && self.bytes_in_flight < IN_FLIGHT_BYTES_MAX
        {
            let bytes_max = |name: &str| self.destinations.get(name).map_or(0, |it| it.bytes_max);
            let Some((name, indexes)) = self.requests.next(bytes_max) else { break };
            let address =
                self.destinations.get(name).map_or_else(String::new, |it| it.address.clone());
            let (mut bytes, mut entries): (usize, Vec<Entry>) =
                (0, Vec::with_capacity(indexes.len()));
            for index in &indexes {
                let message = self.message(*index);
                bytes += message.bytes;
                entries.push(message.entry.clone());
            }
            let service = Arc::clone(self.service);
            let task = self.flight.spawn(async move {
                let sent = timeout(SILENCE_MAX, service.send(&address, entries)).await;
                sent.unwrap_or_else(|_| {
                    Err(Said::uncertain(format!("no answer within {SILENCE_MAX:?}")))
                })
            });
            self.bytes_in_flight += bytes;
            self.under_way.insert(task.id(), Request { indexes, bytes });
        }
    }

    fn message(&self, index: usize) -> &'a Message {
        index
            .checked_sub(self.start)
            .and_then(|it| self.messages.get(it))
            .expect("an index of the range")
    }

    fn answered(
        &mut self,
        answered: Result<(tokio::task::Id, Answer), tokio::task::JoinError>,
    ) -> Result<(), SinkError> {
        let (id, answer) = match answered {
            Ok(answered) => answered,
            // It panicked: no one ends it.
            Err(error) => (error.id(), Err(Said::uncertain(error.to_string()))),
        };
        let request = self.under_way.remove(&id).expect("a request under way");
        self.bytes_in_flight -= request.bytes;
        match answer {
            Ok(outcomes) => self.each(&request.indexes, outcomes),
            Err(said) => self.failed(request.indexes, said),
        }
    }

    /// The service has said what became of each.
    fn each(
        &mut self,
        indexes: &[usize],
        outcomes: Vec<Result<(), Said>>,
    ) -> Result<(), SinkError> {
        let mut not_now = Vec::new();
        for (index, outcome) in indexes.iter().zip(outcomes) {
            match outcome {
                Ok(()) => self.order.stored(*index),
                Err(said) => match said.what {
                    What::NotNow => not_now.push((*index, said)),
                    What::Unknown | What::Uncertain => return Err(self.uncertain(said)),
                    _ => self.refuse(*index, &said),
                },
            }
        }
        match not_now.last() {
            None => self.pace.faster(),
            Some((_, said)) => {
                self.rest(said);
                not_now.iter().rev().for_each(|(index, _)| self.order.again(*index));
            }
        }
        Ok(())
    }

    /// The request as a whole failed: where that is certain, nothing of it is stored.
    fn failed(&mut self, indexes: Vec<usize>, said: Said) -> Result<(), SinkError> {
        match said.what {
            What::NotNow => {
                self.rest(&said);
                indexes.iter().rev().for_each(|index| self.order.again(*index));
            }
            What::Missing | What::Denied => indexes.iter().for_each(|it| self.refuse(*it, &said)),
            // Which of them is to blame is said of one that is alone.
            What::Refused | What::TooLarge if indexes.len() > 1 => {
                for index in indexes.into_iter().rev() {
                    self.requests.alone(index);
                    self.order.again(index);
                }
            }
            What::Refused | What::TooLarge => indexes.iter().for_each(|it| self.refuse(*it, &said)),
            What::Unknown | What::Uncertain => return Err(self.uncertain(said)),
        }
        Ok(())
    }

    fn rest(&mut self, said: &Said) {
        self.settings.throttle.told(&said.to_string());
        // Requests that were under way together say the same: that is one pause.
        if self.quiet_until.is_none() {
            self.quiet_until = Some(Instant::now() + self.pace.slower());
        }
    }

    fn refuse(&mut self, index: usize, said: &Said) {
        let (reason, error) = refusal(self.settings, &self.message(index).destination, said);
        self.refused.push(RefusedRecord { index, reason, error, certain: true });
    }

    fn uncertain(&self, said: Said) -> SinkError {
        let messages = self.under_way.values().map(|it| it.indexes.len()).sum::<usize>() as u64;
        let doing = format!(
            "sending to {} ({} under way beside it)",
            self.settings.kind(),
            counted(messages, "message")
        );
        unavailable(doing, said)
    }

    fn ends(mut self) -> Result<Delivered, SinkError> {
        if self.refused.is_empty() {
            return Ok(Delivered { restamped: 0 });
        }
        self.refused.sort_by_key(|record| record.index);
        let rest = if self.settings.is_fifo() { Rest::StoredButFollowers } else { Rest::Stored };
        Err(SinkError::Refused { records: self.refused, rest })
    }
}

/// A stable word, and what a person can do.
pub(super) fn refusal(
    settings: &Settings,
    destination: &str,
    said: &Said,
) -> (&'static str, String) {
    let what = settings.noun();
    match said.what {
        What::Missing => {
            let error = format!(
                "the {what} {destination} does not exist: create it, then `outbox-relay dead-letters release --reason \
                 unknown_topic`"
            );
            ("unknown_topic", error)
        }
        What::Denied => {
            let error = format!(
                "the service refuses it ({said}): allow the relay what docs/AWS.md lists for the {what} {destination}, and its \
                 key of KMS, then `outbox-relay dead-letters release --reason not_authorised`"
            );
            ("not_authorised", error)
        }
        What::TooLarge => {
            let error = format!(
                "the service refuses it ({said}): raise MaximumMessageSize of the {what} {destination}, or publish a reference \
                 to the data"
            );
            ("too_large", error)
        }
        _ => {
            let error = format!(
                "the service refuses it ({said}): correct it with `outbox-relay dead-letters edit`, and release the event"
            );
            ("invalid_record", error)
        }
    }
}
