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

use crate::leaves::Leaves;

/// A publication and the tables of the settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// `oid:xmin` of its row in `pg_publication`; empty where there is none.
    pub publication: String,
    /// By name, those that exist.
    pub tables: BTreeMap<String, PublishedTable>,
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

    /// A table whose column `xid` has another default than at an earlier moment: what was inserted meanwhile
    /// may look moved, to the stream and to a repair.
    pub fn restamped(&self, earlier: &Published) -> Option<&str> {
        let anew = |(name, was): (&String, &PublishedTable)| {
            let (name, is) = self.tables.get_key_value(name)?;
            let stamp = was.stamp.as_ref().filter(|stamp| !stamp.is_empty())?;
            (is.oid == was.oid && is.stamp.as_ref()? != stamp).then_some(name.as_str())
        };
        earlier.tables.iter().find_map(anew)
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
        earlier.tables.iter().find_map(anew)
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
            whole: whole.to_owned(),
            attached: vec![],
        }
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
