//! Pieces of SQL that the statements of a repair share.

/// Whether the transaction that wrote the row shows as committed, or aborted.
pub(super) fn visible(snapshot: &str) -> String {
    let snapshot = literal(snapshot);
    format!("pg_catalog.pg_visible_in_snapshot(t.xid, {snapshot}::pg_catalog.pg_snapshot)")
}

pub(super) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// As text, whatever `standard_conforming_strings` is.
pub(super) fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// The bytes of a value that is written as text, its spaces included; null stays null.
pub(super) fn hexadecimal(value: &str) -> String {
    format!(
        "case when {value} is not null then pg_catalog.encode(pg_catalog.convert_to( \
         pg_catalog.concat({value}), 'SQL_ASCII'), 'hex') end"
    )
}

/// A name from the catalogs, as it can be read and typed. Where the server does not know what its bytes are, and so can't
/// send them, each byte that is not ASCII is a question mark.
pub(super) fn shown_name(name: &str) -> String {
    format!(
        "case when {IS_ODD_SERVER} then pg_catalog.regexp_replace({name}, '[^ -~]', '?', 'g') else {name} end"
    )
}

/// Whether a name from the catalogs can't be sent as it is.
pub(super) fn is_odd(name: &str) -> String {
    format!("({IS_ODD_SERVER} and {name} ~ '[^ -~]')")
}

const IS_ODD_SERVER: &str = "pg_catalog.current_setting('server_encoding') = 'SQL_ASCII'";

/// The first transaction id that is still to come.
pub(super) const NOW: &str = "pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())";

/// Whether the transaction `xid` (an `xid8`) of this cluster has written something after the snapshot
/// `lower`. An id that is still to come is one of another cluster, or of long ago.
pub(super) fn written_after(xid: &str, lower: &str) -> String {
    format!(
        "({xid} < {NOW} and not pg_catalog.pg_visible_in_snapshot( \
             {xid}, {}::pg_catalog.pg_snapshot))",
        literal(lower)
    )
}

/// An `xid`, which has no epoch, as the `xid8` that is nearest to `near`.
pub(super) fn full_xid(xid: &str, near: &str) -> String {
    let near = format!("{near}::pg_catalog.text::pg_catalog.int8");
    let short = format!("{xid}::pg_catalog.text::pg_catalog.int8");
    // Their distance, from -2^31 to 2^31.
    format!(
        "greatest({near} + ({short} - {near} % 4294967296 + 6442450944) % 4294967296 - 2147483648, \
         3)::pg_catalog.text::pg_catalog.xid8"
    )
}
