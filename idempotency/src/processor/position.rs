//! Where the relay found an event, as its headers say. Pure.

use std::{fmt, str::FromStr};

use super::stranger::Stranger;
use crate::message::Headers;

/// A place in the WAL of one timeline: start of the commit record, ordinal in the transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    commit_lsn: u64,
    ordinal: u64,
}

impl Place {
    /// No one is past it.
    pub(super) const LAST: Place = Place { commit_lsn: u64::MAX, ordinal: u64::MAX };

    /// Behind all of its transaction.
    pub(super) fn end_of_commit(self) -> Place {
        Place { ordinal: u64::MAX, ..self }
    }
}

/// What the headers `outbox-position` and `outbox-era` say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// The relay begins a later one where places may have started over, as after a rollback of its
    /// database's volume.
    pub(super) era: u64,
    pub(super) system_id: u64,
    pub(super) timeline: u32,
    pub(super) place: Place,
}

/// Reads what the relay wrote about a message: its position, and whether a repair published it.
/// The position of that is where the repair began, not where the event was.
///
/// # Errors
/// It has no position, or another relay's name.
pub(super) fn read(headers: &Headers, relay: &str) -> Result<(Position, bool), Stranger> {
    // Each has all of its names in one of two forms, and only in that form are they closed to the row's own headers.
    let native = headers.bytes("outbox-relay").is_some();
    let text = |name, in_cloud_events| headers.text(if native { name } else { in_cloud_events });
    match text("outbox-relay", "ce_outboxrelay") {
        Some(name) if name == relay => {}
        Some(name) => return Err(Stranger::Relay(name.to_owned())),
        None => return Err(Stranger::no_relay(relay)),
    }
    let position = text("outbox-position", "ce_outboxposition").unwrap_or_default();
    let wrong = |_| Stranger::no_position(format!("its position is {position:?}"));
    let mut position: Position = position.parse().map_err(wrong)?;
    if let Some(era) = text("outbox-era", "ce_outboxera") {
        let wrong = |_| Stranger::no_position(format!("its era is {era:?}"));
        position.era = era.parse().map_err(wrong)?;
    }
    Ok((position, text("outbox-repaired", "ce_outboxrepaired") == Some("1")))
}

impl FromStr for Place {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (lsn, ordinal) = text.split_once(':').unwrap_or((text, ""));
        Ok(Place { commit_lsn: u64::from_str_radix(lsn, 16)?, ordinal: ordinal.parse()? })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}:{:010}", self.commit_lsn, self.ordinal)
    }
}

/// As the header has it; in the table `@` and the era follow, unless it is the first.
impl FromStr for Position {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (text, era) = text.split_once('@').unwrap_or((text, "0"));
        let mut parts = text.splitn(3, ':');
        let mut part = || parts.next().unwrap_or_default();
        Ok(Position {
            era: era.parse()?,
            system_id: part().parse()?,
            timeline: part().parse()?,
            place: part().parse()?,
        })
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.system_id, self.timeline, self.place)?;
        match self.era {
            0 => Ok(()),
            era => write!(f, "@{era}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(text: &str) -> Position {
        text.parse().expect("a position")
    }

    #[test]
    fn a_position_reads_and_writes_as_the_relay_does() {
        let text = "7301234567890123456:2:00000000000000AA:0000000012";
        assert_eq!(position(text).to_string(), text);
        let later = format!("{text}@1790000000");
        assert_eq!(position(&later).to_string(), later);
        assert_eq!(position(&later).era, 1_790_000_000);
        for wrong in [
            "",
            "1:1:AA",
            "1:1:AA:",
            "1:1:XY:1",
            "a:1:AA:1",
            "1:1:AA:1:2",
            "1:1:AA:1@",
            "1:1:AA:1@a",
        ] {
            assert!(wrong.parse::<Position>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_rows_own_headers_say_nothing_where_the_relays_have_another_form() {
        let of = |names: [&str; 2], more: [(&str, &str); 2]| {
            let relays = [(names[0], "orders"), (names[1], "1:1:A0:0")];
            Headers::from_iter(
                relays.into_iter().chain(more).map(|(name, value)| (name, Some(value))),
            )
        };
        let (native, cloud) =
            (["outbox-relay", "outbox-position"], ["ce_outboxrelay", "ce_outboxposition"]);
        let own = [("ce_outboxera", "18446744073709551615"), ("ce_outboxrepaired", "1")];
        assert_eq!(read(&of(native, own), "orders"), Ok((position("1:1:A0:0"), false)));
        assert_eq!(
            read(&of(cloud, [("ce_outboxera", "7"), ("ce_outboxrepaired", "1")]), "orders"),
            Ok((position("1:1:A0:0@7"), true))
        );
        assert_eq!(
            read(&of(native, [("outbox-era", "7"), ("outbox-repaired", "1")]), "orders"),
            Ok((position("1:1:A0:0@7"), true))
        );
        let mixed = [native[0], cloud[1]];
        assert!(read(&of(mixed, own), "orders").is_err(), "its position is the row's");
    }

    #[test]
    fn a_relay_that_was_not_named_is_an_error() {
        let headers = |relay: &str| {
            Headers(vec![
                ("outbox-relay".into(), Some(relay.into())),
                ("outbox-position".into(), Some(b"1:1:A0:0".to_vec())),
            ])
        };
        assert_eq!(read(&headers("orders"), "orders"), Ok((position("1:1:A0:0"), false)));
        assert_eq!(read(&headers("other"), "orders"), Err(Stranger::Relay("other".into())));
        assert_eq!(read(&Headers::default(), "orders"), Err(Stranger::no_relay("orders")));
    }
}
