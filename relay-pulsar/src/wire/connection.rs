//! A connection to one broker: who waits for which answer.
//!
//! One task reads and one writes; both end with the connection, which ends when it is dropped. What is under way then is
//! uncertain, and everyone who waits is told.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::timeout,
};

use super::{
    frame,
    proto::{AuthData, AuthResponse, Command, Empty, Kind},
    token::Login,
};
use crate::{BYTES_MAX, Said, What};

/// Frames that wait to be written. Whoever has one more waits.
const FRAMES_MAX: usize = 64;
/// Answers that wait to be written, before all frames.
const ANSWERS_MAX: usize = 16;
const READ_BYTES: usize = 64 << 10;
/// What a broker says to a producer is far shorter.
const FRAME_BYTES_MAX: usize = 1 << 20;
/// A question is answered within this time.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// What a producer is told.
#[derive(Debug)]
pub(super) enum Told {
    Stored {
        sequence: u64,
        is_there: bool,
    },
    NotStored {
        sequence: u64,
        said: Said,
    },
    /// The broker has closed the producer.
    Closed,
}

/// What the broker said of itself.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) version: String,
    pub(super) bytes_max: usize,
    /// It can be asked for a topic without making it.
    pub(super) is_asked_only: bool,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) server: Server,
    frames: mpsc::Sender<Bytes>,
    waiting: Arc<Waiting>,
    /// Ends them when it is dropped.
    _tasks: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Waiting {
    who: Mutex<Who>,
}

#[derive(Debug, Default)]
struct Who {
    /// Why nothing more will come.
    ended: Option<Said>,
    last_id: u64,
    requests: HashMap<u64, oneshot::Sender<Result<Command, Said>>>,
    producers: HashMap<u64, mpsc::UnboundedSender<Told>>,
}

impl Waiting {
    fn who(&self) -> MutexGuard<'_, Who> {
        self.who.lock().expect("no one panics with it")
    }

    fn end(&self, why: String) {
        let mut who = self.who();
        let said = who.ended.get_or_insert_with(|| Said::uncertain(why)).clone();
        // Producers see their channel end.
        who.producers.clear();
        for (_, request) in who.requests.drain() {
            drop(request.send(Err(said.clone())));
        }
    }

    fn answered(&self, id: u64, answer: Result<Command, Said>) {
        let request = self.who().requests.remove(&id);
        if let Some(request) = request {
            // Whoever asked may be gone.
            drop(request.send(answer));
        }
    }

    fn told(&self, producer: u64, told: Told) {
        if let Some(told_to) = self.who().producers.get(&producer) {
            drop(told_to.send(told));
        }
    }
}

impl Connection {
    /// Shakes hands. `stream` is connected.
    pub(super) async fn over(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        login: Login,
        proxied_to: Option<String>,
    ) -> Result<Self, Said> {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let hello = login.hello(proxied_to)?;
        let sent = writer.write_all(&frame::command(&hello)).await;
        sent.map_err(|error| Said::uncertain(error.to_string()))?;
        writer.flush().await.map_err(|error| Said::uncertain(error.to_string()))?;
        let mut read = BytesMut::with_capacity(READ_BYTES);
        let server = match one(&mut reader, &mut read).await? {
            (Command { connected: Some(it), .. }, _) => Server {
                version: it.server_version,
                bytes_max: it
                    .max_message_size
                    .and_then(|bytes| usize::try_from(bytes).ok())
                    .filter(|bytes| *bytes > 0)
                    .unwrap_or(BYTES_MAX),
                is_asked_only: it.feature_flags.is_some_and(|it| it.supports_looking()),
            },
            (Command { error: Some(it), .. }, _) => return Err(said(it.error, it.message)),
            (other, _) => {
                return Err(Said::uncertain(format!("the broker answers with {:?}", other.kind())));
            }
        };
        let (frames, to_write) = mpsc::channel(FRAMES_MAX);
        let (answers, to_answer) = mpsc::channel(ANSWERS_MAX);
        let waiting = Arc::<Waiting>::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(write(writer, to_answer, to_write, Arc::clone(&waiting)));
        let told = Arc::clone(&waiting);
        tasks.spawn(async move {
            let why = listen(reader, read, &answers, &told, &login).await;
            told.end(why.text);
        });
        Ok(Connection { server, frames, waiting, _tasks: tasks })
    }

