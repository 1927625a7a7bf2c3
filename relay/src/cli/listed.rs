//! What a list has numbered.

/// A number that a list has given.
///
/// # Errors
/// What it should be.
pub(in crate::cli) fn listed(typed: &str) -> Result<i64, String> {
    let expected = "it is not a number: the first column of `list` has it, not an event's id";
    typed.parse().map_err(|_not_a_number| expected.to_owned())
}
