//! The inbox of one logical consumer: claims messages, each once, in the transaction of the effect.
//!
//! It knows no broker. A claim is one inserted row; a second copy waits at the unique index until
//! the first copy's transaction has ended, and then is a duplicate, or, if that rolled back, the
//! first. Nothing is ever updated, so success leaves no dead row behind.
//!
//! Here and in all of this crate: the sessions are the user's, with whatever `search_path`. So every
//! function, operator and type of a statement names its schema, but where SQL's grammar gives it one
//! (`coalesce`, `extract`, `at time zone`, `unnest` of several arrays).

use std::{sync::Arc, time::Duration};

use deadpool_postgres::Pool;
use tokio_postgres::{
    GenericClient, Transaction,
    types::{ToSql, Type},
};
use uuid::Uuid;

use crate::{
    error::{InboxError, OnceError},
    guard,
    losses::{self, Loss, Told},
    message_id::{Day, MessageId},
    registered, remembered,
    repertoire::Repertoire,
    session::{Isolation, Sessions, explained},
    transaction::Open,
    tx::Tx,
    window::{self, Known, LOOKING, Window, no_partition},
};

const CLAIM: &str = "insert into inbox.messages (consumer_id, id, day) values ($1, $2, $3) \
                     on conflict do nothing returning pg_catalog.pg_backend_pid() as backend, \
                         pg_catalog.pg_current_xact_id()::pg_catalog.text as transaction";

/// Sorted, so that two batches that share ids wait for one another in one direction only.
pub(crate) const CLAIM_BATCH: &str = "insert into inbox.messages (consumer_id, id, day) \
     select $1, m.id, m.day from unnest($2::pg_catalog.uuid[], $3::pg_catalog.date[]) \
         as m (id, day) order by m.id, m.day \
     on conflict do nothing returning id";

/// Whether a message is to take effect. It is exhaustive on purpose: whoever acknowledges a message must decide
/// about each answer, so one that is added later must not compile unseen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It was not here before: it is this transaction's, and taken if and only if that commits.
    Fresh,
    /// It has taken effect. Acknowledge it and do nothing.
    Duplicate,
    /// Its day is older than what is remembered, or further ahead than is prepared for, so no one
    /// can tell whether it has taken effect. It was not claimed; put it aside for a person.
    OutsideWindow,
}

/// What became of [`Inbox::once`]. Exhaustive on purpose, as [`Claim`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Once<R> {
    /// The work was done and is committed; what it returned.
    Applied(R),
    /// As [`Claim::Duplicate`]; the work was not called.
    Duplicate,
    /// As [`Claim::OutsideWindow`]; the work was not called.
    OutsideWindow,
}

/// The inbox of one consumer, in the consumer's database. Cheap to clone; for any number of tasks.
#[derive(Clone)]
pub struct Inbox {
    shared: Arc<Shared>,
    sessions: Arc<Sessions>,
}

struct Shared {
    consumer: String,
    consumer_id: i32,
    window: Known,
    told: Told,
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox")
            .field("consumer", &self.shared.consumer)
            .field("overdue", &self.overdue())
            .finish_non_exhaustive()
    }
}

impl Inbox {
    /// The inbox of `consumer`, a name such as `billing/charge` that all its instances share and
    /// that outlives releases: another name has taken nothing yet and takes everything again.
    /// Registers the name, and makes and drops partitions ([`Inbox::maintain`]).
    ///
    /// Cancel safe: call it again.
    ///
    /// # Errors
    /// [`InboxError::Refused`] where the server rejects the user, password or database, or where the
    /// migration set `inbox` or a grant is missing,
    /// [`InboxError::Setting`] where a setting weakens what the inbox promises.
    pub async fn open(pool: Pool, consumer: &str) -> Result<Self, InboxError> {
        match Self::opened(pool.clone(), consumer).await {
            Err(error) => Err(explained(&pool, error).await),
            inbox => inbox,
        }
    }

