//! The stream as the server sends it, with faults: `source::stream` without its socket.

use bytes::BytesMut;
use futures_util::FutureExt;
use rand::Rng;
use tokio::sync::{mpsc, watch};

use super::{
    server,
    start::Ended,
    world::{Mutant, Shared, World, look, turns},
};
use crate::{
    core::{
        leaves::Leaves,
        look::Before,
        lsn::Lsn,
        position::{Confirmable, Position},
        progress::SnapshotRecord,
        published::Published,
    },
    pipeline::{Seen, intake::RouteIntake},
    source::{decoder::Decoder, pgoutput::encode},
};

/// A connection that streams from `start`.
pub(super) struct Source<'w> {
    pub(super) world: &'w Shared,
    pub(super) session: u64,
    pub(super) start: Lsn,
    /// What the look before has seen.
    pub(super) before: Before,
    /// A look is half done: its snapshot is taken, and the end of the WAL is yet to be asked for.
    pub(super) looked: Option<(String, Published)>,
}

impl Source<'_> {
    pub(super) async fn run(
        mut self,
        mut decoder: Decoder<RouteIntake>,
        mut confirmed: watch::Receiver<Confirmable>,
        seen: mpsc::Sender<Seen>,
    ) -> Result<(), Ended> {
        let next = look(self.world).server.first_after(self.start);
        let mut sent = Sent { transaction: next, message: 0, table: None };
        let mut ended = Ok(());
        let (mut incoming, mut unread) = (Vec::new(), BytesMut::new());
        loop {
            turns(self.world).await;
            {
                let world = &mut *look(self.world);
                world.leads(self.session)?;
                if world.fails_once_in(200) {
                    return Err("the connection broke".to_owned().into());
                }
                if incoming.is_empty() {
                    sent.more(world, &mut incoming)?;
                }
                if unread.len() < 500 {
                    // Reads end anywhere.
                    let bytes = world.random.random_range(0..=incoming.len());
                    unread.extend(incoming.drain(..bytes));
                }
                if let Err(why) = self.look(world, &seen) {
                    ended = Err(Ended::Retry(why));
                    break;
                }
            }
            if let Err(error) = decoder.decode(&mut unread) {
                look(self.world).violated(format!("the stream can't be decoded: {error}"));
            }
            if decoder.giver.until_sink_is_free().now_or_never() == Some(false) {
                return Ok(());
            }
            let batch = &decoder.giver.filling;
            let idle = look(self.world).once_in(4);
            let received = batch.position;
            if decoder.giver.sink_is_free()
                && (!batch.is_empty()
                    || !batch.announced.is_empty()
                    || (batch.position.is_some() && idle))
            {
                decoder.giver.give();
            }
            let world = &mut *look(self.world);
            if world.once_in(4) {
                let mut lsn = confirmed.borrow_and_update().lsn();
                if decoder.recognition.is_pending() {
                    lsn = world.server.confirmed;
                }
                if world.is(Mutant::ConfirmsReceived) {
                    lsn = received.map_or(lsn, Position::resume_lsn);
                }
                world.confirmed(lsn);
            }
            if world.fails_once_in(400) {
                break;
            }
        }
        // An orderly stop.
        let pending = decoder.recognition.is_pending();
        drop(decoder);
        while confirmed.changed().await.is_ok() {}
        let world = &mut *look(self.world);
        world.leads(self.session)?;
        if !pending {
            world.confirmed(confirmed.borrow().lsn());
        }
        ended
    }

    /// What `daemon::watch` does beside the stream: now and then a look at the publication, in two statements, and one
    /// at the tables.
    fn look(&mut self, world: &mut World, seen: &mpsc::Sender<Seen>) -> Result<(), String> {
        if world.once_in(60)
            && let Some(halt) = world.catalog.inspect().unpublished
        {
            return Err(halt.reason);
        }
        if !world.once_in(5) {
            return Ok(());
        }
        let Some((snapshot, mut published)) = self.looked.take() else {
            self.looked = Some((world.server.snapshot(), world.catalog.published()));
            return Ok(());
        };
        if !world.is(Mutant::LooksPast) {
            self.before.compare(&published)?;
        }
        let snapshot = SnapshotRecord {
            lsn: world.server.end(),
            taken_ms: world.server.now_ms(),
            snapshot,
            leaves: Leaves::default(),
        };
        let mut departed = Vec::new();
        self.before.pass(&snapshot, &mut published, &mut departed);
        let _ = seen.try_send(Seen { snapshot, published, departed });
        Ok(())
    }
}

/// How far the server has come in sending.
struct Sent {
    transaction: usize,
    message: usize,
    /// The table that was announced last.
    table: Option<u32>,
}

impl Sent {
    /// The next message, or a keepalive. One in the middle of a transaction names the end of the
    /// WAL, which says nothing of what is still to be sent.
    ///
    /// # Errors
    /// The server can't decode what comes next.
    fn more(&mut self, world: &mut World, out: &mut Vec<u8>) -> Result<(), Ended> {
        let next = world.server.wal.get(self.transaction);
        let until = match next {
            Some(next) if self.message == 0 => next.commit,
            _ => world.server.end(),
        };
        let is_idle = next.is_none();
        if world.once_in(if is_idle { 3 } else { 20 }) {
            // No wish for a reply.
            server::frame(b'k', until, &[0], out);
            return Ok(());
        }
        let Some(transaction) = world.server.wal.get(self.transaction) else { return Ok(()) };
        if transaction.is_end {
            return Err(Ended::Unpublished);
        }
        if self.message == 1 && self.table.replace(transaction.table) != Some(transaction.table) {
            let relation = encode::relation(&server::relation(transaction.table));
            server::frame(b'w', Lsn::ZERO, &relation, out);
        }
        let message = &transaction.messages[self.message];
        server::frame(b'w', transaction.commit, message, out);
        self.message += 1;
        if self.message == transaction.messages.len() {
            self.message = 0;
            self.transaction += 1;
        }
        Ok(())
    }
}
