//! The shape of `/status`: what the server writes, `outbox-relay status` reads and the page shows.

use serde::{Deserialize, Serialize};

use crate::core::{lsn::Lsn, position::Position};

/// The relay as of one moment. New fields may be added; none changes its meaning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The route, in a process that has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// The relay's name.
    pub name: String,
    /// Of the program.
    pub version: String,
    /// `leader`, `standby` or `none`.
    pub role: String,
    /// `starting`, `standby`, `repairing`, `streaming`, `halted`, `retrying` or `stopping`.
    pub phase: String,
    /// What there is to say of the phase; empty when nothing.
    pub detail: String,
    /// Whether `/readyz` answers 200.
    pub ready: bool,
    /// Why not.
    pub not_ready_because: Option<String>,
    /// Replication slot.
    pub slot: String,
    /// End of the server's WAL as last heard.
    pub server_wal_end: Option<Lsn>,
    /// Position received from PostgreSQL.
    pub received: Option<Lsn>,
    /// Position stored by the broker, in full.
    pub delivered: Option<Position>,
    /// Position confirmed to PostgreSQL.
    pub confirmed: Option<Lsn>,
    /// WAL between the server's end and the delivered position, or, where the broker has not said
    /// yet what is delivered, the confirmed one; null before both ends are known.
    pub lag_bytes: Option<u64>,
    /// How long what is not delivered has been waiting; null when `lag_bytes` is.
    pub lag_seconds: Option<f64>,
    /// Since the process started.
    pub records_delivered: u64,
    /// Since the process started.
    pub bytes_delivered: u64,
    /// Deliveries since the process started.
    pub batches: u64,
    /// The newest delivery that had records.
    pub last_batch: Option<LastBatch>,
    /// Rows that were moved between partitions or copied, and not published again, since the
    /// process started.
    #[serde(default)]
    pub rows_moved: u64,
    /// Lanes that are parked now; null before it is known.
    pub parked_lanes: Option<u64>,
    /// Events that are parked, as last counted; null while it is not known.
    #[serde(default)]
    pub parked_events: Option<u64>,
    /// What a person should change though no event waits for it; empty when nothing.
    #[serde(default)]
    pub concerns: Vec<String>,
    /// The newest error, also when it has passed.
    pub last_error: Option<LastError>,
    /// Since the process started.
    pub uptime_seconds: f64,
}

/// A delivery.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastBatch {
    /// Records in it.
    pub records: u64,
    /// Bytes in it.
    pub bytes: u64,
    /// From handing it over until it was stored.
    pub seconds: f64,
}

/// An error and when it happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastError {
    /// What went wrong.
    pub error: String,
    /// RFC 3339, UTC.
    pub at: String,
    /// When the relay continued; null while it has not, or where nothing was waited for.
    #[serde(default)]
    pub over_since: Option<String>,
}

/// Bytes to a whole number of the largest unit, for reading at a glance.
pub(crate) fn approximate(bytes: u64) -> String {
    let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.into_iter().find(|(_, factor)| bytes >= 10 * factor) {
        Some((unit, factor)) => format!("{} {unit}", bytes / factor),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use crate::state::status::*;

    #[test]
    fn sizes_read_at_a_glance() {
        assert_eq!(approximate(0), "0 B");
        assert_eq!(approximate(9_000), "9000 B");
        assert_eq!(approximate(25 * 1024 + 3), "25 KiB");
        assert_eq!(approximate(11 << 30), "11 GiB");
    }
}
