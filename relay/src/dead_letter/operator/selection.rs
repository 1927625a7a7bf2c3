//! Which parked events a command is about: by what is typed, and as the database compares them.

use std::fmt;

use crate::dead_letter::headers::Repertoire;

/// Parked events, by what all of the given says; all where nothing is given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// These alone, by their numbers.
    pub ids: Vec<i64>,
    /// Of this topic only.
    pub topic: Option<String>,
    /// Of this key only.
    pub key: Option<String>,
    /// Of this reason only.
    pub reason: Option<String>,
}

/// A condition on `outbox.dead_letters`, with the parameters 2 to 5 of [`Selection::parameters`].
pub(super) const CHOSEN: &str = "(cardinality($2::int8[]) = 0 or id = any($2)) \
    and ($3::text is null or topic = $3) and ($4::bytea is null or key = $4) \
    and ($5::text is null or reason = $5)";

/// As the database compares them.
pub(super) struct Parameters {
    pub(super) ids: Vec<i64>,
    pub(super) topic: Option<String>,
    pub(super) key: Option<Vec<u8>>,
    pub(super) reason: Option<String>,
}

impl Selection {
    pub(super) fn parameters(&self, repertoire: Repertoire) -> Parameters {
        let text = |text: &Option<String>| text.as_ref().map(|text| repertoire.sanitised(text));
        Parameters {
            ids: self.ids.clone(),
            topic: text(&self.topic),
            key: self.key.clone().map(String::into_bytes),
            reason: text(&self.reason),
        }
    }
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if !self.ids.is_empty() {
            let ids: Vec<String> = self.ids.iter().map(ToString::to_string).collect();
            parts.push(format!("the numbers {}", ids.join(", ")));
        }
        let named = [("topic", &self.topic), ("key", &self.key), ("reason", &self.reason)];
        parts.extend(
            named.iter().filter_map(|(name, value)| {
                value.as_ref().map(|value| format!("the {name} {value}"))
            }),
        );
        f.write_str(&parts.join(" and "))
    }
}
