//! What a start reads of the table: whose rows they are, which lanes are parked, what to expect.

use tokio_postgres::types::PgLsn;
use uuid::Uuid;

use super::{numbers::position, session::Store};
use crate::{
    core::position::Position,
    dead_letter::{
        announcement,
        error::DeadLetterError,
        lane::{Lane, Lanes},
    },
};

/// Parked lanes that are read at a time.
const LANES_READ: i64 = 10_000;

impl Store {
    /// Positions and transactions of another cluster's WAL mean nothing here, and its events come before all that
    /// this one streams: a dump was restored, or the cluster upgraded.
    pub(super) async fn adopt(&mut self) -> Result<(), DeadLetterError> {
        let adopted = self
            .execute(
                "looking at outbox.dead_letters",
                "update outbox.dead_letters d \
                 set system_id = $2, commit_lsn = '0/0', ordinal = o.ordinal, xid = null \
                 from (select id, (select max(id) from outbox.dead_letters) + row_number() over \
                              (order by commit_lsn, ordinal, id) as ordinal \
                       from outbox.dead_letters \
                       where relay = $1 and system_id <> $2 and state in ('parked', 'releasing') \
                      ) o \
                 where d.id = o.id",
                &[&self.relay.clone(), &self.origin.system_id.clone()],
            )
            .await?;
        if adopted > 0 {
            tracing::warn!(events = adopted, "another cluster's parked events were taken over");
        }
        Ok(())
    }

    /// What is parked now, or announced and not yet delivered; `max` lanes of it in memory.
    ///
    /// # Errors
    /// [`DeadLetterError`].
    pub async fn lanes(&mut self, max: usize) -> Result<Lanes, DeadLetterError> {
        let mut lanes = Lanes::new(max);
        let mut after = Uuid::nil();
        loop {
            let rows = self
                .query(
                    "reading the parked lanes",
                    "select distinct on (lane) lane, commit_lsn, ordinal from outbox.dead_letters \
                     where relay = $1 and state in ('parked', 'releasing') and lane > $2 \
                     order by lane, commit_lsn, ordinal limit $3",
                    &[&self.relay, &after, &LANES_READ],
                )
                .await?;
            let Some(last) = rows.last() else { break };
            after = last.get(0);
            rows.iter().for_each(|row| lanes.park(Lane::from_uuid(row.get(0)), position(row, 1)));
            // What of them is beyond memory is asked for when it matters.
            lanes.told([]);
        }
        Ok(lanes)
    }

    /// Tells `lanes` of events that were parked and that `progress` does not cover: the relay ended
    /// between the two, and the server sends them again. Somebody may have corrected, released or
    /// discarded them meanwhile.
    ///
    /// # Errors
    /// [`DeadLetterError`].
    pub async fn expect(
        &mut self,
        progress: Position,
        lanes: &mut Lanes,
    ) -> Result<(), DeadLetterError> {
        let from = PgLsn::from(progress.resume_lsn().get());
        let rows = self
            .query(
                "reading what was parked last",
                "select commit_lsn, ordinal from outbox.dead_letters \
                 where relay = $1 and system_id = $2 and commit_lsn >= $3 and state <> 'released'",
                &[&self.relay, &self.origin.system_id, &from],
            )
            .await?;
        let positions = rows.iter().map(|row| position(row, 0));
        positions.filter(|at| !progress.covers(*at)).for_each(|at| lanes.expect(at));
        Ok(())
    }

    /// Announces once more what was released and is not delivered: the first announcement may be
    /// in WAL that is lost. If it is not, this one finds nothing left to do.
    ///
    /// # Errors
    /// [`DeadLetterError`].
    pub async fn announce_again(&mut self) -> Result<(), DeadLetterError> {
        for release in announcement::waiting(&self.session, &self.relay).await? {
            announcement::announce(&self.session, &self.relay, release).await?;
        }
        Ok(())
    }

    /// Which of the releases have events that are not delivered.
    ///
    /// # Errors
    /// [`DeadLetterError`].
    pub async fn under_way(&mut self, releases: &[Uuid]) -> Result<Vec<Uuid>, DeadLetterError> {
        let rows = self
            .query(
                "looking for unfinished releases",
                "select r.id from unnest($2::uuid[]) r (id) where exists ( \
                     select from outbox.dead_letters where relay = $1 and release_id = r.id \
                         and state = 'releasing')",
                &[&self.relay, &releases],
            )
            .await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }
}
