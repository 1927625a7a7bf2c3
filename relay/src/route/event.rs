//! One row's values, checked and written as a record.

use super::{
    headers::{self, Fault, HeaderWriter, RelayHeaders},
    mapping::Mapping,
    plan::{Plan, Slot, TopicPart, TopicPlan, Values},
    refusal::{Refusal, reason},
    style::HeaderStyle,
    time::{Moment, NoMoment},
    value,
};
use crate::core::{
    charset::Charset,
    header,
    record::{Batch, RecordHead, Refused},
    row::Row,
};

/// Buffers for values that are not in the row as they are wanted; kept from row to row, so that
/// they cost an allocation only while they grow.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    id: Vec<u8>,
    topic: Vec<u8>,
    key: Vec<u8>,
    event_type: Vec<u8>,
    payload: Vec<u8>,
    /// One header column, or one part of a topic, at a time.
    part: Vec<u8>,
}

/// What a buffer may keep between rows.
const KEPT_BYTES: usize = 64 << 10;

impl Scratch {
    /// Adds `row` to `batch`, or nothing of it.
    pub(super) fn add(
        &mut self,
        plan: &Plan,
        mapping: &Mapping,
        relay: &RelayHeaders,
        row: &Row<'_>,
        values: &Values<'_>,
        batch: &mut Batch,
    ) -> Result<(), Refusal> {
        if row.tuple.is_truncated() {
            return Err(too_large(mapping, row.size_bytes));
        }
        let Scratch { id, topic, key, event_type, payload, part } = self;
        let id = required_id(plan, row, values, id)?;
        let topic = read_topic(plan, row, values, topic, part)?;
        let key = optional(plan.key, row, values, key)?;
        let event_type = read_type(plan, mapping, row, values, event_type)?;
        let payload = optional(Some(plan.payload), row, values, payload)?;
        let partition = read_partition(plan, row, values)?;
        let moment = read_moment(plan, row, values)?;

        let body_bytes = key.map_or(0, <[u8]>::len) + payload.map_or(0, <[u8]>::len);
        if body_bytes > mapping.record_bytes_max {
            return Err(too_large(mapping, body_bytes));
        }
        let mut record = batch.start_record(RecordHead {
            position: row.position,
            topic,
            key,
            payload,
            partition,
            timestamp_ms: moment.map(Moment::unix_ms),
        });
        record.written_by(plan.writer(row, values));
        let mut out = HeaderWriter::new(&mut record);
        relay.write(&mut out, row.position, id, event_type, moment);
        write_row_headers(plan, relay, row, values, part, &mut out)?;
        if mapping.header_style == HeaderStyle::CloudEvents
            && payload.is_some()
            && plan.payload.kind.is_json()
        {
            out.put_json_content_type();
        }
        let size_bytes = body_bytes + out.size_bytes;
        if size_bytes > mapping.record_bytes_max {
            return Err(too_large(mapping, size_bytes));
        }
        record.finish();
        self.trim();
        Ok(())
    }

    /// The topic, where it can be read.
    pub(super) fn topic<'a>(
        &'a mut self,
        plan: &Plan,
        row: &Row<'_>,
        values: &Values<'a>,
    ) -> Option<&'a str> {
        read_topic(plan, row, values, &mut self.topic, &mut self.part).ok()
    }

    /// Gives back what one large value blew up.
    #[inline]
    fn trim(&mut self) {
        for buffer in [&mut self.key, &mut self.payload, &mut self.part] {
            if buffer.capacity() > KEPT_BYTES {
                *buffer = Vec::new();
            }
        }
    }
}

/// The event's id, where it can be read.
pub(super) fn id(plan: &Plan, row: &Row<'_>, values: &Values<'_>) -> Option<Vec<u8>> {
    let mut buffer = Vec::new();
    required_id(plan, row, values, &mut buffer).ok().map(<[u8]>::to_vec)
}

/// The whole refusal, with what can be read of the event.
#[cold]
pub(super) fn refused(
    plan: &Plan,
    row: &Row<'_>,
    values: &Values<'_>,
    refusal: Refusal,
) -> Refused {
    let (mut buffer, mut part) = (Vec::new(), Vec::new());
    let mut read = |slot: Slot| {
        let mut read = |charset: &Charset| {
            let bytes = value::bytes(slot.kind, slot.of(values), charset, &mut buffer)?;
            Ok::<_, value::Fault>(bytes.map(<[u8]>::to_vec))
        };
        // What can't be told is kept as it is.
        read(row.charset).or_else(|_| read(&Charset::AsItIs)).ok().flatten()
    };
    let event_id = read(plan.id).map(|id| String::from_utf8_lossy(&id).into_owned());
    let key = plan.key.and_then(&mut read);
    let event_type = plan.event_type.and_then(&mut read);
    let payload = read(plan.payload);
    let headers = plan.headers.and_then(&mut read);
    let topic = read_topic(plan, row, values, &mut buffer, &mut part).ok().map(str::to_owned);
    let partition = read_partition(plan, row, values).ok().flatten();
    let Refusal { reason, error } = refusal;
    let position = row.position;
    let read = (event_id.filter(|id| !id.is_empty()), topic, key, event_type, payload, headers);
    let (event_id, topic, key, event_type, payload, headers) = read;
    Refused {
        position,
        event_id,
        topic,
        key,
        event_type,
        payload,
        headers,
        partition,
        reason,
        error,
    }
}

