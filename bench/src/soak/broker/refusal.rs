//! What a broker refuses for a while, so that lanes are parked and released.

use std::sync::Arc;

use anyhow::Result;
use outbox_harness::{nats::Stream, rabbit::Exchange, topic::Topic};
use serde_json::json;

use crate::soak::tally::PARTITIONS;

/// Above this many bytes a broker refuses what is sent to it; poison (`POISON_BYTES`) has more.
pub(super) const SCARCE: usize = 300_000;
const ENOUGH: usize = 3_000_000;
/// The limit of a Kafka topic.
pub(super) const LIMIT: &str = "max.message.bytes";

/// What a broker refuses for a while: poison; with RabbitMQ, whose limit is fixed, all of one partition.
#[derive(Clone)]
pub(in crate::soak) enum Refusal {
    Size(Topic),
    StreamSize(Stream),
    Binding(Arc<Exchange>),
}

impl Refusal {
    /// # Errors
    /// The broker is away.
    pub(in crate::soak) async fn set(&self, refuses: bool) -> Result<()> {
        let bytes = if refuses { SCARCE } else { ENOUGH };
        match self {
            Refusal::Size(topic) => topic.try_set(LIMIT, &bytes.to_string()).await,
            Refusal::StreamSize(stream) => {
                stream.try_change(&json!({ "max_msg_size": bytes })).await
            }
            Refusal::Binding(exchange) => exchange.try_bind(PARTITIONS - 1, !refuses).await,
        }
    }
}
