//! What is written below `[sink.rabbitmq]`.

use std::path::PathBuf;

use crate::config::{
    reader::{Opt, Reader},
    sizes::Size,
};

/// All of it, each as it was given. No `Debug`: there are secrets in it.
pub(in crate::config) struct WrittenRabbit {
    pub(in crate::config) url: Opt<String>,
    pub(in crate::config) exchange: Opt<String>,
    pub(in crate::config) routing_key: Opt<String>,
    pub(in crate::config) partitions: Opt<u64>,
    pub(in crate::config) many_in_flight: Opt<bool>,
    pub(in crate::config) declare: Opt<bool>,
    pub(in crate::config) message_bytes_max: Opt<Size>,
    pub(in crate::config) ca_file: Opt<PathBuf>,
    pub(in crate::config) certificate_file: Opt<PathBuf>,
    pub(in crate::config) key_file: Opt<PathBuf>,
}

impl WrittenRabbit {
    pub(in crate::config) fn read(from: &mut Reader<'_>) -> Self {
        WrittenRabbit {
            url: from.text("sink.rabbitmq.url"),
            exchange: from.text_or_empty("sink.rabbitmq.exchange"),
            routing_key: from.text_or_empty("sink.rabbitmq.routing_key"),
            partitions: from.number("sink.rabbitmq.partitions"),
            many_in_flight: from
                .choice("sink.rabbitmq.in_flight_per_lane", &[("1", false), ("many", true)]),
            declare: from.flag("sink.rabbitmq.declare", "true or false"),
            message_bytes_max: from.size("sink.rabbitmq.message_bytes_max"),
            ca_file: from.path("sink.rabbitmq.ca_file"),
            certificate_file: from.path("sink.rabbitmq.certificate_file"),
            key_file: from.path("sink.rabbitmq.key_file"),
        }
    }
}
