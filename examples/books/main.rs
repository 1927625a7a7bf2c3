//! Runs `orders` and `payments` through the relay, ends each of the three with `kill -9` again and
//! again, and balances the books.
//!
//! ```text
//! orders ─► PostgreSQL ─► relay ─► broker ─► payments ─► PostgreSQL ─► relay ─► broker (counted)
//! ```
//!
//! `examples/run [KILLS] [kafka|nats|rabbitmq]`. Servers are found or started as for the tests: `OUTBOX_TEST_POSTGRES` and
//! `OUTBOX_TEST_KAFKA`, else Docker, else what is installed. Exit code 1 when the books don't balance.

mod balance;
mod broker;
mod service;

use std::{process::ExitCode, time::Duration, time::Instant};

use anyhow::{Context, Result};
use outbox_harness::{Harness, relay::Relay, wait};

use self::{balance::Books, broker::Broker, service::Service};

/// Makes this program the relay, so that one build has all three.
const AS_RELAY: &str = "BOOKS_AS_RELAY";
const KILLS: usize = 12;
/// Of each life of `orders`.
const ORDERS: i64 = 300;
/// A kill hits what has done so much since the last one, and has more to do.
const PROGRESS: i64 = 50;
/// How long anything may take to get on.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> ExitCode {
    if std::env::var_os(AS_RELAY).is_some() {
        // The relay has a runtime of its own.
        let relay = tokio::task::spawn_blocking(outbox_relay::cli::main).await;
        return relay.unwrap_or(ExitCode::FAILURE);
    }
    // A task, so that a panic of the harness is an exit code of ours.
    match tokio::spawn(run()).await {
        Ok(Ok((books, in_order))) => {
            say(&books.to_string());
            if books.balance(in_order) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Ok(Err(error)) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
        Err(_panic) => ExitCode::FAILURE,
    }
}

/// The books, and whether the broker keeps the order.
async fn run() -> Result<(Books, bool)> {
    let kills = std::env::args().nth(1).map_or(Ok(KILLS), |kills| kills.parse());
    let kills: usize = kills.context("usage: books [KILLS] [kafka|nats|rabbitmq]")?;
    let broker = std::env::args().nth(2);
    let stage = Stage::set(broker.as_deref().unwrap_or("kafka")).await?;
    let books = stage.play(kills).await;
    stage.broker.clear(&stage.t).await?;
    Ok((books?, stage.broker.keeps_order_when_a_consumer_dies()))
}

/// The servers, with tables and topics as the two services expect them.
struct Stage {
    t: Harness,
    broker: Broker,
    logs: tempfile::TempDir,
}

impl Stage {
    async fn set(broker: &str) -> Result<Self> {
        let t = Harness::start().await;
        let mut owner = t.database().connect(outbox_harness::database::Role::Owner).await;
        outbox_idempotency::migrate(&mut owner).await?;
        t.database().superuser().batch_execute(include_str!("../schema.sql")).await?;
        let broker = Broker::set(broker, &t).await?;
        let logs = tempfile::Builder::new().prefix("outbox-books-").tempdir()?;
        Ok(Stage { t, broker, logs })
    }

    async fn play(&self, kills: usize) -> Result<Books> {
        let begun = Instant::now();
        let (url, logs) = (self.t.database().superuser_settings(), self.logs.path());
        let program = std::env::current_exe()?;
        let settings = self.broker.relay(self.t.relay());
        let mut relay = settings.program(&program).env(AS_RELAY, "1").start().await;
        let (service, further) = self.broker.service(&self.t);
        let pay = || {
            let further = further.iter().map(String::as_str);
            let arguments: Vec<&str> = std::iter::once(url.as_str()).chain(further).collect();
            Service::start(service, &arguments, logs)
        };
        let mut payments = pay()?;
        let count = ORDERS.to_string();
        let place = || Service::start("orders", &[&url, &count], logs);
        say(&format!("orders, the relay and payments run; {kills} of them are to be killed"));

        for kill in 1..=kills {
            let (placed, paid) = self.so_far().await?;
            let mut orders = place()?;
            let victim = match kill % 3 {
                1 => {
                    self.wait_for("more is paid", |_, now| now >= paid + PROGRESS).await?;
                    payments.kill9().await?;
                    payments = pay()?;
                    "payments"
                }
                2 => {
                    self.wait_for("more is paid", |_, now| now >= paid + PROGRESS).await?;
                    kill_relay(&mut relay).await;
                    "the relay"
                }
                _ => {
                    self.wait_for("more is placed", |now, _| now >= placed + PROGRESS).await?;
                    orders.kill9().await?;
                    "orders"
                }
            };
            orders.end().await?;
            let (placed, paid) = self.so_far().await?;
            say(&format!("kill -9 of {victim}: {placed} orders placed, {paid} paid for"));
        }
        place()?.end().await?;
        let (placed, _) = self.so_far().await?;
        self.wait_for("all is paid for", |_, paid| paid >= placed).await?;
        let follow_ups = self.follow_ups(usize::try_from(placed)?).await?;
        say(&format!("{kills} kills in {:.1?}", begun.elapsed()));
        Books::read(self.t.database().superuser(), &follow_ups).await
    }

    /// Orders placed, and payments taken.
    async fn so_far(&self) -> Result<(i64, i64)> {
        let sql = "select (select count(*) from orders), (select count(*) from payments)";
        let row = self.t.database().superuser().query_one(sql, &[]).await?;
        Ok((row.try_get(0)?, row.try_get(1)?))
    }

    async fn wait_for(&self, what: &str, enough: impl Fn(i64, i64) -> bool) -> Result<()> {
        let enough = &enough;
        wait::until(what, PATIENCE, || async move {
            match self.so_far().await {
                Ok((placed, paid)) if enough(placed, paid) => Ok(()),
                Ok((placed, paid)) => Err(format!("{placed} placed, {paid} paid for")),
                Err(error) => Err(error.to_string()),
            }
        })
        .await
    }

    /// What `payments` has said, as a consumer sees it.
    async fn follow_ups(&self, expected: usize) -> Result<Vec<Vec<u8>>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let payloads = self.broker.follow_ups().await?;
            // What is missing after that is counted as lost.
            if payloads.len() >= expected || Instant::now() >= deadline {
                return Ok(payloads);
            }
        }
    }
}

async fn kill_relay(relay: &mut Relay) {
    relay.kill9().await;
    relay.restart();
}

#[expect(clippy::print_stdout, reason = "what this program is for")]
fn say(line: &str) {
    println!("{line}");
}
