//! What the server is able to do, as it is set.

use super::{Finding, ok, problem, warning};
use crate::{
    capacity::{self, Lack, Own},
    config::parts::Parts,
    postgres::catalog::slot,
};

/// What the server and the role are able to do.
pub(super) fn capacity(found: &slot::Capacity, own: Own, parts: &Parts) -> Vec<Finding> {
    let lacks = capacity::lacking(found, own, parts.connect.user());
    let looked_at = [
        ("PostgreSQL", capacity::version(found)),
        ("wal_level", "logical".into()),
        ("role", "may replicate".into()),
        ("slots", capacity::slots(found)),
        ("senders", capacity::senders(found)),
        ("server", "is no standby".into()),
    ];
    let mut findings: Vec<Finding> = looked_at
        .into_iter()
        .filter(|(name, _)| *name != "server" || lacks.iter().any(|lack| lack.name == *name))
        .map(|(name, seen)| match lacks.iter().find(|lack| lack.name == name) {
            Some(Lack { seen, remedy, .. }) => problem(name, seen.clone(), remedy.clone()),
            None => ok(name, seen),
        })
        .collect();
    if found.max_slot_wal_keep_size_mb < 0 {
        findings.push(warning(
            "WAL kept",
            "without a limit: a relay that is away for long fills the disk".into(),
            "set max_slot_wal_keep_size to what the disk can spare",
        ));
    }
    if let Some(seconds @ 1..) = found.idle_slot_timeout_seconds {
        findings.push(warning(
            "slot kept",
            format!(
                "a slot without a relay for {seconds} s is lost: idle_replication_slot_timeout"
            ),
            "set it to 0, or to longer than the relay may be away",
        ));
    }
    if !found.track_activities {
        findings.push(warning(
            "signs of life",
            "track_activities is off: a standby does not see that a leader hangs".into(),
            "set track_activities = on, for the server or for the relay's role",
        ));
    }
    findings
}
