//! What progress remembers of parked events, so that they are missed when their table has them no more.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::core::position::{ParsePositionError, RowPosition};

/// Parked events that are remembered one by one.
pub const PARKED_IDS_MAX: usize = 20;

/// Events in `outbox.dead_letters` that are not delivered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParkedRecord {
    /// `pg_class.oid` of the table that has them.
    pub table: u32,
    /// Lanes that have parked events. An event that belongs to no lane counts for none.
    pub lanes: u64,
    /// Events, those that are being released included.
    pub events: u64,
    /// Those that were parked last, [`PARKED_IDS_MAX`] at most, with ids of letters, digits and `-_.:` alone.
    pub ids: Vec<ParkedId>,
}

/// A parked event: stored as its id alone before format version 6, since then as `id@16/B374D848:12`, and where the
/// transaction of its row is known as `id@16/B374D848:12@770`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ParkedId {
    /// The event's. Any writer may give another event the same.
    pub id: String,
    /// The place in the stream by which the table knows it; `None` where a record of before does not say.
    pub place: Option<RowPosition>,
    /// The transaction that wrote its row: a repair gives the row another place. `None` where it is not known.
    pub xid: Option<u32>,
}

impl ParkedId {
    /// Whether both are the same event, as far as is known.
    pub fn is(&self, other: &Self) -> bool {
        let unknown = self.place.is_none() || other.place.is_none();
        let same_row = self.xid.is_some() && self.xid == other.xid;
        self.id == other.id && (unknown || same_row || self.place == other.place)
    }
}

impl fmt::Display for ParkedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)?;
        let Some(place) = self.place else { return Ok(()) };
        write!(f, "@{place}")?;
        self.xid.map_or(Ok(()), |xid| write!(f, "@{xid}"))
    }
}

impl From<ParkedId> for String {
    fn from(id: ParkedId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for ParkedId {
    type Error = ParsePositionError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let mut parts = text.split('@');
        let id = parts.next().unwrap_or_default().to_owned();
        let place = parts.next().map(str::parse).transpose()?;
        Ok(ParkedId { id, place, xid: parts.next().and_then(|xid| xid.parse().ok()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::lsn::Lsn;

    #[test]
    fn an_id_is_stored_with_its_place_and_read_without_one() {
        let place = Some(RowPosition { commit: Lsn::new(0x16_B374_D848), ordinal: 12 });
        let of = |place, xid| ParkedId { id: "a:1".into(), place, xid };
        for (id, stored) in [
            (of(place, Some(770)), r#""a:1@16/B374D848:12@770""#),
            (of(place, None), r#""a:1@16/B374D848:12""#),
            (of(None, None), r#""a:1""#),
        ] {
            assert_eq!(serde_json::to_string(&id).expect("plain data"), stored);
            assert_eq!(serde_json::from_str::<ParkedId>(stored).expect("readable"), id);
        }
        assert!(serde_json::from_str::<ParkedId>(r#""a@b""#).is_err());
    }

    #[test]
    fn another_event_of_the_same_id_is_another() {
        let place = |ordinal| Some(RowPosition { commit: Lsn::new(16), ordinal });
        let of = |place, xid| ParkedId { id: "a".into(), place, xid };
        let parked = of(place(1), Some(7));
        assert!(parked.is(&of(None, None)), "not known to be another");
        assert!(parked.is(&of(place(1), None)));
        assert!(parked.is(&of(place(2), Some(7))), "a repair has read its row");
        assert!(!parked.is(&of(place(2), Some(8))), "another writer's event");
        assert!(!parked.is(&of(place(2), None)));
        assert!(!of(place(1), None).is(&of(place(2), None)));
    }
}
