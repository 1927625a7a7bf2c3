//! A consumer as a real process: started, killed, frozen, asked to stop; and the count of what it did.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::ExitStatus,
    time::Duration,
};

use anyhow::Result;
use serde::Serialize;
use tokio::process::Command;
use uuid::Uuid;

use crate::{
    database::{Database, Role},
    event::{Committed, SEQUENCE},
    kafka::Kafka,
    member::{self, Fault, Plan, Settings},
    process::{self, Process},
    topic::Topic,
    wait,
};

/// SIGTERM to exit: what is under way is waited for.
const STOP: Duration = Duration::from_secs(20);
/// After so long the server ends a session that a frozen process holds in a transaction.
const IDLE: &str = "2s";

/// A consumer's process; ended by KILL when dropped.
#[derive(Debug)]
pub struct Consumer {
    settings: Settings,
    process: Process,
}

/// The outcome of a comparison; all but the first must be zero.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Effects {
    /// Committed events that took effect.
    pub applied: usize,
    /// Committed events without an effect.
    pub lost: usize,
    /// Effects beyond the first of an event.
    pub doubled: usize,
    /// Effects that came after a later one of their lane; not those of messages that were dead at
    /// some time, which a replay takes behind what came meanwhile.
    pub misordered: usize,
    /// Effects of what was never committed.
    pub invented: usize,
    /// Follow-up events beyond, or missing of, one for each effect.
    pub follow_ups_off: usize,
}

/// Makes the table that consumers write into. `database` is their database.
///
/// # Panics
/// When it can't be made.
pub async fn make_effects(database: &Database) {
    let table = "create table effects (place bigint generated always as identity, \
                     message uuid not null, lane text not null, n bigint); \
                 grant select, insert on effects to public";
    database.superuser().batch_execute(table).await.expect("a table for effects");
}

impl Consumer {
    /// Starts one; `name` names its log in `dir`.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(
        dir: &Path,
        name: &str,
        database: &Database,
        kafka: &Kafka,
        topic: &Topic,
        plan: &Plan,
    ) -> Self {
        let (host, port) = database.postgres().address();
        let server = format!("{host}:{port}");
        let url = |role| match &plan.postgres {
            Some(proxy) => database.url(role).replace(&server, proxy),
            None => database.url(role),
        };
        let settings = Settings {
            database: format!(
                "{}?options=-c%20idle_in_transaction_session_timeout%3D{IDLE}",
                url(Role::Consumer)
            ),
            operator: url(Role::Operator),
            brokers: kafka.brokers().to_owned(),
            group: database.name().to_owned(),
            topic: topic.name().to_owned(),
            plan: plan.clone(),
        };
        let log = dir.join(format!("{name}.log"));
        let process = Process::start("the consumer", command(&settings), log, None);
        Consumer { settings, process }
    }

    /// Ends it with KILL and waits for that.
    ///
    /// # Panics
    /// When it had ended before.
    pub async fn kill9(&mut self) {
        self.process.kill9().await;
    }

    /// Starts it again.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self) {
        self.process.restart(command(&self.settings), None);
    }

    /// As [`Consumer::restart`], with the fault that it is to run into.
    ///
    /// # Panics
    /// As [`Consumer::restart`].
    pub fn restart_with(&mut self, fault: Option<Fault>) {
        self.settings.plan.fault = fault;
        self.restart();
    }

    /// Stops its process where it is.
    pub fn freeze(&self) {
        self.process.signal(libc::SIGSTOP);
    }

    /// Lets it continue.
    pub fn thaw(&self) {
        self.process.signal(libc::SIGCONT);
    }

    /// Asks it to stop, and returns how it ended.
    ///
    /// # Panics
    /// When it has not ended in time.
    pub async fn sigterm(&mut self) -> ExitStatus {
        self.ask_to_stop();
        self.ended_within(STOP).await.expect("it ends in time")
    }

    /// Asks it to stop, and returns at once.
    pub fn ask_to_stop(&self) {
        self.process.signal(libc::SIGTERM);
    }

    /// Waits until it ends by itself; `None`: it has not within that time.
    ///
    /// # Panics
    /// When the system does not say.
    pub async fn ended_within(&mut self, deadline: Duration) -> Option<ExitStatus> {
        self.process.ended_within(deadline).await
    }

    /// The most memory it ever had resident, in bytes: `VmHWM` of `/proc`.
    ///
    /// # Panics
    /// When it has ended, or this is not Linux.
    pub fn peak_memory_bytes(&self) -> u64 {
        self.process.peak_memory_bytes()
    }

    /// The memory that it has resident now, in bytes: `VmRSS` of `/proc`.
    ///
    /// # Panics
    /// When it has ended, or this is not Linux.
    pub fn memory_bytes(&self) -> u64 {
        self.process.memory_bytes()
    }

    /// How often its log has `text`, in all its lives.
    pub fn log_count(&self, text: &str) -> usize {
        self.process.log_text().matches(text).count()
    }

    /// Waits until its log has `text`.
    ///
    /// # Panics
    /// When it does not within [`wait::PATIENCE`].
    pub async fn wait_log(&self, text: &str) {
        self.process.wait_log(text).await;
    }
}

