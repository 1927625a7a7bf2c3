//! The relay's client of the broker, with faults at every await: it can't know what became of what it sent.

use std::{
    collections::BTreeSet,
    future::Future,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use rand::Rng as _;

use super::{
    broker::{self, Transaction, id, refused},
    world::{Mutant, Sent, Shared, look, turns},
};
use crate::{
    core::record::{Batch, BatchLimits},
    sink::{
        ProgressStore, Publisher, Receipt, Rest, SinkError, Stored, StoredProgress,
        lane_order::LaneOrder,
    },
};

/// A producer.
pub(super) struct SimSink {
    world: Shared,
    epoch: u64,
    /// Of the database, which is the fence where that keeps progress.
    session: u64,
}

/// What is sent and not confirmed. Whoever sent it may end: any part of it arrives all the same.
struct UnderWay {
    world: Shared,
    /// With the index in the batch.
    sent: Vec<(usize, Sent)>,
    /// Ids of those that the broker refuses.
    refused: BTreeSet<usize>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let world = &mut *look(&self.world);
        for (_, sent) in self.sent.drain(..) {
            if !self.refused.contains(&sent.id) && world.once_in(2) {
                world.consumed(sent);
            }
        }
    }
}

fn unavailable() -> SinkError {
    SinkError::Unavailable { doing: "scripted".into(), source: "scripted".into() }
}

impl SimSink {
    pub(super) fn new(world: &Shared, session: u64) -> Self {
        SimSink { world: Arc::clone(world), epoch: 0, session }
    }

    fn may_fail(&self, times: u32) -> Result<(), SinkError> {
        if look(&self.world).fails_once_in(times) { Err(unavailable()) } else { Ok(()) }
    }

    async fn deliver_transaction(
        &self,
        batch: &Batch,
        range: Range<usize>,
        progress: Bytes,
    ) -> Result<Stored, SinkError> {
        let transaction = {
            let world = &mut *look(&self.world);
            world.may_write(self.epoch)?;
            world.broker.transactions += 1;
            let (id, epoch) = (world.broker.transactions, self.epoch);
            world.broker.open =
                Some(Transaction { id, epoch, records: Vec::new(), progress, asked: false });
            id
        };
        turns(&self.world).await;
        let refusals = {
            let world = &mut *look(&self.world);
            world.may_write(self.epoch)?;
            let drop = usize::from(world.is(Mutant::DropsTheLast) && range.len() > 1);
            let sent = batch.iter().take(range.end - drop).skip(range.start);
            let sent = sent.map(|record| broker::sent(&record)).collect();
            let (certain, bad) = world.refusals(batch, &range);
            let open = world.broker.open.as_mut().filter(|open| open.id == transaction);
            open.ok_or_else(unavailable)?.records = sent;
            match (certain.is_empty(), bad.is_empty()) {
                (false, _) => certain,
                (true, true) => Vec::new(),
                // The wire's batch is refused as a whole.
                (true, false) => range.clone().map(|index| refused(index, false)).collect(),
            }
        };
        self.may_fail(60)?;
        turns(&self.world).await;
        {
            let world = &mut *look(&self.world);
            world.may_write(self.epoch)?;
            if !refusals.is_empty() {
                world.broker.open = None;
                return Err(SinkError::Refused { records: refusals, rest: Rest::NotStored });
            }
            let open = world.broker.open.as_mut().filter(|open| open.id == transaction);
            open.ok_or_else(unavailable)?.asked = true;
            if world.is(Mutant::StoredTooEarly) {
                return Ok(Stored::scripted());
            }
        }
        turns(&self.world).await;
        self.may_fail(40)?; // The commit may arrive all the same.
        {
            let world = &mut *look(&self.world);
            if world.broker.open.as_ref().is_some_and(|open| open.id == transaction) {
                world.commit_arrives();
            } else if !world.broker.committed.contains(&transaction) {
                return Err(SinkError::Fenced("aborted by a newer epoch".into()));
            }
        }
        turns(&self.world).await;
        self.may_fail(60)?; // The answer is lost.
        Ok(Stored::scripted())
    }

    async fn deliver_plain(&self, batch: &Batch, range: Range<usize>) -> Result<(), SinkError> {
        let (certain, bad) = look(&self.world).refusals(batch, &range);
        if !certain.is_empty() {
            return Err(SinkError::Refused { records: certain, rest: Rest::NotStored });
        }
        // What follows a refused record in its lane may be stored before it is parked.
        for index in &bad {
            let id = id(&batch.get(*index).unwrap());
            look(&self.world).events[id].refused = true;
        }
        for index in range {
            let record = batch.get(index).unwrap();
            if !bad.contains(&index) {
                look(&self.world).consumed(broker::sent(&record));
            }
            self.may_fail(80)?;
            turns(&self.world).await;
        }
        if !bad.is_empty() {
            let records = bad.into_iter().map(|index| refused(index, false)).collect();
            return Err(SinkError::Refused { records, rest: Rest::Stored });
        }
        Ok(())
    }

