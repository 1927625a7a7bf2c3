//! A worker: takes messages, has them processed, says what became of them.

use super::{lanes::Acknowledgement, queue::DispatchQueue};
use crate::{
    message::RawMessage,
    processor::{Processor, Stop},
};

/// Works until it can't continue.
pub(crate) async fn work<A: Acknowledgement>(
    processor: &Processor,
    queue: &DispatchQueue<A>,
) -> Stop {
    loop {
        let process = |messages: Vec<RawMessage>| async move { processor.process(&messages).await };
        if let Err(stop) = work_once(queue, processor.batch_max(), process).await {
            return stop;
        }
    }
}

/// Waits for messages and has them processed: finished when that has succeeded, and not before.
pub(crate) async fn work_once<A, F, Fut>(
    queue: &DispatchQueue<A>,
    max: usize,
    process: F,
) -> Result<(), Stop>
where
    A: Acknowledgement,
    F: FnOnce(Vec<RawMessage>) -> Fut,
    Fut: Future<Output = Result<(), Stop>>,
{
    let taken = queue.take(max).await;
    process(taken.items().iter().map(|item| item.message.clone()).collect()).await?;
    taken.are_finished();
    Ok(())
}
