//! Asks the brokers something, beside whatever the sink does: whether they answer, what is there.

use std::{sync::Arc, time::Duration};

use super::{
    errors::{self, sort},
    lookup::{Found, Lookup},
    progress_topic,
    settings::{Delivery, Settings},
};
use crate::sink::{SinkError, unavailable};

/// For one look.
pub(super) const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// Asks whether the brokers answer. Cheap; for readiness.
#[derive(Clone)]
pub struct Probe {
    pub(super) lookup: Arc<Lookup>,
    pub(super) topic: String,
    pub(super) settings: Arc<Settings>,
}

impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probe").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl Probe {
    /// Looks the progress topic up, where there is one, within three seconds. Cancel safe.
    ///
    /// # Errors
    /// `Unavailable` if no broker answers, or the topic is gone; `Misconfigured` if it is out of reach.
    pub async fn check(&self) -> Result<(), SinkError> {
        const DOING: &str = "asking the brokers for a sign of life";
        let lookup = Arc::clone(&self.lookup);
        let topic = self.topic.clone();
        let settings = Arc::clone(&self.settings);
        let is_needed = settings.delivery != Delivery::RecordsAlone;
        blocking(move || match lookup.find(&topic, PROBE_TIMEOUT) {
            // The broker has answered.
            Ok(_) if !is_needed => Ok(()),
            Ok(Found::Partitions(_)) => match lookup.is_led(&topic, PROBE_TIMEOUT) {
                Ok(false) => Err(progress_topic::leaderless(&settings, &topic)),
                Ok(true) => Ok(()),
                Err(error) => Err(sort(DOING, error, None)),
            },
            Ok(Found::Missing) => Err(unavailable(
                "looking for the relay's progress",
                format!(
                    "the progress topic {topic} is gone: what was delivered since cannot be told from it; the \
                     relay starts again, and says what to decide"
                ),
            )),
            Ok(found) => Err(progress_topic::out_of_reach(&settings, &topic, found)),
            Err(error) => Err(sort(DOING, error, None)),
        })
        .await
    }

    /// Looks whether the progress topic still keeps progress, as its settings are by now. Cancel safe.
    ///
    /// # Errors
    /// `Misconfigured` if not: what was stored last may be lost before the next start reads it.
    pub async fn progress_topic(&self) -> Result<(), SinkError> {
        if self.settings.delivery == Delivery::RecordsAlone {
            return Ok(());
        }
        let (lookup, settings) = (Arc::clone(&self.lookup), Arc::clone(&self.settings));
        blocking(move || progress_topic::still_keeps(&settings, &lookup)).await
    }
}

pub(super) fn make_lookup(settings: &Settings) -> Result<Lookup, SinkError> {
    Lookup::new(settings).map_err(|error| {
        if errors::lacks_a_thread(&error) {
            return sort("starting a Kafka client", error, None);
        }
        let problem = settings.problems().into_iter().next();
        let (what, remedy) = match problem {
            Some(problem) => (format!("{}: {}", problem.key, problem.what), problem.remedy),
            None => ("librdkafka refuses sink.properties".into(), error.to_string()),
        };
        SinkError::Misconfigured { what, remedy }
    })
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SinkError> + Send + 'static,
) -> Result<T, SinkError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(unavailable("asking the brokers", error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_look_that_panics_is_told() {
        let error = blocking::<()>(|| panic!("a defect")).await.expect_err("it has panicked");
        let told = crate::causes::of(&error);
        assert!(told.starts_with("asking the brokers") && told.contains("a defect"), "{told}");
    }
}
