//! Why the main path ends.

use crate::{core::position::RowPosition, dead_letter::DeadLetterError, sink::SinkError};

/// Why the pipeline ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The sink failed; the outcome of the delivery under way is uncertain.
    #[error("delivery failed")]
    Sink(#[source] SinkError),
    /// What must be parked could not be; nothing that covers it is stored.
    #[error("parking events failed")]
    DeadLetters(#[from] DeadLetterError),
    /// A row does not follow the protocol; the event is not to blame. Connect again.
    #[error("the row at {position} can't be read: {error}")]
    Malformed {
        /// Its place.
        position: RowPosition,
        /// What is wrong.
        error: String,
    },
}
