//! What event a record is of, in whichever style its headers are named: the one place that knows the styles.
//!
//! The relay writes its own headers before those of the row, so the first of these names is the relay's.

use super::Record;
use crate::core::header::{self, cloudevents};

impl<'a> Record<'a> {
    /// The event's id; `None` where it has none.
    pub fn event_id(&self) -> Option<&'a [u8]> {
        self.first_of([header::ID, cloudevents::ID]).filter(|id| !id.is_empty())
    }

    /// The event's type, where it has one that is text.
    pub fn event_type(&self) -> Option<&'a str> {
        std::str::from_utf8(self.first_of([header::TYPE, cloudevents::TYPE])?).ok()
    }

    /// The media type of the payload, where it is told.
    pub fn content_type(&self) -> Option<&'a str> {
        std::str::from_utf8(self.first_of([cloudevents::CONTENT_TYPE])?).ok()
    }

    fn first_of<const N: usize>(&self, names: [&str; N]) -> Option<&'a [u8]> {
        self.headers().find(|(name, _)| names.contains(name)).map(|(_, value)| value)
    }
}
