//! Whether a container engine answers, and containers that go away with the test process.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use outbox_relay::throwaway::guardian;
use testcontainers::{
    ContainerAsync, ContainerRequest, GenericImage, bollard::Docker, runners::AsyncRunner,
};

/// How long an engine may take to answer at all.
const PING: Duration = Duration::from_secs(2);

/// Whether an engine answers at `DOCKER_HOST` or the default socket.
///
/// # Errors
/// Why not, for the message that says what to install.
pub(crate) async fn engine() -> Result<()> {
    let docker = Docker::connect_with_defaults().context("no Docker engine")?;
    tokio::time::timeout(PING, docker.ping())
        .await
        .map_err(|_| anyhow!("the Docker engine does not answer"))?
        .context("no Docker engine answers")?;
    Ok(())
}

/// Starts a container and has it removed when this process ends, whichever way: the library
/// removes one only when its handle is dropped, and what a whole run shares never is.
pub(crate) async fn start(
    request: ContainerRequest<GenericImage>,
) -> Result<ContainerAsync<GenericImage>> {
    let container = request.start().await?;
    guardian::remove_container_at_exit(container.id())?;
    Ok(container)
}

/// `postgres:15` as name and tag, from the environment where it is set.
pub(crate) fn image(variable: &str, default: &str) -> (String, String) {
    let image = std::env::var(variable).unwrap_or_else(|_| default.to_owned());
    // A registry's port has a colon as well, but a slash after it.
    match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name.to_owned(), tag.to_owned()),
        _ => (image, "latest".to_owned()),
    }
}
