//! The connection to the servers, and JetStream's requests over it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use async_nats::{
    Client, ConnectError, ConnectErrorKind, ConnectOptions, Event, HeaderMap, Request,
    RequestError, ServerAddr, ServerError, connection::State,
};
use bytes::Bytes;
use serde::{Deserialize, de::DeserializeOwned};

use super::{
    errors::{ApiError, Failed},
    forbidden::Forbidden,
    settings::Settings,
};
use crate::sink::{SinkError, unavailable};

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long a server may take to answer a question.
pub(super) const ASK_LIMIT: Duration = Duration::from_secs(5);
/// Of the server's headers: what must be the last.
pub(super) const EXPECTED: &str = "Nats-Expected-Last-Subject-Sequence";
/// How long it may take to refuse a message. What is forbidden is not answered.
const REFUSAL_LIMIT: Duration = Duration::from_secs(1);

/// Connects when it is first asked, and again after the connection was lost; shared by a sink and its probe.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) settings: Settings,
    connection: tokio::sync::Mutex<Option<Connection>>,
    forbidden: Arc<Forbidden>,
}

#[derive(Debug)]
struct Connection {
    client: Client,
    lost: Arc<AtomicBool>,
}

impl Link {
    pub(super) fn new(settings: Settings) -> Self {
        Link { settings, connection: tokio::sync::Mutex::default(), forbidden: Arc::default() }
    }

    /// The connection; connects if there is no live one. The library would reconnect by itself, but with what the
    /// files held when it first connected.
    pub(super) async fn client(&self) -> Result<Client, SinkError> {
        let mut connection = self.connection.lock().await;
        if let Some(Connection { client, lost }) = &*connection
            && !lost.load(Ordering::Relaxed)
            && client.connection_state() == State::Connected
        {
            return Ok(client.clone());
        }
        *connection = None;
        // The library's future is large.
        let made = Box::pin(self.connect()).await?;
        let client = made.client.clone();
        *connection = Some(made);
        Ok(client)
    }

    async fn connect(&self) -> Result<Connection, SinkError> {
        let doing = || format!("connecting to {}", self.settings.name());
        let servers = self.settings.url.expose().split(',');
        let servers: Result<Vec<ServerAddr>, _> = servers.map(|url| url.trim().parse()).collect();
        let servers = servers.map_err(|error| unavailable(doing(), error))?;
        let (forbidden, lost) = (Arc::clone(&self.forbidden), Arc::new(AtomicBool::new(false)));
        let is_lost = Arc::clone(&lost);
        let mut options = ConnectOptions::new()
            .name(format!("outbox-relay {}", self.settings.relay_name))
            .connection_timeout(CONNECT_LIMIT)
            // One that is lost is replaced here. By itself it would ask each server for ever, with what files held.
            .max_reconnects(servers.len())
            .event_callback(move |event| {
                match &event {
                    Event::ServerError(ServerError::Other(text)) => forbidden.note(text),
                    Event::Disconnected => is_lost.store(true, Ordering::Relaxed),
                    _ => {}
                }
                async move { tracing::debug!(%event, "NATS") }
            });
        options = with_login(options, &servers);
        if let Some(file) = &self.settings.credentials_file {
            let text = read(file, "sink.nats.credentials_file")?;
            options = options
                .credentials(&text)
                .map_err(|error| misread("sink.nats.credentials_file", error))?;
        }
        if let Some(file) = &self.settings.nkey_file {
            options = options.nkey(read(file, "sink.nats.nkey_file")?.trim().to_owned());
        }
        if let Some(file) = &self.settings.ca_file {
            options = options.add_root_certificates(file.clone());
        }
        if let Some((certificate, key)) = &self.settings.certificate {
            options = options.add_client_certificate(certificate.clone(), key.clone());
        }
        match tokio::time::timeout(CONNECT_LIMIT, options.connect(servers)).await {
            Ok(Ok(client)) => Ok(Connection { client, lost }),
            Ok(Err(error)) => Err(self.not_connected(error)),
            Err(_) => Err(unavailable(doing(), format!("no answer within {CONNECT_LIMIT:?}"))),
        }
    }

