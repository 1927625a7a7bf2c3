//! The client against a broker that says what a test wants it to say.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::{
    proto::{
        CloseProducer, Connected, Empty, Error, FeatureFlags, MessageId,
        PartitionedMetadataResponse, ProducerSuccess, SendError, SendReceipt,
    },
    *,
};
use crate::Message;

const TOPIC: &str = "persistent://public/default/orders";
/// Longer than anything takes here.
const PATIENCE: Duration = Duration::from_secs(60);

struct Broker {
    listener: TcpListener,
    line: Option<TcpStream>,
    read: BytesMut,
    /// Whether it can be asked for a topic without making it.
    looks: bool,
}

impl Broker {
    /// One, and a client that knows its address.
    async fn new() -> (Self, Wire) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let place = Place {
            addresses: vec![Address { tls: false, host: "127.0.0.1".into(), port }],
            one_broker: false,
            token_file: None,
            ca_file: None,
            certificate: None,
            client_name: "tests".into(),
        };
        let wire = Wire::new(place).expect("no file is named");
        (Broker { listener, line: None, read: BytesMut::new(), looks: true }, wire)
    }

    /// What a client asks next, behind the handshake.
    async fn hears(&mut self) -> Command {
        loop {
            if self.line.is_none() {
                self.line = Some(self.listener.accept().await.expect("a client").0);
            }
            while let Some((heard, _)) = frame::next(&mut self.read, 16 << 20).expect("a frame") {
                if heard.connect.is_none() {
                    return heard;
                }
                let flags = FeatureFlags { supports_looking: Some(self.looks), ..<_>::default() };
                let connected = Connected {
                    server_version: "a script".into(),
                    feature_flags: Some(flags),
                    ..Connected::default()
                };
                let connected = Some(connected);
                self.says(Kind::Connected, Command { connected, ..<_>::default() }).await;
            }
            let line = self.line.as_mut().expect("a line");
            assert!(line.read_buf(&mut self.read).await.expect("bytes") > 0, "the client left");
        }
    }

    async fn says(&mut self, kind: Kind, command: Command) {
        let frame = frame::command(&Command { kind: kind.into(), ..command });
        self.line.as_mut().expect("a line").write_all(&frame).await.expect("the client reads");
    }

    /// Of the producer that was opened.
    async fn confirms(&mut self, producer_id: u64, sequence_id: u64, id: Option<(u64, u64)>) {
        let message_id = id.map(|(ledger, entry)| MessageId { ledger, entry });
        let send_receipt = Some(SendReceipt { producer_id, sequence_id, message_id });
        self.says(Kind::SendReceipt, Command { send_receipt, ..<_>::default() }).await;
    }

    /// Says that it serves the topic itself; then what it is asked about a producer.
    async fn asked_for_a_producer(&mut self) -> proto::Producer {
        let lookup = self.hears().await.lookup.expect("a lookup");
        let answer = LookupResponse {
            url: Some(format!("pulsar://{}", self.listener.local_addr().expect("an address"))),
            response: Some(1),
            request_id: lookup.request_id,
            ..LookupResponse::default()
        };
        let lookup_response = Some(answer);
        self.says(Kind::LookupResponse, Command { lookup_response, ..<_>::default() }).await;
        self.hears().await.producer.expect("a producer")
    }

    async fn lets_produce(&mut self) -> proto::Producer {
        let asked = self.asked_for_a_producer().await;
        let success = ProducerSuccess {
            request_id: asked.request_id,
            producer_name: "it".into(),
            topic_epoch: Some(4),
            producer_ready: Some(true),
        };
        let producer_success = Some(success);
        self.says(Kind::ProducerSuccess, Command { producer_success, ..<_>::default() }).await;
        asked
    }

    async fn refuses(&mut self, request_id: u64, error: i32, message: &str) {
        let error = Some(Error { request_id, error, message: message.into() });
        self.says(Kind::Error, Command { error, ..<_>::default() }).await;
    }
}

fn payload(bytes: &[u8]) -> Message<'_> {
    Message { key: None, payload: Some(bytes), properties: vec![], event_time_ms: None }
}

