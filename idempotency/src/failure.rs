//! Why a handler did not succeed, said where it happened: `.transient()?`, `.permanent("code")?`.
//!
//! A failure is the message's or no one's: that the database is away says nothing about a message,
//! so it costs no attempt and makes no dead letter. PostgreSQL's errors are sorted by SQLSTATE when
//! they are passed on with `?`; any other error must be classified by who knows it.

use std::{borrow::Cow, error::Error, fmt, time::Duration, time::SystemTime};

use crate::{
    error::{Sort, chain, sort, state_of},
    quiet::drop_quietly,
};

pub(crate) type BoxError = Box<dyn Error + Send + Sync>;

/// What a handler returns when it did not succeed. Its transaction is rolled back in any case.
#[derive(Debug)]
pub struct Failure {
    pub(crate) kind: Kind,
    code: Cow<'static, str>,
    error: Left,
    /// The error with its causes.
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// Again later, by the retry policy.
    Transient,
    /// Again after this time, or by the policy where that is later.
    After(Duration),
    /// Not before this time; it costs no attempt.
    Defer(SystemTime),
    /// Never: a dead letter now.
    Permanent,
    /// Another transaction was in the way: again at once.
    Conflict,
    /// The session's state was at fault: again at once, with everything prepared again.
    Session,
    /// The database can't continue: wait, and count nothing.
    Outage,
    /// The database, or one that it asks, can't do now what the handler wants: wait as in an outage, a few
    /// times, and then beside the other keys, for as long as that lasts. It costs no attempt.
    Trouble,
    /// The handler's session is gone: wait as in an outage, a few times, since the database answers in between.
    /// If it stays so, the message is at fault.
    Lost,
    /// The database failed, and is there: wait as in an outage, a few times. If it stays so, the
    /// message is at fault.
    Doubt,
    /// The consumer must stop.
    Fatal,
}

impl Failure {
    /// It may pass: the message is tried again, by the retry policy.
    pub fn transient(error: impl Into<BoxError>) -> Self {
        Self::new(Kind::Transient, "transient", error)
    }

    /// As [`Failure::transient`], but not before `delay` has passed.
    pub fn retry_after(delay: Duration, error: impl Into<BoxError>) -> Self {
        Self::new(Kind::After(delay), "transient", error)
    }

    /// The message's time has not come: it waits until `until`, and later messages of its key wait
    /// behind it. It costs no attempt.
    pub fn defer(until: SystemTime) -> Self {
        Self::new(Kind::Defer(until), "deferred", "deferred")
    }

    /// It will never succeed: the message becomes a dead letter with this code, a stable word to
    /// look and alert by.
    pub fn permanent(code: impl Into<Cow<'static, str>>, error: impl Into<BoxError>) -> Self {
        Self::new(Kind::Permanent, code, error)
    }

    /// Nothing can be right from here on: the consumer stops, and the message stays untouched.
    pub fn fatal(error: impl Into<BoxError>) -> Self {
        Self::new(Kind::Fatal, "fatal", error)
    }

    /// Whether the transaction's outcome is stored: it says something about the message, or will last.
    pub(crate) fn is_the_messages(&self) -> bool {
        use Kind::{Conflict, Doubt, Fatal, Lost, Outage, Session};
        !matches!(self.kind, Outage | Lost | Doubt | Conflict | Session | Fatal)
    }

    /// What became of COMMIT. If the server has answered, nothing is kept; if not, the next claim tells.
    pub(crate) fn at_commit(error: BoxError) -> Self {
        match error.downcast::<tokio_postgres::Error>() {
            Ok(error) if sort(&error) == Sort::Trouble => (*error).into(),
            Ok(error) => Failure::new(Kind::Lost, "unavailable", error),
            Err(error) => Failure::new(Kind::Lost, "unavailable", error),
        }
    }

    /// What the handler has done has met another transaction, as is known at the commit.
    pub(crate) fn of_conflict(error: tokio_postgres::Error) -> Self {
        Failure::new(Kind::Conflict, "conflict", error)
    }

    /// What the message's dead letter is found by.
    pub fn code(&self) -> &str {
        &self.code
    }

    pub(crate) fn new(
        kind: Kind,
        code: impl Into<Cow<'static, str>>,
        error: impl Into<BoxError>,
    ) -> Self {
        let error = error.into();
        // Written here, where a panic of the error's own is the handler's.
        let text = chain(&*error);
        Failure { kind, code: code.into(), error: Left(Some(error)), text }
    }

    /// The error with its causes.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.error.get())
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error.get().source()
    }
}

/// A handler's error, dropped where its panic ends no one.
#[derive(Debug)]
struct Left(Option<BoxError>);

impl Left {
    fn get(&self) -> &(dyn Error + Send + Sync + 'static) {
        self.0.as_deref().expect("it is there until it is dropped")
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        drop_quietly(self.0.take());
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        Failure::new(sort(&error).into(), format!("sqlstate-{}", state_of(&error)), error)
    }
}

impl From<Sort> for Kind {
    fn from(sort: Sort) -> Self {
        match sort {
            Sort::Trouble => Kind::Trouble,
            Sort::Lost => Kind::Lost,
            Sort::Doubt => Kind::Doubt,
            Sort::Conflict => Kind::Conflict,
            Sort::Session => Kind::Session,
            Sort::Permanent => Kind::Permanent,
            Sort::Other => Kind::Transient,
        }
    }
}

/// Says what an error means, where it happens.
pub trait Classify<T> {
    /// As [`Failure::transient`].
    ///
    /// # Errors
    /// The error, as a failure.
    fn transient(self) -> Result<T, Failure>;
    /// As [`Failure::retry_after`].
    ///
    /// # Errors
    /// The error, as a failure.
    fn retry_after(self, delay: Duration) -> Result<T, Failure>;
    /// As [`Failure::permanent`].
    ///
    /// # Errors
    /// The error, as a failure.
    fn permanent(self, code: &'static str) -> Result<T, Failure>;
    /// As [`Failure::fatal`].
    ///
    /// # Errors
    /// The error, as a failure.
    fn fatal(self) -> Result<T, Failure>;
}

impl<T, E: Into<BoxError>> Classify<T> for Result<T, E> {
    fn transient(self) -> Result<T, Failure> {
        self.map_err(Failure::transient)
    }

    fn retry_after(self, delay: Duration) -> Result<T, Failure> {
        self.map_err(|error| Failure::retry_after(delay, error))
    }

    fn permanent(self, code: &'static str) -> Result<T, Failure> {
        self.map_err(|error| Failure::permanent(code, error))
    }

    fn fatal(self) -> Result<T, Failure> {
        self.map_err(Failure::fatal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::InboxError;

    #[test]
    fn a_text_has_the_causes_of_its_error() {
        let error = "x".parse::<i32>().expect_err("no number");
        let text = error.to_string();
        let failure = Failure::transient(InboxError::Unavailable(error.into()));
        assert_eq!(failure.text(), format!("the consumer's database is unavailable: {text}"));
    }

    #[test]
    fn an_error_is_classified_where_it_happens() {
        let bad: Result<i32, _> = "x".parse::<i32>();
        let failure = bad.permanent("not-a-number").expect_err("a failure");
        assert_eq!((failure.kind, failure.code()), (Kind::Permanent, "not-a-number"));
    }
}