    fn not_connected(&self, error: ConnectError) -> SinkError {
        let name = self.settings.name();
        match error.kind() {
            ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
                SinkError::Misconfigured {
                    what: format!("{name} rejects the relay's login: {error}"),
                    remedy: self.settings.login(),
                }
            }
            _ => unavailable(format!("connecting to {name}"), error),
        }
    }

    /// The server's name and version.
    pub(super) async fn server(&self) -> Result<(String, String), SinkError> {
        let info = self.client().await?.server_info();
        Ok((info.server_name, info.version))
    }

    /// Subjects that the server has said the relay may not publish to, since then.
    pub(super) fn forbidden_since(&self, since: Instant) -> Vec<String> {
        self.forbidden.since(since)
    }

    /// A server does not answer what it does not let pass; it says so beside. `since` is when it was asked.
    fn unanswered(&self, subject: &str, since: Instant, error: RequestError) -> Failed {
        if !self.forbidden.is(subject, since) {
            return Failed::Unknown(error.into());
        }
        Failed::NotSent(SinkError::Misconfigured {
            what: format!("the relay's user may not publish to {subject}"),
            remedy: "allow it (docs/NATS.md lists the rights that the user needs); events wait in \
                     PostgreSQL meanwhile"
                .into(),
        })
    }

    /// Asks JetStream. `subject` is behind its prefix.
    pub(super) async fn api<T: DeserializeOwned>(
        &self,
        subject: &str,
        body: &serde_json::Value,
    ) -> Result<T, Failed> {
        let client = self.client().await?;
        let body = match body.is_null() {
            true => Bytes::new(),
            false => Bytes::from(body.to_string()),
        };
        let request = Request::new().payload(body).timeout(Some(ASK_LIMIT));
        let subject = format!("$JS.API.{subject}");
        let since = Instant::now();
        let answer = Box::pin(client.send_request(subject.clone(), request)).await;
        let answer = answer.map_err(|error| self.unanswered(&subject, since, error))?;
        parsed(&answer.payload)
    }

    /// Sends what no stream stores: it asks for another stream, and for a message that can't be the last. Its
    /// answer shows that the relay may publish to the subject.
    pub(super) async fn refused(&self, subject: &str) -> Result<u64, Failed> {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Stream", format!("{}.none", self.settings.stream).as_str());
        headers.insert(EXPECTED, i64::MAX.to_string());
        self.store(subject.to_owned(), headers, Bytes::new(), REFUSAL_LIMIT).await
    }

    /// Publishes a message to the stream, or the last one of a batch, and returns where it is stored.
    pub(super) async fn store(
        &self,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
        limit: Duration,
    ) -> Result<u64, Failed> {
        let client = self.client().await?;
        let request = Request::new().headers(headers).payload(payload).timeout(Some(limit));
        let since = Instant::now();
        let answer = Box::pin(client.send_request(subject.clone(), request)).await;
        let answer = answer.map_err(|error| self.unanswered(&subject, since, error))?;
        let stored: Ack = parsed(&answer.payload)?;
        match stored.stream == self.settings.stream {
            true => Ok(stored.seq),
            false => Err(Failed::Unknown(
                format!("the stream {} took it, which has that subject as well", stored.stream)
                    .into(),
            )),
        }
    }
}

#[derive(Deserialize)]
struct Ack {
    stream: String,
    seq: u64,
}

#[derive(Deserialize)]
struct Refusal {
    error: Option<ApiError>,
}

fn parsed<T: DeserializeOwned>(answer: &[u8]) -> Result<T, Failed> {
    let refusal: Refusal =
        serde_json::from_slice(answer).map_err(|error| Failed::Unknown(error.into()))?;
    match refusal.error {
        Some(error) => Err(Failed::Refused(error)),
        None => serde_json::from_slice(answer).map_err(|error| Failed::Unknown(error.into())),
    }
}

/// With user and password, or the token, that the addresses have: the library reads them, and does not use them.
pub(crate) fn with_login(options: ConnectOptions, servers: &[ServerAddr]) -> ConnectOptions {
    match servers.iter().find_map(|server| Some((server.username()?, server.password()))) {
        Some((user, Some(password))) => options.user_and_password(decoded(user), decoded(password)),
        Some((token, None)) => options.token(decoded(token)),
        None => options,
    }
}

fn decoded(part: &str) -> String {
    percent_encoding::percent_decode_str(part).decode_utf8_lossy().into_owned()
}

fn read(file: &std::path::Path, key: &str) -> Result<String, SinkError> {
    std::fs::read_to_string(file)
        .map_err(|error| misread(key, format!("{}: {error}", file.display())))
}

fn misread(key: &str, error: impl std::fmt::Display) -> SinkError {
    SinkError::Misconfigured {
        what: format!("{key} can't be used: {error}"),
        remedy: "name a file that the relay may read; it is read again when the relay connects"
            .into(),
    }
}
