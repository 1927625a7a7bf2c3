//! What is wrong with the settings, all of it at once.

use std::{error::Error, fmt};

/// Where a setting came from. Ordered: a later one wins over an earlier one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// No one said anything.
    Default,
    /// The settings file, by its path.
    File(String),
    /// An environment variable, by its name.
    Env(String),
    /// A flag of the command line, such as `--kafka`.
    Flag(String),
}

impl Origin {
    /// Which layer, whatever its name: `url` and `url_file` of one layer contradict each other,
    /// of two layers the later one wins.
    pub(super) fn layer(&self) -> u8 {
        match self {
            Origin::Default => 0,
            Origin::File(_) => 1,
            Origin::Env(_) => 2,
            Origin::Flag(_) => 3,
        }
    }

    /// The form that the `config` crate carries along with each value.
    pub(super) fn encode(&self) -> String {
        match self {
            Origin::Default => String::new(),
            Origin::File(path) => format!("file:{path}"),
            Origin::Env(name) => format!("env:{name}"),
            Origin::Flag(name) => format!("flag:{name}"),
        }
    }

    pub(super) fn decode(text: Option<&str>) -> Origin {
        match text.and_then(|text| text.split_once(':')) {
            Some(("file", path)) => Origin::File(path.to_owned()),
            Some(("env", name)) => Origin::Env(name.to_owned()),
            Some(("flag", name)) => Origin::Flag(name.to_owned()),
            _ => Origin::Default,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(name) | Origin::Env(name) | Origin::Flag(name) => f.write_str(name),
        }
    }
}

/// One thing that is wrong, and what corrects it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The setting's full key, such as `batch.bytes_max`; the path when it is the file itself.
    pub key: String,
    /// Where the value came from.
    pub origin: Origin,
    /// What is wrong; no secret in it.
    pub what: String,
    /// What to write instead.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)?;
        if self.origin != Origin::Default {
            write!(f, " ({})", self.origin)?;
        }
        write!(f, ": {}; {}", self.what, self.remedy)
    }
}

/// Everything that is wrong with the settings; never empty. The process exits with 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => f.write_str("one problem with the settings:")?,
            n => write!(f, "{n} problems with the settings:")?,
        }
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl Error for Problems {}