/// A producer that has sent so many messages, and its number.
async fn after(broker: &mut Broker, wire: &Wire, count: u64) -> (Box<dyn Producer>, u64) {
    let opened = tokio::join!(wire.producer(TOPIC, Access::Fencing), broker.lets_produce());
    let (mut producer, asked) = (opened.0.expect("it is opened"), opened.1);
    for sequence in 0..count {
        producer.send(&payload(b"{}")).await.expect("it is sent");
        let sent = broker.hears().await.send.expect("a message");
        assert_eq!((sent.producer_id, sent.sequence_id), (asked.producer_id, sequence));
    }
    (producer, asked.producer_id)
}

async fn told(producer: &mut Box<dyn Producer>) -> Result<Result<(), Said>, Said> {
    timeout(PATIENCE, producer.receipt()).await.expect("something is said")
}

#[test]
fn a_broker_s_address_is_read() {
    let read = |url| parsed(url).map(|it| (it.tls, shown(&it)));
    assert_eq!(read("pulsar://a:6650"), Some((false, "a:6650".into())));
    assert_eq!(read("pulsar+ssl://[::1]:6651/"), Some((true, "[::1]:6651".into())));
    for wrong in ["", "a:1", "http://a:1", "pulsar://a", "pulsar://a:x"] {
        assert_eq!(read(wrong), None, "{wrong}");
    }
}

#[test]
fn a_cluster_that_is_asked_with_tls_leads_to_no_broker_without() {
    let answer = |url: &str, url_tls: &str| LookupResponse {
        url: Some(url.into()),
        url_tls: Some(url_tls.into()),
        ..LookupResponse::default()
    };
    let both = answer("pulsar://a:1", "pulsar+ssl://a:2");
    assert_eq!(named(false, &both).map(|it| shown(&it)), Ok("a:1".into()));
    assert_eq!(named(true, &both).map(|it| shown(&it)), Ok("a:2".into()));
    for (tls, wrong) in [
        (true, answer("", "pulsar://a:1")),
        (true, answer("pulsar://a:1", "")),
        (false, answer("", "pulsar+ssl://a:1")),
        (false, LookupResponse::default()),
    ] {
        assert_eq!(named(tls, &wrong).map_err(|said| said.what), Err(What::NotNow), "{wrong:?}");
    }
}

#[test]
fn a_message_counts_as_many_bytes_as_it_has_on_the_line_and_the_same_number_more() {
    let long = "x".repeat(20_000);
    let messages = [
        payload(b""),
        payload(long.as_bytes()),
        Message { payload: None, ..payload(b"") },
        Message { key: Some(b"key"), ..payload(b"a") },
        Message { key: Some(long.as_bytes()), ..payload(b"a") },
        Message { key: Some(&[0xff; 1_000]), ..payload(b"a") },
        Message { event_time_ms: Some(0), ..payload(b"a") },
        Message { event_time_ms: Some(u64::MAX), ..payload(b"a") },
        Message { properties: vec![("a", "b"), ("a", &long), ("", "")], ..payload(b"a") },
    ];
    let surplus = |message: &Message<'_>| {
        let mut metadata = producer::metadata("standalone-1-2", 7, message);
        metadata.publish_time = 1 << 40;
        let sent = frame::message(&<_>::default(), &metadata, message.payload.unwrap_or_default());
        message.bytes() - sent.len()
    };
    let first = surplus(&messages[0]);
    for message in &messages {
        assert_eq!(surplus(message), first, "{:?}", message.properties.len());
    }
}

#[tokio::test]
async fn a_producer_is_opened_as_it_was_asked_for_and_only_one_that_fences_holds_the_topic() {
    for (access, mode, held) in [(Access::Fencing, 3, Some(4)), (Access::Shared, 0, None)] {
        let (mut broker, wire) = Broker::new().await;
        let (opened, asked) = tokio::join!(wire.producer(TOPIC, access), broker.lets_produce());
        assert_eq!((asked.access_mode, asked.topic_epoch), (Some(mode), None));
        let opened = opened.expect("it is opened");
        assert_eq!(opened.held().map(|it| (it.epoch, it.name)), held.map(|it| (it, "it".into())));
    }
}

