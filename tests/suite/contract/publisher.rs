//! A publisher of any kind, made as the daemon makes it, and driven as the pipeline drives it.

use std::{ops::Range, sync::Arc, time::SystemTime};

use bytes::Bytes;
use outbox_harness::{Harness, relay::Settings, topic::Record, wait};
use outbox_relay::{
    config::{self, Config, Purpose, Sources, parts::Parts},
    core::{
        lsn::Lsn,
        position::RowPosition,
        record::{Batch, BatchLimits, RecordHead, RefusedRecord},
    },
    postgres::sql::{self, SqlSession},
    seal::SealKey,
    sink::{ProgressStore as _, Publisher as _, Rest, SinkError, any::AnySink},
};

use super::kind::{Fence, Kind};

/// A database, a sink's place, and the settings of a relay between them.
pub(super) struct Bench<K> {
    pub t: Harness,
    pub kind: K,
    settings: Settings,
    key: SealKey,
}

/// One life of the relay, as far as its sink sees it.
pub(super) struct Life {
    /// The one that holds the leader's lock in a relay.
    session: Arc<SqlSession>,
    pub sink: AnySink,
    /// Progress as it was read when it began.
    pub found: Option<Bytes>,
}

/// A record to be delivered.
#[derive(Clone, Debug)]
pub(super) struct Given {
    pub id: String,
    pub topic: String,
    pub key: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
    pub partition: Option<i32>,
    pub headers: Vec<(&'static str, String)>,
    pub timestamp_ms: i64,
}

impl<K: Kind> Bench<K> {
    pub(super) async fn new() -> Self {
        Self::with(false).await
    }

    pub(super) async fn breakable() -> Self {
        Self::with(true).await
    }

    async fn with(breakable: bool) -> Self {
        let t = Harness::start().await;
        let kind = K::make(&t, breakable).await;
        let settings = kind.settings(t.relay());
        Bench { t, kind, settings, key: SealKey::random() }
    }

    /// Begins a life: takes over, and reads progress.
    pub(super) async fn begin(&self) -> Life {
        self.try_begin().await.expect("it begins")
    }

    pub(super) async fn try_begin(&self) -> Result<Life, SinkError> {
        let mut life = self.fenced(None).await?;
        life.read().await?;
        Ok(life)
    }

    /// Begins a life as far as the fence; of a relay of another name, if one is given.
    pub(super) async fn fenced(&self, name: Option<&str>) -> Result<Life, SinkError> {
        let mut life = self.made(name).await?;
        life.sink.fence().await?;
        Ok(life)
    }

    /// Makes the sink and does nothing with it.
    pub(super) async fn made(&self, name: Option<&str>) -> Result<Life, SinkError> {
        let (config, parts) = self.config(name);
        let session = sql::connect(&parts.connect, "contract").await.expect("a session");
        let session = Arc::new(session);
        let sink = AnySink::start(&parts.sink, &config.name, self.key.clone(), &session)?;
        Ok(Life { session, sink, found: None })
    }

    fn config(&self, name: Option<&str>) -> (Config, Parts) {
        let settings = name.map(|name| self.settings.clone().set("name", name));
        let file = settings.as_ref().unwrap_or(&self.settings).written();
        let sources = Sources { file: Some(file), explicit: true, ..Sources::default() };
        let config = config::load(&sources, Purpose::Relay).expect("the settings are right");
        let parts = config.parts().expect("the settings are right");
        (config, parts)
    }

    /// Begins again as the daemon does: until it works.
    pub(super) async fn begin_again(&self) -> Life {
        let begun = wait::until("it begins again", wait::PATIENCE, || self.try_begin());
        begun.await.expect("what is back can be used")
    }

    /// What happens to a leader before another one takes over.
    pub(super) async fn depose(&self, life: &Life) {
        if matches!(K::CAN.fence, Fence::Session | Fence::SessionAndBroker) {
            let end = "select pg_terminate_backend($1, 5000)";
            let pid = life.session.pid();
            self.t.database().superuser().query_one(end, &[&pid]).await.expect("it is ended");
        }
    }

    /// Records with these numbers, of some keys that take turns.
    pub(super) fn records(&self, numbers: Range<u32>) -> Vec<Given> {
        numbers.map(|n| Given::new(self.kind.destination(), n)).collect()
    }

