//! Whether the history in a database is one that this version continues: what [`crate::apply`] would refuse,
//! known without changing anything.

use std::fmt;

use tokio_postgres::{Client, Error};

use crate::{Set, apply::unapplied, former};

/// How a database's history differs from this version's migrations, so that [`crate::apply`] refuses it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Difference {
    /// A newer version applied this: `V15__name`.
    Newer(String),
    /// It was applied with another text than this version's.
    AnotherText(String),
    /// It is missing, and later ones are there.
    Missing(String),
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Difference::Newer(name) => write!(f, "has {name}, which this version does not have"),
            Difference::AnotherText(name) => {
                write!(f, "has {name} with another text than this version's")
            }
            Difference::Missing(name) => write!(f, "lacks {name}, and has later ones"),
        }
    }
}

/// Compares the history in the database with this version's migrations, oldest first; empty where
/// [`crate::apply`] has nothing against it. Changes nothing.
///
/// # Errors
/// The database's, also where the role may not read the history or there is none.
pub async fn differences(client: &Client, set: Set) -> Result<Vec<Difference>, Error> {
    let select = format!(
        "select version::pg_catalog.int4, name::pg_catalog.text, checksum::pg_catalog.text from {} \
         order by version",
        set.history_table()
    );
    let mut applied: Vec<(i32, String, String)> = Vec::new();
    for row in client.query(&select, &[]).await? {
        applied.push((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?));
    }
    Ok(compare(set, &applied))
}

/// Version, name and checksum of what was applied.
fn compare(set: Set, applied: &[(i32, String, String)]) -> Vec<Difference> {
    let ours = unapplied(set);
    let known = |version: i32| ours.iter().find(|migration| migration.version() == version);
    let newest = applied.iter().map(|(version, ..)| *version).max().unwrap_or(0);
    let strange = applied.iter().filter_map(|(version, name, checksum)| {
        let label = || format!("V{version}__{name}");
        let Some(ours) = known(*version) else { return Some(Difference::Newer(label())) };
        let is_ours = ours.name() == name
            && (ours.checksum().to_string() == *checksum
                || former::is_former(set, *version, checksum));
        (!is_ours).then(|| Difference::AnotherText(label()))
    });
    let missing = ours.iter().filter(|ours| {
        ours.version() < newest && !applied.iter().any(|(version, ..)| *version == ours.version())
    });
    let missing = missing.map(|ours| Difference::Missing(ours.to_string()));
    let mut found: Vec<Difference> = missing.chain(strange).collect();
    found.sort_by_key(|difference| matches!(difference, Difference::Newer(_)));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As [`crate::apply`] writes it.
    fn history(set: Set) -> Vec<(i32, String, String)> {
        let row =
            |m: &refinery_core::Migration| (m.version(), m.name().into(), m.checksum().to_string());
        unapplied(set).iter().map(row).collect()
    }

    #[test]
    fn a_history_is_ours_up_to_any_version_and_with_former_texts() {
        for &set in Set::ALL {
            let mut applied = history(set);
            assert_eq!(compare(set, &applied), []);
            assert_eq!(compare(set, &applied[..1]), []);
            assert_eq!(compare(set, &[]), []);
            for (_, version, checksum) in former::of(set) {
                let row = applied.iter_mut().find(|(it, ..)| *it == version).expect("it is there");
                row.2 = checksum.to_string();
            }
            assert_eq!(compare(set, &applied), []);
        }
    }

    #[test]
    fn what_apply_refuses_is_named() {
        let mut applied = history(Set::Outbox);
        let newest = applied.last().expect("there are some").0 + 1;
        applied.push((newest, "later".into(), "7".into()));
        applied[0].2 = "1".into();
        applied.remove(1);
        let expected = [
            Difference::Missing("V2__dead_letters".into()),
            Difference::AnotherText("V1__events".into()),
            Difference::Newer(format!("V{newest}__later")),
        ];
        assert_eq!(compare(Set::Outbox, &applied), expected);
    }
}
