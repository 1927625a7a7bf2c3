//! The stream as the server sends it, with faults: `source::stream` without its socket.

use bytes::BytesMut;
use futures_util::FutureExt;
use rand::Rng;
use tokio::sync::{mpsc, watch};

use super::{
    server,
    world::{Mutant, Shared, World, look, turns},
};
use crate::{
    core::{
        leaves::Leaves,
        lsn::Lsn,
        position::{Confirmable, Position},
        progress::SnapshotRecord,
        published::Published,
    },
    pipeline::{Seen, intake::RouteIntake},
    source::decoder::Decoder,
};

/// A connection that streams from `start`.
pub(super) struct Source<'w> {
    pub(super) world: &'w Shared,
    pub(super) session: u64,
    pub(super) start: Lsn,
}

impl Source<'_> {
    pub(super) async fn run(
        self,
        mut decoder: Decoder<RouteIntake>,
        mut confirmed: watch::Receiver<Confirmable>,
        seen: mpsc::Sender<Seen>,
    ) -> Result<(), String> {
        let next = look(self.world).server.first_after(self.start);
        let mut sent = Sent { transaction: next, message: 0, knows_table: false };
        let (mut incoming, mut unread) = (Vec::new(), BytesMut::new());
        loop {
            turns(self.world).await;
            {
                let world = &mut *look(self.world);
                world.leads(self.session)?;
                if world.fails_once_in(200) {
                    return Err("the connection broke".into());
                }
                if incoming.is_empty() {
                    sent.more(world, &mut incoming);
                }
                if unread.len() < 500 {
                    // Reads end anywhere.
                    let bytes = world.random.random_range(0..=incoming.len());
                    unread.extend(incoming.drain(..bytes));
                }
                if world.once_in(10) {
                    let lsn = world.server.end();
                    let taken_ms = i64::try_from(world.server.wal.len()).unwrap() * 1000;
                    let snapshot = SnapshotRecord {
                        lsn,
                        taken_ms,
                        snapshot: String::new(),
                        leaves: Leaves::default(),
                    };
                    let published = Published::default();
                    let _ = seen.try_send(Seen { snapshot, published, departed: Vec::new() });
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
        Ok(())
    }
}

/// How far the server has come in sending.
struct Sent {
    transaction: usize,
    message: usize,
    knows_table: bool,
}

impl Sent {
    /// The next message, or a keepalive. One in the middle of a transaction names the end of the
    /// WAL, which says nothing of what is still to be sent.
    fn more(&mut self, world: &mut World, out: &mut Vec<u8>) {
        let next = world.server.wal.get(self.transaction);
        let until = match next {
            Some(next) if self.message == 0 => next.commit,
            _ => world.server.end(),
        };
        let is_idle = next.is_none();
        if world.once_in(if is_idle { 3 } else { 20 }) {
            // No wish for a reply.
            server::frame(b'k', until, &[0], out);
            return;
        }
        let Some(transaction) = world.server.wal.get(self.transaction) else { return };
        if self.message == 1 && !self.knows_table {
            self.knows_table = true;
            server::frame(b'w', Lsn::ZERO, &server::relation(), out);
        }
        let message = &transaction.messages[self.message];
        server::frame(b'w', transaction.commit, message, out);
        self.message += 1;
        if self.message == transaction.messages.len() {
            self.message = 0;
            self.transaction += 1;
        }
    }
}
