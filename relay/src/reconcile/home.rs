//! What is said where progress is missing, or another cluster's, by where it is kept: at the broker, or in
//! the table `outbox.progress`, which copies of a database bring along. Pure.

use super::facts::Facts;
use crate::core::halt::Halt;

/// Nothing is stored.
pub(super) fn unknown(facts: &Facts<'_>) -> String {
    match (facts.progress_in_database, facts.stream) {
        (true, _) => {
            "outbox.progress has no row of this relay, so the relay can't know what was published before".to_owned()
        }
        (false, Some(stream)) => format!(
            "the stream {stream} has no progress record, because it was purged or recreated, or has deleted what is \
             old, or this is another server: the relay can't know what was published before, and that may be deleted too"
        ),
        (false, None) => {
            "the broker has no progress record, because its progress topic was deleted, emptied or recreated, or \
             these are other brokers: the relay can't know what was published before"
                .to_owned()
        }
    }
}

/// Nothing is stored, there is no slot, and this relay has delivered before.
pub(super) fn lost(facts: &Facts<'_>) -> Halt {
    let (found, remedy) = match (facts.progress_in_database, facts.stream) {
        (true, _) => (
            "outbox.progress has no row of this relay, which has delivered before: its rows were \
             deleted"
                .to_owned(),
            "put its rows back from a backup",
        ),
        (false, Some(stream)) => (
            format!(
                "the stream {stream} has no progress record of this relay, which has delivered before: it was \
                 purged or recreated, or has deleted what is old, or this is another server"
            ),
            "connect the relay to the server that has its progress",
        ),
        (false, None) => (
            "the broker has no progress record of this relay, which has delivered before: its progress \
             topic was deleted, emptied or recreated, or these are other brokers"
                .to_owned(),
            "connect the relay to the brokers that have its progress",
        ),
    };
    Halt::new(
        format!(
            "slot {} does not exist, and {found}. Events committed before {} may be unpublished",
            facts.slot_name, facts.identity.flush_lsn
        ),
        format!(
            "{remedy}; or, {}, which it then does by itself; or, to publish from the table what was created since \
             TIME, run `outbox-relay resume --at table --since TIME`; or, to leave out what is not published, make a new \
             slot and publish what is committed from then on, run `outbox-relay resume --at now`",
            every_row(facts)
        ),
    )
}

/// How the relay comes to publish all that is in the table, as at a first start. That it has delivered
/// before would halt it.
pub(super) fn every_row(facts: &Facts<'_>) -> String {
    every_row_of(facts.relay, facts.start_with_all, facts.has_delivered)
}

/// As [`every_row`].
pub(super) fn every_row_of(relay: &str, start_with_all: bool, has_delivered: bool) -> String {
    let setting = match start_with_all {
        true => "",
        false => ", set postgres.start to \"all\" and restart the relay",
    };
    let forget = match has_delivered {
        true => format!(
            ", as the tables' owner `delete from outbox.relay_keys where relay = '{relay}'`"
        ),
        false => String::new(),
    };
    format!("to publish every row of the table, those again that were published{setting}{forget}")
}

/// What to type in a copy of a database that is to have a life of its own, under the same name.
pub(super) fn forget(facts: &Facts<'_>) -> String {
    match facts.progress_in_database {
        true => format!(
            ", or, to have it begin as if it had never run here, stop it, and as the tables' owner \
             `delete from outbox.progress where relay = '{0}'` and `delete from outbox.relay_keys where \
             relay = '{0}'`{1}",
            facts.relay,
            match facts.start_with_all {
                true => {
                    ": it then publishes every row that is in the tables, unless postgres.start is \"now\""
                }
                false => "",
            }
        ),
        false => String::new(),
    }
}
