//! Whether the brokers answer, also while there is nothing to deliver: `/readyz` must know.

use std::{convert::Infallible, time::Duration};

use tokio::time::sleep;

use crate::{admin::Board, printable, sink::kafka::Probe};

/// Asked this often, unless a delivery has just proven it.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);

/// Keeps asking, and tells the board. Ends only by being dropped, at any time.
pub(super) async fn watch(probe: Probe, board: &Board) -> Infallible {
    loop {
        sleep(PROBE_INTERVAL).await;
        if board.broker_heard_within(PROBE_INTERVAL) {
            continue;
        }
        match probe.check().await {
            Ok(()) => board.broker_heard(),
            Err(error) => {
                tracing::debug!(%error, "the brokers do not answer");
                board.broker_silent(printable::causes(&error));
            }
        }
    }
}
