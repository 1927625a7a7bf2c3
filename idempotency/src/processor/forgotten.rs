//! Tells the hooks and the gauges what somebody else had the inbox forget; the inbox itself logs it.

use super::Processor;
use crate::{alert::Alert, error::InboxError, losses::Told};

impl Processor {
    /// Whether the consumer has its number; what was forgotten since `told`.
    pub(super) async fn look_at_losses(&self, told: &Told) -> Result<(), InboxError> {
        let inbox = &self.shared.inbox;
        inbox.keeps_its_number().await?;
        let (losses, all) = inbox.counted_losses().await?;
        self.shared.meter.losses(all);
        for loss in told.new_of(&losses) {
            let consumer = inbox.consumer().to_owned();
            self.shared.alerts.raise(&Alert::Forgotten { consumer, loss: loss.clone() });
        }
        Ok(())
    }
}
