//! Queues of SQS.

use std::collections::HashMap;

use aws_config::SdkConfig;
use aws_sdk_sqs::{
    Client, config,
    types::{MessageAttributeValue, QueueAttributeName, SendMessageBatchRequestEntry},
};
use aws_smithy_types::error::operation::BuildError;

use super::{errors::said, once};
use crate::{Entry, Found, Place, Said, Service};

#[derive(Debug)]
pub(super) struct Queues {
    client: Client,
    account: Option<String>,
}

impl Queues {
    pub(super) fn new(sdk: &SdkConfig, place: &Place) -> Self {
        let mut config = config::Builder::from(sdk).retry_config(once());
        if let Some(endpoint) = &place.endpoint {
            config = config.endpoint_url(endpoint);
        }
        Queues { client: Client::from_conf(config.build()), account: place.account.clone() }
    }
}

#[async_trait::async_trait]
impl Service for Queues {
    async fn find(&self, name: &str) -> Result<Found, Said> {
        let asked = self.client.get_queue_url().queue_name(name);
        let asked = asked.set_queue_owner_aws_account_id(self.account.clone());
        let found = asked.send().await.map_err(|error| said(&error))?;
        let address = found.queue_url().unwrap_or_default().to_owned();
        let asked = self.client.get_queue_attributes().queue_url(&address);
        let asked = asked.attribute_names(QueueAttributeName::All).send().await;
        let attributes = asked.map_err(|error| said(&error)).map(|answer| {
            let all = answer.attributes.unwrap_or_default();
            all.into_iter().map(|(name, value)| (name.as_str().to_owned(), value)).collect()
        });
        Ok(Found { address, attributes })
    }

    async fn send(
        &self,
        address: &str,
        entries: Vec<Entry>,
    ) -> Result<Vec<Result<(), Said>>, Said> {
        let count = entries.len();
        let entries: Result<Vec<_>, _> = entries.into_iter().zip(0..).map(entry).collect();
        let entries = entries.map_err(|error| Said::uncertain(error.to_string()))?;
        let sent = self.client.send_message_batch().queue_url(address).set_entries(Some(entries));
        let answer = sent.send().await.map_err(|error| said(&error))?;
        let stored = answer.successful.iter().map(|it| (it.id.as_str(), Ok(())));
        let failed = answer.failed.iter().map(|it| {
            let text = it.message.as_deref().unwrap_or_default();
            (it.id.as_str(), Err(Said::new(&it.code, text, it.sender_fault)))
        });
        super::each(count, stored.chain(failed))
    }
}

fn entry((entry, id): (Entry, usize)) -> Result<SendMessageBatchRequestEntry, BuildError> {
    let attributes: Result<HashMap<_, _>, BuildError> =
        entry.attributes.into_iter().map(|(name, value)| Ok((name, attribute(value)?))).collect();
    let (group, deduplication) = entry.fifo.map(|it| (it.group, it.deduplication)).unzip();
    SendMessageBatchRequestEntry::builder()
        .id(id.to_string())
        .message_body(entry.body)
        .set_message_attributes(Some(attributes?))
        .set_message_group_id(group)
        .set_message_deduplication_id(deduplication)
        .build()
}

fn attribute(value: String) -> Result<MessageAttributeValue, BuildError> {
    MessageAttributeValue::builder().data_type("String").string_value(value).build()
}
