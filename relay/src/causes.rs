//! Errors as people read them: with their causes, and without what they quote of rows.

use std::error::Error;

/// An error with its causes, outermost first. Many libraries write the cause into their own text: what
/// stands there already is not said again.
pub(crate) fn of(error: &(dyn Error + 'static)) -> String {
    let mut said = without_rows(error);
    let mut next = error.source();
    while let Some(cause) = next {
        let text = without_rows(cause);
        if !said.contains(&text) {
            said.push_str(": ");
            said.push_str(&text);
        }
        next = cause.source();
    }
    said
}

/// The text of one error. Where a constraint refuses a row, PostgreSQL's DETAIL quotes the row, and so an event's
/// key and payload, which belong in no log and on no page.
fn without_rows(error: &(dyn Error + 'static)) -> String {
    let answer = match error.downcast_ref::<tokio_postgres::Error>() {
        Some(error) => error.as_db_error(),
        None => error.downcast_ref::<tokio_postgres::error::DbError>(),
    };
    match answer {
        Some(answer) if answer.code().code().starts_with("23") => {
            format!("{}: {}", answer.severity(), answer.message())
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;
    use rdkafka::error::{KafkaError, RDKafkaErrorCode};

    use super::*;

    #[test]
    fn a_cause_that_the_error_itself_names_is_said_once() {
        let transport = RDKafkaErrorCode::BrokerTransportFailure;
        let error = anyhow::Error::new(KafkaError::MetadataFetch(transport));
        let said = of(error.context("looking up the topic").as_ref());
        assert_eq!(said.matches("BrokerTransportFailure").count(), 1, "{said}");
        assert!(said.starts_with("looking up the topic: "), "{said}");
        assert_eq!(of(anyhow!("b").context("a").as_ref()), "a: b");
    }
}
