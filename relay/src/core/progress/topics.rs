//! Which topics a route takes, and which it took before: what it has given up, it publishes up to where that was seen.
//!
//! Another route that takes such a topic now may have passed its events over before. So none is left out between the
//! two, though some may come from both.

use serde::{Deserialize, Serialize};

use crate::core::{destination::matches, lsn::Lsn};

/// Of a route's own patterns.
pub const TOPICS_BYTES_MAX: usize = 4 << 10;

/// What a route takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopicsRecord {
    /// Patterns, by the settings.
    pub now: Vec<String>,
    /// What it took before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former: Option<FormerTopics>,
}

/// Topics that a route has given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FormerTopics {
    /// Patterns.
    pub patterns: Vec<String>,
    /// It still publishes what was committed before this.
    pub until: Lsn,
}

impl FormerTopics {
    /// Whether the route still publishes that.
    pub fn takes(&self, topic: &str, commit: Lsn) -> bool {
        commit < self.until && self.patterns.iter().any(|pattern| matches(pattern, topic))
    }
}
