//! Records of one batch in another one.

use super::{Batch, BatchLimits, Record, RecordHead};

impl Batch {
    /// What it may hold.
    pub fn limits(&self) -> BatchLimits {
        self.limits
    }

    /// Adds a copy of another batch's record.
    pub fn copy(&mut self, record: &Record<'_>) {
        let mut copy = self.start_record(RecordHead {
            position: record.position,
            topic: record.topic,
            key: record.key,
            payload: record.payload,
            partition: record.partition,
            timestamp_ms: record.timestamp_ms,
        });
        copy.written_by(record.xid);
        copy.batch.arena.extend_from_slice(record.headers);
        copy.finish();
    }
}
