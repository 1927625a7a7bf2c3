//! The books: what was ordered against what was paid, what was said, and where the money is.

use std::{collections::BTreeMap, fmt};

use anyhow::Result;
use tokio_postgres::Client;

/// What must be so in the end. All but the first two numbers must be 0.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Books {
    orders: usize,
    paid: usize,
    unpaid: usize,
    paid_twice: usize,
    /// Payments for no order, or of another amount.
    wrong: usize,
    /// Payments that came after one for a later order of the same customer.
    out_of_order: usize,
    follow_ups_lost: usize,
    follow_ups_twice: usize,
    /// What customers have lost and the shop has not got, or more.
    cents_missing: i64,
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
        let mut payments = Vec::new();
        for row in
            database.query("select order_id, amount_cents from payments order by id", &[]).await?
        {
            payments.push((row.try_get(0)?, row.try_get(1)?));
        }
        let mut paid = Vec::new();
        for payload in follow_ups {
            paid.push(serde_json::from_slice::<OrderPaid>(payload)?.order);
        }
        let mut books = Books::of(&orders, &payments, &paid);
        let money = "select sum(balance_cents)::bigint - 10000000000 from accounts";
        let in_all: i64 = database.query_one(money, &[]).await?.try_get(0)?;
        let shop = "select balance_cents - (select coalesce(sum(amount_cents), 0) from orders)::bigint \
                    from accounts where id = 0";
        let shop: i64 = database.query_one(shop, &[]).await?.try_get(0)?;
        books.cents_missing = in_all.abs() + shop.abs();
        Ok(books)
    }

    fn of(orders: &BTreeMap<i64, Order>, payments: &[(i64, i64)], follow_ups: &[i64]) -> Self {
        let mut books = Books { orders: orders.len(), ..Books::default() };
        let mut times_paid: BTreeMap<i64, usize> = BTreeMap::new();
        let mut newest: BTreeMap<i64, i64> = BTreeMap::new();
        for (id, amount_cents) in payments {
            match orders.get(id) {
                Some(order) if order.amount_cents == *amount_cents => {
                    let before = newest.insert(order.customer, *id);
                    books.out_of_order += usize::from(before > Some(*id));
                }
                _ => books.wrong += 1,
            }
            *times_paid.entry(*id).or_default() += 1;
        }
        let mut times_said: BTreeMap<i64, usize> = BTreeMap::new();
        for id in follow_ups {
            *times_said.entry(*id).or_default() += 1;
        }
        books.paid = orders.keys().filter(|id| times_paid.contains_key(id)).count();
        books.unpaid = orders.len() - books.paid;
        books.paid_twice = times_paid.values().map(|times| times - 1).sum();
        books.follow_ups_lost = times_paid.keys().filter(|id| !times_said.contains_key(id)).count();
        books.follow_ups_twice = times_said.values().map(|times| times - 1).sum();
        books
    }

    /// Whether each order is paid once, said to be so once, and all the money is there; and, where the broker keeps the
    /// order when a consumer dies, whether customers' orders were paid as they came.
    pub(crate) fn balance(&self, in_order: bool) -> bool {
        let Books { orders, paid, out_of_order, .. } = *self;
        let out_of_order = if in_order { 0 } else { out_of_order };
        let right = Books { orders, paid, out_of_order, ..Books::default() };
        *self == right && orders == paid && orders > 0
    }
}

impl fmt::Display for Books {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Books { orders, paid, unpaid, paid_twice, wrong, out_of_order, .. } = self;
        let Books { follow_ups_lost, follow_ups_twice, cents_missing, .. } = self;
        write!(
            f,
            "follow-up events: lost {follow_ups_lost} · twice {follow_ups_twice}\n\
             orders {orders} · paid {paid} · unpaid {unpaid} · paid twice {paid_twice} · wrong {wrong} · \
             out of order {out_of_order} · cents missing {cents_missing}"
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
        let balance = |payments: &[(i64, i64)], said: &[i64]| {
            Books::of(&orders, payments, said).balance(true)
        };
        assert!(balance(&right, &[3, 2, 1]));
        assert!(!balance(&right[..2], &[1, 3]), "unpaid");
        assert!(!balance(&[right[0], right[1], right[2], right[1]], &[1, 2, 3]), "paid twice");
        assert!(!balance(&[(1, 5), (2, 6), (3, 5)], &[1, 2, 3]), "another amount");
        assert!(!balance(&[(1, 5), (2, 5), (3, 5), (4, 5)], &[1, 2, 3, 4]), "no such order");
        let swapped = [(2, 5), (1, 5), (3, 5)];
        assert!(!balance(&swapped, &[1, 2, 3]), "out of order");
        assert!(Books::of(&orders, &swapped, &[1, 2, 3]).balance(false));
        assert!(!balance(&right, &[1, 2]), "never said");
        assert!(!balance(&right, &[1, 2, 3, 3]), "said twice");
        assert!(
            !Books { cents_missing: 1, ..Books::of(&orders, &right, &[1, 2, 3]) }.balance(false)
        );
    }
}
