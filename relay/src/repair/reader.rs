//! Reads a repair's rows in order, as many at a time as a batch takes.
//!
//! One statement and one session a table: the server sorts once, and holds the rest back while a
//! page is being delivered, so memory is a batch and a row of each table, whatever there is to read.

use std::{
    pin::Pin,
    time::{Instant, SystemTime},
};

use futures_util::TryStreamExt as _;
use tokio_postgres::{SimpleQueryMessage, SimpleQueryStream};

use super::{
    page::Page,
    pages::{Found, Pages},
    tables::{self, Table},
};
use crate::{
    core::{
        charset::{self, Charset},
        halt::Halt,
        progress::RepairRecord,
        record::Batch,
    },
    postgres::sql::SqlSession,
    route::{RelationError, Router},
    table_fit,
};

/// Why rows can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The session broke or the server can't do it now: start again from progress.
    #[error("reading the outbox tables")]
    Database(#[from] tokio_postgres::Error),
    /// The server's answer is not what was asked for.
    #[error("reading the outbox tables: {0} is unreadable")]
    Unreadable(&'static str),
    /// A table does not fit any more.
    #[error(transparent)]
    Unfit(#[from] Halt),
}

/// The rows of all tables, in one order.
pub struct Reader {
    feeds: Vec<Feed>,
    pages: Pages,
}

impl Reader {
    /// Begins to read, a session for each table. `router` is for repaired rows, in text form; `charset`
    /// is the database's.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn open(
        tables: Vec<(Table, SqlSession)>,
        under_way: RepairRecord,
        record_bytes_max: usize,
        router: Router,
        charset: Charset,
    ) -> Result<Self, ReadError> {
        let among = tables.len();
        let mut pages = Pages::new(&under_way, record_bytes_max, router, charset);
        let mut feeds = Vec::with_capacity(among);
        for (number, (table, session)) in (1..).zip(tables) {
            let table = table.numbered(number);
            pages.relation(&table.relation).map_err(unfit)?;
            let raw = has_another_encoding(&session).await?;
            let select = table.select(&under_way, record_bytes_max, among, raw);
            let rows = Box::pin(session.client().simple_query_raw(&select).await?);
            feeds.push(Feed { rows, table, raw, next: None, ended: false, _session: session });
        }
        Ok(Reader { feeds, pages })
    }

    /// Waits until every table's statement has its snapshot: what is deleted from then on is read.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn begun(&mut self) -> Result<(), ReadError> {
        self.earliest().await.map(drop)
    }

    /// Reads rows into the empty `batch` until it is full or none is left. What can't be a record is
    /// in `batch.unfit`. Not cancel safe: dropped half-way, the reader is of no use.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn page(&mut self, batch: &mut Batch) -> Result<Page, ReadError> {
        let mut page = self.pages.begin();
        // What is another route's fills no batch.
        while !batch.is_full() && page.rows() < batch.limits().records_max {
            let Some(index) = self.earliest().await? else { break };
            let Some(feed) = self.feeds.get_mut(index) else { break };
            let Some(found) = feed.next.take() else { break };
            let now_us = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_micros();
            let now_us = i64::try_from(now_us).unwrap_or(i64::MAX);
            self.pages.add(&feed.table.relation, found, now_us, batch, &mut page);
            batch.first_received.get_or_insert_with(Instant::now);
        }
        let next = self.earliest().await?.and_then(|index| self.feeds.get(index)?.next.as_ref());
        page.is_followed_by(next);
        Ok(page)
    }

    /// Which feed has the next row of all; of several with one moment the first.
    async fn earliest(&mut self) -> Result<Option<usize>, ReadError> {
        let mut earliest: Option<(i64, usize)> = None;
        for (index, feed) in self.feeds.iter_mut().enumerate() {
            let Some(moment_us) = feed.peek().await? else { continue };
            if earliest.is_none_or(|(before, _)| moment_us < before) {
                earliest = Some((moment_us, index));
            }
        }
        Ok(earliest.map(|(_, index)| index))
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("pages", &self.pages).finish_non_exhaustive()
    }
}

fn unfit(error: RelationError) -> ReadError {
    match error {
        RelationError::DoesNotFit(misfits) => ReadError::Unfit(table_fit::misfits(&misfits)),
        RelationError::NeedsText { .. } => ReadError::Unreadable("a column in text form"),
    }
}

/// The rows of one table.
struct Feed {
    rows: Pin<Box<SimpleQueryStream>>,
    table: Table,
    /// Texts come in hexadecimal digits.
    raw: bool,
    next: Option<Found>,
    ended: bool,
    /// Lives as long as its statement.
    _session: SqlSession,
}

/// Columns of the statement before the mapped ones.
const BEFORE: usize = 4;

impl Feed {
    /// The next row's moment; `None` at the end.
    async fn peek(&mut self) -> Result<Option<i64>, ReadError> {
        while self.next.is_none() && !self.ended {
            match self.rows.try_next().await? {
                Some(SimpleQueryMessage::Row(row)) => {
                    let text = |index, what| row.try_get(index)?.ok_or(ReadError::Unreadable(what));
                    let mut values = Vec::new();
                    for (n, column) in (BEFORE..row.len()).zip(&self.table.relation.columns) {
                        let raw = self.raw && tables::is_text(column);
                        put(&mut values, row.try_get(n)?, raw)?;
                    }
                    let columns = row.len().saturating_sub(BEFORE);
                    self.next = Some(Found {
                        moment_us: number(text(0, "a row's created_at")?, "a row's created_at")?,
                        id: text(1, "a row's id")?.to_owned(),
                        size_bytes: number(text(2, "a row's size")?, "a row's size")?,
                        past: text(3, "a row's place")? == "t",
                        column_count: u16::try_from(columns)
                            .map_err(|_| ReadError::Unreadable("the number of columns"))?,
                        values,
                    });
                }
                Some(_) => {} // The description before them, the count after them.
                None => self.ended = true,
            }
        }
        Ok(self.next.as_ref().map(|found| found.moment_us))
    }
}

fn number<N: std::str::FromStr>(text: &str, what: &'static str) -> Result<N, ReadError> {
    text.parse().map_err(|_| ReadError::Unreadable(what))
}

/// As `TupleData` of the replication protocol has a value in text form.
pub(super) fn put(values: &mut Vec<u8>, value: Option<&str>, raw: bool) -> Result<(), ReadError> {
    const UNREADABLE: ReadError = ReadError::Unreadable("a value");
    let Some(text) = value else {
        values.push(b'n');
        return Ok(());
    };
    let bytes = if raw { text.len() / 2 } else { text.len() };
    let length = i32::try_from(bytes).map_err(|_| UNREADABLE)?;
    values.push(b't');
    values.extend_from_slice(&length.to_be_bytes());
    if !raw {
        values.extend_from_slice(text.as_bytes());
        return Ok(());
    }
    values.extend_from_slice(&charset::bytes(text).ok_or(UNREADABLE)?);
    Ok(())
}

/// Whether texts may hold what a session in UTF-8 would be refused.
async fn has_another_encoding(session: &SqlSession) -> Result<bool, tokio_postgres::Error> {
    let sql = "select pg_catalog.current_setting('server_encoding') <> 'UTF8'";
    session.client().query_one(sql, &[]).await?.try_get(0)
}
