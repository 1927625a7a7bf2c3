//! Every metric there is, and the values of its labels; `docs/METRICS.md` after it.

/// A metric's entry in the list.
#[derive(Debug)]
pub struct Metric {
    /// Full name, as scraped.
    pub name: &'static str,
    /// `gauge`, `counter`, `histogram` or `info`.
    pub kind: &'static str,
    /// Labels and their values.
    pub labels: &'static str,
    /// What it says, with its unit.
    pub help: &'static str,
}

const fn metric(
    name: &'static str,
    kind: &'static str,
    labels: &'static str,
    help: &'static str,
) -> Metric {
    Metric { name, kind, labels, help }
}

/// Why an event is refused or parked: what the router says, what a broker says, and who waits behind
/// another.
pub const REASONS: [&str; 23] = [
    "no_id",
    "no_topic",
    "no_route",
    "no_type",
    "headers_shape",
    "reserved_header",
    "negative_partition",
    "bad_partition",
    "bad_timestamp",
    "too_large",
    "malformed_value",
    "malformed_row",
    "unfit",
    "not_authorised",
    "invalid_timestamp",
    "invalid_record",
    "invalid_characters",
    "invalid_topic",
    "reserved_topic",
    "no_such_partition",
    "unknown_topic",
    "suspected",
    "lane_parked",
];

/// Why a WAL message with the prefix `outbox` is ignored.
pub const IGNORED: [&str; 7] = [
    "not_transactional",
    "too_large",
    "malformed",
    "too_many",
    "no_such_release",
    "not_visible",
    "locked",
];

/// Every metric there is.
#[rustfmt::skip]
pub const METRICS: &[Metric] = &[
    metric("outbox_relay_build_info", "info", "`version`, `name`, `slot`", "Always 1; which relay this is"),
    metric("outbox_relay_ready", "gauge", "", "1 while /readyz answers 200"),
    metric("outbox_relay_role", "gauge", "`role`: `leader`, `standby`, `none`", "1 for the role that holds"),
    metric("outbox_relay_server_wal_end_lsn", "gauge", "", "End of the server's WAL as last heard, in bytes from its beginning; absent while it is not known, as all positions are"),
    metric("outbox_relay_received_lsn", "gauge", "", "Position received from PostgreSQL, in bytes of WAL"),
    metric("outbox_relay_delivered_lsn", "gauge", "", "Position stored by the broker, or in the file, in bytes of WAL"),
    metric("outbox_relay_confirmed_lsn", "gauge", "", "Position confirmed to PostgreSQL, which may drop the WAL before it, in bytes of WAL"),
    metric("outbox_relay_lag_bytes", "gauge", "", "WAL between the server's end and the delivered position; absent while it is not known"),
    metric("outbox_relay_lag_seconds", "gauge", "", "How long what is not delivered has been waiting; 0 when all is delivered, absent while it is not known"),
    metric("outbox_relay_records_delivered_total", "counter", "", "Records stored by the broker, or in the file"),
    metric("outbox_relay_delivered_bytes_total", "counter", "", "Bytes of topics, keys, payloads and headers stored by the broker, or in the file"),
    metric("outbox_relay_records_restamped_total", "counter", "", "Records whose timestamp is the time of their delivery, because, with the event's own timestamp, the topic's retention would soon delete them"),
    metric("outbox_relay_batches_total", "counter", "", "Deliveries, those that stored progress alone included"),
    metric("outbox_relay_batch_records", "histogram", "", "Records in a delivery that had any"),
    metric("outbox_relay_delivery_seconds", "histogram", "", "Time from handing a batch to the broker, or to the file, until it is stored; with Kafka its commit included"),
    metric("outbox_relay_reconnects_total", "counter", "`cause`: `postgres`, `broker`, `fenced`, `other`", "Times the relay started again from its progress"),
    metric("outbox_relay_refused_total", "counter", "`reason`", "Rows and records that can't be delivered, by why"),
    metric("outbox_relay_parked_total", "counter", "`reason`", "Events that were parked, by why; `lane_parked` for those behind a refused one"),
    metric("outbox_relay_rows_moved_total", "counter", "", "Rows that were moved between partitions or copied, known by their column xid, and not published again"),
    metric("outbox_relay_parked_lanes", "gauge", "", "Lanes that are parked now; absent while it is not known"),
    metric("outbox_relay_parked_events", "gauge", "", "Events that are parked now; absent while it is not known"),
    metric("outbox_relay_lost_parked_events", "gauge", "", "Events that were parked and that outbox.dead_letters has lost, until someone has dealt with it; absent while it is not known"),
    metric("outbox_relay_dead_letters_deleted_total", "counter", "", "Released and discarded dead letters that were deleted because they were older than retention.keep_dead_letters"),
    metric("outbox_relay_ignored_messages_total", "counter", "`reason`: `not_transactional`, `too_large`, `malformed`, `too_many`, `no_such_release`, `not_visible`, `locked`", "WAL messages with the prefix outbox that were ignored. For `locked` and `not_visible` the relay announces the release again. The other reasons are messages that announce no release of this relay"),
    metric("process_resident_memory_bytes", "gauge", "", "Memory of the process that is in RAM"),
];