    async fn opened(pool: Pool, consumer: &str) -> Result<Self, InboxError> {
        let sessions = Arc::new(Sessions::open(pool, consumer).await?);
        let consumer_id = registered::number(&sessions).await?;
        let window = Known::of(window::maintain(&sessions).await?);
        let consumer = consumer.to_owned();
        let shared = Shared { consumer, consumer_id, window, told: Told::default() };
        let inbox = Inbox { shared: Arc::new(shared), sessions };
        inbox.losses().await?;
        Ok(inbox)
    }

    /// With another isolation level for the transactions that messages take effect in. Where two
    /// collide, a [`crate::Processor`] runs the message again; [`Inbox::once`] says
    /// [`InboxError::Conflict`].
    #[must_use]
    pub fn isolation(self, level: Isolation) -> Self {
        let sessions = Arc::new(self.sessions.with_isolation(level));
        Inbox { sessions, ..self }
    }

    /// With a limit to the time of one statement, where the role has no shorter one.
    pub(crate) fn statement_limit(self, limit: Duration) -> Self {
        let sessions = Arc::new(self.sessions.with_limit(limit));
        Inbox { sessions, ..self }
    }

    /// The name it was opened with.
    pub fn consumer(&self) -> &str {
        &self.shared.consumer
    }

    /// Does `work` and remembers the message, both in one transaction: however often and wherever
    /// it is called for the message, the work is committed once. BEGIN and the claim are one round
    /// trip. A concurrent call for the same message waits for this one.
    ///
    /// Cancel safe: dropped before the end, everything is rolled back; dropped during the commit,
    /// a further call finds out.
    ///
    /// # Errors
    /// [`OnceError::Work`] from the work, rolled back. [`InboxError::Unavailable`] may have
    /// been committed: call it again, and it will say [`Once::Duplicate`] if so.
    pub async fn once<R, E, F, Fut>(&self, id: &MessageId, work: F) -> Result<Once<R>, OnceError<E>>
    where
        F: FnOnce(Tx) -> Fut,
        Fut: Future<Output = Result<R, E>>,
    {
        match self.tried_once(id, work).await {
            Err(OnceError::Inbox(error)) => Err(self.sessions.explained(error).await.into()),
            done => done,
        }
    }

    async fn tried_once<R, E, F, Fut>(
        &self,
        id: &MessageId,
        work: F,
    ) -> Result<Once<R>, OnceError<E>>
    where
        F: FnOnce(Tx) -> Fut,
        Fut: Future<Output = Result<R, E>>,
    {
        if !self.can_tell(id).await? {
            return Ok(Once::OutsideWindow);
        }
        const DOING: &str = "claiming a message";
        let (uuid, day) = (id.uuid(), id.day());
        let params: [&(dyn ToSql + Sync); 3] = [&self.shared.consumer_id, &uuid, &day];
        let (open, claimed) = match Open::begin(&self.sessions, DOING, CLAIM, &params).await {
            Err(InboxError::Refused { source, .. }) if no_partition(&source) => {
                self.maintain().await?;
                // If someone has dropped its day, the day is there again: the caller may try again.
                let again = self.knows(id).then(|| InboxError::Conflict(source).into());
                return again.map_or(Ok(Once::OutsideWindow), Err);
            }
            begun => begun?,
        };
        if claimed.is_empty() {
            remembered::are_there(&open, self.shared.consumer_id, &[uuid], &[day]).await?;
            open.rollback().await?;
            return Ok(Once::Duplicate);
        }
        let outcome = work(open.tx()).await;
        match outcome {
            Ok(result) => {
                open.commit().await?;
                Ok(Once::Applied(result))
            }
            Err(error) => {
                // What can't be told to the database now is rolled back with its connection.
                match open.rollback().await {
                    Err(why @ (InboxError::Escaped | InboxError::Ended)) => Err(why.into()),
                    _ => Err(OnceError::Work(error)),
                }
            }
        }
    }

