//! The broker between the services, as each wants it.

use std::path::{Path, PathBuf};

use amqprs::{
    BasicProperties, FieldTable, FieldValue,
    channel::{BasicPublishArguments, QueueBindArguments, QueueDeclareArguments},
    connection::{Connection, OpenConnectionArguments},
};
use anyhow::{Context, Result, anyhow, bail, ensure};
use outbox_harness::{
    Harness,
    nats::{Nats, Stream},
    python,
    rabbit::{Exchange, Rabbit},
    relay::Settings,
    topic::{Record, Topic},
};
use rdkafka::admin::{AdminClient, AdminOptions};
use serde_json::json;
use tokio::process::Command;

use crate::service::{self, Program};

const PARTITIONS: i32 = 4;
/// Messages of somebody else, without an id: more than a service may have unanswered.
const STRAYS: usize = 2_100;

/// What `orders` and `payments` are published to, and read from.
pub(crate) enum Broker {
    /// With the `payments` in Python in this environment, or that in Rust.
    Kafka {
        orders: Topic,
        payments: Topic,
        python: Option<PathBuf>,
    },
    Nats {
        server: Nats,
        stream: Stream,
    },
    RabbitMq {
        server: Rabbit,
        orders: Exchange,
        payments: Exchange,
    },
}

impl Broker {
    /// `kafka`, `nats` or `rabbitmq`, with all that events are published to; `python` is Kafka with `payments` in Python.
    pub(crate) async fn set(kind: &str, t: &Harness) -> Result<Self> {
        match kind {
            "kafka" | "python" => {
                let python = match kind {
                    "python" => Some(python_inbox(t).await?),
                    _ => None,
                };
                let topic = |name: &str| Topic::new(t.kafka(), name.to_owned());
                for name in ["orders", "payments"] {
                    ensure!(!topic(name).exists().await, "the broker has a topic {name} already");
                }
                let orders = topic("orders").create(PARTITIONS).await;
                let payments = topic("payments").create(PARTITIONS).await;
                Ok(Broker::Kafka { orders, payments, python })
            }
            "nats" => {
                let server = Nats::start()?;
                let progress = format!("outbox-relay-progress.{}", t.database().name());
                let subjects = ["orders.*", "payments.*", &progress];
                let stream = server.stream("SHOP", &subjects, &json!({})).await;
                let stranger = async_nats::connect(server.address()).await?;
                for _ in 0..STRAYS {
                    stranger.publish("orders.0", "{}".into()).await?;
                }
                stranger.flush().await?;
                Ok(Broker::Nats { server, stream })
            }
            "rabbitmq" => {
                let server = Rabbit::start()?;
                server.wait_ready().await;
                let one = ("x-single-active-consumer", FieldValue::t(true));
                let orders = server.exchange_with("orders", PARTITIONS, &[one]).await;
                let payments = server.exchange("payments", PARTITIONS).await;
                let arguments = OpenConnectionArguments::try_from(server.url().as_str());
                let arguments = arguments.map_err(|error| anyhow!("{error}"))?;
                let stranger = Connection::open(&arguments).await?;
                let channel = stranger.open_channel(None).await?;
                // The exchange gives a copy of each event to each service.
                for partition in 0..PARTITIONS {
                    let name = format!("shipping.{partition}");
                    let mut queue = QueueDeclareArguments::durable_client_named(&name);
                    let mut arguments = FieldTable::new();
                    arguments.insert("x-queue-type".try_into()?, "quorum".into());
                    arguments.insert("x-single-active-consumer".try_into()?, FieldValue::t(true));
                    channel.queue_declare(queue.arguments(arguments).finish()).await?;
                    let key = partition.to_string();
                    channel.queue_bind(QueueBindArguments::new(&name, "orders", &key)).await?;
                }
                for _ in 0..STRAYS {
                    let to = BasicPublishArguments::new("orders", "0");
                    channel.basic_publish(BasicProperties::default(), b"{}".to_vec(), to).await?;
                }
                channel.close().await?;
                Ok(Broker::RabbitMq { server, orders, payments })
            }
            _ => bail!("unknown broker {kind}: choose kafka, python, nats or rabbitmq"),
        }
    }

