//! What the server may have run out of, by SQLSTATE, and what a person can type. All of it passes, so the
//! relay tries again; no one else will free what is taken.

use super::{conninfo::ConnectSettings, error::named};

/// What is missing, and how it is found and freed, for this role and database; `None` for whatever is no
/// shortage.
pub(crate) fn remedy(sqlstate: &str, settings: &ConnectSettings) -> Option<String> {
    text(sqlstate).map(|text| named(text, settings.database(), settings.user()))
}

/// As [`remedy`], where the server has refused a connection. In other places 55000 means something else.
pub(crate) fn at_connect(sqlstate: &str, settings: &ConnectSettings) -> Option<String> {
    if sqlstate != "55000" {
        return remedy(sqlstate, settings);
    }
    let text = "the database takes no connections: `alter database {database} allow_connections true`, in \
                another database, as its owner or a superuser";
    Some(named(text, settings.database(), settings.user()))
}

/// As [`remedy`], for a statement of a session that is there: no role and no database is named in it.
pub(crate) fn of_a_statement(sqlstate: &str) -> Option<&'static str> {
    text(sqlstate).filter(|text| !text.contains('{'))
}

/// As [`remedy`], by what the server has said: of the limits that 53300 means, this is no role's and no database's.
pub(crate) fn of_senders(error: &str) -> Option<String> {
    let text = "the server has no walsender left. Who has them: `select pid, usename, application_name, backend_type, \
                client_addr, backend_start from pg_stat_activity where backend_type = 'walsender'`; end what is not needed with \
                `select pg_terminate_backend(pid)`, or raise the limit: `alter system set max_wal_senders = 20` (or \
                what you need), and restart the server";
    error.contains("max_wal_senders").then(|| text.to_owned())
}

fn text(sqlstate: &str) -> Option<&'static str> {
    Some(match sqlstate {
        "53100" => {
            "the server's disk is full: free room on it, but delete nothing in pg_wal by hand. What keeps \
             WAL: `select slot_name, active, \
             pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)) as kept from \
             pg_replication_slots order by restart_lsn`; drop a slot only if no one needs it any more"
        }
        "53200" => {
            "the server has no memory left, or no room for more locks. Who has how many: `select pid, \
             locktype, count(*) from pg_locks group by 1, 2 order by 3 desc limit 5`; end a session that \
             holds very many with `select pg_terminate_backend(pid)`, as of advisory locks that no one \
             released; where the server has no room even for that, `kill PID` on its host; or raise max_locks_per_transaction (`alter system set max_locks_per_transaction = \
             256`) and restart the server. Where none holds many, end sessions that use much memory"
        }
        "53300" => {
            "all connections are taken that the server, the database or the role may have \
             (max_connections, connection limit). Who has them: `select pid, usename, \
             application_name, backend_type, state, backend_start from pg_stat_activity order by \
             backend_start`; end what is not needed with `select pg_terminate_backend(pid)`, or raise \
             the limit: `alter role {role} connection limit -1`, `alter database {database} connection limit -1`, or \
             max_connections, and restart the server"
        }
        "53400" => {
            "a limit of the server's configuration is reached. For replication slots: drop one \
             that no one needs any more (`select slot_name, active, wal_status from \
             pg_replication_slots`), or raise max_replication_slots and restart the server. For \
             temp_file_limit: `alter role {role} set temp_file_limit = -1`, as a superuser"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_short_is_named_with_what_to_type() {
        for (sqlstate, words) in [
            ("53100", &["disk is full", "pg_replication_slots"][..]),
            ("53200", &["no memory", "max_locks_per_transaction", "from pg_locks"]),
            ("53300", &["max_connections", "pg_stat_activity", "connection limit -1"]),
            ("53400", &["temp_file_limit = -1", "max_replication_slots"]),
        ] {
            let remedy = text(sqlstate).expect("there is one");
            assert!(words.iter().all(|word| remedy.contains(word)), "{sqlstate}: {remedy}");
            assert!(crate::postgres::error::needs_time(sqlstate), "{sqlstate} is tried again");
        }
        assert_eq!(text("57P03"), None, "it starts");
    }
}
