//! The days that the inbox can tell about: one partition of `inbox.messages` each.

use std::sync::{Arc, Mutex, PoisonError};

use tokio_postgres::Row;

use crate::{
    error::InboxError,
    fault::{Point, point},
    message_id::{Day, MessageId},
    session::{Isolation, Sessions},
    transaction::Open,
};

pub(crate) const LOOKING: &str = "looking at inbox.messages' partitions";

/// The days are null where there is no partition. Last: whether one past retention is left.
const WINDOW: &str = "select w.oldest, w.newest, coalesce(w.oldest operator(pg_catalog.<) \
        ((pg_catalog.statement_timestamp() at time zone 'utc')::pg_catalog.date \
            operator(pg_catalog.-) (select retention_days from inbox.settings)), false) \
     from inbox.";

/// Days that the inbox can tell about, both included; none where `oldest > newest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    oldest: Day,
    newest: Day,
    /// Whether its first day is past retention.
    overdue: bool,
}

impl Window {
    pub(crate) fn has(self, id: &MessageId) -> bool {
        (self.oldest..=self.newest).contains(&id.day())
    }

    /// Whether a partition past retention was left, because others were at work in the table.
    pub(crate) fn overdue(self) -> bool {
        self.overdue
    }
}

/// The window as it was when somebody last looked.
pub(crate) struct Known(Mutex<Window>);

impl Known {
    pub(crate) fn of(window: Window) -> Self {
        Known(Mutex::new(window))
    }

    pub(crate) fn get(&self) -> Window {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn learn(&self, now: Window) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }
}

/// Makes the partitions of the days ahead and drops those past retention.
pub(crate) async fn maintain(sessions: &Arc<Sessions>) -> Result<Window, InboxError> {
    point(Point::Maintaining);
    // It waits for others, and must see what they have made.
    let sessions = &Arc::new(sessions.with_isolation(Isolation::ReadCommitted));
    let (open, rows) = Open::begin(sessions, LOOKING, &window_by("maintain()"), &[]).await?;
    open.commit().await?;
    point(Point::Maintained);
    read(&rows)
}

/// The statement that looks at them.
pub(crate) fn look() -> String {
    window_by("window()")
}

fn window_by(function: &str) -> String {
    format!("{WINDOW}{function} as w")
}

/// Its answer.
pub(crate) fn read(rows: &[Row]) -> Result<Window, InboxError> {
    let refused = |error| InboxError::of(LOOKING, error);
    let row = rows.first().expect("a function with out parameters returns one row");
    let (oldest, newest): (Option<Day>, Option<Day>) =
        (row.try_get(0).map_err(refused)?, row.try_get(1).map_err(refused)?);
    Ok(Window {
        oldest: oldest.unwrap_or(Day(i32::MAX)),
        newest: newest.unwrap_or(Day(i32::MIN)),
        overdue: row.try_get(2).map_err(refused)?,
    })
}

/// The partition was dropped after the window was last looked at.
pub(crate) fn no_partition(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_some_and(|error| {
        *error.code() == tokio_postgres::error::SqlState::CHECK_VIOLATION
            && error.schema() == Some("inbox")
    })
}
