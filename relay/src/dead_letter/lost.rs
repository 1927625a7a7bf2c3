//! What to say of parked events that `outbox.dead_letters` has no more. Pure.
//!
//! Somebody has dropped the table, or another server took over, or a backup was put back, without their rows.
//! They are nowhere else as parked: delivery has passed them. The rows that they came from are still there,
//! for the relay deletes none of those.

use crate::core::{
    printable::counted,
    progress::{PARKED_IDS_MAX, ParkedId, ParkedRecord},
};

/// Of what was parked by `before`, how much the table that was made again does not have. `absent` are those of
/// the ids of `before` that it has no row of, and `there` is how many events are parked in it: an event that is back
/// among many others is not in any list of a few ids, so lists are not compared.
pub fn remade(before: &ParkedRecord, there: u64, absent: Vec<ParkedId>) -> Option<ParkedRecord> {
    let events = before.events.saturating_sub(there).max(absent.len() as u64);
    of(before, events, absent)
}

/// The same where rows of the table were deleted while no one counted. What is released or discarded keeps its row, so
/// that an id without one says that it was deleted; `before` may be older than a release, so that its number says nothing
/// unless its list of ids is full.
pub fn deleted(before: &ParkedRecord, there: u64, absent: Vec<ParkedId>) -> Option<ParkedRecord> {
    let events = match before.ids.len() == PARKED_IDS_MAX && absent.len() == PARKED_IDS_MAX {
        true => before.events.saturating_sub(there).max(absent.len() as u64),
        false => absent.len() as u64,
    };
    of(before, events, absent)
}

/// What was parked by stored progress and by what this process has counted: each may know what the other does not.
pub fn either(stored: Option<&ParkedRecord>, seen: Option<ParkedRecord>) -> Option<ParkedRecord> {
    let Some(mut both) = seen else { return stored.cloned() };
    let Some(stored) = stored else { return Some(both) };
    let more = stored.ids.iter().filter(|id| !both.ids.iter().any(|other| other.is(id)));
    let more: Vec<ParkedId> = more.cloned().collect();
    both.ids.extend(more);
    both.ids.truncate(PARKED_IDS_MAX);
    both.events = both.events.max(stored.events);
    both.lanes = both.lanes.max(stored.lanes);
    Some(both)
}

/// The same where the server has only a beginning of what was parked. A server has what was parked before some moment: where
/// it has one of the last, it has all before that. Only where it has none of these, `there` tells about how
/// many more it lacks.
pub fn cut_off(before: &ParkedRecord, there: u64, absent: Vec<ParkedId>) -> Option<ParkedRecord> {
    // Ids that the list can't hold are not in it, so the last ones may be missing from it.
    let has_the_last = before.ids.len() as u64 == before.events.min(PARKED_IDS_MAX as u64);
    if has_the_last && absent.len() < before.ids.len() {
        let events = absent.len() as u64;
        return of(before, events, absent);
    }
    remade(before, there, absent)
}

fn of(before: &ParkedRecord, events: u64, ids: Vec<ParkedId>) -> Option<ParkedRecord> {
    let lanes = before.lanes.min(events);
    (events > 0).then_some(ParkedRecord { table: before.table, lanes, events, ids })
}

/// How many they are.
pub fn in_words(lost: &ParkedRecord) -> String {
    format!("{} of {}", counted(lost.events, "event"), counted(lost.lanes, "lane"))
}

/// How they are delivered all the same; `ours`: they came from `outbox.events`.
pub fn remedy(lost: &ParkedRecord, relay: &str, ours: bool) -> String {
    let table = if ours { "outbox.events" } else { "the table that they were inserted into" };
    let again = match (ours, lost.ids.is_empty()) {
        (_, true) => {
            format!("insert those of {table} again, with their ids, that are not in their topics")
        }
        (true, false) => format!(
            "insert them again, with their ids: `insert into outbox.events ({COLUMNS}) select \
             {COLUMNS} from outbox.events e where id in ({}) and {} order by created_at, id` (it leaves out an id that \
             several rows have, as any writer may give another's: insert the one that was parked)",
            quoted(&lost.ids),
            unparked(relay)
        ),
        (false, false) => {
            format!("insert the rows of {table} again whose ids are {}", quoted(&lost.ids))
        }
    };
    let more = lost.events.saturating_sub(lost.ids.len() as u64);
    let more = match (lost.ids.len(), more) {
        (0, _) | (_, 0) => String::new(),
        (_, more) if ours => format!(
            "; but before these, for the order of each key, in the same way {more} more that were parked earlier, and \
             whose ids the relay did not keep: those of `select id, topic, key, created_at from outbox.events e \
             where {} order by created_at, id` that are not in their topics",
            unparked(relay)
        ),
        (_, more) => format!(
            "; but before these, for the order of each key, in the same way {more} more that were parked earlier, and \
             whose ids the relay did not keep: those of {table} that are not in their topics"
        ),
    };
    format!(
        "put the rows of outbox.dead_letters back from a backup, if there is one; or, as far as {table} still has the \
         events, {again}{more}. They are published under their own ids, behind later events of their keys, or \
         parked once more. Do it once"
    )
}

