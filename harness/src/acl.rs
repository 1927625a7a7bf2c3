//! Who may do what with a topic, at a broker that asks (`authorizer.class.name`).
//!
//! The `rdkafka` crate has no request for it: all of the harness' calls into librdkafka are here.

use std::{ffi::CString, ptr};

use anyhow::{Context, Result, bail, ensure};
use rdkafka::{
    admin::AdminClient,
    bindings::{
        self as sys, rd_kafka_ResourcePatternType_t as Pattern,
        rd_kafka_ResourceType_t as Resource, rd_kafka_resp_err_t as code,
    },
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

impl Operation {
    fn native(self) -> sys::rd_kafka_AclOperation_t {
        use sys::rd_kafka_AclOperation_t as Native;
        match self {
            Operation::Describe => Native::RD_KAFKA_ACL_OPERATION_DESCRIBE,
            Operation::Write => Native::RD_KAFKA_ACL_OPERATION_WRITE,
            Operation::Read => Native::RD_KAFKA_ACL_OPERATION_READ,
            Operation::DescribeConfigs => Native::RD_KAFKA_ACL_OPERATION_DESCRIBE_CONFIGS,
        }
    }
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
            let name = ("kafka-cluster", Pattern::RD_KAFKA_RESOURCE_PATTERN_LITERAL);
            enter(&client, cluster, name, principal, operation, permission)?;
        }
        Ok::<_, anyhow::Error>(())
    });
    asked.await.expect("no panic").expect("it is entered");
}

/// Enters what a command such as `kafka-acls --bootstrap-server HOST:PORT --add --allow-principal User:relay …` says.
///
/// # Panics
/// When it is no such command, or the broker refuses.
pub async fn obey(kafka: &Kafka, command: &str) {
    let client = kafka.admin().expect("an admin client");
    let owned = command.to_owned();
    let entered = tokio::task::spawn_blocking(move || enter_all(&client, &owned)).await;
    entered.expect("no panic").unwrap_or_else(|error| panic!("`{command}`: {error:#}"));
}

fn enter_all(client: &AdminClient<DefaultClientContext>, command: &str) -> Result<()> {
    let (mut words, mut operations) = (command.split_whitespace(), Vec::new());
    ensure!(words.next() == Some("kafka-acls"), "no such command");
    let (mut principal, mut resource, mut pattern) =
        (None, None, Pattern::RD_KAFKA_RESOURCE_PATTERN_LITERAL);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} has no value"));
        match word {
            "--add" => {}
            "--bootstrap-server" => _ = value()?,
            "--allow-principal" => principal = Some(value()?),
            "--operation" => operations.push(match value()? {
                "Read" => Operation::Read.native(),
                "Write" => Operation::Write.native(),
                "DescribeConfigs" => Operation::DescribeConfigs.native(),
                "Create" => sys::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_CREATE,
                other => bail!("operation {other}"),
            }),
            "--topic" => resource = Some((Resource::RD_KAFKA_RESOURCE_TOPIC, value()?)),
            "--transactional-id" => {
                resource = Some((Resource::RD_KAFKA_RESOURCE_TRANSACTIONAL_ID, value()?));
            }
            "--resource-pattern-type" => {
                pattern = match value()? {
                    "prefixed" => Pattern::RD_KAFKA_RESOURCE_PATTERN_PREFIXED,
                    other => bail!("pattern {other}"),
                }
            }
            other => bail!("option {other}"),
        }
    }
    let (kind, name) = resource.context("no resource")?;
    let principal = principal.context("no principal")?;
    ensure!(!operations.is_empty(), "no operation");
    let permission = sys::rd_kafka_AclPermissionType_t::RD_KAFKA_ACL_PERMISSION_TYPE_ALLOW;
    operations.into_iter().try_for_each(|operation| {
        enter(client, kind, (name, pattern), principal, operation, permission)
    })
}

fn allow(
    client: &AdminClient<DefaultClientContext>,
    kind: sys::rd_kafka_ResourceType_t,
    name: &str,
    principal: &str,
    operation: Operation,
) -> Result<()> {
    let permission = sys::rd_kafka_AclPermissionType_t::RD_KAFKA_ACL_PERMISSION_TYPE_ALLOW;
    enter(
        client,
        kind,
        (name, Pattern::RD_KAFKA_RESOURCE_PATTERN_LITERAL),
        principal,
        operation.native(),
        permission,
    )
}

fn enter(
    client: &AdminClient<DefaultClientContext>,
    kind: sys::rd_kafka_ResourceType_t,
    (name, pattern): (&str, sys::rd_kafka_ResourcePatternType_t),
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
            pattern,
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
