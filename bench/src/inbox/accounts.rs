//! The effect: one UPSERT of an account. What each account must come to is known, so a loss, a
//! repetition and a step back are found, account by account.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use outbox_harness::database::{Database, Role};
use tokio_postgres::types::ToSql;

use super::{
    messages::{ACCOUNTS, Keys, Transfer},
    outcome::Turn,
};
use crate::process;

/// What a turn may take.
const RUN_MAX: Duration = Duration::from_secs(150);
/// Between two looks at the handlers' count.
const LOOK: Duration = Duration::from_millis(2);

/// `first` and `last` are those of the transaction that was here last.
const TABLE: &str = "
    drop table if exists accounts, seen;
    create table accounts (id int primary key, messages bigint not null, total bigint not null,
                           first bigint not null, last bigint not null, misordered bigint not null)
        with (autovacuum_enabled = off);
    insert into accounts select id, 0, 0, -1, -1, 0 from generate_series(0, $ACCOUNTS - 1) as id;
    create table seen (id uuid primary key) with (autovacuum_enabled = off);
    grant select, insert, update on accounts, seen to public;
    truncate inbox.messages, inbox.watermarks, inbox.applied, inbox.parked, inbox.parked_lanes,
             inbox.dead_letters;
    vacuum analyze accounts;
    checkpoint";

/// For one message: account, amount, number.
pub(super) const UPSERT: &str = "insert into accounts as a (id, messages, total, first, last, misordered) \
    values ($1, 1, $2, $3, $3, 0) \
    on conflict (id) do update set messages = a.messages + 1, total = a.total + excluded.total, \
        first = excluded.first, last = excluded.last, \
        misordered = a.misordered + (excluded.first <= a.last)::int";

/// Two rows in one order, as a transfer from one account to another does: no two of them deadlock.
pub(super) const LOCK_TWO: &str = "select from accounts where id = any ($1) order by id for update";

/// For many: a row for each account.
const UPSERT_MANY: &str = "insert into accounts as a (id, messages, total, first, last, misordered) \
    select * from unnest($1::int[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[]) \
    on conflict (id) do update set messages = a.messages + excluded.messages, \
        total = a.total + excluded.total, first = excluded.first, last = excluded.last, \
        misordered = a.misordered + excluded.misordered + (excluded.first <= a.last)::int";

/// What messages of one account come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sum {
    messages: i64,
    total: i64,
    first: i64,
    last: i64,
    misordered: i64,
}

impl Sum {
    const NOTHING: Sum = Sum { messages: 0, total: 0, first: -1, last: -1, misordered: 0 };

    fn add(&mut self, transfer: &Transfer) {
        self.misordered += i64::from(transfer.n <= self.last);
        if self.messages == 0 {
            self.first = transfer.n;
        }
        self.messages += 1;
        self.total += transfer.amount;
        self.last = transfer.n;
    }
}

/// The tables, as new.
pub(super) async fn make_new(database: &Database) -> Result<()> {
    let sql = TABLE.replace("$ACCOUNTS", &ACCOUNTS.to_string());
    // One at a time: VACUUM can't be in the transaction that several statements in one text are.
    for statement in sql.split(';') {
        database.superuser().batch_execute(statement).await?;
    }
    Ok(())
}

/// The parameters of [`UPSERT_MANY`], sorted by account.
#[derive(Default)]
pub(super) struct Batch {
    columns: (Vec<i32>, [Vec<i64>; 5]),
}

impl Batch {
    pub(super) const SQL: &str = UPSERT_MANY;

    pub(super) fn of<'a>(transfers: impl Iterator<Item = &'a Transfer>) -> Self {
        let mut sums: BTreeMap<i32, Sum> = BTreeMap::new();
        for transfer in transfers {
            sums.entry(transfer.account).or_insert(Sum::NOTHING).add(transfer);
        }
        let mut batch = Batch::default();
        let (accounts, [messages, totals, firsts, lasts, misordered]) = &mut batch.columns;
        for (account, sum) in sums {
            accounts.push(account);
            messages.push(sum.messages);
            totals.push(sum.total);
            firsts.push(sum.first);
            lasts.push(sum.last);
            misordered.push(sum.misordered);
        }
        batch
    }

    pub(super) fn params(&self) -> [&(dyn ToSql + Sync); 6] {
        let (accounts, [messages, totals, firsts, lasts, misordered]) = &self.columns;
        [accounts, messages, totals, firsts, lasts, misordered]
    }
}

/// Holds every account against what it must have come to.
///
/// # Errors
/// Anything was lost, doubled or out of order.
pub(super) async fn verify(database: &Database, messages: usize, keys: Keys) -> Result<()> {
    let mut expected: BTreeMap<i32, Sum> = BTreeMap::new();
    for transfer in (0..messages).map(|n| Transfer::in_topic(n, keys)) {
        expected.entry(transfer.account).or_insert(Sum::NOTHING).add(&transfer);
    }
    let sql = "select id, messages, total, last, misordered from accounts where messages > 0";
    let mut found = BTreeMap::new();
    for row in database.superuser().query(sql, &[]).await? {
        let sum = Sum {
            messages: row.get(1),
            total: row.get(2),
            last: row.get(3),
            misordered: row.get(4),
            first: 0,
        };
        found.insert(row.get(0), sum);
    }
    check(&expected, &found)?;
    let aside =
        "select (select count(*) from inbox.parked) + (select count(*) from inbox.dead_letters)";
    let aside: i64 = database.superuser().query_one(aside, &[]).await?.get(0);
    ensure!(aside == 0, "{aside} messages were put aside, so the run is no result");
    Ok(())
}

