//! What is written below `[sink.sqs]` or `[sink.sns]`.

use std::path::PathBuf;

use crate::{
    config::{
        reader::{Opt, Reader},
        sizes::Size,
    },
    sink::aws::Kind,
};

/// All of it, each as it was given.
pub(in crate::config) struct WrittenAws {
    /// `queue` or `topic`.
    pub(in crate::config) destination: Opt<String>,
    pub(in crate::config) region: Opt<String>,
    pub(in crate::config) endpoint: Opt<String>,
    /// Of queues only.
    pub(in crate::config) account: Opt<String>,
    pub(in crate::config) credentials_file: Opt<PathBuf>,
    pub(in crate::config) ca_file: Opt<PathBuf>,
    pub(in crate::config) message_bytes_max: Opt<Size>,
    pub(in crate::config) requests_in_flight: Opt<u64>,
}

impl WrittenAws {
    pub(in crate::config) fn read(from: &mut Reader<'_>, kind: Kind) -> Self {
        let key = |name: &str| match kind {
            Kind::Sqs => format!("sink.sqs.{name}"),
            Kind::Sns => format!("sink.sns.{name}"),
        };
        let is_sqs = kind == Kind::Sqs;
        WrittenAws {
            destination: from.text(&key(if is_sqs { "queue" } else { "topic" })),
            region: from.text(&key("region")),
            endpoint: from.text(&key("endpoint")),
            account: is_sqs.then(|| from.text(&key("account"))).flatten(),
            credentials_file: from.path(&key("credentials_file")),
            ca_file: from.path(&key("ca_file")),
            message_bytes_max: from.size(&key("message_bytes_max")),
            requests_in_flight: from.number(&key("requests_in_flight")),
        }
    }
}
