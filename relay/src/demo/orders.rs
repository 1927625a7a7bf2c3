//! The shop: concurrent writers that commit orders with their events, and roll back others.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use futures_util::future;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::sync::watch;
use tokio_postgres::{Client, Statement, Transaction};

use super::{count::Order, database::Database};

/// Keys: few enough that writers meet at them.
pub(super) const CUSTOMERS: i32 = 40;

/// A customer's row counts its orders. The lock on it makes writers take turns until they end, so
/// numbers are given in commit order: the truth about order.
pub(super) const TABLES: &str = "
    create schema demo;
    create table demo.customers (name text primary key, orders int8 not null default 0);
    insert into demo.customers select 'customer-' || n from generate_series(1, 40) n;
";

/// What a business transaction does: its own row, and the event.
const PLACE: &str = "
    with placed as (
        update demo.customers set orders = orders + 1 where name = $1 returning name, orders
    )
    select outbox.publish(
        topic => $2, key => name, type => 'OrderPlaced',
        payload => jsonb_build_object('customer', name, 'number', orders))
    from placed";

const COMMITTED: &str = "select id, key, (payload->>'number')::int8 from outbox.events";

/// What all writers share.
#[derive(Debug)]
pub(super) struct Orders {
    topic: String,
    /// To be committed, exactly.
    total: u64,
    /// How far the commits may be ahead of what has taken effect, so that each kill of the relay
    /// hits one that has work, however fast this machine writes.
    ahead_max: u64,
    delivered: watch::Receiver<u64>,
    begun: AtomicU64,
    committed: AtomicU64,
    rolled_back: AtomicU64,
}

impl Orders {
    pub(super) fn new(
        topic: &str,
        total: u64,
        ahead_max: u64,
        delivered: watch::Receiver<u64>,
    ) -> Self {
        Orders {
            topic: topic.to_owned(),
            total,
            ahead_max,
            delivered,
            begun: AtomicU64::new(0),
            committed: AtomicU64::new(0),
            rolled_back: AtomicU64::new(0),
        }
    }

    /// Events committed so far.
    pub(super) fn committed(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }

    /// Events that were written and rolled back so far.
    pub(super) fn rolled_back(&self) -> u64 {
        self.rolled_back.load(Ordering::Relaxed)
    }

    /// Writes until all is committed. Dropped half-way, open transactions are rolled back.
    pub(super) async fn write(&self, database: &Database, writers: u32) -> Result<()> {
        let writers = (0..writers).map(|seed| self.writer(database, u64::from(seed)));
        future::try_join_all(writers).await.map(drop)
    }

    async fn writer(&self, database: &Database, seed: u64) -> Result<()> {
        let mut session = database.connect().await?;
        let place = session.client().prepare(PLACE).await?;
        let mut random = StdRng::seed_from_u64(seed);
        let mut delivered = self.delivered.clone();
        loop {
            let begun = || self.begun.load(Ordering::Relaxed);
            delivered.wait_for(|delivered| begun() < delivered + self.ahead_max).await?;
            let kept = self.take(random.random_range(1..=4));
            if kept == 0 {
                return Ok(());
            }
            self.transaction(session.client_mut(), &place, kept, &mut random).await?;
        }
    }

    /// Of the events that are still to be committed, at most `wanted`.
    fn take(&self, wanted: u64) -> u64 {
        let begin = |begun: u64| Some(self.total.min(begun + wanted));
        // Never `Err`: the closure always gives a value.
        let begun = self.begun.fetch_update(Ordering::Relaxed, Ordering::Relaxed, begin);
        begun.map_or(0, |begun| self.total.min(begun + wanted) - begun)
    }

    /// Commits `kept` events. One transaction in ten is rolled back and tried again, three have a
    /// savepoint that is.
    async fn transaction(
        &self,
        client: &mut Client,
        place: &Statement,
        kept: u64,
        random: &mut StdRng,
    ) -> Result<()> {
        let (way, also) = (random.random_range(0..10), random.random_range(1..=3));
        if way == 0 {
            let transaction = client.transaction().await?;
            self.place(&transaction, place, kept, random).await?;
            transaction.rollback().await?;
            self.rolled_back.fetch_add(kept, Ordering::Relaxed);
        }
        let mut transaction = client.transaction().await?;
        if (1..=3).contains(&way) {
            let savepoint = transaction.savepoint("attempt").await?;
            self.place(&savepoint, place, also, random).await?;
            // Its locks go with it, so the next ones may begin at the first customer again.
            savepoint.rollback().await?;
            self.rolled_back.fetch_add(also, Ordering::Relaxed);
        }
        self.place(&transaction, place, kept, random).await?;
        transaction.commit().await?;
        self.committed.fetch_add(kept, Ordering::Relaxed);
        Ok(())
    }

    /// Places orders of random customers, in one order of customers: or writers would deadlock.
    async fn place(
        &self,
        transaction: &Transaction<'_>,
        place: &Statement,
        orders: u64,
        random: &mut StdRng,
    ) -> Result<()> {
        let mut customers: Vec<i32> =
            (0..orders).map(|_| random.random_range(1..=CUSTOMERS)).collect();
        customers.sort_unstable();
        for customer in customers {
            let name = format!("customer-{customer}");
            transaction.query_one(place, &[&name, &self.topic]).await?;
        }
        Ok(())
    }
}

/// Everything in the outbox table, in no order that means anything.
pub(super) async fn committed(client: &Client) -> Result<Vec<Order>> {
    let rows = client.query(COMMITTED, &[]).await?;
    rows.iter()
        .map(|row| {
            Ok(Order { id: row.try_get(0)?, customer: row.try_get(1)?, number: row.try_get(2)? })
        })
        .collect()
}