    /// Claims a message in a transaction of the caller's own, on any connection to the inbox's
    /// database. Waits while another transaction has claimed it and has not ended. Commit only
    /// what was [`Claim::Fresh`]. The isolation level must be READ COMMITTED, the default.
    ///
    /// Not cancel safe: dropped half-way, the message may be claimed. Roll the transaction back.
    ///
    /// # Errors
    /// [`InboxError`]; the transaction is failed then: roll it back.
    pub async fn claim(
        &self,
        transaction: &Transaction<'_>,
        id: &MessageId,
    ) -> Result<Claim, InboxError> {
        if !self.knows(id) && !self.look(transaction, id).await? {
            return Ok(Claim::OutsideWindow);
        }
        let params: [(&(dyn ToSql + Sync), Type); 3] = [
            (&self.shared.consumer_id, Type::INT4),
            (&id.uuid(), Type::UUID),
            (&id.day(), Type::DATE),
        ];
        let claimed = transaction.query_typed(CLAIM, &params).await;
        let claimed = claimed.map_err(|error| InboxError::of("claiming a message", error))?;
        if claimed.is_empty() {
            let consumer_id = self.shared.consumer_id;
            remembered::are_there_for(transaction, consumer_id, &[id.uuid()], &[id.day()]).await?;
            return Ok(Claim::Duplicate);
        }
        Ok(Claim::Fresh)
    }

    /// As [`Inbox::claim`], for many in one statement. One answer for each id, in their order; of
    /// an id that is there twice, the later ones are duplicates. Ids are claimed in one order, so
    /// batches that overlap wait for one another but do not deadlock.
    ///
    /// Not cancel safe, as [`Inbox::claim`].
    ///
    /// # Errors
    /// As [`Inbox::claim`].
    pub async fn claim_batch(
        &self,
        transaction: &Transaction<'_>,
        ids: &[MessageId],
    ) -> Result<Vec<Claim>, InboxError> {
        let mut batch = Batch { outside: Vec::new(), ids: Vec::new(), days: Vec::new() };
        for id in ids {
            let outside = !self.knows(id) && !self.look(transaction, id).await?;
            batch.add(id, outside);
        }
        let params: [(&(dyn ToSql + Sync), Type); 3] = [
            (&self.shared.consumer_id, Type::INT4),
            (&batch.ids, Type::UUID_ARRAY),
            (&batch.days, Type::DATE_ARRAY),
        ];
        let claimed = transaction.query_typed(CLAIM_BATCH, &params).await;
        let claimed = claimed.map_err(|error| InboxError::of("claiming a batch", error))?;
        if claimed.len() < batch.ids.len() {
            let consumer_id = self.shared.consumer_id;
            remembered::are_there_for(transaction, consumer_id, &batch.ids, &batch.days).await?;
        }
        Ok(batch.outcome(ids, claimed.iter().map(|row| row.get(0))))
    }

    /// Makes the partitions of the days ahead and drops those older than
    /// `inbox.settings.retention_days`. Call it every hour or so where no runner does. What somebody else has
    /// had the inbox forget is logged ([`Inbox::losses`]).
    ///
    /// Cancel safe: the next call does what this one has left.
    ///
    /// # Errors
    /// [`InboxError`]; what was not done is done by the next call.
    pub async fn maintain(&self) -> Result<(), InboxError> {
        self.shared.window.learn(window::maintain(&self.sessions).await?);
        self.keeps_its_number().await?;
        self.losses().await?;
        Ok(())
    }

    /// What somebody else has had the inbox forget, newest first, at most 100: days that were truncated, dropped
    /// or detached, rows that were deleted. Each is logged once, with what it means and what to type, and stays
    /// until someone deletes its row in `inbox.losses` or its days are past retention.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// [`InboxError`].
    pub async fn losses(&self) -> Result<Vec<Loss>, InboxError> {
        Ok(self.counted_losses().await?.0)
    }

