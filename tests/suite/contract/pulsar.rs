//! A partitioned topic of Pulsar, with progress in the database.

use outbox_harness::{
    Harness, proxy::Proxy, pulsar::PulsarTopic, relay::Settings, servers, topic::Record,
};

use super::kind::{self, Can, Fence, Kind, Odd, PARTITIONS};

/// As `sink.pulsar.message_bytes_max`: of payload, key and properties together.
const BYTES_MAX: usize = 100_000;

/// Settings of a relay that publishes to the cluster at this address.
pub(crate) fn to_pulsar(url: &str, base: Settings) -> Settings {
    base.to("pulsar").set("sink.pulsar.url", url)
}

pub(crate) struct Pulsar {
    topic: PulsarTopic,
    url: String,
    line: Option<Proxy>,
}

impl Kind for Pulsar {
    const CAN: Can = Can {
        one_step: false,
        refuses: &[
            (Odd::Missing, "unknown_topic"),
            (Odd::Unnameable, "invalid_topic"),
            (Odd::Reserved, "reserved_topic"),
            (Odd::Nowhere, "no_such_partition"),
            (Odd::Large, "too_large"),
        ],
        record_bytes: Some(BYTES_MAX),
        lines_in_headers: true,
        fence: Fence::SessionAndBroker,
    };

    async fn make(t: &Harness, breakable: bool) -> Self {
        let broker = servers::pulsar().await;
        let topic = broker.topic(&format!("{}.orders", t.database().name()), PARTITIONS).await;
        let (line, address) = kind::line(breakable, broker.address()).await;
        Pulsar { topic, url: format!("pulsar://{address}"), line }
    }

    /// The broker gives an address that is not the line's.
    fn settings(&self, base: Settings) -> Settings {
        to_pulsar(&self.url, base)
            .set_toml("sink.pulsar.one_broker", "true")
            .set("sink.pulsar.message_bytes_max", &BYTES_MAX.to_string())
    }

    fn destination(&self) -> &str {
        self.topic.name()
    }

    /// The broker has written them to its ledger.
    async fn found(&self) -> Vec<Record> {
        self.topic.records().await
    }

    fn line(&self) -> Option<&Proxy> {
        self.line.as_ref()
    }
}
