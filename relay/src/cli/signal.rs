//! SIGTERM, SIGINT and SIGHUP as a token.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that is cancelled by the first SIGTERM, SIGINT or SIGHUP, as of a terminal that is closed; one that
/// was started to ignore SIGHUP (`nohup`) ignores it. A second SIGINT ends the process at
/// once, as an impatient person expects.
///
/// # Errors
/// The handlers could not be installed.
pub(super) fn stop_on_signal() -> io::Result<CancellationToken> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut hangup = match ignores_hangup(&status) {
        true => None,
        false => Some(signal(SignalKind::hangup())?),
    };
    // A limit on the size of files is an error of the write then, and not the process's end. The handler outlives
    // its listener.
    drop(signal(SignalKind::from_raw(libc::SIGXFSZ))?);
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    // Lives as long as the process: it owns nothing, and ends with the runtime.
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
            () = async {
                match &mut hangup {
                    Some(hangup) => {
                        hangup.recv().await;
                    }
                    None => std::future::pending().await,
                }
            } => {}
        }
        stopped.cancel();
        int.recv().await;
        std::process::exit(130);
    });
    Ok(stop)
}

/// By the mask of ignored signals in `/proc/self/status`, in hexadecimal, the first signal lowest.
fn ignores_hangup(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whether_hangup_is_ignored_is_read_from_the_mask() {
        assert!(ignores_hangup("Name:\tx\nSigIgn:\t0000000000001001\n"));
        assert!(!ignores_hangup("SigIgn:\t0000000000001000\n"));
        assert!(!ignores_hangup(""));
    }
}
