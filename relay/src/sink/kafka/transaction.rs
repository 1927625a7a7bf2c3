//! The transactional half of [`Outlet`]: take over, commit, abort.
//!
//! An outcome is certain only when a call says so: committed, or aborted. A commit or abort whose
//! answer did not come ends the producer; the next one's take-over settles what it left.

use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::error::RDKafkaErrorCode;

use super::{
    acl,
    errors::{Verdict, sort_code},
    native::producer::TransactionError,
    outlet::{Load, OnRefusal, Outlet, Undelivered},
    settings::Settings,
    stop::SLICE,
    topics::Topics,
};
use crate::{
    core::printable::counted,
    fault::{self, Point},
    sink::{Rest, SinkError},
};

/// How long making ourselves the only producer may take: brokers abort what an older one left.
const FENCE_LIMIT: Duration = Duration::from_secs(30);
/// How long taking a delivery back may take, and how long when we are asked to stop meanwhile.
const ABORT_LIMIT: Duration = Duration::from_secs(2);
const ABORT_LIMIT_STOPPING: Duration = Duration::from_secs(1);
/// How long brokers may need at most for what `MARKERS_LEAST` is their least.
const MARKERS_MOST: Duration = Duration::from_millis(160);
/// A new epoch that took longer came at librdkafka's second try, half a second after its first.
const SECOND_TRY: Duration = Duration::from_millis(450);

impl Outlet {
    /// Takes the transactional id over: older producers are fenced, their transaction aborted.
    pub(super) fn fence(&self, settings: &Settings) -> Result<(), SinkError> {
        let deadline = Instant::now() + FENCE_LIMIT;
        let doing = "taking over the transactional id";
        let mut last = None;
        let fenced = self.slices(deadline, doing, |slice| {
            self.client.init_transactions(slice).inspect_err(|error| last = Some(error.code))
        });
        fenced.map_err(|problem| {
            let fatal = self.client.client().fatal_error().map(|(code, _)| code);
            let forbidden = Some(RDKafkaErrorCode::TransactionalIdAuthorizationFailed);
            match fatal == forbidden || last == forbidden {
                true => acl::lacking_transactional_id(settings),
                false => problem.error,
            }
        })
    }

    /// Stores `records` of the progress topic, key and value, in one transaction.
    pub(super) fn claim(&self, records: &[(String, Option<Bytes>)]) -> Result<(), SinkError> {
        let deadline = Instant::now() + self.limit;
        self.client
            .begin_transaction()
            .map_err(|error| self.told("beginning a transaction", error))?;
        for (key, value) in records {
            self.send_to_progress(key, value.as_deref(), deadline)?;
        }
        match self.settle(deadline)? {
            Verdict::Stored => {}
            Verdict::Refused(_) | Verdict::Stale(_) => return Err(self.failed(0, None)),
            Verdict::Failed(code) => return Err(self.failed(0, code)),
        }
        self.commit(deadline, records.len()).map_err(|problem| problem.error)
    }

    /// Records and progress in one transaction.
    ///
    /// `Again` comes without fail in the delivery after a refused one: the refused batch left a gap
    /// in its partition's sequence numbers, which librdkafka corrects, by a new epoch, in that abort.
    pub(super) fn deliver_transaction(
        &mut self,
        load: &Load<'_>,
        topics: &mut Topics,
        progress: &Bytes,
    ) -> Result<(), Undelivered> {
        let count = load.range.len();
        let deadline = Instant::now() + self.limit;
        self.client
            .begin_transaction()
            .map_err(|error| self.told("beginning a transaction", error))?;
        fault::point(Point::TransactionBegun);
        // Progress first: its partition is then registered with the transaction in the same
        // request as the others'. Order across partitions means nothing inside a transaction.
        let verdict = self
            .send_progress(progress, deadline)
            .inspect(|()| fault::point(Point::ProgressProduced))
            .and_then(|()| self.send(load, topics, deadline, OnRefusal::Stop));
        let problem = match verdict {
            Ok(Verdict::Stored) => match self.commit(deadline, count) {
                Ok(()) => {
                    fault::point(Point::Committed);
                    return Ok(());
                }
                // Without a demand to abort, the commit may yet happen: nothing is certain.
                Err(problem) if !problem.wants_abort => return Err(problem.error.into()),
                Err(problem) => Problem::from(problem.error),
            },
            Ok(Verdict::Refused(records)) => {
                self.abort(Epoch::Same)?;
                return Err(Undelivered::Refused(records, Rest::NotStored));
            }
            Ok(Verdict::Stale(code)) => {
                self.abort(Epoch::Same)?;
                return Err(Undelivered::Again(self.failed(count, Some(code))));
            }
            Ok(Verdict::Failed(Some(code))) => Problem::from(self.failed(count, Some(code))),
            Ok(Verdict::Failed(None)) => self.why_taken_back(count),
            Err(error) => Problem::from(error),
        };
        let epoch = if problem.wants_abort { Epoch::New } else { Epoch::Same };
        match self.abort(epoch) {
            Ok(()) if problem.wants_abort => Err(Undelivered::Again(problem.error)),
            _ => Err(problem.error.into()),
        }
    }

