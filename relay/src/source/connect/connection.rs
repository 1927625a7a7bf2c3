//! What is asked over a connection that speaks the replication protocol, before its stream begins.

use std::{collections::BTreeMap, io, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{DataRowBody, Message};
use tokio::time::timeout;

use super::error::{QueryError, StartError};
use crate::{
    core::{identity::SystemIdentity, lsn::Lsn},
    postgres::{
        dial::CancelHandle,
        error::{ServerError, needs_time},
        socket::Socket,
        watch::{ASK_AFTER, Probe},
    },
    source::{
        command::{self, StreamOptions},
        wire::{Reply, Wire, malformed},
    },
};

/// A connection on which the server has accepted `START_REPLICATION`.
#[derive(Debug)]
pub struct Accepted {
    pub(crate) socket: Socket,
    /// Read already, past that answer.
    pub(crate) unread: BytesMut,
}

/// A server takes a slot up, or refuses, within moments.
const BEGIN_MAX: Duration = Duration::from_secs(30);

/// All rows of one answer together; no command here has more than a few.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Logged in, nothing streaming yet.
#[derive(Debug)]
pub struct ReplicationConnection {
    pub(super) wire: Wire<Socket>,
    pub(super) host: String,
    pub(super) parameters: BTreeMap<String, String>,
    pub(super) server_version_num: u32,
    pub(super) backend_pid: i32,
    pub(super) cancel: CancelHandle,
    pub(super) probe: Probe,
    /// A command was sent and its answer not read to the end.
    pub(super) interrupted: bool,
}

/// A slot that was just made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreatedSlot {
    /// Commits from here on are in the stream; what was committed before is in the snapshot.
    pub consistent_point: Lsn,
    /// For `SET TRANSACTION SNAPSHOT`. Gone as soon as this connection runs another command or closes.
    pub snapshot_name: String,
}

impl ReplicationConnection {
    /// Host and port that answered.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Such as 150004 for 15.4.
    pub fn server_version_num(&self) -> u32 {
        self.server_version_num
    }

    /// The server's process, as in `pg_stat_replication.pid`.
    pub fn backend_pid(&self) -> i32 {
        self.backend_pid
    }

    /// A parameter that the server reported at the start, such as `server_encoding`.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// Ends what this connection is running, from elsewhere.
    pub fn cancel_handle(&self) -> CancelHandle {
        self.cancel.clone()
    }

    /// Runs one statement of SQL, or one replication command, and returns its rows as text.
    ///
    /// # Errors
    /// [`QueryError`]; only after `Refused` may the connection be used again.
    pub async fn simple_query(
        &mut self,
        sql: &str,
    ) -> Result<Vec<Vec<Option<String>>>, QueryError> {
        let doing = "running a query";
        let text = |value: Bytes| {
            String::from_utf8(value.into()).map_err(|_| malformed("a value is not UTF-8"))
        };
        let rows = self.rows(doing, sql).await?.into_iter();
        let rows = rows.map(|row| row.into_iter().map(|v| v.map(text).transpose()).collect());
        rows.collect::<io::Result<_>>().map_err(|source| QueryError::Lost { doing, source })
    }

    /// Asks who the server is.
    ///
    /// # Errors
    /// [`QueryError`].
    pub async fn identify_system(&mut self) -> Result<SystemIdentity, QueryError> {
        let doing = "identifying the system";
        let row = self.row(doing, "IDENTIFY_SYSTEM").await?;
        let identity = || {
            let field = |index: usize| row.get(index).and_then(Option::as_deref);
            Some(SystemIdentity {
                system_id: field(0)?.to_owned(),
                timeline: field(1)?.parse().ok()?,
                flush_lsn: field(2)?.parse().ok()?,
            })
        };
        identity().ok_or_else(|| unreadable(doing))
    }

    /// The timelines before `timeline`, oldest first, each with the LSN at which it was left.
    /// Empty for timeline 1, which has no history.
    ///
    /// # Errors
    /// [`QueryError`]; SQLSTATE 58P01 when the server no longer has the history's file.
    pub async fn timeline_history(&mut self, timeline: u32) -> Result<Vec<(u32, Lsn)>, QueryError> {
        let doing = "reading the timeline's history";
        if timeline <= 1 {
            return Ok(Vec::new());
        }
        let rows = self.rows(doing, &format!("TIMELINE_HISTORY {timeline}")).await?;
        let content = rows.into_iter().next().and_then(|row| row.into_iter().nth(1).flatten());
        // The reasons in it may be in any encoding.
        content
            .and_then(|content| command::timeline_history(&String::from_utf8_lossy(&content)))
            .ok_or_else(|| unreadable(doing))
    }

