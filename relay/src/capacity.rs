//! What a server must be set to, and a role be able to do, before a relay can stream from it: one list, for
//! `check` in advance and for the halt. Pure.

use crate::{core::halt::Halt, postgres::catalog::slot::Capacity, route::quoted};

/// One thing that lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lack {
    /// What was looked at.
    pub(crate) name: &'static str,
    /// How it is.
    pub(crate) seen: String,
    /// What fixes it.
    pub(crate) remedy: String,
}

/// What of the relay's own is there already, and takes no other place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Own {
    /// Its slot.
    pub(crate) slot: bool,
    /// A relay that streams from it.
    pub(crate) sender: bool,
}

/// All that lacks.
pub(crate) fn lacking(found: &Capacity, own: Own, role: &str) -> Vec<Lack> {
    let lack = |name, is_so: bool, seen: String, remedy: String| {
        is_so.then_some(Lack { name, seen, remedy })
    };
    let full = |used: i64, max: i64| used >= max;
    [
        lack(
            "PostgreSQL",
            found.server_version_num < 140_000,
            version(found),
            "PostgreSQL 14 or later is needed".into(),
        ),
        lack(
            "wal_level",
            found.wal_level != "logical",
            found.wal_level.clone(),
            "`alter system set wal_level = logical`, and restart the server".into(),
        ),
        lack(
            "role",
            !found.may_replicate,
            "may not replicate".into(),
            format!("`alter role {} replication`", quoted(role)),
        ),
        lack(
            "slots",
            !own.slot && full(found.replication_slots, found.max_replication_slots),
            slots(found),
            "drop one that no one needs (`select * from pg_replication_slots`), or raise max_replication_slots, and \
             restart the server"
                .into(),
        ),
        lack(
            "senders",
            !own.sender && full(found.wal_senders, found.max_wal_senders),
            senders(found),
            if found.max_wal_senders == 0 {
                "`alter system set max_wal_senders = 10`, and restart the server".into()
            } else {
                format!(
                    "end one that is not needed (`select pid, usename, application_name, client_addr, state \
                     from pg_stat_replication`), or `alter system set max_wal_senders = {}`, and restart the \
                     server",
                    found.max_wal_senders + 10
                )
            },
        ),
        lack(
            "server",
            found.in_recovery,
            "is a standby, which can't be written to".into(),
            "with several hosts, add target_session_attrs=read-write to postgres.url; with one, name the primary \
             there"
                .into(),
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What of it does not pass by itself: the leader, or whoever has all places, may let go of one.
pub(crate) fn lasting(found: &Capacity, role: &str) -> Vec<Lack> {
    let own = Own { slot: true, sender: found.max_wal_senders > 0 };
    let mut lacks = lacking(found, own, role);
    lacks.retain(|lack| lack.name != "server");
    lacks
}

pub(crate) fn version(found: &Capacity) -> String {
    format!("version {}.{}", found.server_version_num / 10_000, found.server_version_num % 10_000)
}

pub(crate) fn slots(found: &Capacity) -> String {
    format!("{} of {} slots in use", found.replication_slots, found.max_replication_slots)
}

pub(crate) fn senders(found: &Capacity) -> String {
    match found.max_wal_senders {
        0 => "max_wal_senders is 0, so that nothing can be streamed from it".to_owned(),
        max => format!("{} of {max} WAL senders in use", found.wal_senders),
    }
}

/// All of it as one halt; `None` where nothing lacks.
pub(crate) fn halt(lacks: &[Lack]) -> Option<Halt> {
    let seen: Vec<String> = lacks.iter().map(in_words).collect();
    let remedies: Vec<&str> = lacks.iter().map(|l| l.remedy.as_str()).collect();
    (!lacks.is_empty()).then(|| {
        let seen = seen.join(", ");
        let reason =
            format!("{seen}: nothing is published until that is changed, and nothing is lost");
        Halt::new(reason, remedies.join("; "))
    })
}

fn in_words(Lack { name, seen, .. }: &Lack) -> String {
    match *name {
        "role" => "the relay's role may not replicate".to_owned(),
        "wal_level" => format!("the server's wal_level is {seen}"),
        _ => format!("the server: {seen}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn able() -> Capacity {
        Capacity {
            server_version_num: 150_004,
            wal_level: "logical".into(),
            max_replication_slots: 4,
            replication_slots: 4,
            max_wal_senders: 4,
            wal_senders: 1,
            max_slot_wal_keep_size_mb: 100,
            idle_slot_timeout_seconds: None,
            track_activities: true,
            in_recovery: false,
            may_replicate: true,
        }
    }

    #[test]
    fn each_thing_that_lacks_has_its_words_and_what_to_type() {
        let (none, both) = (Own { slot: false, sender: false }, Own { slot: true, sender: true });
        let names = |found: &Capacity, own| -> Vec<_> {
            lacking(found, own, "r").iter().map(|lack| lack.name).collect()
        };
        assert_eq!(halt(&lacking(&able(), both, "r")), None);
        assert_eq!(names(&able(), none), ["slots"]);
        let full = Capacity { wal_senders: 4, ..able() };
        assert_eq!(names(&full, Own { sender: false, ..both }), ["senders"]);
        assert_eq!(names(&full, both), [""; 0], "one of them is the relay's own");
        let without = Capacity { wal_senders: 0, max_wal_senders: 0, ..able() };
        let lacks = lacking(&without, Own { sender: false, ..both }, "r");
        let Halt { reason, remedy } = halt(&lacks).expect("it lacks");
        assert!(reason.contains("max_wal_senders is 0"), "{reason}");
        assert_eq!(remedy, "`alter system set max_wal_senders = 10`, and restart the server");
        let unable = Capacity { wal_level: "replica".into(), may_replicate: false, ..able() };
        let Halt { reason, remedy } = halt(&lacking(&unable, both, "R")).expect("two lack");
        assert_eq!(
            reason,
            "the server's wal_level is replica, the relay's role may not replicate: nothing is \
             published until that is changed, and nothing is lost"
        );
        assert_eq!(
            remedy,
            "`alter system set wal_level = logical`, and restart the server; `alter role \"R\" \
             replication`"
        );
    }
}
