//! Standard output and standard error of the commands.

use std::io::Write;

/// Prints to standard output. A reader that has gone away (`| head`) is no error.
pub fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let end = if text.ends_with('\n') { "" } else { "\n" };
    // Nothing is left to tell it to.
    let _ = write!(out, "{text}{end}").and_then(|()| out.flush());
}

/// Prints an error with its causes, one a line.
pub(super) fn print_error(error: &anyhow::Error) {
    let mut text = format!("outbox-relay: {error}\n");
    for cause in error.chain().skip(1) {
        text.push_str(&format!("  because: {cause}\n"));
    }
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}
