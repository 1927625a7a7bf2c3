//! A worker: takes messages, has them processed, says what became of them.

use super::queue::DispatchQueue;
use crate::{
    message::RawMessage,
    processor::{Processor, Stop},
};

/// Works until it can't go on.
pub(crate) async fn work(processor: &Processor, queue: &DispatchQueue) -> Stop {
    loop {
        let process = |messages: Vec<RawMessage>| async move { processor.process(&messages).await };
        if let Err(stop) = work_once(queue, processor.batch_max(), process).await {
            return stop;
        }
    }
}

/// Waits for messages and has them processed: finished when that has succeeded, and not before.
pub(crate) async fn work_once<F, Fut>(
    queue: &DispatchQueue,
    max: usize,
    process: F,
) -> Result<(), Stop>
where
    F: FnOnce(Vec<RawMessage>) -> Fut,
    Fut: Future<Output = Result<(), Stop>>,
{
    let items = queue.take(max).await;
    let processed = process(items.iter().map(|item| item.message.clone()).collect()).await;
    queue.done(&items, processed.is_ok());
    processed
}
