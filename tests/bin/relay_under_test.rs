//! The relay as the suite runs it: the same `main` as `outbox-relay`, built beside the suite, so
//! that `cargo test` needs no other build. It alone can be told to fail at a place of its code.

use std::process::ExitCode;

use outbox_relay::fault::{self, ParseFaultError};

fn main() -> Result<ExitCode, ParseFaultError> {
    if let Ok(fault) = std::env::var("OUTBOX_FAULT") {
        fault::arm(&fault)?;
    }
    Ok(outbox_relay::cli::main())
}
