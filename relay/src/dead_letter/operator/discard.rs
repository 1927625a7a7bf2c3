//! A discard: one event, or a selection as it was counted.

use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::{
    error::OperatorError,
    listing::{Counted, Letter, is_parked, read},
    selection::{CHOSEN, Selection},
    session::{Operator, announce, commit, repertoire},
};
use crate::dead_letter::answer::sorted;

impl Operator<'_> {
    /// Leaves parked events out permanently: exactly those that were counted, or none. Notes who did it
    /// and why.
    ///
    /// # Errors
    /// [`OperatorError`]; nothing is changed then.
    pub async fn discard_all(
        &mut self,
        selection: &Selection,
        counted: Counted,
        why: Option<&str>,
    ) -> Result<(), OperatorError> {
        let failed = |e| sorted("discarding dead letters", e);
        let transaction = self.client.transaction().await.map_err(failed)?;
        let repertoire = repertoire(&transaction).await.map_err(failed)?;
        let of = selection.parameters(repertoire);
        let release = Uuid::now_v7();
        let sql = format!(
            "update outbox.dead_letters set state = 'discarded', release_id = $6, \
                 discarded_by = session_user, discarded_why = $7, changed_at = clock_timestamp() \
             where relay = $1 and {CHOSEN} and state = 'parked' and id <= $8"
        );
        let Counted { events: asked, newest } = counted;
        let why = why.map(|why| repertoire.sanitised(why));
        let parameters: [&(dyn ToSql + Sync); 8] =
            [&self.relay, &of.ids, &of.topic, &of.key, &of.reason, &release, &why, &newest];
        let found = transaction.execute(&sql, &parameters).await.map_err(failed)?;
        let found = i64::try_from(found).unwrap_or(i64::MAX);
        // What came meanwhile has higher numbers; what a release has put back keeps its own. No one was
        // asked about either.
        if found != asked {
            transaction.rollback().await.map_err(failed)?;
            let now = self.count(selection).await.map_or(0, |counted| counted.events);
            return Err(OperatorError::Changed { asked, now });
        }
        if asked > 0 {
            announce(&transaction, &self.relay, release).await.map_err(failed)?;
            commit(transaction).await.map_err(failed)?;
        }
        Ok(())
    }

    /// Leaves an event out: the only way in which one is dropped. What waits behind it stays
    /// parked until it is released; where nothing does, its lane flows again.
    ///
    /// # Errors
    /// [`OperatorError`]; nothing is changed then.
    pub async fn discard(&mut self, id: i64, why: Option<&str>) -> Result<Letter, OperatorError> {
        let failed = |e| sorted("discarding a dead letter", e);
        let transaction = self.client.transaction().await.map_err(failed)?;
        let before = read(&transaction, &self.relay, id, "for update").await?;
        is_parked(&before)?;
        let release = Uuid::now_v7();
        let repertoire = repertoire(&transaction).await.map_err(failed)?;
        let why = why.map(|why| repertoire.sanitised(why));
        transaction
            .execute(
                "update outbox.dead_letters set state = 'discarded', release_id = $2, \
                     discarded_by = session_user, discarded_why = $3, \
                     changed_at = clock_timestamp() \
                 where id = $1",
                &[&id, &release, &why],
            )
            .await
            .map_err(failed)?;
        announce(&transaction, &self.relay, release).await.map_err(failed)?;
        let after = read(&transaction, &self.relay, id, "").await?;
        commit(transaction).await.map_err(failed)?;
        Ok(after)
    }
}
