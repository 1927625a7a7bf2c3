//! Rows of a repair become records, and each moves the place up to which it has come. Pure.

use super::page::{Cursor, Page, position};
use crate::{
    core::{
        charset::Charset,
        epoch,
        progress::RepairRecord,
        record::Batch,
        row::{Relation, Row, Tuple},
    },
    route::{RelationError, Router},
};

/// A row as it was read.
pub(crate) struct Found {
    /// Its `created_at`, in microseconds since the Unix epoch.
    pub(crate) moment_us: i64,
    pub(crate) id: String,
    pub(crate) size_bytes: usize,
    /// Whether it lies past the cursor; if not, it was changed since.
    pub(crate) past: bool,
    pub(crate) column_count: u16,
    /// As a tuple of the stream has them.
    pub(crate) values: Vec<u8>,
}

/// Makes pages of what is read.
#[derive(Debug)]
pub(crate) struct Pages {
    under_way: RepairRecord,
    record_bytes_max: usize,
    router: Router,
    charset: Charset,
    next_ordinal: u64,
    /// The cursor of the last row that moved it.
    reached: Option<Cursor>,
}

impl Pages {
    /// Of the rest of a repair. `router` is for repaired rows, in text form.
    pub(crate) fn new(
        under_way: &RepairRecord,
        record_bytes_max: usize,
        router: Router,
        charset: Charset,
    ) -> Self {
        let (next_ordinal, reached) = (under_way.delivered, under_way.cursor.clone());
        let under_way = under_way.clone();
        Pages { under_way, record_bytes_max, router, charset, next_ordinal, reached }
    }

    /// A table whose rows come.
    ///
    /// # Errors
    /// It does not fit.
    pub(crate) fn relation(&mut self, relation: &Relation) -> Result<(), RelationError> {
        self.router.relation(relation).map(drop)
    }

    /// An empty page.
    pub(crate) fn begin(&self) -> Page {
        Page { first: self.next_ordinal, ..Page::default() }
    }

    /// The next row of `page`. One that can't be a record is in `batch.unfit`.
    pub(crate) fn add(
        &mut self,
        relation: &Relation,
        found: Found,
        now_us: i64,
        batch: &mut Batch,
        page: &mut Page,
    ) {
        let ordinal = self.next_ordinal;
        self.next_ordinal += 1;
        let row = Row {
            position: position(&self.under_way, ordinal),
            relation,
            commit_time_us: found.moment_us.min(now_us).saturating_sub(epoch::POSTGRES_US),
            writer: None,
            tuple: Tuple {
                column_count: found.column_count,
                bytes: &found.values,
                truncated: found.size_bytes > self.record_bytes_max,
            },
            charset: &self.charset,
            size_bytes: found.size_bytes,
        };
        if let Err(refused) = self.router.route(&row, batch) {
            self.router.keep(&row, *refused, batch);
        }
        // One that was read because it was changed lies before the cursor, and does not move it.
        let own = (found.moment_us, found.id);
        let cursor = if found.past { own } else { self.reached.take().unwrap_or(own) };
        self.reached = Some(cursor.clone());
        page.cursors.push(cursor);
    }
}

impl Page {
    /// It is full, and `next` is the row behind it.
    pub(crate) fn is_followed_by(&mut self, next: Option<&Found>) {
        self.next = next.map(|found| (found.moment_us, found.id.clone()));
    }
}
