//! What a part of the relay finds wrong with its own settings; `config` adds where each came from.

/// A setting that can't stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The setting's full key, such as `outbox.columns.key`.
    pub key: String,
    /// What is wrong with it; never its value where that may be a secret.
    pub what: String,
    /// What to write instead.
    pub remedy: String,
}