    /// The settings of a relay that publishes to it.
    pub(crate) fn relay(&self, settings: Settings) -> Settings {
        let other = |settings: Settings| settings.without("sink.properties.\"bootstrap.servers\"");
        let partitions = PARTITIONS.to_string();
        match self {
            Broker::Kafka { .. } => settings,
            Broker::Nats { stream, .. } => other(settings)
                .set("sink.kind", "nats")
                .set("sink.nats.url", &format!("nats://{}", stream.server()))
                .set("sink.nats.stream", stream.name())
                .set_toml("sink.nats.partitions", &partitions),
            Broker::RabbitMq { orders, .. } => other(settings)
                .set("sink.kind", "rabbitmq")
                .set("sink.rabbitmq.url", &orders.url())
                .set_toml("sink.rabbitmq.partitions", &partitions),
        }
    }

    /// `payments` or `shipping`, as it is started.
    pub(crate) fn service(&self, name: &'static str, t: &Harness) -> Result<Program> {
        let database = t.database().superuser_settings();
        let (program, broker) = match self {
            Broker::Kafka { python: Some(environment), .. } if name == "payments" => {
                let script = of_python("payments.py").display().to_string();
                let arguments =
                    vec!["-B".to_owned(), script, database, t.kafka().brokers().to_owned()];
                return Ok(Program { name, path: environment.join("bin/python"), arguments });
            }
            Broker::Kafka { .. } => ("payments", vec![t.kafka().brokers().to_owned()]),
            Broker::Nats { server, stream } => {
                let url = format!("nats://{}", server.address());
                ("payments-nats", vec![url, stream.name().to_owned()])
            }
            Broker::RabbitMq { server, .. } => ("payments-rabbitmq", vec![server.url()]),
        };
        let mut arguments = vec![database];
        arguments.extend(broker);
        arguments.push(name.to_owned());
        Ok(Program { name, path: service::beside(program)?, arguments })
    }

    /// Whether what a service had when it died comes again before what is behind it.
    pub(crate) fn keeps_order_when_a_consumer_dies(&self) -> bool {
        !matches!(self, Broker::Nats { .. })
    }

    /// Payloads of what `payments` has said, as a consumer sees it that ignores ids which it has seen, where the relay
    /// delivers at least once.
    pub(crate) async fn follow_ups(&self) -> Result<Vec<Vec<u8>>> {
        let records = match self {
            Broker::Kafka { payments, .. } => payments.records().await,
            Broker::Nats { stream, .. } => stream.records("payments.*").await,
            Broker::RabbitMq { payments, .. } => first_of_each(payments.records().await)?,
        };
        Ok(records.into_iter().filter_map(|record| record.payload).collect())
    }

    /// Kafka may not be ours.
    pub(crate) async fn clear(&self, t: &Harness) -> Result<()> {
        if let Broker::Kafka { orders, payments, .. } = self {
            let admin: AdminClient<_> = t.kafka().client().create()?;
            let topics = [orders.name(), payments.name()];
            admin.delete_topics(&topics, &AdminOptions::new()).await?;
        }
        Ok(())
    }
}

/// An environment for the service in Python, whose inbox does what kills alone would not show.
async fn python_inbox(t: &Harness) -> Result<PathBuf> {
    let environment = python::environment("books", &of_python("requirements.txt"))?;
    let test = Command::new(environment.join("bin/python"))
        .arg("-B")
        .arg(of_python("test_inbox.py"))
        .arg(t.database().superuser_settings())
        .output()
        .await?;
    ensure!(test.status.success(), "test_inbox.py: {}", String::from_utf8_lossy(&test.stderr));
    Ok(environment)
}

fn of_python(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("python").join(file)
}

fn first_of_each(records: Vec<Record>) -> Result<Vec<Record>> {
    let mut seen = std::collections::BTreeSet::new();
    let mut first = Vec::new();
    for record in records {
        if seen.insert(record.id().context("a message without an id")?.to_owned()) {
            first.push(record);
        }
    }
    Ok(first)
}
