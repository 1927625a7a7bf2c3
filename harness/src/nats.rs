//! A NATS server with JetStream, built once from its published module, in a directory of its own. It can
//! be ended and started again, with all it had stored.

mod flood;
mod program;

pub use self::program::program;

use std::{
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use outbox_relay::throwaway::guardian;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{host, process, topic::Record, wait};

/// Its settings, in its directory.
const SETTINGS: &str = "server.conf";
/// How long the server may take to answer.
const ASK: Duration = Duration::from_secs(10);

/// A server, running or not; ended by KILL when dropped.
#[derive(Debug)]
pub struct Nats {
    program: PathBuf,
    dir: PathBuf,
    port: u16,
    server: Child,
}

impl Nats {
    /// Starts one on a port of its own. Blocks for a moment, or a minute where it has to be built.
    ///
    /// # Errors
    /// What to install.
    pub fn start() -> Result<Self> {
        Self::start_with("")
    }

    /// The same, with settings as in a file of the server's.
    ///
    /// # Errors
    /// As [`Nats::start`].
    pub fn start_with(settings: &str) -> Result<Self> {
        let program = program()?;
        let dir = tempfile::Builder::new().prefix("outbox-nats-").tempdir()?.keep();
        guardian::remove_at_exit(&dir)?;
        std::fs::write(dir.join(SETTINGS), settings)?;
        let port = host::free_port();
        let server = spawn(&program, &dir, port)?;
        Ok(Nats { program, dir, port, server })
    }

    /// Names of its streams.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn streams(&self) -> Vec<String> {
        let client = client(&self.address()).await;
        let answer = api(&client, "STREAM.NAMES", &json!({})).await.expect("an answer");
        let names = answer.get("streams").and_then(Value::as_array);
        names.into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned)).collect()
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.server.id()
    }

    /// Has it read other settings while it runs.
    ///
    /// # Panics
    /// When they can't be written.
    pub fn reload(&self, settings: &str) {
        std::fs::write(self.dir.join(SETTINGS), settings).expect("settings");
        let pid = libc::pid_t::try_from(self.server.id()).expect("a process");
        // SAFETY: it is this one's child, which was not waited for.
        let told = unsafe { libc::kill(pid, libc::SIGHUP) };
        assert_eq!(told, 0, "the server is told");
    }

    /// How many logins it has rejected, by its log.
    pub fn rejected(&self) -> usize {
        let log = std::fs::read_to_string(self.dir.join("log"));
        log.map_or(0, |log| log.matches("authentication error").count())
    }

    /// Ends it as a crash does.
    ///
    /// # Panics
    /// When it had ended before.
    pub fn kill9(&mut self) {
        assert!(self.server.try_wait().expect("a status").is_none(), "it was running until now");
        self.end();
    }

    /// Starts it again, with all it had stored.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self) {
        self.server = spawn(&self.program, &self.dir, self.port).expect("the server starts");
    }

    /// Ends it, and keeps a copy of all that it has on disk; runs again.
    ///
    /// # Panics
    /// When files can't be copied.
    pub fn saved(&mut self) -> PathBuf {
        self.end();
        let copy = self.dir.join("saved");
        copied(&self.dir.join("data"), &copy);
        self.restart();
        copy
    }

    /// Ends it, and puts back what was on disk then, as a power cut can that comes before a write. It is down then.
    ///
    /// # Panics
    /// When files can't be copied.
    pub fn put_back(&mut self, saved: &Path) {
        self.end();
        let data = self.dir.join("data");
        std::fs::remove_dir_all(&data).expect("its data goes");
        copied(saved, &data);
    }

    fn end(&mut self) {
        // One that has ended already can't be killed, and is waited for all the same.
        let _ended_before = self.server.kill();
        let _status = self.server.wait();
        guardian::forget(self.server.id());
    }

    /// Makes a stream as the relay wants it, which has these subjects; `settings` are further ones.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn stream(&self, name: &str, subjects: &[&str], settings: &Value) -> Stream {
        self.stream_of(&self.address(), name, subjects, settings).await
    }

    /// The same, as the user that is in `server`: `user:password@host:port`.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn stream_of(
        &self,
        server: &str,
        name: &str,
        subjects: &[&str],
        settings: &Value,
    ) -> Stream {
        let mut config = json!({
            "name": name, "subjects": subjects, "retention": "limits", "storage": "file",
            "num_replicas": 1, "allow_atomic": true, "allow_rollup_hdrs": true,
        });
        overwrite(&mut config, settings);
        let create = format!("STREAM.CREATE.{name}");
        let client = client(server).await;
        let made =
            wait::until("JetStream is ready", wait::PATIENCE, || api(&client, &create, &config));
        made.await.expect("the stream is made");
        Stream { server: server.to_owned(), name: name.to_owned() }
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.end();
    }
}

