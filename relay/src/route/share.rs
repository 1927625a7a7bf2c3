//! Which topics are this relay's, where several share the tables.

use crate::core::destination::matches;

/// Whose events of a topic are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// This relay's.
    Ours,
    /// Another's.
    Others,
    /// No relay's, and this one parks them.
    NoRoutes,
}

/// This relay's share of the topics. Of a topic that no relay takes, one of them is told to take care.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Patterns of its topics; `None`: all. A `*` stands for any number of characters.
    pub ours: Option<Vec<String>>,
    /// Patterns of the other relays' topics; `None`: they take all.
    pub others: Option<Vec<String>>,
    /// Whether this relay takes care of what is no relay's, and of what has no topic.
    pub takes_the_rest: bool,
}

impl Share {
    /// `None`: the topic can't be read.
    pub(super) fn of(&self, topic: Option<&str>) -> Whose {
        let Some(ours) = &self.ours else { return Whose::Ours };
        let any = |patterns: &[String]| {
            topic.is_some_and(|topic| patterns.iter().any(|pattern| matches(pattern, topic)))
        };
        match (any(ours), &self.others) {
            (true, _) => Whose::Ours,
            (false, Some(others)) if self.takes_the_rest && !any(others) => match topic {
                Some(_) => Whose::NoRoutes,
                None => Whose::Ours, // It says why it can't be read.
            },
            (false, _) => Whose::Others,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(of: &[&str]) -> Option<Vec<String>> {
        Some(of.iter().map(|pattern| (*pattern).to_owned()).collect())
    }

    #[test]
    fn each_topic_is_some_relays_and_what_is_none_is_taken_care_of_by_one() {
        let [orders, audit] = [patterns(&["orders.*", "payments"]), patterns(&["*.audit"])];
        let first = Share { ours: orders.clone(), others: audit.clone(), takes_the_rest: true };
        let second = Share { ours: audit, others: orders, takes_the_rest: false };
        for (topic, expected) in [
            (Some("orders.eu"), [Whose::Ours, Whose::Others]),
            (Some("payments"), [Whose::Ours, Whose::Others]),
            (Some("users.audit"), [Whose::Others, Whose::Ours]),
            // Both want it: it is published twice.
            (Some("orders.audit"), [Whose::Ours, Whose::Ours]),
            (Some("payments.eu"), [Whose::NoRoutes, Whose::Others]),
            (None, [Whose::Ours, Whose::Others]),
        ] {
            assert_eq!([first.of(topic), second.of(topic)], expected, "{topic:?}");
        }
    }

    #[test]
    fn what_has_no_topic_is_left_to_a_relay_that_takes_all() {
        let all = Share { ours: None, others: patterns(&["orders"]), takes_the_rest: false };
        let some = Share { ours: patterns(&["orders"]), others: None, takes_the_rest: true };
        assert_eq!([all.of(None), some.of(None)], [Whose::Ours, Whose::Others]);
        assert_eq!([all.of(Some("x")), some.of(Some("x"))], [Whose::Ours, Whose::Others]);
    }
}
