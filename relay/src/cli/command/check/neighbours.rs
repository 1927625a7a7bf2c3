//! Slots of others: what they keep fills the disk of everybody, and what the server waits for holds back all.

use super::{Finding, problem, warning};
use crate::{
    postgres::catalog::{
        kept::Kept,
        slot::{IdleSlot, SlotState},
        standby_slots::{self, StandbySlot},
    },
    state::status::approximate,
};

/// Named, at most; the rest are counted.
const NAMED_MAX: usize = 5;

/// Slots that no one reads from.
pub(super) fn idle(slots: &[IdleSlot]) -> Option<Finding> {
    let first = slots.first()?;
    let named: Vec<String> = slots.iter().take(NAMED_MAX).map(in_words).collect();
    let more = match slots.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    Some(warning(
        "other slots",
        format!("nothing reads from {}{more}", named.join(", ")),
        format!(
            "start what reads from them, such as a relay that is stopped; drop only what is not needed any more, as a \
             superuser or a role with REPLICATION: select pg_drop_replication_slot('{}')",
            first.name
        ),
    ))
}

/// An open transaction for which the relay's slot keeps WAL that it has confirmed.
pub(super) fn keeping(kept: &Kept, slot: &str) -> Finding {
    let (seen, remedy) = kept.in_words(slot);
    warning("WAL kept", seen, remedy)
}

/// Standbys that the server waits for before it sends the relay anything, and that are away. `ours` is the
/// relay's slot; where there is none yet, it will be made with `failover`.
pub(super) fn awaited(slots: &[StandbySlot], ours: Option<&SlotState>) -> Option<Finding> {
    if ours.is_some_and(|slot| slot.failover != Some(true)) {
        return None;
    }
    let (who, remedy) = standby_slots::away(slots)?;
    let seen = format!(
        "synchronized_standby_slots names {who}: PostgreSQL sends the relay nothing until that standby has it"
    );
    Some(problem("standbys", seen, remedy))
}

fn in_words(slot: &IdleSlot) -> String {
    let bytes = u64::try_from(slot.retained_bytes).unwrap_or_default();
    let of = slot.database.as_ref().map_or(String::new(), |database| format!(" of {database}"));
    format!("{}{of}, which keeps {} of WAL", slot.name, approximate(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_idle_slot_is_named_with_what_it_keeps() {
        assert!(idle(&[]).is_none());
        let slot = |n: i64| IdleSlot {
            name: format!("outbox_{n}"),
            database: (n != 1).then(|| "app".to_owned()),
            retained_bytes: n << 30,
        };
        let found = idle(&[slot(20), slot(1)]).expect("two");
        let seen = "nothing reads from outbox_20 of app, which keeps 20 GiB of WAL, outbox_1, which \
                    keeps 1024 MiB of WAL";
        assert_eq!(found.seen, seen);
        assert!(found.remedy.ends_with("select pg_drop_replication_slot('outbox_20')"));
        let many: Vec<_> = (1..=7).map(slot).collect();
        assert!(idle(&many).expect("seven").seen.ends_with(", and 2 more"));
    }
}
