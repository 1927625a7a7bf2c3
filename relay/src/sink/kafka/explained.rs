//! Why brokers can't be used, in a sentence with what a person can do.

use std::error::Error;

use super::{errors::is_silence, settings::Settings};
use crate::causes;

const WAITS: &str = "nothing is lost, events wait in PostgreSQL, and the relay continues when a broker \
                     answers. Check bootstrap.servers, and that the brokers are up";

/// More than the error says, where more is known: that a login was refused, a quota, who does not answer.
/// `is_silent` says whether no broker has answered for long.
pub(in crate::sink) fn explained(
    settings: &Settings,
    error: &(dyn Error + 'static),
    is_silent: bool,
) -> Option<String> {
    let causes = || causes::of(error);
    if let Some((why, remedy)) = settings.login_refused() {
        return Some(format!(
            "{why}: nothing is lost, and events wait in PostgreSQL; {remedy} ({})",
            causes()
        ));
    }
    if let Some((why, remedy)) = settings.throttled().filter(|_| !is_silent) {
        return Some(format!("{why}; {remedy} ({})", causes()));
    }
    let who = || format!("no answer from {}: {WAITS}", settings.silent());
    match (is_silence(error), is_silent) {
        (true, _) => Some(who()),
        (false, true) => Some(format!("{}; {}", causes(), who())),
        (false, false) => None,
    }
}
