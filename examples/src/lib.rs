//! What the services have in common, whatever broker their events come from.

pub mod acknowledged;
pub mod payment;
pub mod service;
pub mod shipment;

/// The event that `orders` publishes.
#[derive(Debug, serde::Deserialize)]
pub struct OrderPlaced {
    /// Its number.
    pub order: i64,
    /// Whose.
    pub customer: i64,
    /// What it costs.
    pub amount_cents: i64,
}
