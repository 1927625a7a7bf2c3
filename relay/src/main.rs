//! The process: a runtime, a command, an exit code.

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use outbox_relay::cli::{self, Cli};

/// One thread reads the WAL while the other delivers; the broker's client has threads of its own.
const WORKERS: usize = 2;

fn main() -> ExitCode {
    let cli = Cli::parse(); // Wrong usage ends here, with 2.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return cli::failed_to_start(error),
    };
    let code = runtime.block_on(cli::run(cli));
    // A name lookup that hangs must not hold up the exit.
    runtime.shutdown_timeout(Duration::from_secs(1));
    code
}
