//! What a person can do about a row that the server can't put into words: its walsender fails at it each
//! time, and so may a repair that reads it from its table. Pure.

use crate::{
    causes,
    postgres::error::needs_time,
    repair::ReadError,
    route::{Mapping, TableName, quoted},
};

/// SQLSTATE query_canceled.
const CANCELLED: &str = "57014";
/// A limit of the server's program, a value that is not as its type wants it, an internal error, and what a
/// type of someone else's raises.
const OF_A_ROW: [&str; 5] = ["54", "22", "XX", "0A", "P0"];

/// Whether the walsender may fail at the same place each time. What is too large for its memory is an internal
/// error or a limit of its program, and not a shortage. What a person cancelled says nothing of that.
pub(super) fn may_be(code: &str) -> bool {
    let was_cancelled = code == CANCELLED;
    !code.is_empty() && !was_cancelled && (!needs_time(code) || code.starts_with("XX"))
}

/// With what to type if it stays so.
pub(super) fn of_stream(
    error: &dyn std::error::Error,
    slot: &str,
    tables: &[TableName],
    id: &str,
) -> anyhow::Error {
    anyhow::anyhow!(
        "{error}. Nothing is lost, and everything waits: the relay tries again. If it stays so, the \
         server can't decode what comes next, as a row of {} that is about 1 GB as text, or, before PostgreSQL 16, a \
         WAL message of 1 GB, which any role can write. First find the \
         rows that it can't read from the table either: {} names each; make these smaller with an update. \
         If it was a message, there are no such rows. Then drop the slot: {}. The relay makes a new one and publishes from the table what this one would \
         have sent, but for what is too large, which it parks; or it halts with the interval",
        named(tables),
        find(tables, id),
        drop_in_use(slot)
    )
}

/// SQLSTATE undefined_file, and the name of a segment in the server's words, whose language doesn't matter.
pub(super) fn lacks_wal(code: &str, message: &str) -> bool {
    let is_segment = |word: &str| word.len() == 24 && word.chars().all(|c| c.is_ascii_hexdigit());
    code == "58P01" && message.split(|c: char| !c.is_ascii_alphanumeric()).any(is_segment)
}

/// The server calls the slot reserved all the same, so no start would see that it is lost.
pub(super) fn without_wal(error: &dyn std::error::Error, slot: &str) -> anyhow::Error {
    anyhow::anyhow!(
        "{error}. Nothing is lost, and everything waits: a file of the server's WAL that the slot {slot} needs is \
         gone, as after someone has deleted it, or pg_resetwal. If it can be put back into pg_wal, do that. \
         Otherwise drop the slot: {}. The relay makes a new one and publishes from the table what this one would \
         have sent; or it halts with the interval",
        drop_in_use(slot)
    )
}

/// The same of a repair that reads the tables; `None` where it is not a row that it fails at.
pub(super) fn of_table(error: &ReadError, mapping: &Mapping) -> Option<anyhow::Error> {
    let ReadError::Database(source) = error else { return None };
    let code = source.code()?.code();
    OF_A_ROW.iter().any(|class| code.starts_with(class)).then(|| {
        let error = causes::of(error);
        let tables = mapping.tables();
        anyhow::anyhow!(
            "{error}. Nothing is lost, and everything waits: the relay tries again. If it stays so, the \
             server can't read a row of {}, as one that is about 1 GB as text: {} names each such row. Make it \
             smaller with an update, and the relay continues by itself",
            named(tables),
            find(tables, mapping.id_column())
        )
    })
}

fn named(tables: &[TableName]) -> String {
    tables.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// What a row takes is not known before it is read, for it may be compressed: so each is read, by itself.
fn find(tables: &[TableName], id: &str) -> String {
    let id = quoted(id);
    let look = |table: &TableName| {
        let (table, text) = (table.to_string(), table.to_string().replace('\'', "''"));
        format!(
            "for r in select tableoid as t, ctid as c, {id}::text as id from {table} loop \
             begin perform octet_length(e::text) from {table} e where e.tableoid = r.t and e.ctid = r.c; \
             exception when others then raise warning '% of %: %', r.id, '{text}', sqlerrm; end; end loop; "
        )
    };
    let looks = tables.iter().map(look).collect::<String>();
    format!("`do $$ declare r record; begin {looks}end $$`")
}

/// The relay takes the slot again and again, so whoever has it is ended until it can be dropped.
fn drop_in_use(slot: &str) -> String {
    format!(
        "`do $$ begin loop begin perform pg_drop_replication_slot('{slot}'); exit; \
         exception when object_in_use then perform pg_terminate_backend(active_pid, 1000) \
         from pg_replication_slots where slot_name = '{slot}'; end; end loop; end $$` (as a superuser or the \
         relay's role, also while the relay runs)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::decoder::StreamError;

    #[test]
    fn a_segment_that_is_gone_is_told_from_another_file() {
        let gone = "das angeforderte WAL-Segment 00000001000000000000000A wurde schon entfernt";
        assert!(lacks_wal("58P01", gone));
        assert!(!lacks_wal("58P01", "could not access file \"$libdir/odd\": No such file"));
        assert!(!lacks_wal("57P01", gone));
    }

    #[test]
    fn what_the_server_can_not_decode_is_told_with_the_tables_and_what_to_type() {
        for (code, told) in
            [("54000", true), ("22021", true), ("XX000", true), ("53400", false), ("57P01", false)]
        {
            assert_eq!(may_be(code), told, "{code}");
        }
        let table = TableName { schema: "app".into(), table: "it's".into() };
        let error = StreamError::Server { code: "XX000".into(), message: "invalid size".into() };
        let error = of_stream(&error, "s", &[table], "id").to_string();
        let find = r#"raise warning '% of %: %', r.id, 'app."it''s"', sqlerrm"#;
        for word in ["invalid size", "Nothing is lost", "pg_drop_replication_slot('s')", find] {
            assert!(error.contains(word), "{word:?} is not in: {error}");
        }
    }
}
