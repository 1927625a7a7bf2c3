//! Any bytes are a message or an error; what can be read of a row is within its bytes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use outbox_fuzz::{core::charset::Charset, source::pgoutput::{Message, decode, decode_large_insert, frame}};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(frame::Frame::XLogData(data)) = frame::decode_frame(bytes) {
        let _ = decode(data.data, &Charset::AsItIs);
    }
    if let Ok(Message::Insert(insert)) = decode(bytes, &Charset::AsItIs) {
        let values = insert.tuple.columns();
        let announced = insert.tuple.column_count();
        assert!(values.filter(|value| value.is_ok()).count() <= announced);
    }
    if let Ok(insert) = decode_large_insert(bytes) {
        let mut values = insert.tuple.columns();
        while let Some(value) = values.next() {
            if value.is_err() {
                assert!(values.next().is_none(), "an error is the end");
            }
        }
    }
});
