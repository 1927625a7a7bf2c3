//! Which queues and topics there are, and how large their messages may be: asked in advance, so that no event is sent to
//! find out, and remembered for a while.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use outbox_relay_aws::{Found, Said, Service, What};

use super::{client::unavailable, facts::Facts, settings::Settings};
use crate::{core::printable, sink::SinkError};

/// What is known may be this old.
const KNOWN_FOR: Duration = Duration::from_secs(30);
/// So many names are remembered; rows may name any.
const NAMES_MAX: usize = 10_000;
/// Questions under way at once.
const AT_A_TIME: usize = 16;
/// An answer takes no longer.
pub(super) const ASK_LIMIT: Duration = Duration::from_secs(5);

/// A queue or topic that can be sent to.
#[derive(Clone, Debug)]
pub(super) struct Destination {
    pub(super) address: String,
    /// Of a message, and of a request.
    pub(super) bytes_max: usize,
}

/// What was found out.
#[derive(Debug, Default)]
pub(super) struct Directory {
    known: HashMap<String, (Destination, Instant)>,
}

impl Directory {
    /// Why some of `names` can't be sent to now, and couldn't a moment ago; asks for those that are not known.
    ///
    /// # Errors
    /// `Unavailable` if no one answers.
    pub(super) async fn absent(
        &mut self,
        service: &Arc<dyn Service>,
        settings: &Settings,
        names: BTreeSet<&str>,
    ) -> Result<BTreeMap<String, Said>, SinkError> {
        let now = Instant::now();
        let is_known = |name: &str| self.known.get(name).is_some_and(|(_, until)| *until > now);
        let unknown: Vec<String> =
            names.into_iter().filter(|name| !is_known(name)).map(str::to_owned).collect();
        let looks = unknown.into_iter().map(|name| async move {
            let found = look(service, settings, &name).await;
            (name, found)
        });
        let looks: Vec<_> =
            futures_util::stream::iter(looks).buffer_unordered(AT_A_TIME).collect().await;
        let mut absent = BTreeMap::new();
        for (name, found) in looks {
            match found? {
                Ok(found) => {
                    if self.known.len() >= NAMES_MAX {
                        self.known.clear();
                    }
                    let bytes_max =
                        Facts::of(&found).bytes_max.map_or(settings.message_bytes_max, |it| {
                            it.min(settings.message_bytes_max)
                        });
                    let destination = Destination { address: found.address, bytes_max };
                    self.known.insert(name, (destination, now + KNOWN_FOR));
                }
                Err(said) => {
                    self.known.remove(&name);
                    absent.insert(name, said);
                }
            }
        }
        Ok(absent)
    }

    /// One that is not absent.
    pub(super) fn get(&self, name: &str) -> Option<&Destination> {
        self.known.get(name).map(|(destination, _)| destination)
    }

    /// It is to be asked for again.
    pub(super) fn forget(&mut self, name: &str) {
        self.known.remove(name);
    }
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
