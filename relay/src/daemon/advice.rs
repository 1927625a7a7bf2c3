//! What a person can do about an error that the relay tries to outlast.

use std::error::Error;

use super::{ended::Ended, limits, parked};
use crate::{
    causes,
    config::Config,
    core::{halt::Halt, progress::ParkedRecord},
    dead_letter::lost,
    metrics::Cause,
    postgres::{
        ConnectError, conninfo::ConnectSettings, error::ServerError, holders::APPLICATION,
        shortage, sql::SqlSession,
    },
    sink::any::Settings,
    source::{
        connect::{QueryError, StartError},
        decoder::StreamError,
    },
    state::Board,
};

/// SQLSTATE `too_many_connections`, as of a server that has no walsenders.
pub(super) const TOO_MANY: &str = "53300";

/// The same, with what was parked in the table of dead letters where that is gone.
pub(super) fn with_what_was_parked(ended: Ended, config: &Config, board: &Board) -> Ended {
    match ended {
        Ended::NoDeadLetters(halt) => Ended::Halted(match board.parked_last() {
            Some(parked) if parked.events > 0 => with_parked(halt, &parked, config),
            _ => halt,
        }),
        ended => ended,
    }
}

/// The same, with what the sink knows of its brokers where these are why.
pub(super) fn with_silent_brokers(ended: Ended, sink: &Settings, board: &Board) -> Ended {
    match ended {
        Ended::Retry { cause: Cause::Broker, doing, error } => {
            let explained = sink.explained(error.as_ref(), board.broker_is_silent());
            Ended::retry(Cause::Broker, doing, explained.map_or(error, anyhow::Error::msg))
        }
        ended => ended,
    }
}

/// The same, with what to type where the server has run out of something.
pub(super) fn advised(ended: Ended, settings: &ConnectSettings) -> Ended {
    match ended {
        Ended::Retry { cause, doing, error } => match against_shortage(&error, settings) {
            Some(remedy) => {
                let error = causes::of(error.as_ref());
                let advised = anyhow::anyhow!(
                    "{error}: nothing is lost, and what waits is published later; {remedy}"
                );
                Ended::retry(cause, doing, advised)
            }
            None => Ended::Retry { cause, doing, error },
        },
        ended => ended,
    }
}

/// What to type where the server, or this process, has run out of something.
pub(crate) fn against_shortage(
    error: &anyhow::Error,
    settings: &ConnectSettings,
) -> Option<String> {
    let remedy = match error.chain().any(|cause| cause.is::<ConnectError>()) {
        true => shortage::at_connect,
        false => shortage::remedy,
    };
    let of_code = |code: String| {
        let senders = || shortage::of_senders(&causes::of(error.as_ref()));
        let senders = Some(()).filter(|()| code == TOO_MANY).and_then(|()| senders());
        senders.or_else(|| remedy(&code, settings))
    };
    sqlstate_of(error).and_then(of_code).or_else(|| of_this_process(error))
}

/// Where it is this process that has run out of something.
fn of_this_process(error: &anyhow::Error) -> Option<String> {
    limits::remedy(&causes::of(error.as_ref())).map(str::to_owned)
}

/// The table is missing, and these were parked in it.
fn with_parked(halt: Halt, parked: &ParkedRecord, config: &Config) -> Halt {
    let Halt { reason, remedy } = halt;
    Halt::new(
        format!("{reason}; {} were parked in it when it was last counted", lost::in_words(parked)),
        format!(
            "{remedy}. If the table was dropped or is moved, that makes a new one without them, and the relay \
             delivers them no more: {}",
            lost::remedy(parked, &config.name, parked::ours(config))
        ),
    )
}

/// The server's code, wherever it is kept.
pub(super) fn sqlstate_of(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(sqlstate)
}

fn sqlstate(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(error) = error.downcast_ref::<tokio_postgres::Error>() {
        return error.code().map(|code| code.code().to_owned());
    }
    if let Some(StreamError::Server { code, .. }) = error.downcast_ref() {
        return Some(code.clone());
    }
    let start = error.downcast_ref::<StartError>().and_then(|error| match error {
        StartError::SlotActive(error, _)
        | StartError::SlotMissing(error)
        | StartError::SlotLost(error) => Some(error.sqlstate.as_str()),
        StartError::Transient(error) | StartError::Other(error) => error.sqlstate(),
    });
    let other = || error.downcast_ref::<ServerError>().map(|error| error.sqlstate.as_str());
    let query = || error.downcast_ref::<QueryError>().and_then(QueryError::sqlstate);
    let connect = || error.downcast_ref::<ConnectError>().and_then(ConnectError::sqlstate);
    start.or_else(query).or_else(connect).or_else(other).map(str::to_owned)
}

/// Who has the slot, and what makes the server let go of it.
pub(super) async fn held(
    session: &SqlSession,
    slot: &str,
    pid: i32,
    making: bool,
) -> anyhow::Error {
    let doing = if making { "being made" } else { "being used" };
    let who = format!(
        "select pg_catalog.concat_ws(', ', {APPLICATION}, 'role ' || pg_catalog.quote_ident(usename), \
             'from ' || coalesce(pg_catalog.host(client_addr), 'the same host'), \
             'since ' || pg_catalog.date_trunc('second', backend_start)::text) \
         from pg_catalog.pg_stat_activity where pid = $1"
    );
    let found = session.client().query_opt(&who, &[&pid]).await.ok().flatten();
    let who = found.and_then(|row| row.try_get::<_, String>(0).ok()).unwrap_or_default();
    anyhow::anyhow!(
        "slot {slot} is {doing} by process {pid} ({who}): nothing is lost, and nothing is published until \
         it has ended. If it is not to be there, end it: `select pg_terminate_backend({pid})`. If it \
         stays, it is at work on a transaction with many changes (then it uses the processor, or reads and deletes \
         files; it ends when that is done), or it is frozen: `kill -CONT {pid}` on the server's host, or restart the \
         server"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_is_told_with_its_remedy_wherever_the_server_named_it() {
        let settings = ConnectSettings::parse("postgres://r@h/d").expect("a URL");
        for (said, words) in [
            ("zu viele", "connection limit -1"),
            ("max_wal_senders (10) überschritten", "alter system set max_wal_senders"),
        ] {
            let server =
                || ServerError { sqlstate: "53300".into(), message: said.into(), detail: None };
            let stream = StreamError::Server { code: "53300".into(), message: said.into() };
            let refused = || QueryError::Refused { doing: "starting", error: server() };
            for error in [
                anyhow::Error::new(ConnectError::server(&server())),
                anyhow::Error::new(stream),
                anyhow::Error::new(refused()),
                anyhow::Error::new(StartError::Transient(refused())).context("starting"),
            ] {
                let Ended::Retry { error, .. } =
                    advised(Ended::retry(Cause::Postgres, "x", error), &settings)
                else {
                    panic!("it is tried again")
                };
                let error = format!("{error:#}");
                assert!(error.contains(said) && error.contains(words), "{error}");
            }
        }
    }
}
