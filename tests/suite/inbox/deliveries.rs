//! The core of a runner for a broker that acknowledges each message by itself. The broker is played here:
//! groups as SQS FIFO has them, in memory. The processor and its database are real.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::FutureExt as _;
use outbox_idempotency::{
    Dedup, Failure, Message, Processor, RawMessage, Tx,
    dispatch::{Answer, Deliveries},
};

use super::effects::{
    Step, assert_once_and_in_order, database, effects, inbox, message, number, take,
};

type Handle = (String, i32);

/// Of a group it delivers some messages from the front, and nothing more until all of these are answered.
#[derive(Default)]
struct Broker {
    groups: BTreeMap<String, VecDeque<(i32, RawMessage)>>,
    away: BTreeMap<String, Vec<i32>>,
    returned: usize,
    extended: usize,
}

impl Broker {
    const OF_A_GROUP: usize = 3;

    fn send(&mut self, key: &str, n: i32) {
        self.groups.entry(key.to_owned()).or_default().push_back((n, message(key, n)));
    }

    fn receive(&mut self) -> Vec<(Handle, RawMessage)> {
        let free = |key: &String| self.away.get(key).is_none_or(Vec::is_empty);
        let Some((key, group)) =
            self.groups.iter().find(|(key, group)| free(key) && !group.is_empty())
        else {
            return Vec::new();
        };
        let got: Vec<_> = group.iter().take(Self::OF_A_GROUP).cloned().collect();
        let key = key.clone();
        self.away.insert(key.clone(), got.iter().map(|(n, _)| *n).collect());
        got.into_iter().map(|(n, message)| ((key.clone(), n), message)).collect()
    }

    fn hear(&mut self, answer: Answer<Handle>) {
        match answer {
            Answer::Acknowledge((key, n)) => {
                self.groups.get_mut(&key).expect("its group").retain(|(number, _)| *number != n);
                self.back(&key, n);
            }
            Answer::Return((key, n), _) => {
                self.returned += 1;
                self.back(&key, n);
            }
            Answer::Extend(_) => self.extended += 1,
            other => panic!("{other:?}"),
        }
    }

    fn back(&mut self, key: &str, n: i32) {
        let away = self.away.get_mut(key).expect("its group");
        let place = away.iter().position(|number| *number == n).expect("each is answered once");
        away.remove(place);
    }

    fn is_empty(&self) -> bool {
        self.groups.values().all(VecDeque::is_empty)
    }
}

fn lock(broker: &Mutex<Broker>) -> MutexGuard<'_, Broker> {
    broker.lock().expect("not poisoned")
}

