//! The frames inside CopyData that carry the stream: WAL data and keepalives from the server,
//! status updates to it. Pure; source: the manual, "Streaming Replication Protocol".

use super::read::Reader;
use crate::core::{lsn::Lsn, row::Malformed};

/// What the server sends in one CopyData message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// One message of the output plugin.
    XLogData(XLogData<'a>),
    /// Nothing to send, or an answer is wanted.
    Keepalive(Keepalive),
}

/// One message of the output plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XLogData<'a> {
    /// Where its WAL record starts; not a position, see [`crate::core::position`]. Zero for messages
    /// that stem from no record, such as Relation.
    pub wal_start: Lsn,
    /// End of WAL on the server.
    pub wal_end: Lsn,
    /// For [`decode`](super::decode).
    pub data: &'a [u8],
}

/// Sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Up to where the server has decoded; between transactions, a position to be confirmed.
    pub wal_end: Lsn,
    /// The server's clock, in microseconds since 2000-01-01 UTC.
    pub clock_us: i64,
    /// It wants a status update at once, or it will hang up.
    pub reply_requested: bool,
}

/// Bytes of an [`XLogData`]'s header: tag, start, end, clock.
pub const XLOG_DATA_HEADER_BYTES: usize = 25;

/// Decodes the content of one CopyData message.
///
/// # Errors
/// [`Malformed`]: drop the connection, start again from progress.
pub fn decode_frame(content: &[u8]) -> Result<Frame<'_>, Malformed> {
    let mut r = Reader::new(content);
    match r.u8("frame tag")? {
        b'w' => {
            let wal_start = Lsn::new(r.u64("start of WAL data")?);
            let wal_end = Lsn::new(r.u64("end of WAL data")?);
            r.i64("clock of WAL data")?;
            Ok(Frame::XLogData(XLogData { wal_start, wal_end, data: r.rest() }))
        }
        b'k' => {
            let keepalive = Keepalive {
                wal_end: Lsn::new(r.u64("end of WAL in a keepalive")?),
                clock_us: r.i64("clock of a keepalive")?,
                reply_requested: r.u8("reply flag of a keepalive")? != 0,
            };
            r.finish("end of a keepalive")?;
            Ok(Frame::Keepalive(keepalive))
        }
        other => Err(Malformed::byte("frame tag", 0, other)),
    }
}

/// What the length field of a status update says: itself and all that follows.
const STATUS_LENGTH: u32 = 4 + 1 + 3 * 8 + 8 + 1;
/// Size of an encoded status update: the tag before the length is not counted in it.
pub const STATUS_BYTES: usize = 1 + STATUS_LENGTH as usize;

/// A standby status update as a whole CopyData message, ready to be written to the socket.
///
/// PostgreSQL forgets everything before `flush`: pass what is confirmed, and nothing above it.
/// `clock_us` is in microseconds since 2000-01-01 UTC; `reply` asks for a keepalive at once.
pub fn encode_status(
    write: Lsn,
    flush: Lsn,
    apply: Lsn,
    clock_us: i64,
    reply: bool,
) -> [u8; STATUS_BYTES] {
    let mut out = [0; STATUS_BYTES];
    let mut rest = out.as_mut_slice();
    let mut put = |bytes: &[u8]| {
        if let Some((to, after)) = std::mem::take(&mut rest).split_at_mut_checked(bytes.len()) {
            to.copy_from_slice(bytes);
            rest = after;
        }
    };
    put(b"d");
    put(&STATUS_LENGTH.to_be_bytes());
    put(b"r");
    put(&write.get().to_be_bytes());
    put(&flush.get().to_be_bytes());
    put(&apply.get().to_be_bytes());
    put(&clock_us.to_be_bytes());
    put(&[u8::from(reply)]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_status_update_is_the_copy_data_message_of_the_manual() {
        let status = encode_status(Lsn::new(0x0102), Lsn::new(0x0304), Lsn::new(0x0506), -2, true);
        let mut expected = vec![b'd', 0, 0, 0, 38, b'r'];
        for lsn in [0x0102_u64, 0x0304, 0x0506] {
            expected.extend(lsn.to_be_bytes());
        }
        expected.extend((-2_i64).to_be_bytes());
        expected.push(1);
        assert_eq!(status.as_slice(), expected);
    }

    proptest! {
        #[test]
        fn wal_data_reads_back(start: u64, end: u64, clock: i64, data: Vec<u8>) {
            let mut bytes = vec![b'w'];
            bytes.extend(start.to_be_bytes());
            bytes.extend(end.to_be_bytes());
            bytes.extend(clock.to_be_bytes());
            prop_assert_eq!(bytes.len(), XLOG_DATA_HEADER_BYTES);
            bytes.extend(&data);
            let frame = XLogData { wal_start: Lsn::new(start), wal_end: Lsn::new(end), data: &data };
            prop_assert_eq!(decode_frame(&bytes), Ok(Frame::XLogData(frame)));
        }

        #[test]
        fn a_keepalive_reads_back_and_no_part_of_it_does(end: u64, clock_us: i64, reply: bool) {
            let mut bytes = vec![b'k'];
            bytes.extend(end.to_be_bytes());
            bytes.extend(clock_us.to_be_bytes());
            bytes.push(u8::from(reply));
            let keepalive = Keepalive { wal_end: Lsn::new(end), clock_us, reply_requested: reply };
            prop_assert_eq!(decode_frame(&bytes), Ok(Frame::Keepalive(keepalive)));
            for cut in 0..bytes.len() {
                prop_assert!(decode_frame(bytes.split_at(cut).0).is_err());
            }
            bytes.push(0);
            prop_assert!(decode_frame(&bytes).is_err());
        }

        #[test]
        fn any_bytes_are_a_frame_or_an_error(bytes: Vec<u8>) {
            let _ = decode_frame(&bytes);
        }
    }
}
