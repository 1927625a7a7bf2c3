//! Sends each order out: the second service that every order's event goes to.

use outbox_idempotency::{Failure, Message, Tx};

use crate::OrderPlaced;

/// As [`crate::payment::take`], once for each order.
///
/// # Errors
/// What makes the message wait, or a dead letter.
pub async fn send(tx: Tx, message: Message<OrderPlaced>) -> Result<(), Failure> {
    let OrderPlaced { order, customer, .. } = message.payload;
    let sent = "insert into shipments (order_id, customer) values ($1, $2)";
    tx.execute(sent, &[&order, &customer]).await?;
    Ok(())
}