    /// Makes a logical slot for pgoutput, permanent. The server waits for every open writing
    /// transaction of the cluster first, for hours if need be; `slot::writers_waited_for` names
    /// them. `failover` counts on PostgreSQL 17 and later.
    ///
    /// May be dropped in a `select!`. The server does not notice that by itself: it continues
    /// waiting and then makes the slot. Call [`CancelHandle::cancel`] (taken in advance) so that
    /// it isn't made, and drop the connection.
    ///
    /// # Errors
    /// [`QueryError`]; SQLSTATE 42710 when a slot of that name exists, 53400 when
    /// `max_replication_slots` are in use, 57014 when it was cancelled.
    pub async fn create_slot(
        &mut self,
        slot: &str,
        failover: bool,
    ) -> Result<CreatedSlot, QueryError> {
        let doing = "creating the slot";
        let sql = command::create_slot(self.server_version_num, slot, failover);
        let mut row = self.row(doing, &sql).await?.into_iter().skip(1);
        let consistent_point = row.next().flatten().and_then(|text| text.parse().ok());
        Ok(CreatedSlot {
            consistent_point: consistent_point.ok_or_else(|| unreadable(doing))?,
            snapshot_name: row.next().flatten().ok_or_else(|| unreadable(doing))?,
        })
    }

    /// Drops a slot that no one uses.
    ///
    /// # Errors
    /// [`QueryError`]; SQLSTATE 42704 when there is none, 55006 when it is active.
    pub async fn drop_slot(&mut self, slot: &str) -> Result<(), QueryError> {
        self.rows("dropping the slot", &command::drop_slot(slot)).await.map(drop)
    }

    /// Begins the stream and hands the socket over. The server goes back to the slot's `confirmed_flush_lsn` if `start`
    /// is before it, in silence: compare first.
    ///
    /// # Errors
    /// [`StartError`]. A missing publication is not among them: the server finds it later, in
    /// the stream.
    pub async fn start_replication(
        mut self,
        slot: &str,
        start: Lsn,
        options: &StreamOptions,
    ) -> Result<Accepted, StartError> {
        let doing = "starting replication";
        // Or one row that has no form in UTF-8 would have it refuse the stream.
        let encoding = self.parameter("server_encoding").filter(|encoding| *encoding != "UTF8");
        if let Some(encoding) = encoding.map(str::to_owned) {
            let as_it_is = format!("set client_encoding = '{encoding}'");
            self.simple_query(&as_it_is).await.map_err(StartError::Transient)?;
        }
        let sql = command::start_replication(slot, start, options);
        let sql = options.charset.bytes_of(&sql);
        // A walsender that streams is at work, whether its word has come or not.
        let begun = timeout(BEGIN_MAX, self.begin_stream(doing, &sql)).await;
        let begun = begun.unwrap_or_else(|_elapsed| {
            let source = io::Error::new(io::ErrorKind::TimedOut, "no answer");
            Err(QueryError::Lost { doing, source })
        });
        match begun {
            Ok(()) => {
                let (socket, unread) = self.wire.into_parts();
                Ok(Accepted { socket, unread })
            }
            Err(QueryError::Refused { error, doing }) => Err(match error.sqlstate.as_str() {
                "55006" => {
                    let pid = command::active_pid(&error.message, slot);
                    StartError::SlotActive(error, pid)
                }
                "42704" => StartError::SlotMissing(error),
                "55000" | "58P01" => StartError::SlotLost(error),
                sqlstate if needs_time(sqlstate) => {
                    StartError::Transient(QueryError::Refused { error, doing })
                }
                _ => StartError::Other(QueryError::Refused { error, doing }),
            }),
            Err(error @ QueryError::Interrupted { .. }) => Err(StartError::Transient(error)),
            Err(QueryError::Lost { doing, source }) => {
                let error = QueryError::Lost { doing, source };
                Err(StartError::Transient(error))
            }
        }
    }

    async fn begin_stream(&mut self, doing: &'static str, sql: &[u8]) -> Result<(), QueryError> {
        self.send_query(doing, sql).await?;
        let lost = |source| QueryError::Lost { doing, source };
        loop {
            match self.receive().await.map_err(lost)? {
                Reply::CopyBoth => return Ok(()),
                Reply::Message(Message::ErrorResponse(body)) => {
                    let error = ServerError::read(body.fields()).map_err(lost)?;
                    return Err(QueryError::Refused { doing, error });
                }
                Reply::Message(Message::NoticeResponse(_) | Message::ParameterStatus(_)) => {}
                Reply::Message(_) => return Err(lost(malformed("an unexpected message"))),
            }
        }
    }