/// A stream of a server.
#[derive(Clone, Debug)]
pub struct Stream {
    server: String,
    name: String,
}

#[derive(Deserialize)]
struct Message {
    subject: String,
    seq: u64,
    #[serde(default)]
    hdrs: String,
    #[serde(default)]
    data: String,
}

impl Stream {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the server that has it listens.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Changes its settings; what is not named stays.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn change(&self, settings: &Value) {
        self.try_change(settings).await.expect("the stream is changed");
    }

    /// As [`Stream::change`], for a server that may be away.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub async fn try_change(&self, settings: &Value) -> Result<()> {
        let client = client(&self.server).await;
        let info = api(&client, &format!("STREAM.INFO.{}", self.name), &json!({})).await?;
        let mut config = part(info, "config");
        overwrite(&mut config, settings);
        api(&client, &format!("STREAM.UPDATE.{}", self.name), &config).await?;
        Ok(())
    }

    /// Deletes all its messages, as a person does who wants room.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn purge(&self) {
        let client = client(&self.server).await;
        let purge = format!("STREAM.PURGE.{}", self.name);
        api(&client, &purge, &json!({})).await.expect("it is purged");
    }

    /// Publishes a message as anybody may who has the right.
    ///
    /// # Panics
    /// When the stream does not take it.
    pub async fn publish(&self, subject: &str, headers: &[(&str, &str)], payload: &str) {
        let mut map = async_nats::HeaderMap::new();
        headers.iter().for_each(|(name, value)| map.append(*name, *value));
        let request = async_nats::Request::new()
            .headers(map)
            .payload(payload.to_owned().into())
            .timeout(Some(ASK));
        let client = client(&self.server).await;
        let answer = client.send_request(subject.to_owned(), request).await.expect("an answer");
        let answer: Value = serde_json::from_slice(&answer.payload).expect("JSON");
        assert_eq!(answer.get("error"), None);
    }

    /// The place of what was stored last, which goes up with each message.
    ///
    /// # Panics
    /// When the server does not answer.
    pub async fn last(&self) -> u64 {
        let client = client(&self.server).await;
        let info = api(&client, &format!("STREAM.INFO.{}", self.name), &json!({})).await;
        let state = part(info.expect("it is there"), "state");
        state.get("last_seq").and_then(Value::as_u64).expect("a number")
    }

    /// What is stored under subjects that `filter` takes, in the stream's order, each as the record that
    /// it was made from. The last token of a subject is the partition.
    ///
    /// # Panics
    /// When the server does not answer, or a message is not as documented.
    pub async fn records(&self, filter: &str) -> Vec<Record> {
        self.records_after(filter, 0).await
    }

    /// As [`Stream::records`], of what is behind this offset.
    ///
    /// # Panics
    /// As [`Stream::records`].
    pub async fn records_after(&self, filter: &str, offset: i64) -> Vec<Record> {
        self.messages(filter, offset).await.iter().map(record).collect()
    }

    /// The bytes of each message under such subjects, whatever it is.
    ///
    /// # Panics
    /// When the server does not answer.
    pub async fn payloads(&self, filter: &str) -> Vec<Vec<u8>> {
        let messages = self.messages(filter, 0).await;
        messages.iter().map(|it| STANDARD.decode(&it.data).expect("Base64")).collect()
    }

    async fn messages(&self, filter: &str, offset: i64) -> Vec<Message> {
        let client = client(&self.server).await;
        let get = format!("STREAM.MSG.GET.{}", self.name);
        let mut found = Vec::new();
        let mut from = u64::try_from(offset).expect("an offset") + 1;
        loop {
            let next = json!({ "seq": from, "next_by_subj": filter });
            let answer = api(&client, &get, &next).await;
            let message: Message = match answer {
                Ok(answer) => serde_json::from_value(part(answer, "message")).expect("a message"),
                Err(error) if error.to_string().contains("10037") => return found,
                Err(error) => panic!("{error}"),
            };
            from = message.seq + 1;
            found.push(message);
        }
    }
}

