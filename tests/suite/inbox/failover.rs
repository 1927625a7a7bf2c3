//! The consumer's database fails over to a standby, under load.

use std::time::SystemTime;

use outbox_harness::{
    cluster::Pair,
    database::{self, Database, Role},
    servers,
    topic::Topic,
    wait,
};
use outbox_idempotency::{Alert, Dedup, Inbox, Message, Processor, Retry, Tx};
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer as _},
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
};

use super::{
    effects::{Step, assert_once_and_in_order, database_in, effects, number, take},
    records::{Member, topic, until_effects},
    topics::until_no_lag,
    watermark::watermark,
};

const PARTITIONS: i32 = 4;
const KEYS: i32 = 8;

/// Two servers, and a consumer's database on both.
struct Failover {
    database: Database,
    topic: Topic,
    dedup: Dedup,
    /// Of the positions that a relay would give.
    sent: u64,
    pair: Pair,
}

fn steps(ns: std::ops::RangeInclusive<i32>) -> impl Iterator<Item = Step> + Clone {
    ns.flat_map(|n| (0..KEYS).map(move |key| Step { key: format!("k{key}"), n }))
}

impl Failover {
    async fn begin(dedup: Dedup, synchronous: bool) -> Self {
        let pair = Pair::start().await;
        let database = database_in(pair.primary(), "").await;
        if synchronous {
            for statement in
                ["alter system set synchronous_standby_names = '*'", "select pg_reload_conf()"]
            {
                database.superuser().batch_execute(statement).await.expect("a setting");
            }
            wait::until("commits wait for the standby", wait::PATIENCE, || async {
                let sql = "select count(*) from pg_stat_replication where sync_state = 'sync'";
                if number(&database, sql).await == 1 { Ok(()) } else { Err("none") }
            })
            .await
            .expect("a synchronous standby");
        }
        let topic = topic(&database, "failover").await.create(PARTITIONS).await;
        Failover { database, topic, dedup, sent: 0, pair }
    }

    async fn member(&self) -> Member {
        let handler = |tx: Tx, message: Message<Step>| async move {
            take(&tx, &message.payload).await?;
            Ok(())
        };
        let url = self.pair.url(&self.database, Role::Consumer);
        let pool = database::pool(url.parse().expect("a URL"), 12);
        let inbox = Inbox::open(pool, "billing").await.expect("the inbox opens");
        // An attempt that is counted is a dead letter.
        let processor = Processor::new(inbox, handler)
            .retry(Retry::default().attempts(1))
            .dedup(self.dedup.clone());
        let (group, topic) = (self.database.name(), self.topic.name());
        Member::of(processor, group, &[topic], &[], |runner| runner).await
    }

    /// As the relay publishes them.
    async fn send(&mut self, steps: impl Iterator<Item = Step>) {
        let mut client = servers::kafka().await.client();
        let producer: FutureProducer = client.set("linger.ms", "5").create().expect("a producer");
        let mut stored = Vec::new();
        for step in steps {
            self.sent += 1;
            let payload = serde_json::to_string(&step).expect("JSON");
            let position = format!("7:1:{:016X}:0000000000", self.sent);
            let id = uuid::Uuid::now_v7().to_string();
            let given =
                [("outbox-id", &*id), ("outbox-relay", "orders"), ("outbox-position", &*position)];
            let headers = given.into_iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
                headers.insert(Header { key, value: Some(value) })
            });
            let record = FutureRecord::to(self.topic.name()).key(&step.key).payload(&payload);
            stored.push(producer.send_result(record.headers(headers)).expect("it is queued"));
        }
        for stored in stored {
            stored.await.expect("an answer").expect("it is stored");
        }
    }

    /// The primary's processes end as they stand, and the standby takes over.
    async fn kill_and_promote(&mut self) {
        let pid = "select split_part(pg_read_file('postmaster.pid'), e'\\n', 1)::bigint";
        let pid = libc::pid_t::try_from(number(&self.database, pid).await).expect("a process id");
        // SAFETY: kill takes any numbers; no one has waited for the server yet, so this one is its.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0, "it was running");
        self.pair.fail_over().await;
        self.database.fail_over(self.pair.standby()).await;
    }

    /// Sets the group's offsets back to the beginning, while it has no member.
    async fn read_again(&self) {
        let mut list = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            let added = list.add_partition_offset(self.topic.name(), partition, Offset::Offset(0));
            added.expect("an offset");
        }
        let mut client = servers::kafka().await.client();
        client.set("group.id", self.database.name());
        let set = tokio::task::spawn_blocking(move || {
            let consumer: BaseConsumer = client.create().expect("a consumer");
            consumer.commit(&list, CommitMode::Sync)
        });
        set.await.expect("no panic").expect("set back");
    }

    async fn assert_nothing_aside(&self) {
        let aside = "select (select count(*) from inbox.parked) + (select count(*) from inbox.dead_letters)";
        assert_eq!(number(&self.database, aside).await, 0, "a failover is nobody's fault");
    }
}

