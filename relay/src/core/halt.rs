//! Why the relay has halted, and what continues: the one shape of everything that a person must decide.

/// Why the relay halts, and what makes it continue.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}; {remedy}")]
pub struct Halt {
    /// What was found, with the interval that may be missing.
    pub reason: String,
    /// The command, SQL or setting that continues.
    pub remedy: String,
}

impl Halt {
    /// Both texts.
    pub fn new(reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Halt { reason: reason.into(), remedy: remedy.into() }
    }

    /// With what loses nothing before what gives something up.
    pub(crate) fn unless(self, remedy: &str) -> Self {
        Halt { remedy: format!("{remedy}; or, {}", self.remedy), ..self }
    }

    /// With what is to be done before all else, and why.
    pub(crate) fn first(self, why: &str, step: &str) -> Self {
        let Halt { reason, remedy } = self;
        Halt { reason: format!("{reason}; {why}"), remedy: format!("first, {step}; then {remedy}") }
    }

    /// Both texts, as `say` has them.
    pub(crate) fn in_other_words(self, say: impl Fn(&str) -> String) -> Self {
        Halt { reason: say(&self.reason), remedy: say(&self.remedy) }
    }
}
