//! Who may do what with a topic, at a broker that asks (`authorizer.class.name`).
//!
//! The `rdkafka` crate has no request for it: all of the harness' calls into librdkafka are here.

use std::{ffi::CString, ptr};

use anyhow::{Result, bail, ensure};
use rdkafka::{
    admin::AdminClient,
    bindings::{self as sys, rd_kafka_resp_err_t as code},
    client::DefaultClientContext,
};

use crate::{kafka::Kafka, topic::Topic};

const ANSWER_MS: i32 = 10_000;

/// What a principal does with a topic.
#[derive(Clone, Copy, Debug)]
pub enum Operation {
    /// Sees that it is there.
    Describe,
    /// Sees it, and produces to it.
    Write,
    /// Sees it, and reads from it.
    Read,
    /// Sees its settings.
    DescribeConfigs,
}

impl Topic {
    /// Allows `principal`, as in `User:relay`, to do so. Where the broker allows what no entry
    /// speaks of, the first entry of a topic shuts out all others.
    ///
    /// # Panics
    /// When the broker refuses.
    pub async fn allow(&self, principal: &str, operation: Operation) {
        let client = self.kafka().admin().expect("an admin client");
        let (name, principal) = (self.name().to_owned(), principal.to_owned());
        let kind = sys::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC;
        let asked =
            tokio::task::spawn_blocking(move || allow(&client, kind, &name, &principal, operation));
        asked.await.expect("no panic").expect("it is allowed");
    }
}

/// As [`Topic::allow`], on a transactional id.
///
/// # Panics
/// When the broker refuses.
pub async fn allow_transactions(kafka: &Kafka, id: &str, principal: &str) {
    let client = kafka.admin().expect("an admin client");
    let (id, principal) = (id.to_owned(), principal.to_owned());
    let kind = sys::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TRANSACTIONAL_ID;
    let asked = tokio::task::spawn_blocking(move || {
        allow(&client, kind, &id, &principal, Operation::Write)
    });
    asked.await.expect("no panic").expect("it is allowed");
}

/// Allows everything of the cluster as a whole to everybody, but to `principal` the creation of topics.
///
/// # Panics
/// When the broker refuses.
pub async fn forbid_creation(kafka: &Kafka, principal: &str) {
    let client = kafka.admin().expect("an admin client");
    let principal = principal.to_owned();
    let asked = tokio::task::spawn_blocking(move || {
        use sys::{
            rd_kafka_AclOperation_t as Operation, rd_kafka_AclPermissionType_t as Permission,
        };
        let cluster = sys::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_BROKER;
        for (principal, operation, permission) in [
            (
                "User:*",
                Operation::RD_KAFKA_ACL_OPERATION_ALL,
                Permission::RD_KAFKA_ACL_PERMISSION_TYPE_ALLOW,
            ),
            (
                principal.as_str(),
                Operation::RD_KAFKA_ACL_OPERATION_CREATE,
                Permission::RD_KAFKA_ACL_PERMISSION_TYPE_DENY,
            ),
        ] {
            enter(&client, cluster, "kafka-cluster", principal, operation, permission)?;
        }
        Ok::<_, anyhow::Error>(())
    });
    asked.await.expect("no panic").expect("it is entered");
}

fn allow(
    client: &AdminClient<DefaultClientContext>,
    kind: sys::rd_kafka_ResourceType_t,
    name: &str,
    principal: &str,
    operation: Operation,
) -> Result<()> {
    let operation = match operation {
        Operation::Describe => sys::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_DESCRIBE,
        Operation::Write => sys::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_WRITE,
        Operation::Read => sys::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_READ,
        Operation::DescribeConfigs => {
            sys::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_DESCRIBE_CONFIGS
        }
    };
    let permission = sys::rd_kafka_AclPermissionType_t::RD_KAFKA_ACL_PERMISSION_TYPE_ALLOW;
    enter(client, kind, name, principal, operation, permission)
}

fn enter(
    client: &AdminClient<DefaultClientContext>,
    kind: sys::rd_kafka_ResourceType_t,
    name: &str,
    principal: &str,
    operation: sys::rd_kafka_AclOperation_t,
    permission: sys::rd_kafka_AclPermissionType_t,
) -> Result<()> {
    let (name, principal) = (CString::new(name)?, CString::new(principal)?);
    let native = client.inner().native_ptr();
    // SAFETY: the client and the texts outlive the calls, which copy the texts and the binding; the
    // binding and the queue are ours and are destroyed once. Polling waits for the one answer.
    let event = unsafe {
        let mut binding = sys::rd_kafka_AclBinding_new(
            kind,
            name.as_ptr(),
            sys::rd_kafka_ResourcePatternType_t::RD_KAFKA_RESOURCE_PATTERN_LITERAL,
            principal.as_ptr(),
            c"*".as_ptr(),
            operation,
            permission,
            ptr::null_mut(),
            0,
        );
        ensure!(!binding.is_null(), "librdkafka refuses the entry");
        let queue = sys::rd_kafka_queue_new(native);
        sys::rd_kafka_CreateAcls(native, &raw mut binding, 1, ptr::null(), queue);
        let event = sys::rd_kafka_queue_poll(queue, ANSWER_MS);
        sys::rd_kafka_queue_destroy(queue);
        sys::rd_kafka_AclBinding_destroy(binding);
        event
    };
    ensure!(!event.is_null(), "no answer");
    // SAFETY: the event is ours until it is destroyed, once; what it holds is looked at before.
    unsafe {
        let mut said = sys::rd_kafka_event_error(event);
        let (mut count, result) = (0, sys::rd_kafka_event_CreateAcls_result(event));
        if said == code::RD_KAFKA_RESP_ERR_NO_ERROR && !result.is_null() {
            let answers = sys::rd_kafka_CreateAcls_result_acls(result, &raw mut count);
            if count == 1 {
                let error = sys::rd_kafka_acl_result_error(*answers);
                if !error.is_null() {
                    said = sys::rd_kafka_error_code(error);
                }
            }
        }
        sys::rd_kafka_event_destroy(event);
        if said != code::RD_KAFKA_RESP_ERR_NO_ERROR || count != 1 {
            bail!("{said:?}, {count} answers");
        }
    }
    Ok(())
}
