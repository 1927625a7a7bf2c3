//! A partitioned topic of Pulsar, with progress in the database.

use outbox_harness::{
    Harness, proxy::Proxy, pulsar::PulsarTopic, relay::Settings, servers, topic::Record, wait,
};

use super::kind::{Can, Fence, Kind, Odd, PARTITIONS};

/// As `sink.pulsar.message_bytes_max`: of payload, key and properties together.
const BYTES_MAX: usize = 100_000;

/// Settings of a relay that publishes to the cluster at this address.
pub(crate) fn to_pulsar(url: &str, base: Settings) -> Settings {
    base.without("sink.properties.\"bootstrap.servers\"")
        .set("sink.kind", "pulsar")
        .set("sink.pulsar.url", url)
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
        let line = if breakable { Some(Proxy::to(&broker.address()).await) } else { None };
        let address = line.as_ref().map_or_else(|| broker.address(), Proxy::address);
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

    async fn read(&self, least: usize) -> Vec<Record> {
        let found = wait::until("a reader finds them", wait::PATIENCE, || async {
            match self.topic.records().await {
                found if found.len() >= least => Ok(found),
                found => Err(format!("{} of {least} records", found.len())),
            }
        });
        found.await.expect("what is delivered can be read")
    }

    /// The broker has written them to its ledger.
    async fn assert_durable(&self, records: usize) {
        let found = self.topic.records().await;
        assert!(found.len() >= records, "{} of {records}", found.len());
    }

    fn line(&self) -> Option<&Proxy> {
        self.line.as_ref()
    }

    fn take_away(&self) {
        self.line.as_ref().expect("a breakable one").refuse();
    }

    fn give_back(&self) {
        self.line.as_ref().expect("a breakable one").heal();
    }
}
