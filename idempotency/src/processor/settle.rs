//! Whether a transaction that failed is run again, and whose fault it was.

use super::{Attempt, OUTAGE, Processor, Stop, aborted};
use crate::{
    error::InboxError,
    failure::{Failure, Kind},
};

/// How often a transaction that met another one is run again before that counts as a failure.
const CONFLICTS_MAX: u32 = 20;
/// The same, of a session that does not know what was prepared in it.
const SESSIONS_MAX: u32 = 5;

impl Processor {
    /// Runs a transaction again while the reason is not the message's.
    pub(super) async fn settle<F, Fut>(&self, run: F) -> Result<Attempt, Stop>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<Attempt, InboxError>>,
    {
        let (mut conflicts, mut sessions, mut wait) = (0, 0, OUTAGE.0);
        loop {
            let failure = match run().await {
                Ok(Attempt::Failed(failure)) => failure,
                Ok(done) => return Ok(done),
                // Of the inbox's own statements: nothing would ever be handled.
                Err(error @ InboxError::Session(_)) if sessions == SESSIONS_MAX => {
                    return Err(Stop::Inbox(error));
                }
                Err(error) => self.blame(error)?,
            };
            match failure.kind {
                Kind::Fatal => return Err(Stop::Handler(failure.text().to_owned())),
                Kind::Session if sessions < SESSIONS_MAX => {
                    self.shared.meter.conflict();
                    sessions += 1;
                }
                Kind::Conflict if conflicts < CONFLICTS_MAX => {
                    self.shared.meter.conflict();
                    conflicts += 1;
                }
                Kind::Outage => {
                    self.shared.meter.outage();
                    tracing::warn!(
                        consumer = self.shared.inbox.consumer(),
                        error = failure.text(),
                        "the database is unavailable; waiting {wait:?}, nothing is acknowledged"
                    );
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(OUTAGE.1);
                }
                _ => return Ok(Attempt::Failed(failure)),
            }
        }
    }

    /// The inbox's errors as failures of the message, but for those that a person must mend.
    fn blame(&self, error: InboxError) -> Result<Failure, Stop> {
        Ok(match error {
            InboxError::Unavailable(error) => Failure::new(Kind::Outage, "unavailable", error),
            // By who found it, not by its SQLSTATE: a day that was dropped is a check violation.
            InboxError::Conflict(error) => Failure::new(Kind::Conflict, "conflict", error),
            InboxError::Uncommitted(error) => error.into(),
            InboxError::Session(error) => Failure::new(Kind::Session, "session", error),
            InboxError::Aborted(state) => aborted(state),
            InboxError::Ended => Failure::permanent("transaction-ended", error),
            InboxError::Refused { .. }
            | InboxError::Setting(_)
            | InboxError::Escaped
            | InboxError::Unsafe(_) => {
                return Err(Stop::Inbox(error));
            }
        })
    }
}
