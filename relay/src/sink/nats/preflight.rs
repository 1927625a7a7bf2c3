//! What `check` looks at.

use super::{link::Link, settings::Settings, stream::Stream};
use crate::sink::SinkError;

/// What was seen.
#[derive(Debug)]
pub struct Preflight {
    /// The server's name.
    pub server: String,
    /// Its version.
    pub version: String,
    /// How often the stream is stored.
    pub replicas: i64,
    /// What is worth knowing, each with what to do about it.
    pub advice: Vec<(String, String)>,
}

/// Connects, and looks at the stream. Stores nothing.
///
/// # Errors
/// `Misconfigured` where the stream can't be used, `Unavailable` where no server answers.
pub async fn preflight(settings: &Settings) -> Result<Preflight, SinkError> {
    let link = Link::new(settings.clone());
    let stream = Stream::read(&link).await?;
    stream.verify(&settings.stream, &settings.progress_subject())?;
    let (server, version) = link.server().await?;
    let advice = stream.advice(&settings.stream);
    Ok(Preflight { server, version, replicas: stream.replicas(), advice })
}
