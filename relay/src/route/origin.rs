//! Which cluster a row comes from.

/// Which cluster's WAL the rows come from, for the position header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// `systemid` of IDENTIFY_SYSTEM, decimal.
    pub system_id: String,
    /// Its timeline.
    pub timeline: u32,
    /// What of the relay's positions can be compared with one another; 0 says nothing.
    pub era: u64,
}
