//! Runs `orders`, `payments` and `shipping` with the relay between them, ends each of the four with `kill -9` again and
//! again, and balances the books.
//!
//! ```text
//! orders ─► PostgreSQL ─► relay ─► broker ─┬► payments ─► PostgreSQL ─► relay ─► broker (counted)
//!                                          └► shipping ─► PostgreSQL
//! ```
//!
//! While one of the two is down, the other must get on. Some orders are those of a customer without an account: `payments` gives
//! them up, and when there is an account `outbox-relay inbox dead-letters replay` has them paid.
//!
//! `examples/run [KILLS] [kafka|python|nats|rabbitmq]`. Servers are found or started as for the tests: `OUTBOX_TEST_POSTGRES` and
//! `OUTBOX_TEST_KAFKA`, else Docker, else what is installed. Exit code 1 when the books don't balance.

mod balance;
mod broker;
mod service;

use std::{process::ExitCode, time::Duration, time::Instant};

use anyhow::{Context, Result, ensure};
use outbox_harness::{
    Harness,
    relay::{Relay, Settings},
    wait,
};

use self::{
    balance::Books,
    broker::Broker,
    service::{Program, Service},
};

/// Makes this program the relay, so that one build has all three.
const AS_RELAY: &str = "BOOKS_AS_RELAY";
const KILLS: usize = 12;
/// Of each life of `orders`.
const ORDERS: i64 = 300;
/// A kill hits what has done so much since the last one, and has more to do.
const PROGRESS: i64 = 50;
/// Who has no account yet, and the order of such a one with its event.
const UNKNOWN: &str = "with placed as (
        insert into orders (customer, amount_cents) values (101, 500) returning id, customer, amount_cents)
    select outbox.publish(topic => 'orders', key => '101', type => 'OrderPlaced', payload =>
        jsonb_build_object('order', id, 'customer', customer, 'amount_cents', amount_cents)) from placed";
/// What `payments` gave up of them. The lane is that of the key, whoever computes it (docs/CONSUMER.md, "Without Rust").
const GIVEN_UP: &str = "select count(*) from inbox.dead_letters where state = 'dead' \
    and code = 'unknown-customer' and lane = 'bb7a73e5-3a46-837e-84c7-2d16be62b4f4'";
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
    let kills: usize = kills.context("usage: books [KILLS] [kafka|python|nats|rabbitmq]")?;
    let broker = std::env::args().nth(2);
    let stage = Stage::set(broker.as_deref().unwrap_or("kafka")).await?;
    let books = stage.play(kills).await;
    stage.broker.clear(&stage.t).await?;
    Ok((books?, stage.broker.keeps_order_when_a_consumer_dies()))
}

/// What was done so far.
#[derive(Clone, Copy, Debug)]
struct SoFar {
    placed: i64,
    /// With what `payments` has given up.
    paid: i64,
    shipped: i64,
}

/// One of the two services that take the orders.
struct Taker {
    program: Program,
    service: Service,
    taken: fn(SoFar) -> i64,
}

