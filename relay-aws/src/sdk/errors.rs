//! From an error of the SDK to what was said.

use std::error::Error;

use aws_smithy_runtime_api::client::{orchestrator::HttpResponse, result::SdkError};
use aws_smithy_types::error::metadata::ProvideErrorMetadata;

use crate::Said;

/// What a request's failure says.
pub(super) fn said<E>(error: &SdkError<E, HttpResponse>) -> Said
where
    E: Error + ProvideErrorMetadata + 'static,
{
    match error {
        SdkError::ServiceError(answer) => {
            let status = answer.raw().status();
            let (code, text) = (answer.err().code(), answer.err().message());
            let said = Said::new(
                code.unwrap_or_default(),
                text.unwrap_or_default(),
                status.is_client_error(),
            );
            match code {
                // The service failed while it was at work.
                _ if status.is_server_error() && !is_throttling(&said) => {
                    Said::uncertain(format!("the service failed with status {status}: {said}"))
                }
                None => Said::uncertain(format!("status {status} without a word why")),
                Some(_) => said,
            }
        }
        // No answer, or none that is understood; or the credentials could not be had.
        other => Said::uncertain(chain(other)),
    }
}

/// With any status: nothing is stored then.
fn is_throttling(said: &Said) -> bool {
    Said::new(&said.code, &said.text, true).what == crate::What::NotNow
}

/// An error with its causes, each once.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}
