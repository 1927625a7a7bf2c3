//! Kafka, through librdkafka: records and progress in one transaction, or records first.
//!
//! Promises what [`Publisher`] asks for. Knows records and opaque progress bytes; leaves retrying,
//! bisecting and parking to the pipeline. All blocking calls run on one thread of the sink's own
//! (`thread`), fed through a bounded channel; all `unsafe` is in `native`.

mod absent;
mod acl;
mod admin;
mod context;
mod errors;
mod explained;
mod files;
mod hidden;
mod limits;
mod lookup;
mod native;
mod outlet;
mod preflight;
mod probe;
mod produce;
mod progress_log;
mod progress_reader;
mod progress_topic;
mod property;
mod quota;
mod reach;
mod roots;
mod settings;
mod stop;
mod target;
mod thread;
mod throttle;
mod topics;
mod transaction;
mod twin;

use std::{
    ops::Range,
    sync::{
        Arc,
        mpsc::{SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::oneshot;

use self::{
    absent::SharedAttempts,
    probe::make_lookup,
    progress_reader::Until,
    stop::Stop,
    thread::{Command, Worker},
};
pub use self::{
    absent::Watch,
    probe::Probe,
    reach::Reach,
    settings::{Delivery, Settings, SystemRoots, TopicCreation},
};
pub(super) use self::{
    errors::is_silence, explained::explained, preflight::examine, progress_reader::long_reading,
    topics::forecast::foresee,
};
use super::{
    Delivered, ProgressStore, Publisher, Receipt, Sink, SinkError, Stored, StoredProgress,
    unavailable,
};
use crate::{
    core::record::{Batch, BatchLimits},
    seal::SealKey,
};

/// One caller at a time, and one command that no one waits for any more.
const COMMANDS_MAX: usize = 2;
/// How long [`KafkaSink::stop`] waits for librdkafka to let go.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// The Kafka sink. Dropping it asks its thread to stop and does not wait; [`KafkaSink::stop`] does.
#[derive(Debug)]
pub struct KafkaSink {
    /// `None` once a stop was requested.
    commands: Option<SyncSender<Command>>,
    stop: Stop,
    ended: oneshot::Receiver<()>,
    thread: Option<JoinHandle<()>>,
    probe: Probe,
    watch: Watch,
    delivery_limit: Duration,
    delivery: Delivery,
}

impl KafkaSink {
    /// Makes the sink's clients and thread. Waits for no broker. `key` is what tells this relay's
    /// progress from what others store.
    ///
    /// # Errors
    /// `Misconfigured` if librdkafka refuses the settings; see [`Settings::problems`].
    pub fn start(settings: Settings, key: SealKey) -> Result<Self, SinkError> {
        let lookup = Arc::new(make_lookup(&settings)?);
        let shared = Arc::new(settings.clone());
        let probe = Probe {
            lookup: Arc::clone(&lookup),
            topic: settings.progress_topic(),
            settings: Arc::clone(&shared),
        };
        let (delivery_limit, delivery) = (settings.delivery_limit(), settings.delivery);
        let attempts = SharedAttempts::default();
        let watch = Watch {
            lookup: Arc::clone(&lookup),
            settings: shared,
            attempts: Arc::clone(&attempts),
        };
        let stop = Stop::default();
        let (commands, received) = sync_channel(COMMANDS_MAX);
        let (end, ended) = oneshot::channel();
        let worker = Worker::new(settings, key, lookup, attempts, stop.clone());
        let thread = std::thread::Builder::new()
            .name("kafka".into())
            .spawn(move || {
                worker.run(&received);
                let _ = end.send(());
            })
            .map_err(|error| unavailable("starting the Kafka thread", error))?;
        let thread = Some(thread);
        let commands = Some(commands);
        Ok(KafkaSink { commands, stop, ended, thread, probe, watch, delivery_limit, delivery })
    }

    /// A handle that asks whether the brokers answer; it works while a delivery is under way.
    pub fn probe(&self) -> Probe {
        self.probe.clone()
    }

    /// A handle that looks for topics that are missing; it works while a delivery is under way.
    pub fn watch(&self) -> Watch {
        self.watch.clone()
    }

    /// Ends the sink's thread and clients, within two seconds even when no broker answers. A
    /// delivery under way is given up: finish it first.
    pub async fn stop(mut self) {
        self.request_stop();
        match tokio::time::timeout(STOP_LIMIT, &mut self.ended).await {
            // Ended, or its sender went with a panic: either way joining does not wait.
            Ok(_) => {
                if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
                    tracing::error!("the Kafka thread ended in a panic");
                }
            }
            Err(_) => tracing::warn!("librdkafka did not let go in {STOP_LIMIT:?}: continuing"),
        }
    }

    fn request_stop(&mut self) {
        self.stop.request();
        self.commands = None;
    }

    async fn ask<T>(
        &self,
        doing: &'static str,
        command: impl FnOnce(oneshot::Sender<Result<T, SinkError>>) -> Command,
    ) -> Result<T, SinkError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.commands.as_ref().is_some_and(|c| c.try_send(command(reply)).is_ok());
        if !sent {
            return Err(unavailable(doing, "the Kafka thread is busy or has ended"));
        }
        answer.await.unwrap_or_else(|_| Err(unavailable(doing, "the Kafka thread has ended")))
    }
}

impl Drop for KafkaSink {
    fn drop(&mut self) {
        self.request_stop();
    }
}

impl ProgressStore for KafkaSink {
    async fn peek(&mut self) -> Result<StoredProgress, SinkError> {
        let until = Until::Stable;
        self.ask("reading progress", |reply| Command::ReadProgress { until, reply }).await
    }

    async fn fence(&mut self) -> Result<(), SinkError> {
        self.ask("fencing", Command::Fence).await
    }

    async fn read(&mut self) -> Result<StoredProgress, SinkError> {
        let until = Until::Newest;
        self.ask("reading progress", |reply| Command::ReadProgress { until, reply }).await
    }

    async fn store(&mut self, progress: Bytes) -> Result<Stored, SinkError> {
        let nothing = Arc::new(Batch::new(BatchLimits { records_max: 1, bytes_max: 1 }));
        self.publish(&nothing, 0..0, Some(progress)).await?;
        Ok(Stored(()))
    }
}

/// With [`Delivery::RecordsAlone`].
impl Sink for KafkaSink {
    fn delivery_limit(&self) -> Option<Duration> {
        Some(self.delivery_limit)
    }

    async fn deliver(
        &mut self,
        batch: &Arc<Batch>,
        range: Range<usize>,
    ) -> Result<Delivered, SinkError> {
        let batch = Arc::clone(batch);
        let command = |reply| Command::Deliver { batch, range, progress: None, reply };
        let Receipt { restamped, .. } = self.ask("delivering", command).await?;
        Ok(Delivered { restamped })
    }
}

impl Publisher for KafkaSink {
    fn delivery_limit(&self) -> Option<Duration> {
        Some(self.delivery_limit)
    }

    fn is_apart(&self) -> bool {
        self.delivery != Delivery::ExactlyOnce
    }

    async fn publish(
        &mut self,
        batch: &Arc<Batch>,
        range: Range<usize>,
        progress: Option<Bytes>,
    ) -> Result<Receipt, SinkError> {
        let batch = Arc::clone(batch);
        self.ask("delivering", |reply| Command::Deliver { batch, range, progress, reply }).await
    }
}

#[cfg(test)]
mod tests {
    use super::{settings::sample, *};
    use crate::causes;

    /// No one listens where its broker should be.
    fn sink(delivery: Delivery) -> KafkaSink {
        let settings = Settings { delivery, ..sample("127.0.0.1:1") };
        KafkaSink::start(settings, SealKey::random()).expect("it waits for no broker")
    }

    fn told<T>(answer: Result<T, SinkError>) -> String {
        let error = answer.err().expect("it is used out of turn");
        assert!(matches!(error, SinkError::Unavailable { .. }), "{error:?}");
        causes::of(&error)
    }

    #[tokio::test]
    async fn a_thread_that_has_ended_is_told() {
        let mut sink = sink(Delivery::ExactlyOnce);
        let (commands, received) = sync_channel(1);
        sink.commands = Some(commands);
        // As where it panics: what it was asked goes with it.
        let (answer, ()) = tokio::join!(sink.fence(), async { drop(received.recv()) });
        assert_eq!(told(answer), "fencing: the Kafka thread has ended");
        drop(received);
        assert_eq!(told(sink.fence().await), "fencing: the Kafka thread is busy or has ended");
    }

    #[tokio::test]
    async fn what_delivers_before_it_has_read_progress_says_so_and_is_spent() {
        let mut sink = sink(Delivery::ExactlyOnce);
        let early = told(sink.store("1".into()).await);
        assert_eq!(early, "delivering: progress was not read behind a fence before");
        let spent = told(sink.store("1".into()).await);
        assert!(spent.ends_with("the sink must be opened again"), "{spent}");
    }

    #[tokio::test]
    async fn progress_that_is_kept_elsewhere_is_not_stored_in_a_topic() {
        let mut sink = sink(Delivery::RecordsAlone);
        let told = told(sink.store("1".into()).await);
        assert_eq!(told, "storing progress: these settings keep none in a topic");
    }
}
