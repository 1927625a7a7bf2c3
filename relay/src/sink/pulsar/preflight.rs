//! What `check` looks at, whatever there is to deliver.

use super::{
    client::{Client, unavailable},
    settings::Settings,
};
use crate::{
    causes,
    sink::{
        SinkError,
        doctor::{Examined, Seen},
    },
};

const NAME: &str = "Pulsar";

/// Asks whether a broker answers, and knows who asks. Sends nothing.
pub(in crate::sink) async fn examine(settings: &Settings) -> Examined {
    match answered(settings).await {
        Ok(version) => Examined { seen: seen(settings, &version), has_progress: Some(true) },
        Err(SinkError::Misconfigured { what, remedy }) => Examined::unusable(NAME, what, remedy),
        Err(error) => {
            let remedy = "check sink.pulsar.url, sink.pulsar.token_file and sink.pulsar.ca_file, and that a broker is up";
            Examined::unusable(NAME, causes::of(&error), remedy)
        }
    }
}

/// # Errors
/// `Misconfigured` where a setting can't be used, `Unavailable` where no broker answers.
async fn answered(settings: &Settings) -> Result<String, SinkError> {
    let cluster = Client::new(settings.clone()).cluster()?;
    let asked = cluster.version().await;
    asked.map_err(|said| unavailable(format!("connecting to {}", settings.name()), said))
}

fn seen(settings: &Settings, version: &str) -> Vec<Seen> {
    let alone = match settings.exclusive {
        true => "the relay is the only producer",
        false => "others may produce there too",
    };
    let topic = settings.topic.to_string();
    let mut seen = vec![Seen::fine(NAME, format!("{version}, topic {topic:?}, {alone}"))];
    if settings.addresses().iter().any(|address| !address.tls) {
        let what = "messages and the token go to Pulsar without TLS".to_owned();
        let remedy = "write pulsar+ssl:// in sink.pulsar.url, unless the network is trusted";
        seen.push(Seen::warning(NAME, what, remedy));
    }
    seen
}
