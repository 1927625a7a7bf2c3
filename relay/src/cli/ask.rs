//! Questions before what can't be taken back.

use std::io::IsTerminal as _;

use anyhow::{Context as _, bail};

use super::output::eprint;

/// A person's answer. Without a terminal no one can give one: then the arguments must have.
///
/// # Errors
/// There is no terminal, or it can't be read.
pub(super) fn ask(question: &str) -> anyhow::Result<bool> {
    let input = std::io::stdin();
    if !input.is_terminal() {
        bail!("{question} There is no terminal to ask on: give --yes; nothing was changed");
    }
    eprint(&format!("{question} [y/N]"));
    let mut answer = String::new();
    input.read_line(&mut answer).context("reading the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
