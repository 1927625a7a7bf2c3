//! Why there is no connection, sorted by what the caller must do.

use std::time::Duration;

use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::ErrorFields;

/// Any error of a library below, kept as the cause.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How it begins where a server is silent.
const LATE: &str = "no answer within";

/// No connection was made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// It may work later: wait, then try again. The server starts up, has no connection left,
    /// can't be reached, or isn't the kind of server asked for.
    #[error("{what}")]
    Transient {
        /// With the host; several hosts are told of one after another.
        what: String,
        /// The server's code, if it was the server that refused.
        sqlstate: Option<String>,
        /// The library's error.
        #[source]
        source: Option<BoxError>,
    },
    /// Trying again won't help before a person has corrected it: a wrong password, an unknown
    /// database, a certificate that is not trusted.
    #[error("{what}; {remedy}")]
    Permanent {
        /// With the host; several hosts are told of one after another.
        what: String,
        /// What corrects it.
        remedy: String,
        /// The server's code, if it was the server that refused.
        sqlstate: Option<String>,
        /// The library's error.
        #[source]
        source: Option<BoxError>,
    },
}

impl ConnectError {
    pub(crate) fn transient(what: impl Into<String>) -> Self {
        ConnectError::Transient { what: what.into(), sqlstate: None, source: None }
    }

    pub(crate) fn permanent(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        ConnectError::Permanent {
            what: what.into(),
            remedy: remedy.into(),
            sqlstate: None,
            source: None,
        }
    }

    /// Nothing came in time.
    pub(crate) fn late(limit: Duration) -> Self {
        ConnectError::transient(format!("{LATE} {} s", limit.as_secs()))
    }

    /// Of what came late, where the server had accepted the connection: what may hold it up.
    pub(crate) fn during_login(self) -> Self {
        match self {
            ConnectError::Transient { what, sqlstate, source } if what.starts_with(LATE) => {
                let what = format!(
                    "{what} (connect_timeout): the server accepted the connection, and did not finish the login. On \
                     PostgreSQL 17 and later an event trigger on login may hang: `select evtname from \
                     pg_event_trigger where evtevent = 'login'` names it, and `alter event trigger … disable` ends \
                     that. If no role can log in, someone waits to lock a catalog that each login reads: on the \
                     server's host, `ps ax | grep 'postgres.*waiting'` shows that process, and `kill` with its number \
                     ends it (never `kill -9`)"
                );
                ConnectError::Transient { what, sqlstate, source }
            }
            other => other,
        }
    }

    /// An I/O error while doing `doing`: TLS's verdicts stay, everything else may pass.
    pub(crate) fn io(doing: &str, error: std::io::Error) -> Self {
        let what = format!("{doing}: {error}");
        match super::tls::verdict(&error) {
            Some(verdict) => ConnectError::Permanent {
                what,
                remedy: super::tls::remedy(verdict).to_owned(),
                sqlstate: None,
                source: Some(error.into()),
            },
            None => ConnectError::Transient { what, sqlstate: None, source: Some(error.into()) },
        }
    }

    /// What the server said, sorted by its SQLSTATE.
    pub(crate) fn server(error: &ServerError) -> Self {
        let (what, sqlstate) = (error.to_string(), Some(error.sqlstate.clone()));
        match remedy(error) {
            Some(remedy) => {
                ConnectError::Permanent { what, remedy: remedy.to_owned(), sqlstate, source: None }
            }
            None => ConnectError::Transient { what, sqlstate, source: None },
        }
    }

    /// The same, with what is to be typed naming the role and the database; for a `session`, the right
    /// that lacks is the database's own.
    pub(crate) fn naming(mut self, database: &str, role: &str, session: bool) -> Self {
        if let ConnectError::Permanent { remedy, sqlstate, .. } = &mut self {
            if session && sqlstate.as_deref() == Some("42501") {
                "`grant connect on database {database} to {role}`".clone_into(remedy);
            }
            *remedy = named(remedy, database, role);
        }
        self
    }

    /// Whether it was TLS that failed, not the network or PostgreSQL.
    pub(crate) fn is_tls_verdict(&self) -> bool {
        let ConnectError::Permanent { source: Some(source), .. } = self else { return false };
        source.downcast_ref().and_then(super::tls::verdict).is_some()
    }

    /// Whether to wait and try again.
    pub fn is_transient(&self) -> bool {
        matches!(self, ConnectError::Transient { .. })
    }

    /// The server's code, if it was the server that refused.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            ConnectError::Transient { sqlstate, .. } | ConnectError::Permanent { sqlstate, .. } => {
                sqlstate.as_deref()
            }
        }
    }

    /// The same, with `host` named.
    pub(crate) fn at(mut self, host: &str) -> Self {
        let (ConnectError::Transient { what, .. } | ConnectError::Permanent { what, .. }) =
            &mut self;
        *what = format!("{host}: {what}");
        self
    }

    /// One error for two hosts that both failed. One host that may come back is reason to wait.
    pub(crate) fn and(self, other: ConnectError) -> Self {
        let (mut kept, told) = match (self.is_transient(), other.is_transient()) {
            (false, true) => (other, self),
            _ => (self, other),
        };
        let (ConnectError::Transient { what, .. } | ConnectError::Permanent { what, .. }) =
            &mut kept;
        *what = format!("{what}; {told}");
        kept
    }
}

