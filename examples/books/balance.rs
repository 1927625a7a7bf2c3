//! The books: what was ordered against what was paid, what was said, and where the money is.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use anyhow::Result;
use tokio_postgres::Client;

/// What must be so in the end. All but the number of orders must be 0.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Books {
    orders: usize,
    paid: Account,
    shipped: Account,
    follow_ups_lost: usize,
    follow_ups_twice: usize,
    /// What customers have lost and the shop has not got, or more.
    cents_missing: i64,
}

/// What a service has done about the orders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Account {
    missing: usize,
    twice: usize,
    /// For no order, or of another amount or customer.
    wrong: usize,
    /// After a later order of the same customer.
    out_of_order: usize,
}

impl Account {
    /// From each order that it has done, in this order, with what it says of it.
    fn of(
        orders: &BTreeMap<i64, Order>,
        done: &[(i64, i64)],
        says: impl Fn(&Order) -> i64,
    ) -> Self {
        let mut account = Account::default();
        let mut times: BTreeMap<i64, usize> = BTreeMap::new();
        let mut newest: BTreeMap<i64, i64> = BTreeMap::new();
        for (id, said) in done {
            match orders.get(id) {
                Some(order) if says(order) == *said => {
                    let before = newest.insert(order.customer, *id);
                    account.out_of_order += usize::from(before > Some(*id));
                }
                _ => account.wrong += 1,
            }
            *times.entry(*id).or_default() += 1;
        }
        account.missing = orders.keys().filter(|id| !times.contains_key(id)).count();
        account.twice = times.values().map(|times| times - 1).sum();
        account
    }
}

/// An order, as `orders` has it.
#[derive(Clone, Copy)]
struct Order {
    customer: i64,
    amount_cents: i64,
}

/// What `payments` says of one.
#[derive(serde::Deserialize)]
struct OrderPaid {
    order: i64,
}

impl Books {
    /// From the tables, and the payloads of the topic `payments`.
    pub(crate) async fn read(database: &Client, follow_ups: &[Vec<u8>]) -> Result<Self> {
        let mut orders = BTreeMap::new();
        for row in database.query("select id, customer, amount_cents from orders", &[]).await? {
            let order = Order { customer: row.try_get(1)?, amount_cents: row.try_get(2)? };
            orders.insert(row.try_get(0)?, order);
        }
        let payments = done(database, "select order_id, amount_cents from payments order by id");
        let shipments = done(database, "select order_id, customer from shipments order by id");
        let (payments, shipments) = (payments.await?, shipments.await?);
        let mut said = Vec::new();
        for payload in follow_ups {
            said.push(serde_json::from_slice::<OrderPaid>(payload)?.order);
        }
        let mut books = Books::of(&orders, &payments, &shipments, &said);
        let money = "select sum(balance_cents)::bigint - 10000000000 from accounts";
        let in_all: i64 = database.query_one(money, &[]).await?.try_get(0)?;
        let shop = "select balance_cents - (select coalesce(sum(amount_cents), 0) from orders)::bigint \
                    from accounts where id = 0";
        let shop: i64 = database.query_one(shop, &[]).await?.try_get(0)?;
        books.cents_missing = in_all.abs() + shop.abs();
        Ok(books)
    }

    fn of(
        orders: &BTreeMap<i64, Order>,
        payments: &[(i64, i64)],
        shipments: &[(i64, i64)],
        follow_ups: &[i64],
    ) -> Self {
        let mut times_said: BTreeMap<i64, usize> = BTreeMap::new();
        for id in follow_ups {
            *times_said.entry(*id).or_default() += 1;
        }
        let paid: BTreeSet<i64> = payments.iter().map(|(id, _)| *id).collect();
        Books {
            orders: orders.len(),
            paid: Account::of(orders, payments, |order| order.amount_cents),
            shipped: Account::of(orders, shipments, |order| order.customer),
            follow_ups_lost: paid.iter().filter(|id| !times_said.contains_key(id)).count(),
            follow_ups_twice: times_said.values().map(|times| times - 1).sum(),
            cents_missing: 0,
        }
    }

    /// Whether each order is paid and shipped once, said to be paid once, and all the money is there; and, where the
    /// broker keeps the order when a consumer dies, whether customers' orders were taken as they came.
    pub(crate) fn balance(&self, in_order: bool) -> bool {
        let right = |account: Account| {
            let out_of_order = if in_order { 0 } else { account.out_of_order };
            Account { out_of_order, ..Account::default() }
        };
        let (paid, shipped) = (right(self.paid), right(self.shipped));
        *self == Books { orders: self.orders, paid, shipped, ..Books::default() } && self.orders > 0
    }
}

/// Orders that a service has done, as it did them.
async fn done(database: &Client, sql: &str) -> Result<Vec<(i64, i64)>> {
    let rows = database.query(sql, &[]).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

impl fmt::Display for Books {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Books { orders, paid, shipped, follow_ups_lost, follow_ups_twice, cents_missing } =
            self;
        let Account { missing, twice, wrong, out_of_order } = shipped;
        writeln!(
            f,
            "shipped {} · unshipped {missing} · shipped twice {twice} · wrong {wrong} · out of order {out_of_order}\n\
             follow-up events: lost {follow_ups_lost} · twice {follow_ups_twice}",
            orders - missing,
        )?;
        let Account { missing, twice, wrong, out_of_order } = paid;
        write!(
            f,
            "orders {orders} · paid {} · unpaid {missing} · paid twice {twice} · wrong {wrong} · \
             out of order {out_of_order} · cents missing {cents_missing}",
            orders - missing,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_payment_and_one_event_for_each_order_balance() {
        let order = |customer| Order { customer, amount_cents: 5 };
        let orders = BTreeMap::from([(1, order(7)), (2, order(7)), (3, order(8))]);
        let right = [(1, 5), (3, 5), (2, 5)];
        let sent = [(1, 7), (2, 7), (3, 8)];
        let of = |payments: &[(i64, i64)], said: &[i64]| Books::of(&orders, payments, &sent, said);
        let balance = |payments: &[(i64, i64)], said: &[i64]| of(payments, said).balance(true);
        assert!(balance(&right, &[3, 2, 1]));
        assert!(!balance(&right[..2], &[1, 3]), "unpaid");
        assert!(!balance(&[right[0], right[1], right[2], right[1]], &[1, 2, 3]), "paid twice");
        assert!(!balance(&[(1, 5), (2, 6), (3, 5)], &[1, 2, 3]), "another amount");
        assert!(!balance(&[(1, 5), (2, 5), (3, 5), (4, 5)], &[1, 2, 3, 4]), "no such order");
        let swapped = [(2, 5), (1, 5), (3, 5)];
        assert!(!balance(&swapped, &[1, 2, 3]), "out of order");
        assert!(of(&swapped, &[1, 2, 3]).balance(false));
        assert!(!balance(&right, &[1, 2]), "never said");
        assert!(!balance(&right, &[1, 2, 3, 3]), "said twice");
        assert!(!Books { cents_missing: 1, ..of(&right, &[1, 2, 3]) }.balance(false));
    }

    #[test]
    fn only_one_shipment_for_each_order_balances() {
        let orders = BTreeMap::from([(1, Order { customer: 7, amount_cents: 5 })]);
        let balance = |sent: &[(i64, i64)]| Books::of(&orders, &[(1, 5)], sent, &[1]).balance(true);
        assert!(balance(&[(1, 7)]));
        assert!(!balance(&[]), "unshipped");
        assert!(!balance(&[(1, 7), (1, 7)]), "shipped twice");
        assert!(!balance(&[(1, 8)]), "another customer");
    }
}
