//! Publishes from the outbox tables what a lost slot would have sent, or all that is there at first.
//!
//! The rows are those that the new slot's snapshot shows (`upper`) and an earlier one, which
//! delivery has passed, does not (`lower`), by (`created_at`, `id`). They go through the same
//! delivery as the stream's, and each page stores how far it got, so that a repair resumes. All of
//! them stand at one position, just before the slot's stream begins. `tables` says which tables can
//! be read so, `losses` whether rows may be gone, `witness` whether they are the tables of before, `reader` reads them in order; the order of the steps is `daemon`'s.

mod attached;
mod count;
mod filled;
mod first;
mod glance;
mod id;
mod losses;
mod page;
mod pages;
mod partition;
mod reader;
mod since;
mod sql;
mod tables;
mod undelivered;
mod witness;

#[cfg(test)]
pub(crate) use self::pages::{Found as FoundRow, Pages};
pub use self::{
    attached::{
        Found, GLANCED_MAX, any_attached_since, end_of_wal, look_into, not_sent, taken_as_sent,
        unmoved,
    },
    count::{
        Around, RowsSince, any_row, in_words, rows_around, rows_of_topics, rows_since, rows_there,
        rows_younger,
    },
    filled::{foreign, is_filled},
    first::still_there,
    glance::{Place, ROWS_MAX, Which, glance},
    losses::{accounted_for, complete},
    page::{End, Page},
    partition::Taken,
    reader::{ReadError, Reader},
    since::{Since, SlotAt},
    tables::{Table, fits},
    undelivered::is_in_tables,
    witness::{Recognised, before, recognise},
};
