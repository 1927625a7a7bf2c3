//! The relay as the suite runs it: the same `main` as `outbox-relay`, built beside the suite, so
//! that `cargo test` needs no other build.

fn main() -> std::process::ExitCode {
    outbox_relay::cli::main()
}
