//! What decides which rows the stream has: the publication, and how it names the tables, as the
//! catalogs had it at one moment.
//!
//! A row that is written while its table is published under no name, or another one, is not in the
//! stream, and nothing in the stream says so: looking from time to time sees only what is the case
//! then. So the identities of the catalogs' rows are remembered, which a change gives anew also
//! where it is taken back: where they are the same as before, nothing was changed in between. Pure;
//! read by `source::publication`, kept in the progress record, compared by `reconcile`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::leaves::Leaves;

/// Tables, and ways in which they are published, that are stored one by one: some 2 KB.
const TABLES_MAX: usize = 8;
const WAYS_MAX: usize = 24;

/// A publication and the tables of the settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// `oid:xmin` of its row in `pg_publication`; empty where there is none.
    pub publication: String,
    /// By name, those that exist.
    pub tables: BTreeMap<String, PublishedTable>,
    /// Of more tables than are stored one by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digests: Option<Digests>,
    /// Digest of all that it names, other tables too: whatever counts in ordinals.
    pub whole: String,
    /// What lies below the tables: OID, and the `xmin` of the catalog's row that attaches it. Not stored.
    #[serde(default, skip_serializing)]
    pub attached: Vec<(u32, u32)>,
}

/// How a publication names a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedTable {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Each way by which it does, sorted: itself, its schema, or all tables; `oid:xmin` of the row that
    /// says so.
    pub own: Vec<String>,
    /// The same of what it is a partition of, under whose name its rows would come.
    pub above: Vec<String>,
    /// `oid:xmin` of the default of its column `xid`, by which moved rows are known; empty without one, `None`
    /// where it was not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stamp: Option<String>,
}

/// What tells of many tables that nothing was changed. Any change of one, a harmless one too, counts as
/// one that may hide rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Digests {
    /// Of the ways in which they are published.
    pub ways: String,
    /// Of their OIDs.
    pub oids: String,
    /// Of the defaults of their columns `xid`.
    pub stamps: String,
}

impl Digests {
    fn of(tables: &BTreeMap<String, PublishedTable>) -> Self {
        let of = |what: &dyn Fn(&PublishedTable) -> String| {
            let mut hash = Sha256::new();
            for (name, table) in tables {
                hash.update(format!("{name:?} {}\n", what(table)));
            }
            let digest = hash.finalize();
            digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
        };
        Digests {
            ways: of(&|table| format!("{:?} {:?}", table.own, table.above)),
            oids: of(&|table| table.oid.to_string()),
            stamps: of(&|table| format!("{:?}", table.stamp)),
        }
    }
}

/// Instead of the name of one.
const SOME_TABLE: &str = "one of the tables";

/// What has become of a publication since an earlier moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Since {
    /// No row can be missing from the stream.
    Whole,
    /// Rows may be; why.
    Broken(String),
}

impl Published {
    /// Compares with an earlier moment. `inside` says whether progress stands inside a transaction,
    /// where it counts what was sent of it.
    ///
    /// A further table, or a further way to publish one, hides nothing: as long as one way was there
    /// all the time, so were the rows.
    pub fn since(&self, earlier: &Published, inside: bool) -> Since {
        let broken = |why: &str| Since::Broken(why.to_owned());
        if self.publication != earlier.publication {
            return broken("the publication was changed or replaced");
        }
        if let Some(was) = &earlier.digests
            && Digests::of(&self.tables).ways != was.ways
        {
            return broken("the way in which one of the tables is published was changed");
        }
        for (name, was) in &earlier.tables {
            // One that is no longer in the settings is nobody's concern; one that is there no more
            // is not published, and says so itself.
            let Some(is) = self.tables.get(name) else { continue };
            if !is.own.iter().any(|way| was.own.contains(way)) || is.above != was.above {
                return Since::Broken(format!("the way in which {name} is published was changed"));
            }
        }
        if let Some(name) = self.restamped(earlier) {
            return Since::Broken(format!("the default of the column xid of {name} was changed"));
        }
        if inside && self.whole != earlier.whole {
            return broken(
                "the tables of the publication were changed, and a transaction is delivered in part",
            );
        }
        Since::Whole
    }