/// What can be read of a refused row, as a record that is not to be delivered as it is: without a
/// topic it has an empty one, and headers that can't be used are one of [`header::UNREADABLE`].
#[cold]
pub(super) fn keep(
    plan: &Plan,
    relay: &RelayHeaders,
    row: &Row<'_>,
    values: &Values<'_>,
    refused: &Refused,
    batch: &mut Batch,
) {
    let moment = read_moment(plan, row, values).unwrap_or(None);
    let write = |batch: &mut Batch, readable: bool| {
        let mut record = batch.start_record(RecordHead {
            position: refused.position,
            topic: refused.topic.as_deref().unwrap_or_default(),
            key: refused.key.as_deref(),
            payload: refused.payload.as_deref(),
            partition: refused.partition,
            timestamp_ms: moment.map(Moment::unix_ms),
        });
        record.written_by(plan.writer(row, values));
        let mut out = HeaderWriter::new(&mut record);
        let id = refused.event_id.as_deref().unwrap_or_default();
        relay.write(&mut out, row.position, id.as_bytes(), refused.event_type.as_deref(), moment);
        if readable {
            write_row_headers(plan, relay, row, values, &mut Vec::new(), &mut out)?;
        } else if let Some(headers) = &refused.headers {
            out.put(header::UNREADABLE, headers);
        }
        record.finish();
        Ok::<(), Refusal>(())
    };
    if write(batch, true).is_err() {
        // Without the row's own headers it can't fail.
        let _ = write(batch, false);
    }
}

#[cold]
fn too_large(mapping: &Mapping, size_bytes: usize) -> Refusal {
    let max = mapping.record_bytes_max;
    Refusal::new(
        reason::TOO_LARGE,
        format!(
            "the event takes {size_bytes} bytes, batch.record_bytes_max allows {max}. Its payload is \
             in the outbox table alone: to deliver it, raise batch.record_bytes_max (and the topic's \
             max.message.bytes), give it its payload with `outbox-relay dead-letters edit ID \
             --payload FILE`, and release it"
        ),
    )
}

#[inline]
fn optional<'a>(
    slot: Option<Slot>,
    row: &Row<'_>,
    values: &Values<'a>,
    scratch: &'a mut Vec<u8>,
) -> Result<Option<&'a [u8]>, Refusal> {
    let Some(slot) = slot else { return Ok(None) };
    value::bytes(slot.kind, slot.of(values), row.charset, scratch).map_err(|fault| match fault {
        value::Fault::Type => Refusal::malformed_value(row, slot),
        value::Fault::Character => Refusal::no_character(row, slot),
    })
}

fn required_id<'a>(
    plan: &Plan,
    row: &Row<'_>,
    values: &Values<'a>,
    scratch: &'a mut Vec<u8>,
) -> Result<&'a [u8], Refusal> {
    optional(Some(plan.id), row, values, scratch)?.filter(|id| !id.is_empty()).ok_or_else(|| {
        let what = "is null or empty, and an event needs an id; \
                    give the column a default, such as outbox.uuid_v7()";
        Refusal::of_column(reason::NO_ID, row, plan.id, what)
    })
}

fn read_type<'a>(
    plan: &Plan,
    mapping: &Mapping,
    row: &Row<'_>,
    values: &Values<'a>,
    scratch: &'a mut Vec<u8>,
) -> Result<Option<&'a [u8]>, Refusal> {
    let event_type = optional(plan.event_type, row, values, scratch)?;
    match plan.event_type {
        Some(slot)
            if mapping.header_style == HeaderStyle::CloudEvents
                && event_type.is_none_or(<[u8]>::is_empty) =>
        {
            let what = "is null or empty, and CloudEvents requires a type; \
                        set it, or outbox.headers = \"outbox\"";
            Err(Refusal::of_column(reason::NO_TYPE, row, slot, what))
        }
        _ => Ok(event_type),
    }
}

