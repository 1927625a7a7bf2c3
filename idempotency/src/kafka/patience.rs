//! Questions to the database that the poll thread can't do without.

use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::shared::Shared;
use crate::{
    error::{InboxError, chain},
    processor::Processor,
};

/// Between two questions while the database is away.
pub(super) const AGAIN: Duration = Duration::from_millis(500);

/// Asks the database until it answers, and blocks meanwhile; `None` when the runner is to leave, which it
/// is where the database refuses what a person must change.
pub(super) fn ask<T, F, Fut>(
    (runtime, leave): (&Handle, &CancellationToken),
    (processor, shared): (&Processor, &Shared),
    doing: &'static str,
    ask: F,
) -> Option<T>
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<T, InboxError>>,
{
    let ask = async {
        loop {
            match ask().await {
                Ok(answer) => return Some(answer),
                Err(
                    error @ (InboxError::Refused { .. }
                    | InboxError::Setting(_)
                    | InboxError::Unsafe(_)),
                ) => {
                    shared.refuse(processor.inbox().sessions().explained(error).await);
                    leave.cancel();
                    return None;
                }
                Err(error) => {
                    let error = chain(&error);
                    tracing::warn!(error, doing, "waiting for the database");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    };
    runtime.block_on(async {
        tokio::select! {
            biased;
            () = leave.cancelled() => None,
            answer = ask => answer,
        }
    })
}
