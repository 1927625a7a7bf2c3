//! Where settings come from: a file, the environment, flags.

use std::{collections::BTreeMap, fmt, path::PathBuf};

/// Where settings come from; each layer wins over the one before it.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The TOML file.
    pub file: Option<PathBuf>,
    /// Whether the user named the file: then it must be there.
    pub explicit: bool,
    /// Environment variables; only `OUTBOX_RELAY__…` and `RUST_LOG` are read.
    pub env: Environment,
    /// Flags of the command line.
    pub flags: Overrides,
}

/// Environment variables by name. Prints no value: there are passwords in it.
#[derive(Clone, Default)]
pub struct Environment(pub BTreeMap<String, String>);

impl Environment {
    /// This process's variables. Text that is not UTF-8 fits no setting and is made to show it.
    pub fn of_process() -> Self {
        let lossy = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        Environment(std::env::vars_os().map(|(name, value)| (lossy(name), lossy(value))).collect())
    }
}

impl std::ops::Deref for Environment {
    type Target = BTreeMap<String, String>;
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Settings given as flags.
#[derive(Clone, Default)]
pub struct Overrides(pub(super) Vec<Override>);

#[derive(Clone)]
pub(super) struct Override {
    pub(super) flag: &'static str,
    pub(super) key: &'static str,
    pub(super) value: String,
}

impl Overrides {
    /// Adds what `flag` (`--kafka`) says about `key` (`sink.properties.bootstrap.servers`), if
    /// it was given.
    #[must_use]
    pub fn with(mut self, flag: &'static str, key: &'static str, value: Option<&str>) -> Self {
        self.0.extend(value.map(|value| Override { flag, key, value: value.to_owned() }));
        self
    }
}

impl fmt::Debug for Overrides {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.iter().map(|given| given.flag)).finish()
    }
}
