//! Statements that are running in a session, and what ends one that no one waits for any more.
//!
//! A statement whose future is dropped runs on, and all behind it waits for it in the server: the end
//! of the transaction too. So that is waited for with patience, and then it is cancelled, from a
//! session of its own: what the pool connects with is what reaches this server, and a pooler between
//! them gives the process that serves this transaction.

use std::{
    pin::pin,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use deadpool::managed::Manager as _;
use deadpool_postgres::{Object, Pool};
use futures_util::TryStreamExt as _;
use tokio::time::timeout;
use tokio_postgres::{Error, SimpleQueryMessage, types::Type};

/// How long it may continue, and how long cancelling it may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// A handler may have left several.
const CANCELS_MAX: u32 = 3;

/// Of one transaction.
#[derive(Default)]
pub(crate) struct Running {
    /// Begun, and no one has had the answer.
    unanswered: AtomicUsize,
    /// The server's process. The first statement of each transaction that a handler gets asks for it, so it is
    /// known before the handler can leave anything running.
    backend: OnceLock<i32>,
    /// Nothing ends what runs there.
    lost: AtomicBool,
}

/// What became of a statement that was sent behind others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    Answered,
    /// Something before it was cancelled, and then it was.
    Cancelled,
    /// It was not, whatever was tried. The session is of no use.
    Never,
}

impl Running {
    /// A statement is sent.
    pub(crate) fn asks(&self) {
        self.unanswered.fetch_add(1, Relaxed);
    }

    /// Its answer is here, which it is not where the future of it was dropped.
    pub(crate) fn is_told(&self) {
        self.unanswered.fetch_sub(1, Relaxed);
    }

    /// Whether all were waited for.
    pub(crate) fn none(&self) -> bool {
        self.unanswered.load(Relaxed) == 0
    }

    /// Which process of the server it is in.
    pub(crate) fn is_in(&self, backend: i32) {
        self.backend.get_or_init(|| backend);
    }

    /// Runs `sql` behind all that runs in the session, and cancels that where it takes too long. Also says how
    /// many of its statements have succeeded, as far as is known.
    pub(crate) async fn behind(&self, client: &Object, pool: &Pool, sql: &str) -> (Waited, usize) {
        if self.lost.load(Relaxed) {
            return (Waited::Never, 0);
        }
        let succeeded = AtomicUsize::new(0);
        let mut answer = pin!(async {
            let mut answers = pin!(client.simple_query_raw(sql).await?);
            while let Some(answer) = answers.try_next().await? {
                if matches!(answer, SimpleQueryMessage::CommandComplete(_)) {
                    succeeded.fetch_add(1, Relaxed);
                }
            }
            Ok::<_, Error>(())
        });
        let mut waited = Waited::Answered;
        for _ in 0..=CANCELS_MAX {
            if timeout(PATIENCE, &mut answer).await.is_ok() {
                self.unanswered.store(0, Relaxed);
                return (waited, succeeded.load(Relaxed));
            }
            waited = Waited::Cancelled;
            self.cancel(pool).await;
        }
        self.lost.store(true, Relaxed);
        (Waited::Never, succeeded.load(Relaxed))
    }

    async fn cancel(&self, pool: &Pool) {
        let Some(backend) = self.backend.get() else { return };
        let cancelled = async {
            // None of the pool's places: whoever has them may wait for this.
            let mut client = pool.manager().create().await?;
            let sql = "select pg_catalog.pg_cancel_backend($1)";
            let done = client.query_typed(sql, &[(backend, Type::INT4)]).await;
            pool.manager().detach(&mut client);
            done.map(drop)
        };
        let (error, backend) = match timeout(PATIENCE, cancelled).await {
            Ok(Ok(())) => return,
            Ok(Err::<(), Error>(error)) => (error.to_string(), backend),
            Err(_) => ("no answer in time".to_owned(), backend),
        };
        tracing::warn!(
            error,
            backend,
            "a statement that a handler left running could not be cancelled: what it has locked stays \
             locked; type, as the consumer's role: select pg_cancel_backend({backend})"
        );
    }
}
