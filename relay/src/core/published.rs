//! What decides which rows the stream has: the publication, and how it names the tables, as the
//! catalogs had it at one moment.
//!
//! A row that is written while its table is published under no name, or another one, is not in the stream, and nothing
//! there says so; a look sees only what is the case then. So the identities of the catalogs' rows are remembered, which a
//! change assigns again also where it is taken back. Pure; read by `source::publication`, kept in the progress record.

mod known;

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::core::leaves::Leaves;

/// Tables, and ways in which they are published, that are stored as they are: some 2 KB.
const TABLES_MAX: usize = 8;
const WAYS_MAX: usize = 24;
/// Tables that are stored in short, each by itself: some 25 KB.
const SHORT_MAX: usize = 200;
/// Ways of each that are stored in short. Of more, those that come first; a change of these alone counts.
const SHORT_WAYS_MAX: usize = 2;

/// A publication and the tables of the settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// `oid:xmin` of its row in `pg_publication`; empty where there is none.
    pub publication: String,
    /// By name, those that exist.
    pub tables: BTreeMap<String, PublishedTable>,
    /// The tables' names, and what is said of each, are digests.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub short: bool,
    /// Of more tables than are stored each by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digests: Option<Digests>,
    /// Digest of all that it names, other tables too: whatever counts in ordinals.
    pub whole: String,
    /// What lies below the tables: OID, and the `xmin` of the catalog's row that attaches it. Not stored.
    #[serde(default, skip_serializing)]
    pub attached: Vec<(u32, u32)>,
    /// Those of them whose rows are not in the WAL, by name. Not stored.
    #[serde(default, skip_serializing)]
    pub unlogged: Vec<String>,
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

/// What tells of very many tables that nothing was changed. Any change of one, or of which there are, counts
/// as one that may hide rows.
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

