//! The one thread on which all blocking calls to Kafka run, and the commands it takes.
//!
//! Owned by [`super::KafkaSink`]; ends when the sink is stopped or dropped, or is asked to stop
//! while it works. After an uncertain outcome it refuses every further command: a new sink starts
//! again from progress.

use std::{
    ops::Range,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{
    absent::SharedAttempts,
    acl,
    lookup::Lookup,
    outlet::{Load, Outlet, Undelivered},
    progress_log::{self, Found, Sealer},
    progress_reader::{self, Until},
    progress_topic,
    settings::{Delivery, Settings},
    stop::Stop,
    topics::Topics,
};
use crate::{
    core::record::Batch,
    fault::{self, Point},
    seal::SealKey,
    sink::{
        ALONE_MAX, Receipt, RefusedRecord, Rest, SinkError, Stored, StoredProgress, unavailable,
    },
};

/// How often log lines of an idle client are written out.
const IDLE_TICK: Duration = Duration::from_millis(500);

/// How often a delivery is sent again with fresher knowledge, and the time between.
const TRIES_MAX: u32 = 4;
const TRY_AGAIN: Duration = Duration::from_millis(50);

type Reply<T> = oneshot::Sender<Result<T, SinkError>>;

/// What the thread is asked to do; each is answered once.
pub(super) enum Command {
    ReadProgress {
        until: Until,
        reply: Reply<StoredProgress>,
    },
    Fence(Reply<()>),
    Deliver {
        batch: Arc<Batch>,
        range: Range<usize>,
        /// At-least-once: `None` where it may not be stored yet.
        progress: Option<Bytes>,
        reply: Reply<Receipt>,
    },
}

pub(super) struct Worker {
    settings: Settings,
    stop: Stop,
    lookup: Arc<Lookup>,
    sealer: Arc<Sealer>,
    topics: Topics,
    /// Holds the transactional id from the fence to the claim.
    fence: Option<Outlet>,
    outlet: Option<Outlet>,
    /// The progress topic exists and was verified.
    ensured: bool,
    /// An outcome is uncertain.
    spent: bool,
}

impl Worker {
    /// `attempts` is shared with whoever else creates topics.
    pub(super) fn new(
        settings: Settings,
        key: SealKey,
        lookup: Arc<Lookup>,
        attempts: SharedAttempts,
        stop: Stop,
    ) -> Self {
        let topics = Topics::new(&settings, attempts);
        let sealer = Arc::new(Sealer::new(key));
        let (fence, outlet) = (None, None);
        Worker {
            settings,
            stop,
            lookup,
            sealer,
            topics,
            fence,
            outlet,
            ensured: false,
            spent: false,
        }
    }

    /// Serves commands until their sender is gone or a stop is requested.
    pub(super) fn run(mut self, commands: &Receiver<Command>) {
        while !self.stop.requested() {
            match commands.recv_timeout(IDLE_TICK) {
                Ok(command) => self.serve(command),
                Err(RecvTimeoutError::Timeout) => self.lookup.serve(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
    }

    fn serve(&mut self, command: Command) {
        match command {
            Command::ReadProgress { until, reply } => {
                let result = self.read_progress(until);
                self.answer(reply, result);
            }
            Command::Fence(reply) => {
                let result = self.fence();
                self.answer(reply, result);
            }
            Command::Deliver { batch, range, progress, reply } => {
                let result = self.deliver(&batch, range, progress.as_ref());
                // The caller reuses the batch once it has the answer.
                drop(batch);
                let stored = progress.is_some().then_some(Stored(()));
                self.answer(reply, result.map(|restamped| Receipt { restamped, progress: stored }));
            }
        }
    }

    fn answer<T>(&mut self, reply: Reply<T>, result: Result<T, SinkError>) {
        self.spent |= matches!(&result, Err(error) if !matches!(error, SinkError::Refused { .. }));
        // No one waits for the answer any more: the caller does not know the outcome.
        self.spent |= reply.send(result).is_err();
    }

    fn read_progress(&mut self, until: Until) -> Result<StoredProgress, SinkError> {
        self.usable()?;
        if !self.ensured {
            progress_topic::ensure(&self.settings, &self.lookup, &self.stop)?;
            self.ensured = true;
        }
        let key = self.sealer.key();
        let found = progress_reader::read(&self.settings, key, &self.lookup, &self.stop, until)?;
        self.sealer.go_on_after(found.number);
        if let Some(fence) = self.fence.take() {
            self.outlet = Some(self.claim(fence, &found)?);
        }
        let Found { value: own, stranger, .. } = found;
        Ok(StoredProgress { own, stranger })
    }

    /// Makes progress that counts this relay's own from here on, see [`progress_log`]; returns
    /// what delivers.
    fn claim(&self, fence: Outlet, found: &Found) -> Result<Outlet, SinkError> {
        match self.settings.delivery {
            // No one else can end a transaction of this id any more.
            Delivery::ExactlyOnce if found.writer.is_none() => Ok(fence),
            Delivery::ExactlyOnce => {
                fence.claim(&found.claim(&self.settings.relay_name, None))?;
                Ok(fence)
            }
            Delivery::AtLeastOnce | Delivery::RecordsAlone => {
                let writer = format!("{:016x}", rand::random::<u64>());
                fence.claim(&found.claim(&self.settings.relay_name, Some(&writer)))?;
                let config = self.settings.producer_config();
                let mut outlet = Outlet::new(&self.settings, &config, &self.sealer, &self.stop)?;
                outlet.progress_key = progress_log::key(&self.settings.relay_name, Some(&writer));
                Ok(outlet)
            }
        }
    }

    fn fence(&mut self) -> Result<(), SinkError> {
        self.usable()?;
        self.outlet = None;
        let config = self.settings.transactional_config();
        let fence = Outlet::new(&self.settings, &config, &self.sealer, &self.stop)?;
        fence.fence(&self.settings)?;
        self.fence = Some(fence);
        Ok(())
    }

    /// Sends, and where something went wrong that fresher knowledge of the topics would have
    /// prevented, looks again and sends again: others wait for milliseconds, not for a new start.
    fn deliver(
        &mut self,
        batch: &Batch,
        range: Range<usize>,
        progress: Option<&Bytes>,
    ) -> Result<u64, SinkError> {
        self.usable()?;
        if range.len() <= ALONE_MAX {
            self.topics.send_alone_again(batch, range.clone());
        }
        let mut tries = 0;
        loop {
            let Worker { settings, stop, lookup, sealer, topics, outlet, .. } = self;
            if outlet.is_none() && settings.delivery == Delivery::RecordsAlone {
                let config = settings.producer_config();
                *outlet = Some(Outlet::new(settings, &config, sealer, stop)?);
            }
            let Some(outlet) = outlet else {
                let reason = "progress was not read behind a fence before";
                return Err(unavailable("delivering", reason));
            };
            topics.resolve(batch, range.clone(), settings, lookup, stop)?;
            outlet.refresh(&topics.take_changed());
            // Of a transaction that is tried again nothing is stored.
            let again = tries > 0 && settings.delivery != Delivery::ExactlyOnce;
            let load = Load { batch, range: range.clone(), lookup, again };
            let delivered = match settings.delivery {
                Delivery::ExactlyOnce => match progress {
                    Some(progress) => outlet.deliver_transaction(&load, topics, progress),
                    None => {
                        return Err(unavailable("delivering", "a transaction has its progress"));
                    }
                },
                Delivery::AtLeastOnce | Delivery::RecordsAlone => {
                    outlet.deliver_plain(&load, topics, progress, || {
                        fault::point(Point::StoringAlone);
                        Outlet::new(settings, &settings.careful_producer_config(), sealer, stop)
                    })
                }
            };
            let restamped = outlet.restamped;
            match delivered {
                Ok(()) => {
                    settings.reach.stored();
                    topics.ended(batch, range, &[]);
                    return Ok(restamped);
                }
                Err(Undelivered::Again(error)) if tries < TRIES_MAX => {
                    tracing::debug!(%error, "a delivery was taken back: trying it once more");
                    topics.doubt(batch, range.clone());
                    if tries > 0 && !stop.sleep(TRY_AGAIN) {
                        return Err(error);
                    }
                }
                Err(Undelivered::Again(error) | Undelivered::Uncertain(error)) => {
                    return Err(error);
                }
                Err(Undelivered::Refused(records, rest)) => {
                    let records = match rest {
                        Rest::NotStored => topics.acquit(batch, records),
                        // What is left out here is not sent again: it would be lost.
                        _ => records,
                    };
                    let records = acl::with_grants(settings, batch, records);
                    let fewer = fewer(&records, rest, range.len());
                    if fewer == Fewer::No || tries >= TRIES_MAX {
                        topics.ended(batch, range, &records);
                        return Err(SinkError::Refused { records, rest });
                    }
                    // Its settings may say now which of them it refuses.
                    topics.doubt(batch, range.clone());
                    topics.resolve(batch, range.clone(), settings, lookup, stop)?;
                    if fewer == Fewer::Half {
                        return Err(SinkError::Refused { records, rest });
                    }
                    let suspects = records.iter().filter_map(|record| batch.get(record.index));
                    suspects.for_each(|record| topics.send_alone(record.topic));
                }
            }
            tries += 1;
        }
    }

    fn usable(&self) -> Result<(), SinkError> {
        if self.spent {
            return Err(SinkError::spent());
        }
        Ok(())
    }
}

/// How a refused delivery is sent again, to learn which of its records are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fewer {
    /// That is known.
    No,
    /// One record in a batch of the wire.
    Alone,
    /// Half of them at a time: the caller's to do.
    Half,
}

fn fewer(records: &[RefusedRecord], rest: Rest, count: usize) -> Fewer {
    if rest == Rest::Stored || count == 1 || records.iter().any(|record| record.certain) {
        Fewer::No
    } else if count <= ALONE_MAX {
        Fewer::Alone
    } else {
        Fewer::Half
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_that_names_nobody_is_narrowed_down() {
        let record = |certain| RefusedRecord {
            index: 0,
            reason: "too_large",
            error: String::new(),
            certain,
        };
        let (doubtful, certain) = (vec![record(false), record(false)], vec![record(true)]);
        assert_eq!(fewer(&certain, Rest::NotStored, 5_000), Fewer::No);
        assert_eq!(fewer(&doubtful, Rest::NotStored, 5_000), Fewer::Half);
        assert_eq!(fewer(&doubtful, Rest::NotStored, ALONE_MAX), Fewer::Alone);
        assert_eq!(fewer(&doubtful[..1], Rest::NotStored, 1), Fewer::No);
        assert_eq!(fewer(&doubtful, Rest::Stored, 5_000), Fewer::No, "each was sent by itself");
    }
}
