//! What `check` looks at.

use super::{link::Link, settings::Settings, stream::Stream};
use crate::{
    causes,
    sink::{
        SinkError,
        doctor::{Examined, Seen},
    },
};

const NAME: &str = "NATS";

/// Connects, looks at the stream, and says what was seen. Stores nothing. Whether progress can be looked at is
/// known where the stream can be used.
pub(in crate::sink) async fn examine(settings: &Settings) -> Examined {
    match preflight(settings).await {
        Ok(seen) => Examined { seen, has_progress: Some(true) },
        Err(SinkError::Misconfigured { what, remedy }) => Examined::unusable(NAME, what, remedy),
        Err(error) => {
            let remedy =
                "check sink.nats.url, the credentials, and that a server with JetStream is up";
            Examined::unusable(NAME, causes::of(&error), remedy)
        }
    }
}

/// # Errors
/// `Misconfigured` where the stream can't be used, `Unavailable` where no server answers.
async fn preflight(settings: &Settings) -> Result<Vec<Seen>, SinkError> {
    let link = Link::new(settings.clone());
    let stream = Stream::read(&link).await?;
    stream.verify(&settings.stream, &settings.progress_subject())?;
    let (server, version) = link.server().await?;
    let mut seen = vec![Seen::fine(
        NAME,
        format!(
            "server {server} ({version}), stream {}, {} replica(s), progress under {}",
            settings.stream,
            stream.replicas(),
            settings.progress_subject()
        ),
    )];
    let advice = stream.advice(&settings.stream).into_iter();
    seen.extend(advice.map(|(what, remedy)| Seen::warning(NAME, what, remedy)));
    Ok(seen)
}
