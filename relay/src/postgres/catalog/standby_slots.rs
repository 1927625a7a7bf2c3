//! `synchronized_standby_slots`, from PostgreSQL 17 on: a slot that is made with `failover` is sent nothing
//! that the standbys of these slots have not confirmed. One that is away holds everything back, and only the
//! server's log says so.

use serde::Deserialize;
use tokio_postgres::Client;

use super::{error::InspectError, rows::rows};

const SETTING: &str = "synchronized_standby_slots";

/// A slot that the setting names.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct StandbySlot {
    name: String,
    /// Why no standby confirms anything through it; `None` where one reads from it.
    away: Option<String>,
}

/// In the order of their names. A name is written as an identifier may be.
const SLOTS: &str = "(select coalesce(pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object( \
         'name', w.name, 'away', case \
             when o.slot_name is null then 'there is no slot of that name' \
             when o.slot_type <> 'physical' then 'it is no slot of a standby' \
             when o.wal_status = 'lost' then 'it has lost its WAL' \
             when not o.active then 'nothing reads from it' end) order by w.name), '[]') \
     from (select distinct pg_catalog.lower(pg_catalog.btrim(name, E' \\t\\n\"')) as name \
           from pg_catalog.unnest(pg_catalog.string_to_array( \
               pg_catalog.current_setting('synchronized_standby_slots', true), ',')) n (name)) w \
     left join pg_catalog.pg_replication_slots o on o.slot_name::text = w.name \
     where w.name <> '')";

/// What the setting names; nothing on a server that does not know it.
///
/// # Errors
/// [`InspectError`].
pub async fn named(client: &Client) -> Result<Vec<StandbySlot>, InspectError> {
    let sql = format!("select {SLOTS}::text");
    Ok(rows(client, SETTING, &sql, &[]).await?.pop().unwrap_or_default())
}

/// What the setting names, where it keeps what reads from `slot` waiting at this moment. Where that has
/// come, the role may not see.
///
/// # Errors
/// [`InspectError`].
pub async fn waiting(
    client: &Client,
    slot: &str,
) -> Result<Option<Vec<StandbySlot>>, InspectError> {
    let sql = format!(
        "select {SLOTS}::text \
         from pg_catalog.pg_replication_slots s \
         cross join lateral pg_catalog.pg_stat_get_activity(s.active_pid) a \
         where pg_catalog.current_setting('synchronized_standby_slots', true) <> '' \
             and s.slot_name::text = $1 and s.active_pid is not null \
             and a.wait_event = 'WaitForStandbyConfirmation'"
    );
    Ok(rows(client, SETTING, &sql, &[&slot]).await?.pop())
}

/// Those that are away, each with why, and what to do; `None` where there is none.
pub fn away(slots: &[StandbySlot]) -> Option<(String, String)> {
    let each = slots.iter().filter_map(|slot| {
        let why = slot.away.as_deref()?;
        Some(format!("{} ({why})", slot.name))
    });
    let each: Vec<String> = each.collect();
    (!each.is_empty()).then(|| (each.join(", "), remedy(slots)))
}

/// What it means, and what to do, while the server waits.
pub fn in_words(slots: &[StandbySlot]) -> String {
    let (who, remedy) = away(slots).unwrap_or_else(|| {
        let names: Vec<&str> = slots.iter().map(|slot| slot.name.as_str()).collect();
        (names.join(", "), remedy(&[]))
    });
    format!(
        "PostgreSQL holds events back until standbys have them, for {SETTING} names their slots, and none \
         comes: {who}. Nothing is lost, and events of every key wait; {remedy}"
    )
}

/// Takes out of the setting those that are away.
fn remedy(slots: &[StandbySlot]) -> String {
    let here = slots.iter().filter(|slot| slot.away.is_none());
    let here: Vec<String> = here.map(|slot| format!("\"{}\"", slot.name)).collect();
    format!(
        "start the standby that has it as primary_slot_name, or take it out of the setting: `alter system \
         set {SETTING} = '{}'`, then `select pg_reload_conf()`. Without it a standby that is promoted may lack \
         events that were published",
        here.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use crate::postgres::catalog::standby_slots::*;

    #[test]
    fn a_standby_that_is_away_is_named_and_taken_out_of_the_setting_alone() {
        let slot = |name: &str, away: Option<&str>| StandbySlot {
            name: name.to_owned(),
            away: away.map(str::to_owned),
        };
        let here = slot("a", None);
        assert_eq!(away(std::slice::from_ref(&here)), None);
        let (who, remedy) =
            away(&[here.clone(), slot("b", Some("nothing reads from it"))]).expect("one is away");
        assert_eq!(who, "b (nothing reads from it)");
        assert!(remedy.contains("synchronized_standby_slots = '\"a\"'`"), "{remedy}");
        let slow = in_words(&[here]);
        assert!(slow.contains("none comes: a. ") && slow.contains("= ''`"), "{slow}");
    }
}