    /// Panics unless all of `given` were delivered, those of a key in their order by first sight, and once
    /// each where that is promised. Returns what was found.
    pub(super) async fn assert_delivered(&self, given: &[Given]) -> Vec<Record> {
        let found = self.kind.read(given.len()).await;
        if K::CAN.one_step {
            assert_eq!(found.len(), given.len(), "exactly once");
        }
        assert_in_order(given, &found);
        found
    }
}

/// Panics unless each key's records are `found` in the order of `given`, by first sight.
pub(super) fn assert_in_order(given: &[Given], found: &[Record]) {
    let mut keys: Vec<_> = given.iter().map(|record| record.key.as_deref()).collect();
    keys.sort_unstable();
    keys.dedup();
    for key in keys {
        let wanted = given.iter().filter(|record| record.key.as_deref() == key);
        let wanted: Vec<&str> = wanted.map(|record| record.id.as_str()).collect();
        let mut seen: Vec<&str> = Vec::new();
        for id in found.iter().filter(|r| r.key.as_deref() == key).filter_map(Record::id) {
            if !seen.contains(&id) {
                seen.push(id);
            }
        }
        assert_eq!(seen, wanted, "of key {key:?}");
    }
}

impl Life {
    pub(super) async fn read(&mut self) -> Result<(), SinkError> {
        let found = self.sink.read().await?;
        assert_eq!(found.stranger, None, "nobody else has this relay's name");
        self.found = found.own;
        Ok(())
    }

    /// Delivers all of `given` as the pipeline does: leaves out what is refused for certain, gives half
    /// where nothing is; then stores progress where it did not go with them. Returns what was refused.
    pub(super) async fn deliver(
        &mut self,
        given: &[Given],
        progress: &'static str,
    ) -> Vec<(Given, RefusedRecord)> {
        let mut refused = Vec::new();
        let mut waiting = vec![given.to_vec()];
        let mut proof = None;
        while let Some(mut group) = waiting.pop() {
            match self.publish(&group, progress).await {
                Ok(stored) => proof = stored,
                Err(SinkError::Refused { records, rest }) => {
                    let mut certain: Vec<_> = records.into_iter().filter(|r| r.certain).collect();
                    assert!(group.len() > 1 || !certain.is_empty(), "one alone is meant itself");
                    if certain.is_empty() {
                        waiting.push(group.split_off(group.len() / 2));
                        waiting.push(group);
                        continue;
                    }
                    certain.sort_by_key(|record| std::cmp::Reverse(record.index));
                    for record in certain {
                        refused.push((group.remove(record.index), record));
                    }
                    if rest != Rest::Stored {
                        waiting.push(group);
                    }
                }
                Err(error) => panic!("{error:?}"),
            }
        }
        if proof.is_none() {
            drop(self.sink.store(progress.into()).await.expect("progress is stored"));
        }
        refused
    }

    /// One delivery, and the proof that its progress is stored where it is.
    pub(super) async fn publish(
        &mut self,
        given: &[Given],
        progress: &'static str,
    ) -> Result<Option<outbox_relay::sink::Stored>, SinkError> {
        let batch = batch(given);
        Ok(self.sink.publish(&batch, 0..batch.len(), Some(progress.into())).await?.progress)
    }

    /// One delivery, and its progress.
    pub(super) async fn publish_and_store(
        &mut self,
        given: &[Given],
        progress: &'static str,
    ) -> Result<(), SinkError> {
        match self.publish(given, progress).await? {
            Some(_) => Ok(()),
            None => self.sink.store(progress.into()).await.map(drop),
        }
    }
}

impl Given {
    pub(super) fn new(topic: &str, n: u32) -> Self {
        Given {
            id: n.to_string(),
            topic: topic.to_owned(),
            key: Some(format!("key {}", n % 7).into_bytes()),
            payload: Some(format!("{{\"n\":{n}}}").into_bytes()),
            partition: None,
            headers: Vec::new(),
            timestamp_ms: now_ms(),
        }
    }
}

/// Old ones are given another time, so that no broker deletes them soon.
fn now_ms() -> i64 {
    let now = SystemTime::UNIX_EPOCH.elapsed().expect("it is past 1970");
    i64::try_from(now.as_millis()).expect("it is not that late")
}

pub(super) fn batch(given: &[Given]) -> Arc<Batch> {
    let mut batch = Batch::new(BatchLimits { records_max: 10_000, bytes_max: 64 << 20 });
    for (ordinal, record) in (0..).zip(given) {
        let mut writer = batch.start_record(RecordHead {
            position: RowPosition { commit: Lsn::new(1), ordinal },
            topic: &record.topic,
            key: record.key.as_deref(),
            payload: record.payload.as_deref(),
            partition: record.partition,
            timestamp_ms: Some(record.timestamp_ms),
        });
        writer.header("outbox-id", record.id.as_bytes());
        for (name, value) in &record.headers {
            writer.header(name, value.as_bytes());
        }
        writer.finish();
    }
    Arc::new(batch)
}
