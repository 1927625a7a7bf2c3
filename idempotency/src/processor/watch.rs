//! Calls the handler, says so while that takes long, and ends it at its limit.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tracing::Instrument as _;

use super::Processor;
use crate::{
    alert::Alert,
    failure::{Failure, Kind},
    message::RawMessage,
    message_id::MessageId,
    transaction::Open,
    tx::Tx,
};

/// A handler that is at work for longer is spoken of, again and again.
pub(super) const SLOW: Duration = Duration::from_secs(30);

impl Processor {
    /// Calls the handler in the transaction. A parameter that fits the types of an earlier message's statement and
    /// not this one's is neither's fault: the handler is called again, whatever it made of that.
    pub(super) async fn work(&self, open: &Open, messages: Vec<RawMessage>) -> Result<(), Failure> {
        let done = self.call(open.tx(), messages).await;
        if open.had_a_misfit() {
            let text = "a parameter does not fit a statement that an earlier message had prepared";
            return Err(Failure::new(Kind::Session, "session", text));
        }
        done
    }

    async fn call(&self, tx: Tx, messages: Vec<RawMessage>) -> Result<(), Failure> {
        let consumer = self.shared.inbox.consumer();
        // The producer's context as it is: whoever exports spans knows what to do with it.
        let span = match messages.as_slice() {
            [message] => tracing::info_span!(
                "message",
                consumer,
                id = %message.id,
                attempt = message.attempt,
                traceparent = message.headers.text("traceparent")
            ),
            many => tracing::info_span!("batch", consumer, messages = many.len()),
        };
        let _until_it_ends = self.enters(&messages);
        let limit = self.shared.time_limit.unwrap_or(Duration::MAX);
        let work = self.shared.work.run(tx, messages).instrument(span);
        let mut work = pin!(tokio::time::timeout(limit, work));
        loop {
            tokio::select! {
                done = &mut work => return done.unwrap_or_else(|_| {
                    let text = format!("the handler took longer than its limit of {limit:?}");
                    Err(Failure::new(Kind::Transient, "timed-out", text))
                }),
                () = tokio::time::sleep(self.shared.slow_after) => self.say_what_is_slow(),
            }
        }
    }

    fn enters(&self, messages: &[RawMessage]) -> Option<Entry<'_>> {
        let first = messages.first()?.id;
        let call = Call { began: Instant::now(), first, messages: messages.len(), said: 0 };
        let number = self.at_work().enter(call);
        Some(Entry { processor: self, number })
    }

    /// Says which handlers take long, once for each such time. Each call of a handler asks, and so does
    /// whoever has a thread of its own, because a handler may block the one that it is called on.
    pub(crate) fn say_what_is_slow(&self) {
        let slow = self.at_work().slow(self.shared.slow_after);
        for (for_time, first, messages) in slow {
            let (consumer, first) = (self.shared.inbox.consumer().to_owned(), first.to_string());
            tracing::warn!(
                consumer,
                first,
                messages,
                "a handler has been at work for {for_time:.0?}: its key waits, and its connection is \
                 taken"
            );
            self.shared.meter.slow();
            self.shared.alerts.raise(&Alert::Slow { consumer, message: first, for_time });
        }
    }

    fn at_work(&self) -> MutexGuard<'_, AtWork> {
        self.shared.at_work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Calls of the handler that have not ended.
#[derive(Default)]
pub(super) struct AtWork {
    entered: u64,
    calls: HashMap<u64, Call>,
}

struct Call {
    began: Instant,
    first: MessageId,
    messages: usize,
    said: u32,
}

impl AtWork {
    fn enter(&mut self, call: Call) -> u64 {
        self.entered += 1;
        self.calls.insert(self.entered, call);
        self.entered
    }

    fn slow(&mut self, after: Duration) -> Vec<(Duration, MessageId, usize)> {
        let calls = self.calls.values_mut().filter_map(|call| {
            let for_time = call.began.elapsed();
            let due = after.saturating_mul(call.said + 1) <= for_time;
            due.then(|| {
                call.said += 1;
                (for_time, call.first, call.messages)
            })
        });
        calls.collect()
    }
}

/// A call that is at work until this is dropped.
struct Entry<'a> {
    processor: &'a Processor,
    number: u64,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.processor.at_work().calls.remove(&self.number);
    }
}
