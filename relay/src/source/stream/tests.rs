use tokio::net::UnixStream;

use super::*;
use crate::{
    core::{
        landmark::Recognition,
        position::{Position, RowPosition},
        record::{Announced, BatchLimits},
        row::{Relation, Row},
    },
    source::{handover::handover, pgoutput::frame::STATUS_BYTES},
};

struct Nothing;

impl Intake for Nothing {
    fn relation(&mut self, _: &Relation) -> Result<bool, IntakeError> {
        Ok(false)
    }

    fn row(&mut self, _: &Row<'_>, _: &mut Batch) {}

    fn message(&mut self, _: RowPosition, _: u32, _: &[u8]) {}

    fn ignored(&mut self, _: &'static str) {}

    fn commit(&mut self, _: RowPosition, _: &mut Batch) {}

    fn reach(&mut self, _: Lsn) -> Result<(), IntakeError> {
        Ok(())
    }
}

/// Each wakes the walsender, and deliveries may end a thousand times a second.
#[tokio::test]
async fn what_is_confirmed_is_told_at_a_bounded_rate_and_the_last_of_it_is() {
    const DELIVERIES: u64 = 300;
    let at = |lsn| Confirmable::stored(Position::UpTo(Lsn::new(lsn)));
    let (ours, mut server) = UnixStream::pair().expect("a pair");
    let (giver, _taker) = handover(BatchLimits { records_max: 10, bytes_max: 1000 });
    let (delivered, confirmed) = watch::channel(at(0));
    let (_awaited, awaited) = watch::channel(Lsn::ZERO);
    let recognition = Recognition::new(None, Position::UpTo(Lsn::ZERO), Lsn::ZERO);
    let accepted = Accepted { socket: Socket::Unix(ours), unread: BytesMut::new() };
    let decoder = Decoder::new(giver, Nothing, recognition, 1000);
    let board = Board::new("r", "s", "1");
    let stream = Stream::new(accepted, decoder, confirmed, awaited, board);
    let begun = Instant::now();
    let streaming = tokio::spawn(stream.run(CancellationToken::new()));
    let delivering = tokio::spawn(async move {
        for lsn in 1..=DELIVERIES {
            tokio::time::sleep(Duration::from_millis(1)).await;
            delivered.send_replace(at(lsn));
        }
        delivered // While it is there, the stream runs.
    });
    let (mut told, mut statuses) = (0, 0);
    while told < DELIVERIES {
        let mut status = [0; STATUS_BYTES];
        server.read_exact(&mut status).await.expect("a status");
        let lsn = status.get(6..14).and_then(|bytes| bytes.try_into().ok());
        told = u64::from_be_bytes(lsn.expect("eight bytes"));
        statuses += 1;
    }
    let took = begun.elapsed();
    // And one a second, whatever is confirmed.
    let most = took.as_millis() / STATUS_MIN.as_millis() + u128::from(took.as_secs()) + 2;
    assert!(statuses > 1 && statuses <= most, "{statuses} in {took:?}");
    drop((server, delivering.await.expect("no panic")));
    let _broken = streaming.await.expect("no panic");
}

#[test]
fn an_announcement_waits_for_its_second_unless_the_last_one_was_true() {
    let mut batch = Batch::new(BatchLimits { records_max: 10, bytes_max: 1000 });
    let (soon, late) = (Duration::from_millis(5), IDLE_PROGRESS_INTERVAL);
    assert!(!is_due(&batch, true, late), "there is nothing to hand over");
    let first = RowPosition { commit: Lsn::new(1), ordinal: 0 };
    batch.announced.push(Announced { id: "r".to_owned(), xid: 1, first, after: 0 });
    assert!(is_due(&batch, true, soon));
    let mut many = Batch::new(BatchLimits { records_max: 10, bytes_max: 1000 });
    while !many.is_full() {
        assert!(!is_due(&many, false, soon));
        many.announced.push(batch.announced[0].clone());
    }
    assert!(is_due(&many, false, soon), "no more fit");
    assert!(!is_due(&batch, false, soon), "it may be forged, and costs a look");
    assert!(is_due(&batch, false, late));
}
