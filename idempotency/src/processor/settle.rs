//! Whether a transaction that failed is run again, and whose fault it was.

use std::time::Duration;

use super::{
    Attempt, OUTAGE, Processor, Stop, aborted,
    aside::{ENDED, KEPT, UNFINISHED},
};
use crate::{
    error::{InboxError, chain},
    failure::{Failure, Kind},
};

/// How often a transaction that met another one is run again before that counts as a failure; and after how many
/// such meetings of the inbox's own statements that is told.
pub(super) const CONFLICTS_MAX: u32 = 20;
/// The pause before the third run: each further one is twice as long, up to the longest.
const APART: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));
/// How often a message waits for a database that fails, and is there, before that counts as a failure.
const DOUBTS_MAX: u32 = 5;
/// How often a message waits in its place for a database that can't do what its handler wants, before it waits
/// beside the other keys: some three seconds. A full disk is no better beside them: a minute.
const TROUBLES_MAX: u32 = 5;
const FULL_MAX: u32 = 16;
/// How often a message whose handler lost its session waits before that counts as a failure. The database
/// has answered the claim before each of these.
const LOST_MAX: u32 = 5;
/// How often it is run again in a session that does not know what was prepared in it.
const SESSIONS_MAX: u32 = 5;

/// How often messages have waited in their place for a database that can't do what their handler wants: a batch
/// together with its parts, or each part would wait as long again.
#[derive(Default)]
pub(super) struct Patience {
    troubles: u32,
    /// Whether other transactions were in the way of a part until that was given up: each of them may take as long
    /// as a statement may.
    is_in_the_way: bool,
}

/// Whether what is run again can be run in parts instead.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Parts {
    One,
    Several,
}

impl Processor {
    /// Runs a transaction again while the reason is not the message's.
    pub(super) async fn settle<F, Fut>(&self, run: F) -> Result<Attempt, Stop>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<Attempt, InboxError>>,
    {
        self.settle_within(&mut Patience::default(), Parts::One, run).await
    }

    /// As [`Processor::settle`], for a part of what has waited before. Of several, one may be in another
    /// transaction's way, or all of them take longer than a statement may.
    pub(super) async fn settle_within<F, Fut>(
        &self,
        patience: &mut Patience,
        parts: Parts,
        run: F,
    ) -> Result<Attempt, Stop>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<Attempt, InboxError>>,
    {
        let (mut conflicts, mut sessions, mut doubts, mut lost) = (0, 0, 0, 0);
        let mut met = 0;
        let mut wait = OUTAGE.0;
        loop {
            let failure = match run().await {
                Ok(Attempt::Failed(failure)) => failure,
                Ok(done) => return Ok(done),
                // Of the inbox's own statements: nothing would ever be handled.
                Err(error @ InboxError::Session(_)) if sessions == SESSIONS_MAX => {
                    return Err(Stop::Inbox(error));
                }
                Err(error) => match self.blame(error) {
                    Ok(failure) => failure,
                    Err(InboxError::Conflict(error)) => {
                        met += 1;
                        self.wait_for_others(&error, met).await;
                        if parts == Parts::Several
                            && (met == CONFLICTS_MAX || patience.is_in_the_way)
                        {
                            patience.is_in_the_way = true;
                            return Ok(Attempt::Failed(Failure::of_conflict(error)));
                        }
                        continue;
                    }
                    Err(error) => {
                        return Err(Stop::Inbox(
                            self.shared.inbox.sessions().explained(error).await,
                        ));
                    }
                },
            };
            match failure.kind {
                Kind::Fatal => return Err(Stop::Handler(failure.text().to_owned())),
                Kind::Session if sessions < SESSIONS_MAX => {
                    self.shared.meter.conflict();
                    sessions += 1;
                }
                Kind::Conflict if conflicts < CONFLICTS_MAX => {
                    self.shared.meter.conflict();
                    tokio::time::sleep(apart(conflicts, rand::random())).await;
                    conflicts += 1;
                }
                Kind::Trouble if patience.troubles < troubles_max(&failure) => {
                    patience.troubles += 1;
                    self.wait_for_the_database(&failure, &mut wait).await;
                }
                Kind::Doubt if doubts < DOUBTS_MAX => {
                    doubts += 1;
                    self.wait_for_the_database(&failure, &mut wait).await;
                }
                // An outage in between says nothing here: a statement may bring the server down.
                Kind::Lost if lost < LOST_MAX => {
                    lost += 1;
                    self.wait_for_the_database(&failure, &mut wait).await;
                }
                Kind::Outage => {
                    // Whatever failed before, it may have been the beginning of this.
                    doubts = 0;
                    self.wait_for_the_database(&failure, &mut wait).await;
                }
                _ => return Ok(Attempt::Failed(failure)),
            }
        }
    }