    /// All were taken back, because of something that only the transaction can tell: asked by a call that
    /// is refused in each of its states but the one without a transaction, with what ended it. A
    /// commit would tell it as well, and store progress alone if it ever were not refused.
    fn why_taken_back(&self, count: usize) -> Problem {
        match self.client.begin_transaction() {
            Err(error) => {
                let (doing, wants_abort) = (format!("storing {count} records"), error.wants_abort);
                Problem { error: self.told(&doing, error), wants_abort }
            }
            Ok(()) => Problem::from(self.failed(count, None)),
        }
    }

    fn commit(&self, deadline: Instant, count: usize) -> Result<(), Problem> {
        let doing = format!("committing a transaction of {}", counted(count as u64, "record"));
        fault::soon(Point::CommitUnderWay);
        self.slices(deadline, &doing, |slice| self.client.commit_transaction(slice))
    }

    /// Takes the open transaction back, so that nothing of it will ever be read.
    fn abort(&mut self, epoch: Epoch) -> Result<(), SinkError> {
        fault::point(Point::Aborting);
        self.client.purge();
        let limit = if self.stop.requested() { ABORT_LIMIT_STOPPING } else { ABORT_LIMIT };
        let begun = Instant::now();
        self.client.hold(if epoch == Epoch::New { self.markers } else { Duration::ZERO });
        let aborted = loop {
            match self.client.abort_transaction(SLICE) {
                Err(error) if error.may_call_again && begun.elapsed() < limit => {}
                Err(error) => break Err(self.told("aborting a transaction", error)),
                Ok(()) => break Ok(()),
            }
        };
        self.client.hold(Duration::ZERO);
        if epoch == Epoch::New && begun.elapsed() > SECOND_TRY {
            self.markers = (self.markers * 2).min(MARKERS_MOST);
        }
        // What the purge took back is no failure of the next delivery.
        self.client.flush(SLICE);
        self.client.context().take_failures();
        fault::point(Point::Aborted);
        aborted
    }

    /// Repeats a call that may be taken up again, until it ends or the time is over.
    fn slices(
        &self,
        deadline: Instant,
        doing: &str,
        mut call: impl FnMut(Duration) -> Result<(), TransactionError>,
    ) -> Result<(), Problem> {
        loop {
            match call(SLICE) {
                Ok(()) => return Ok(()),
                // A call that ran out of time continues in the background.
                Err(error) if error.may_call_again => {
                    if self.stop.requested() || Instant::now() >= deadline {
                        return Err(self.told(doing, error).into());
                    }
                }
                Err(error) => {
                    let wants_abort = error.wants_abort;
                    return Err(Problem { error: self.told(doing, error), wants_abort });
                }
            }
        }
    }

    fn told(&self, doing: &str, error: TransactionError) -> SinkError {
        sort_code(doing, Some(error.code), error.into(), self.client.client().fatal_error())
    }
}

/// What an abort brings with it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Epoch {
    Same,
    /// librdkafka takes a new one, because sequence numbers have a gap.
    New,
}

/// Why a transaction could not be committed.
struct Problem {
    error: SinkError,
    /// The transaction failed, and the producer did not.
    wants_abort: bool,
}

impl From<SinkError> for Problem {
    fn from(error: SinkError) -> Self {
        Problem { error, wants_abort: false }
    }
}
