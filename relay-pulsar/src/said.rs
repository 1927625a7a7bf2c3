//! What a broker says of a request, sorted by what the relay must do.

use std::fmt;

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// What it means.
    pub what: What,
    /// The broker's words, or the network's.
    pub text: String,
}

/// What it means that a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// There is no such topic.
    Missing,
    /// The relay may not produce there.
    Denied,
    /// The broker does not know who asks: a token is missing, wrong or expired.
    Unknown,
    /// The message is larger than the topic takes.
    TooLarge,
    /// Never: another reason of this very topic or message.
    Refused,
    /// Another producer has, or had since, the topic to itself.
    Fenced,
    /// Not stored for certain, and it may be taken later.
    NotNow,
    /// Nothing is known of what was under way.
    Uncertain,
}

impl Said {
    /// A failure of this kind.
    pub fn new(what: What, text: impl Into<String>) -> Self {
        Said { what, text: text.into() }
    }

    /// Nothing is known of what was under way.
    pub fn uncertain(text: impl Into<String>) -> Self {
        Said::new(What::Uncertain, text)
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Said {}
