//! The database side of outbox-relay, as plain SQL: usable by any migration tool, and applied
//! here with `apply` (feature `apply`, on by default).
//!
//! Files follow the naming of Flyway and refinery (`V1__events.sql`) and never change once
//! released; their checksums are kept in `<set>.migrations` and verified at each run, and texts
//! that had to change are known by their `former` ones. Every statement may be repeated, so a set
//! that was applied by hand is adopted, not refused. Called by the relay's `migrate` command and by
//! tests; grants are left to the operator (`docs/ROLES.md`).

/// The README's code compiles.
#[cfg(all(doctest, feature = "apply"))]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(feature = "apply")]
mod apply;
#[cfg(feature = "apply")]
mod former;
pub mod grants;
#[cfg(feature = "apply")]
mod history;
#[cfg(feature = "apply")]
mod made;
#[cfg(feature = "apply")]
mod recreate;

use std::{fmt, str::FromStr};

#[cfg(feature = "apply")]
pub use apply::{Applied, MigrateError, apply};
#[cfg(feature = "apply")]
pub use history::{Difference, differences};
#[cfg(feature = "apply")]
pub use made::{Made, missing_outbox, restore_outbox};
#[cfg(feature = "apply")]
pub use recreate::{meaning, recreate_inbox};

/// A group of migrations with a schema and a history of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Set {
    /// The producer's database: schema `outbox`.
    Outbox,
    /// The consumer's database: schema `inbox`.
    Inbox,
}

/// One file of a [`Set`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migration {
    /// From 1, without gaps.
    pub version: i32,
    /// As in the file's name, `V<version>__<name>.sql`.
    pub name: &'static str,
    /// The file's text.
    pub sql: &'static str,
}

const OUTBOX: &[Migration] = &[
    Migration { version: 1, name: "events", sql: include_str!("../outbox/V1__events.sql") },
    Migration {
        version: 2,
        name: "dead_letters",
        sql: include_str!("../outbox/V2__dead_letters.sql"),
    },
    Migration { version: 3, name: "leaders", sql: include_str!("../outbox/V3__leaders.sql") },
    Migration { version: 4, name: "deletions", sql: include_str!("../outbox/V4__deletions.sql") },
    Migration { version: 5, name: "releases", sql: include_str!("../outbox/V5__releases.sql") },
    Migration { version: 6, name: "relay_keys", sql: include_str!("../outbox/V6__relay_keys.sql") },
    Migration { version: 7, name: "limits", sql: include_str!("../outbox/V7__limits.sql") },
    Migration { version: 8, name: "history", sql: include_str!("../outbox/V8__history.sql") },
    Migration { version: 9, name: "own_notes", sql: include_str!("../outbox/V9__own_notes.sql") },
    Migration { version: 10, name: "always", sql: include_str!("../outbox/V10__always.sql") },
    Migration {
        version: 11,
        name: "merged_notes",
        sql: include_str!("../outbox/V11__merged_notes.sql"),
    },
    Migration { version: 12, name: "pending", sql: include_str!("../outbox/V12__pending.sql") },
    Migration { version: 13, name: "progress", sql: include_str!("../outbox/V13__progress.sql") },
    Migration {
        version: 14,
        name: "merged_alone",
        sql: include_str!("../outbox/V14__merged_alone.sql"),
    },
    Migration {
        version: 15,
        name: "own_account",
        sql: include_str!("../outbox/V15__own_account.sql"),
    },
    Migration { version: 16, name: "restored", sql: include_str!("../outbox/V16__restored.sql") },
    Migration {
        version: 17,
        name: "restored_forms",
        sql: include_str!("../outbox/V17__restored_forms.sql"),
    },
];

const INBOX: &[Migration] = &[
    Migration { version: 1, name: "messages", sql: include_str!("../inbox/V1__messages.sql") },
    Migration { version: 2, name: "parked", sql: include_str!("../inbox/V2__parked.sql") },
    Migration { version: 3, name: "watermarks", sql: include_str!("../inbox/V3__watermarks.sql") },
    Migration { version: 4, name: "neighbours", sql: include_str!("../inbox/V4__neighbours.sql") },
    Migration { version: 5, name: "retention", sql: include_str!("../inbox/V5__retention.sql") },
    Migration { version: 6, name: "topics", sql: include_str!("../inbox/V6__topics.sql") },
    Migration { version: 7, name: "by_id", sql: include_str!("../inbox/V7__by_id.sql") },
    Migration { version: 8, name: "places", sql: include_str!("../inbox/V8__places.sql") },
    Migration { version: 9, name: "identity", sql: include_str!("../inbox/V9__identity.sql") },
    Migration { version: 10, name: "losses", sql: include_str!("../inbox/V10__losses.sql") },
    Migration { version: 11, name: "united", sql: include_str!("../inbox/V11__united.sql") },
    Migration { version: 12, name: "lanes", sql: include_str!("../inbox/V12__lanes.sql") },
    Migration { version: 13, name: "unclaimed", sql: include_str!("../inbox/V13__unclaimed.sql") },
    Migration { version: 14, name: "clock", sql: include_str!("../inbox/V14__clock.sql") },
];

