//! The demo's NATS: a given server, or an installed one that is started for the occasion; and in it a stream of the
//! demo's own, which is deleted at the end.

use std::{
    env,
    fmt::Display,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use async_nats::{Client, ConnectOptions, ServerAddr, StatusCode};
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    core::header,
    demo::{count::Order, relay::quoted},
    sink::nats::with_login,
    throwaway::{self, guardian},
};

const PROGRAM: &str = "nats-server";
const INSTALL: &str = "`go install github.com/nats-io/nats-server/v2@latest`";
/// How long a server may take to answer a request.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a server may take from start to its first answer.
const START: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// A server, and the stream that the demo makes in it.
pub(in crate::demo) struct Nats {
    url: String,
    client: Client,
    described: String,
    /// It is ended with this.
    _server: Option<Server>,
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // One that has ended by itself can't be killed.
        let _ended_before = self.0.kill();
        let _status = self.0.wait();
        guardian::forget(self.0.id());
    }
}

impl Nats {
    pub(super) async fn obtain(given: Option<&str>, dir: &Path) -> Result<Self> {
        if let Some(url) = given {
            let client = connect(url).await.context("can't connect to the NATS server of --nats: check its address and login, and that it is up")?;
            return Self::with(url.to_owned(), client, "the one of --nats", None);
        }
        let program = installed().with_context(|| {
            format!(
                "no {PROGRAM} for the demo, neither in PATH nor where Go installs programs: install it, with \
                 {INSTALL}, or give --nats URL of a server with JetStream, where the demo makes and deletes a \
                 stream of its own"
            )
        })?;
        let port = throwaway::free_port()?;
        let mut command = Command::new(&program);
        command.args(["--jetstream", "--addr", "127.0.0.1", "--port", &port.to_string()]);
        command.arg("--store_dir").arg(dir.join("nats"));
        let log = dir.join("nats.log");
        let server = throwaway::spawn_logged(command, dir, &log, guardian::kill_at_exit)?;
        let server = Server(server);
        let url = format!("nats://127.0.0.1:{port}");
        let client = answering(&url).await.with_context(|| {
            format!("{} was started; its log:\n{}", program.display(), throwaway::tail(&log))
        })?;
        let place = format!("started from {}", program.display());
        Self::with(url, client, place, Some(server))
    }

    fn with(
        url: String,
        client: Client,
        place: impl Display,
        server: Option<Server>,
    ) -> Result<Self> {
        let version = client.server_info().version;
        let described = format!("NATS {version}: {place}, delivery exactly-once");
        if !client.server_info().jetstream {
            bail!("the NATS server at {url} has no JetStream: start it with `{PROGRAM} -js`");
        }
        Ok(Nats { url, client, described, _server: server })
    }

    pub(super) fn describe(&self) -> String {
        self.described.clone()
    }

    pub(super) fn settings(&self, topic: &str, partitions: u8) -> String {
        let [url, stream] = [&self.url, topic].map(quoted);
        format!(
            "[sink]\nkind = \"nats\"\n[sink.nats]\nurl = {url}\nstream = {stream}\npartitions = {partitions}\n"
        )
    }

    /// A stream of the topic's name, for the topic and the relay's progress.
    pub(super) async fn create(&self, topic: &str, progress: &str) -> Result<()> {
        let stream = json!({
            "name": topic, "subjects": [subjects(topic), progress.replacen("progress-", "progress.", 1)],
            "retention": "limits", "storage": "file", "num_replicas": 1, "allow_atomic": true,
            "allow_rollup_hdrs": true, "allow_direct": true,
        });
        self.api(&format!("STREAM.CREATE.{topic}"), &stream).await.with_context(|| {
            format!("making the stream {topic} (NATS 2.12 or later has what it needs; install it with {INSTALL})")
        })
    }

    /// Deletes the stream.
    pub(super) async fn delete(&self, topic: &str) -> Result<()> {
        let deleted = self.api(&format!("STREAM.DELETE.{topic}"), &json!({})).await;
        deleted.with_context(|| format!("deleting the stream {topic}"))
    }

    pub(super) fn reader(&self, topic: &str) -> NatsReader {
        NatsReader { client: self.client.clone(), stream: topic.to_owned(), next: 1 }
    }

