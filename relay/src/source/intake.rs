//! Where the source hands what it has read: the pipeline's side of the seam.

use crate::core::{
    lsn::Lsn,
    position::RowPosition,
    record::Batch,
    row::{Relation, Row},
    streamed::NotSent,
};

/// Takes what the stream carries, in order, and writes records into the batch that is being
/// filled. Synchronous on purpose: the source's task owns the socket and never waits for others.
pub trait Intake: Send {
    /// A table was announced or has changed its shape. Whether its rows are wanted.
    ///
    /// # Errors
    /// The table no longer fits; the stream ends with this error.
    fn relation(&mut self, relation: &Relation) -> Result<bool, IntakeError>;

    /// A row was inserted. What can't be a record is noted in `batch.unfit`.
    fn row(&mut self, row: &Row<'_>, batch: &mut Batch);

    /// A transactional WAL message with the prefix `outbox`, in the transaction `xid`. Any role may
    /// write one: nothing in it is to be believed.
    fn message(&mut self, position: RowPosition, xid: u32, content: &[u8]);

    /// A WAL message with the prefix `outbox` that announces nothing, and why: a fixed word.
    fn ignored(&mut self, why: &'static str);

    /// The open transaction is complete. `end` is the place behind all that it carried.
    fn commit(&mut self, end: RowPosition, batch: &mut Batch);

    /// The stream has come to `end`, outside of a transaction.
    ///
    /// # Errors
    /// Something should have been in the stream by now; it ends with this error, at `end`.
    fn reach(&mut self, end: Lsn) -> Result<(), IntakeError>;
}

/// Why the stream can't continue, for the pipeline to sort.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    /// The table's shape changed to one that needs the text format: reconnect, asking for it.
    #[error("{table} has a column {column} whose type needs the text format")]
    NeedsText {
        /// Qualified name.
        table: String,
        /// The mapped column.
        column: String,
    },
    /// A partition that was attached has rows that were inserted before: reconcile.
    #[error("rows of a partition that was attached were not in the stream ({} of them)", .0.rows)]
    NotSent(NotSent),
    /// A mapped column is gone, or has a type that can't serve its purpose.
    #[error("{what}; {remedy}")]
    DoesNotFit {
        /// What is wrong, with table and column.
        what: String,
        /// The SQL or setting that corrects it.
        remedy: String,
    },
}
