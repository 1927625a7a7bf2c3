//! A consumer as the suite runs it: a real process that is killed, frozen and asked to stop. Its
//! handler stores what each event does, publishes a follow-up, and fails now and then.
//!
//! What it is to do comes as JSON in `CONSUMER`, which `consumer` writes.

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::PathBuf,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use outbox_idempotency::{
    Dedup, Event, Failure, Inbox, Message, Processor, Retry, Tx,
    dead_letters::{self, Selection},
    fault::{Point, on_passing},
    kafka::{ClientConfig, Runner},
};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

/// The variable with its settings.
pub const VARIABLE: &str = "CONSUMER";
/// Between two replays of whatever has died.
const REPLAY: Duration = Duration::from_millis(300);
/// A commit takes a few milliseconds; this falls into most of them.
const MOMENT: Duration = Duration::from_millis(1);

/// How a consumer is to run; one group for each database.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Plan {
    /// Most messages in a transaction; 0 for a handler of one.
    pub batch: usize,
    /// Messages of which a handler says that they may succeed later.
    pub fail_percent: u32,
    /// Messages of which it says that they never will.
    pub die_percent: u32,
    /// Whether all dead letters are replayed again and again.
    pub replay: bool,
    /// Name of the relay whose positions are trusted; rows otherwise.
    pub watermark: Option<String>,
    /// Shortest and longest time that a call of the handler takes, in milliseconds; each order of
    /// magnitude is as likely.
    pub pause_ms: Option<(u64, u64)>,
    /// Most messages in memory, where it is not the runner's own number.
    pub in_flight: Option<usize>,
    /// Most bytes in memory, with a handler of bytes that fails at each message's first attempt.
    pub in_flight_bytes: Option<usize>,
    /// The same, but that handler fails at none, and takes as long as `pause_ms` says.
    pub live: bool,
    /// Properties for librdkafka.
    pub kafka: BTreeMap<String, String>,
    /// `host:port` of a proxy to its database.
    pub postgres: Option<String>,
    /// A program that is [`main`] where [`VARIABLE`] is set, instead of the one beside the tests.
    #[serde(skip)]
    pub program: Option<PathBuf>,
    /// Where this process is to end or to stop.
    pub fault: Option<Fault>,
}

/// A place, and what happens there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fault {
    /// [`Point::name`].
    pub point: String,
    /// At which passing, from 1.
    pub nth: u64,
    /// SIGSTOP instead of SIGKILL.
    pub freeze: bool,
}

/// All that a member needs to know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// URL, as the consumer's role.
    pub(crate) database: String,
    /// URL, as the operator's role.
    pub(crate) operator: String,
    pub(crate) brokers: String,
    pub(crate) group: String,
    pub(crate) topic: String,
    pub(crate) plan: Plan,
}

/// Consumes until SIGTERM.
///
/// # Errors
/// Whatever ends the runner before.
pub async fn main() -> Result<()> {
    tracing_subscriber::fmt().with_ansi(false).init();
    let settings = std::env::var(VARIABLE).context(VARIABLE)?;
    let Settings { database, operator, brokers, group, topic, plan } =
        serde_json::from_str(&settings)?;
    if let Some(fault) = &plan.fault {
        arm(fault)?;
    }
    let mut terminated = signal(SignalKind::terminate())?;
    let pool = crate::database::pool(database.parse()?, 24);
    let inbox = Inbox::open(pool, &group).await?;

    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &brokers).set("group.id", &group);
    if plan.kafka.get("group.protocol").is_none_or(|protocol| protocol != "consumer") {
        // The shortest that a broker takes by default.
        config.set("session.timeout.ms", "6000").set("heartbeat.interval.ms", "500");
    }
    for (name, value) in &plan.kafka {
        config.set(name, value);
    }
    let mut runner = Runner::new(processor(inbox, &plan), config, &[&topic]);
    if let Some(messages) = plan.in_flight {
        runner = runner.in_flight(messages, usize::MAX);
    }
    if let Some(bytes) = plan.in_flight_bytes {
        runner = runner.in_flight(10_000, bytes);
    }
    let stop = async {
        terminated.recv().await;
    };
    tokio::select! {
        ended = runner.run(stop) => ended?,
        failed = replay(&operator), if plan.replay => failed?,
    }
    Ok(())
}

fn processor(inbox: Inbox, plan: &Plan) -> Processor {
    let how = How { fail: plan.fail_percent, die: plan.die_percent, pause_ms: plan.pause_ms };
    let live = plan.live;
    let one = move |tx: Tx, message: Message<serde_json::Value>| async move {
        how.handle(&tx, std::slice::from_ref(&message)).await
    };
    let many = move |tx: Tx, messages: Vec<Message<serde_json::Value>>| async move {
        how.handle(&tx, &messages).await
    };
    let processor = match plan.batch {
        _ if plan.in_flight_bytes.is_some() => {
            Processor::raw(inbox, move |tx, message| of_bytes(how, live, tx, message))
        }
        0 => Processor::new(inbox, one),
        max => Processor::batch(inbox, max, many),
    };
    let retry = Retry::exponential(Duration::from_millis(20), Duration::from_millis(200));
    let processor = processor.retry(retry.attempts(1_000));
    match &plan.watermark {
        Some(relay) => processor.dedup(Dedup::Watermark { relay: relay.clone() }),
        None => processor,
    }
}

