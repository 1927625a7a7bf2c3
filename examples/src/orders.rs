//! A producer: writes an order and its event in one transaction, so both happen or neither.
//!
//! `cargo run -p outbox-examples --bin orders -- postgres://localhost/app 10`, on a database where
//! `outbox-relay migrate` was run. Any language does the same with one SQL call.

use anyhow::Context;
use serde_json::json;
use tokio_postgres::NoTls;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let url = args.next().context("usage: orders POSTGRES_URL [COUNT]")?;
    let count: i64 = args.next().map_or(Ok(10), |count| count.parse()).context("COUNT")?;

    let (mut client, connection) = tokio_postgres::connect(&url, NoTls).await?;
    let driver = tokio::spawn(connection);
    client
        .batch_execute(
            "create table if not exists orders (
                 id bigint generated always as identity primary key, amount_cents bigint not null)",
        )
        .await?;
    for n in 1..=count {
        let tx = client.transaction().await?;
        let amount_cents = n * 100;
        let order: i64 = tx
            .query_one(
                "insert into orders (amount_cents) values ($1) returning id",
                &[&amount_cents],
            )
            .await?
            .try_get(0)?;
        // The event is a row of the same transaction: it is published if and only if this commits.
        tx.execute(
            "select outbox.publish(topic => 'orders', key => $1, type => 'OrderPlaced',
                                   payload => $2)",
            &[&order.to_string(), &json!({ "order": order, "amount_cents": amount_cents })],
        )
        .await?;
        tx.commit().await?;
    }
    drop(client);
    driver.await??;
    Ok(())
}
