//! Released texts of migrations that had to change, by refinery's checksum.
//!
//! A database that was migrated by one of them has what today's text makes: its history is brought up
//! to today's checksum, so that it is neither refused nor migrated again. The texts themselves are
//! in `tests/former`.

use refinery_core::Migration;
use tokio_postgres::{Client, Error};

use crate::Set;

/// A set, a version, and the checksum of its former text.
const FORMER: &[(Set, i32, u64)] = &[
    // Not plain ASCII, and names meant what the session's search_path said.
    (Set::Outbox, 1, 17_881_388_622_624_013_387),
    (Set::Outbox, 2, 10_731_008_156_597_319_816),
    (Set::Inbox, 1, 10_490_490_354_451_355_047),
    (Set::Inbox, 2, 12_591_294_257_161_933_115),
    (Set::Inbox, 3, 12_504_588_682_037_418_983),
];

/// The former texts of a set: version and checksum.
#[cfg(test)]
pub(crate) fn of(set: Set) -> impl Iterator<Item = (Set, i32, u64)> {
    FORMER.iter().copied().filter(move |(of, ..)| *of == set)
}

/// Whether this is the checksum of a former text.
pub(crate) fn is_former(set: Set, version: i32, checksum: &str) -> bool {
    FORMER
        .iter()
        .any(|(of, it, former)| *of == set && *it == version && former.to_string() == checksum)
}

/// Brings the history's checksums of former texts up to those of `migrations`.
///
/// # Errors
/// The database's.
pub(crate) async fn adopt(
    client: &Client,
    set: Set,
    migrations: &[Migration],
) -> Result<(), Error> {
    let table = set.history_table();
    let exists = client.query_one("select to_regclass($1) is not null", &[&table]).await?;
    if !exists.try_get::<_, bool>(0)? {
        return Ok(());
    }
    let update = format!("update {table} set checksum = $1 where version = $2 and checksum = $3");
    for migration in migrations {
        let former =
            FORMER.iter().filter(|(of, version, _)| *of == set && *version == migration.version());
        for (_, version, checksum) in former {
            let (now, then) = (migration.checksum().to_string(), checksum.to_string());
            client.execute(&update, &[&now, version, &then]).await?;
        }
    }
    Ok(())
}
