//! Whether what is stored under this relay's name, and the slot of that name, are this relay's own.

use super::{facts::Facts, halts::drop_slot, home};
use crate::{
    core::{halt::Halt, progress::Progress},
    postgres::catalog::slot::SlotState,
};

/// Whether what is stored under this relay's name is this relay's own. Asked before the fence, so
/// that a mistake in the settings does not fence an innocent relay of the same name, which serves
/// another cluster, slot or database.
///
/// # Errors
/// [`Halt`] naming both.
pub fn is_ours(facts: &Facts<'_>) -> Result<(), Halt> {
    if let Some(progress) = facts.progress {
        same_cluster(progress, facts)?;
        same_slot(progress, facts)?;
    }
    match facts.slot {
        Some(slot) => fits(facts, slot),
        None => Ok(()),
    }
}

fn same_cluster(progress: &Progress, facts: &Facts<'_>) -> Result<(), Halt> {
    let identity = facts.identity;
    if progress.system_id == identity.system_id {
        return Ok(());
    }
    let stored = progress.position.map_or_else(|| "nothing".to_owned(), |p| p.to_string());
    Err(Halt::new(
        format!(
            "stored progress ({stored}) belongs to the cluster with system identifier {}, this one \
             is {}: what is committed here up to {} is not known to be published",
            progress.system_id, identity.system_id, identity.flush_lsn
        ),
        format!(
            "{}if this cluster was made from that one by pg_upgrade, run `outbox-relay resume --at \
             upgrade`: nothing is left out; if the database was moved here by a dump, {}run `outbox-relay \
             resume --at now`: what was committed here before that is left out; if it is another \
             database, give this relay another name{}",
            match facts.has_delivered || facts.progress_in_database {
                true => "",
                false => {
                    "the database knows of no delivery by this relay: if it is new here, give it another \
                     name, and nothing is left out; "
                }
            },
            match progress.published_until_ms() {
                Some(_) => {
                    "publish what was created since the newest published event, some of it perhaps again, with \
                     `outbox-relay resume --at table`: it goes by the time at which rows were created, so it leaves out an older \
                     row of a transaction that was open then, and asks first, with the number of older rows; `--since` \
                     and an earlier time publish those as well; or, if all of it was published before the dump, "
                }
                None => {
                    "publish every event that the table has, those that were published before once more, with \
                     `outbox-relay resume --at table`, which loses nothing; or, if all of it was published before the \
                     dump, "
                }
            },
            home::forget(facts)
        ),
    ))
}

fn same_slot(progress: &Progress, facts: &Facts<'_>) -> Result<(), Halt> {
    let slot_name = facts.slot_name;
    if progress.slot == slot_name {
        return Ok(());
    }
    Err(Halt::new(
        format!(
            "stored progress ({}) belongs to slot {}, this relay is to use {slot_name}",
            progress.position.map_or_else(|| "nothing".to_owned(), |p| p.to_string()),
            progress.slot
        ),
        match facts.slot {
            Some(_) => {
                "set `name` or postgres.slot back, whichever was changed, or give this relay another name; to continue where the other slot is, and \
                 leave out what was committed between stored progress and that, run `outbox-relay resume --at \
                 slot`"
            }
            None => {
                "set `name` or postgres.slot back, whichever was changed (if that slot is gone, the relay makes it anew, and publishes from the table \
                 what it had not sent), or give this relay another name"
            }
        },
    ))
}

/// A slot of another database has its name. Where progress says that this slot is the relay's, this database may have
/// taken the place of that one.
fn another_databases(facts: &Facts<'_>, owner: &str) -> Halt {
    let name = facts.slot_name;
    let found = format!("slot {name} belongs to database {owner}, not {}", facts.database);
    let remedy = match facts.progress {
        None => "if `name` was changed, set it back; else set postgres.slot to a name of its own"
            .to_owned(),
        Some(_) => format!(
            "if postgres.url is wrong, correct it; if the relay is to serve this database as well, give it a name and a \
             postgres.slot of its own here; if this database has taken the \
             place of {owner} (that was renamed, and this is a copy of it), drop the slot, connected to {owner}: {}: the \
             relay makes it anew here, and publishes from the table what it had not sent, or halts and names the command \
             that does",
            drop_slot(name)
        ),
    };
    Halt::new(found, remedy)
}

fn fits(facts: &Facts<'_>, slot: &SlotState) -> Result<(), Halt> {
    let name = facts.slot_name;
    let other = "set postgres.slot to a name of its own";
    let anew = || {
        let drop = drop_slot(name);
        format!(
            "if no one else needs it, drop it, and the relay makes a new one: {drop}; or {other}"
        )
    };
    if slot.slot_type != "logical" || slot.plugin.as_deref() != Some("pgoutput") {
        let plugin = slot.plugin.as_deref().unwrap_or("none");
        let found = format!("slot {name} is {} with plugin {plugin}, not pgoutput", slot.slot_type);
        return Err(Halt::new(found, anew()));
    }
    if slot.database.as_deref() != Some(facts.database) {
        return Err(another_databases(facts, slot.database.as_deref().unwrap_or("none")));
    }
    if slot.two_phase {
        return Err(Halt::new(
            format!("slot {name} was made with two_phase, which changes what a commit is"),
            anew(),
        ));
    }
    Ok(())
}
