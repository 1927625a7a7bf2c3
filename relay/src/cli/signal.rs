//! SIGTERM and SIGINT as a token.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that is cancelled by the first SIGTERM or SIGINT. A second SIGINT ends the process at
/// once, as an impatient person expects.
///
/// # Errors
/// The handlers could not be installed.
pub(super) fn stop_on_signal() -> io::Result<CancellationToken> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    // Lives as long as the process: it owns nothing, and ends with the runtime.
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        stopped.cancel();
        int.recv().await;
        std::process::exit(130);
    });
    Ok(stop)
}
