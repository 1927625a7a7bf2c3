//! What is asked of the consumer, and what is expected.

use clap::ValueEnum;

use super::messages::Keys;

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Question {
    /// One message in a transaction: a row for each against no memory
    Rows,
    /// One message in a transaction: sessions put back behind each, against left as they are
    Clearing,
    /// Batches against a loop written by hand, one message in a transaction
    Batch,
    /// Batches: a watermark against no memory
    Watermark,
    /// Batches of messages without a key: a watermark against rows
    Keyless,
    /// Batches without memory: what is fetched at once by default, against 8 MiB
    Fetch,
    /// Forty keys that waited for a service, against the same messages as they come
    Parked,
    /// Handlers that wait 5 ms, 64 at once, against what that allows
    Wait5,
    /// Handlers that wait 20 ms, 64 at once, against what that allows
    Wait20,
}

impl Question {
    pub(super) const ALL: [Question; 9] = [
        Question::Rows,
        Question::Clearing,
        Question::Batch,
        Question::Watermark,
        Question::Keyless,
        Question::Fetch,
        Question::Parked,
        Question::Wait5,
        Question::Wait20,
    ];

    /// Of the messages that they get.
    pub(super) fn keys(self) -> Keys {
        match self {
            Question::Keyless => Keys::None,
            Question::Parked => Keys::Few,
            _ => Keys::Many,
        }
    }

    /// Whether the two are to be near to one another on any machine.
    pub(super) fn is_cliff(self) -> bool {
        matches!(self, Question::Keyless | Question::Parked)
    }

    /// Of the first by the second.
    pub(super) fn floor(self) -> f64 {
        match self {
            Question::Rows
            | Question::Clearing
            | Question::Fetch
            | Question::Wait5
            | Question::Wait20 => 0.9,
            Question::Batch => 8.0,
            Question::Watermark => 0.95,
            Question::Keyless | Question::Parked => 0.5,
        }
    }
}