    /// As it is stored, however many tables there are; `None` where it is small enough.
    pub fn cut(&self) -> Option<Published> {
        let ways = self.tables.values().map(|table| table.own.len() + table.above.len());
        if self.tables.len() <= TABLES_MAX && ways.sum::<usize>() <= WAYS_MAX {
            return None;
        }
        let digests = Some(Digests::of(&self.tables));
        Some(Published { tables: BTreeMap::new(), digests, attached: vec![], ..self.clone() })
    }

    /// A table whose column `xid` has another default than at an earlier moment: what was inserted meanwhile
    /// may look moved, to the stream and to a repair.
    pub fn restamped(&self, earlier: &Published) -> Option<&str> {
        let anew = |(name, was): (&String, &PublishedTable)| {
            let (name, is) = self.tables.get_key_value(name)?;
            let stamp = was.stamp.as_ref().filter(|stamp| !stamp.is_empty())?;
            (is.oid == was.oid && is.stamp.as_ref()? != stamp).then_some(name.as_str())
        };
        let among = |was: &Digests| Digests::of(&self.tables).stamps != was.stamps;
        let some = || earlier.digests.as_ref().filter(|was| among(was)).map(|_| SOME_TABLE);
        earlier.tables.iter().find_map(anew).or_else(some)
    }

    /// The partitions that are there.
    pub fn leaves(&self) -> Leaves {
        Leaves::of(self.attached.iter().map(|(oid, _)| *oid))
    }

