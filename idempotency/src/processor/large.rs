//! Large messages take turns where they are stored or read back: each takes several times its size on
//! its way through the driver. They are read back in pieces: the driver keeps what it has read of a row for as long as
//! the connection is in use, which is until the handler has returned, so read as a whole a message would be in memory
//! twice for so long.
//!
//! A turn is taken before a connection, since whoever has one must not wait for it, and never lasts
//! through a handler, which may take any time.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{Mutex, MutexGuard, Semaphore, SemaphorePermit};
use tokio_postgres::types::ToSql;

use super::{store::Shelf, taken::Taken};
use crate::{error::InboxError, heap, message::LARGE};

/// Large parked messages that are handled at once: no runner's setting counts them.
const PARKED_AT_ONCE: usize = 2;
/// At most so many pieces: to reach one, the server unpacks all of a compressed payload before it.
const PIECES_MAX: usize = 16;

/// Whose turn it is.
#[derive(Clone)]
pub(super) struct Large {
    turn: Arc<Mutex<()>>,
    parked: Arc<Semaphore>,
}

impl Default for Large {
    fn default() -> Self {
        Large { turn: Arc::default(), parked: Arc::new(Semaphore::new(PARKED_AT_ONCE)) }
    }
}

impl Large {
    pub(super) async fn turn(&self) -> MutexGuard<'_, ()> {
        heap::large_blocks_apart();
        self.turn.lock().await
    }

    /// If no one holds it now, it is kept for whoever needs it next.
    pub(super) fn try_turn(&self) -> Option<MutexGuard<'_, ()>> {
        self.turn.try_lock().ok()
    }

    /// To handle a parked one, if not as many are handled as may be.
    pub(super) fn try_parked(&self) -> Option<SemaphorePermit<'_>> {
        self.parked.try_acquire().ok()
    }
}

impl Shelf {
    /// Reads what [`Shelf::take`] has left out, and takes the messages again. Returns whether they are there still:
    /// between the two someone may have deleted or changed them by hand.
    pub(super) async fn read_large(self, taken: &mut Taken) -> Result<bool, InboxError> {
        const DOING: &str = "reading a large parked message";
        // Its lane is locked, the row is not: a consumer's role may not. Its `xmin` says that all are of one payload.
        const PIECE: &str = "select pg_catalog.substring(p.payload, $4, $5), p.xmin::pg_catalog.text \
            from inbox.parked as p \
            where p.consumer_id operator(pg_catalog.=) $1 and p.lane operator(pg_catalog.=) $2 \
                and p.seq operator(pg_catalog.=) $3";
        let Taken { open, lane, heads, more, .. } = taken;
        if heads.iter().all(|head| head.unread.is_none()) {
            return Ok(true);
        }
        heap::large_blocks_apart();
        // What was taken is there again, and can be read.
        open.back_to_savepoint().await?;
        for head in &mut *heads {
            let Some(bytes) = head.unread.take() else { continue };
            let piece = LARGE.max(bytes.div_ceil(PIECES_MAX));
            let (mut payload, mut version) = (Vec::with_capacity(bytes), None::<String>);
            while payload.len() < bytes {
                let from = number(payload.len() + 1);
                let params: [&(dyn ToSql + Sync); 5] =
                    [&self.consumer_id, lane, &head.seq, &from, &number(piece)];
                let rows = open.query(DOING, PIECE, &params).await?;
                let Some(row) = rows.first() else { return Ok(false) };
                let read = |error| InboxError::of(DOING, error);
                let part: Option<&[u8]> = row.try_get(0).map_err(read)?;
                let xmin: String = row.try_get(1).map_err(read)?;
                match part {
                    Some(part)
                        if !part.is_empty() && version.as_ref().is_none_or(|of| *of == xmin) =>
                    {
                        payload.extend_from_slice(part);
                        version = Some(xmin);
                    }
                    _ => return Ok(false),
                }
            }
            head.message.payload = Some(Bytes::from(payload));
        }
        *more = self.advance(open, *lane, heads).await?;
        Ok(true)
    }
}

/// A value of PostgreSQL has at most a gibibyte.
fn number(bytes: usize) -> i32 {
    i32::try_from(bytes).unwrap_or(i32::MAX)
}