#[tokio::test]
async fn a_relay_asks_in_its_epoch_whether_another_one_has_come_and_does_not_take_itself_for_it() {
    let held = Held { epoch: 4, name: "it".into() };
    for (error, text, expected) in [
        (25, "Topic has an existing exclusive producer: another", true),
        (25, "Producer has epoch 4, and the topic has 5", true),
        (25, "Topic has an existing exclusive producer: it", false),
        (6, "The topic is being loaded", false),
    ] {
        let (mut broker, wire) = Broker::new().await;
        let refuse = async {
            let asked = broker.asked_for_a_producer().await;
            broker.refuses(asked.request_id, error, text).await;
            (asked.access_mode, asked.topic_epoch)
        };
        let (is_fenced, asked) = tokio::join!(wire.is_fenced(TOPIC, &held), refuse);
        assert_eq!((is_fenced, asked), (expected, (Some(1), Some(4))), "{text}");
    }
    let (mut broker, wire) = Broker::new().await;
    let asked = tokio::join!(wire.is_fenced(TOPIC, &held), broker.lets_produce());
    assert!(!asked.0);
}

#[tokio::test]
async fn a_topic_is_looked_for_without_making_it_and_an_answer_to_something_else_is_none() {
    for (looks, creates) in [(true, Some(false)), (false, None)] {
        let (mut broker, wire) = Broker::new().await;
        broker.looks = looks;
        let answers = async {
            for partitions in [3, 0] {
                let asked = broker.hears().await.partitioned_metadata.expect("a question");
                assert_eq!((asked.topic.as_str(), asked.creates), (TOPIC, creates));
                let answer = PartitionedMetadataResponse {
                    partitions: Some(partitions),
                    request_id: asked.request_id,
                    response: Some(0),
                    ..PartitionedMetadataResponse::default()
                };
                let partitioned_metadata_response = Some(answer);
                let command = Command { partitioned_metadata_response, ..<_>::default() };
                broker.says(Kind::PartitionedMetadataResponse, command).await;
            }
            let asked = broker.hears().await.partitioned_metadata.expect("a question");
            let success = Some(proto::Success { request_id: asked.request_id });
            broker.says(Kind::Success, Command { success, ..<_>::default() }).await;
        };
        let asks = async {
            assert_eq!(wire.partitions(TOPIC).await, Ok(Some(3)));
            assert_eq!(wire.partitions(TOPIC).await, Ok(None));
            assert_eq!(wire.partitions(TOPIC).await.map_err(|it| it.what), Err(What::Uncertain));
        };
        tokio::join!(asks, answers);
    }
}

#[tokio::test]
async fn a_message_is_confirmed_by_its_own_receipt_alone() {
    const STORED: Option<(u64, u64)> = Some((1, 2));
    let (mut broker, wire) = Broker::new().await;
    let (mut producer, id) = after(&mut broker, &wire, 3).await;
    let early = timeout(Duration::from_millis(50), producer.receipt()).await;
    assert!(early.is_err(), "nothing was said: {early:?}");
    broker.confirms(id + 1_000, 0, STORED).await;
    broker.confirms(id, 0, STORED).await;
    assert_eq!(told(&mut producer).await, Ok(Ok(())));
    let error = SendError { producer_id: id, sequence_id: 1, error: 22, message: "Size".into() };
    let send_error = Some(error);
    broker.says(Kind::SendError, Command { send_error, ..<_>::default() }).await;
    assert_eq!(told(&mut producer).await, Ok(Err(Said::new(What::TooLarge, "Size"))));
    // Of a later one, of the same once more, of a copy that was dropped (two ways), and without an id.
    let none = u64::MAX;
    for (sequence, stored) in
        [(1, STORED), (0, STORED), (7, STORED), (0, Some((none, none))), (0, Some((1, none)))]
            .into_iter()
            .chain([(0, None)])
    {
        let (mut broker, wire) = Broker::new().await;
        let (mut producer, id) = after(&mut broker, &wire, 3).await;
        if (sequence, stored) == (0, STORED) {
            broker.confirms(id, 0, STORED).await;
            assert_eq!(told(&mut producer).await, Ok(Ok(())));
        }
        broker.confirms(id, sequence, stored).await;
        let said = told(&mut producer).await.map_err(|said| said.what);
        assert_eq!(said, Err(What::Uncertain), "{sequence} {stored:?}");
    }
}