/// What is given again; `xid` is the new transaction's, for it is a new row.
const COLUMNS: &str = "id, topic, key, type, payload, headers, partition, created_at";

/// Of rows `e`: what is parked, or was released or discarded, is not to be inserted again. Nor is an id that several
/// rows have, for any writer may give an event the id of another's.
fn unparked(relay: &str) -> String {
    format!(
        "not exists (select from outbox.dead_letters d where d.relay = '{}' and d.event_id = e.id::text) \
         and not exists (select from outbox.events o where o.id = e.id \
             and (o.tableoid, o.ctid) <> (e.tableoid, e.ctid))",
        relay.replace('\'', "''")
    )
}

fn quoted(ids: &[ParkedId]) -> String {
    ids.iter().map(|ParkedId { id, .. }| format!("'{id}'")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parked(events: u64, ids: &[&str]) -> ParkedRecord {
        ParkedRecord { table: 7, lanes: events, events, ids: texts(ids) }
    }

    fn texts(ids: &[&str]) -> Vec<ParkedId> {
        ids.iter().map(|id| ParkedId { id: (*id).to_owned(), place: None, xid: None }).collect()
    }

    #[test]
    fn what_was_deleted_while_no_one_counted_is_told_by_its_id() {
        let before = parked(3, &["a", "b", "c"]);
        assert_eq!(
            deleted(&before, 0, texts(&["a"])),
            Some(parked(1, &["a"])),
            "two were released"
        );
        assert_eq!(deleted(&before, 0, vec![]), None, "all were");
        let many: Vec<String> = (0..PARKED_IDS_MAX).map(|n| n.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(deleted(&parked(50, &many), 0, texts(&many)), Some(parked(50, &many)));
        assert_eq!(either(None, Some(parked(1, &["a"]))), Some(parked(1, &["a"])));
        assert_eq!(
            either(Some(&parked(3, &["a", "c"])), Some(parked(2, &["b", "a"]))),
            Some(parked(3, &["b", "a", "c"]))
        );
    }

    #[test]
    fn what_a_table_that_was_made_again_does_not_have_is_lost() {
        let before = parked(3, &["a", "b", "c"]);
        assert_eq!(remade(&before, 3, vec![]), None, "they were put back");
        assert_eq!(remade(&before, 1, texts(&["a", "c"])), Some(parked(2, &["a", "c"])));
        assert_eq!(remade(&before, 9, texts(&["a"])), Some(parked(1, &["a"])), "others came");
        assert_eq!(remade(&parked(30, &["a"]), 9, vec![]), Some(parked(21, &[])));
        assert_eq!(remade(&parked(0, &[]), 0, vec![]), None);
    }

    #[test]
    fn a_server_that_has_one_of_the_last_has_all_before_it() {
        let ids: Vec<String> = (0..PARKED_IDS_MAX).map(|n| n.to_string()).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let before = parked(30, &ids);
        assert_eq!(cut_off(&before, 9, texts(&["7"])), Some(parked(1, &["7"])));
        assert_eq!(cut_off(&before, 9, texts(&ids)), Some(parked(21, &ids)));
        assert_eq!(cut_off(&before, 9, vec![]), None);
        let before = parked(2, &["a", "b"]);
        assert_eq!(cut_off(&before, 9, texts(&["b"])), Some(parked(1, &["b"])));
    }

    #[test]
    fn where_ids_are_left_out_of_the_list_the_count_tells_as_well() {
        let before = parked(5, &["a"]);
        assert_eq!(cut_off(&before, 1, vec![]), Some(parked(4, &[])));
        assert_eq!(cut_off(&before, 5, vec![]), None);
    }

    #[test]
    fn the_remedy_names_the_ids_that_are_known_and_says_how_many_are_not() {
        let few = remedy(&parked(2, &["a", "b"]), "r", true);
        assert!(few.contains("where id in ('a', 'b') and not exists"), "{few}");
        let alone = "o.id = e.id and (o.tableoid, o.ctid) <> (e.tableoid, e.ctid)";
        assert!(few.contains(alone), "{few}");
        assert!(remedy(&parked(5, &["a"]), "r", true).contains("4 more"));
        let mapped = remedy(&parked(1, &["a"]), "r", false);
        assert!(!mapped.contains("outbox.events") && mapped.contains("'a'"), "{mapped}");
        assert!(!remedy(&parked(2, &[]), "r", true).contains("in ()"));
    }
}
