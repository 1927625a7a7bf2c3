//! Counting: what was committed against what took effect. Pure.

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// An order, in the outbox or in the consumer's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) id: Uuid,
    /// The record's key.
    pub(super) customer: String,
    /// From 1, without gaps, in the order in which the customer's orders were committed.
    pub(super) number: i64,
}

#[derive(Deserialize)]
struct Payload {
    customer: String,
    number: i64,
}

impl Order {
    /// The order of a record, as `orders` writes it.
    ///
    /// # Errors
    /// It is not as it was written.
    pub(super) fn read(
        id: Option<&[u8]>,
        key: Option<&[u8]>,
        payload: Option<&[u8]>,
    ) -> Result<Self> {
        let id = id.and_then(|id| Uuid::try_parse_ascii(id).ok()).context("it has no event id")?;
        let Payload { customer, number } = serde_json::from_slice(payload.unwrap_or_default())
            .context("it has another payload than was written")?;
        ensure!(key == Some(customer.as_bytes()), "it has another key than was written");
        Ok(Order { id, customer, number })
    }
}

/// The outcome of a comparison. Only the first two may differ from zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Events in the outbox table.
    pub committed: usize,
    /// Of these, how many took effect.
    pub delivered: usize,
    /// Of these, how many did not.
    pub lost: usize,
    /// Effects beyond the first of the same event.
    pub duplicated: usize,
    /// Events that took effect after a later one of their key.
    pub out_of_order: usize,
    /// Effects of what was never committed: rolled back, or made up.
    pub uncommitted: usize,
}

impl Count {
    /// Whether each event took effect once, in order, and nothing else did.
    pub fn is_exactly_once(&self) -> bool {
        let Count { committed, delivered, .. } = *self;
        committed == delivered && *self == Count { committed, delivered, ..Count::default() }
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Count { committed, delivered, lost, duplicated, out_of_order, .. } = self;
        write!(
            f,
            "committed {committed} · delivered {delivered} · lost {lost} · duplicated \
             {duplicated} · out of order {out_of_order}"
        )
    }
}

/// Compares the outbox with the effects, the latter in the order in which they happened.
pub(super) fn count(committed: &[Order], effects: &[Order]) -> Count {
    let ids: HashSet<Uuid> = committed.iter().map(|order| order.id).collect();
    let mut count = Count { committed: ids.len(), ..Count::default() };
    let mut seen: HashSet<Uuid> = HashSet::new();
    let mut newest: HashMap<&str, i64> = HashMap::new();
    for effect in effects {
        if !ids.contains(&effect.id) {
            count.uncommitted += 1;
        } else if !seen.insert(effect.id) {
            count.duplicated += 1;
        } else {
            let newest = newest.entry(&effect.customer).or_default();
            if effect.number < *newest {
                count.out_of_order += 1;
            }
            *newest = effect.number.max(*newest);
        }
    }
    count.delivered = seen.len();
    count.lost = count.committed - count.delivered;
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(id: u128, customer: &str, number: i64) -> Order {
        Order { id: Uuid::from_u128(id), customer: customer.into(), number }
    }

    #[test]
    fn each_event_once_and_in_the_order_of_its_key_is_exactly_once() {
        let committed = [order(1, "a", 1), order(2, "a", 2), order(3, "b", 1)];
        let effects = [order(3, "b", 1), order(1, "a", 1), order(2, "a", 2)];
        let count = count(&committed, &effects);
        assert!(count.is_exactly_once());
        assert_eq!(
            count.to_string(),
            "committed 3 · delivered 3 · lost 0 · duplicated 0 · out of order 0"
        );
    }

    #[test]
    fn each_fault_is_counted_under_its_name_and_is_not_exactly_once() {
        let [one, two, three] = [order(1, "a", 1), order(2, "a", 2), order(3, "a", 3)];
        let stranger = order(4, "a", 3);
        let committed = [one.clone(), two.clone(), three.clone()];
        let all = Count { committed: 3, delivered: 3, ..Count::default() };
        for (effects, expected) in [
            (vec![], Count { delivered: 0, lost: 3, ..all }),
            (vec![&one, &three], Count { delivered: 2, lost: 1, ..all }),
            (vec![&one, &two, &one, &three, &one], Count { duplicated: 2, ..all }),
            (vec![&two, &one, &three], Count { out_of_order: 1, ..all }),
            (vec![&three, &one, &two], Count { out_of_order: 2, ..all }),
            (vec![&one, &two, &three, &stranger], Count { uncommitted: 1, ..all }),
        ] {
            let effects: Vec<Order> = effects.into_iter().cloned().collect();
            let count = count(&committed, &effects);
            assert_eq!(count, expected, "{effects:?}");
            assert!(!count.is_exactly_once(), "{effects:?}");
        }
    }
}
