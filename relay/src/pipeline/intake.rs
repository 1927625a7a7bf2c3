//! Where rows become records: skips what is delivered, routes the rest into the batch, and puts
//! releases of parked events at the end of the transaction that announced them.
//!
//! A WAL message is believed in nothing here: any role may write one. What could be an announcement
//! is noted, within bounds, for the table to answer; the rest is counted.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use uuid::Uuid;

use crate::{
    core::{
        lsn::Lsn,
        position::{Position, RowPosition},
        record::{Announced, Batch},
        row::{Relation, Row},
        streamed::{RowKey, Streamed},
    },
    dead_letter::Message,
    route::{RelationError, RelationUse, Routed, Router},
    source::intake::{Intake, IntakeError},
    state::Board,
    table_fit,
};

/// Releases that one transaction may announce; the command announces one. The leader finds what is
/// left out by this, and announces it again.
const ANNOUNCED_MAX: usize = 100;
/// Rows of a transaction whose keys wait for its end, to be noted together.
const SENT_MAX: usize = 4096;

/// Joins the source to the router.
pub struct RouteIntake {
    router: Router,
    /// Stored before this connection: the server sends a cut transaction again from its Begin.
    delivered: Position,
    relay_name: String,
    board: Board,
    /// Releases that the open transaction has announced so far, and its id.
    announced: Vec<(Uuid, u32)>,
    /// Tables of which rows were moved, by OID: each is told of once.
    moved: Vec<u32>,
    /// What tells rows that were not in the stream.
    streamed: Option<Arc<Mutex<Streamed>>>,
    /// Of the open transaction, yet to be noted there; and the start of its commit record.
    sent: Vec<RowKey>,
    commit: Lsn,
}

impl RouteIntake {
    /// Rows that `delivered` covers are skipped. Releases of other relays than `relay_name` are
    /// not ours. `board` shows how many rows were moved.
    pub fn new(router: Router, delivered: Position, relay_name: &str, board: Board) -> Self {
        RouteIntake {
            router,
            delivered,
            relay_name: relay_name.to_owned(),
            board,
            announced: Vec::new(),
            moved: Vec::new(),
            streamed: None,
            sent: Vec::new(),
            commit: Lsn::ZERO,
        }
    }

    /// The same, noting there which rows have come.
    #[must_use]
    pub fn noting(mut self, streamed: Arc<Mutex<Streamed>>) -> Self {
        self.streamed = Some(streamed);
        self
    }

    /// A row that was inserted has become the batch's last record.
    fn note(&mut self, row: &Row<'_>, batch: &Batch) {
        if self.streamed.is_none() {
            return;
        }
        let last = batch.len().checked_sub(1).and_then(|last| batch.get(last));
        if let Some(id) = last.as_ref().and_then(|record| record.event_id()) {
            self.note_id(row, id);
        }
    }

    /// The stream has sent this row, whichever relay it is for.
    fn note_id(&mut self, row: &Row<'_>, id: &[u8]) {
        let xid = row.writer.filter(|_| self.router.is_stamped(row)).unwrap_or_default();
        self.commit = row.position.commit;
        self.sent.push(RowKey::new(id, xid));
        if self.sent.len() >= SENT_MAX {
            self.note_sent();
        }
    }

    fn note_sent(&mut self) {
        if let Some(streamed) = self.streamed.as_ref().filter(|_| !self.sent.is_empty()) {
            let mut streamed = streamed.lock().unwrap_or_else(PoisonError::into_inner);
            streamed.sent(self.commit, &self.sent);
        }
        self.sent.clear();
    }

    /// It was published as what it was at first, or will be.
    #[cold]
    fn moved(&mut self, row: &Row<'_>) {
        self.board.moved();
        if self.moved.contains(&row.relation.id) {
            return;
        }
        self.moved.push(row.relation.id);
        tracing::warn!(
            table = %format_args!("{}.{}", row.relation.schema, row.relation.table),
            position = %row.position,
            "rows whose column xid names another transaction are not published: they were moved \
             between partitions or copied, and count from their first insert; to publish a copy as \
             an event of its own, leave xid (and id) to the columns' defaults"
        );
    }
}

/// A stream that ends inside a transaction may be continued behind the rows that it has sent of that.
impl Drop for RouteIntake {
    fn drop(&mut self) {
        self.note_sent();
    }
}

impl Intake for RouteIntake {
    fn relation(&mut self, relation: &Relation) -> Result<bool, IntakeError> {
        match self.router.relation(relation) {
            Ok(found) => Ok(found == RelationUse::Mapped),
            Err(RelationError::NeedsText { table, column }) => {
                Err(IntakeError::NeedsText { table, column })
            }
            Err(RelationError::DoesNotFit(misfits)) => {
                Err(table_fit::written_otherwise(&misfits, relation).into())
            }
        }
    }

    fn row(&mut self, row: &Row<'_>, batch: &mut Batch) {
        if self.delivered.covers(row.position) {
            return;
        }
        match self.router.route(row, batch) {
            Ok(Routed::Added) => {}
            Ok(Routed::Ignored) => return,
            Ok(Routed::Moved) => {
                self.moved(row);
                batch.pass(Position::Row(row.position), row.landmark());
                return;
            }
            Ok(Routed::Elsewhere) => {
                if let Some(id) = self.streamed.as_ref().and_then(|_| self.router.event_id(row)) {
                    self.note_id(row, &id);
                }
                batch.pass(Position::Row(row.position), row.landmark());
                return;
            }
            Err(refused) => self.router.keep(row, *refused, batch),
        }
        self.note(row, batch);
        batch.pass(Position::Row(row.position), row.landmark());
        if let Some(xid) = row.writer {
            batch.see(row.position.commit, xid, self.router.can_find(row));
        }
        batch.newest_commit_us = Some(row.commit_time_us);
        if batch.first_received.is_none() {
            batch.first_received = Some(Instant::now());
        }
    }

    fn message(&mut self, position: RowPosition, xid: u32, content: &[u8]) {
        // Its place is the end of its transaction: as long as that is not delivered whole, neither
        // is the release, whatever rows of it are.
        let end = RowPosition { ordinal: u64::MAX, ..position };
        if self.delivered.covers(end) {
            return;
        }
        let Ok(Message { relay, release }) = Message::decode(content) else {
            return self.ignored("malformed");
        };
        if relay != self.relay_name {
            return; // Another relay's, in the same database.
        }
        if self.announced.len() >= ANNOUNCED_MAX {
            return self.ignored("too_many");
        }
        self.announced.push((release, xid));
    }

    fn ignored(&mut self, why: &'static str) {
        self.board.message_ignored(why);
    }

    fn commit(&mut self, end: RowPosition, batch: &mut Batch) {
        self.note_sent();
        if self.announced.is_empty() {
            return;
        }
        // The message takes an ordinal itself. Where nothing but messages is in the transaction,
        // the released events have it to themselves, and count from 0.
        let alone = end.ordinal == self.announced.len() as u64;
        let first = RowPosition { ordinal: if alone { 0 } else { end.ordinal }, ..end };
        let announced = self.announced.drain(..);
        let after = batch.len();
        let announced =
            announced.map(|(id, xid)| Announced { id: id.to_string(), xid, first, after });
        batch.announced.extend(announced);
    }

    fn reach(&mut self, end: Lsn) -> Result<(), IntakeError> {
        let Some(streamed) = &self.streamed else { return Ok(()) };
        let mut streamed = streamed.lock().unwrap_or_else(PoisonError::into_inner);
        streamed.reach(end).map_err(IntakeError::NotSent)
    }
}
