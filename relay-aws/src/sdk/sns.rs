//! Topics of SNS.

use std::collections::HashMap;

use aws_config::SdkConfig;
use aws_sdk_sns::{
    Client, config,
    types::{MessageAttributeValue, PublishBatchRequestEntry},
};
use aws_smithy_types::error::operation::BuildError;

use super::{errors::said, once};
use crate::{Entry, Found, Place, Said, Service};

#[derive(Debug)]
pub(super) struct Topics {
    client: Client,
}

impl Topics {
    pub(super) fn new(sdk: &SdkConfig, place: &Place) -> Self {
        let mut config = config::Builder::from(sdk).retry_config(once());
        if let Some(endpoint) = &place.endpoint {
            config = config.endpoint_url(endpoint);
        }
        Topics { client: Client::from_conf(config.build()) }
    }
}

#[async_trait::async_trait]
impl Service for Topics {
    async fn find(&self, name: &str) -> Result<Found, Said> {
        let asked = self.client.get_topic_attributes().topic_arn(name).send().await;
        let attributes = match asked {
            Ok(answer) => Ok(answer.attributes.unwrap_or_default()),
            Err(error) => match said(&error) {
                // Whether it exists is not known then, and publishing may be allowed all the same.
                denied if denied.what == crate::What::Denied => Err(denied),
                other => return Err(other),
            },
        };
        Ok(Found { address: name.to_owned(), attributes })
    }

    async fn send(
        &self,
        address: &str,
        entries: Vec<Entry>,
    ) -> Result<Vec<Result<(), Said>>, Said> {
        let count = entries.len();
        let entries: Result<Vec<_>, _> = entries.into_iter().zip(0..).map(entry).collect();
        let entries = entries.map_err(|error| Said::uncertain(error.to_string()))?;
        let sent = self.client.publish_batch().topic_arn(address);
        let answer = sent.set_publish_batch_request_entries(Some(entries)).send().await;
        let answer = answer.map_err(|error| said(&error))?;
        let stored =
            answer.successful.iter().flatten().filter_map(|it| Some((it.id.as_deref()?, Ok(()))));
        let failed = answer.failed.iter().flatten().map(|it| {
            let text = it.message.as_deref().unwrap_or_default();
            (it.id.as_str(), Err(Said::new(&it.code, text, it.sender_fault)))
        });
        super::each(count, stored.chain(failed))
    }
}

fn entry((entry, id): (Entry, usize)) -> Result<PublishBatchRequestEntry, BuildError> {
    let attributes: Result<HashMap<_, _>, BuildError> =
        entry.attributes.into_iter().map(|(name, value)| Ok((name, attribute(value)?))).collect();
    let (group, deduplication) = entry.fifo.map(|it| (it.group, it.deduplication)).unzip();
    PublishBatchRequestEntry::builder()
        .id(id.to_string())
        .message(entry.body)
        .set_message_attributes(Some(attributes?))
        .set_message_group_id(group)
        .set_message_deduplication_id(deduplication)
        .build()
}

fn attribute(value: String) -> Result<MessageAttributeValue, BuildError> {
    MessageAttributeValue::builder().data_type("String").string_value(value).build()
}
