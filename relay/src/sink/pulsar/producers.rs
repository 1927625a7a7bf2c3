//! The producers that are open, one for each topic that is not partitioned, and for each partition.

use std::collections::{BTreeMap, HashMap};

use futures_util::StreamExt as _;
use outbox_relay_pulsar::{Producer, Said, What};

use super::client::{Client, unavailable};
use crate::sink::SinkError;

/// So many stay open; rows may name any topic.
const OPEN_MAX: usize = 1_000;
/// Opened at once.
const AT_A_TIME: usize = 16;

/// A producer.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) producer: Box<dyn Producer>,
    /// Bytes of the largest message that was stored: a smaller one is not refused for its size.
    pub(super) proven: usize,
}

/// By the name of the topic or partition. Those that are under way are taken out.
#[derive(Debug, Default)]
pub(super) struct Producers {
    open: HashMap<String, Open>,
}

impl Producers {
    /// One for each of `topics`; what the broker says, where it lets no one produce there.
    ///
    /// # Errors
    /// `Unavailable`, where that may change.
    pub(super) async fn take(
        &mut self,
        client: &Client,
        topics: Vec<&str>,
    ) -> Result<BTreeMap<String, Result<Open, Said>>, SinkError> {
        let mut taken = BTreeMap::new();
        let mut missing = Vec::new();
        for topic in topics {
            match self.open.remove(topic) {
                Some(open) => drop(taken.insert(topic.to_owned(), Ok(open))),
                None => missing.push(topic.to_owned()),
            }
        }
        let cluster = client.cluster()?;
        let access = client.settings.access();
        let opening = missing.into_iter().map(|topic| {
            let cluster = &cluster;
            async move {
                let opened = cluster.producer(&topic, access).await;
                (topic, opened)
            }
        });
        let opened: Vec<_> =
            futures_util::stream::iter(opening).buffer_unordered(AT_A_TIME).collect().await;
        for (topic, opened) in opened {
            let opened = match opened {
                Ok(producer) => Ok(Open { producer, proven: 0 }),
                Err(said) => match said.what {
                    What::Missing | What::Denied | What::Refused | What::TooLarge => Err(said),
                    What::Unknown | What::Fenced | What::NotNow | What::Uncertain => {
                        return Err(unavailable(format!("opening a producer of {topic}"), said));
                    }
                },
            };
            taken.insert(topic, opened);
        }
        Ok(taken)
    }

    /// It is used again, unless there are too many.
    pub(super) fn give_back(&mut self, topic: String, open: Open) {
        if self.open.len() >= OPEN_MAX {
            self.open.clear();
        }
        self.open.insert(topic, open);
    }
}
