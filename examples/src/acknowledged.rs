//! A consumer of a broker that acknowledges each message by itself: what those of NATS and RabbitMQ have in common.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use outbox_idempotency::{
    Headers, Message, MessageId, Processor, RawMessage, Source, Stop,
    dispatch::{Answer, Deliveries},
};
use tokio::task::JoinSet;

const WORKERS: usize = 8;
/// How long handlers may take to end when the service is stopped.
const PATIENCE: Duration = Duration::from_secs(10);

/// A message of outbox-relay, whose id and key are among its headers. `None` if it has no id: a copy of it could not be
/// told from another message.
pub fn message(source: Source, headers: Headers, body: Vec<u8>) -> Option<RawMessage> {
    let given = headers.iter().filter_map(|(name, value)| Some((name, value?)));
    let id = MessageId::from_headers(given, &MessageId::HEADERS, None)?;
    let key = headers.iter().find(|(name, _)| *name == "outbox-key");
    let key = key.and_then(|(_, key)| Some(key?.to_vec()));
    let message = Message::new(id, source, Some(body.into())).with_headers(headers);
    Some(match key {
        Some(key) => message.with_key(key),
        None => message,
    })
}

/// Has `processor` handle what `receive` gives, and tells the broker what became of it, until `stop`.
///
/// `lease` is for how long the broker keeps a message from others; `None`, as long as the connection lasts.
///
/// # Errors
/// The broker's, or why the processor can't continue. What was not answered comes again.
pub async fn consume<H: Clone + Send + 'static>(
    processor: Processor,
    lease: Option<Duration>,
    mut receive: impl AsyncFnMut() -> Result<(RawMessage, H)>,
    tell: impl AsyncFn(Answer<H>) -> Result<()>,
    stop: impl Future<Output = ()>,
) -> Result<()> {
    let deliveries = Arc::new(Deliveries::new(processor.clone(), lease)?);
    // Dropping the set rolls back what they do.
    let mut tasks: JoinSet<Stop> = JoinSet::new();
    for _ in 0..WORKERS {
        let deliveries = Arc::clone(&deliveries);
        tasks.spawn(async move { deliveries.work().await });
    }
    // Retries, replays, upkeep.
    tasks.spawn(async move { processor.background().await });
    let received = async {
        loop {
            deliveries.room().await;
            match receive().await {
                Ok((message, handle)) => deliveries.push(message, handle),
                Err(error) => return error,
            }
        }
    };
    let answered = async {
        loop {
            for answer in deliveries.answers().await {
                if let Err(error) = tell(answer).await {
                    return error;
                }
            }
        }
    };
    let received = async {
        tokio::select! {
            error = received => Err(error),
            () = stop => Ok(()),
        }?;
        // What workers have is finished; the rest is returned.
        let (_left, answers) = deliveries.drain(PATIENCE).await;
        anyhow::Ok(answers)
    };
    let last = tokio::select! {
        last = received => last?,
        error = answered => return Err(error),
        Some(ended) = tasks.join_next() => return Err(ended?.into()),
    };
    for answer in last {
        tell(answer).await?;
    }
    Ok(())
}