    /// A table that is not the one of an earlier moment, though it has its name: what was written
    /// into that one is not in it.
    pub fn made_anew(&self, earlier: &Published) -> Option<&str> {
        let anew = |(name, was): (&String, &PublishedTable)| {
            let (name, is) = self.tables.get_key_value(name)?;
            (is.oid != was.oid).then_some(name.as_str())
        };
        let among = |was: &Digests| Digests::of(&self.tables).oids != was.oids;
        let some = || earlier.digests.as_ref().filter(|was| among(was)).map(|_| SOME_TABLE);
        earlier.tables.iter().find_map(anew).or_else(some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(
        publication: &str,
        tables: &[(&str, u32, &[&str], &[&str])],
        whole: &str,
    ) -> Published {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let table = |(name, oid, own, above): &(&str, u32, &[&str], &[&str])| {
            let table =
                PublishedTable { oid: *oid, own: words(own), above: words(above), stamp: None };
            ((*name).to_owned(), table)
        };
        Published {
            publication: publication.to_owned(),
            tables: tables.iter().map(table).collect(),
            digests: None,
            whole: whole.to_owned(),
            attached: vec![],
        }
    }

    #[test]
    fn of_many_tables_any_change_is_known_by_digests_of_bounded_size() {
        let many = |count: u32| {
            let mut many = published("1:90", &[], "w");
            for oid in 0..count {
                let stamp = Some("9:100".to_owned());
                let (own, above) = (vec![format!("table {oid}:100")], vec![]);
                let table = PublishedTable { oid, own, above, stamp };
                many.tables.insert(format!("o.t{oid}"), table);
            }
            many
        };
        assert_eq!(many(8).cut(), None);
        let stored = many(5_000).cut().expect("they are too many");
        let bytes = serde_json::to_vec(&stored).expect("it has a form").len();
        assert!(bytes < 400, "{bytes}");
        let changed = |change: &dyn Fn(&mut PublishedTable)| {
            let mut now = many(5_000);
            now.tables.get_mut("o.t7").map(change).expect("it is there");
            let since = now.since(&stored, false) != Since::Whole;
            (since, now.made_anew(&stored).is_some(), now.restamped(&stored).is_some())
        };
        assert_eq!(changed(&|_| ()), (false, false, false));
        assert_eq!(changed(&|t| t.own = vec![]), (true, false, false));
        assert_eq!(changed(&|t| t.above = vec!["table 1:1".into()]), (true, false, false));
        assert_eq!(changed(&|t| t.oid = 9_999), (false, true, false));
        assert_eq!(changed(&|t| t.stamp = None), (true, false, true));
    }

    #[test]
    fn what_may_hide_rows_is_told_from_what_adds_to_them() {
        type Table<'a> = (&'a str, u32, &'a [&'a str], &'a [&'a str]);
        let was: Table<'_> = ("o.e", 5, &["table 7:100"], &[]);
        let cases: &[(&str, &str, &[Table<'_>], bool)] = &[
            ("as it was", "1:90", &[was], true),
            ("changed, and put back", "1:101", &[was], false),
            ("dropped and made anew", "2:101", &[("o.e", 5, &["table 8:101"], &[])], false),
            ("dropped", "", &[("o.e", 5, &[], &[])], false),
            ("the table left it", "1:90", &[("o.e", 5, &[], &[])], false),
            ("and came back", "1:90", &[("o.e", 5, &["table 8:101"], &[])], false),
            ("its schema, too", "1:90", &[("o.e", 5, &["schema 9:1", "table 7:100"], &[])], true),
            ("its schema instead", "1:90", &[("o.e", 5, &["schema 9:1"], &[])], false),
            (
                "a root above it, too",
                "1:90",
                &[("o.e", 5, &["table 7:100"], &["table 8:1"])],
                false,
            ),
            ("another table", "1:90", &[was, ("o.f", 6, &["table 8:101"], &[])], true),
            ("it is not in the settings", "1:90", &[], true),
            ("made anew, and added", "1:90", &[("o.e", 6, &["table 8:101"], &[])], false),
        ];
        for (what, publication, tables, whole) in cases {
            let earlier = published("1:90", &[was], "w");
            let now = published(publication, tables, "w");
            let since = now.since(&earlier, false);
            assert_eq!(since == Since::Whole, *whole, "{what}: {since:?}");
        }
    }

    #[test]
    fn another_table_counts_only_inside_a_transaction() {
        let earlier = published("1:90", &[], "one table");
        let now = published("1:90", &[], "two tables");
        assert_eq!(now.since(&earlier, false), Since::Whole);
        assert!(matches!(now.since(&earlier, true), Since::Broken(_)));
    }

    #[test]
    fn another_default_of_xid_breaks_only_what_was_known_by_the_former() {
        let stamped = |stamp: Option<&str>| {
            let mut published = published("1:90", &[("o.e", 5, &["table 7:100"], &[])], "");
            let stamp = stamp.map(str::to_owned);
            published.tables.values_mut().for_each(|table| table.stamp.clone_from(&stamp));
            published
        };
        for (was, is, whole) in [
            (Some("9:100"), Some("9:100"), true),
            (Some("9:100"), Some("10:101"), false),
            (Some("9:100"), Some(""), false),
            (Some(""), Some("9:100"), true),
            (None, Some("9:100"), true),
        ] {
            let since = stamped(is).since(&stamped(was), false);
            assert_eq!(since == Since::Whole, whole, "{was:?} to {is:?}: {since:?}");
        }
    }

    #[test]
    fn a_table_of_the_same_name_is_not_the_same_table() {
        let earlier = published("1:90", &[("o.e", 5, &[], &[]), ("o.f", 6, &[], &[])], "");
        let now = published("1:90", &[("o.e", 5, &[], &[]), ("o.f", 7, &[], &[])], "");
        assert_eq!(now.made_anew(&earlier), Some("o.f"));
        assert_eq!(now.made_anew(&now.clone()), None);
    }
}