fn command(settings: &Settings) -> Result<Command> {
    let program = match &settings.plan.program {
        Some(program) => program.clone(),
        None => process::beside_the_tests("consumer-under-test")?,
    };
    let mut command = Command::new(program);
    command.env(member::VARIABLE, serde_json::to_string(settings)?).env("RUST_BACKTRACE", "1");
    Ok(command)
}

/// How many effects there are now.
///
/// # Panics
/// When the table can't be read.
pub async fn effects_so_far(database: &Database) -> i64 {
    let sql = "select count(*) from effects";
    database.superuser().query_one(sql, &[]).await.expect("a count").get(0)
}

/// Waits until there is an effect for each committed event of `topic`, and nothing is parked or
/// dead, and counts. A backlog may take as long as it does, but not stop.
///
/// # Panics
/// When it does not come to that; with the count.
pub async fn count(database: &Database, truth: &[Committed], topic: &Topic) -> Effects {
    let expected = truth.iter().filter(|row| row.topic == topic.name()).count();
    let expected = i64::try_from(expected).expect("a count");
    let done = || async {
        let sql = "select (select count(distinct message) from effects), \
                          (select count(*) from inbox.parked) + \
                          (select count(*) from inbox.dead_letters where state = 'dead')";
        let row = database.superuser().query_one(sql, &[]).await.map_err(|e| e.to_string())?;
        match (row.get::<_, i64>(0), row.get::<_, i64>(1)) {
            (applied, 0) if applied >= expected => Ok(()),
            (applied, parked) => Err(format!("{applied} of {expected}, {parked} aside")),
        }
    };
    let waited = loop {
        let before = effects_so_far(database).await;
        let waited = wait::until("all take effect", wait::PATIENCE, done).await;
        if waited.is_ok() || effects_so_far(database).await == before {
            break waited;
        }
    };
    let counted = compare(database, truth, topic).await;
    waited.unwrap_or_else(|error| panic!("{error:#}; {counted:?}"));
    counted
}

/// Counts what is there now.
///
/// # Panics
/// When the tables can't be read.
pub async fn compare(database: &Database, truth: &[Committed], topic: &Topic) -> Effects {
    let truth: Vec<&Committed> = truth.iter().filter(|row| row.topic == topic.name()).collect();
    let sql = "select message, lane, n from effects order by place";
    let rows = database.superuser().query(sql, &[]).await.expect("effects");
    let expected: BTreeSet<Uuid> =
        truth.iter().map(|row| row.id.parse().expect("a uuid")).collect();
    let numbered: BTreeSet<Uuid> = truth
        .iter()
        .filter(|row| row.headers.contains_key(SEQUENCE))
        .map(|row| row.id.parse().expect("a uuid"))
        .collect();
    let dead = "select distinct message_id from inbox.dead_letters";
    let dead = database.superuser().query(dead, &[]).await.expect("dead letters");
    let dead: BTreeSet<Uuid> = dead.iter().map(|row| row.get(0)).collect();
    let mut found = BTreeSet::new();
    let mut last: BTreeMap<String, i64> = BTreeMap::new();
    let mut count = Effects::default();
    for row in &rows {
        let (message, lane): (Uuid, String) = (row.get(0), row.get(1));
        if !found.insert(message) {
            count.doubled += 1;
            continue;
        }
        if let Some(n) = row.get::<_, Option<i64>>(2)
            && numbered.contains(&message)
            && !dead.contains(&message)
        {
            let before = last.insert(lane, n).unwrap_or(0);
            count.misordered += usize::from(before > n);
        }
    }
    count.applied = found.intersection(&expected).count();
    count.lost = expected.len() - count.applied;
    count.invented = found.len() - count.applied;
    let follow_ups = "select count(*) from outbox.events where topic = 'follow-ups'";
    let follow_ups: i64 =
        database.superuser().query_one(follow_ups, &[]).await.expect("a count").get(0);
    count.follow_ups_off = rows.len().abs_diff(usize::try_from(follow_ups).expect("a count"));
    count
}

impl Effects {
    /// Whether nothing was lost, doubled, moved or made up.
    pub fn are_each_once_and_in_order(&self) -> bool {
        *self == Effects { applied: self.applied, ..Effects::default() }
    }

    /// # Panics
    /// When anything was lost, doubled, moved or made up.
    #[track_caller]
    pub fn assert_effectively_once(&self) {
        assert!(self.are_each_once_and_in_order(), "{self:?}");
        assert!(self.applied > 0, "nothing was to be done");
    }
}
