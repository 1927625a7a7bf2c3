//! Queues of SQS, as ElasticMQ has them, and topics of SNS with a queue behind them, as moto has them; progress in the
//! database. Neither is AWS.

use std::path::{Path, PathBuf};

use outbox_harness::{
    Harness,
    aws::{Queue, REGION, SnsTopic, credentials},
    proxy::Proxy,
    relay::Settings,
    servers,
    topic::Record,
};

use super::kind::{self, Can, Fence, Kind, Odd, PARTITIONS};

/// As `message_bytes_max`: of payload and attributes together.
const BYTES_MAX: usize = 100_000;
const CAN: Can = Can {
    one_step: false,
    refuses: &[
        (Odd::Missing, "unknown_topic"),
        (Odd::Unnameable, "invalid_topic"),
        (Odd::Reserved, "reserved_topic"),
        (Odd::Large, "too_large"),
    ],
    record_bytes: Some(BYTES_MAX),
    lines_in_headers: true,
    fence: Fence::Session,
};

/// Settings of a relay that publishes to SQS at this endpoint.
pub(crate) fn to_sqs(endpoint: &str, credentials: &Path, base: Settings) -> Settings {
    base.to("sqs")
        .set("sink.sqs.endpoint", endpoint)
        .set("sink.sqs.region", REGION)
        .set("sink.sqs.credentials_file", credentials.to_str().expect("UTF-8"))
}

/// Settings of a relay that publishes to topics of SNS, named as `topic` with the part `name` of it for the events' topic.
pub(crate) fn to_sns(
    endpoint: &str,
    credentials: &Path,
    arn: &str,
    name: &str,
    base: Settings,
) -> Settings {
    base.to("sns")
        .set("sink.sns.topic", &arn.replace(name, "{topic}"))
        .set("sink.sns.endpoint", endpoint)
        .set("sink.sns.credentials_file", credentials.to_str().expect("UTF-8"))
}

/// What is behind the two of them alike.
struct Behind {
    queue: Queue,
    credentials: PathBuf,
    endpoint: String,
    line: Option<Proxy>,
}

impl Behind {
    async fn new(t: &Harness, queue: Queue, address: String, breakable: bool) -> Self {
        let (line, address) = kind::line(breakable, address).await;
        let credentials = credentials(t.dir());
        Behind { queue, credentials, endpoint: format!("http://{address}"), line }
    }
}

/// What the two have in common as kinds.
macro_rules! behind {
    () => {
        const CAN: Can = CAN;

        fn destination(&self) -> &str {
            self.0.queue.topic()
        }

        async fn found(&self) -> Vec<Record> {
            self.0.queue.records().await
        }

        /// An emulator stores nothing on a disk: this is that it has them.
        async fn assert_durable(&self, records: usize) {
            let found = self.read(records).await;
            assert!(found.len() >= records, "{} of {records}", found.len());
        }

        fn line(&self) -> Option<&Proxy> {
            self.0.line.as_ref()
        }
    };
}

pub(crate) struct Sqs(Behind);

impl Kind for Sqs {
    behind!();

    async fn make(t: &Harness, breakable: bool) -> Self {
        let server = servers::elasticmq().await;
        let name = format!("{}-orders.fifo", t.database().name());
        let queue = server.queue(&name, PARTITIONS).await;
        Sqs(Behind::new(t, queue, server.address(), breakable).await)
    }

    fn settings(&self, base: Settings) -> Settings {
        to_sqs(&self.0.endpoint, &self.0.credentials, base)
            .set("sink.sqs.message_bytes_max", &BYTES_MAX.to_string())
    }
}

pub(crate) struct Sns(Behind, SnsTopic);

impl Kind for Sns {
    behind!();

    async fn make(t: &Harness, breakable: bool) -> Self {
        let server = servers::moto().await;
        let name = format!("{}-orders.fifo", t.database().name());
        let (topic, queue) = (server.topic(&name).await, server.queue(&name, PARTITIONS).await);
        topic.subscribe(&queue).await;
        Sns(Behind::new(t, queue, server.address(), breakable).await, topic)
    }

    fn settings(&self, base: Settings) -> Settings {
        let name = self.destination();
        to_sns(&self.0.endpoint, &self.0.credentials, self.1.arn(), name, base)
            .set("sink.sns.message_bytes_max", &BYTES_MAX.to_string())
    }
}
