//! Where PostgreSQL's clock begins.

/// 2000-01-01 UTC, in microseconds since Unix's epoch.
pub(crate) const POSTGRES_US: i64 = 946_684_800_000_000;
