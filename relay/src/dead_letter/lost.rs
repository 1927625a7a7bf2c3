//! What to say of parked events whose table somebody has dropped. Pure.
//!
//! They are nowhere else as parked: delivery has passed them, and the table was their only place. The
//! rows that they came from are still there, for the relay deletes none of those.

use crate::core::{printable::counted, progress::ParkedRecord};

/// Of what was parked by `before`, how much `now` can't have any more: nothing where it is the same
/// table, for what is deleted in it somebody has decided about.
pub fn lost(before: &ParkedRecord, now: &ParkedRecord) -> Option<ParkedRecord> {
    let events = before.events.saturating_sub(now.events);
    (before.table != now.table && events > 0).then(|| ParkedRecord {
        table: before.table,
        lanes: before.lanes.saturating_sub(now.lanes),
        events,
        ids: before.ids.iter().filter(|id| !now.ids.contains(id)).cloned().collect(),
    })
}

/// How many they are.
pub fn in_words(lost: &ParkedRecord) -> String {
    format!("{} of {}", counted(lost.events, "event"), counted(lost.lanes, "lane"))
}

/// How they are delivered all the same; `ours`: they came from `outbox.events`.
pub fn remedy(lost: &ParkedRecord, ours: bool) -> String {
    let table = if ours { "outbox.events" } else { "the table that they were inserted into" };
    let again = match (ours, lost.ids.is_empty()) {
        (_, true) => {
            format!("insert those of {table} again, with their ids, that are not in their topics")
        }
        (true, false) => format!(
            "insert them again, with their ids: `insert into outbox.events ({COLUMNS}) select \
             {COLUMNS} from outbox.events where id in ({})`",
            quoted(&lost.ids)
        ),
        (false, false) => {
            format!("insert the rows of {table} again whose ids are {}", quoted(&lost.ids))
        }
    };
    let more = lost.events.saturating_sub(lost.ids.len() as u64);
    let more = match (lost.ids.len(), more) {
        (0, _) | (_, 0) => String::new(),
        (_, more) if ours => format!(
            "; and in the same way {more} more whose ids the relay did not keep: those of `{UNPARKED}` that \
             are not in their topics"
        ),
        (_, more) => format!(
            "; and in the same way {more} more whose ids the relay did not keep: those of {table} that \
             are not in their topics"
        ),
    };
    format!(
        "put the rows of outbox.dead_letters back from a backup, if there is one; or, as the events are \
         still in {table} unless somebody deleted them there, {again}{more}. They are published under \
         their own ids, behind later events of their keys, or parked once more. Do it once: this text goes when \
         they are parked again, or with a restart of the relay"
    )
}

/// What is given again; `xid` is the new transaction's, for it is a new row.
const COLUMNS: &str = "id, topic, key, type, payload, headers, partition, created_at";

/// The newest first, for it is those that are lost.
const UNPARKED: &str = "select id, topic, key, created_at from outbox.events e where not exists (select from \
                        outbox.dead_letters d where d.event_id = e.id::text) order by created_at desc";

fn quoted(ids: &[String]) -> String {
    ids.iter().map(|id| format!("'{id}'")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parked(table: u32, events: u64, ids: &[&str]) -> ParkedRecord {
        let ids = ids.iter().map(|id| (*id).to_owned()).collect();
        ParkedRecord { table, lanes: events, events, ids }
    }

    #[test]
    fn what_another_table_does_not_have_is_lost_and_what_this_one_has_no_more_is_not() {
        let before = parked(7, 3, &["a", "b", "c"]);
        assert_eq!(lost(&before, &parked(7, 0, &[])), None, "somebody discarded them");
        assert_eq!(lost(&before, &parked(8, 3, &["a", "b", "c"])), None, "they were put back");
        assert_eq!(lost(&before, &parked(8, 1, &["b"])), Some(parked(7, 2, &["a", "c"])));
        assert_eq!(lost(&parked(7, 0, &[]), &parked(8, 0, &[])), None);
    }

    #[test]
    fn the_remedy_names_the_ids_that_are_known_and_says_how_many_are_not() {
        let few = remedy(&parked(7, 2, &["a", "b"]), true);
        assert!(few.contains("where id in ('a', 'b')`. They"), "{few}");
        assert!(remedy(&parked(7, 5, &["a"]), true).contains("4 more"));
        let mapped = remedy(&parked(7, 1, &["a"]), false);
        assert!(!mapped.contains("outbox.events") && mapped.contains("'a'"), "{mapped}");
        assert!(!remedy(&parked(7, 2, &[]), true).contains("in ()"));
    }
}
