//! What is known of destinations, by name: asked in advance, so that no event is sent to find out, and remembered for a
//! while.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;

use super::SinkError;

/// What is known may be this old. Pulsar's own clients look once a minute whether a topic has grown.
const KNOWN_FOR: Duration = Duration::from_secs(30);
/// So many names are remembered, and those of one batch; rows may name any.
const NAMES_MAX: usize = 10_000;
/// Questions under way at once.
const AT_A_TIME: usize = 16;

/// What was found out of each.
#[derive(Debug)]
pub(super) struct Directory<T> {
    known: HashMap<String, (T, Instant)>,
}

impl<T> Default for Directory<T> {
    fn default() -> Self {
        Directory { known: HashMap::new() }
    }
}

impl<T> Directory<T> {
    /// Why some of `names` can't be sent to now, and couldn't a moment ago; asks for those that are not known. `look`
    /// finds what there is, or what the broker says of one that is not there.
    ///
    /// # Errors
    /// Those of `look`.
    pub(super) async fn absent<S, F>(
        &mut self,
        names: BTreeSet<&str>,
        look: impl Fn(String) -> F,
    ) -> Result<BTreeMap<String, S>, SinkError>
    where
        F: Future<Output = Result<Result<T, S>, SinkError>>,
    {
        let now = Instant::now();
        if self.known.len() >= NAMES_MAX {
            self.known.retain(|name, (_, until)| *until > now && names.contains(name.as_str()));
        }
        let is_known = |name: &str| self.known.get(name).is_some_and(|(_, until)| *until > now);
        let unknown: Vec<String> =
            names.into_iter().filter(|name| !is_known(name)).map(str::to_owned).collect();
        let looks = unknown.into_iter().map(|name| {
            let found = look(name.clone());
            async move { (name, found.await) }
        });
        let looks: Vec<_> =
            futures_util::stream::iter(looks).buffer_unordered(AT_A_TIME).collect().await;
        let mut absent = BTreeMap::new();
        for (name, found) in looks {
            match found? {
                Ok(found) => {
                    self.known.insert(name, (found, now + KNOWN_FOR));
                }
                Err(said) => {
                    self.known.remove(&name);
                    absent.insert(name, said);
                }
            }
        }
        Ok(absent)
    }

    /// Of one that is not absent.
    pub(super) fn get(&self, name: &str) -> Option<&T> {
        self.known.get(name).map(|(found, _)| found)
    }

    /// It is to be asked for again.
    pub(super) fn forget(&mut self, name: &str) {
        self.known.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn look(directory: &mut Directory<usize>, names: &[String]) -> Vec<String> {
        let asked = std::cell::RefCell::new(Vec::new());
        let absent = directory.absent(names.iter().map(String::as_str).collect(), |name| {
            asked.borrow_mut().push(name.clone());
            async move { Ok(if name == "missing" { Err("no such") } else { Ok(name.len()) }) }
        });
        let absent = absent.await.expect("all answers");
        let missing = names.iter().filter(|name| *name == "missing").count();
        assert_eq!(absent.len(), missing);
        asked.into_inner()
    }

    #[tokio::test]
    async fn what_is_there_is_asked_for_once_and_what_is_not_each_time() {
        let mut directory = Directory::default();
        let names = ["orders".to_owned(), "missing".to_owned()];
        assert_eq!(look(&mut directory, &names).await.len(), 2);
        assert_eq!(look(&mut directory, &names).await, ["missing"]);
        assert_eq!((directory.get("orders"), directory.get("missing")), (Some(&6), None));
        directory.forget("orders");
        assert_eq!(look(&mut directory, &names).await.len(), 2);
    }

    /// A batch may name more than are remembered, and needs each of them.
    #[tokio::test]
    async fn all_of_a_batch_are_known_however_many_and_those_of_others_make_room() {
        let mut directory = Directory::default();
        let names: Vec<String> = (0..=NAMES_MAX).map(|n| format!("n{n}")).collect();
        look(&mut directory, &names).await;
        assert!(names.iter().all(|name| directory.get(name).is_some()));
        let few = [names.first().expect("one").clone(), "another".to_owned()];
        assert_eq!(look(&mut directory, &few).await, ["another"]);
        assert_eq!(directory.known.len(), 2);
    }
}
