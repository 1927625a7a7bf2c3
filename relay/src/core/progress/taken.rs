//! What progress remembers of the topics that a route takes.

use crate::core::{
    lsn::Lsn,
    progress::{FormerTopics, Progress, TopicsRecord},
};

/// Of the former patterns that are kept; beyond that it is all topics.
const FORMER_BYTES_MAX: usize = 8 << 10;

impl Progress {
    /// Remembers what the route takes; `None`: the process is one relay, which takes all. `end` is the end of the WAL.
    /// Returns the patterns that it did not take before, though it has passed events over.
    pub fn take_topics(&mut self, ours: Option<&[String]>, end: Lsn) -> Vec<String> {
        const ALL: &str = "*";
        let Some(ours) = ours else {
            self.topics = None;
            return Vec::new();
        };
        let reached = self.position.map(|position| position.resume_lsn());
        let before = match (self.topics.take(), reached) {
            (Some(before), _) => before,
            // It was the only relay.
            (None, Some(_)) => TopicsRecord { now: vec![ALL.into()], former: None },
            (None, None) => TopicsRecord { now: ours.to_vec(), former: None },
        };
        let mut former = before.former.filter(|former| reached < Some(former.until));
        let has_all = before.now.iter().any(|it| it == ALL);
        let is_new = |it: &&String| !has_all && !before.now.contains(it);
        let added: Vec<String> = match reached {
            Some(_) => ours.iter().filter(is_new).cloned().collect(),
            None => Vec::new(),
        };
        let is_taken = |pattern: &String| ours.contains(pattern) || ours.iter().any(|it| it == ALL);
        let given_up: Vec<String> = before.now.into_iter().filter(|it| !is_taken(it)).collect();
        if !given_up.is_empty() {
            let earlier = former.map(|former| former.patterns).unwrap_or_default();
            let mut patterns: Vec<String> = earlier;
            let more = given_up.into_iter().filter(|it| !patterns.contains(it)).collect::<Vec<_>>();
            patterns.extend(more);
            if patterns.iter().map(String::len).sum::<usize>() > FORMER_BYTES_MAX {
                patterns = vec![ALL.into()];
            }
            former = Some(FormerTopics { patterns, until: end });
        }
        self.topics = Some(TopicsRecord { now: ours.to_vec(), former });
        added
    }

    /// What it still publishes of what it has given up.
    pub fn former_topics(&self) -> Option<&FormerTopics> {
        self.topics.as_ref()?.former.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::position::Position;

    fn patterns(of: &[&str]) -> Vec<String> {
        of.iter().map(|pattern| (*pattern).to_owned()).collect()
    }

    #[test]
    fn what_is_given_up_is_published_up_to_where_that_was_seen_and_then_forgotten() {
        let mut progress = Progress::before_first_start("s");
        let mut takes = |at: Option<u64>, ours: Option<&[&str]>, end: u64| {
            progress.position = at.map(|at| Position::UpTo(Lsn::new(at)));
            let _ = progress.take_topics(ours.map(patterns).as_deref(), Lsn::new(end));
            let former = progress.former_topics();
            former.map(|it| (it.patterns.join(" "), it.until.get()))
        };
        assert_eq!(takes(None, Some(&["a"]), 10), None, "it is new");
        assert_eq!(takes(Some(20), Some(&["a", "b"]), 30), None, "nothing is given up");
        assert_eq!(takes(Some(20), Some(&["b"]), 40), Some(("a".into(), 40)));
        assert_eq!(takes(Some(30), Some(&["b"]), 50), Some(("a".into(), 40)), "seen once");
        assert_eq!(takes(Some(35), Some(&["c"]), 60), Some(("a b".into(), 60)));
        assert_eq!(takes(Some(60), Some(&["c"]), 90), None, "it is done");
        assert_eq!(takes(Some(60), Some(&["*"]), 90), None);
        assert_eq!(takes(Some(70), None, 95), None, "it is no route any more");
        assert_eq!(takes(Some(80), Some(&["c"]), 99), Some(("*".into(), 99)), "it took all");
    }

    #[test]
    fn what_is_taken_anew_is_told_where_events_were_passed_over() {
        let mut progress = Progress::before_first_start("s");
        let mut added = |at: Option<u64>, ours: &[&str]| {
            progress.position = at.map(|at| Position::UpTo(Lsn::new(at)));
            progress.take_topics(Some(&patterns(ours)), Lsn::new(9))
        };
        assert_eq!(added(None, &["a"]), patterns(&[]));
        assert_eq!(added(None, &["a", "b"]), patterns(&[]), "it reads the table yet");
        assert_eq!(added(Some(1), &["b", "c"]), patterns(&["c"]));
        assert_eq!(added(Some(1), &["*"]), patterns(&["*"]));
        assert_eq!(added(Some(1), &["d"]), patterns(&[]), "it took all");
    }

    #[test]
    fn only_what_was_committed_before_is_still_published() {
        let former = FormerTopics { patterns: patterns(&["a*"]), until: Lsn::new(40) };
        assert!(former.takes("ab", Lsn::new(39)));
        assert!(!former.takes("ab", Lsn::new(40)) && !former.takes("b", Lsn::new(1)));
    }
}
