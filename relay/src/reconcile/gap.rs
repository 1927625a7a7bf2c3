//! Whether the stream has all rows.

use super::facts::Facts;
use crate::core::{position::Position, progress::Progress, published::Since};

/// Why rows may be missing from the stream that continues from stored progress: written while their
/// table was not published as it had been. What the stream does have can't say so.
pub(super) fn gap(facts: &Facts<'_>, progress: &Progress) -> Option<String> {
    let inside = matches!(progress.position, Some(Position::Row(_)));
    if let Some(why) = &progress.gap {
        // It was seen once, and may be put right by now.
        return Some(format!("it was seen that {why}"));
    }
    if let (Some(now), Some(earlier)) = (facts.published, &progress.published)
        && let Since::Broken(why) = now.since(earlier, inside)
    {
        return Some(why);
    }
    if facts.unpublished_once {
        return Some("the publication was missing when they were written".to_owned());
    }
    let attached = |name| format!("partition {name} was attached with rows in it");
    facts.attached.map(attached)
}