    async fn api(&self, request: &str, body: &Value) -> Result<()> {
        #[derive(Deserialize)]
        struct Answer {
            error: Option<Refused>,
        }
        #[derive(Deserialize)]
        struct Refused {
            description: String,
        }
        let body = serde_json::to_vec(body)?;
        let asked = self.client.request(format!("$JS.API.{request}"), body.into());
        let answer = tokio::time::timeout(ANSWER, asked).await.context("no answer")??;
        let answer: Answer = serde_json::from_slice(&answer.payload)?;
        match answer.error {
            Some(Refused { description }) => bail!("{description}"),
            None => Ok(()),
        }
    }
}

/// Subjects of the topic's partitions.
fn subjects(topic: &str) -> String {
    format!("{topic}.*")
}

/// In PATH, or where `go install` puts it.
fn installed() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let go = [
        env::var_os("GOBIN").map(PathBuf::from),
        env::var_os("GOPATH").map(|path| PathBuf::from(path).join("bin")),
        env::home_dir().map(|home| home.join("go/bin")),
    ];
    let dirs = env::split_paths(&path).chain(go.into_iter().flatten());
    dirs.map(|dir| dir.join(PROGRAM)).find(|program| program.is_absolute() && program.is_file())
}

async fn connect(url: &str) -> Result<Client> {
    let servers: Result<Vec<ServerAddr>, _> =
        url.split(',').map(|url| url.trim().parse()).collect();
    let servers = servers.with_context(|| format!("{url} is not the address of a server"))?;
    let options = with_login(ConnectOptions::new().name("outbox-relay demo"), &servers);
    let connected = tokio::time::timeout(ANSWER, Box::pin(options.connect(servers))).await;
    Ok(connected.context("no answer")??)
}

async fn answering(url: &str) -> Result<Client> {
    let deadline = Instant::now() + START;
    loop {
        match connect(url).await {
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => tokio::time::sleep(POLL).await,
            Ok(client) => return Ok(client),
        }
    }
}

/// Reads a stream's events from the first on. It remembers no more than the sequence number.
pub(in crate::demo) struct NatsReader {
    client: Client,
    stream: String,
    /// The stream's sequence number to continue from.
    next: u64,
}

impl NatsReader {
    pub(super) async fn next(&mut self, max: usize) -> Result<Vec<Order>> {
        loop {
            if let Some(orders) = self.rest(max).await? {
                return Ok(orders);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Cancel safe: it continues from the same message.
    pub(super) async fn rest(&mut self, max: usize) -> Result<Option<Vec<Order>>> {
        let fetched = tokio::time::timeout(ANSWER, self.fetch(max)).await;
        let (orders, next) = fetched.context("reading the stream: no answer")??;
        self.next = next;
        Ok(Some(orders).filter(|orders| !orders.is_empty()))
    }

    /// A batch of messages, and where the next begins. The server sends each to the inbox, and a status at the end.
    async fn fetch(&self, max: usize) -> Result<(Vec<Order>, u64)> {
        let inbox = self.client.new_inbox();
        let mut answers = self.client.subscribe(inbox.clone()).await?;
        let request = json!({
            "seq": self.next, "batch": max, "next_by_subj": subjects(&self.stream),
        });
        let request = serde_json::to_vec(&request)?;
        let api = format!("$JS.API.DIRECT.GET.{}", self.stream);
        self.client.publish_with_reply(api, inbox, request.into()).await?;
        let (mut orders, mut next) = (Vec::new(), self.next);
        while let Some(message) = answers.next().await {
            match message.status {
                None => {}
                // The end of the batch, or nothing is there.
                Some(StatusCode::NOT_FOUND) => break,
                Some(status) if status.as_u16() == 204 => break,
                Some(status) => bail!("reading the stream: status {status}"),
            }
            let headers = message.headers.unwrap_or_default();
            let header = |name: &str| headers.get(name).map(|value| value.as_str());
            let number = header("Nats-Sequence").and_then(|number| number.parse::<u64>().ok());
            let number = number.context("a message of the stream has no sequence number")?;
            let [id, key] = [header::ID, header::KEY].map(|name| header(name).map(str::as_bytes));
            let order = Order::read(id, key, Some(&message.payload));
            orders.push(order.with_context(|| format!("message {number} of {}", self.stream))?);
            next = number + 1;
        }
        Ok((orders, next))
    }
}