fn read_topic<'a>(
    plan: &Plan,
    row: &Row<'_>,
    values: &Values<'a>,
    scratch: &'a mut Vec<u8>,
    part: &mut Vec<u8>,
) -> Result<&'a str, Refusal> {
    let parts = match &plan.topic {
        TopicPlan::Column(slot) => return topic_part(*slot, row, values, scratch),
        TopicPlan::Template(parts) => parts,
    };
    scratch.clear();
    for template_part in parts {
        match template_part {
            TopicPart::Literal(text) => scratch.extend_from_slice(text.as_bytes()),
            TopicPart::Column(slot) => {
                scratch.extend_from_slice(topic_part(*slot, row, values, part)?.as_bytes());
            }
        }
    }
    std::str::from_utf8(scratch).map_err(|_| {
        Refusal::new(reason::MALFORMED_VALUE, "the topic's parts are no UTF-8".to_owned())
    })
}

fn topic_part<'a>(
    slot: Slot,
    row: &Row<'_>,
    values: &Values<'a>,
    scratch: &'a mut Vec<u8>,
) -> Result<&'a str, Refusal> {
    match optional(Some(slot), row, values, scratch)? {
        None | Some([]) => {
            let what = "is null or empty, and says which topic the event goes to; \
                        set it, and make the column not null";
            Err(Refusal::of_column(reason::NO_TOPIC, row, slot, what))
        }
        Some(text) => std::str::from_utf8(text).map_err(|_| Refusal::malformed_value(row, slot)),
    }
}

fn read_partition(plan: &Plan, row: &Row<'_>, values: &Values<'_>) -> Result<Option<i32>, Refusal> {
    let Some(slot) = plan.partition else { return Ok(None) };
    let refusal = |reason, what| Err(Refusal::of_column(reason, row, slot, what));
    match value::int(slot.kind, slot.of(values)) {
        Ok(None) => Ok(None),
        Ok(Some(number)) => match i32::try_from(number) {
            Ok(partition) if partition >= 0 => Ok(Some(partition)),
            _ if number < 0 => refusal(
                reason::NEGATIVE_PARTITION,
                "is negative; use null to let the key choose the partition",
            ),
            _ => refusal(
                reason::BAD_PARTITION,
                "is above 2147483647; use a partition that the topic has, or null",
            ),
        },
        Err(value::Unreadable) => {
            refusal(reason::BAD_PARTITION, "is no whole number; use a partition that the topic has")
        }
    }
}

/// The row's own time, else its transaction's; `None` only if the server's clock was before 1970.
fn read_moment(plan: &Plan, row: &Row<'_>, values: &Values<'_>) -> Result<Option<Moment>, Refusal> {
    let commit_time = || Moment::from_postgres_us(row.commit_time_us).ok();
    let Some(slot) = plan.created_at else { return Ok(commit_time()) };
    let what = match value::moment(slot.kind, slot.of(values)) {
        Ok(moment) => return Ok(moment.or_else(commit_time)),
        Err(NoMoment::OutOfRange) => {
            "is not between the years 1970 and 9999, so no record can carry it; correct it"
        }
        Err(NoMoment::Unreadable) => {
            "is no timestamp in the ISO form; remove DateStyle from the relay's role and URL"
        }
    };
    Err(Refusal::of_column(reason::BAD_TIMESTAMP, row, slot, what))
}

fn write_row_headers(
    plan: &Plan,
    relay: &RelayHeaders,
    row: &Row<'_>,
    values: &Values<'_>,
    scratch: &mut Vec<u8>,
    out: &mut HeaderWriter<'_, '_>,
) -> Result<(), Refusal> {
    for (name, slot) in &plan.header_columns {
        if let Some(value) = optional(Some(*slot), row, values, scratch)? {
            out.put_own(name, value);
        }
    }
    let Some(slot) = plan.headers else { return Ok(()) };
    let Some(json) = optional(Some(slot), row, values, scratch)? else { return Ok(()) };
    headers::write_own(json, relay.reserved(), out).map_err(|fault| {
        let reason = match &fault {
            Fault::Reserved(_) => reason::RESERVED_HEADER,
            _ => reason::HEADERS_SHAPE,
        };
        let what = match fault {
            Fault::NoObject => "is no JSON object; use a flat object of strings".to_owned(),
            Fault::NoString(name) => {
                format!("has no string as its member {name:?}; use a flat object of strings")
            }
            Fault::Name => "has a member whose name is empty or holds a zero byte".to_owned(),
            Fault::TooMany => {
                format!("has more than {} members; put them into the payload", header::COUNT_MAX)
            }
            Fault::Reserved(name) => {
                format!("has a member {name:?}, a name of the relay's own; use another name")
            }
        };
        Refusal::of_column(reason, row, slot, &what)
    })
}
