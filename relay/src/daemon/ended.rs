//! Why an attempt ended, and what each error of its parts asks of the daemon.

use super::undecodable;
use crate::{
    config::{PostgresConfig, Route},
    core::{halt::Halt, landmark::AnotherHistory},
    dead_letter::DeadLetterError,
    metrics::Cause,
    pipeline::PipelineError,
    postgres::ConnectError,
    route::{Format, Mapping},
    sink::SinkError,
    source::{decoder::StreamError, intake::IntakeError},
};

/// SQLSTATE `undefined_object`.
const UNDEFINED_OBJECT: &str = "42704";
/// SQLSTATE of a type that lacks an output function, among others.
const UNDEFINED_FUNCTION: &str = "42883";
/// Why an attempt ended, sorted by what the daemon does next.
#[derive(Debug)]
pub(super) enum Ended {
    /// A person must correct it.
    Halted(Halt),
    /// The next rows of the stream were written when their table did not match the settings. Becomes `Halted` after
    /// `earlier` has looked at what the table is like now.
    WrittenOtherwise(Halt),
    /// The table of leaders is gone, perhaps with the schema. Becomes `Halted` after a look for the schema.
    NoLeaders(Halt),
    /// A person must correct the table of dead letters, and what was parked in it may be gone.
    NoDeadLetters(Halt),
    /// Another relay has taken over: stand by.
    Fenced,
    /// Start again, asking for the text format: the stream has rows, now or once, that need it.
    NeedsText(String),
    /// Start again, knowing that the publication was missing where the stream is to continue.
    Unpublished(StreamError),
    /// Start again, and remember that the volume was put back to an older state.
    RolledBack(AnotherHistory),
    /// Wait a little, and start again from the first step.
    Retry {
        /// For the metrics.
        cause: Cause,
        /// What was being done.
        doing: &'static str,
        /// What went wrong.
        error: anyhow::Error,
    },
}

impl Ended {
    /// The same, with commands that are for that route's relay.
    pub(super) fn of_route(self, route: &Route) -> Self {
        let told = |halt: Halt| halt.in_other_words(|text| route.in_commands(text));
        match self {
            Ended::Halted(halt) => Ended::Halted(told(halt)),
            Ended::WrittenOtherwise(halt) => Ended::WrittenOtherwise(told(halt)),
            Ended::NoLeaders(halt) => Ended::NoLeaders(told(halt)),
            Ended::NoDeadLetters(halt) => Ended::NoDeadLetters(told(halt)),
            ended => ended,
        }
    }

    /// Each call is a state that the relay tries to outlast: docs/RETRIES.md has a line for it.
    pub(super) fn retry(
        cause: Cause,
        doing: &'static str,
        error: impl Into<anyhow::Error>,
    ) -> Self {
        Ended::Retry { cause, doing, error: error.into() }
    }

    /// PostgreSQL, or the line to it, has failed with an error of its own.
    pub(super) fn postgres(doing: &'static str, error: impl Into<anyhow::Error>) -> Self {
        Ended::retry(Cause::Postgres, doing, error)
    }

    /// The table of dead letters can't be used.
    pub(super) fn dead_letters(doing: &'static str, error: DeadLetterError) -> Self {
        match error {
            DeadLetterError::Misconfigured { what, remedy } => {
                Ended::NoDeadLetters(Halt::new(what, remedy))
            }
            error @ (DeadLetterError::Database { .. } | DeadLetterError::Refused { .. }) => {
                Ended::postgres(doing, error)
            }
        }
    }

    pub(super) fn connect(doing: &'static str, error: ConnectError) -> Self {
        match error {
            ConnectError::Permanent { what, remedy, .. } => {
                Ended::Halted(Halt::new(format!("{doing}: {what}"), remedy))
            }
            error @ ConnectError::Transient { .. } => Ended::postgres(doing, error),
        }
    }

    pub(super) fn sink(doing: &'static str, error: SinkError) -> Self {
        match error {
            SinkError::Fenced(_) => Ended::Fenced,
            SinkError::Misconfigured { what, remedy } => Ended::Halted(Halt::new(what, remedy)),
            error @ (SinkError::Unavailable { .. } | SinkError::Refused { .. }) => {
                Ended::retry(Cause::Broker, doing, error)
            }
        }
    }
}

pub(super) fn stream_ended(
    error: StreamError,
    names: &PostgresConfig,
    mapping: &Mapping,
    format: Format,
) -> Ended {
    let PostgresConfig { publication, slot, .. } = names;
    match error {
        // The server looks it up as it was when what it decodes was written, and before 18 it goes no
        // further, whatever there is by now. The server's language doesn't matter.
        StreamError::Server { ref code, ref message }
            if code == UNDEFINED_OBJECT && message.contains(publication.as_str()) =>
        {
            Ended::Unpublished(error)
        }
        StreamError::AnotherHistory(found) => Ended::RolledBack(found),
        StreamError::Intake(IntakeError::DoesNotFit { what, remedy }) => {
            Ended::WrittenOtherwise(Halt { reason: what, remedy })
        }
        StreamError::Intake(error @ IntakeError::NeedsText { .. }) => {
            Ended::NeedsText(error.to_string())
        }
        // A value below a column of anybody's table, such as the elements of an array, has no binary
        // form: the server fails at its row, again and again.
        StreamError::Server { code, message }
            if code == UNDEFINED_FUNCTION && format == Format::Binary =>
        {
            Ended::NeedsText(message)
        }
        StreamError::Server { ref code, .. } if undecodable::may_be(code) => Ended::retry(
            Cause::Postgres,
            "streaming from PostgreSQL",
            undecodable::of_stream(&error, slot, mapping.tables(), mapping.id_column()),
        ),
        StreamError::Server { ref code, ref message } if undecodable::lacks_wal(code, message) => {
            let error = undecodable::without_wal(&error, slot);
            Ended::retry(Cause::Postgres, "streaming from PostgreSQL", error)
        }
        error => Ended::postgres("streaming from PostgreSQL", error),
    }
}

pub(super) fn pipeline_ended(error: PipelineError) -> Ended {
    match error {
        PipelineError::Sink(error) => Ended::sink("delivering", error),
        PipelineError::DeadLetters(error) => Ended::dead_letters("parking events", error),
        error @ PipelineError::Malformed { .. } => {
            Ended::retry(Cause::Postgres, "reading a row", error)
        }
    }
}
