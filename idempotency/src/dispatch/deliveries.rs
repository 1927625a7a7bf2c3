//! What a runner for a broker that acknowledges each message needs.

use std::time::{Duration, Instant};

use super::{
    each::{Answer, EachMessage},
    lanes::LaneScheduler,
    limits::Limits,
    queue::DispatchQueue,
    worker,
};
use crate::{
    error::InboxError,
    message::RawMessage,
    processor::{Processor, Stop},
};

/// How long what a worker gave up stays away, where the broker can wait.
const REST: Duration = Duration::from_secs(5);
/// The shortest time for which a broker may keep a message from others.
const LEASE_MIN: Duration = Duration::from_millis(100);
/// A clock has no time after some three hundred years.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Messages of a broker that acknowledges each by itself, from delivery to acknowledgement. `H` is whatever the
/// broker knows a delivery by: a receipt handle, a delivery tag.
///
/// A runner has tasks of three kinds, and any number of the second. Beside them
/// [`Processor::background`] must run: it tries again what is parked. `examples/deliveries.rs` is a whole one.
///
/// ```no_run
/// # use outbox_idempotency::{Processor, RawMessage, Stop, dispatch::{Answer, Deliveries}};
/// # struct Broker;
/// # impl Broker {
/// #     async fn receive(&self) -> (RawMessage, u64) { todo!() }
/// #     async fn tell(&self, answer: Answer<u64>) {}
/// # }
/// # async fn receive(broker: &Broker, deliveries: &Deliveries<u64>) {
/// loop {
///     deliveries.room().await;
///     let (message, handle) = broker.receive().await;
///     deliveries.push(message, handle);
/// }
/// # }
/// # async fn work(deliveries: &Deliveries<u64>) -> Stop {
/// deliveries.work().await
/// # }
/// # async fn answer(broker: &Broker, deliveries: &Deliveries<u64>) {
/// loop {
///     for answer in deliveries.answers().await {
///         broker.tell(answer).await;
///     }
/// }
/// # }
/// ```
///
/// To stop, end the task that receives, await [`Deliveries::drain`], and tell the broker the last answers.
///
/// An acknowledgement may fail, or come after the lease has ended: the copy that the broker delivers then is
/// found to be a duplicate. A broker that delivers messages of one key again in another order breaks their order
/// here as well: use [`OrderBy::None`](crate::OrderBy::None), or a queue that keeps it.
pub struct Deliveries<H> {
    processor: Processor,
    queue: DispatchQueue<EachMessage<H>>,
    limits: Limits,
}

impl<H> std::fmt::Debug for Deliveries<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deliveries")
            .field("processor", &self.processor)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl<H: Clone> Deliveries<H> {
    /// For messages that the broker keeps from others for `lease`, at least 100 ms, or, where that is `None`, for
    /// as long as the connection lasts.
    ///
    /// # Errors
    /// [`InboxError::Setting`] for a shorter lease, and for a processor with
    /// [`Dedup::Watermark`](crate::Dedup::Watermark): what comes again behind later messages would be taken for a
    /// duplicate, and be lost.
    pub fn new(processor: Processor, lease: Option<Duration>) -> Result<Self, InboxError> {
        if processor.by_partition() {
            return Err(InboxError::Setting(
                "Dedup::Watermark needs a broker that keeps the order of a partition whenever it delivers \
                 again, and one that acknowledges each message does not: messages would be lost; build the \
                 processor with Dedup::Rows"
                    .to_owned(),
            ));
        }
        if let Some(lease) = lease.filter(|lease| *lease < LEASE_MIN) {
            return Err(InboxError::Setting(format!(
                "a lease of {lease:?} ends before a message is handled, and the broker gives it to others; give the \
                 time for which the broker keeps it, at least {LEASE_MIN:?}"
            )));
        }
        let queue = DispatchQueue::new(LaneScheduler::with(EachMessage::new(lease, REST)));
        Ok(Deliveries { processor, queue, limits: Limits::default() })
    }

    /// Most messages in memory, 10,000, and most bytes, 64 MiB.
    #[must_use]
    pub fn in_flight(mut self, messages: usize, bytes: usize) -> Self {
        self.limits = Limits::new(messages, bytes);
        self
    }

    /// A message was delivered. Those of one [lane](Processor::lane) in the order in which they came.
    pub fn push(&self, message: RawMessage, handle: H) {
        let lane = self.processor.lane(&message);
        self.queue.change(|lanes| lanes.push(message, lane, handle, Instant::now()));
    }

    /// Waits, if the limit is reached, until half of it is done. For the task that receives. Cancel safe.
    pub async fn room(&self) {
        if !self.limits.are_reached(self.load()) {
            return;
        }
        while !self.limits.have_room_again(self.load()) {
            self.queue.room().await;
        }
    }

    /// Works until it can't continue: a worker, of which any number may run at once. Dropped half-way, what it has
    /// is rolled back or committed, and returned to the broker, with what waits behind it in its lane.
    pub async fn work(&self) -> Stop {
        worker::work(&self.processor, &self.queue).await
    }

    /// Waits until there is something to tell the broker; each is told once. For one task. Cancel safe.
    pub async fn answers(&self) -> Vec<Answer<H>> {
        loop {
            let (answers, renewal) = {
                let mut lanes = self.queue.lanes();
                (lanes.answers(Instant::now()), lanes.renewal())
            };
            if !answers.is_empty() {
                return answers;
            }
            let renewal = renewal.unwrap_or_else(|| Instant::now() + FOREVER);
            tokio::select! {
                () = self.queue.news() => {}
                () = tokio::time::sleep_until(renewal.into()) => {}
            }
        }
    }

    /// Stops: accepts no new messages, returns those that no worker has begun, and waits up to `patience` for the
    /// workers. Returns how many messages workers still have, and the remaining answers. The workers and the task
    /// of the answers continue meanwhile. Cancel safe until it returns: call it again.
    pub async fn drain(&self, patience: Duration) -> (usize, Vec<Answer<H>>) {
        self.queue.change(LaneScheduler::<EachMessage<H>>::close);
        let running = || self.queue.lanes().running();
        let none = async {
            while running() > 0 {
                self.queue.room().await;
            }
        };
        let _left = tokio::time::timeout(patience.min(FOREVER), none).await;
        (running(), self.queue.lanes().answers(Instant::now()))
    }

    fn load(&self) -> (usize, usize) {
        self.queue.lanes().load()
    }
}