/// An ErrorResponse of the server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}{}{}", in_brackets(.sqlstate), .detail.as_ref().map_or(String::new(), |d| format!(": {d}")))]
pub struct ServerError {
    /// Five characters.
    pub sqlstate: String,
    /// The server's primary message, in its language.
    pub message: String,
    /// The server's detail.
    pub detail: Option<String>,
}

impl ServerError {
    /// Reads the fields; what the server left out stays empty.
    pub(crate) fn read(mut fields: ErrorFields<'_>) -> std::io::Result<Self> {
        let mut error =
            ServerError { sqlstate: String::new(), message: String::new(), detail: None };
        while let Some(field) = fields.next()? {
            // Before the start-up is over the text may be in any encoding.
            let text = || String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                b'C' => error.sqlstate = text(),
                b'M' => error.message = text(),
                b'D' => error.detail = Some(text()),
                _ => {}
            }
        }
        Ok(error)
    }

    /// From tokio-postgres.
    pub(crate) fn of(error: &tokio_postgres::error::DbError) -> Self {
        ServerError {
            sqlstate: error.code().code().to_owned(),
            message: error.message().to_owned(),
            detail: error.detail().map(str::to_owned),
        }
    }
}

/// A code behind a message; nothing where there is none.
pub(crate) fn in_brackets(sqlstate: &str) -> String {
    if sqlstate.is_empty() { String::new() } else { format!(" (SQLSTATE {sqlstate})") }
}

/// The names in what a person is to type.
pub(crate) fn named(text: &str, database: &str, role: &str) -> String {
    text.replace("{database}", &identifier(database)).replace("{role}", &identifier(role))
}

/// A name as SQL takes it.
fn identifier(name: &str) -> String {
    let is_plain = |name: &str| {
        let mut bytes = name.bytes();
        bytes.next().is_some_and(|first| first.is_ascii_lowercase() || first == b'_')
            && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    if is_plain(name) { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

/// Whether the server only needs time: it starts, stops, or has run out of something.
pub(crate) fn needs_time(sqlstate: &str) -> bool {
    matches!(sqlstate, "57P01" | "57P02" | "57P03" | "57P05")
        || ["08", "53", "58", "XX"].iter().any(|class| sqlstate.starts_with(class))
            && sqlstate != "08P01"
}

/// What corrects a refused start-up; `None` where waiting may.
fn remedy(error: &ServerError) -> Option<&'static str> {
    Some(match error.sqlstate.as_str() {
        "28P01" => {
            "correct the user or the password (postgres.url, passfile or PGPASSWORD), and restart the relay; with \
             postgres.url_file no restart is needed: the relay reads that file again before each attempt"
        }
        "28000" if error.message.contains("does not exist") => {
            "correct the user in postgres.url or PGUSER; or, as a superuser, `create role {role} login \
             replication`, then grant what docs/ROLES.md lists"
        }
        "28000" => {
            "check that the role is there and may log in (`alter role {role} login`), and pg_hba.conf on the server: user, \
             database, address and TLS must match a line"
        }
        "3D000" => {
            "if the database was renamed, correct its name in postgres.url, and set name to what it was (its \
             default is the database's name); otherwise create the database"
        }
        "42501" => {
            "`alter role {role} replication`; `grant connect on database {database} to {role}`"
        }
        "08P01" => {
            "connect to PostgreSQL itself: a pooler can't carry replication, and shares sessions"
        }
        "42704" => "PostgreSQL 14 or later is needed",
        sqlstate if ["28", "42", "22", "0A"].iter().any(|class| sqlstate.starts_with(class)) => {
            "correct the connection's settings"
        }
        // At a login it is no file of the data directory.
        "58P01" => {
            "a setting names a library that the server does not have: as a superuser, `alter role {role} reset \
             session_preload_libraries; alter role {role} reset local_preload_libraries; alter database {database} reset \
             session_preload_libraries; alter database {database} reset local_preload_libraries`; or install it, or correct \
             postgresql.conf"
        }
        "57P04" => "the database was dropped: create it, or correct its name in postgres.url",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_by_itself_is_told_from_what_a_person_must_fix() {
        for (sqlstate, transient) in [
            ("57P03", true),
            ("53300", true),
            ("57P01", true),
            ("08006", true),
            ("55000", true),
            ("28P01", false),
            ("28000", false),
            ("3D000", false),
            ("42501", false),
            ("08P01", false),
            ("58P01", false),
        ] {
            let error =
                ServerError { sqlstate: sqlstate.into(), message: "no".into(), detail: None };
            let error = ConnectError::server(&error);
            assert_eq!(error.is_transient(), transient, "{sqlstate}");
            assert_eq!(error.sqlstate(), Some(sqlstate));
        }
    }

    #[test]
    fn one_host_that_may_come_back_is_reason_to_wait() {
        let refused = || ConnectError::permanent("a: wrong password", "fix it");
        let starting = || ConnectError::transient("b: starting up");
        assert!(refused().and(starting()).is_transient());
        assert!(starting().and(refused()).is_transient());
        assert!(!refused().and(refused()).is_transient());
        let text = refused().and(starting()).to_string();
        assert!(text.contains("wrong password") && text.contains("starting up"), "{text}");
    }
}
