//! Notices a line that has died without a word, whatever is being waited for.
//!
//! A server may work on one request for hours: making a slot behind open transactions, a sort, a
//! lock. So silence alone proves nothing. Where an answer is due and nothing comes for a while, the
//! server is asked over a line of its own what its process does: one that waits for our next request,
//! or is gone, has answered, and the answer is lost. Used by `sql` for every session, and by
//! `source::connect` for the commands before the stream.

use std::{sync::Arc, time::Duration};

use tokio::time::{sleep, timeout};
use tokio_postgres::SimpleQueryMessage;

use super::{
    conninfo::ConnectSettings,
    dial::Route,
    error::ConnectError,
    login,
    meter::{Meter, Metered},
};
use crate::core::secret::Secret;

/// Silence after which the server is asked.
pub(crate) const ASK_AFTER: Duration = Duration::from_secs(5);
/// A server that does not answer that within so long is gone.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Between the server's word that it has answered and the verdict that the answer is lost.
const UNDER_WAY_MAX: Duration = Duration::from_secs(1);

/// Asks a server, over a new line, what one of its processes does.
#[derive(Clone, Debug)]
pub(crate) struct Probe {
    pub(crate) settings: Arc<ConnectSettings>,
    pub(crate) route: Route,
    pub(crate) password: Option<Secret>,
    pub(crate) pid: i32,
}

impl Probe {
    /// Whether an answer may still come. A server that answers at all, but not this, leaves it open.
    pub(crate) async fn works(&self) -> bool {
        match timeout(ANSWER_MAX, self.ask()).await {
            Ok(Ok(waits_for_us)) => !waits_for_us,
            Ok(Err(error)) => error.sqlstate().is_some(),
            Err(_elapsed) => false,
        }
    }

    /// Returns when an answer that is due is lost, with how long it was waited for. Cancel safe.
    pub(super) async fn lost(&self, meter: &Meter) -> Duration {
        loop {
            let silent_for = meter.silent_for();
            if silent_for < ASK_AFTER {
                sleep(ASK_AFTER - silent_for).await;
                continue;
            }
            if self.works().await {
                sleep(ASK_AFTER).await;
                continue;
            }
            sleep(UNDER_WAY_MAX).await;
            if meter.silent_for() >= silent_for {
                return meter.silent_for();
            }
        }
    }

    /// Whether the process is gone, or waits for a request.
    async fn ask(&self) -> Result<bool, ConnectError> {
        // Processes of the role that logged in are shown to that one, whatever it has become.
        let query = format!(
            "set role none; select not exists (select from pg_catalog.pg_stat_activity \
             where pid = {} and (wait_event = 'ClientRead') is not true)",
            self.pid
        );
        let (socket, _) = Metered::new(self.route.reopen().await?);
        let (client, connection) =
            login::open(&self.settings, "outbox-relay", socket, self.password.as_ref()).await?;
        let answer = async { client.simple_query(&query).await.map_err(login::connect_error) };
        let answer = tokio::select! {
            answer = answer => answer?,
            _ended = connection => return Err(ConnectError::transient("the connection has ended")),
        };
        let first = answer.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.try_get(0).ok().flatten(),
            _ => None,
        });
        Ok(first == Some("t"))
    }
}