/// A new connection; it ends with the runtime that it was made in, so tests share none.
async fn client(server: &str) -> async_nats::Client {
    let connected = wait::until("NATS answers", wait::PATIENCE, || {
        let (user, address) = server.rsplit_once('@').unwrap_or(("", server));
        let options = async_nats::ConnectOptions::new();
        let options = match user.split_once(':') {
            Some((user, password)) => options.user_and_password(user.into(), password.into()),
            None => options,
        };
        options.connect(address.to_owned())
    });
    connected.await.expect("the server is up")
}

/// Asks JetStream; `subject` is what comes behind its prefix.
async fn api(client: &async_nats::Client, subject: &str, body: &Value) -> Result<Value> {
    let request = async_nats::Request::new().payload(body.to_string().into()).timeout(Some(ASK));
    let answer = client.send_request(format!("$JS.API.{subject}"), request).await?;
    let answer: Value = serde_json::from_slice(&answer.payload)?;
    match answer.get("error") {
        Some(error) => bail!("{error}"),
        None => Ok(answer),
    }
}

fn part(mut answer: Value, name: &str) -> Value {
    answer.get_mut(name).expect("it is in the answer").take()
}

/// Sets what is in `settings`.
fn overwrite(config: &mut Value, settings: &Value) {
    let config = config.as_object_mut().expect("an object");
    for (key, value) in settings.as_object().into_iter().flatten() {
        config.insert(key.clone(), value.clone());
    }
}

/// Headers are sorted by name, the id before all: clients of NATS keep no order among names.
fn record(message: &Message) -> Record {
    let decoded = |text: &str| STANDARD.decode(text).expect("Base64");
    let (topic, partition) = message.subject.rsplit_once('.').expect("a partition");
    let block = String::from_utf8(decoded(&message.hdrs)).expect("headers are text");
    let mut headers: Vec<(String, String)> = Vec::new();
    let (mut key, mut payload, mut timestamp_ms) = (None, Some(decoded(&message.data)), None);
    for line in block.split("\r\n").skip(1).filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').expect("a name and a value");
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "outbox-key" => key = Some(value.as_bytes().to_vec()),
            "outbox-key-base64" => key = Some(decoded(value)),
            "outbox-tombstone" => payload = None,
            "outbox-created-at" => {
                let time: jiff::Timestamp = value.parse().expect("RFC 3339");
                timestamp_ms = Some(time.as_millisecond());
            }
            _ if name.starts_with("Nats-") => {}
            _ => headers.push((name.to_owned(), value.to_owned())),
        }
    }
    headers.sort_by_key(|(name, _)| (name != "outbox-id", name.clone()));
    Record {
        topic: topic.to_owned(),
        partition: partition.parse().expect("a number"),
        offset: i64::try_from(message.seq).expect("a sequence"),
        key,
        payload,
        headers,
        timestamp_ms,
    }
}

fn spawn(program: &Path, dir: &Path, port: u16) -> Result<Child> {
    let mut command = Command::new(program);
    command
        .args(["--jetstream", "--addr", "127.0.0.1", "--port", &port.to_string(), "--store_dir"])
        .arg(dir.join("data"))
        .arg("--config")
        .arg(dir.join(SETTINGS))
        .current_dir(dir);
    process::server(&mut command, &dir.join("log")).context("nats-server did not start")
}

fn copied(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("there is cp");
    assert!(done.success(), "{} is copied", from.display());
}
