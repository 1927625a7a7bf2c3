//! The process; everything is in the library.

fn main() -> std::process::ExitCode {
    outbox_relay::cli::main()
}
