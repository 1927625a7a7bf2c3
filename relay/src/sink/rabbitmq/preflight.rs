//! What `check` looks at.

use super::{line::Line, settings::Settings, topology};
use crate::{
    causes,
    sink::{
        SinkError,
        doctor::{Examined, Seen},
    },
};

const NAME: &str = "RabbitMQ";

/// Connects, looks for the exchange if it is one for all topics, and says what was seen. Stores nothing.
pub(in crate::sink) async fn examine(settings: &Settings) -> Examined {
    match Box::pin(preflight(settings)).await {
        Ok(seen) => Examined { seen, has_progress: Some(true) },
        Err(SinkError::Misconfigured { what, remedy }) => Examined::unusable(NAME, what, remedy),
        Err(error) => {
            let remedy =
                "check sink.rabbitmq.url, user, password and virtual host, and that a broker is up";
            Examined::unusable(NAME, causes::of(&error), remedy)
        }
    }
}

/// # Errors
/// `Misconfigured` where a setting can't be used, `Unavailable` where no broker answers.
async fn preflight(settings: &Settings) -> Result<Vec<Seen>, SinkError> {
    let line = Line::open(settings, " check").await?;
    let properties = line.connection().server_properties();
    let exchange = settings.exchange.to_string();
    let mut seen = vec![Seen::fine(
        NAME,
        format!(
            "{} {}, exchange {exchange:?}, routing key {:?}, {} partition(s)",
            properties.product(),
            properties.version(),
            settings.routing_key.to_string(),
            settings.partitions
        ),
    )];
    let is_one = !exchange.contains('{') && !exchange.is_empty();
    if is_one && !topology::exists(line.connection(), &exchange).await? {
        let what =
            format!("the exchange {exchange} does not exist: events are parked until it does");
        seen.push(Seen::warning(NAME, what, "create it, and bind queues to it"));
    }
    if settings.addresses().iter().any(|address| !address.tls) {
        let what = "messages and the password go to RabbitMQ without TLS".to_owned();
        let remedy = "write amqps:// in sink.rabbitmq.url, unless the network is trusted";
        seen.push(Seen::warning(NAME, what, remedy));
    }
    Ok(seen)
}
