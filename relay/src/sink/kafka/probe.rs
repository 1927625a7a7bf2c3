//! Asks the brokers something, beside whatever the sink does: whether they answer, what is there.

use std::{sync::Arc, time::Duration};

use super::{
    errors::sort,
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
    /// `Unavailable` if no broker answers, or the topic is gone or out of reach.
    pub async fn check(&self) -> Result<(), SinkError> {
        let lookup = Arc::clone(&self.lookup);
        let topic = self.topic.clone();
        let is_needed = self.settings.delivery != Delivery::RecordsAlone;
        blocking(move || match lookup.find(&topic, PROBE_TIMEOUT) {
            Ok(Found::Partitions(_)) => Ok(()),
            // The broker has answered.
            Ok(_) if !is_needed => Ok(()),
            Ok(Found::Missing) => Err(unavailable(
                "looking for the relay's progress",
                format!(
                    "the progress topic {topic} is gone: what was delivered since cannot be told from it; the \
                     relay starts again, and says what to decide"
                ),
            )),
            Ok(found) => Err(unavailable(
                format!("looking up the progress topic {topic}"),
                format!("the brokers answer {found:?}"),
            )),
            Err(error) => Err(sort("asking the brokers for a sign of life", error, None)),
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
