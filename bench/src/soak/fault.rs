//! What goes wrong, by kind.

use std::fmt;

use rand::{rngs::StdRng, seq::SliceRandom};
use serde::{Serialize, Serializer};

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    LeaderKilled,
    BothRelaysKilled,
    LeaderStopped,
    LeaderFrozen,
    BrokerKilled,
    BrokerFrozen,
    PostgresRestarted,
    PostgresCut,
    PostgresFrozen,
    PostgresSlow,
    BrokerCut,
    BrokerUnreachable,
    BrokerLineFrozen,
    BrokerSlow,
    SlotDropped,
    LargeTransaction,
}

impl Fault {
    const ALL: [Fault; 16] = [
        Fault::LeaderKilled,
        Fault::BothRelaysKilled,
        Fault::LeaderStopped,
        Fault::LeaderFrozen,
        Fault::BrokerKilled,
        Fault::BrokerFrozen,
        Fault::PostgresRestarted,
        Fault::PostgresCut,
        Fault::PostgresFrozen,
        Fault::PostgresSlow,
        Fault::BrokerCut,
        Fault::BrokerUnreachable,
        Fault::BrokerLineFrozen,
        Fault::BrokerSlow,
        Fault::SlotDropped,
        Fault::LargeTransaction,
    ];

    const fn name(self) -> &'static str {
        match self {
            Fault::LeaderKilled => "kill -9 of the leader",
            Fault::BothRelaysKilled => "kill -9 of both relays",
            Fault::LeaderStopped => "SIGTERM to the leader",
            Fault::LeaderFrozen => "the leader frozen, deposed and thawed",
            Fault::BrokerKilled => "kill -9 of the broker",
            Fault::BrokerFrozen => "the broker frozen",
            Fault::PostgresRestarted => "PostgreSQL stopped at once and restarted",
            Fault::PostgresCut => "connections to PostgreSQL cut",
            Fault::PostgresFrozen => "the line to PostgreSQL frozen",
            Fault::PostgresSlow => "the line to PostgreSQL slow",
            Fault::BrokerCut => "connections to the broker cut",
            Fault::BrokerUnreachable => "the broker refuses connections",
            Fault::BrokerLineFrozen => "the line to the broker frozen",
            Fault::BrokerSlow => "the line to the broker slow",
            Fault::SlotDropped => "the slot dropped",
            Fault::LargeTransaction => "kill -9 within a transaction of 30,000 rows",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Fault {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Every kind once.
pub(super) fn shuffled(random: &mut StdRng) -> Vec<Fault> {
    let mut all = Fault::ALL.to_vec();
    all.shuffle(random);
    all
}