    pub(super) async fn row(
        &mut self,
        doing: &'static str,
        sql: &str,
    ) -> Result<Vec<Option<String>>, QueryError> {
        let row =
            self.rows(doing, sql).await?.into_iter().next().ok_or_else(|| unreadable(doing))?;
        let text = |value: Bytes| String::from_utf8_lossy(&value).into_owned();
        Ok(row.into_iter().map(|value| value.map(text)).collect())
    }

    /// Reads the answer to its end, also after an error, so that the next command has its own.
    async fn rows(
        &mut self,
        doing: &'static str,
        sql: &str,
    ) -> Result<Vec<Vec<Option<Bytes>>>, QueryError> {
        self.send_query(doing, sql.as_bytes()).await?;
        let lost = |source| QueryError::Lost { doing, source };
        let (mut rows, mut bytes, mut refused) = (Vec::new(), 0, None);
        loop {
            let reply = match self.receive().await {
                Ok(Reply::Message(message)) => Ok(message),
                Ok(Reply::CopyBoth) => Err(malformed("CopyBothResponse was not asked for")),
                Err(error) => Err(error),
            };
            match reply {
                Ok(Message::ReadyForQuery(_)) => break,
                Ok(Message::DataRow(body)) => {
                    bytes += body.buffer().len();
                    if bytes > ANSWER_BYTES_MAX {
                        return Err(lost(malformed("an answer larger than 16 MiB")));
                    }
                    rows.push(values(&body).map_err(lost)?);
                }
                Ok(Message::ErrorResponse(body)) => {
                    refused = Some(ServerError::read(body.fields()).map_err(lost)?);
                }
                Ok(Message::ParameterStatus(body)) => {
                    let name = body.name().map_err(lost)?.to_owned();
                    self.parameters.insert(name, body.value().map_err(lost)?.to_owned());
                }
                Ok(
                    Message::RowDescription(_)
                    | Message::CommandComplete(_)
                    | Message::EmptyQueryResponse
                    | Message::NoticeResponse(_),
                ) => {}
                Ok(_) => return Err(lost(malformed("an unexpected message"))),
                // A fatal error's text says more than the end of the connection that follows it.
                Err(error) => {
                    return Err(match refused {
                        Some(refused) => lost(io::Error::other(refused)),
                        None => lost(error),
                    });
                }
            }
        }
        self.interrupted = false;
        match refused {
            Some(error) => Err(QueryError::Refused { doing, error }),
            None => Ok(rows),
        }
    }

    /// The server's next message; it may take as long as the server works on it.
    async fn receive(&mut self) -> io::Result<Reply> {
        let mut lost = false;
        loop {
            match timeout(ASK_AFTER, self.wire.receive()).await {
                Ok(reply) => return reply,
                // What was still under way when the server was asked has come by now.
                Err(_elapsed) if lost => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "the answer was lost"));
                }
                Err(_elapsed) => lost = !self.probe.works().await,
            }
        }
    }

    async fn send_query(&mut self, doing: &'static str, sql: &[u8]) -> Result<(), QueryError> {
        if std::mem::replace(&mut self.interrupted, true) {
            return Err(QueryError::Interrupted { doing });
        }
        let lost = |source| QueryError::Lost { doing, source };
        // A query in the session's encoding, which need not be UTF-8.
        let length = i32::try_from(sql.len() + 5).map_err(|_| lost(malformed("a long query")))?;
        let mut message = BytesMut::with_capacity(sql.len() + 6);
        message.put_u8(b'Q');
        message.put_i32(length);
        message.put_slice(sql);
        message.put_u8(0);
        self.wire.send(&message).await.map_err(lost)
    }
}

fn values(body: &DataRowBody) -> io::Result<Vec<Option<Bytes>>> {
    let range = |range: Option<std::ops::Range<usize>>| {
        // The ranges were checked against this buffer. Copied, so that a row of a few bytes does
        // not hold the whole read.
        Ok(range.and_then(|r| body.buffer().get(r)).map(Bytes::copy_from_slice))
    };
    body.ranges().map(range).collect()
}

fn unreadable(doing: &'static str) -> QueryError {
    QueryError::Lost { doing, source: malformed("the answer has not the documented shape") }
}
