//! Servers, lines, relays and writers of a soak, and what each fault does to them.

use std::{collections::HashSet, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use outbox_harness::{
    Harness,
    database::Role,
    event::Event,
    load::{Load, Plan},
    postgres::{Postgres, Session},
    proxy::{Cut, Proxy},
    relay::Relay,
    topic::Record,
    wait,
};
use outbox_relay::{
    dead_letter::operator::{Operator, Selection},
    throwaway::{LocalPostgres, Shutdown},
};
use rand::{Rng, rngs::StdRng};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{
    broker::{Broker, Refusal},
    fault::Fault,
    outcome::{Outcome, Recovery},
    tally::{PARTITIONS, POISON_BYTES, Tally},
};
use crate::{
    relay::{AS_RELAY, Mode},
    sink::Sink,
    terminal::progress,
};

const WRITERS: u64 = 4;
/// Of a writer's transactions.
const INTERVAL: Duration = Duration::from_millis(20);
/// Within this the relays deliver again, or never will.
const RECOVERY_MAX: Duration = Duration::from_secs(120);
/// How long a line or server is bad, in milliseconds.
const BAD_MS: std::ops::Range<u64> = 500..12_000;

pub(super) struct Stage {
    sink: Sink,
    mode: Mode,
    relays: Vec<Relay>,
    trouble: JoinHandle<()>,
    load: Option<Load>,
    postgres_line: Proxy,
    server: LocalPostgres,
    broker: Broker,
    t: Harness,
}

impl Stage {
    pub(super) async fn set(sink: Sink, mode: Mode, program: Option<&Path>) -> Result<Self> {
        let (postgres, server) = Postgres::private().await;
        let (t, broker) = Broker::set(sink, postgres).await?;
        let (host, port) = postgres.address();
        let postgres_line = Proxy::to(&format!("{host}:{port}")).await;
        let program = program.map_or_else(std::env::current_exe, |path| Ok(path.to_owned()))?;
        let url = t.database().url(Role::Relay);
        let url = url.replace(&format!("{host}:{port}"), &postgres_line.address());
        let settings = broker
            .to(t.relay())
            .set("postgres.url", &url)
            .set("leader.timeout", "4s")
            .set("sink.delivery", mode.name())
            .program(&program)
            .env(AS_RELAY, "1");
        let mut relays = vec![settings.clone().files("first").start().await];
        relays.push(settings.files("second").start().await);
        let plan = Plan {
            topic: broker.topic().to_owned(),
            partitions: PARTITIONS,
            writers: WRITERS,
            transactions: u64::MAX,
        };
        let load = Some(Load::paced(t.database(), &plan, INTERVAL).await);
        let trouble = Trouble {
            postgres,
            database: t.database().name().to_owned(),
            writer: t.database().config(Role::Writer),
            operator: t.database().config(Role::Operator),
            topic: broker.topic().to_owned(),
            refusal: broker.refusal(),
        };
        let trouble = tokio::spawn(trouble.forever());
        Ok(Stage { sink, mode, relays, trouble, load, postgres_line, server, broker, t })
    }

    /// Lets it happen and end. Returns how long after its end the relays delivered again.
    pub(super) async fn through(&mut self, fault: Fault, random: &mut StdRng) -> Result<Duration> {
        let bad = Duration::from_millis(random.random_range(BAD_MS));
        let leader = self.leader().await?;
        match fault {
            Fault::LeaderKilled => self.kill(leader).await,
            Fault::BothRelaysKilled => {
                self.kill(0).await;
                self.kill(1).await;
            }
            Fault::LeaderStopped => {
                let status = self.relay(leader).sigterm().await;
                ensure!(status.success(), "the leader ended with {status}");
                self.relay(leader).restart();
            }
            Fault::LeaderFrozen => return self.freeze(leader, bad).await,
            Fault::BrokerKilled => {
                self.broker.kill9();
                sleep(bad / 2).await;
                self.broker.restart().await;
            }
            Fault::BrokerFrozen => {
                signal(self.broker.pid(), libc::SIGSTOP);
                sleep(bad).await;
                signal(self.broker.pid(), libc::SIGCONT);
            }
            Fault::PostgresRestarted => {
                self.server.stop(Shutdown::Immediate)?;
                sleep(bad / 4).await;
                self.server.restart()?;
                self.t.reconnect().await;
            }
            Fault::PostgresCut => self.postgres_line.cut(how(random)),
            Fault::BrokerCut => self.broker.line().cut(how(random)),
            Fault::PostgresFrozen => during(&self.postgres_line, bad, Proxy::freeze).await,
            Fault::BrokerLineFrozen => during(self.broker.line(), bad, Proxy::freeze).await,
            Fault::BrokerUnreachable => during(self.broker.line(), bad, Proxy::refuse).await,
            Fault::PostgresSlow => during(&self.postgres_line, bad, slow(random)).await,
            Fault::BrokerSlow => during(self.broker.line(), bad, slow(random)).await,
            Fault::SlotDropped => self.drop_slot().await?,
            Fault::LargeTransaction => {
                self.large_transaction().await;
                sleep(Duration::from_millis(random.random_range(50..1_000))).await;
                self.kill(leader).await;
            }
        }
        self.delivers_again().await
    }

    fn relay(&mut self, index: usize) -> &mut Relay {
        self.relays.get_mut(index).expect("there are two")
    }

    async fn kill(&mut self, index: usize) {
        self.relay(index).kill9().await;
        self.relay(index).restart();
    }

    async fn freeze(&mut self, leader: usize, thaws_after: Duration) -> Result<Duration> {
        self.relay(leader).freeze();
        let took = self.delivers_again().await;
        sleep(thaws_after / 4).await;
        self.relay(leader).thaw();
        took
    }

    /// A transaction that takes a while; its rows are in lanes of their own.
    async fn large_transaction(&self) {
        let rows = format!(
            "insert into outbox.events (topic, partition, headers) \
             select '{}', n % {PARTITIONS}, '{{}}' from generate_series(1, 30000) n",
            self.broker.topic()
        );
        // Without a sequence number it is counted, and its order is not looked at.
        let inserted = self.t.database().superuser().batch_execute(&rows).await;
        inserted.expect("the rows are inserted");
    }

    async fn drop_slot(&self) -> Result<()> {
        let slot = format!("outbox_{}", self.t.database().name());
        let session = self.t.database().superuser();
        wait::until("the slot is dropped", RECOVERY_MAX, || async {
            let ended = "select pg_terminate_backend(active_pid, 2000) from pg_replication_slots \
                         where slot_name = $1 and active_pid is not null";
            session.execute(ended, &[&slot]).await?;
            let drop = "select pg_drop_replication_slot($1)";
            session.execute(drop, &[&slot]).await
        })
        .await?;
        Ok(())
    }

    /// Index of the relay that leads.
    async fn leader(&self) -> Result<usize> {
        wait::until("a relay leads", RECOVERY_MAX, || async {
            for (index, relay) in self.relays.iter().enumerate() {
                let status = relay.try_status().await.ok();
                let role = status.as_ref().and_then(|s| s.get("role")).and_then(|r| r.as_str());
                if role == Some("leader") {
                    return Ok(index);
                }
            }
            Err("none")
        })
        .await
    }

    /// Of each relay; one that does not answer has delivered nothing.
    async fn delivered(&self) -> Vec<u64> {
        let mut delivered = Vec::new();
        for relay in &self.relays {
            // A frozen one never answers.
            let status = tokio::time::timeout(Duration::from_secs(1), relay.try_status()).await;
            let status = status.ok().and_then(Result::ok);
            let count = status.as_ref().and_then(|s| s.get("records_delivered"));
            delivered.push(count.and_then(serde_json::Value::as_u64).unwrap_or(0));
        }
        delivered
    }

    /// Waits until a relay has delivered more than a moment ago.
    async fn delivers_again(&self) -> Result<Duration> {
        let began = Instant::now();
        let mut before = self.delivered().await;
        while began.elapsed() < RECOVERY_MAX {
            sleep(Duration::from_millis(50)).await;
            let now = self.delivered().await;
            if now.iter().zip(&before).any(|(now, before)| now > before) {
                return Ok(began.elapsed());
            }
            before = now;
        }
        anyhow::bail!("nothing was delivered for {RECOVERY_MAX:?}")
    }

    /// The relays' logs, where somebody can look.
    pub(super) fn keep_logs(&self) {
        for (index, relay) in self.relays.iter().enumerate() {
            let path = std::env::temp_dir().join(format!("outbox-soak-{index}.log"));
            if std::fs::write(&path, relay.log_text()).is_ok() {
                progress(&format!("log of relay {index}: {}", path.display()));
            }
        }
    }

    /// Fixes what is refused, waits until everything is delivered, and counts.
    pub(super) async fn count(
        mut self,
        seed: u64,
        minutes: u32,
        recoveries: Vec<Recovery>,
    ) -> Result<Outcome> {
        self.trouble.abort();
        if let Some(load) = self.load.take() {
            load.stop().await;
        }
        self.broker.all_to_count().await;
        self.t.reconnect().await;
        let mut operator = self.t.database().connect(Role::Operator).await;
        let truth = self.t.committed().await;
        let deadline = Instant::now() + RECOVERY_MAX * 2;
        let records = loop {
            // Again and again: what the trouble asked for last may reach the broker after this.
            self.broker.refusal().set(false).await?;
            release_all(&mut operator, self.t.database().name()).await?;
            let records = self.broker.records().await;
            let there: HashSet<&str> = records.iter().filter_map(Record::id).collect();
            let missing = truth.iter().filter(|row| !there.contains(row.id.as_str())).count();
            if missing == 0 || Instant::now() >= deadline {
                break records;
            }
            progress(&format!("{missing} of {} are still missing", truth.len()));
            sleep(Duration::from_secs(1)).await;
        };
        let tally = Tally::of(self.sink, self.mode, &truth, records);
        let parked = "select count(*) from outbox.dead_letters";
        let parked = self.t.database().superuser().query_one(parked, &[]).await?.get(0);
        let outcome =
            Outcome::new((self.sink, self.mode), (seed, minutes), &recoveries, &tally, parked);
        if !outcome.held() {
            self.keep_logs();
        }
        Ok(outcome)
    }
}

fn how(random: &mut StdRng) -> Cut {
    if random.random_bool(0.5) { Cut::Reset } else { Cut::Close }
}

/// Late, or narrow.
fn slow(random: &mut StdRng) -> impl FnOnce(&Proxy) + use<> {
    let late = random.random_bool(0.5);
    move |line| {
        if late {
            line.delay(Duration::from_millis(300));
        } else {
            line.throttle(100_000);
        }
    }
}

async fn during(line: &Proxy, lasts: Duration, fault: impl FnOnce(&Proxy)) {
    fault(line);
    sleep(lasts).await;
    line.heal();
}

fn signal(pid: u32, signal: libc::c_int) {
    let pid = libc::pid_t::try_from(pid).expect("a process id");
    // SAFETY: kill takes any numbers; the broker was not waited for, so this one is still its.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0, "the broker was running");
}

async fn release_all(operator: &mut Session, relay: &str) -> Result<()> {
    let mut operator = Operator::new(operator, relay);
    operator.release(&Selection::default(), |_| {}).await.context("releasing what is parked")?;
    Ok(())
}

/// Poisons a lane, releases it while the poison is still refused, corrects it, releases it.
struct Trouble {
    postgres: &'static Postgres,
    database: String,
    writer: tokio_postgres::Config,
    operator: tokio_postgres::Config,
    topic: String,
    refusal: Refusal,
}

impl Trouble {
    async fn forever(self) {
        for lane in (0..5).cycle() {
            // A server that is away ends a round, and nothing else.
            let _ = self.round(&format!("customer-{lane}")).await;
            sleep(Duration::from_secs(2)).await;
        }
    }

    async fn round(&self, key: &str) -> Result<()> {
        self.refusal.set(true).await?;
        let mut writer = self.postgres.connect(&self.writer).await?;
        let mut operator = self.postgres.connect(&self.operator).await?;
        let transaction = writer.transaction().await?;
        let payload = "poison!".repeat(POISON_BYTES / 7);
        let event = Event::to(&self.topic).key(key).payload(payload.into());
        event.insert(transaction.client()).await?;
        transaction.commit().await?;
        sleep(Duration::from_secs(3)).await;
        release_all(&mut operator, &self.database).await?;
        sleep(Duration::from_secs(2)).await;
        self.refusal.set(false).await?;
        release_all(&mut operator, &self.database).await
    }
}
