//! The outer frames of the replication connection once it streams: tag, length, body.
//! Pure; source: the manual, "Message Formats".

use crate::core::row::Malformed;

/// Tag and length.
pub(super) const HEADER_BYTES: usize = 5;
/// Ends the copy from our side.
pub(super) const COPY_DONE: &[u8] = b"c\0\0\0\x04";
/// PostgreSQL's own bound of a message.
const MESSAGE_BYTES_MAX: usize = 1 << 30;

/// Tag and body length of the frame that begins here; `None` while its header is incomplete.
///
/// # Errors
/// [`Malformed`] when the length can't be one.
pub(super) fn header(bytes: &[u8]) -> Result<Option<(u8, usize)>, Malformed> {
    let Some((tag, rest)) = bytes.split_first() else { return Ok(None) };
    let Some(length) = rest.first_chunk::<4>() else { return Ok(None) };
    let body_bytes = (u32::from_be_bytes(*length) as usize)
        .checked_sub(4)
        .filter(|body_bytes| *body_bytes <= MESSAGE_BYTES_MAX)
        .ok_or(Malformed::byte("length of a message", 1, *tag))?;
    Ok(Some((*tag, body_bytes)))
}

/// SQLSTATE and text of an ErrorResponse; what can't be read is left empty.
pub(super) fn error_response(body: &[u8]) -> (String, String) {
    let field = |tag: u8| {
        let mut fields = body.split(|byte| *byte == 0).filter_map(<[u8]>::split_first);
        let found = fields.find_map(|(kind, value)| (*kind == tag).then_some(value));
        String::from_utf8_lossy(found.unwrap_or_default()).into_owned()
    };
    (field(b'C'), field(b'M'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_once_it_is_whole_and_a_length_below_itself_is_refused() {
        assert_eq!(header(b"d\0\0\0"), Ok(None));
        assert_eq!(header(b"d\0\0\0\x09....."), Ok(Some((b'd', 5))));
        assert!(header(b"d\0\0\0\x03").is_err());
        assert!(header(b"d\xFF\xFF\xFF\xFF").is_err());
    }

    #[test]
    fn an_error_gives_its_code_and_text() {
        let body = b"SFATAL\0C57P01\0Mterminating connection\0\0";
        assert_eq!(error_response(body), ("57P01".into(), "terminating connection".into()));
        assert_eq!(error_response(b""), (String::new(), String::new()));
    }
}
