//! What is asked of a server of NATS, and of its JetStream.

use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::Value;

use crate::wait;

/// How long the server may take to answer.
pub(super) const ASK: Duration = Duration::from_secs(10);

/// A new connection; it ends with the runtime that it was made in, so tests share none.
pub(super) async fn client(server: &str) -> async_nats::Client {
    let connected = wait::until("NATS answers", wait::PATIENCE, || {
        let (user, address) = server.rsplit_once('@').unwrap_or(("", server));
        let options = async_nats::ConnectOptions::new();
        let options = match user.split_once(':') {
            Some((user, password)) => options.user_and_password(user.into(), password.into()),
            None => options,
        };
        options.connect(address.to_owned())
    });
    connected.await.expect("the server is up")
}

/// Asks JetStream; `subject` is what comes behind its prefix.
pub(super) async fn api(client: &async_nats::Client, subject: &str, body: &Value) -> Result<Value> {
    let request = async_nats::Request::new().payload(body.to_string().into()).timeout(Some(ASK));
    let answer = client.send_request(format!("$JS.API.{subject}"), request).await?;
    let answer: Value = serde_json::from_slice(&answer.payload)?;
    match answer.get("error") {
        Some(error) => bail!("{error}"),
        None => Ok(answer),
    }
}

pub(super) fn part(mut answer: Value, name: &str) -> Value {
    answer.get_mut(name).expect("it is in the answer").take()
}

/// Sets what is in `settings`.
pub(super) fn overwrite(config: &mut Value, settings: &Value) {
    let config = config.as_object_mut().expect("an object");
    for (key, value) in settings.as_object().into_iter().flatten() {
        config.insert(key.clone(), value.clone());
    }
}
