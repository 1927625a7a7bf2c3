//! What a user writes: a function from a transaction and a message to done or failed.

use std::{
    error::Error,
    panic::AssertUnwindSafe,
    pin::Pin,
    task::{Context, Poll},
};

use futures_util::{FutureExt as _, future::BoxFuture};
use serde::de::DeserializeOwned;

use crate::{
    failure::{Failure, Kind},
    message::{Message, RawMessage},
    quiet::drop_quietly,
    tx::Tx,
};

/// Handles one message. Every `async fn(Tx, Message<T>) -> Result<(), Failure>` is one.
///
/// What it writes through `tx` is kept if and only if it returns `Ok`, and only once for each
/// message, however often it is called for it. What it does elsewhere is not.
pub trait Handler<T>: Send + Sync + 'static {
    /// Handles it. `tx` must not be kept.
    fn handle(
        &self,
        tx: Tx,
        message: Message<T>,
    ) -> impl Future<Output = Result<(), Failure>> + Send;
}

impl<T, F, Fut> Handler<T> for F
where
    F: Fn(Tx, Message<T>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), Failure>> + Send,
{
    fn handle(
        &self,
        tx: Tx,
        message: Message<T>,
    ) -> impl Future<Output = Result<(), Failure>> + Send {
        self(tx, message)
    }
}

/// Handles several messages in one transaction: many times the throughput, where one statement can
/// do the work of all. Every `async fn(Tx, Vec<Message<T>>) -> Result<(), Failure>` is one.
///
/// The messages are new and in order within each key. When it fails, the batch is halved until the
/// failing message is alone.
pub trait BatchHandler<T>: Send + Sync + 'static {
    /// Handles them; there is at least one. `tx` must not be kept.
    fn handle(
        &self,
        tx: Tx,
        messages: Vec<Message<T>>,
    ) -> impl Future<Output = Result<(), Failure>> + Send;
}

impl<T, F, Fut> BatchHandler<T> for F
where
    F: Fn(Tx, Vec<Message<T>>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), Failure>> + Send,
{
    fn handle(
        &self,
        tx: Tx,
        messages: Vec<Message<T>>,
    ) -> impl Future<Output = Result<(), Failure>> + Send {
        self(tx, messages)
    }
}

/// A handler without its types. It never panics.
pub(crate) trait Work: Send + Sync {
    fn run(&self, tx: Tx, messages: Vec<RawMessage>) -> BoxFuture<'_, Result<(), Failure>>;
}

/// From what the broker brought to what the handler takes.
type Decode<T> = dyn Fn(&RawMessage) -> Result<T, Failure> + Send + Sync;

struct One<T, H>(H, Box<Decode<T>>);

struct Batch<T, H>(H, Box<Decode<T>>);

pub(crate) fn one<T, H>(
    handler: H,
    decode: impl Fn(&RawMessage) -> Result<T, Failure> + Send + Sync + 'static,
) -> impl Work
where
    T: Send + 'static,
    H: Handler<T>,
{
    One(handler, Box::new(decode))
}

pub(crate) fn batch<T, H>(
    handler: H,
    decode: impl Fn(&RawMessage) -> Result<T, Failure> + Send + Sync + 'static,
) -> impl Work
where
    T: Send + 'static,
    H: BatchHandler<T>,
{
    Batch(handler, Box::new(decode))
}

impl<T: Send + 'static, H: Handler<T>> Work for One<T, H> {
    fn run(&self, tx: Tx, messages: Vec<RawMessage>) -> BoxFuture<'_, Result<(), Failure>> {
        guarded(async move {
            let mut messages = messages.into_iter();
            if let Some(message) = messages.next() {
                debug_assert!(messages.next().is_none(), "one at a time");
                let payload = (self.1)(&message)?;
                self.0.handle(tx, message.with(payload)).await?;
            }
            Ok(())
        })
    }
}

impl<T: Send + 'static, H: BatchHandler<T>> Work for Batch<T, H> {
    fn run(&self, tx: Tx, messages: Vec<RawMessage>) -> BoxFuture<'_, Result<(), Failure>> {
        guarded(async move {
            let decoded = messages.into_iter().map(|message| {
                let payload = (self.1)(&message)?;
                Ok(message.with(payload))
            });
            let messages: Result<Vec<_>, Failure> = decoded.collect();
            self.0.handle(tx, messages?).await
        })
    }
}

/// A tombstone is read as JSON's null, so an `Option` takes it.
pub(crate) fn json<T: DeserializeOwned>(message: &RawMessage) -> Result<T, Failure> {
    let payload = serde_json::from_slice(message.payload.as_deref().unwrap_or(b"null"));
    payload.map_err(undecodable)
}

pub(crate) fn undecodable(error: impl Into<Box<dyn Error + Send + Sync>>) -> Failure {
    Failure::permanent("undecodable", error)
}

/// A panic is a failure of the message like any other: it burns attempts and ends as a dead letter.
fn guarded<'a>(
    work: impl Future<Output = Result<(), Failure>> + Send + 'a,
) -> BoxFuture<'a, Result<(), Failure>> {
    let work = AssertUnwindSafe(work).catch_unwind();
    let work = async move {
        work.await.unwrap_or_else(|panic| {
            let failure = panicked(&*panic);
            drop_quietly(panic);
            Err(failure)
        })
    };
    Guarded(Some(work.boxed())).boxed()
}

/// A handler's work, which may be dropped before it has ended: at its time limit, or with the consumer.
struct Guarded<'a>(Option<BoxFuture<'a, Result<(), Failure>>>);

impl Future for Guarded<'_> {
    type Output = Result<(), Failure>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().expect("it is there until it is dropped").as_mut().poll(cx)
    }
}

impl Drop for Guarded<'_> {
    fn drop(&mut self) {
        if drop_quietly(self.0.take()) {
            tracing::error!(
                "what a handler held panicked when it was dropped; the consumer continues"
            );
        }
    }
}

pub(crate) fn panicked(panic: &(dyn std::any::Any + Send)) -> Failure {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    Failure::new(Kind::Transient, "panic", format!("the handler panicked: {text}"))
}
