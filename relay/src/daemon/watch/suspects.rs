//! Parked events that are only suspected are released again, a few at a time, so that the broker is asked about each
//! by itself: what it takes is delivered, what it refuses is parked with its reason.
//!
//! The table says which these are, so a restart forgets nothing. Runs beside the pipeline, on the session
//! that holds the leader's lock, and asks no one while nothing is suspected.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Notify, time::sleep};

use crate::{
    daemon::{ended::Ended, locks},
    dead_letter::{
        DeadLetterError,
        pending::{Pending, Suspects},
    },
};

/// Between the end of a release and the next one, the others have the pipeline to themselves.
const PAUSE: Duration = Duration::from_secs(1);
/// Between two looks at whether a release has ended.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Releases suspects. `parked` tells that some were parked. Returns what ends the attempt. Cancel safe.
pub(in crate::daemon) async fn watch(pending: Pending, parked: Arc<Notify>) -> Ended {
    const DOING: &str = "asking the broker about suspected events";
    let mut skipped = locks::Skipped::default();
    loop {
        match step(&pending, &parked).await {
            Ok(()) => skipped.passed(),
            Err(error) if locks::passes(&error) => {
                skipped.tell(pending.session(), DOING, &error).await;
                sleep(PAUSE).await;
            }
            Err(error) => return Ended::dead_letters(DOING, error),
        }
    }
}

async fn step(pending: &Pending, parked: &Notify) -> Result<(), DeadLetterError> {
    match pending.suspects().await? {
        Suspects::None => parked.notified().await,
        Suspects::UnderWay => sleep(LOOK_EVERY).await,
        Suspects::Parked => {
            sleep(PAUSE).await;
            let events = pending.release_suspects().await?;
            tracing::debug!(events, "released events that are suspected");
        }
    }
    Ok(())
}
