//! Takes parked lanes up again, each from its head, when they are due.
//!
//! Any process of the consumer may take any lane: the lock on the lane's row makes them take turns,
//! with one another and with live messages of the lane. A failure of a lane's head is stored under that
//! same lock, behind a savepoint, so no one can take the head between its failure and its new due time.
//! A worker that is done with a message continues with the one behind it, for a second; then lanes that
//! have waited longer come first. Each message has a transaction of its own, as it would have had
//! without waiting: what a handler locks, sets or makes in it is gone before the next. A batch handler
//! gets a batch of a lane. One that fails is halved until the first message is alone, so only that has failed.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio_postgres::types::ToSql;
use tracing::Instrument as _;
use uuid::Uuid;

use super::{
    Attempt, Processor, Stop,
    aside::{ENDED, UNFINISHED},
    hands::{Hands, Parked, half},
    settle::CONFLICTS_MAX,
    store::Due,
    taken::{Head, Taken, Which},
};
use crate::{
    connection::HAS_COMMITTED,
    error::InboxError,
    failure::{Failure, Kind},
    fault::{Point, point},
    meter::Outcome,
    transaction::Open,
    window::no_partition,
};

/// Parked lanes that are worked on at once, in one process.
pub(crate) const AT_ONCE: usize = 8;
/// How long a lane that another process parked may be overlooked.
const LOOK: Duration = Duration::from_millis(500);

impl Processor {
    /// What must continue beside the messages that come in: parked ones are tried again when they are
    /// due, gauges are measured, days of the inbox are made and dropped. Runs until it is dropped
    /// or can't continue; the Kafka runner does it by itself. Any number of processes may run it.
    ///
    /// Parked messages are handled in tasks of their own, on all threads, as new ones are.
    ///
    /// Cancel safe: what is dropped is rolled back. A handler that is at work at that moment comes to its next
    /// `await`.
    pub async fn background(&self) -> Stop {
        let mut workers = JoinSet::new();
        for _ in 0..AT_ONCE {
            let worker = self.clone();
            workers.spawn(async move { worker.retries().await }.in_current_span());
        }
        let stopped = async {
            match workers.join_next().await {
                Some(Ok(stop)) => stop,
                Some(Err(error)) if error.is_panic() => {
                    std::panic::resume_unwind(error.into_panic())
                }
                // The runtime ends, and this with it.
                Some(Err(_)) | None => std::future::pending().await,
            }
        };
        tokio::select! {
            stop = stopped => stop,
            stop = self.upkeep() => stop,
        }
    }

