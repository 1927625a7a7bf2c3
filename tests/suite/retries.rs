//! States that the relay tries to outlast and that PostgreSQL's side brings about: each is shown by real servers,
//! and left by the remedy of `docs/RETRIES.md`.

mod crowded;
mod defective;
mod slow;
mod two_servers;
pub(crate) mod undecodable;

use outbox_harness::{
    Harness,
    database::Role,
    proxy::Proxy,
    relay::{Relay, Settings},
    wait,
};
use serde_json::Value;

/// What `/readyz` says, once it has all of these words.
async fn says(relay: &Relay, words: &[&str]) -> String {
    wait::until("it says so", wait::PATIENCE, || async {
        let status = relay.try_status().await.map_err(|error| error.to_string())?;
        let why = status.get("not_ready_because").and_then(Value::as_str).unwrap_or_default();
        match words.iter().all(|words| why.contains(words)) {
            true => Ok(why.to_owned()),
            false => Err(status.to_string()),
        }
    })
    .await
    .expect("it says so")
}

/// A relay whose connections to PostgreSQL lead through a proxy, which can read them.
fn through(t: &Harness, proxy: &Proxy) -> Settings {
    let url = t.database().url(Role::Relay);
    let (_, server) = url.split_once('@').expect("a URL with a user");
    let (server, _) = server.split_once('/').expect("a URL with a database");
    let url = url.replacen(server, &proxy.address(), 1);
    t.relay().set("postgres.url", &format!("{url}?sslmode=disable"))
}
