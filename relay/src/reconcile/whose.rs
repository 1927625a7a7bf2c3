//! Whose the stored progress is, before it is compared with anything. Pure.

use super::{halts::drop_slot, home};
use crate::{
    core::{
        halt::Halt,
        identity::SystemIdentity,
        progress::{Progress, ProgressError},
        progress_home::ProgressHome,
    },
    postgres::catalog::slot::SlotState,
};

/// What is stored at the broker under this relay's name, and what the database knows of it.
#[derive(Debug)]
pub struct Claims<'a> {
    /// The relay's name.
    pub relay: &'a str,
    /// Where that is stored.
    pub home: &'a ProgressHome,
    /// Whether a first start publishes the rows that are there already.
    pub start_with_all: bool,
    /// The newest that carries this relay's seal.
    pub own: Option<Progress>,
    /// The newest that does not, if it is newer.
    pub stranger: Option<Result<Progress, ProgressError>>,
    /// Progress of this relay was stored before, says the database.
    pub has_delivered: bool,
    /// Slot of the settings.
    pub slot_name: &'a str,
    /// The slot, if it exists.
    pub slot: Option<&'a SlotState>,
    /// The database that the connection leads to.
    pub database: &'a str,
    /// The cluster, from IDENTIFY_SYSTEM.
    pub identity: &'a SystemIdentity,
}

/// The progress that counts.
#[derive(Debug, PartialEq, Eq)]
pub struct Believed {
    /// `None` when nothing of it is stored.
    pub progress: Option<Progress>,
    /// What a person should hear of.
    pub remark: Option<&'static str>,
}

const IGNORED: &str = "someone else has stored a record where this relay keeps its progress: it does not \
                       count. Only the relay's account may have the right to write there";
const ADOPTED: &str = "stored progress has no seal that this relay knows, because an older version wrote it or outbox.relay_keys was \
     emptied: it is taken over, once";

/// Decides what counts. What another stored never does, but for two cases in which the relay only
/// halts because of it, or takes over what a version without seals has stored. What no version can have
/// stored is ignored also by a relay that has delivered nothing yet.
///
/// # Errors
/// [`Halt`]: a person must decide.
pub fn believe(claims: Claims<'_>) -> Result<Believed, Halt> {
    let Claims { relay, home, start_with_all, own, stranger, has_delivered, .. } = claims;
    let Claims { slot_name, slot, database, identity, .. } = claims;
    let is_elsewhere = slot.is_some_and(|slot| slot.database.as_deref() != Some(database));
    let believed = |progress, remark| Ok(Believed { progress, remark });
    match (own, stranger) {
        (own, None) => believed(own, None),
        // Two relays of one name would fence each other in turns.
        (Some(_), Some(Ok(other))) if is_of_another(&other, identity) => Err(Halt::new(
            format!(
                "a relay of the cluster with system identifier {} has stored progress under this \
                 relay's name since this one did: whoever starts would fence the other. Nothing of \
                 this relay's is lost",
                other.system_id
            ),
            "give the other relay another name and stop it; then run `outbox-relay resume --at \
             progress`, which continues after what this relay has delivered",
        )),
        (own @ Some(_), Some(_)) => believed(own, Some(IGNORED)),
        // What it belongs to is named when the two are compared.
        (None, Some(Ok(other)))
            if is_of_another(&other, identity) || other.slot != slot_name || is_elsewhere =>
        {
            believed(Some(other), None)
        }
        // A slot is no writer's to make: with it, this is a relay that was upgraded.
        (None, Some(Ok(old))) if !has_delivered && slot.is_some() => {
            believed(Some(old), Some(ADOPTED))
        }
        (None, Some(Err(ProgressError::Unreadable(_)))) if !has_delivered => {
            believed(None, Some(IGNORED))
        }
        (None, Some(_)) => {
            let slot = slot.map(|_| slot_name);
            Err(strangers_alone(relay, home, slot, has_delivered, start_with_all))
        }
    }
}

/// Only another's record is there. It may be what an older version stored, or a relay with another key.
fn strangers_alone(
    relay: &str,
    ProgressHome { name, guard, empty, is_outside, has_events }: &ProgressHome,
    slot: Option<&str>,
    has_delivered: bool,
    start_with_all: bool,
) -> Halt {
    let leave = format!("{guard}; then");
    let (likely, cause) = match (slot, has_delivered, *is_outside) {
        (None, false, true) => (
            "most likely the database was recreated, and the record is left from the old one. Otherwise ",
            "the database was recreated",
        ),
        _ => ("", "no relay of this name has published events of this database"),
    };
    // Removed first: an unsealed record beside a slot, and no row of relay_keys, looks like an older version's.
    let every_row = |slot: &str| {
        format!(
            "; or, if {name} has lost events that were not read yet, as by a roll-up or a purge, which \
             `--at slot` does not publish again, {empty}; then, {}, and drop the slot: {}",
            home::every_row_of(relay, start_with_all, has_delivered),
            drop_slot(slot)
        )
    };
    let at_now = "to make a new slot and publish what is committed from then on, run `outbox-relay resume \
                  --at now`";
    Halt::new(
        format!(
            "{name} holds a record under this relay's name that this relay did not store, and no record that \
             it did store: {likely}the relay can't know which events are published"
        ),
        match (slot, has_delivered) {
            (Some(slot), _) => format!(
                "{leave}, to publish everything after the slot's position, run `outbox-relay resume \
                 --at slot`{}",
                if *has_events && has_delivered { every_row(slot) } else { String::new() }
            ),
            (None, true) => format!(
                "if the relay's row of outbox.relay_keys was changed, put it back from a backup; otherwise \
                 {leave}, {}, and {empty}; or, {at_now}",
                home::every_row_of(relay, start_with_all, has_delivered)
            ),
            (None, false) => format!(
                "if {cause}, {empty}: the relay then starts as if the record had never \
                 been there. If someone else stored the record, first {guard}. If an older version of the relay \
                 has published events of this database, those that are still in the table may be published \
                 again by this; or, {at_now}"
            ),
        },
    )
}

