//! What is written below `[sink.pulsar]`.

use std::path::PathBuf;

use crate::config::{
    reader::{Opt, Reader},
    sizes::Size,
};

/// All of it, each as it was given.
pub(in crate::config) struct WrittenPulsar {
    pub(in crate::config) url: Opt<String>,
    pub(in crate::config) topic: Opt<String>,
    pub(in crate::config) exclusive: Opt<bool>,
    pub(in crate::config) one_broker: Opt<bool>,
    pub(in crate::config) message_bytes_max: Opt<Size>,
    pub(in crate::config) token_file: Opt<PathBuf>,
    pub(in crate::config) ca_file: Opt<PathBuf>,
    pub(in crate::config) certificate_file: Opt<PathBuf>,
    pub(in crate::config) key_file: Opt<PathBuf>,
}

impl WrittenPulsar {
    pub(in crate::config) fn read(from: &mut Reader<'_>) -> Self {
        WrittenPulsar {
            url: from.text("sink.pulsar.url"),
            topic: from.text("sink.pulsar.topic"),
            exclusive: from.flag("sink.pulsar.exclusive", "true or false"),
            one_broker: from.flag("sink.pulsar.one_broker", "true or false"),
            message_bytes_max: from.size("sink.pulsar.message_bytes_max"),
            token_file: from.path("sink.pulsar.token_file"),
            ca_file: from.path("sink.pulsar.ca_file"),
            certificate_file: from.path("sink.pulsar.certificate_file"),
            key_file: from.path("sink.pulsar.key_file"),
        }
    }
}
