//! What a release takes in when it begins.

use uuid::Uuid;

use super::{numbers::signed, session::Store};
use crate::{core::progress::ReleaseRecord, dead_letter::error::DeadLetterError};

/// The events of a release that are not delivered yet. In words that fit the index `dead_letters_waiting` and no other: while
/// the table was never analysed, a server takes any index that fits for as good, and read all that is
/// parked for each release.
pub(super) const RELEASING: &str =
    "state in ('releasing', 'discarded') and state || '' = 'releasing'";

impl Store {
    /// Of the releases that progress knows, marks what it counts as delivered, but for rows that somebody has
    /// locked: those are marked later, and taken in by no one. Of what is left, takes into this release
    /// whatever waits in its lanes, since another release may have taken what is before or behind it there,
    /// and it would be overtaken. One statement: were the relay to end between the two, what waits in a lane
    /// of which all else is delivered would be left behind nothing. Returns the lanes.
    pub(super) async fn take_in(
        &self,
        doing: &'static str,
        release: Uuid,
        known: &[ReleaseRecord],
    ) -> Result<Vec<Uuid>, DeadLetterError> {
        let known = known.iter().filter_map(|one| Some((one.id.parse().ok()?, one.delivered)));
        let (ids, delivered): (Vec<Uuid>, Vec<i64>) =
            known.map(|(id, delivered): (Uuid, u64)| (id, signed(delivered))).unzip();
        // Lane by lane, or each of many releases would read all that is parked.
        let rows = self
            .query(
                doing,
                &format!(
                    "with mine as materialized ( \
                         select distinct lane from outbox.dead_letters \
                         where relay = $1 and release_id = $2 and {RELEASING}), \
                     delivered as materialized ( \
                         select d.id from unnest($3::uuid[], $4::int8[]) as k (id, delivered) \
                         cross join lateral (select id from outbox.dead_letters \
                             where relay = $1 and release_id = k.id and {RELEASING} \
                                 and release_ordinal < k.delivered offset 0 \
                             for no key update skip locked) d), \
                     waiting as materialized ( \
                         select w.id from mine cross join lateral (select o.id \
                             from outbox.dead_letters o \
                             where o.relay = $1 and o.lane = mine.lane \
                                 and o.state in ('parked', 'releasing') \
                                 and o.release_id is distinct from $2 \
                                 and not coalesce(o.release_ordinal < ( \
                                     select k.delivered \
                                     from unnest($3::uuid[], $4::int8[]) as k (id, delivered) \
                                     where k.id = o.release_id), false) offset 0) w), \
                     settled as ( \
                         update outbox.dead_letters \
                         set state = 'released', changed_at = clock_timestamp() \
                         where id = any(array(select id from delivered)) and state = 'releasing'), \
                     taken as ( \
                         update outbox.dead_letters set state = 'releasing', release_id = $2, \
                             release_ordinal = null, changed_at = clock_timestamp() \
                         where id = any(array(select id from waiting)) \
                             and state in ('parked', 'releasing')) \
                     select lane from mine where lane is not null"
                ),
                &[&self.relay, &release, &ids, &delivered],
            )
            .await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }
}
