//! Settings of a relay, and the commands of `outbox-relay` that they are for.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use crate::process;

/// The variable that `relay-under-test` reads its fault from.
const FAULT: &str = "OUTBOX_FAULT";
/// How long a command that ends by itself may take.
const COMMAND: Duration = Duration::from_secs(60);

/// Settings of a relay that is not running yet.
#[derive(Clone, Debug)]
pub struct Settings {
    pub(super) dir: PathBuf,
    /// Dotted TOML keys, and values as TOML writes them.
    values: BTreeMap<String, String>,
    environment: BTreeMap<String, String>,
    /// What to run; `None` is what [`binary`] finds.
    program: Option<PathBuf>,
    /// Of its files, where several relays have one name.
    file_name: Option<String>,
    /// Where its standard output goes; `None`: to its log.
    pub(super) stdout: Option<PathBuf>,
}

impl Settings {
    pub(crate) fn new(dir: &Path) -> Self {
        Settings {
            dir: dir.to_owned(),
            values: BTreeMap::new(),
            environment: BTreeMap::new(),
            program: None,
            file_name: None,
            stdout: None,
        }
    }

    /// Sets a key to a string.
    #[must_use]
    pub fn set(self, key: &str, value: &str) -> Self {
        let text = Value::from(value).to_string(); // A JSON string is a TOML basic string.
        self.set_toml(key, &text)
    }

    /// Sets a key to a value as TOML writes it: `12`, `true`, `["a"]`.
    #[must_use]
    pub fn set_toml(mut self, key: &str, value: &str) -> Self {
        self.values.insert(key.to_owned(), value.to_owned());
        self
    }

    /// What a key is set to, as text.
    ///
    /// # Panics
    /// When it is not set.
    pub fn value(&self, key: &str) -> String {
        self.values.get(key).expect(key).trim_matches('"').to_owned()
    }

    /// Publishes to a sink of this kind in place of Kafka.
    #[must_use]
    pub fn to(self, kind: &str) -> Self {
        self.without("sink.properties.\"bootstrap.servers\"").set("sink.kind", kind)
    }

    /// Leaves a key out.
    #[must_use]
    pub fn without(mut self, key: &str) -> Self {
        self.values.remove(key);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.environment.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Names its settings file and log: for several relays of one name.
    #[must_use]
    pub fn files(mut self, name: &str) -> Self {
        self.file_name = Some(name.to_owned());
        self
    }

    /// Has its standard output in a file.
    #[must_use]
    pub fn stdout(mut self, path: &Path) -> Self {
        self.stdout = Some(path.to_owned());
        self
    }

    /// Arms a fault: `point[:nth[:freeze]]`.
    #[must_use]
    pub fn fault(self, fault: &str) -> Self {
        self.env(FAULT, fault)
    }

    /// Runs this program instead of the one that was built with the tests.
    #[must_use]
    pub fn program(mut self, program: &Path) -> Self {
        self.program = Some(program.to_owned());
        self
    }

    /// Runs another command to its end, such as `["check"]`.
    ///
    /// # Panics
    /// When it does not start, or does not end in a minute.
    pub async fn command(&self, arguments: &[&str]) -> Output {
        let run = async {
            let mut command = self.prepare(arguments)?;
            let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
            anyhow::Ok(tokio::time::timeout(COMMAND, output).await??)
        };
        run.await.unwrap_or_else(|error| panic!("{arguments:?}: {error:#}"))
    }

    /// Starts another command, and waits until it says `words` to who typed it. Returns all that it has
    /// said by then, and the process, which goes on.
    ///
    /// # Panics
    /// When it does not start, or does not say so in a minute.
    pub async fn command_that_says(&self, arguments: &[&str], words: &str) -> (String, Child) {
        let run = async {
            let mut command = self.prepare(arguments)?;
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
            let mut child = command.kill_on_drop(true).spawn()?;
            let mut lines = BufReader::new(child.stderr.take().context("its errors")?).lines();
            let mut said = String::new();
            while !said.contains(words) {
                let line = lines.next_line().await?;
                said += &line.with_context(|| format!("it has ended: {said}"))?;
            }
            anyhow::Ok((said, child))
        };
        let said = tokio::time::timeout(COMMAND, run).await.map_err(anyhow::Error::new);
        said.flatten().unwrap_or_else(|error| panic!("{arguments:?}: {error:#}"))
    }

    /// A fault of the next start, or none.
    pub(super) fn set_fault(&mut self, fault: Option<&str>) {
        self.environment.remove(FAULT);
        self.environment.extend(fault.map(|fault| (FAULT.to_owned(), fault.to_owned())));
    }

    pub(super) fn name(&self) -> String {
        if let Some(name) = &self.file_name {
            return name.clone();
        }
        self.values.get("name").map_or("relay", |name| name.trim_matches('"')).to_owned()
    }

    /// Writes them to a file, for who reads it in this process.
    ///
    /// # Panics
    /// When it can't be written.
    pub fn written(&self) -> PathBuf {
        self.write("read").expect("the settings are written")
    }

    /// A file for each use: a relay that was just started may not have read its own yet.
    fn write(&self, used_by: &str) -> Result<PathBuf> {
        let mut toml = String::new();
        for (key, value) in &self.values {
            writeln!(toml, "{key} = {value}")?;
        }
        let file = self.dir.join(format!("{}.{used_by}.toml", self.name()));
        std::fs::write(&file, toml)?;
        Ok(file)
    }

    pub(super) fn prepare(&self, arguments: &[&str]) -> Result<Command> {
        let (subcommand, rest) = arguments.split_first().context("a subcommand")?;
        let file = self.write(subcommand)?;
        let program = self.program.clone().map_or_else(binary, Ok)?;
        let mut command = Command::new(program);
        command.arg(subcommand).arg("--config").arg(file).args(rest).current_dir(&self.dir);
        command.envs(&self.environment);
        Ok(command)
    }
}

/// `OUTBOX_TEST_RELAY`, else the one that cargo built beside the running test.
///
/// # Errors
/// There is none.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("OUTBOX_TEST_RELAY") {
        return Ok(path.into());
    }
    process::beside_the_tests("relay-under-test")
}
