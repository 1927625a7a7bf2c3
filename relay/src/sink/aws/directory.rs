//! Which queues and topics there are, and how large their messages may be.

use std::{sync::Arc, time::Duration};

use outbox_relay_aws::{Found, Said, Service, What};

use super::{client::unavailable, facts::Facts, settings::Settings};
use crate::{
    core::printable,
    sink::{SinkError, directory},
};

/// An answer takes no longer.
pub(super) const ASK_LIMIT: Duration = Duration::from_secs(5);

/// A queue or topic that can be sent to.
#[derive(Clone, Debug)]
pub(super) struct Destination {
    pub(super) address: String,
    /// Of a message, and of a request.
    pub(super) bytes_max: usize,
}

/// What is known of queues and topics.
pub(super) type Directory = directory::Directory<Destination>;

/// One that can be sent to, or why not.
///
/// # Errors
/// `Unavailable` where the service says nothing of that.
pub(super) async fn destination(
    service: &Arc<dyn Service>,
    settings: &Settings,
    name: &str,
) -> Result<Result<Destination, Said>, SinkError> {
    let found = look(service, settings, name).await?;
    Ok(found.map(|found| {
        let most = settings.message_bytes_max;
        let bytes_max = Facts::of(&found).bytes_max.map_or(most, |it| it.min(most));
        Destination { address: found.address, bytes_max }
    }))
}

/// Whether there is such a queue or topic; if not, or if the relay may not know, what the service says.
///
/// # Errors
/// `Unavailable` where it says nothing of that.
pub(super) async fn look(
    service: &Arc<dyn Service>,
    settings: &Settings,
    name: &str,
) -> Result<Result<Found, Said>, SinkError> {
    let doing = || format!("looking for the {} {}", settings.noun(), printable::short(name));
    match tokio::time::timeout(2 * ASK_LIMIT, service.find(name)).await {
        Ok(Ok(found)) => Ok(Ok(found)),
        Ok(Err(said)) => match said.what {
            What::Missing | What::Denied | What::Refused | What::TooLarge => Ok(Err(said)),
            What::Unknown | What::NotNow | What::Uncertain => Err(unavailable(doing(), said)),
        },
        Err(_) => {
            let said = Said::uncertain(format!("no answer within {:?}", 2 * ASK_LIMIT));
            Err(unavailable(doing(), said))
        }
    }
}