#[tokio::test]
async fn each_message_takes_effect_once_in_its_order_and_is_acknowledged_after_that() {
    const LEASE: Duration = Duration::from_millis(150);
    let database = database().await;
    let stuck = Arc::new(AtomicBool::new(false));
    let handler = move |tx: Tx, message: Message<Step>| {
        let stuck = Arc::clone(&stuck);
        async move {
            take(&tx, &message.payload).await?;
            // One outlasts its lease, and ends with its worker alone.
            if message.payload.n == 5 && !stuck.swap(true, Relaxed) {
                std::future::pending::<()>().await;
            }
            Ok::<(), Failure>(())
        }
    };
    let processor = Processor::new(inbox(&database).await, handler);
    let deliveries = Deliveries::new(processor, Some(LEASE)).expect("rows").in_flight(8, 1 << 20);
    let deliveries = Arc::new(deliveries);
    let broker = Arc::new(Mutex::new(Broker::default()));
    let all: Vec<Step> = ["a", "b", "c", "d", "e"]
        .into_iter()
        .flat_map(|key| (1..=12).map(move |n| Step { key: key.to_owned(), n }))
        .collect();
    all.iter().for_each(|step| lock(&broker).send(&step.key, step.n));

    let receiving = async {
        while !lock(&broker).is_empty() {
            deliveries.room().await;
            let got = lock(&broker).receive();
            if got.is_empty() {
                tokio::time::sleep(Duration::from_millis(2)).await; // The broker's, which has nothing.
            }
            got.into_iter().for_each(|(handle, message)| deliveries.push(message, handle));
        }
    };
    let answering = async {
        loop {
            for answer in deliveries.answers().await {
                if let Answer::Acknowledge((key, n)) = &answer {
                    let sql =
                        format!("select count(*) from effects where key = '{key}' and n = {n}");
                    assert_eq!(number(&database, &sql).await, 1, "acknowledged before: {answer:?}");
                }
                lock(&broker).hear(answer);
            }
        }
    };
    // Workers that die half-way give back what they have.
    let working = async {
        loop {
            let workers: Vec<_> = (0..4)
                .map(|_| {
                    let deliveries = Arc::clone(&deliveries);
                    tokio::spawn(async move { deliveries.work().await })
                })
                .collect();
            tokio::time::sleep(3 * LEASE).await;
            workers.iter().for_each(tokio::task::JoinHandle::abort);
        }
    };
    let done = async {
        tokio::select! {
            () = receiving => {}
            () = answering => {}
            () = working => {}
        }
    };
    tokio::time::timeout(Duration::from_secs(60), done).await.expect("all are acknowledged");
    assert_once_and_in_order(&effects(&database).await, all);
    let broker = lock(&broker);
    assert!(broker.extended > 0, "the lease of the one that is stuck");
    assert!(broker.returned > 0, "what the workers had that died");
}

#[tokio::test]
async fn what_no_worker_has_is_returned_at_the_end_and_takes_no_effect() {
    let database = database().await;
    let handler = |tx: Tx, message: Message<Step>| async move {
        take(&tx, &message.payload).await?;
        Ok::<(), Failure>(())
    };
    let processor = Processor::new(inbox(&database).await, handler);
    let deliveries = Deliveries::new(processor, None).expect("rows");
    (1..=3).for_each(|n| deliveries.push(message("a", n), n));
    let (left, answers) = deliveries.drain(Duration::from_secs(5)).await;
    let returned: Vec<_> = (1..=3).map(|n| Answer::Return(n, Duration::ZERO)).collect();
    assert_eq!((left, answers), (0, returned));
    assert_eq!(effects(&database).await, []);
}

#[tokio::test]
async fn at_the_limit_nothing_more_is_taken_in_until_half_of_it_is_done() {
    let database = database().await;
    let handler = |tx: Tx, message: Message<Step>| async move {
        take(&tx, &message.payload).await?;
        Ok::<(), Failure>(())
    };
    let processor = Processor::new(inbox(&database).await, handler);
    let deliveries = Deliveries::new(processor, None).expect("rows").in_flight(4, 1 << 20);
    for n in 1..=4 {
        assert!(deliveries.room().now_or_never().is_some(), "{n} of 4");
        deliveries.push(message("a", n), n);
    }
    assert!(deliveries.room().now_or_never().is_none(), "4 of 4");
    tokio::select! {
        () = deliveries.room() => {}
        stopped = deliveries.work() => panic!("{stopped}"),
    }
    let done = effects(&database).await.len();
    assert!(done >= 2, "room after {done} of 4");
}

/// What comes again behind later messages would be taken for known.
#[tokio::test]
async fn a_watermark_is_refused_where_each_message_is_acknowledged_by_itself() {
    let database = database().await;
    let handler = |_: Tx, _: Vec<Message<Step>>| async move { Ok::<(), Failure>(()) };
    let processor = Processor::batch(inbox(&database).await, 10, handler)
        .dedup(Dedup::Watermark { relay: "orders".to_owned() });
    let refused = Deliveries::<i32>::new(processor, None).expect_err("refused");
    assert!(refused.to_string().contains("Dedup::Rows"), "{refused}");
}