fn is_of_another(progress: &Progress, identity: &SystemIdentity) -> bool {
    !progress.system_id.is_empty() && progress.system_id != identity.system_id
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{lsn::Lsn, position::Position};

    fn progress(position: u64) -> Progress {
        Progress {
            system_id: "7".into(),
            position: Some(Position::UpTo(Lsn::new(position))),
            ..Progress::before_first_start("outbox")
        }
    }

    fn topic() -> ProgressHome {
        ProgressHome {
            name: "the progress topic".into(),
            guard: "leave Write to the relay".into(),
            empty: "delete the topic: `kafka-topics --delete`".into(),
            is_outside: true,
            has_events: false,
        }
    }

    fn with(
        own: Option<Progress>,
        stranger: Option<Progress>,
        has_delivered: bool,
        slot: bool,
    ) -> Result<Believed, Halt> {
        in_database("app", own, stranger, has_delivered, slot)
    }

    fn in_database(
        database: &str,
        own: Option<Progress>,
        stranger: Option<Progress>,
        has_delivered: bool,
        slot: bool,
    ) -> Result<Believed, Halt> {
        let identity =
            SystemIdentity { system_id: "7".into(), timeline: 1, flush_lsn: Lsn::new(2000) };
        let there = super::super::tests::slot(1000);
        believe(Claims {
            relay: "orders",
            home: &topic(),
            start_with_all: true,
            own,
            stranger: stranger.map(Ok),
            has_delivered,
            slot_name: "outbox",
            slot: slot.then_some(&there),
            database,
            identity: &identity,
        })
    }

    #[test]
    fn what_another_stored_since_does_not_count() {
        let found = with(Some(progress(1000)), Some(progress(1500)), true, true).expect("ours");
        assert_eq!(found.progress, Some(progress(1000)));
        assert_eq!(found.remark, Some(IGNORED));
    }

    #[test]
    fn another_clusters_relay_that_took_the_name_over_halts_this_one() {
        let other = Progress { system_id: "8".into(), ..progress(5) };
        let halt = with(Some(progress(1000)), Some(other.clone()), true, true).expect_err("halts");
        assert!(halt.reason.contains('8') && halt.remedy.contains("--at progress"), "{halt}");
        let first = with(None, Some(other.clone()), false, false).expect("compared later");
        assert_eq!(first.progress, Some(other));
    }

    #[test]
    fn progress_without_a_seal_is_taken_over_from_an_older_version_once_and_with_its_slot() {
        let old = with(None, Some(progress(1000)), false, true).expect("an upgrade");
        assert_eq!((old.progress, old.remark), (Some(progress(1000)), Some(ADOPTED)));
        let namesake = in_database("other", None, Some(progress(1000)), false, true);
        assert_eq!(namesake.expect("compared later").remark, None, "its slot is elsewhere");
        for (has_delivered, slot, command) in
            [(true, true, "--at slot"), (true, false, "--at now"), (false, false, "--at now")]
        {
            let halt =
                with(None, Some(progress(9)), has_delivered, slot).expect_err("a stranger's");
            assert!(halt.remedy.contains(command), "{halt}");
            let lossless = ["--at slot", "delete the topic: `kafka-topics --delete`"];
            let first = lossless.iter().filter_map(|way| halt.remedy.find(way)).min();
            assert!(first <= halt.remedy.find(command), "what loses nothing comes first: {halt}");
        }
    }

    #[test]
    fn where_events_are_lost_with_progress_the_way_that_publishes_every_row_is_named_too() {
        let told = |has_events| {
            let home = ProgressHome { has_events, ..topic() };
            strangers_alone("orders", &home, Some("outbox"), true, true).remedy
        };
        assert!(!told(false).contains("every row"), "{}", told(false));
        let remedy = told(true);
        let steps =
            ["--at slot`", "delete the topic", "delete from outbox.relay_keys", "drop_repl"];
        let places = steps.map(|step| remedy.find(step).unwrap_or_else(|| panic!("{remedy}")));
        assert!(places.is_sorted(), "{remedy}");
    }

    #[test]
    fn before_anything_is_delivered_what_is_no_progress_record_is_ignored_and_what_may_be_one_halts()
     {
        let identity =
            SystemIdentity { system_id: "7".into(), timeline: 1, flush_lsn: Lsn::new(2000) };
        let claims = |stranger: &[u8], has_delivered| {
            believe(Claims {
                relay: "orders",
                home: &topic(),
                start_with_all: true,
                own: None,
                stranger: Some(Progress::decode(stranger)),
                has_delivered,
                slot_name: "outbox",
                slot: None,
                database: "app",
                identity: &identity,
            })
        };
        for garbage in [&b"{}"[..], b"", b"\xff", b"{\"version\":4}"] {
            let found = claims(garbage, false).expect("a first start");
            assert_eq!(found, Believed { progress: None, remark: Some(IGNORED) });
            assert!(claims(garbage, true).is_err(), "its own progress is gone");
        }
        let halt = claims(b"{\"version\":99}", false).expect_err("a later version's, perhaps");
        assert!(halt.remedy.contains("had never been there"), "{halt}");
        assert!(halt.reason.contains("most likely the database was recreated"), "{halt}");
    }
}
