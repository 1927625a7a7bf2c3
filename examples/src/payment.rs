//! Takes the money for an order, and says so.

use outbox_idempotency::{Event, Failure, Message, Tx};
use serde_json::json;

use crate::OrderPlaced;

const SHOP: i64 = 0;

/// All of it happens, and once for each order, or nothing: whatever crashes, and however often the
/// message comes. Nothing here has to think of that.
///
/// # Errors
/// What makes the message wait, or a dead letter.
pub async fn take(tx: Tx, message: Message<OrderPlaced>) -> Result<(), Failure> {
    let OrderPlaced { order, customer, amount_cents } = message.payload;

    let give = "update accounts set balance_cents = balance_cents + $2 where id = $1";
    if tx.execute(give, &[&customer, &-amount_cents]).await? == 0 {
        // Trying again would not help: a dead letter, for a person to look at.
        return Err(Failure::permanent("unknown-customer", format!("customer {customer}")));
    }
    tx.execute(give, &[&SHOP, &amount_cents]).await?;
    let paid = "insert into payments (order_id, amount_cents) values ($1, $2)";
    tx.execute(paid, &[&order, &amount_cents]).await?;

    let event = Event::new("payments", json!({ "order": order, "amount_cents": amount_cents }));
    tx.publish(&event.key(&customer.to_string()).kind("OrderPaid")).await?;
    Ok(())
}
