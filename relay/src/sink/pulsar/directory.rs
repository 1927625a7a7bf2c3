//! Which topics there are, and how many partitions they have.

use outbox_relay_pulsar::{Said, What};

use super::client::{Client, unavailable};
use crate::{
    core::printable,
    sink::{SinkError, directory},
};

/// What is known of topics: their partitions, `None` where a topic has none.
pub(super) type Directory = directory::Directory<Option<u32>>;

/// How many partitions there are; or what the broker says, where there are none, or the relay may not know.
///
/// # Errors
/// `Unavailable` where it says nothing of that.
pub(super) async fn look(
    client: &Client,
    topic: &str,
) -> Result<Result<Option<u32>, Said>, SinkError> {
    match client.cluster()?.partitions(topic).await {
        Ok(partitions) => Ok(Ok(partitions)),
        Err(said) => match said.what {
            What::Missing | What::Denied | What::Refused | What::TooLarge => Ok(Err(said)),
            What::Unknown | What::Fenced | What::NotNow | What::Uncertain => {
                Err(unavailable(format!("looking for the topic {}", printable::short(topic)), said))
            }
        },
    }
}