/// Enough to tell a few hundred things apart.
fn digest(what: &str) -> String {
    Sha256::digest(what).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

impl PublishedTable {
    /// What can be compared with another one's alone.
    fn short(&self) -> Self {
        let of_all = |ways: &[String]| (!ways.is_empty()).then(|| digest(&ways.join(" ")));
        PublishedTable {
            oid: self.oid,
            own: self.own.iter().take(SHORT_WAYS_MAX).map(|way| digest(way)).collect(),
            above: of_all(&self.above).into_iter().collect(),
            stamp: self.stamp.as_ref().map(|stamp| match stamp.as_str() {
                "" => String::new(),
                stamp => digest(stamp),
            }),
        }
    }
}

impl Digests {
    /// Of the tables in short, which may be all that is known of them.
    fn of(published: &Published) -> Self {
        let tables = published.shortened().tables;
        let of = |what: &dyn Fn(&PublishedTable) -> String| {
            let mut hash = Sha256::new();
            for (name, table) in &tables {
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

/// Instead of the name of one: of very many, what was changed is known of all together.
const SOME_TABLE: &str = "one of the tables (or which tables the settings have)";

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
            && Digests::of(self).ways != was.ways
        {
            return Since::Broken(format!(
                "the way in which {SOME_TABLE} is published was changed"
            ));
        }
        for (name, is, was) in self.of_both(earlier) {
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

    /// Tables that are there now and were: name, now, and then. One that is no longer in the settings is
    /// no one's concern; one that is there no more is not published, and says so itself.
    fn of_both<'a, 'b>(
        &'a self,
        earlier: &'b Published,
    ) -> impl Iterator<Item = (&'a str, Cow<'a, PublishedTable>, &'b PublishedTable)> {
        self.tables.iter().filter_map(|(name, is)| {
            let (was, is) = match earlier.short {
                true => (earlier.tables.get(&digest(name))?, Cow::Owned(is.short())),
                false => (earlier.tables.get(name)?, Cow::Borrowed(is)),
            };
            Some((name.as_str(), is, was))
        })
    }

    /// As it is stored, however many tables there are; `None` where it is small enough, or was cut.
    pub fn cut(&self) -> Option<Published> {
        let ways = self.tables.values().map(|table| table.own.len() + table.above.len());
        match self.tables.len() {
            count if count > SHORT_MAX => Some(self.digested()),
            count if count > TABLES_MAX || ways.sum::<usize>() > WAYS_MAX => {
                (!self.short).then(|| self.shortened())
            }
            _ => None,
        }
    }

    /// Each table by itself, in short.
    fn shortened(&self) -> Published {
        if self.short {
            return self.clone();
        }
        let each = self.tables.iter().map(|(name, table)| (digest(name), table.short()));
        Published { tables: each.collect(), short: true, attached: vec![], ..self.clone() }
    }

    /// All tables together: what is left where there is no room.
    pub fn digested(&self) -> Published {
        let digests = self.digests.clone().unwrap_or_else(|| Digests::of(self));
        let (tables, digests) = (BTreeMap::new(), Some(digests));
        Published { tables, digests, short: false, attached: vec![], ..self.clone() }
    }

    /// A table whose column `xid` has another default than at an earlier moment: what was inserted meanwhile
    /// may look moved, to the stream and to a repair.
    pub fn restamped(&self, earlier: &Published) -> Option<&str> {
        let anew = |(name, is, was): (_, Cow<'_, PublishedTable>, &PublishedTable)| {
            let stamp = was.stamp.as_ref().filter(|stamp| !stamp.is_empty())?;
            (is.oid == was.oid && is.stamp.as_ref()? != stamp).then_some(name)
        };
        let among = |was: &Digests| Digests::of(self).stamps != was.stamps;
        let some = || earlier.digests.as_ref().filter(|was| among(was)).map(|_| SOME_TABLE);
        self.of_both(earlier).find_map(anew).or_else(some)
    }

    /// The partitions that are there.
    pub fn leaves(&self) -> Leaves {
        Leaves::of(self.attached.iter().map(|(oid, _)| *oid))
    }

    /// A table that is not the one of an earlier moment, though it has its name: what was written
    /// into that one is not in it.
    pub fn made_anew(&self, earlier: &Published) -> Option<&str> {
        let anew = |(name, is, was): (_, Cow<'_, PublishedTable>, &PublishedTable)| {
            (is.oid != was.oid).then_some(name)
        };
        let among = |was: &Digests| Digests::of(self).oids != was.oids;
        let some = || earlier.digests.as_ref().filter(|was| among(was)).map(|_| SOME_TABLE);
        self.of_both(earlier).find_map(anew).or_else(some)
    }
}

#[cfg(test)]
mod tests {
    use crate::core::published::*;

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
        let (publication, whole) = (publication.to_owned(), whole.to_owned());
        let tables = tables.iter().map(table).collect();
        Published { publication, tables, whole, ..Published::default() }
    }

    #[test]
    fn of_some_hundred_tables_each_is_stored_in_short_and_compared_by_itself() {
        for count in [9, 200] {
            let stored = many(count).cut().expect("they are too many");
            assert_eq!(stored.cut(), None, "it is stored again as it is");
            let room = stored.digested();
            assert_eq!(room, many(count).digested());
            assert_eq!(many(count).since(&room, false), Since::Whole);
            let stored: Published =
                serde_json::from_slice(&serde_json::to_vec(&stored).expect("it has a form"))
                    .expect("it is read again");
            let after = |change: &dyn Fn(&mut Published)| {
                let mut now = many(count);
                change(&mut now);
                let since = match now.since(&stored, false) {
                    Since::Whole => false,
                    Since::Broken(why) => {
                        assert!(why.contains("o.t7"), "{why}");
                        true
                    }
                };
                let anew = now.made_anew(&stored).map(|name| assert_eq!(name, "o.t7"));
                let restamped = now.restamped(&stored).map(|name| assert_eq!(name, "o.t7"));
                (since, anew.is_some(), restamped.is_some())
            };
            let seventh = |change: &dyn Fn(&mut PublishedTable)| {
                after(&|now| now.tables.get_mut("o.t7").map(change).expect("it is there"))
            };
            let harmless = (false, false, false);
            assert_eq!(after(&|_| ()), harmless);
            let further = &many(count + 1).tables[&format!("o.t{count}")];
            let add = |now: &mut Published| now.tables.insert("o.u".into(), further.clone());
            assert_eq!(after(&|now| assert!(add(now).is_none())), harmless, "one more");
            assert_eq!(after(&|now| assert!(now.tables.remove("o.t3").is_some())), harmless);
            assert_eq!(seventh(&|t| t.own.insert(0, "schema 9:1".into())), harmless);
            assert_eq!(seventh(&|t| t.own = vec!["schema 9:1".into()]), (true, false, false));
            assert_eq!(seventh(&|t| t.own = vec![]), (true, false, false));
            assert_eq!(seventh(&|t| t.above = vec!["table 1:1".into()]), (true, false, false));
            assert_eq!(seventh(&|t| t.oid = 9_999), (false, true, false));
            assert_eq!(seventh(&|t| t.stamp = Some("9:101".into())), (true, false, true));
            assert_eq!(seventh(&|t| t.stamp = Some(String::new())), (true, false, true));
        }
    }

    fn many(count: u32) -> Published {
        let mut many = published("1:90", &[], "w");
        for oid in 0..count {
            let stamp = Some("9:100".to_owned());
            let (own, above) = (vec![format!("table {oid}:100")], vec![]);
            let table = PublishedTable { oid, own, above, stamp };
            many.tables.insert(format!("o.t{oid}"), table);
        }
        many
    }

    #[test]
    fn of_very_many_tables_any_change_is_known_by_digests_of_bounded_size() {
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
            ("dropped and recreated", "2:101", &[("o.e", 5, &["table 8:101"], &[])], false),
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
            ("recreated, and added", "1:90", &[("o.e", 6, &["table 8:101"], &[])], false),
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
