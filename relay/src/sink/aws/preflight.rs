//! What `check` looks at, whatever there is to deliver.

use std::time::Duration;

use outbox_relay_aws::{Said, What};
use tokio::time::timeout;

use super::{
    client::{Client, unavailable},
    probe::Probe,
    settings::Settings,
};
use crate::{
    causes,
    sink::{
        SinkError,
        doctor::{Examined, Seen},
    },
};

/// Credentials may be asked for over a network.
const LIMIT: Duration = Duration::from_secs(10);

/// Asks whether the service answers, and knows who asks. Sends nothing.
pub(in crate::sink) async fn examine(settings: &Settings) -> Examined {
    let name = settings.kind();
    match Box::pin(answered(settings)).await {
        Ok(()) => Examined { seen: seen(settings), has_progress: Some(true) },
        Err(SinkError::Misconfigured { what, remedy }) => Examined::unusable(name, what, remedy),
        Err(error) => {
            let remedy = format!(
                "check that the credentials are there (AWS_PROFILE, AWS_ACCESS_KEY_ID, a web identity, the container's or the \
                 instance's role) and the clock is right, and {}, {}",
                settings.key("region"),
                settings.key("endpoint")
            );
            Examined::unusable(name, causes::of(&error), remedy)
        }
    }
}

/// # Errors
/// `Misconfigured` where a setting can't be used, `Unavailable` where no one answers.
async fn answered(settings: &Settings) -> Result<(), SinkError> {
    let probe = Probe::new(Client::new(settings.clone()));
    let asked = timeout(LIMIT, probe.check()).await;
    asked.unwrap_or_else(|_| {
        let said = Said { what: What::Uncertain, code: String::new(), text: "no answer".into() };
        Err(unavailable(format!("asking whether {} answers", settings.kind()), said))
    })
}

fn seen(settings: &Settings) -> Vec<Seen> {
    let order = match settings.is_fifo() {
        true => "FIFO: in the order of each key, a message of a key at a time",
        false => "standard: in no order",
    };
    let (name, what) = (settings.kind(), settings.noun());
    let destination = settings.destination.to_string();
    let mut seen = vec![Seen::fine(
        name,
        format!("{} answers; {what} {destination:?}, {order}", settings.name()),
    )];
    if let Some(endpoint) = settings.open_to_the_network() {
        let what = format!("messages go to {endpoint} without TLS");
        let remedy = format!(
            "write https:// in {}, unless the network is trusted",
            settings.key("endpoint")
        );
        seen.push(Seen::warning(name, what, remedy));
    }
    seen
}