#[tokio::test]
async fn what_was_under_way_is_uncertain_when_the_line_ends_within_a_frame_or_with_none() {
    let receipt = SendReceipt { producer_id: 1, sequence_id: 0, message_id: None };
    let whole = frame::command(&Command { send_receipt: Some(receipt), ..<_>::default() });
    for bytes in [whole.slice(..whole.len() - 1), Bytes::new(), vec![0xff; 4].into()] {
        let (mut broker, wire) = Broker::new().await;
        let (mut producer, _) = after(&mut broker, &wire, 2).await;
        let mut line = broker.line.take().expect("a line");
        line.write_all(&bytes).await.expect("the client reads");
        // The third of them ends it by what it says.
        let _kept = (bytes.first() == Some(&0xff)).then_some(line);
        let said = told(&mut producer).await.map_err(|said| said.what);
        assert_eq!(said, Err(What::Uncertain));
        let sent = producer.send(&payload(b"{}")).await.map_err(|said| said.what);
        assert_eq!(sent, Err(What::Uncertain));
    }
}

#[tokio::test]
async fn a_producer_that_the_broker_closes_ends_and_its_connection_does_not() {
    let (mut broker, wire) = Broker::new().await;
    let (mut producer, id) = after(&mut broker, &wire, 2).await;
    let close_producer = Some(CloseProducer { producer_id: id, request_id: 0 });
    broker.says(Kind::CloseProducer, Command { close_producer, ..<_>::default() }).await;
    assert_eq!(told(&mut producer).await.map_err(|said| said.what), Err(What::Fenced));
    drop(producer);
    assert_eq!(broker.hears().await.close_producer.map(|it| it.producer_id), Some(id));
    let (opened, _) = tokio::join!(wire.producer(TOPIC, Access::Fencing), broker.lets_produce());
    assert!(opened.is_ok());
}

#[tokio::test]
async fn a_broker_that_asks_again_who_it_is_has_an_answer_although_the_line_is_full() {
    let (mut broker, wire) = Broker::new().await;
    let (mut producer, id) = after(&mut broker, &wire, 1).await;
    let large = vec![0; 1 << 20];
    let mut sent = 0;
    // The broker reads none of it.
    while timeout(Duration::from_millis(300), producer.send(&payload(&large))).await.is_ok() {
        sent += 1;
    }
    let auth_challenge = Some(Empty {});
    broker.says(Kind::AuthChallenge, Command { auth_challenge, ..<_>::default() }).await;
    broker.says(Kind::Ping, Command { ping: Some(Empty {}), ..<_>::default() }).await;
    broker.confirms(id, 0, Some((1, 2))).await;
    assert_eq!(told(&mut producer).await, Ok(Ok(())), "what stands before it was read too");
    let (mut messages, mut answers) = (0, Vec::new());
    while answers.len() < 2 {
        let heard = timeout(PATIENCE, broker.hears()).await.expect("more comes");
        match heard.send {
            Some(_) => messages += 1,
            None => answers.push(heard.kind()),
        }
    }
    assert_eq!(answers, [Kind::AuthResponse, Kind::Pong]);
    assert!(messages < sent, "before what waits: {messages} of {sent}");
}

#[test]
fn a_token_is_in_no_text_that_is_made_of_a_command() {
    let secret = Some(b"secret".to_vec());
    let connect = proto::Connect { auth_data: secret.clone(), ..<_>::default() };
    let response = proto::AuthData { auth_data: secret, ..<_>::default() };
    let response = proto::AuthResponse { response: Some(response), ..<_>::default() };
    let command =
        Command { connect: Some(connect), auth_response: Some(response), ..<_>::default() };
    let text = format!("{command:?}");
    assert!(!text.contains("115, 101") && !text.contains("secret"), "{text}");
}
