//! What every session is pinned to, whatever is set on server, database and role.
//!
//! The start-up packet carries the pins, so they hold from the first statement on and stand above
//! `alter role … set` and `alter database … set`. Then the server is asked whether they do: what
//! lies between may have left them out. Used by `sql` and by `source::connect`, for every session
//! that the relay, `check` and the operators' commands open.

use super::error::ConnectError;

/// Names and values; every role may set each, on PostgreSQL 14 and later.
const PINS: &[(&str, &str)] = &[
    // No one else's functions, operators and types stand in for the server's own.
    ("search_path", "pg_catalog,pg_temp"),
    // Each wait has its own limit, and its own reason to be long.
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
    ("default_transaction_read_only", "off"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_deferrable", "off"),
    // A row that a policy hides is an error, not a gap.
    ("row_security", "off"),
    // A parked event must be durable, also where an asynchronous commit is the default.
    ("synchronous_commit", "on"),
    // The text form of values, which keys and payloads are made of.
    ("DateStyle", "ISO"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("bytea_output", "hex"),
    ("extra_float_digits", "3"),
    ("lc_monetary", "C"),
    ("lc_numeric", "C"),
    ("lc_time", "C"),
    ("xmlbinary", "base64"),
    // Questions about the catalog look costly to the planner, and are answered sooner than they are compiled.
    ("jit", "off"),
    // How the server reads and writes SQL.
    ("standard_conforming_strings", "on"),
    ("quote_all_identifiers", "off"),
    ("transform_null_equals", "off"),
    ("exit_on_error", "off"),
    ("client_min_messages", "warning"),
    // The server notices that the relay's end of a line is gone.
    ("wal_sender_timeout", "60s"),
    ("tcp_user_timeout", "60s"),
    ("tcp_keepalives_idle", "30"),
    ("tcp_keepalives_interval", "10"),
    ("tcp_keepalives_count", "3"),
];

/// For the start-up packet's `options`, behind those of the URL: of two values the later holds.
pub(crate) fn options(of_url: Option<&str>) -> String {
    let mut options = of_url.unwrap_or_default().to_owned();
    for (name, value) in PINS {
        // The server splits at spaces.
        options.push_str(&format!(" -c {name}={}", value.replace(' ', "\\ ")));
    }
    options
}

/// The first statement of a session. Its row: the server's process, and the pins that do not hold.
/// It also pins what some servers would refuse in the packet: of other versions, or on systems that
/// can't look whether a client is still there. A statement whose client is gone ends by that.
pub(crate) fn settle() -> String {
    let names: Vec<_> = PINS.iter().map(|(name, _)| format!("'{name}'")).collect();
    format!(
        "select pg_catalog.pg_backend_pid(), \
             (select pg_catalog.string_agg(name, ', ' order by name) \
              from pg_catalog.pg_settings where name in ({}) and source <> 'client'), \
             (select pg_catalog.set_config(name, '0', false) \
              from pg_catalog.pg_settings where name = 'transaction_timeout'), \
             (select pg_catalog.set_config(name, '2s', false) \
              from pg_catalog.pg_settings where name = 'client_connection_check_interval' \
                  and pg_catalog.version() like '%linux%')",
        names.join(", ")
    )
}

/// Reads that row.
pub(crate) fn settled(pid: Option<&str>, loose: Option<&str>) -> Result<i32, ConnectError> {
    if let Some(loose) = loose {
        return Err(ConnectError::permanent(
            format!("the session does not have the settings that were asked for: {}", some(loose)),
            "connect to PostgreSQL itself, not through a pooler, and remove login triggers that \
             change settings",
        ));
    }
    pid.and_then(|pid| pid.parse().ok())
        .ok_or_else(|| ConnectError::transient("the server did not name its process"))
}

/// The first few of a list, and how many more there are.
fn some(names: &str) -> String {
    const SHOWN: usize = 3;
    let names: Vec<_> = names.split(", ").collect();
    let shown = names.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_come_after_the_urls_own_options_and_keep_their_spaces() {
        let options = options(Some("-c statement_timeout=1 -c work_mem=64kB"));
        assert!(options.starts_with("-c statement_timeout=1 -c work_mem=64kB -c "), "{options}");
        assert!(options.contains(" -c statement_timeout=0 "), "{options}");
        assert!(options.contains(r" -c default_transaction_isolation=read\ committed "));
    }

    #[test]
    fn a_session_without_its_pins_is_refused_by_name() {
        assert_eq!(settled(Some("7"), None).expect("settled"), 7);
        let refused = settled(Some("7"), Some("row_security")).expect_err("loose");
        assert!(!refused.is_transient() && refused.to_string().contains("row_security"));
        let many = settled(None, Some("a, b, c, d, e")).expect_err("loose").to_string();
        assert!(many.contains("a, b, c and 2 more"), "{many}");
        assert!(settled(None, None).expect_err("no process").is_transient());
    }
}
