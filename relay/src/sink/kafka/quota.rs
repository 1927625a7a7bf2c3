//! What there is to say of a quota that throttles the relay, and what removes it.

use super::settings::Settings;

impl Settings {
    /// What brokers say of a quota, and what helps; `None` where they say nothing worth a word.
    pub fn throttled(&self) -> Option<(String, String)> {
        let (broker, wait) = self.reach.throttled()?;
        let client = self.transactional_id();
        let client = self.properties.get("client.id").unwrap_or(&client);
        let account = match self.properties.get("sasl.username") {
            Some(user) => format!("its user {user}"),
            None => "its user".into(),
        };
        let what = format!(
            "the broker {broker} throttles the relay by a quota on its client id {client} or on {account}: at its latest \
             answer it stopped reading for {:.1} s. Nothing is lost; events wait in PostgreSQL, and a \
             delivery that does not end in {:?} is tried again",
            wait.as_secs_f64(),
            self.delivery_limit(),
        );
        Some((what, self.without_quota("producer_byte_rate")))
    }

    /// What shows quotas, and what removes this one of the relay's clients.
    pub(super) fn without_quota(&self, quota: &str) -> String {
        let client = self.transactional_id();
        let client = self.properties.get("client.id").unwrap_or(&client);
        let servers = self.servers();
        let configs = format!("kafka-configs --bootstrap-server {servers}");
        format!(
            "raise or remove the quota: `{configs} --describe --entity-type clients` and `{configs} --describe \
             --entity-type users` show quotas, `{configs} --alter --entity-type clients --entity-name {client} \
             --delete-config {quota}` removes one of this client id. If another is shown, put its name in place of \
             {quota}; and --entity-default in place of --entity-name, if it is the default of all clients"
        )
    }
}
