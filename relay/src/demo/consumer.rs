//! The consumer: takes records, and keeps what they did in a table, once per event id.
//!
//! As a real one would, it stores id and effect in one transaction, so that a record that comes
//! again does nothing. It remembers no more than the offsets.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::watch;
use tokio_postgres::{Client, Statement};
use tokio_util::sync::CancellationToken;

use super::{broker::Reader, count::Order};
use crate::postgres::sql::SqlSession;

pub(super) const TABLES: &str = "
    create table demo.inbox (id uuid primary key);
    create table demo.effects (
        happened bigserial primary key, id uuid not null, customer text not null,
        number int8 not null);
";

/// Ids that are new, and for these the effect, in the order of the records.
const APPLY: &str = "
    with record as (
        select distinct on (id) * from unnest($1::uuid[], $2::text[], $3::int8[])
            with ordinality as r (id, customer, number, n)
        order by id, n
    ), new as (
        insert into demo.inbox select id from record on conflict do nothing returning id
    )
    insert into demo.effects (id, customer, number)
    select id, customer, number from record join new using (id) order by n";

const EFFECTS: &str = "select id, customer, number from demo.effects order by happened";

/// One effect deleted, one done twice, and two of one customer swapped.
const TAMPER: &str = "
    delete from demo.effects where happened = (select max(happened) from demo.effects);
    insert into demo.effects (id, customer, number)
        select id, customer, number from demo.effects order by happened limit 1;
    update demo.effects e set id = other.id, number = other.number
        from demo.effects other
        where e.customer = 'customer-1' and other.customer = e.customer
            and (e.number, other.number) in ((2, 3), (3, 2))";

/// Records that take effect together.
const RECORDS_MAX: usize = 1000;
/// How long the last records may take.
const END: Duration = Duration::from_secs(30);

/// A consumer of all that is published.
pub(super) struct Consumer {
    reader: Reader,
    session: SqlSession,
    apply: Statement,
    repeated: u64,
    delivered: watch::Sender<u64>,
}

impl Consumer {
    /// `delivered` is told how many events have taken effect.
    pub(super) async fn new(
        reader: Reader,
        session: SqlSession,
        delivered: watch::Sender<u64>,
    ) -> Result<Self> {
        let apply = session.client().prepare(APPLY).await?;
        Ok(Consumer { reader, session, apply, repeated: 0, delivered })
    }

    /// Records that came again, with an id that had taken effect.
    pub(super) fn repeated(&self) -> u64 {
        self.repeated
    }

    /// Takes records until `enough`, then those that are left.
    pub(super) async fn consume(&mut self, enough: &CancellationToken) -> Result<()> {
        loop {
            let orders = tokio::select! {
                () = enough.cancelled() => break,
                orders = self.reader.next(RECORDS_MAX) => orders?,
            };
            self.apply(orders).await?;
        }
        let rest = async {
            while let Some(orders) = self.reader.rest(RECORDS_MAX).await? {
                self.apply(orders).await?;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(END, rest)
            .await
            .context("the records could not be read to their end")?
    }

    async fn apply(&mut self, orders: Vec<Order>) -> Result<()> {
        let count = orders.len() as u64;
        let (mut ids, mut customers, mut numbers) = (Vec::new(), Vec::new(), Vec::new());
        for Order { id, customer, number } in orders {
            ids.push(id);
            customers.push(customer);
            numbers.push(number);
        }
        let client = self.session.client();
        let new = client.execute(&self.apply, &[&ids, &customers, &numbers]).await?;
        self.repeated += count - new;
        self.delivered.send_modify(|delivered| *delivered += new);
        Ok(())
    }
}

/// All effects, in the order in which they happened.
pub(super) async fn effects(client: &Client) -> Result<Vec<Order>> {
    let rows = client.query(EFFECTS, &[]).await?;
    rows.iter()
        .map(|row| {
            Ok(Order { id: row.try_get(0)?, customer: row.try_get(1)?, number: row.try_get(2)? })
        })
        .collect()
}

/// Damages the effects in each way that the count knows.
pub(super) async fn tamper(client: &Client) -> Result<()> {
    Ok(client.batch_execute(TAMPER).await?)
}
