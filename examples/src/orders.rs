//! A producer: places orders, and says so. Order and event are rows of one transaction, so both
//! are there or neither.
//!
//! `cargo run -p outbox-examples --bin orders -- POSTGRES_URL [COUNT]`; any language does the same
//! with the one SQL call.

use anyhow::Context;
use serde_json::json;
use tokio_postgres::{Client, NoTls};

const CUSTOMERS: i64 = 100;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let url = args.next().context("usage: orders POSTGRES_URL [COUNT]")?;
    let count: i64 = args.next().map_or(Ok(10), |count| count.parse()).context("COUNT")?;

    let (mut client, connection) = tokio_postgres::connect(&url, NoTls).await?;
    let driver = tokio::spawn(connection);
    for n in 0..count {
        place(&mut client, 1 + n % CUSTOMERS, 100 + n % 900).await?;
    }
    drop(client);
    driver.await??;
    Ok(())
}

async fn place(client: &mut Client, customer: i64, amount_cents: i64) -> anyhow::Result<()> {
    let tx = client.transaction().await?;
    let insert = "insert into orders (customer, amount_cents) values ($1, $2) returning id";
    let order: i64 = tx.query_one(insert, &[&customer, &amount_cents]).await?.try_get(0)?;

    // The key is what events are kept in order by: one customer's orders are paid as they came.
    let event = json!({ "order": order, "customer": customer, "amount_cents": amount_cents });
    let publish =
        "select outbox.publish(topic => 'orders', key => $1, type => 'OrderPlaced', payload => $2)";
    tx.execute(publish, &[&customer.to_string(), &event]).await?;

    tx.commit().await?;
    Ok(())
}