/// The servers, with tables and topics as the services expect them.
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
        let logs = self.logs.path();
        let mut relay = self.relay()?.start().await;
        let mut payments = self.taker("payments", |now| now.paid)?;
        let mut shipping = self.taker("shipping", |now| now.shipped)?;
        let arguments = vec![self.t.database().superuser_settings(), ORDERS.to_string()];
        let orders = Program { name: "orders", path: service::beside("orders")?, arguments };
        let place = || Service::start(&orders, logs);
        say(&format!(
            "orders, the relay, payments and shipping run; {kills} of them are to be killed"
        ));

        for kill in 1..=kills {
            let before = self.so_far().await?;
            self.t.database().superuser().execute(UNKNOWN, &[]).await?;
            let mut orders = place()?;
            let victim = match kill % 4 {
                1 => self.outage(&mut payments, &shipping, &mut orders, before).await?,
                2 => {
                    self.wait_for("more is paid", |now| now.paid >= before.paid + PROGRESS).await?;
                    kill_relay(&mut relay).await;
                    "the relay"
                }
                3 => self.outage(&mut shipping, &payments, &mut orders, before).await?,
                _ => {
                    self.wait_for("more is placed", |now| now.placed >= before.placed + PROGRESS)
                        .await?;
                    orders.kill9().await?;
                    "orders"
                }
            };
            orders.end().await?;
            let SoFar { placed, paid, shipped } = self.so_far().await?;
            say(&format!(
                "kill -9 of {victim}: orders {placed}, taken by payments {paid}, by shipping {shipped}"
            ));
        }
        place()?.end().await?;
        let all = |now: SoFar| now.paid.min(now.shipped) >= now.placed;
        self.wait_for("all is taken", all).await?;
        self.replay(i64::try_from(kills)?).await?;
        self.wait_for("all is paid for", all).await?;
        let follow_ups = self.follow_ups(usize::try_from(self.so_far().await?.placed)?).await?;
        say(&format!("{kills} kills in {:.1?}", begun.elapsed()));
        Books::read(self.t.database().superuser(), &follow_ups).await
    }

    fn taker(&self, name: &'static str, taken: fn(SoFar) -> i64) -> Result<Taker> {
        let program = self.broker.service(name, &self.t)?;
        Ok(Taker { service: Service::start(&program, self.logs.path())?, program, taken })
    }

    /// Kills one service at work, and starts it again when the other has taken all that was placed.
    async fn outage(
        &self,
        one: &mut Taker,
        other: &Taker,
        orders: &mut Service,
        before: SoFar,
    ) -> Result<&'static str> {
        let more = (one.taken)(before) + PROGRESS;
        self.wait_for("it has taken more", |now| (one.taken)(now) >= more).await?;
        one.service.kill9().await?;
        orders.end().await?;
        let all = "the other service has taken all while one is down";
        self.wait_for(all, |now| (other.taken)(now) >= now.placed).await?;
        one.service = Service::start(&one.program, self.logs.path())?;
        Ok(one.program.name)
    }

    /// This program as the relay.
    fn relay(&self) -> Result<Settings> {
        let program = std::env::current_exe()?;
        Ok(self.broker.relay(self.t.relay()).program(&program).env(AS_RELAY, "1"))
    }

    /// Has what `payments` gave up handled again, when it can be.
    async fn replay(&self, expected: i64) -> Result<()> {
        let database = self.t.database();
        let given_up: i64 = database.superuser().query_one(GIVEN_UP, &[]).await?.try_get(0)?;
        ensure!(
            given_up == expected,
            "dead letters {given_up}, and orders without an account {expected}"
        );
        let account = "insert into accounts (id, balance_cents) values (101, 0)";
        database.superuser().execute(account, &[]).await?;
        let settings = self.relay()?.set("postgres.url", &database.superuser_url());
        let replay = ["inbox", "dead-letters", "replay", "--code", "unknown-customer", "--yes"];
        let output = settings.command(&replay).await;
        ensure!(output.status.success(), "replay: {}", String::from_utf8_lossy(&output.stderr));
        say(&format!("dead letters {given_up}, replayed"));
        Ok(())
    }

    async fn so_far(&self) -> Result<SoFar> {
        let sql = "select (select count(*) from orders), (select count(*) from payments) \
            + (select count(*) from inbox.dead_letters where state = 'dead'), (select count(*) from shipments)";
        let row = self.t.database().superuser().query_one(sql, &[]).await?;
        Ok(SoFar { placed: row.try_get(0)?, paid: row.try_get(1)?, shipped: row.try_get(2)? })
    }

    async fn wait_for(&self, what: &str, enough: impl Fn(SoFar) -> bool) -> Result<()> {
        let enough = &enough;
        wait::until(what, PATIENCE, || async move {
            match self.so_far().await {
                Ok(now) if enough(now) => Ok(()),
                Ok(now) => Err(format!("{now:?}")),
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