/// As if a service was away when a message came, unless it is live.
async fn of_bytes(
    how: How,
    live: bool,
    tx: Tx,
    message: Message<Option<bytes::Bytes>>,
) -> Result<(), Failure> {
    if message.attempt == 1 && !live {
        return Err(Failure::transient("the service is away"));
    }
    how.pause().await;
    let insert = "insert into effects (message, lane) values ($1, $2)";
    let lane = message.source.offset.unwrap_or_default().to_string();
    tx.execute(insert, &[&message.id.uuid(), &lane]).await?;
    Ok(())
}

/// What the handler does beside its work.
#[derive(Clone, Copy)]
struct How {
    fail: u32,
    die: u32,
    pause_ms: Option<(u64, u64)>,
}

impl How {
    async fn handle(self, tx: &Tx, messages: &[Message<serde_json::Value>]) -> Result<(), Failure> {
        self.pause().await;
        for message in messages {
            store(tx, message).await?;
            self.verdict(tx, message).await?;
        }
        Ok(())
    }

    async fn pause(self) {
        if let Some((min, max)) = self.pause_ms {
            let magnitudes = (max as f64 / min as f64).ln() * rand::random::<f64>();
            tokio::time::sleep(Duration::from_secs_f64(min as f64 * magnitudes.exp() / 1e3)).await;
        }
    }

    /// By the id, so that a message that fails in a batch also fails alone, at its first attempt;
    /// what has died once is corrected.
    async fn verdict(self, tx: &Tx, message: &Message<serde_json::Value>) -> Result<(), Failure> {
        let id = message.id.uuid();
        let percent = match message.attempt {
            1 => u32::try_from(id.as_u128() % 100).unwrap_or_default(),
            // A second failure and a death after a retry are not rare.
            _ => rand::random_range(0..20),
        };
        if percent < self.die {
            let died = "select from inbox.dead_letters where message_id = $1";
            if tx.query(died, &[&id]).await?.is_empty() {
                return Err(Failure::permanent("unlucky", "its number came up"));
            }
        } else if percent < self.die + self.fail {
            return Err(Failure::transient("its number came up"));
        }
        Ok(())
    }
}

async fn store(tx: &Tx, message: &Message<serde_json::Value>) -> Result<(), Failure> {
    let id = message.id.uuid();
    let lane = match &message.key {
        Some(key) => String::from_utf8_lossy(key).into_owned(),
        None => format!("#{}", message.source.partition.unwrap_or_default()),
    };
    let n = message.headers.text("sequence").and_then(|n| n.parse::<i64>().ok());
    let insert = "insert into effects (message, lane, n) values ($1, $2, $3)";
    tx.execute(insert, &[&id, &lane, &n]).await?;
    tx.publish(&Event::new("follow-ups", serde_json::json!({ "of": id }))).await?;
    Ok(())
}

/// As an operator who has corrected what was wrong, for ever.
async fn replay(operator: &str) -> Result<()> {
    loop {
        // A database that is away is asked again.
        if let Ok((client, connection)) =
            tokio_postgres::connect(operator, tokio_postgres::NoTls).await
        {
            let replays = async {
                while dead_letters::replay(&client, &Selection::default()).await.is_ok() {
                    tokio::time::sleep(REPLAY).await;
                }
            };
            tokio::select! {
                () = replays => {}
                _ended = connection => {}
            }
        }
        tokio::time::sleep(REPLAY).await;
    }
}

static ARMED: OnceLock<Armed> = OnceLock::new();

struct Armed {
    point: Point,
    /// Passings left until it happens.
    left: AtomicU64,
    signal: libc::c_int,
}

fn arm(fault: &Fault) -> Result<()> {
    let point = Point::ALL.iter().copied().find(|point| point.name() == fault.point);
    let point = point.with_context(|| format!("{:?} is no point", fault.point))?;
    let signal = if fault.freeze { libc::SIGSTOP } else { libc::SIGKILL };
    let _armed_before = ARMED.set(Armed { point, left: AtomicU64::new(fault.nth), signal });
    on_passing(passing);
    Ok(())
}

fn passing(point: Point) {
    let Some(armed) = ARMED.get().filter(|armed| armed.point == point) else { return };
    if armed.left.fetch_sub(1, Relaxed) != 1 {
        return;
    }
    match point {
        // The request, its work or its answer is to be under way.
        Point::Committing | Point::Replaying | Point::Maintaining => {
            let _detached = thread::spawn(|| {
                thread::sleep(MOMENT);
                armed.happen();
            });
        }
        _ => armed.happen(),
    }
}

impl Armed {
    fn happen(&self) {
        // In one write: a line of the log that another thread writes would come between two.
        let line = format!("fault: {}\n", self.point.name());
        let _ = std::io::stderr().write_all(line.as_bytes());
        // To this thread: a signal to the process waits for its first thread to run, and this one would
        // continue meanwhile.
        // SAFETY: raise takes any number and touches no memory of ours.
        let sent = unsafe { libc::raise(self.signal) };
        assert_eq!(sent, 0, "a process may signal itself");
    }
}
