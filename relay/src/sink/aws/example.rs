//! Records for tests.

use crate::core::{
    lsn::Lsn,
    position::RowPosition,
    record::{Batch, BatchLimits, Record, RecordHead},
};

pub(super) const HEAD: RecordHead<'static> = RecordHead {
    position: RowPosition { commit: Lsn::ZERO, ordinal: 0 },
    topic: "orders",
    key: None,
    payload: Some(b"{}"),
    partition: None,
    timestamp_ms: None,
};

/// A look at a record that is in a batch.
pub(super) fn with<R>(
    head: RecordHead<'_>,
    headers: &[(&str, &str)],
    look: impl FnOnce(Record<'_>) -> R,
) -> R {
    let mut batch = Batch::new(BatchLimits { records_max: 1, bytes_max: 1 << 20 });
    let mut writer = batch.start_record(head);
    headers.iter().for_each(|(name, value)| writer.header(name, value.as_bytes()));
    writer.finish();
    look(batch.get(0).expect("a record"))
}
