//! SQL sessions: tokio-postgres over this crate's own transport, trust and host walk.
//!
//! The session owns the task that drives its connection. Used by `daemon`, `leader`, `check` and
//! whatever else speaks SQL; statements are theirs.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};
use tokio_util::task::AbortOnDropHandle;

use super::{
    conninfo::ConnectSettings,
    dial::{Line, Startup, dial},
    error::ConnectError,
    login::{connect_error, open},
    meter::Metered,
    pins,
    watch::Probe,
};

/// Connects, authenticates and pins the session's settings (`pins`). The URL's own
/// `application_name` goes before the one given here. A line that dies while an answer is due ends
/// the session within some ten seconds (`watch`).
///
/// Cancel safe: dropped half-way, what was opened is closed.
///
/// # Errors
/// [`ConnectError`], sorted by whether waiting may help.
pub async fn connect(
    settings: &ConnectSettings,
    application_name: &str,
) -> Result<SqlSession, ConnectError> {
    let settings = &settings.renewed().await;
    // Boxed: the walk holds a whole login, which would be part of each caller's future.
    Box::pin(dial(settings, &SqlStartup { settings, application_name })).await
}

/// A connection for SQL. Dropping it closes the connection at once.
#[derive(Debug)]
pub struct SqlSession {
    client: Client,
    host: String,
    pid: i32,
    lost: watch::Receiver<Ended>,
    task: AbortOnDropHandle<()>,
}

/// `None` while the connection stands, then its error if it had one.
type Ended = Option<Option<Cause>>;
type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// The connection has ended.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the connection to {host} has ended")]
pub struct SessionLost {
    host: String,
    #[source]
    source: Option<Cause>,
}

impl SqlSession {
    /// For statements.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// For transactions, which borrow it alone.
    pub fn client_mut(&mut self) -> &mut Client {
        &mut self.client
    }

    /// Host and port that answered.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The server's process.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Waits until the connection has ended. Cancel safe, and may be awaited again.
    pub async fn closed(&self) -> SessionLost {
        let mut lost = self.lost.clone();
        // An error means that the task is gone, which is the same to us.
        let ended = lost.wait_for(Option::is_some).await.ok().and_then(|ended| ended.clone());
        SessionLost { host: self.host.clone(), source: ended.flatten() }
    }

    /// Says goodbye and waits until the server's side is closed: locks are free afterwards.
    pub async fn close(self) {
        let SqlSession { client, task, .. } = self;
        drop(client);
        // The task only fails by panicking, and then the connection is closed as well.
        drop(task.await);
    }
}

struct SqlStartup<'a> {
    settings: &'a ConnectSettings,
    application_name: &'a str,
}

impl Startup for SqlStartup<'_> {
    type Session = SqlSession;

    async fn start(&self, line: Line) -> Result<SqlSession, ConnectError> {
        let Line { socket, route, password } = line;
        let (socket, meter) = Metered::new(socket);
        let (client, connection) =
            open(self.settings, self.application_name, socket, password.as_ref()).await?;
        let connection = AbortOnDropHandle::new(tokio::spawn(connection));
        let row = first_row(&client, &pins::settle()).await?;
        let column = |index| row.as_ref().and_then(|row| row.try_get(index).ok().flatten());
        let pid = pins::settled(column(0), column(1))?;
        let host = route.host.clone();
        meter.begin();
        let probe = Probe { settings: Arc::new(self.settings.clone()), route, password, pid };
        let (ended, lost) = watch::channel(None);
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            let error = tokio::select! {
                // It fails only by panicking, which ends the connection as well.
                result = connection => result.ok().and_then(Result::err).map(|e| Arc::new(e) as Cause),
                silent_for = probe.lost(&meter) => Some(give_up(&probe.route.host, silent_for)),
            };
            ended.send_replace(Some(error));
        }));
        Ok(SqlSession { client, host, pid, lost, task })
    }

    async fn ask(
        &self,
        session: &mut SqlSession,
        query: &'static str,
    ) -> Result<String, ConnectError> {
        let row = first_row(&session.client, query).await?;
        let value = row.as_ref().and_then(|row| row.try_get(0).ok().flatten());
        value.map(str::to_owned).ok_or_else(|| {
            ConnectError::transient(format!("the server gave no answer to {query:?}"))
        })
    }
}

fn give_up(host: &str, silent_for: Duration) -> Cause {
    let seconds = silent_for.as_secs();
    tracing::warn!(host, seconds, "PostgreSQL has not answered: the session is given up");
    Arc::new(std::io::Error::new(
        std::io::ErrorKind::TimedOut,
        format!("an answer was lost: nothing came for {seconds} s"),
    ))
}

async fn first_row(client: &Client, query: &str) -> Result<Option<SimpleQueryRow>, ConnectError> {
    let answer = client.simple_query(query).await.map_err(connect_error)?;
    Ok(answer.into_iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    }))
}
