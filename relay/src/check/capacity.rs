//! What the server is able to do, as it is set.

use super::{Finding, ok, problem, warning};
use crate::{config::parts::Parts, route::quoted, source::slot};

/// What the server and the role are able to do.
pub(super) fn capacity(found: &slot::Capacity, has_slot: bool, parts: &Parts) -> Vec<Finding> {
    let (major, minor) = (found.server_version_num / 10_000, found.server_version_num % 10_000);
    let version = format!("version {major}.{minor}");
    let mut findings = vec![if major < 14 {
        problem("PostgreSQL", version, "PostgreSQL 14 or later is needed")
    } else {
        ok("PostgreSQL", version)
    }];
    findings.push(if found.wal_level == "logical" {
        ok("wal_level", "logical".into())
    } else {
        let remedy = "`alter system set wal_level = logical`, and restart the server";
        problem("wal_level", found.wal_level.clone(), remedy)
    });
    findings.push(if found.may_replicate {
        ok("role", "may replicate".into())
    } else {
        let remedy = format!("`alter role {} replication`", quoted(parts.connect.user()));
        problem("role", "may not replicate".into(), remedy)
    });
    let slots =
        format!("{} of {} slots in use", found.replication_slots, found.max_replication_slots);
    findings.push(if has_slot || found.replication_slots < found.max_replication_slots {
        ok("slots", slots)
    } else {
        problem("slots", slots, "raise max_replication_slots, and restart the server")
    });
    let senders = format!("{} of {} WAL senders in use", found.wal_senders, found.max_wal_senders);
    findings.push(if found.wal_senders < found.max_wal_senders {
        ok("senders", senders)
    } else {
        problem("senders", senders, "raise max_wal_senders, and restart the server")
    });
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
    if found.in_recovery {
        let remedy = "add target_session_attrs=read-write to postgres.url";
        findings.push(problem("server", "is a standby".into(), remedy));
    }
    findings
}