    async fn wait_for_the_database(&self, failure: &Failure, wait: &mut Duration) {
        self.shared.meter.outage();
        tracing::warn!(
            consumer = self.shared.inbox.consumer(),
            error = failure.text(),
            code = failure.code(),
            "the database is unavailable, or a handler's session is lost; waiting {wait:?}, nothing is \
             acknowledged"
        );
        tokio::time::sleep(*wait).await;
        *wait = (*wait * 2).min(OUTAGE.1);
    }

    /// For transactions that are in the way of the inbox's own statements, as that of a frozen process which has
    /// claimed the message: no message's fault, however long it takes.
    async fn wait_for_others(&self, error: &tokio_postgres::Error, met: u32) {
        self.shared.meter.conflict();
        if met.is_multiple_of(CONFLICTS_MAX) {
            tracing::warn!(
                consumer = self.shared.inbox.consumer(),
                error = chain(error),
                "other transactions were in the way of the inbox's own statements {met} times in a row: \
                 messages wait, nothing is acknowledged, and no attempt is counted; to see what is open for \
                 long, type: select pid, usename, state, xact_start, query from pg_stat_activity where \
                 xact_start is not null order by xact_start"
            );
        }
        tokio::time::sleep(apart(met - 1, rand::random())).await;
    }

    /// The inbox's errors as failures of the message, but for those that a person must correct, and for
    /// transactions that were in the way of its own statements.
    fn blame(&self, error: InboxError) -> Result<Failure, InboxError> {
        Ok(match error {
            InboxError::Unavailable(error) => Failure::new(Kind::Outage, "unavailable", error),
            InboxError::Uncommitted(error) => error.into(),
            InboxError::Session(error) => Failure::new(Kind::Session, "session", error),
            InboxError::Aborted(state) => aborted(state),
            InboxError::Ended => Failure::permanent(ENDED, error),
            InboxError::Escaped => Failure::permanent(KEPT, error),
            InboxError::Unfinished => Failure::new(Kind::Transient, UNFINISHED, error),
            InboxError::Conflict(_)
            | InboxError::Refused { .. }
            | InboxError::Setting(_)
            | InboxError::Unsafe(_) => return Err(error),
        })
    }
}

fn troubles_max(failure: &Failure) -> u32 {
    if failure.code() == "sqlstate-53100" { FULL_MAX } else { TROUBLES_MAX }
}

/// How long a transaction waits that has met others so often before. Those that collide would do so
/// again if they all began at once, and a deadlock costs a second. `random` is in 0..1.
fn apart(conflicts: u32, random: f64) -> Duration {
    let Some(doublings) = conflicts.checked_sub(1) else { return Duration::ZERO };
    APART.0.saturating_mul(1 << doublings.min(31)).min(APART.1).mul_f64(random)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transactions_that_collide_are_run_again_at_once_and_then_apart() {
        let longest: Vec<u128> = (0..8).map(|n| apart(n, 1.0).as_millis()).collect();
        assert_eq!(longest, [0, 10, 20, 40, 80, 160, 320, 500]);
        assert_eq!(apart(u32::MAX, 1.0), APART.1);
        assert_eq!(apart(7, 0.0), Duration::ZERO);
    }
}
