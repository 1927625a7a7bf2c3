//! What the services have in common, whatever broker their events come from.

pub mod acknowledged;
pub mod payment;
