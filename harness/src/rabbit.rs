//! A RabbitMQ broker as Debian packages it, in a directory of its own. It can be ended and started again, with
//! all it had stored.

use std::{
    collections::HashMap,
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
    time::Duration,
};

use amqprs::{
    BasicProperties, FieldTable, FieldValue,
    channel::{
        BasicAckArguments, BasicCancelArguments, BasicConsumeArguments, BasicQosArguments, Channel,
        ExchangeDeclareArguments, QueueBindArguments, QueueDeclareArguments, QueueUnbindArguments,
    },
    connection::{Connection, OpenConnectionArguments},
};
use anyhow::{Context, Result, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use outbox_relay::throwaway::guardian;

use crate::{host, topic::Record, wait};

/// How long the broker may take to send what it has.
const ASK: Duration = Duration::from_secs(10);
const PROGRAMS: &str = "/usr/lib/rabbitmq/bin";

/// A broker, running or not; ended by KILL when dropped.
#[derive(Debug)]
pub struct Rabbit {
    dir: PathBuf,
    port: u16,
    ports: Ports,
    broker: Child,
    /// The nodes' telephone book, which the broker would leave behind.
    epmd: Child,
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    epmd: u16,
    dist: u16,
}

impl Rabbit {
    /// Starts one on a port of its own. It answers some seconds later.
    ///
    /// # Errors
    /// What to install.
    pub fn start() -> Result<Self> {
        Self::start_with("")
    }

    /// The same, with further lines of `rabbitmq.conf`.
    ///
    /// # Errors
    /// As [`Rabbit::start`].
    pub fn start_with(settings: &str) -> Result<Self> {
        if !Path::new(PROGRAMS).join("rabbitmq-server").exists() {
            bail!("{PROGRAMS}/rabbitmq-server is missing: install it (Debian: rabbitmq-server)");
        }
        let dir = tempfile::Builder::new().prefix("outbox-rabbit-").tempdir()?.keep();
        guardian::remove_at_exit(&dir)?;
        let port = host::free_port();
        let ports = Ports { epmd: host::free_port(), dist: host::free_port() };
        let conf = format!(
            "listeners.tcp.1 = 127.0.0.1:{port}\ndisk_free_limit.absolute = 50MB\nlog.console = false\n{settings}"
        );
        std::fs::write(dir.join("rabbitmq.conf"), conf)?;
        std::fs::write(dir.join("enabled_plugins"), "[].\n")?;
        let epmd = Command::new("epmd")
            .args(["-port", &ports.epmd.to_string(), "-address", "127.0.0.1"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("epmd did not start: install Erlang (Debian: rabbitmq-server)")?;
        guardian::kill_at_exit(epmd.id())?;
        let broker = spawn(&dir, port, ports)?;
        Ok(Rabbit { dir, port, ports, broker, epmd })
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `amqp://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("amqp://{}", self.address())
    }

    /// Ends it as a crash does.
    ///
    /// # Panics
    /// When it had ended before.
    pub fn kill9(&mut self) {
        assert!(self.broker.try_wait().expect("a status").is_none(), "it was running until now");
        self.end();
    }

    /// Starts it again, with all it had stored.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self) {
        self.broker = spawn(&self.dir, self.port, self.ports).expect("the broker starts");
    }

    fn end(&mut self) {
        // One that has ended already can't be killed, and is waited for all the same.
        let _ended_before = self.broker.kill();
        let _status = self.broker.wait();
        guardian::forget(self.broker.id());
    }

    /// Runs `rabbitmqctl`.
    ///
    /// # Panics
    /// When it fails.
    pub fn control(&self, arguments: &[&str]) {
        let done = environment(
            &mut Command::new(Path::new(PROGRAMS).join("rabbitmqctl")),
            &self.dir,
            self.port,
            self.ports,
        )
        .args(arguments)
        .output()
        .expect("rabbitmqctl starts");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    /// Makes an exchange, as a user would, with a quorum queue for each partition.
    ///
    /// # Panics
    /// When the broker refuses.
    pub async fn exchange(&self, name: &str, partitions: i32) -> Exchange {
        self.exchange_with(name, partitions, &[]).await
    }

    /// The same; `arguments` are further ones of the queues.
    ///
    /// # Panics
    /// When the broker refuses.
    pub async fn exchange_with(
        &self,
        name: &str,
        partitions: i32,
        arguments: &[(&'static str, FieldValue)],
    ) -> Exchange {
        let mut exchange = self.existing(name, partitions);
        exchange.arguments.extend(arguments.iter().cloned());
        let (_connection, channel) = self.channel().await;
        let mut direct = ExchangeDeclareArguments::new(name, "direct");
        direct.durable(true);
        channel.exchange_declare(direct).await.expect("the exchange is made");
        for partition in 0..partitions {
            exchange.queue(&channel, partition).await;
        }
        exchange
    }

    /// One that is there already, or will be.
    pub fn existing(&self, name: &str, partitions: i32) -> Exchange {
        let taken = (0..partitions).map(|_| Vec::new()).collect();
        Exchange {
            address: self.address(),
            name: name.to_owned(),
            partitions,
            arguments: vec![("x-queue-type", FieldValue::from("quorum"))],
            taken: Mutex::new(taken),
        }
    }

    async fn channel(&self) -> (Connection, Channel) {
        channel(&self.address()).await
    }
}

impl Drop for Rabbit {
    fn drop(&mut self) {
        self.end();
        let _ended_before = self.epmd.kill();
        let _status = self.epmd.wait();
        guardian::forget(self.epmd.id());
    }
}

/// An exchange with a queue for each partition, and all that a consumer of these has had.
#[derive(Debug)]
pub struct Exchange {
    address: String,
    name: String,
    partitions: i32,
    /// Of its queues.
    arguments: Vec<(&'static str, FieldValue)>,
    /// Of each partition.
    taken: Mutex<Vec<Vec<Record>>>,
}

impl Exchange {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its broker is.
    pub fn url(&self) -> String {
        format!("amqp://{}", self.address)
    }

    fn queue_name(&self, partition: i32) -> String {
        format!("{}.{partition}", self.name)
    }

    async fn queue(&self, channel: &Channel, partition: i32) {
        let name = self.queue_name(partition);
        let mut queue = QueueDeclareArguments::durable_client_named(&name);
        let mut arguments = FieldTable::new();
        for (name, value) in self.arguments.clone() {
            arguments.insert(name.try_into().expect("short"), value);
        }
        queue.arguments(arguments);
        channel.queue_declare(queue).await.expect("the queue is made");
        let binding = QueueBindArguments::new(&name, &self.name, &partition.to_string());
        channel.queue_bind(binding).await.expect("the queue is bound");
    }

    /// Binds a partition's queue, which is made if it is missing.
    ///
    /// # Panics
    /// When the broker refuses.
    pub async fn bind(&self, partition: i32) {
        let (_connection, channel) = channel(&self.address).await;
        self.queue(&channel, partition).await;
    }

    /// Takes a partition's queue off the exchange.
    ///
    /// # Panics
    /// When the broker refuses.
    pub async fn unbind(&self, partition: i32) {
        let (_connection, channel) = channel(&self.address).await;
        let binding = QueueUnbindArguments::new(
            &self.queue_name(partition),
            &self.name,
            &partition.to_string(),
        );
        channel.queue_unbind(binding).await.expect("the queue is unbound");
    }

    /// All that came so far, each partition in the order of its queue.
    ///
    /// # Panics
    /// When the broker does not answer, or a message is not as documented.
    pub async fn records(&self) -> Vec<Record> {
        // A queue has no leader for a moment after its broker has started.
        let taken =
            wait::until("the queues give what they have", wait::PATIENCE, || self.take_all());
        taken.await.expect("the broker answers");
        self.taken.lock().expect("no test panics with it").concat()
    }

    async fn take_all(&self) -> Result<()> {
        let (connection, channel) = channel(&self.address).await;
        for partition in 0..self.partitions {
            self.take(&channel, partition).await?;
        }
        channel.close().await?;
        Ok(connection.close().await?)
    }

    /// What is in a queue by now. A queue with a single active consumer gives nothing to who only asks.
    async fn take(&self, channel: &Channel, partition: i32) -> Result<()> {
        let name = self.queue_name(partition);
        let mut passive = QueueDeclareArguments::new(&name);
        passive.passive(true);
        let (_, ready, _) = channel.queue_declare(passive).await?.context("no answer")?;
        if ready == 0 {
            return Ok(());
        }
        // No more than that: what comes beyond would be given back later, behind what follows it.
        let ready = u16::try_from(ready).unwrap_or(u16::MAX);
        channel.basic_qos(BasicQosArguments::new(0, ready, false)).await?;
        let consume = BasicConsumeArguments::new(&name, "");
        let (tag, mut messages) = channel.basic_consume_rx(consume).await?;
        let (mut came, mut last) = (Vec::new(), 0);
        for _ in 0..ready {
            let message =
                tokio::time::timeout(ASK, messages.recv()).await?.context("no message")?;
            last = message.deliver.context("no tag")?.delivery_tag();
            let properties = message.basic_properties.context("no properties")?;
            came.push((properties, message.content.context("no content")?));
        }
        channel.basic_cancel(BasicCancelArguments::new(&tag)).await?;
        channel.basic_ack(BasicAckArguments::new(last, true)).await?;
        let mut taken = self.taken.lock().expect("no test panics with it");
        let taken = taken.get_mut(usize::try_from(partition)?).context("no partition")?;
        for (properties, payload) in came {
            let offset = i64::try_from(taken.len())?;
            taken.push(record(&self.name, partition, offset, &properties, payload));
        }
        Ok(())
    }
}

async fn channel(address: &str) -> (Connection, Channel) {
    let (host, port) = address.split_once(':').expect("host and port");
    let arguments =
        OpenConnectionArguments::new(host, port.parse().expect("a port"), "guest", "guest");
    let connection =
        wait::until("RabbitMQ answers", wait::PATIENCE, || Connection::open(&arguments));
    let connection = connection.await.expect("the broker is up");
    let channel = connection.open_channel(None).await.expect("a channel");
    (connection, channel)
}

/// Headers are sorted by name, the id before all: a table has no order.
fn record(
    topic: &str,
    partition: i32,
    offset: i64,
    properties: &BasicProperties,
    payload: Vec<u8>,
) -> Record {
    let (mut key, mut payload, mut timestamp_ms) = (None, Some(payload), None);
    let mut headers: Vec<(String, String)> = Vec::new();
    let table: Option<&HashMap<_, _>> = properties.headers().map(AsRef::as_ref);
    // Queues add headers of their own.
    let table = table.into_iter().flatten().filter(|(name, _)| !name.as_ref().starts_with("x-"));
    for (name, value) in table {
        let name = name.as_ref().as_str();
        let value = match value {
            FieldValue::S(text) => text.to_string(),
            FieldValue::A(values) => {
                for value in Vec::from(values.clone()) {
                    headers.push((name.to_owned(), value.to_string()));
                }
                continue;
            }
            other => panic!("{name} is {other:?}"),
        };
        match name {
            "outbox-key" => key = Some(value.into_bytes()),
            "outbox-key-base64" => key = Some(STANDARD.decode(value).expect("Base64")),
            "outbox-tombstone" => payload = None,
            "outbox-created-at" => {
                let time: jiff::Timestamp = value.parse().expect("RFC 3339");
                timestamp_ms = Some(time.as_millisecond());
            }
            name => headers.push((name.to_owned(), value)),
        }
    }
    headers.sort_by_key(|(name, _)| (name != "outbox-id", name.clone()));
    let id = headers.iter().find(|(name, _)| name == "outbox-id").map(|(_, id)| id);
    assert_eq!(properties.message_id(), id, "consumers find the id where AMQP has one");
    assert_eq!(properties.delivery_mode(), Some(2), "it outlives the broker");
    Record { topic: topic.to_owned(), partition, offset, key, payload, headers, timestamp_ms }
}

fn spawn(dir: &Path, port: u16, ports: Ports) -> Result<Child> {
    use std::os::unix::process::CommandExt;
    let log = File::options().create(true).append(true).open(dir.join("log"))?;
    let mut command = Command::new(Path::new(PROGRAMS).join("rabbitmq-server"));
    let broker = environment(&mut command, dir, port, ports)
        .current_dir(dir)
        // So that the script becomes the broker: otherwise it starts one, which outlives it. Nobody listens there.
        .env("NOTIFY_SOCKET", dir.join("notify"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // A terminal's ctrl-C is for the tests; brokers go when the guardian says.
        .process_group(0)
        .spawn()
        .context("rabbitmq-server did not start")?;
    guardian::kill_at_exit(broker.id())?;
    Ok(broker)
}

fn environment<'a>(
    command: &'a mut Command,
    dir: &Path,
    port: u16,
    ports: Ports,
) -> &'a mut Command {
    command
        .env("HOME", dir)
        .env("RABBITMQ_NODENAME", format!("outbox{port}@localhost"))
        .env("RABBITMQ_NODE_PORT", port.to_string())
        .env("RABBITMQ_DIST_PORT", ports.dist.to_string())
        .env("ERL_EPMD_PORT", ports.epmd.to_string())
        .env("RABBITMQ_MNESIA_BASE", dir.join("data"))
        .env("RABBITMQ_LOG_BASE", dir.join("logs"))
        .env("RABBITMQ_CONFIG_FILE", dir.join("rabbitmq.conf"))
        .env("RABBITMQ_ENABLED_PLUGINS_FILE", dir.join("enabled_plugins"))
        .env("RABBITMQ_PID_FILE", dir.join("pid"))
        // One for each core, and no busy waiting: tests share the machine.
        .env(
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
            "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none",
        )
}
