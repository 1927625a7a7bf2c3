//! Which topics there are, and how many partitions they have: asked in advance, so that no event makes one, and remembered
//! for a while.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use outbox_relay_pulsar::{Said, What};

use super::client::{Client, unavailable};
use crate::{core::printable, sink::SinkError};

/// What is known may be this old. Pulsar's own clients look once a minute whether a topic has grown.
const KNOWN_FOR: Duration = Duration::from_secs(30);
/// So many names are remembered; rows may name any.
const NAMES_MAX: usize = 10_000;
/// Questions under way at once.
const AT_A_TIME: usize = 16;

/// What was found out.
#[derive(Debug, Default)]
pub(super) struct Directory {
    known: HashMap<String, (Option<u32>, Instant)>,
}

impl Directory {
    /// Why some of `topics` can't be sent to now, and couldn't a moment ago; asks for those that are not known.
    ///
    /// # Errors
    /// `Unavailable` if no one answers.
    pub(super) async fn absent(
        &mut self,
        client: &Client,
        topics: BTreeSet<&str>,
    ) -> Result<BTreeMap<String, Said>, SinkError> {
        let now = Instant::now();
        let is_known = |name: &str| self.known.get(name).is_some_and(|(_, until)| *until > now);
        let unknown: Vec<String> =
            topics.into_iter().filter(|name| !is_known(name)).map(str::to_owned).collect();
        let looks = unknown.into_iter().map(|name| async move {
            let found = look(client, &name).await;
            (name, found)
        });
        let looks: Vec<_> =
            futures_util::stream::iter(looks).buffer_unordered(AT_A_TIME).collect().await;
        let mut absent = BTreeMap::new();
        for (name, found) in looks {
            match found? {
                Ok(partitions) => {
                    if self.known.len() >= NAMES_MAX {
                        self.known.retain(|_, (_, until)| *until > now);
                    }
                    self.known.insert(name, (partitions, now + KNOWN_FOR));
                }
                Err(said) => {
                    self.known.remove(&name);
                    absent.insert(name, said);
                }
            }
        }
        Ok(absent)
    }

    /// Of one that is not absent; `None` where it is not partitioned.
    pub(super) fn partitions(&self, topic: &str) -> Option<u32> {
        self.known.get(topic).and_then(|(partitions, _)| *partitions)
    }

    /// It is to be asked for again.
    pub(super) fn forget(&mut self, topic: &str) {
        self.known.remove(topic);
    }
}

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
