//! A RabbitMQ broker as Debian packages it, in a directory of its own. It can be ended and started again, with
//! all it had stored.

mod exchange;

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use amqprs::FieldValue;
use anyhow::{Context, Result, bail};
use outbox_relay::throwaway::guardian;

pub use self::exchange::Exchange;
use crate::host;

const PROGRAMS: &str = "/usr/lib/rabbitmq/bin";
/// As docs/RABBITMQ.md has it; nothing to a queue with a leader.
const ELECT: &str =
    "[ra:trigger_election(amqqueue:get_pid(Q)) || Q <- rabbit_amqqueue:list_by_type(quorum)].";
/// Of each quorum queue.
const STATES: &str = "[ra:local_query(amqqueue:get_pid(Q), fun rabbit_fifo:overview/1, 2000) \
                      || Q <- rabbit_amqqueue:list_by_type(quorum)].";

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

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.broker.id()
    }

    /// Waits until it answers, which takes half a minute where the machine has much to do; then has its quorum
    /// queues elect their leaders, as docs/RABBITMQ.md says: with 3.10 the only member of a queue may stay a
    /// follower after the broker was killed.
    ///
    /// # Panics
    /// When it does not.
    pub async fn wait_ready(&self) {
        if let Err(error) = exchange::answered(&self.address()).await {
            let log = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            panic!("{error:#}; the broker said: {log}");
        }
        self.control(&["eval", ELECT]);
    }

    fn end(&mut self) {
        // One that has ended already can't be killed, and is waited for all the same.
        let _ended_before = self.broker.kill();
        let _status = self.broker.wait();
        guardian::forget(self.broker.id());
    }

    /// Has the broker store the names of its queues, which it does by itself within a second of making them. If it is
    /// killed before that, the quorum queue that it made last is empty afterwards (docs/RABBITMQ.md, Limits).
    pub fn store_queues(&self) {
        self.control(&["eval", "[ok = dets:sync(T) || T <- dets:all()]."]);
    }

    /// What the broker says about its queues, for a test that misses events: how many wait, how many a consumer holds, who leads,
    /// and what each queue's log says.
    pub fn queues(&self) -> String {
        let columns = "name state messages_ready messages_unacknowledged consumers leader online";
        let columns: Vec<&str> = ["list_queues"].into_iter().chain(columns.split(' ')).collect();
        let logs = std::fs::read_dir(self.dir.join("data")).into_iter().flatten().flatten();
        let logs = logs.flat_map(|node| std::fs::read_dir(node.path().join("quorum")));
        let logs = logs.flatten().flatten().flat_map(|it| std::fs::read_dir(it.path()));
        let logs = logs.flatten().flatten().filter(|it| it.path().is_dir()).count();
        let told = [&*columns, &["list_consumers"], &["eval", STATES]]
            .map(|asked| self.asked(asked).unwrap_or_else(|error| error));
        format!(
            "{}{logs} logs of quorum queues: if there are more logs than queues, the broker made some again, empty",
            told.concat()
        )
    }

    /// Runs `rabbitmqctl`.
    ///
    /// # Panics
    /// When it fails.
    pub fn control(&self, arguments: &[&str]) {
        self.asked(arguments).expect("rabbitmqctl does it");
    }

    /// What `rabbitmqctl` prints; as an error, where it fails.
    fn asked(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(Path::new(PROGRAMS).join("rabbitmqctl"));
        let done = environment(&mut command, &self.dir, self.port, self.ports)
            .args(arguments)
            .output()
            .expect("rabbitmqctl starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if done.status.success() { Ok(text(&done.stdout)) } else { Err(text(&done.stderr)) }
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
        let exchange = Exchange::new(self.address(), name, partitions, arguments);
        exchange.make().await;
        exchange
    }

    /// One that is there already, or will be.
    pub fn existing(&self, name: &str, partitions: i32) -> Exchange {
        Exchange::new(self.address(), name, partitions, &[])
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

fn spawn(dir: &Path, port: u16, ports: Ports) -> Result<Child> {
    use std::os::unix::process::CommandExt;
    let log = File::options().create(true).append(true).open(dir.join("log"))?;
    let mut command = Command::new(Path::new(PROGRAMS).join("rabbitmq-server"));
    let broker = environment(&mut command, dir, port, ports)
        .current_dir(dir)
        // So that the script becomes the broker: otherwise it starts one, which outlives it. No one listens there.
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
