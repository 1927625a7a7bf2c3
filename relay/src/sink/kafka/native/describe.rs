//! Requests that tell of many topics at once: whether they exist and what we may do there, and
//! their settings. The crate has no form for the first, and needs a client of its own for the second.

use std::{
    collections::HashMap,
    ffi::{CStr, CString, c_char},
    ptr::{self, NonNull},
    slice,
    time::Duration,
};

use rdkafka::error::RDKafkaErrorCode;
use rdkafka_sys as sys;
use sys::{
    rd_kafka_AclOperation_t as acl, rd_kafka_ResourceType_t as resource, rd_kafka_admin_op_t as op,
    rd_kafka_resp_err_t as err,
};

use super::client::{Client as _, Consumer, millis};

/// What a broker tells of a topic that it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Shape {
    pub(in super::super) partitions: usize,
    /// Of the partition that has the fewest.
    pub(in super::super) replicas: usize,
    /// The broker keeps state of its own in it.
    pub(in super::super) internal: bool,
    /// `None` where the broker does not tell.
    pub(in super::super) may_write: Option<bool>,
    /// As well.
    pub(in super::super) may_read: Option<bool>,
    /// As well: whether we may read its settings.
    pub(in super::super) may_describe_configs: Option<bool>,
}

/// By name, each topic's shape or the broker's error. All in one request; creates nothing.
///
/// # Errors
/// No answer in time, or one for all topics that is none.
pub(in super::super) fn topics(
    client: &Consumer,
    names: &[&str],
    timeout: Duration,
) -> Result<HashMap<String, Result<Shape, RDKafkaErrorCode>>, RDKafkaErrorCode> {
    let names = c_names(names);
    let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    let options = Options::new(client, op::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS, timeout);
    let queue = Queue::new(client);
    // SAFETY: client, options and queue are alive; the collection copies the names, is copied by
    // the request, and is destroyed once. The error of an option, if any, is ours to destroy.
    unsafe {
        let error = sys::rd_kafka_AdminOptions_set_include_authorized_operations(options.0, 1);
        sys::rd_kafka_error_destroy(error);
        let topics =
            sys::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
        sys::rd_kafka_DescribeTopics(client.native(), topics, options.0, queue.0);
        sys::rd_kafka_TopicCollection_destroy(topics);
    }
    let event = queue.wait(timeout)?;
    let mut count = 0;
    // SAFETY: the event is alive; a null result means an event of another kind. The array of
    // `count` members belongs to the event.
    let found = unsafe {
        let result = sys::rd_kafka_event_DescribeTopics_result(event.0.as_ptr());
        if result.is_null() {
            return Err(RDKafkaErrorCode::Fail);
        }
        array(sys::rd_kafka_DescribeTopics_result_topics(result, &mut count), count)
    };
    let described = found.iter().filter_map(|topic| {
        // SAFETY: each is a description that belongs to the event, as do its name and its error.
        let (name, error) = unsafe {
            let error = sys::rd_kafka_TopicDescription_error(*topic);
            (text(sys::rd_kafka_TopicDescription_name(*topic))?, sys::rd_kafka_error_code(error))
        };
        Some((
            name,
            if error == err::RD_KAFKA_RESP_ERR_NO_ERROR {
                Ok(shape(*topic))
            } else {
                Err(error.into())
            },
        ))
    });
    Ok(described.collect())
}

fn shape(topic: *const sys::rd_kafka_TopicDescription_t) -> Shape {
    let (mut partitions_count, mut operations_count) = (0, 0);
    // SAFETY: the caller's description is alive; the arrays belong to it.
    let (partitions, internal, operations) = unsafe {
        let partitions = sys::rd_kafka_TopicDescription_partitions(topic, &mut partitions_count);
        let internal = sys::rd_kafka_TopicDescription_is_internal(topic) != 0;
        let operations =
            sys::rd_kafka_TopicDescription_authorized_operations(topic, &mut operations_count);
        (array(partitions, partitions_count), internal, array(operations, operations_count))
    };
    let may = |operation| (!operations.is_empty()).then(|| operations.contains(&operation));
    let replicas = partitions.iter().map(|partition| {
        let mut count = 0;
        // SAFETY: the partition belongs to the description; of its replicas only the count is taken.
        unsafe { sys::rd_kafka_TopicPartitionInfo_replicas(*partition, &mut count) };
        count
    });
    Shape {
        partitions: partitions.len(),
        replicas: replicas.min().unwrap_or_default(),
        internal,
        may_write: may(acl::RD_KAFKA_ACL_OPERATION_WRITE),
        may_read: may(acl::RD_KAFKA_ACL_OPERATION_READ),
        may_describe_configs: may(acl::RD_KAFKA_ACL_OPERATION_DESCRIBE_CONFIGS),
    }
}

/// By name, the settings of each topic that may be read. All in one request.
///
/// # Errors
/// No answer in time, or one for all topics that is none.
pub(in super::super) fn settings(
    client: &Consumer,
    names: &[&str],
    timeout: Duration,
) -> Result<HashMap<String, HashMap<String, String>>, RDKafkaErrorCode> {
    resources(client, resource::RD_KAFKA_RESOURCE_TOPIC, names, timeout)
}

/// A broker's own settings, asked of that broker; none where they may not be read.
///
/// # Errors
/// No answer in time.
pub(in super::super) fn broker_settings(
    client: &Consumer,
    id: i32,
    timeout: Duration,
) -> Result<HashMap<String, String>, RDKafkaErrorCode> {
    let id = id.to_string();
    let mut found = resources(client, resource::RD_KAFKA_RESOURCE_BROKER, &[&id], timeout)?;
    Ok(found.remove(&id).unwrap_or_default())
}

