//! What a consumer counts, as an exporter of the facade `metrics` sees it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use outbox_harness::wait;
use outbox_idempotency::{Classify as _, Message, Processor, Tx};

use super::{
    effects::{Step, database, inbox, message, take},
    processor::{Background, WAITING, soon, until_zero},
};

/// Keeps what is counted, by name and labels. A gauge is kept as the bits of its number.
#[derive(Debug, Default)]
pub(super) struct Counted(Mutex<BTreeMap<String, Arc<AtomicU64>>>);

impl Counted {
    /// That of the whole process, for what other threads count. Other tests count there as well, under their topics.
    pub(super) fn everywhere() -> &'static Counted {
        static COUNTED: LazyLock<&Counted> = LazyLock::new(|| {
            let counted: &'static Counted = Box::leak(Box::default());
            metrics::set_global_recorder(counted).expect("there is no other");
            counted
        });
        *COUNTED
    }

    fn of(&self, key: &Key) -> Arc<AtomicU64> {
        let labels = key.labels().map(|label| format!(" {}={}", label.key(), label.value()));
        let name = format!("{}{}", key.name(), labels.collect::<String>());
        Arc::clone(self.0.lock().expect("no panic").entry(name).or_default())
    }

    /// Those whose name begins so, without that.
    pub(super) fn all(&self, begin: &str) -> BTreeMap<String, u64> {
        let counted = self.0.lock().expect("no panic");
        let named =
            counted.iter().filter_map(|(name, count)| Some((name.strip_prefix(begin)?, count)));
        named.map(|(name, count)| (name.to_owned(), count.load(SeqCst))).collect()
    }
}

impl Recorder for Counted {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.of(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.of(key))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

/// One message fails at every attempt, one waits behind it, one succeeds, and a copy of the last comes.
#[tokio::test]
async fn what_becomes_of_each_message_is_counted() {
    let counted = Counted::default();
    // All tasks of this test run on its thread.
    let _here = metrics::set_default_local_recorder(&counted);
    let database = database().await;
    let handler = |tx: Tx, message: Message<Step>| async move {
        take(&tx, &message.payload).await?;
        if message.payload.key == "a" && message.payload.n == 1 {
            Err("never").transient()?;
        }
        Ok(())
    };
    let processor = Processor::new(inbox(&database).await, handler).retry(soon());
    let sent = [message("a", 1), message("a", 2), message("b", 1)];
    processor.process(&sent).await.expect("settled");
    processor.process(&sent[2..]).await.expect("settled");
    let background = Background::start(&processor);
    until_zero(&database, WAITING).await;
    let outcomes = || counted.all("outbox_inbox_messages_total consumer=billing outcome=");
    let expected = [("applied", 2), ("dead", 1), ("duplicate", 1), ("parked", 1), ("waiting", 1)];
    let expected: BTreeMap<String, u64> =
        expected.map(|(outcome, messages)| (outcome.to_owned(), messages)).into();
    wait::until("all are counted", wait::PATIENCE, || async {
        let found = outcomes();
        if found == expected { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await
    .expect("each once");
    let dead = || counted.all("outbox_inbox_dead_letters consumer=billing");
    wait::until("the gauges are set", wait::PATIENCE, || async {
        match dead().values().next().map(|bits| f64::from_bits(*bits)) {
            Some(1.0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
    .expect("one dead letter");
    background.stop().await;
}
