//! A topic of SNS, and the queues that get what is published there.

use super::{account::REGION, http, queue::Queue};

/// A topic, FIFO or standard.
#[derive(Debug)]
pub struct SnsTopic {
    address: String,
    arn: String,
}

impl SnsTopic {
    pub(super) async fn make(address: String, name: &str) -> Self {
        let mut parameters = vec![("Name", name)];
        if name.ends_with(".fifo") {
            parameters.extend([
                ("Attributes.entry.1.key", "FifoTopic"),
                ("Attributes.entry.1.value", "true"),
            ]);
        }
        let made =
            http::sns(&address, "CreateTopic", &parameters).await.expect("the topic is made");
        let arn = made.split("<TopicArn>").nth(1).and_then(|rest| rest.split('<').next());
        SnsTopic { arn: arn.expect("an ARN").to_owned(), address }
    }

    /// Its ARN.
    pub fn arn(&self) -> &str {
        &self.arn
    }

    /// `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on the queue gets what is published here, raw: so that attributes stay attributes.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn subscribe(&self, queue: &Queue) {
        let account = self.arn.split(':').nth(4).expect("an account");
        let endpoint = format!("arn:aws:sqs:{}:{account}:{}", REGION, queue.name());
        let parameters = [
            ("TopicArn", self.arn.as_str()),
            ("Protocol", "sqs"),
            ("Endpoint", &endpoint),
            ("Attributes.entry.1.key", "RawMessageDelivery"),
            ("Attributes.entry.1.value", "true"),
        ];
        http::sns(&self.address, "Subscribe", &parameters).await.expect("the queue is subscribed");
    }
}
