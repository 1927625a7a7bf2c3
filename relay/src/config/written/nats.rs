//! What is written below `[sink.nats]`.

use std::path::PathBuf;

use crate::config::reader::{Opt, Reader};

/// All of it, each as it was given. No `Debug`: there are secrets in it.
pub(in crate::config) struct WrittenNats {
    pub(in crate::config) url: Opt<String>,
    pub(in crate::config) stream: Opt<String>,
    pub(in crate::config) subject: Opt<String>,
    pub(in crate::config) partitions: Opt<u64>,
    pub(in crate::config) progress_subject: Opt<String>,
    pub(in crate::config) on_broker_loss: Opt<bool>,
    pub(in crate::config) credentials_file: Opt<PathBuf>,
    pub(in crate::config) nkey_file: Opt<PathBuf>,
    pub(in crate::config) ca_file: Opt<PathBuf>,
    pub(in crate::config) certificate_file: Opt<PathBuf>,
    pub(in crate::config) key_file: Opt<PathBuf>,
}

impl WrittenNats {
    pub(in crate::config) fn read(from: &mut Reader<'_>) -> Self {
        WrittenNats {
            url: from.text("sink.nats.url"),
            stream: from.text("sink.nats.stream"),
            subject: from.text("sink.nats.subject"),
            partitions: from.number("sink.nats.partitions"),
            progress_subject: from.text("sink.nats.progress_subject"),
            on_broker_loss: from
                .choice("sink.nats.on_broker_loss", &[("repair", true), ("halt", false)]),
            credentials_file: from.path("sink.nats.credentials_file"),
            nkey_file: from.path("sink.nats.nkey_file"),
            ca_file: from.path("sink.nats.ca_file"),
            certificate_file: from.path("sink.nats.certificate_file"),
            key_file: from.path("sink.nats.key_file"),
        }
    }
}
