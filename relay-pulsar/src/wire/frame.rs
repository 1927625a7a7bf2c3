//! Frames of the protocol: a command, and in some of them a message. Pure.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message as _;

use super::proto::{Command, Metadata};

/// Before a checksum.
const MAGIC: u16 = 0x0e01;

/// A command alone.
pub fn command(command: &Command) -> Bytes {
    let bytes = command.encoded_len();
    let mut frame = BytesMut::with_capacity(8 + bytes);
    frame.put_u32(length(4 + bytes));
    frame.put_u32(length(bytes));
    command.encode(&mut frame).expect("it grows");
    frame.freeze()
}

/// A command with a message behind it.
pub fn message(command: &Command, metadata: &Metadata, payload: &[u8]) -> Bytes {
    let (command_bytes, metadata_bytes) = (command.encoded_len(), metadata.encoded_len());
    let total = 4 + command_bytes + 2 + 4 + 4 + metadata_bytes + payload.len();
    let mut frame = BytesMut::with_capacity(4 + total);
    frame.put_u32(length(total));
    frame.put_u32(length(command_bytes));
    command.encode(&mut frame).expect("it grows");
    frame.put_u16(MAGIC);
    let checksum_at = frame.len();
    frame.put_u32(0);
    frame.put_u32(length(metadata_bytes));
    metadata.encode(&mut frame).expect("it grows");
    frame.put_slice(payload);
    let (before, after) = frame.split_at_mut(checksum_at + 4);
    let checksum = crc32c(after).to_be_bytes();
    before.iter_mut().rev().zip(checksum.iter().rev()).for_each(|(to, from)| *to = *from);
    frame.freeze()
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("messages are far shorter")
}

/// The next frame of `read`: its command, and what is behind that. `None` until all of it is there.
///
/// # Errors
/// It is no frame, or one of more than so many bytes.
pub fn next(read: &mut BytesMut, bytes_max: usize) -> Result<Option<(Command, Bytes)>, String> {
    let Some(total) = read.first_chunk::<4>() else { return Ok(None) };
    let total = u32::from_be_bytes(*total) as usize;
    if !(4..=bytes_max).contains(&total) {
        return Err(format!("a frame of {total} bytes is not of Pulsar's protocol"));
    }
    if read.len() < 4 + total {
        read.reserve(4 + total - read.len());
        return Ok(None);
    }
    let mut frame = read.split_to(4 + total).freeze();
    frame.advance(4);
    let bytes = frame.get_u32() as usize;
    if bytes > frame.len() {
        return Err(format!("a command of {bytes} bytes is longer than its frame"));
    }
    let command = Command::decode(frame.split_to(bytes)).map_err(|error| error.to_string())?;
    Ok(Some((command, frame)))
}

/// The message behind a command.
///
/// # Errors
/// It is not a message.
pub fn split(mut behind: Bytes) -> Result<(Metadata, Bytes), String> {
    const SHORT: &str = "a message is cut short";
    if behind.first_chunk::<2>() == Some(&MAGIC.to_be_bytes()) {
        behind.advance(2);
        let checksum = behind.try_get_u32().map_err(|_| SHORT)?;
        if checksum != crc32c(&behind) {
            return Err("a message does not have its checksum".into());
        }
    }
    let bytes = behind.try_get_u32().map_err(|_| SHORT)? as usize;
    if bytes > behind.len() {
        return Err(SHORT.into());
    }
    let metadata = Metadata::decode(behind.split_to(bytes)).map_err(|error| error.to_string())?;
    Ok((metadata, behind))
}

const TABLE: [u32; 256] = table();

#[expect(clippy::indexing_slicing, reason = "it is below 256, and evaluated when this is compiled")]
const fn table() -> [u32; 256] {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut table = [0_u32; 256];
    let mut place = 0;
    while place < 256 {
        #[expect(clippy::cast_possible_truncation, reason = "it is below 256")]
        let mut value = place as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { value >> 1 ^ POLYNOMIAL } else { value >> 1 };
            bit += 1;
        }
        table[place] = value;
        place += 1;
    }
    table
}

/// CRC-32C (Castagnoli), as RFC 3720 has it.
fn crc32c(bytes: &[u8]) -> u32 {
    let folded = bytes.iter().fold(u32::MAX, |value, byte| {
        let place = (value ^ u32::from(*byte)) & 0xff;
        value >> 8 ^ TABLE.get(place as usize).copied().unwrap_or(0)
    });
    !folded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::proto::{KeyValue, Kind, Send};

    fn send() -> Command {
        let send = Send { producer_id: 3, sequence_id: 9 };
        Command { kind: Kind::Send.into(), send: Some(send), ..Command::default() }
    }

    #[test]
    fn the_checksum_is_the_one_of_rfc_3720() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn a_message_is_read_as_it_was_written_once_all_of_it_is_there() {
        let properties = vec![KeyValue { key: "a".into(), value: "b".into() }];
        let metadata = Metadata { producer_name: "p".into(), properties, ..Metadata::default() };
        let whole = message(&send(), &metadata, b"payload");
        for cut in 0..whole.len() {
            let mut read = BytesMut::from(&whole[..cut]);
            assert_eq!(next(&mut read, 1_000), Ok(None), "{cut}");
        }
        let mut read = BytesMut::from(&[&whole[..], b"rest"].concat()[..]);
        let (found, behind) = next(&mut read, 1_000).expect("a frame").expect("all of it");
        assert_eq!((found, &read[..]), (send(), &b"rest"[..]));
        assert_eq!(split(behind), Ok((metadata, Bytes::from_static(b"payload"))));
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        let too_long = [0, 0, 3, 0xe9];
        for wrong in [&[0, 0, 0, 1, 0][..], &[0xff; 8], &[0, 0, 0, 4, 0, 0, 0, 9], &too_long] {
            let mut read = BytesMut::from(wrong);
            assert!(next(&mut read, 1_000).is_err(), "{wrong:?}");
            assert!(read.capacity() < 1_000, "nothing is made room for: {wrong:?}");
        }
        let mut whole = message(&send(), &Metadata::default(), b"payload").to_vec();
        *whole.last_mut().expect("a byte") ^= 1;
        let (_, behind) =
            next(&mut BytesMut::from(&whole[..]), 1_000).expect("a frame").expect("whole");
        assert!(split(behind).is_err());
        assert!(split(Bytes::from_static(&[0, 0])).is_err());
    }
}
