//! What a run says: while it lasts, and at its end.

use serde::Serialize;

/// As the option `--json` shows it.
pub(crate) fn pretty(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("plain values have a JSON form");
    text.push('\n');
    text
}

/// The result, on standard output.
#[expect(clippy::print_stdout, reason = "the result is what this program is for")]
pub(crate) fn print(text: &str) {
    print!("{text}");
}

/// What is being done, for a person who waits.
#[expect(clippy::print_stderr, reason = "progress belongs on the terminal, not into the result")]
pub(crate) fn progress(line: &str) {
    eprintln!("bench: {line}");
}
