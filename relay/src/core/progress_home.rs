//! Where the relay's progress is, as a person is told.

/// In the words of the broker that keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgressHome {
    /// Such as `the progress topic`.
    pub name: String,
    /// How others are kept from writing there.
    pub guard: String,
    /// How all progress is removed, with the command.
    pub empty: String,
    /// Not in the database: it stays when that is recreated.
    pub is_outside: bool,
    /// Events are there too: what deletes progress may have deleted them.
    pub has_events: bool,
}