fn resources(
    client: &Consumer,
    kind: resource,
    names: &[&str],
    timeout: Duration,
) -> Result<HashMap<String, HashMap<String, String>>, RDKafkaErrorCode> {
    let options = Options::new(client, op::RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS, timeout);
    let queue = Queue::new(client);
    // SAFETY: client, options and queue are alive; the request copies the resources, which copied
    // their names and are destroyed once.
    unsafe {
        let mut resources: Vec<_> = c_names(names)
            .iter()
            .map(|name| sys::rd_kafka_ConfigResource_new(kind, name.as_ptr()))
            .filter(|resource| !resource.is_null())
            .collect();
        let (first, count) = (resources.as_mut_ptr(), resources.len());
        sys::rd_kafka_DescribeConfigs(client.native(), first, count, options.0, queue.0);
        resources.into_iter().for_each(|one| sys::rd_kafka_ConfigResource_destroy(one));
    }
    let event = queue.wait(timeout)?;
    let mut count = 0;
    // SAFETY: as in `topics`.
    let found = unsafe {
        let result = sys::rd_kafka_event_DescribeConfigs_result(event.0.as_ptr());
        if result.is_null() {
            return Err(RDKafkaErrorCode::Fail);
        }
        array(sys::rd_kafka_DescribeConfigs_result_resources(result, &mut count), count)
    };
    let mut all = HashMap::new();
    for resource in found {
        let mut count = 0;
        // SAFETY: the resource belongs to the event, as do its name and its array of entries.
        let (name, error, entries) = unsafe {
            let entries = sys::rd_kafka_ConfigResource_configs(*resource, &mut count);
            let error = sys::rd_kafka_ConfigResource_error(*resource);
            (text(sys::rd_kafka_ConfigResource_name(*resource)), error, array(entries, count))
        };
        if error != err::RD_KAFKA_RESP_ERR_NO_ERROR {
            continue;
        }
        let entries = entries.iter().filter_map(|entry| {
            // SAFETY: the entry belongs to the event; a null value is one that is not told.
            let (name, value) = unsafe {
                let value = sys::rd_kafka_ConfigEntry_value(*entry);
                (sys::rd_kafka_ConfigEntry_name(*entry), value)
            };
            // SAFETY: as above.
            unsafe { Some((text(name)?, text(value)?)) }
        });
        if let Some(name) = name {
            all.insert(name, entries.collect());
        }
    }
    Ok(all)
}

/// A name with a NUL is no topic's: it is left out, and so not found.
fn c_names(names: &[&str]) -> Vec<CString> {
    names.iter().filter_map(|name| CString::new(*name).ok()).collect()
}

/// # Safety
/// `first` is null or points to `count` members that outlive the borrow.
unsafe fn array<'a, T>(first: *const T, count: usize) -> &'a [T] {
    if first.is_null() || count == 0 {
        return &[];
    }
    // SAFETY: promised by the caller.
    unsafe { slice::from_raw_parts(first, count) }
}

/// # Safety
/// `text` is null or points to a text that ends with NUL.
unsafe fn text(text: *const c_char) -> Option<String> {
    // SAFETY: promised by the caller.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

struct Options(*mut sys::rd_kafka_AdminOptions_t);

impl Options {
    fn new(client: &Consumer, operation: op, timeout: Duration) -> Self {
        // SAFETY: the client is alive; the options are destroyed by `drop`.
        unsafe {
            let options = sys::rd_kafka_AdminOptions_new(client.native(), operation);
            sys::rd_kafka_AdminOptions_set_request_timeout(
                options,
                millis(timeout),
                ptr::null_mut(),
                0,
            );
            Options(options)
        }
    }
}

impl Drop for Options {
    fn drop(&mut self) {
        // SAFETY: ours, destroyed once; requests have copied them.
        unsafe { sys::rd_kafka_AdminOptions_destroy(self.0) };
    }
}

struct Queue(*mut sys::rd_kafka_queue_t);

impl Queue {
    fn new(client: &Consumer) -> Self {
        // SAFETY: the client is alive; the queue is given back by `drop`.
        Queue(unsafe { sys::rd_kafka_queue_new(client.native()) })
    }

    /// The one event that a request makes.
    fn wait(&self, timeout: Duration) -> Result<Event, RDKafkaErrorCode> {
        // The request ends by itself at its time; its event takes a moment to come.
        let patience = millis(timeout + Duration::from_millis(500));
        // SAFETY: the queue is alive; the event is destroyed by its owner's drop.
        let event = unsafe { sys::rd_kafka_queue_poll(self.0, patience) };
        let event = Event(NonNull::new(event).ok_or(RDKafkaErrorCode::RequestTimedOut)?);
        // SAFETY: the event is alive.
        match unsafe { sys::rd_kafka_event_error(event.0.as_ptr()) } {
            err::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(event),
            error => Err(error.into()),
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: ours, given back once; a request under way holds a reference of its own.
        unsafe { sys::rd_kafka_queue_destroy(self.0) };
    }
}

struct Event(NonNull<sys::rd_kafka_event_t>);

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: returned by `rd_kafka_queue_poll` to be destroyed once by its caller.
        unsafe { sys::rd_kafka_event_destroy(self.0.as_ptr()) };
    }
}
