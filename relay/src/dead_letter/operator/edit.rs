//! An edit of a parked event.

use serde::Serialize;
use uuid::Uuid;

use super::{
    error::OperatorError,
    listing::{Letter, is_parked, read},
    session::{Operator, commit, repertoire},
};
use crate::dead_letter::{
    answer::sorted,
    changes::{Change, changes},
    edit::{Edit, Event},
    headers,
    lane::Lane,
};

/// A dead letter after an edit.
#[derive(Clone, Debug, Serialize)]
pub struct Edited {
    /// As it is now.
    #[serde(flatten)]
    pub letter: Letter,
    /// What the edit has changed; empty where it was so before.
    pub edited: Vec<Change>,
}

impl Operator<'_> {
    /// Changes what a parked event is. Its place does not change, nor what waits behind it; it
    /// goes to its new topic, key or partition when it is released.
    ///
    /// # Errors
    /// [`OperatorError`]; nothing is changed then.
    pub async fn edit(&mut self, id: i64, edit: &Edit) -> Result<Edited, OperatorError> {
        let failed = |e| sorted("editing a dead letter", e);
        let transaction = self.client.transaction().await.map_err(failed)?;
        let before = read(&transaction, &self.relay, id, "for update").await?;
        is_parked(&before)?;
        let row = transaction
            .query_one(
                "select topic, key, partition, timestamp_ms, payload, headers, lane, fit, reason, event_id \
                 from outbox.dead_letters where id = $1",
                &[&id],
            )
            .await
            .map_err(failed)?;
        let event = Event {
            topic: row.get(0),
            key: row.get(1),
            partition: row.get(2),
            timestamp_ms: row.get(3),
            payload: row.get(4),
            headers: headers::whole(&row.get(5), row.get(9)),
        };
        // A row above the size limit was read past: there is no payload to continue with.
        let payload_lost = !row.get::<_, bool>(7)
            && event.payload.is_none()
            && row.get::<_, &str>(8) == "too_large";
        let was = event.clone();
        let event = edit.apply(event, payload_lost)?;
        let edited = changes(&was, &event);
        let repertoire = repertoire(&transaction).await.map_err(failed)?;
        let topic = event.topic.as_deref().unwrap_or_default();
        let lane = Lane::of(topic, event.key.as_deref(), event.partition).map(Lane::to_uuid);
        if lane.is_some() && lane != row.get::<_, Option<Uuid>>(6) {
            let count: i64 = transaction
                .query_one(
                    "select count(*) from outbox.dead_letters where relay = $1 and lane = $2 \
                     and state in ('parked', 'releasing')",
                    &[&self.relay, &lane],
                )
                .await
                .map_err(failed)?
                .get(0);
            if count > 0 {
                return Err(OperatorError::LaneIsParked { id, count });
            }
        }
        transaction
            .execute(
                "update outbox.dead_letters set topic = $2, key = $3, partition = $4, \
                     timestamp_ms = $5, payload = $6, headers = $7, fit = true, \
                     changed_at = clock_timestamp() \
                 where id = $1",
                &[
                    &id,
                    &event.topic.as_ref().map(|topic| repertoire.sanitised(topic)),
                    &event.key,
                    &event.partition,
                    &event.timestamp_ms,
                    &event.payload,
                    &headers::again(&event.headers, repertoire),
                ],
            )
            .await
            .map_err(failed)?;
        let letter = read(&transaction, &self.relay, id, "").await?;
        commit(transaction).await.map_err(failed)?;
        Ok(Edited { letter, edited })
    }
}