    /// One of those that have nothing to do looks whether anything is due; whoever takes something up has
    /// the next one look at once.
    async fn retries(&self) -> Stop {
        let hands = Hands::beside(&self.shared.in_hand);
        loop {
            hands.begin();
            let mut outcome = self.settle(|| self.retry_one(&hands)).await;
            let blamed = hands.take_blamed();
            if let (Ok(Attempt::Failed(failure)), Some(at)) = (&outcome, blamed) {
                outcome = self.settle(|| self.count_failure(&hands, &at, failure)).await;
            }
            hands.let_go();
            match outcome {
                Err(stop) => return stop,
                Ok(Attempt::Done) => continue,
                Ok(Attempt::Idle | Attempt::Large | Attempt::Failed(_)) => {}
            }
            let _lookout = self.shared.lookout.lock().await;
            tokio::select! {
                () = self.shared.parked.notified() => {}
                () = self.shared.due.notified() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    async fn retry_one(&self, hands: &Hands) -> Result<Attempt, InboxError> {
        let done = self.take_up(hands).await;
        match &done {
            Err(InboxError::Conflict(error)) => {
                // Of the inbox's own statements: no message has failed.
                hands.take_blamed();
                hands.was_in_the_way();
                // A day was dropped since we looked: look again.
                if no_partition(error) {
                    self.shared.inbox.maintain().await?;
                }
            }
            Ok(Attempt::Done) => hands.none_is_in_the_way(),
            _ => {}
        }
        done
    }

    /// Continues with the lane in hand, or takes the lane that has been due longest, and handles its first
    /// message, or a batch of them.
    async fn take_up(&self, hands: &Hands) -> Result<Attempt, InboxError> {
        let (sessions, shelf) = (self.shared.inbox.sessions(), self.shelf());
        if let Some(at) = hands.doubted() {
            let failure = Failure::permanent(ENDED, InboxError::Ended);
            self.bury_what_was_taken(&at, &failure).await?;
            hands.settle_doubt();
        }
        let (turn, place) = (self.shared.large.try_turn(), self.shared.large.try_parked());
        let large_too = turn.is_some() && place.is_some();
        // Whoever is in the way of several may not be in the way of the first.
        let max = if hands.in_the_way() < CONFLICTS_MAX { self.shared.batch_max } else { 1 };
        let max = i64::try_from(max).unwrap_or(i64::MAX);
        let mut taken = match hands.now() {
            // It would be counted from the beginning if another worker's look at the lane kept this one from it.
            Some((now, part)) if hands.has_some() => {
                shelf.take_soon(sessions, now, part.min(max), large_too).await?
            }
            Some((now, part)) => shelf.take(sessions, now, part.min(max), large_too, None).await?,
            None => None,
        };
        if taken.is_none() {
            let reads = self.shared.reads.as_deref();
            taken = shelf.take(sessions, Which::Any, max, large_too, reads).await?;
        }
        let is_large = taken.as_ref().is_some_and(Taken::is_large);
        let is_there = match &mut taken {
            Some(taken) => shelf.read_large(taken).await?,
            None => true,
        };
        drop(turn);
        let Some(Taken { open, lane, attempts, heads, more }) = taken else {
            return Ok(Attempt::Idle);
        };
        if !is_there {
            open.rollback().await?;
            return Ok(Attempt::Done);
        }
        if !hands.hold(lane) {
            open.rollback().await?;
            return Ok(Attempt::Idle);
        }
        self.shared.due.notify_one();
        let Some(head) = heads.first() else {
            open.rollback().await?;
            shelf.free(sessions, lane).await?;
            return Ok(Attempt::Done);
        };
        let _place = place.filter(|_| is_large);
        point(Point::TakenUp);
        let mut group = heads.as_slice();
        loop {
            hands.blame(lane, group);
            let failure = match self.try_group(&open, group).await {
                Ok(Ok(())) => {
                    // Whoever has a connection does not wait for another.
                    drop(open);
                    if !more {
                        shelf.free(sessions, lane).await?;
                    } else if self.shared.batch_max == 1 {
                        hands.keep(Which::Next(lane, head.seq), 1);
                    }
                    return Ok(Attempt::Done);
                }
                Ok(Err(failure)) => failure,
                // Whoever keeps it would have the lane as well, for as long; and if the lane were free at once,
                // other workers would call the handler before this is counted.
                Err(InboxError::Escaped) => {
                    // Where it was we who committed, no handler had done so before.
                    if !open.cut_off_with(&shelf.reserve(lane)).await {
                        hands.may_be_ended(lane, group, open.transaction());
                    }
                    hands.keep_half(lane, group);
                    return match group.len() {
                        1 => Err(InboxError::Escaped),
                        _ => Ok(Attempt::Done),
                    };
                }
                Err(ended @ InboxError::Ended) => {
                    hands.was_ended(open.transaction());
                    hands.keep_half(lane, group);
                    return Err(ended);
                }
                Err(error) => return Err(error),
            };
            if !failure.is_the_messages() || open.back_to_savepoint().await.is_err() {
                let transaction = open.transaction();
                return match open.rollback().await {
                    Err(ended @ InboxError::Ended) => {
                        hands.was_ended(transaction);
                        hands.keep_half(lane, group);
                        Err(ended)
                    }
                    rolled_back => {
                        if rolled_back.is_err() {
                            hands.may_be_ended(lane, group, transaction);
                        }
                        self.stay(hands, lane, group, &failure).await;
                        Ok(Attempt::Failed(failure))
                    }
                };
            }
            if group.len() == 1 {
                if head.message.is_large() && self.outlook(&failure, attempts).1.is_none() {
                    // Storing it takes a turn, and that is taken before a connection.
                    open.query("reserving a parked lane", &shelf.reserve(lane), &[]).await?;
                    open.commit().await?;
                    return Ok(Attempt::Failed(failure));
                }
                self.failed_again(open, lane, head, &failure, attempts).await?;
                return Ok(Attempt::Done);
            }
            // A batch that fails is halved until the first is alone.
            group = half(group);
            // Before the handler, which may leave the session in any role.
            shelf.advance(&open, lane, group).await?;
        }
    }

    /// What is run again for a reason that is not the message's is run by the same worker, which counts how often:
    /// meanwhile other processes would call the handler at once, and count for themselves.
    async fn stay(&self, hands: &Hands, lane: Uuid, group: &[Head], failure: &Failure) {
        let is_again =
            matches!(failure.kind, Kind::Conflict | Kind::Session | Kind::Doubt | Kind::Lost);
        if !is_again {
            return;
        }
        hands.stay(lane, group.len());
        // If that can't be stored, the others try it too.
        let reserve = self.shelf().reserve(lane);
        let reserved = self.shared.inbox.sessions();
        let _ = reserved.run_alone("reserving a parked lane", &[&reserve], &[]).await;
    }

    /// Handles and commits. On a failure the transaction is open, unless the failure has ended it.
    async fn try_group(
        &self,
        open: &Open,
        group: &[Head],
    ) -> Result<Result<(), Failure>, InboxError> {
        let messages = self.claim_replayed(open, group).await?;
        let fresh = messages.len();
        let done = if fresh > 0 { self.work(open, messages).await } else { Ok(()) };
        open.alone()?;
        if done.is_err() {
            return Ok(done);
        }
        point(Point::Retried);
        match open.commit_or_go_back().await {
            Ok(()) => {
                self.shared.meter.count(Outcome::Applied, fresh);
                self.shared.meter.count(Outcome::Duplicate, group.len() - fresh);
                Ok(Ok(()))
            }
            Err(InboxError::Aborted(state)) => Ok(Err(super::aborted(state))),
            Err(InboxError::Uncommitted(error)) => Ok(Err(error.into())),
            Err(error @ InboxError::Unfinished) => {
                Ok(Err(Failure::new(Kind::Transient, UNFINISHED, error)))
            }
            // Whether it was kept the next look tells; this one was answered.
            Err(InboxError::Unavailable(error)) => Ok(Err(Failure::at_commit(error))),
            Err(InboxError::Conflict(error)) => Ok(Err(Failure::of_conflict(error))),
            Err(error) => Err(error),
        }
    }

    /// A message that could not be tried to an end, again and again: that counts as one failure, or it
    /// would keep its place before all others for ever. Of several it is not known whose failure it is: the first
    /// half of them is tried next.
    async fn count_failure(
        &self,
        hands: &Hands,
        at: &Parked,
        failure: &Failure,
    ) -> Result<Attempt, InboxError> {
        let (sessions, shelf) = (self.shared.inbox.sessions(), self.shelf());
        let Some(head) = at.heads.first() else { return Ok(Attempt::Done) };
        if failure.code() == ENDED
            && (self.bury_what_was_taken(at, failure).await? || at.heads.len() > 1)
        {
            return Ok(Attempt::Done);
        }
        let turn = match head.message.is_large() {
            true => Some(self.shared.large.turn().await),
            false => None,
        };
        let taken = shelf.take_soon(sessions, Which::This(at.lane), 1, turn.is_some()).await?;
        let there = taken.as_ref().and_then(|taken| taken.heads.first());
        let is_there = there.is_some_and(|there| there.seq == head.seq);
        match taken {
            Some(Taken { open, lane, attempts, .. }) if is_there => {
                open.back_to_savepoint().await?;
                if at.heads.len() > 1 {
                    // Other workers would try all of them meanwhile.
                    open.query("reserving a parked lane", &shelf.reserve(lane), &[]).await?;
                    open.commit().await?;
                    hands.keep_half(lane, &at.heads);
                    return Ok(Attempt::Done);
                }
                self.failed_again(open, lane, head, failure, attempts).await?;
            }
            Some(Taken { open, .. }) => open.rollback().await?,
            None => {}
        }
        Ok(Attempt::Done)
    }

    /// Their handler has committed that they are parked no more, and not all of the effect. Where it has rolled
    /// that back they are parked still, or another worker has taken them since. Returns whether there were
    /// others.
    async fn bury_what_was_taken(
        &self,
        at: &Parked,
        failure: &Failure,
    ) -> Result<bool, InboxError> {
        const DOING: &str = "giving a message up";
        let is_parked = format!(
            "select not {HAS_COMMITTED} or exists (select from inbox.parked \
                where consumer_id operator(pg_catalog.=) $2 and lane operator(pg_catalog.=) $3 \
                    and seq operator(pg_catalog.=) $4)"
        );
        let (sessions, consumer_id) =
            (self.shared.inbox.sessions(), self.shared.inbox.consumer_id());
        let mut buried = false;
        for head in &at.heads {
            let params: [&(dyn ToSql + Sync); 4] = [&at.ended, &consumer_id, &at.lane, &head.seq];
            let (open, rows) = Open::begin(sessions, DOING, &is_parked, &params).await?;
            let row = rows.first().expect("a query without a table returns one row");
            if row.try_get(0).map_err(|error| InboxError::of(DOING, error))? {
                open.rollback().await?;
                continue;
            }
            let (message, replays) = (&head.message, head.replays);
            let new_code = self.shelf().bury(&open, message, failure, 1, replays, false).await?;
            open.commit().await?;
            self.announce(message, failure, new_code);
            buried = true;
        }
        Ok(buried)
    }

    /// How often it has failed then, and when it is tried again.
    fn outlook(&self, failure: &Failure, attempts: i32) -> (i32, Option<Due>) {
        let uncounted = matches!(failure.kind, Kind::Defer(_) | Kind::Trouble);
        let failed = if uncounted { attempts } else { attempts.saturating_add(1) };
        (failed, self.due(failure, u32::try_from(failed).unwrap_or(u32::MAX)))
    }

    /// Stores what becomes of a head that failed again: a new due time, or a dead letter.
    async fn failed_again(
        &self,
        open: Open,
        lane: Uuid,
        head: &Head,
        failure: &Failure,
        attempts: i32,
    ) -> Result<(), InboxError> {
        let shelf = self.shelf();
        let (failed, due) = self.outlook(failure, attempts);
        if let Some(due) = due {
            shelf.postpone(&open, lane, failed, due, failure).await?;
            open.commit().await?;
            if failure.kind == Kind::Trouble {
                self.tell_trouble(&head.message, failure);
            }
            self.tell(&head.message, failure);
            return Ok(());
        }
        let (message, replays) = (&head.message, head.replays);
        let new_code = shelf.bury(&open, message, failure, failed, replays, head.unclaimed).await?;
        let more = shelf.advance(&open, lane, std::slice::from_ref(head)).await?;
        open.commit().await?;
        self.announce(message, failure, new_code);
        if !more {
            shelf.free(self.shared.inbox.sessions(), lane).await?;
        }
        Ok(())
    }
}
