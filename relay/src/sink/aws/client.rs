//! The service as it is opened: once for all of a relay's life, when it is first needed.

use std::sync::Arc;

use outbox_relay_aws::{Said, Service, What};
use tokio::sync::OnceCell;

use super::settings::Settings;
use crate::sink::{self, BoxError, SinkError};

/// Cheap to clone; all clones share what was opened.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) settings: Arc<Settings>,
    opened: Arc<OnceCell<Arc<dyn Service>>>,
}

impl Client {
    pub(super) fn new(settings: Settings) -> Self {
        Client { settings: Arc::new(settings), opened: Arc::default() }
    }

    /// One that is open already.
    #[cfg(test)]
    pub(super) fn over(settings: Settings, service: Arc<dyn Service>) -> Self {
        let opened = Arc::new(OnceCell::new_with(Some(service)));
        Client { settings: Arc::new(settings), opened }
    }

    /// # Errors
    /// `Misconfigured` where no region is known, or a file can't be read.
    pub(super) async fn service(&self) -> Result<&Arc<dyn Service>, SinkError> {
        let opened = self
            .opened
            .get_or_try_init(|| async { outbox_relay_aws::open(&self.settings.place()?).await });
        opened.await.map_err(|what| SinkError::Misconfigured {
            what: format!("{} can't be used: {what}", self.settings.kind()),
            remedy: format!(
                "set {} and {} (docs/AWS.md)",
                self.settings.key("region"),
                self.settings.key("ca_file")
            ),
        })
    }
}

/// Nothing is certain, or nothing is said of a record.
pub(super) fn unavailable(doing: impl Into<String>, said: Said) -> SinkError {
    let source = match said.what {
        What::Unknown => BoxError::from(format!(
            "the service does not accept the relay's credentials, or its clock ({said}): see where the AWS SDK looks for \
             them, docs/AWS.md"
        )),
        _ => said.into(),
    };
    sink::unavailable(doing, source)
}