    pub(super) fn is_open(&self) -> bool {
        self.waiting.who().ended.is_none()
    }

    /// Why nothing more will come from it.
    pub(super) fn ended(&self) -> Said {
        let why = self.waiting.who().ended.clone();
        why.unwrap_or_else(|| Said::uncertain("the connection ended"))
    }

    /// A number that no other request and no other producer of this connection has.
    pub(super) fn id(&self) -> u64 {
        let mut who = self.waiting.who();
        who.last_id += 1;
        who.last_id
    }

    /// Sends a request of this number, and waits for its answer.
    pub(super) async fn ask(&self, id: u64, command: &Command) -> Result<Command, Said> {
        let (answer, answered) = oneshot::channel();
        {
            let mut who = self.waiting.who();
            if let Some(said) = &who.ended {
                return Err(said.clone());
            }
            who.requests.insert(id, answer);
        }
        let asked = async {
            self.send(frame::command(command)).await?;
            answered.await.unwrap_or_else(|_| Err(self.ended()))
        };
        let limited = timeout(ANSWER_LIMIT, asked).await;
        limited.unwrap_or_else(|_| {
            self.waiting.who().requests.remove(&id);
            Err(Said::uncertain(format!("no answer within {ANSWER_LIMIT:?}")))
        })
    }

    /// What a producer of this number will be told.
    pub(super) fn listens(&self, producer: u64) -> mpsc::UnboundedReceiver<Told> {
        let (told, heard) = mpsc::unbounded_channel();
        let mut who = self.waiting.who();
        if who.ended.is_none() {
            who.producers.insert(producer, told);
        }
        heard
    }

    /// No one listens for that producer any more. Closes it, if the line is not full.
    pub(super) fn forget(&self, producer: u64, close: &Command) {
        self.waiting.who().producers.remove(&producer);
        drop(self.frames.try_send(frame::command(close)));
    }

    pub(super) async fn send(&self, frame: Bytes) -> Result<(), Said> {
        // What is written could still be taken for a while.
        if !self.is_open() {
            return Err(self.ended());
        }
        self.frames.send(frame).await.map_err(|_| self.ended())
    }
}

async fn write(
    mut to: impl AsyncWrite + Unpin,
    mut answers: mpsc::Receiver<Bytes>,
    mut frames: mpsc::Receiver<Bytes>,
    waiting: Arc<Waiting>,
) {
    loop {
        let mut next = tokio::select! {
            biased;
            Some(answer) = answers.recv() => Some(answer),
            Some(frame) = frames.recv() => Some(frame),
            else => return,
        };
        while let Some(frame) = next {
            if let Err(error) = to.write_all(&frame).await {
                return waiting.end(error.to_string());
            }
            next = answers.try_recv().or_else(|_| frames.try_recv()).ok();
        }
        if let Err(error) = to.flush().await {
            return waiting.end(error.to_string());
        }
    }
}

async fn one(
    from: &mut (impl AsyncRead + Unpin),
    read: &mut BytesMut,
) -> Result<(Command, Bytes), Said> {
    loop {
        if let Some(frame) = frame::next(read, FRAME_BYTES_MAX).map_err(Said::uncertain)? {
            return Ok(frame);
        }
        match from.read_buf(read).await {
            Ok(0) => return Err(Said::uncertain("the broker closed the connection")),
            Ok(_) => {}
            Err(error) => return Err(Said::uncertain(error.to_string())),
        }
    }
}

/// Hands on what comes, until something ends it. Returns what did.
async fn listen(
    mut from: impl AsyncRead + Unpin,
    mut read: BytesMut,
    answers: &mpsc::Sender<Bytes>,
    waiting: &Waiting,
    login: &Login,
) -> Said {
    loop {
        let command = match one(&mut from, &mut read).await {
            Ok((command, _)) => command,
            Err(said) => return said,
        };
        let answer = match command.kind() {
            Kind::Ping => {
                Command { kind: Kind::Pong.into(), pong: Some(Empty {}), ..Command::default() }
            }
            Kind::AuthChallenge => match login.again() {
                Ok(again) => again,
                Err(said) => return said,
            },
            _ => {
                heard(command, waiting);
                continue;
            }
        };
        // Where so many wait, the line is full, and a broker sees from what it reads that the client lives.
        drop(answers.try_send(frame::command(&answer)));
    }
}

