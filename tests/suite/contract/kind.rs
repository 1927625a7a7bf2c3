//! What the suite must know of a kind of sink.

use outbox_harness::{Harness, proxy::Proxy, relay::Settings, topic::Record, wait};

/// Partitions of the destination, where the sink has any.
pub(crate) const PARTITIONS: i32 = 4;

/// A kind of sink, with a place of the test's own that it stores to.
pub(crate) trait Kind: Sized {
    /// What it can, and what it can't: so no case is left out in silence.
    const CAN: Can;

    /// Makes the place. What is not `breakable` need not be: lines that break are few.
    async fn make(t: &Harness, breakable: bool) -> Self;

    /// The settings of a relay that stores there.
    fn settings(&self, base: Settings) -> Settings;

    /// A destination that takes records.
    fn destination(&self) -> &str;

    /// What an independent reader finds now, each partition in its order.
    async fn found(&self) -> Vec<Record>;

    /// The same, once it finds `least`: readers may be told a moment later than who stores.
    async fn read(&self, least: usize) -> Vec<Record> {
        let found = wait::until("a reader finds them", wait::PATIENCE, || async {
            match self.found().await {
                found if found.len() >= least => Ok(found),
                found => Err(format!("{} of {least} records", found.len())),
            }
        });
        found.await.expect("what is delivered can be read")
    }

    /// Panics unless `records` are stored now, as durably as the sink says.
    async fn assert_durable(&self, records: usize) {
        let found = self.found().await;
        assert!(found.len() >= records, "{} of {records}", found.len());
    }

    /// The line to the broker of a `breakable` one; `None` where there is no broker.
    fn line(&self) -> Option<&Proxy>;

    /// Takes the place away.
    fn take_away(&self) {
        self.line().expect("a breakable one").refuse();
    }

    /// Gives it back, with all that it had.
    fn give_back(&self) {
        self.line().expect("a breakable one").heal();
    }
}

/// The line to a broker at `address`, where it may have to break, and the address to use.
pub(crate) async fn line(breakable: bool, address: String) -> (Option<Proxy>, String) {
    if !breakable {
        return (None, address);
    }
    let line = Proxy::to(&address).await;
    let address = line.address();
    (Some(line), address)
}

/// What a kind of sink can.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Can {
    /// Records and progress are stored in one step: exactly once.
    pub one_step: bool,
    /// What it refuses, and the word for it; it delivers every other of [`Odd::ALL`].
    pub refuses: &'static [(Odd, &'static str)],
    /// Bytes of a record beyond which it is refused; `None`: it takes what a batch can hold.
    pub record_bytes: Option<usize>,
    /// Header values may have more than one line.
    pub lines_in_headers: bool,
    /// What keeps a publisher that was replaced from storing progress.
    pub fence: Fence,
}

/// A record that is odd in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Odd {
    /// Its destination does not exist.
    Missing,
    /// Its destination has a name that topics can't have.
    Unnameable,
    /// Its destination is where the relay keeps its progress.
    Reserved,
    /// Its explicit partition does not exist.
    Nowhere,
    /// It is larger than a topic may say that it takes.
    Large,
}

impl Odd {
    pub(crate) const ALL: [Odd; 5] =
        [Odd::Missing, Odd::Unnameable, Odd::Reserved, Odd::Nowhere, Odd::Large];
}

/// What keeps a publisher that was replaced from storing progress that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fence {
    /// The broker: it stores nothing of it, records neither.
    Broker,
    /// The broker, but for records and for progress of its own, which does not count.
    Claim,
    /// The database: its session has ended when another one leads. Records are not kept out.
    Session,
    /// The database as above, and the broker keeps records out once the newer one has delivered.
    #[cfg_attr(not(feature = "pulsar"), expect(dead_code, reason = "that is Pulsar alone"))]
    SessionAndBroker,
}
