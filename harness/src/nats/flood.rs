//! A client that publishes without end.

use tokio_util::task::AbortOnDropHandle;

use super::Nats;

/// It publishes no more than this.
const MESSAGES_MAX: usize = 2_000_000;

impl Nats {
    /// Publishes to a subject as a user of the server, until what is returned is dropped; also while the server
    /// refuses.
    ///
    /// # Panics
    /// When the user may not log in.
    pub async fn flood(
        &self,
        user: &str,
        password: &str,
        subject: String,
    ) -> AbortOnDropHandle<()> {
        let options =
            async_nats::ConnectOptions::with_user_and_password(user.into(), password.into());
        let client = options.connect(self.address()).await.expect("it may log in");
        AbortOnDropHandle::new(tokio::spawn(async move {
            for _ in 0..MESSAGES_MAX {
                // While the server takes up other rights it may be away.
                let _away = client.publish(subject.clone(), "mine".into()).await;
                let _away = client.flush().await;
            }
        }))
    }
}