    /// The same, and how many notes there are in all.
    pub(crate) async fn counted_losses(&self) -> Result<(Vec<Loss>, i64), InboxError> {
        let (losses, all) = losses::look(&self.sessions, self.shared.consumer_id).await?;
        self.shared.told.log_new(&self.shared.consumer, &losses, all);
        Ok((losses, all))
    }

    /// That its row in `inbox.consumers` is there, or is again.
    pub(crate) async fn keeps_its_number(&self) -> Result<(), InboxError> {
        registered::stands(&self.sessions, self.shared.consumer_id).await
    }

    /// Whether a partition past retention was left, because others were at work in the table: then
    /// maintain it again soon.
    pub(crate) fn overdue(&self) -> bool {
        self.shared.window.get().overdue()
    }

    /// That no one hides, changes or suppresses its rows.
    pub(crate) async fn is_whole(&self) -> Result<(), InboxError> {
        guard::look(&*self.sessions.get().await?).await
    }

    pub(crate) fn consumer_id(&self) -> i32 {
        self.shared.consumer_id
    }

    /// What its database can hold.
    pub(crate) fn repertoire(&self) -> Repertoire {
        self.sessions.repertoire()
    }

    pub(crate) fn sessions(&self) -> &Arc<Sessions> {
        &self.sessions
    }

    /// Whether it can tell a new message with this id from one that was here before.
    pub(crate) async fn can_tell(&self, id: &MessageId) -> Result<bool, InboxError> {
        if self.knows(id) {
            return Ok(true);
        }
        let sql = window::look();
        let (open, rows) = Open::begin(&self.sessions, LOOKING, &sql, &[]).await?;
        open.rollback().await?;
        self.learn(window::read(&rows)?, id)
    }

    /// As [`Inbox::can_tell`], in a transaction that is open: a message takes one connection.
    pub(crate) async fn can_tell_in(
        &self,
        open: &Open,
        id: &MessageId,
    ) -> Result<bool, InboxError> {
        if self.knows(id) {
            return Ok(true);
        }
        let rows = open.query(LOOKING, &window::look(), &[]).await?;
        self.learn(window::read(&rows)?, id)
    }

    /// Whether there is a partition to look for the id in, as far as is known here.
    fn knows(&self, id: &MessageId) -> bool {
        self.shared.window.get().has(id)
    }

    /// Asks the database, for ids that are outside of what is known: a message far away costs a
    /// query, and all others none.
    async fn look(&self, client: &impl GenericClient, id: &MessageId) -> Result<bool, InboxError> {
        let rows = client.query_typed(&window::look(), &[]).await;
        let rows = rows.map_err(|error| InboxError::of(LOOKING, error))?;
        self.learn(window::read(&rows)?, id)
    }

    fn learn(&self, now: Window, id: &MessageId) -> Result<bool, InboxError> {
        self.shared.window.learn(now);
        Ok(now.has(id))
    }
}

/// A batch as the statement takes it.
struct Batch {
    /// One for each id.
    outside: Vec<bool>,
    ids: Vec<Uuid>,
    days: Vec<Day>,
}

impl Batch {
    fn add(&mut self, id: &MessageId, outside: bool) {
        self.outside.push(outside);
        if !outside {
            self.ids.push(id.uuid());
            self.days.push(id.day());
        }
    }

    fn outcome(self, ids: &[MessageId], claimed: impl Iterator<Item = Uuid>) -> Vec<Claim> {
        let mut fresh: std::collections::HashSet<Uuid> = claimed.collect();
        let outcome = ids.iter().zip(self.outside).map(|(id, outside)| match outside {
            true => Claim::OutsideWindow,
            false if fresh.remove(&id.uuid()) => Claim::Fresh,
            false => Claim::Duplicate,
        });
        outcome.collect()
    }
}
