//! Events of a topic that did not exist when they came are released by themselves when it appears
//! within `sink.topic_grace`: their lane waits, and no other.
//!
//! The table says what there is to look for, so a restart forgets nothing and memory holds only
//! names. Asks the broker for all of them at once; asks no one while nothing is missing. Runs beside
//! the pipeline, on the session that holds the leader's lock.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Notify, task::spawn_blocking, time::sleep};

use crate::{
    daemon::{ended::Ended, locks},
    dead_letter::{DeadLetterError, pending::Pending},
    metrics::Cause,
    sink::any::AnyWatch,
};

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Watches for topics. `parked` tells that events of a missing one were parked. Returns what ends
/// the attempt. Cancel safe.
pub(in crate::daemon) async fn watch(
    pending: Pending,
    watch: AnyWatch,
    parked: Arc<Notify>,
) -> Ended {
    const DOING: &str = "looking for missing topics";
    let failed = |error| Ended::dead_letters(DOING, error);
    let passes = |error: &DeadLetterError| locks::passes(error);
    let mut skipped = locks::Skipped::default();
    loop {
        let topics = match pending.topics(watch.grace()).await {
            Ok(topics) => topics,
            Err(error) if passes(&error) => {
                skipped.tell(pending.session(), DOING, &error).await;
                sleep(LOOK_EVERY).await;
                continue;
            }
            Err(error) => return failed(error),
        };
        if topics.is_empty() {
            parked.notified().await;
        } else {
            let asking = watch.clone();
            let asked = spawn_blocking(move || asking.appeared(&topics)).await;
            match asked {
                // That brokers don't answer is seen, and said, by those who deliver.
                Ok(Err(error)) => tracing::debug!(%error, DOING),
                Ok(Ok(topics)) if topics.is_empty() => {}
                Ok(Ok(topics)) => match pending.release(&topics, watch.grace()).await {
                    Ok(0) => skipped.passed(),
                    Err(error) if passes(&error) => {
                        skipped.tell(pending.session(), DOING, &error).await;
                    }
                    Ok(events) => tracing::info!(
                        events,
                        topics = topics.len(),
                        "missing topics have appeared: their events are released"
                    ),
                    Err(error) => return failed(error),
                },
                Err(panicked) => return Ended::retry(Cause::Other, DOING, panicked),
            }
        }
        sleep(LOOK_EVERY).await;
    }
}