fn heard(command: Command, waiting: &Waiting) {
    if let Some(it) = &command.send_receipt {
        // As a broker says it of a copy that it has dropped.
        let is_there =
            it.message_id.is_some_and(|id| id.ledger != u64::MAX && id.entry != u64::MAX);
        waiting.told(it.producer_id, Told::Stored { sequence: it.sequence_id, is_there });
    } else if let Some(it) = command.send_error {
        let told = Told::NotStored {
            sequence: it.sequence_id,
            said: of_message(said(it.error, it.message), it.error),
        };
        waiting.told(it.producer_id, told);
    } else if let Some(it) = &command.close_producer {
        waiting.told(it.producer_id, Told::Closed);
    } else if let Some(it) = command.error {
        waiting.answered(it.request_id, Err(said(it.error, it.message)));
    } else if let Some(it) = &command.partitioned_metadata_response {
        let answer = match it.response {
            Some(0) => Ok(command.clone()),
            _ => Err(said(it.error.unwrap_or(0), it.message.clone().unwrap_or_default())),
        };
        waiting.answered(it.request_id, answer);
    } else if let Some(it) = &command.lookup_response {
        let answer = match it.response {
            Some(0 | 1) => Ok(command.clone()),
            _ => Err(said(it.error.unwrap_or(0), it.message.clone().unwrap_or_default())),
        };
        waiting.answered(it.request_id, answer);
    } else if let Some(it) = &command.producer_success {
        // One that is not ready waits for another one to go; this client asks for no such.
        waiting.answered(it.request_id, Ok(command.clone()));
    } else if let Some(it) = &command.success {
        waiting.answered(it.request_id, Ok(command.clone()));
    }
}

/// Codes of `ServerError`.
mod code {
    pub(super) const AUTHENTICATION: i32 = 3;
    pub(super) const AUTHORIZATION: i32 = 4;
    pub(super) const METADATA: i32 = 1;
    pub(super) const TOPIC_NOT_FOUND: i32 = 11;
    pub(super) const TOPIC_TERMINATED: i32 = 15;
    pub(super) const INVALID_TOPIC_NAME: i32 = 17;
    pub(super) const INCOMPATIBLE_SCHEMA: i32 = 18;
    pub(super) const NOT_ALLOWED: i32 = 22;
    pub(super) const PRODUCER_FENCED: i32 = 25;
}

/// What a broker said of a request.
fn said(error: i32, text: String) -> Said {
    let what = match error {
        code::AUTHENTICATION => What::Unknown,
        code::AUTHORIZATION => What::Denied,
        code::TOPIC_NOT_FOUND => What::Missing,
        code::TOPIC_TERMINATED | code::INVALID_TOPIC_NAME | code::INCOMPATIBLE_SCHEMA => {
            What::Refused
        }
        code::PRODUCER_FENCED => What::Fenced,
        _ => What::NotNow,
    };
    Said::new(what, text)
}

/// Of a single message, brokers refuse a few more.
fn of_message(said: Said, error: i32) -> Said {
    let what = match error {
        code::NOT_ALLOWED if said.text.to_ascii_lowercase().contains("size") => What::TooLarge,
        code::NOT_ALLOWED | code::METADATA => What::Refused,
        _ => said.what,
    };
    Said { what, ..said }
}

impl Login {
    /// The answer to a broker that wants to know again who asks.
    fn again(&self) -> Result<Command, Said> {
        let response = AuthResponse {
            client_version: Some(self.client_name.clone()),
            response: Some(AuthData {
                auth_method_name: self.method().map(str::to_owned),
                auth_data: Some(self.data()?),
            }),
            protocol_version: Some(super::PROTOCOL),
        };
        Ok(Command {
            kind: Kind::AuthResponse.into(),
            auth_response: Some(response),
            ..Command::default()
        })
    }
}