fn check(expected: &BTreeMap<i32, Sum>, found: &BTreeMap<i32, Sum>) -> Result<()> {
    let (mut lost, mut doubled, mut changed, mut misordered) = (0, 0, 0, 0);
    let accounts = expected.keys().chain(found.keys().filter(|id| !expected.contains_key(id)));
    for account in accounts {
        let expected = expected.get(account).copied().unwrap_or(Sum::NOTHING);
        let found = found.get(account).copied().unwrap_or(Sum::NOTHING);
        lost += (expected.messages - found.messages).max(0);
        doubled += (found.messages - expected.messages).max(0);
        changed += i64::from((expected.total, expected.last) != (found.total, found.last));
        misordered += found.misordered;
    }
    ensure!(
        (lost, doubled, changed, misordered) == (0, 0, 0, 0),
        "the run counts wrong, so it is no result: {lost} lost, {doubled} doubled, {misordered} out \
         of order, {changed} accounts with another total"
    );
    Ok(())
}

/// Watches a turn from the first message in a handler's hands to the last one's commit.
pub(super) struct Watch {
    messages: usize,
    began: Arc<OnceLock<(Instant, Duration)>>,
    handled: Arc<AtomicUsize>,
    session: outbox_harness::postgres::Session,
    wal_before: String,
}

/// The handlers' end of it.
#[derive(Clone)]
pub(super) struct Counter {
    began: Arc<OnceLock<(Instant, Duration)>>,
    handled: Arc<AtomicUsize>,
}

impl Counter {
    /// So many are in a handler's hands; some of them may come again.
    pub(super) fn add(&self, messages: usize) {
        self.began.get_or_init(|| (Instant::now(), cpu()));
        self.handled.fetch_add(messages, Relaxed);
    }
}

impl Watch {
    pub(super) async fn new(database: &Database, messages: usize) -> Result<Self> {
        let session = database.connect(Role::Consumer).await;
        let wal_before = "select pg_current_wal_insert_lsn()::text";
        let wal_before = session.query_one(wal_before, &[]).await?.get(0);
        Ok(Watch { messages, began: Arc::default(), handled: Arc::default(), session, wal_before })
    }

    pub(super) fn messages(&self) -> usize {
        self.messages
    }

    pub(super) fn counter(&self) -> Counter {
        Counter { began: Arc::clone(&self.began), handled: Arc::clone(&self.handled) }
    }

    /// Waits until all have taken effect, while `consuming` continues, which must not end.
    pub(super) async fn finish(&self, consuming: impl Future<Output = Result<()>>) -> Result<Turn> {
        tokio::select! {
            finished = self.wait() => finished,
            ended = consuming => {
                ended?;
                anyhow::bail!("the consumer ended before it was told to")
            }
        }
    }

    async fn wait(&self) -> Result<Turn> {
        let deadline = Instant::now() + RUN_MAX;
        let wanted = i64::try_from(self.messages)?;
        loop {
            tokio::time::sleep(LOOK).await;
            let handled = self.handled.load(Relaxed);
            // A look at the table costs something, so only when there is nothing left to do.
            if handled >= self.messages {
                let sql = "select sum(messages)::bigint from accounts";
                let done: i64 = self.session.query_one(sql, &[]).await?.get(0);
                if done >= wanted {
                    break;
                }
            }
            ensure!(Instant::now() < deadline, "{handled} of {wanted} after {RUN_MAX:?}");
        }
        let (began, cpu_before) = self.began.get().copied().unwrap_or((Instant::now(), cpu()));
        let seconds = began.elapsed().as_secs_f64();
        let cpu = cpu().saturating_sub(cpu_before);
        let wal = "select (pg_current_wal_insert_lsn() - $1::text::pg_lsn)::float8";
        let wal: f64 = self.session.query_one(wal, &[&self.wal_before]).await?.get(0);
        Ok(Turn::measured(self.messages, seconds, cpu, wal))
    }
}

/// Of this process: the consumer and its runtime.
fn cpu() -> Duration {
    process::cpu(std::process::id()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(numbers: impl IntoIterator<Item = usize>) -> BTreeMap<i32, Sum> {
        let mut sums: BTreeMap<i32, Sum> = BTreeMap::new();
        for n in numbers {
            let transfer = Transfer { account: 1, ..Transfer::of(n) };
            sums.entry(1).or_insert(Sum::NOTHING).add(&transfer);
        }
        sums
    }

    #[test]
    fn only_every_message_once_and_in_order_counts_right() {
        let expected = sums(0..10);
        check(&expected, &sums(0..10)).expect("all of them");
        check(&expected, &sums(0..9)).expect_err("lost");
        check(&expected, &sums((0..10).chain([9]))).expect_err("doubled");
        check(&expected, &sums([0, 1, 3, 3, 4, 5, 6, 7, 8, 9])).expect_err("one for another");
        check(&expected, &sums([0, 2, 1, 3, 4, 5, 6, 7, 8, 9])).expect_err("out of order");
    }
}