impl Set {
    /// Every set of this version.
    pub const ALL: &'static [Set] = &[Set::Outbox, Set::Inbox];

    /// Name of the set and of its schema.
    pub const fn name(self) -> &'static str {
        match self {
            Set::Outbox => "outbox",
            Set::Inbox => "inbox",
        }
    }

    /// Its migrations, in the order in which they are applied.
    pub const fn migrations(self) -> &'static [Migration] {
        match self {
            Set::Outbox => OUTBOX,
            Set::Inbox => INBOX,
        }
    }

    /// The whole set as one script for `psql -1`.
    pub fn print(self) -> String {
        self.migrations().iter().map(|m| format!("-- {}\n{}\n", m.file_name(), m.sql)).collect()
    }

    /// Refuses a schema in which others may do what they like: the statement that the set's first
    /// migration has too, for those who apply it by hand.
    #[cfg(any(feature = "apply", test))]
    pub(crate) fn guard(self) -> String {
        include_str!("../guard.sql").replace("{schema}", self.name())
    }

    /// Table with the history of what was applied.
    #[cfg(feature = "apply")]
    pub(crate) const fn history_table(self) -> &'static str {
        match self {
            Set::Outbox => "outbox.migrations",
            Set::Inbox => "inbox.migrations",
        }
    }
}

impl Migration {
    /// `V1__events.sql`.
    pub fn file_name(&self) -> String {
        format!("V{}__{}.sql", self.version, self.name)
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No set of this version has that name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this version has no migration set {name:?}; it has: outbox, inbox")]
pub struct UnknownSet {
    name: String,
}

impl FromStr for Set {
    type Err = UnknownSet;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Set::ALL
            .iter()
            .copied()
            .find(|set| set.name() == name)
            .ok_or_else(|| UnknownSet { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_count_from_one_without_gaps() {
        for set in Set::ALL {
            let versions: Vec<i32> = set.migrations().iter().map(|m| m.version).collect();
            let expected: Vec<i32> = (1..).take(versions.len()).collect();
            assert_eq!(versions, expected, "{set}");
            assert!(!versions.is_empty(), "an empty set must not look as if it were applied");
        }
    }

    #[test]
    fn a_set_that_this_version_does_not_have_is_named_in_the_error() {
        assert_eq!("outbox".parse(), Ok(Set::Outbox));
        assert_eq!("inbox".parse(), Ok(Set::Inbox));
        let error = "both".parse::<Set>().expect_err("no such set");
        assert_eq!(
            error.to_string(),
            r#"this version has no migration set "both"; it has: outbox, inbox"#
        );
    }

    /// A server whose encoding lacks a character refuses the whole file, comments included.
    #[test]
    fn every_migration_is_plain_ascii() {
        for (set, migration) in all() {
            assert!(migration.sql.is_ascii(), "{set} {}", migration.file_name());
        }
    }

    #[test]
    fn every_migration_means_postgresqls_own_names_and_puts_the_search_path_back() {
        for (set, migration) in all() {
            let file = migration.file_name();
            let statements = |sql: &str| {
                let text = sql.lines().filter(|line| !line.starts_with("--") && !line.is_empty());
                text.map(|line| format!("{line}\n")).collect::<String>()
            };
            let sql = statements(migration.sql);
            let [pin, unpin] = search_path(set);
            assert!(sql.starts_with(&pin) && sql.ends_with(&unpin), "{set} {file}: {pin} {unpin}");
        }
    }

    #[test]
    fn the_first_migration_looks_whose_the_schema_is_before_anything_is_made_in_it() {
        for set in Set::ALL {
            let sql = set.migrations().first().expect("there is one").sql;
            let before = sql.split_once(&set.guard()).expect("it has the guard").0;
            let made: Vec<&str> =
                before.lines().filter(|line| line.starts_with("create")).collect();
            assert_eq!(made, [format!("create schema if not exists {set};")]);
        }
    }

    fn all() -> impl Iterator<Item = (Set, &'static Migration)> {
        Set::ALL.iter().flat_map(|set| set.migrations().iter().map(|m| (*set, m)))
    }

    /// What each file begins and ends with.
    fn search_path(set: Set) -> [String; 2] {
        let pin = format!(
            "do $$\nbegin\n    perform pg_catalog.set_config(\n        '{set}.search_path', \
             pg_catalog.current_setting('search_path'), false);\n    perform \
             pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false);\nend\n$$;\n"
        );
        let unpin = format!(
            "do $$\nbegin\n    perform pg_catalog.set_config(\n        'search_path', \
             pg_catalog.current_setting('{set}.search_path'), false);\nend\n$$;\n"
        );
        [pin, unpin]
    }

    #[test]
    fn a_printed_set_carries_each_file_whole() {
        for set in Set::ALL {
            let script = set.print();
            for migration in set.migrations() {
                assert!(script.contains(migration.sql), "{}", migration.file_name());
            }
        }
    }
}
