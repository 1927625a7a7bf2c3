//! A stream of NATS JetStream.

use outbox_harness::{
    Harness,
    nats::{Nats as Server, Stream},
    proxy::Proxy,
    relay::Settings,
    servers,
    topic::Record,
};
use serde_json::json;

use super::kind::{self, Can, Fence, Kind, Odd, PARTITIONS};

/// `max_msg_size` of the stream.
const BYTES_MAX: usize = 100_000;

pub(crate) struct Nats {
    stream: Stream,
    topic: String,
    server: String,
    line: Option<Proxy>,
}

impl Kind for Nats {
    const CAN: Can = Can {
        one_step: true,
        refuses: &[
            (Odd::Missing, "unknown_topic"),
            (Odd::Unnameable, "invalid_topic"),
            (Odd::Reserved, "reserved_topic"),
            (Odd::Nowhere, "no_such_partition"),
            (Odd::Large, "too_large"),
        ],
        record_bytes: Some(BYTES_MAX),
        lines_in_headers: false,
        fence: Fence::Broker,
    };

    async fn make(t: &Harness, breakable: bool) -> Self {
        let server: &'static Server = servers::nats().await;
        let (name, topic) = (t.database().name(), format!("{}.orders", t.database().name()));
        let subjects = [
            format!("{topic}.*"),
            format!("outbox-relay-progress.{name}"),
            format!("outbox-relay-progress.{name}_b"),
        ];
        let subjects = subjects.each_ref().map(String::as_str);
        let stream = server.stream(name, &subjects, &json!({ "max_msg_size": BYTES_MAX })).await;
        let (line, server) = kind::line(breakable, server.address()).await;
        Nats { stream, topic, server, line }
    }

    fn settings(&self, base: Settings) -> Settings {
        base.to("nats")
            .set("sink.nats.url", &format!("nats://{}", self.server))
            .set("sink.nats.stream", self.stream.name())
            .set_toml("sink.nats.partitions", &PARTITIONS.to_string())
    }

    fn destination(&self) -> &str {
        &self.topic
    }

    /// The server confirms what is in the stream; it writes to disk later, and says so.
    async fn found(&self) -> Vec<Record> {
        self.stream.records(&format!("{}.*", self.topic)).await
    }

    fn line(&self) -> Option<&Proxy> {
        self.line.as_ref()
    }
}
