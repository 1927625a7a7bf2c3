//! The commands of Pulsar's protocol that are spoken here, as `PulsarApi.proto` of version 4.0 numbers them. Fields that are
//! not read here are left out.

#![expect(missing_docs, reason = "the names are the protocol's")]

use std::fmt;

use prost::{Enumeration, Message};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum Kind {
    Connect = 2,
    Connected = 3,
    Subscribe = 4,
    Producer = 5,
    Send = 6,
    SendReceipt = 7,
    SendError = 8,
    Message = 9,
    Flow = 11,
    Success = 13,
    Error = 14,
    CloseProducer = 15,
    ProducerSuccess = 17,
    Ping = 18,
    Pong = 19,
    PartitionedMetadata = 21,
    PartitionedMetadataResponse = 22,
    Lookup = 23,
    LookupResponse = 24,
    GetLastMessageId = 29,
    GetLastMessageIdResponse = 30,
    AuthChallenge = 36,
    AuthResponse = 37,
}

/// `BaseCommand`.
#[derive(Clone, PartialEq, Message)]
pub struct Command {
    #[prost(enumeration = "Kind", required, tag = "1")]
    pub kind: i32,
    #[prost(message, optional, tag = "2")]
    pub connect: Option<Connect>,
    #[prost(message, optional, tag = "3")]
    pub connected: Option<Connected>,
    #[prost(message, optional, tag = "4")]
    pub subscribe: Option<Subscribe>,
    #[prost(message, optional, tag = "5")]
    pub producer: Option<Producer>,
    #[prost(message, optional, tag = "6")]
    pub send: Option<Send>,
    #[prost(message, optional, tag = "7")]
    pub send_receipt: Option<SendReceipt>,
    #[prost(message, optional, tag = "8")]
    pub send_error: Option<SendError>,
    #[prost(message, optional, tag = "9")]
    pub message: Option<Delivered>,
    #[prost(message, optional, tag = "11")]
    pub flow: Option<Flow>,
    #[prost(message, optional, tag = "13")]
    pub success: Option<Success>,
    #[prost(message, optional, tag = "14")]
    pub error: Option<Error>,
    #[prost(message, optional, tag = "15")]
    pub close_producer: Option<CloseProducer>,
    #[prost(message, optional, tag = "17")]
    pub producer_success: Option<ProducerSuccess>,
    #[prost(message, optional, tag = "18")]
    pub ping: Option<Empty>,
    #[prost(message, optional, tag = "19")]
    pub pong: Option<Empty>,
    #[prost(message, optional, tag = "21")]
    pub partitioned_metadata: Option<PartitionedMetadata>,
    #[prost(message, optional, tag = "22")]
    pub partitioned_metadata_response: Option<PartitionedMetadataResponse>,
    #[prost(message, optional, tag = "23")]
    pub lookup: Option<Lookup>,
    #[prost(message, optional, tag = "24")]
    pub lookup_response: Option<LookupResponse>,
    #[prost(message, optional, tag = "29")]
    pub get_last_message_id: Option<GetLastMessageId>,
    #[prost(message, optional, tag = "30")]
    pub get_last_message_id_response: Option<GetLastMessageIdResponse>,
    #[prost(message, optional, tag = "36")]
    pub auth_challenge: Option<Empty>,
    #[prost(message, optional, tag = "37")]
    pub auth_response: Option<AuthResponse>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Empty {}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub struct Connect {
    #[prost(string, required, tag = "1")]
    pub client_version: String,
    #[prost(bytes = "vec", optional, tag = "3")]
    pub auth_data: Option<Vec<u8>>,
    #[prost(int32, optional, tag = "4")]
    pub protocol_version: Option<i32>,
    #[prost(string, optional, tag = "5")]
    pub auth_method_name: Option<String>,
    #[prost(string, optional, tag = "6")]
    pub proxy_to_broker_url: Option<String>,
    #[prost(message, optional, tag = "10")]
    pub feature_flags: Option<FeatureFlags>,
}

impl fmt::Debug for Connect {
    /// Without what it is known by.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connect").field("by", &self.auth_method_name).finish_non_exhaustive()
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct FeatureFlags {
    #[prost(bool, optional, tag = "1")]
    pub supports_auth_refresh: Option<bool>,
    /// `supports_get_partitioned_metadata_without_auto_creation`.
    #[prost(bool, optional, tag = "5")]
    pub supports_looking: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Connected {
    #[prost(string, required, tag = "1")]
    pub server_version: String,
    #[prost(int32, optional, tag = "2")]
    pub protocol_version: Option<i32>,
    #[prost(int32, optional, tag = "3")]
    pub max_message_size: Option<i32>,
    #[prost(message, optional, tag = "4")]
    pub feature_flags: Option<FeatureFlags>,
}

#[derive(Clone, PartialEq, Message)]
pub struct AuthResponse {
    #[prost(string, optional, tag = "1")]
    pub client_version: Option<String>,
    #[prost(message, optional, tag = "2")]
    pub response: Option<AuthData>,
    #[prost(int32, optional, tag = "3")]
    pub protocol_version: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub struct AuthData {
    #[prost(string, optional, tag = "1")]
    pub auth_method_name: Option<String>,
    #[prost(bytes = "vec", optional, tag = "2")]
    pub auth_data: Option<Vec<u8>>,
}

impl fmt::Debug for AuthData {
    /// As above.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthData").field("by", &self.auth_method_name).finish_non_exhaustive()
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct Subscribe {
    #[prost(string, required, tag = "1")]
    pub topic: String,
    #[prost(string, required, tag = "2")]
    pub subscription: String,
    /// 0: exclusive.
    #[prost(int32, required, tag = "3")]
    pub sub_type: i32,
    #[prost(uint64, required, tag = "4")]
    pub consumer_id: u64,
    #[prost(uint64, required, tag = "5")]
    pub request_id: u64,
    #[prost(bool, optional, tag = "8")]
    pub durable: Option<bool>,
    #[prost(message, optional, tag = "9")]
    pub start_message_id: Option<MessageId>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct MessageId {
    #[prost(uint64, required, tag = "1")]
    pub ledger: u64,
    #[prost(uint64, required, tag = "2")]
    pub entry: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Flow {
    #[prost(uint64, required, tag = "1")]
    pub consumer_id: u64,
    #[prost(uint32, required, tag = "2")]
    pub message_permits: u32,
}

/// `CommandMessage`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Delivered {
    #[prost(uint64, required, tag = "1")]
    pub consumer_id: u64,
    #[prost(message, required, tag = "2")]
    pub message_id: MessageId,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct GetLastMessageId {
    #[prost(uint64, required, tag = "1")]
    pub consumer_id: u64,
    #[prost(uint64, required, tag = "2")]
    pub request_id: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct GetLastMessageIdResponse {
    #[prost(message, required, tag = "1")]
    pub last_message_id: MessageId,
    #[prost(uint64, required, tag = "2")]
    pub request_id: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Producer {
    #[prost(string, required, tag = "1")]
    pub topic: String,
    #[prost(uint64, required, tag = "2")]
    pub producer_id: u64,
    #[prost(uint64, required, tag = "3")]
    pub request_id: u64,
    #[prost(bool, optional, tag = "9")]
    pub user_provided_producer_name: Option<bool>,
    /// 0: shared, 1: exclusive, 3: exclusive with fencing.
    #[prost(int32, optional, tag = "10")]
    pub access_mode: Option<i32>,
    #[prost(uint64, optional, tag = "11")]
    pub topic_epoch: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ProducerSuccess {
    #[prost(uint64, required, tag = "1")]
    pub request_id: u64,
    #[prost(string, required, tag = "2")]
    pub producer_name: String,
    #[prost(uint64, optional, tag = "5")]
    pub topic_epoch: Option<u64>,
    #[prost(bool, optional, tag = "6")]
    pub producer_ready: Option<bool>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Send {
    #[prost(uint64, required, tag = "1")]
    pub producer_id: u64,
    #[prost(uint64, required, tag = "2")]
    pub sequence_id: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct SendReceipt {
    #[prost(uint64, required, tag = "1")]
    pub producer_id: u64,
    #[prost(uint64, required, tag = "2")]
    pub sequence_id: u64,
    #[prost(message, optional, tag = "3")]
    pub message_id: Option<MessageId>,
}

#[derive(Clone, PartialEq, Message)]
pub struct SendError {
    #[prost(uint64, required, tag = "1")]
    pub producer_id: u64,
    #[prost(uint64, required, tag = "2")]
    pub sequence_id: u64,
    #[prost(int32, required, tag = "3")]
    pub error: i32,
    #[prost(string, required, tag = "4")]
    pub message: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct CloseProducer {
    #[prost(uint64, required, tag = "1")]
    pub producer_id: u64,
    #[prost(uint64, required, tag = "2")]
    pub request_id: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Success {
    #[prost(uint64, required, tag = "1")]
    pub request_id: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Error {
    #[prost(uint64, required, tag = "1")]
    pub request_id: u64,
    #[prost(int32, required, tag = "2")]
    pub error: i32,
    #[prost(string, required, tag = "3")]
    pub message: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct PartitionedMetadata {
    #[prost(string, required, tag = "1")]
    pub topic: String,
    #[prost(uint64, required, tag = "2")]
    pub request_id: u64,
    /// `metadata_auto_creation_enabled`.
    #[prost(bool, optional, tag = "6")]
    pub creates: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
pub struct PartitionedMetadataResponse {
    #[prost(uint32, optional, tag = "1")]
    pub partitions: Option<u32>,
    #[prost(uint64, required, tag = "2")]
    pub request_id: u64,
    /// 1: failed.
    #[prost(int32, optional, tag = "3")]
    pub response: Option<i32>,
    #[prost(int32, optional, tag = "4")]
    pub error: Option<i32>,
    #[prost(string, optional, tag = "5")]
    pub message: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Lookup {
    #[prost(string, required, tag = "1")]
    pub topic: String,
    #[prost(uint64, required, tag = "2")]
    pub request_id: u64,
    #[prost(bool, optional, tag = "3")]
    pub authoritative: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
pub struct LookupResponse {
    #[prost(string, optional, tag = "1")]
    pub url: Option<String>,
    #[prost(string, optional, tag = "2")]
    pub url_tls: Option<String>,
    /// 0: ask there, 1: it serves the topic, 2: failed.
    #[prost(int32, optional, tag = "3")]
    pub response: Option<i32>,
    #[prost(uint64, required, tag = "4")]
    pub request_id: u64,
    #[prost(bool, optional, tag = "5")]
    pub authoritative: Option<bool>,
    #[prost(int32, optional, tag = "6")]
    pub error: Option<i32>,
    #[prost(string, optional, tag = "7")]
    pub message: Option<String>,
    #[prost(bool, optional, tag = "8")]
    pub proxy_through_service_url: Option<bool>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct KeyValue {
    #[prost(string, required, tag = "1")]
    pub key: String,
    #[prost(string, required, tag = "2")]
    pub value: String,
}

/// `MessageMetadata`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Metadata {
    #[prost(string, required, tag = "1")]
    pub producer_name: String,
    #[prost(uint64, required, tag = "2")]
    pub sequence_id: u64,
    #[prost(uint64, required, tag = "3")]
    pub publish_time: u64,
    #[prost(message, repeated, tag = "4")]
    pub properties: Vec<KeyValue>,
    #[prost(string, optional, tag = "6")]
    pub partition_key: Option<String>,
    #[prost(uint64, optional, tag = "12")]
    pub event_time: Option<u64>,
    #[prost(bool, optional, tag = "17")]
    pub partition_key_b64_encoded: Option<bool>,
    #[prost(bool, optional, tag = "25")]
    pub null_value: Option<bool>,
}
