//! Messages of PostgreSQL's protocol over a byte stream, until the replication stream begins.
//!
//! Memory is bounded: a message is refused by its announced length, before anything of it is
//! stored. Used by `auth` and `connect`; what follows CopyBothResponse is `stream`'s.

use std::io;

use bytes::{Buf, BytesMut};
use postgres_protocol::message::backend::{Header, Message};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Far above any answer to the commands that are sent before the stream.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
const READ_BYTES: usize = 8 << 10;
/// CopyBothResponse, which only replication has and postgres-protocol does not know.
const COPY_BOTH_RESPONSE: u8 = b'W';

/// A stream, with what was read and not yet taken.
#[derive(Debug)]
pub(super) struct Wire<S> {
    socket: S,
    incoming: BytesMut,
}

/// What the server sent.
pub(super) enum Reply {
    Message(Message),
    /// The replication stream begins.
    CopyBoth,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(super) fn new(socket: S) -> Self {
        Wire { socket, incoming: BytesMut::new() }
    }

    /// The stream, and the bytes already read from it.
    pub(super) fn into_parts(self) -> (S, BytesMut) {
        (self.socket, self.incoming)
    }

    pub(super) async fn send(&mut self, message: &[u8]) -> io::Result<()> {
        self.socket.write_all(message).await?;
        self.socket.flush().await
    }

    /// The next message. Cancel safe: what was read stays for the next call.
    ///
    /// # Errors
    /// The connection broke or ended (`UnexpectedEof`), or what came is malformed
    /// (`InvalidData`, `InvalidInput`); either way it is of no more use.
    pub(super) async fn receive(&mut self) -> io::Result<Reply> {
        loop {
            if let Some(reply) = take(&mut self.incoming)? {
                return Ok(reply);
            }
            self.incoming.reserve(READ_BYTES);
            if self.socket.read_buf(&mut self.incoming).await? == 0 {
                let ended = "the server closed the connection";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, ended));
            }
        }
    }

    /// The next message, where the stream can't begin.
    pub(super) async fn message(&mut self) -> io::Result<Message> {
        match self.receive().await? {
            Reply::Message(message) => Ok(message),
            Reply::CopyBoth => Err(malformed("CopyBothResponse was not asked for")),
        }
    }
}

/// What came does not follow the protocol.
pub(super) fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("protocol violation: {what}"))
}

fn take(incoming: &mut BytesMut) -> io::Result<Option<Reply>> {
    let Some(header) = Header::parse(incoming)? else { return Ok(None) };
    // The length counts itself and not the tag.
    let length = usize::try_from(header.len()).unwrap_or(usize::MAX);
    if length > MESSAGE_BYTES_MAX {
        let tag = char::from(header.tag()).escape_default().to_string();
        return Err(malformed(&format!("a message {tag:?} of {length} bytes")));
    }
    if header.tag() != COPY_BOTH_RESPONSE {
        return Ok(Message::parse(incoming)?.map(Reply::Message));
    }
    if incoming.len() <= length {
        return Ok(None);
    }
    incoming.advance(length + 1);
    Ok(Some(Reply::CopyBoth))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let mut incoming = BytesMut::from(bytes.as_slice());
            while let Ok(Some(_)) = take(&mut incoming) {}
        }

        #[test]
        fn no_body_of_a_known_message_makes_it_panic(tag in "[1-3ACDEGHIKNRSTZcdnstvW]", body: Vec<u8>) {
            let mut incoming = BytesMut::from(tag.as_bytes());
            let length = u32::try_from(body.len() + 4).expect("short");
            incoming.extend_from_slice(&length.to_be_bytes());
            incoming.extend_from_slice(&body);
            drop(take(&mut incoming));
        }
    }

    #[test]
    fn an_absurd_length_is_refused_before_anything_is_stored() {
        for length in [0xFF, 0x7F, 0x40, 0x02] {
            let mut incoming = BytesMut::from(&[b'D', length, 0, 0, 0][..]);
            assert!(take(&mut incoming).is_err(), "{length:x}");
            assert!(incoming.capacity() < 1 << 10);
        }
        let mut short = BytesMut::from(&[b'Z', 0, 0, 0, 3][..]);
        assert!(take(&mut short).is_err());
    }

    #[tokio::test]
    async fn messages_in_single_bytes_are_put_together() {
        let (mut server, client) = tokio::io::duplex(1);
        let sent = b"Z\0\0\0\x05IW\0\0\0\x07\0\0\0";
        let drip = async move { server.write_all(sent).await.expect("written") };
        let read = async {
            let mut wire = Wire::new(client);
            assert!(matches!(wire.message().await.expect("a message"), Message::ReadyForQuery(_)));
            assert!(matches!(wire.receive().await.expect("a reply"), Reply::CopyBoth));
            let (_, rest) = wire.into_parts();
            assert!(rest.is_empty());
        };
        tokio::join!(drip, read);
    }
}