fn count(steps: impl Iterator<Item = Step>) -> usize {
    steps.count()
}

#[tokio::test]
async fn with_a_synchronous_standby_nothing_is_lost_or_doubled() {
    for dedup in [Dedup::Rows, watermark()] {
        let mut f = Failover::begin(dedup, true).await;
        let member = f.member().await;
        f.send(steps(1..=300)).await;
        until_effects(&f.database, 400).await;
        f.kill_and_promote().await;
        until_effects(&f.database, count(steps(1..=300))).await;
        until_no_lag(&f.database, &f.topic, PARTITIONS).await;
        member.stop().await;
        assert_once_and_in_order(&effects(&f.database).await, steps(1..=300));
        f.assert_nothing_aside().await;
    }
}

/// The standby never gets the effects of 101 to 150, whose offsets are committed.
async fn lose_the_tail(f: &mut Failover) -> Member {
    let member = f.member().await;
    f.send(steps(1..=100)).await;
    until_effects(&f.database, count(steps(1..=100))).await;
    f.pair.catch_up().await;
    f.pair.cut().await;
    f.send(steps(101..=150)).await;
    until_effects(&f.database, count(steps(1..=150))).await;
    until_no_lag(&f.database, &f.topic, PARTITIONS).await;
    f.kill_and_promote().await;
    assert_eq!(effects(&f.database).await.len(), count(steps(1..=100)), "the tail is lost");
    member
}

#[tokio::test]
async fn a_watermark_tells_what_an_asynchronous_standby_lost_and_it_takes_effect_then() {
    let mut f = Failover::begin(watermark(), false).await;
    let member = lose_the_tail(&mut f).await;
    f.send(steps(151..=200)).await;
    let ended = member.ended().await;
    let why = format!("{:#}", anyhow::Error::from(ended));
    assert!(why.contains("the database has lost what it had committed"), "{why}");
    // As whatever keeps the process running does.
    let member = f.member().await;
    until_effects(&f.database, count(steps(1..=200))).await;
    until_no_lag(&f.database, &f.topic, PARTITIONS).await;
    member.stop().await;
    assert_once_and_in_order(&effects(&f.database).await, steps(1..=200));
    f.assert_nothing_aside().await;
}

#[tokio::test]
async fn what_rows_may_have_lost_with_an_asynchronous_standby_is_said_and_takes_effect_when_read_again()
 {
    let mut f = Failover::begin(Dedup::Rows, false).await;
    let member = lose_the_tail(&mut f).await;
    let promoted = SystemTime::now();
    f.send(steps(151..=200)).await;
    until_effects(&f.database, count(steps(1..=100)) + count(steps(151..=200))).await;
    until_no_lag(&f.database, &f.topic, PARTITIONS).await;
    let said = wait::until("it is said", wait::PATIENCE, || async {
        match &member.alerts()[..] {
            [Alert::FailedOver { seen, .. }] if *seen < promoted => Ok(()),
            others => Err(format!("{others:?}")),
        }
    });
    said.await.expect("that the database has failed over");
    member.stop().await;
    // Nothing is doubled, and the offsets are behind what is lost.
    let kept = steps(1..=100).chain(steps(151..=200));
    assert_once_and_in_order(&effects(&f.database).await, kept);
    f.read_again().await;
    let member = f.member().await;
    until_effects(&f.database, count(steps(1..=200))).await;
    until_no_lag(&f.database, &f.topic, PARTITIONS).await;
    member.stop().await;
    let (mut found, mut expected): (Vec<_>, Vec<_>) =
        (effects(&f.database).await, steps(1..=200).collect());
    found.sort();
    expected.sort();
    assert_eq!(found, expected, "each once; what was lost comes behind what came meanwhile");
    f.assert_nothing_aside().await;
}