    /// To a broker that stores each record by itself.
    async fn deliver_by_lane(&self, batch: &Batch, range: Range<usize>) -> Result<(), SinkError> {
        let (certain, bad) = look(&self.world).refusals(batch, &range);
        if !certain.is_empty() {
            return Err(SinkError::Refused { records: certain, rest: Rest::NotSent });
        }
        let many = look(&self.world).is(Mutant::SendsManyOfALane);
        let mut order = LaneOrder::new(batch, range, many);
        let refused_ids = bad.iter().map(|index| id(&batch.get(*index).unwrap())).collect();
        let mut under_way =
            UnderWay { world: Arc::clone(&self.world), sent: Vec::new(), refused: refused_ids };
        let mut records = Vec::new();
        loop {
            while let Some(index) = order.take() {
                let record = batch.get(index).unwrap();
                under_way.sent.push((index, broker::sent(&record)));
            }
            let Some(last) = under_way.sent.len().checked_sub(1) else { break };
            let pick = look(&self.world).random.random_range(0..=last);
            let (index, sent) = under_way.sent.swap_remove(pick);
            if bad.contains(&index) {
                records.push(refused(index, true));
            } else if look(&self.world).fails_once_in(20) {
                order.again(index);
            } else {
                look(&self.world).consumed(sent);
                order.stored(index);
            }
            self.may_fail(80)?;
            turns(&self.world).await;
        }
        if records.is_empty() {
            return Ok(());
        }
        records.sort_by_key(|record| record.index);
        Err(SinkError::Refused { records, rest: Rest::StoredButFollowers })
    }

    async fn store_alone(&self, progress: Bytes) -> Result<Stored, SinkError> {
        {
            let world = &mut *look(&self.world);
            if world.apart && !world.is(Mutant::StoresUnheld) {
                world.leads(self.session).map_err(|_| unavailable())?;
            }
            world.store_progress(progress);
        }
        turns(&self.world).await;
        self.may_fail(40)?;
        Ok(Stored::scripted())
    }
}

impl ProgressStore for SimSink {
    async fn peek(&mut self) -> Result<StoredProgress, SinkError> {
        turns(&self.world).await;
        Ok(StoredProgress::of_own(look(&self.world).broker.progress.clone()))
    }

    async fn fence(&mut self) -> Result<(), SinkError> {
        turns(&self.world).await;
        if look(&self.world).apart {
            return Ok(());
        }
        {
            let world = &mut *look(&self.world);
            // A commit that the coordinator has begun is finished, any other is aborted.
            if world.once_in(2) {
                world.commit_arrives();
            }
            world.broker.epoch += 1;
            self.epoch = world.broker.epoch;
            let fences = |open: &mut Transaction| open.epoch < self.epoch;
            if !world.is(Mutant::FencesNobody) {
                world.broker.open.take_if(fences);
            }
        }
        turns(&self.world).await;
        self.may_fail(60)
    }

    async fn read(&mut self) -> Result<StoredProgress, SinkError> {
        turns(&self.world).await;
        self.may_fail(60)?;
        Ok(StoredProgress::of_own(look(&self.world).broker.progress.clone()))
    }

    async fn store(&mut self, progress: Bytes) -> Result<Stored, SinkError> {
        turns(&self.world).await;
        let exactly_once = look(&self.world).exactly_once;
        if exactly_once {
            let nothing = Batch::new(BatchLimits { records_max: 1, bytes_max: 1 });
            return self.deliver_transaction(&nothing, 0..0, progress).await;
        }
        self.store_alone(progress).await
    }
}

impl Publisher for SimSink {
    fn delivery_limit(&self) -> Option<Duration> {
        None
    }

    fn is_apart(&self) -> bool {
        !look(&self.world).exactly_once
    }

    fn publish(
        &mut self,
        batch: &Arc<Batch>,
        range: Range<usize>,
        progress: Option<Bytes>,
    ) -> impl Future<Output = Result<Receipt, SinkError>> + Send {
        let batch = Arc::clone(batch);
        let sink: &Self = self;
        async move {
            turns(&sink.world).await;
            let (exactly_once, apart, by_lane) = {
                let world = look(&sink.world);
                let apart = world.apart && !world.is(Mutant::StoredTooEarly);
                (world.exactly_once, apart, world.by_lane)
            };
            let delivered = if exactly_once {
                let progress = progress.expect("a transaction has its progress");
                sink.deliver_transaction(&batch, range, progress).await.map(Some)
            } else {
                let delivered = match by_lane {
                    true => sink.deliver_by_lane(&batch, range).await,
                    false => sink.deliver_plain(&batch, range).await,
                };
                match (delivered, progress.filter(|_| !apart)) {
                    (Err(error), _) => Err(error),
                    (Ok(()), None) => Ok(None),
                    (Ok(()), Some(progress)) => sink.store_alone(progress).await.map(Some),
                }
            };
            // The caller reuses the batch once it has the answer.
            drop(batch);
            Ok(Receipt { restamped: 0, progress: delivered? })
        }
    }

    async fn wait_until(&self, _at: Instant) {
        turns(&self.world).await;
        turns(&self.world).await;
    }
}
