//! What the server's catalogs say of the publication and the outbox table, and who changes that.
//!
//! Scripted are the answers of the server. What they mean is the relay's: `table_fit`, `repair::fits`,
//! `core::published`.

use rand::Rng;

use super::world::World;
use crate::{
    core::{
        halt::Halt,
        published::{Published, PublishedTable},
    },
    postgres::catalog::{
        slot::{self, PublicationState},
        table::{self, TableState},
    },
    repair,
    route::{Columns, HeaderStyle, Mapping, Preset, Settings, TableName},
    table_fit::{self, Fit, Unfit},
};

const PUBLICATION: &str = "outbox";

/// Name and type of each column of our migration's table.
pub(super) const COLUMNS: [(&str, u32); 9] = [
    ("id", 2950),
    ("topic", 25),
    ("key", 25),
    ("type", 25),
    ("payload", 3802),
    ("headers", 3802),
    ("partition", 23),
    ("created_at", 1184),
    ("xid", 5069),
];

/// Rows of the catalogs, as `oid:xmin`.
#[derive(Clone, Debug)]
pub(super) struct Catalog {
    /// Given to each row that is written.
    numbers: u32,
    publication: Option<String>,
    inserts: bool,
    /// The publication's row for the table, and that for its schema.
    listed: Option<String>,
    schema: Option<String>,
    /// A table of somebody else's in the publication.
    other: Option<String>,
    logged: bool,
    /// `pg_class.oid` of the table.
    pub(super) table: u32,
    stamp: String,
}

/// What the tables of the settings look like, as `daemon::tables` has it.
pub(super) struct Tables {
    /// Why rows that are written now are not in the stream.
    pub(super) unpublished: Option<Halt>,
    pub(super) stamped: Vec<TableName>,
    /// Why they can't be read for a repair.
    pub(super) unrepairable: Option<Halt>,
}

impl Catalog {
    pub(super) fn new() -> Self {
        let mut catalog = Catalog {
            numbers: 16_384,
            publication: None,
            inserts: true,
            listed: None,
            schema: None,
            other: None,
            logged: true,
            table: 0,
            stamp: String::new(),
        };
        catalog.make_table();
        catalog.publish();
        catalog
    }

    fn number(&mut self) -> u32 {
        self.numbers += 1;
        self.numbers
    }

    fn row(&mut self, what: &str) -> String {
        let (oid, xmin) = (self.number(), self.number());
        format!("{what}{oid}:{xmin}")
    }

    /// The row has another `xmin`.
    fn updated(&mut self, row: Option<&String>) -> Option<String> {
        let oid = row?.split(':').next()?.to_owned();
        Some(format!("{oid}:{}", self.number()))
    }

    fn make_table(&mut self) {
        self.table = self.number();
        self.stamp = self.row("");
        self.listed = None;
        self.logged = true;
    }

    /// Whatever is missing for rows to be in the stream.
    fn publish(&mut self) {
        if self.publication.is_none() {
            self.publication = Some(self.row(""));
        }
        if !self.inserts {
            self.publication = self.updated(self.publication.clone().as_ref());
            self.inserts = true;
        }
        if self.listed.is_none() {
            self.listed = Some(self.row("table "));
        }
        self.logged = true;
    }

    /// Whether a row that is written now is in the stream.
    pub(super) fn publishes(&self) -> bool {
        let named = self.listed.is_some() || self.schema.is_some();
        self.publication.is_some() && self.inserts && named && self.logged
    }

    pub(super) fn has_publication(&self) -> bool {
        self.publication.is_some()
    }

    /// What `postgres::catalog::publication` reads in one statement.
    pub(super) fn published(&self) -> Published {
        let mut own: Vec<String> = self.listed.iter().chain(&self.schema).cloned().collect();
        own.sort_unstable();
        let whole = format!("{own:?} {:?}", self.other);
        let (oid, stamp) = (self.table, Some(self.stamp.clone()));
        let table = PublishedTable { oid, own, above: Vec::new(), stamp };
        Published {
            publication: self.publication.clone().unwrap_or_default(),
            tables: [("outbox.events".to_owned(), table)].into(),
            whole,
            unlogged: (!self.logged).then(|| "events".to_owned()).into_iter().collect(),
            ..Published::default()
        }
    }

    /// As `daemon::tables` looks at them: the catalogs' answers are scripted, what they mean is not.
    pub(super) fn inspect(&self) -> Tables {
        let mapping = mapping();
        let name = TableName { schema: "outbox".into(), table: "events".into() };
        let (publication, table) = (self.publication_state(), self.table_state());
        let fit = table_fit::fits(PUBLICATION, publication.as_ref(), &name, Some(&table), &mapping);
        let (unpublished, stamped) = match fit {
            Ok(Fit { stamped, .. }) => (None, stamped),
            Err(Unfit::Unpublished(halt)) => (Some(halt), false),
            Err(Unfit::Columns(found)) => panic!("the columns are our own: {found:?}"),
        };
        let unrepairable = repair::fits(&name, &table, &mapping).err();
        let stamped = if stamped { vec![name] } else { Vec::new() };
        Tables { unpublished, stamped, unrepairable }
    }

    fn publication_state(&self) -> Option<PublicationState> {
        self.publication.as_ref()?;
        let named = self.listed.is_some() || self.schema.is_some();
        let table = || slot::PublishedTable {
            schema: "outbox".into(),
            table: "events".into(),
            columns: None,
            row_filter: None,
        };
        Some(PublicationState {
            insert: self.inserts,
            update: false,
            delete: false,
            truncate: false,
            via_root: true,
            all_tables: false,
            generated: None,
            tables: named.then(table).into_iter().collect(),
        })
    }

    fn table_state(&self) -> TableState {
        let column = |(name, type_oid): (&str, u32)| table::Column {
            name: name.into(),
            type_oid,
            not_null: ["id", "created_at", "xid"].contains(&name),
            default: (name == "xid").then(|| "pg_current_xact_id()".to_owned()),
            binary: true,
            ..table::Column::default()
        };
        TableState {
            kind: "p".into(),
            persistence: if self.logged { "p" } else { "u" }.into(),
            readable: true,
            usable: true,
            deletions_noted: true,
            columns: COLUMNS.map(column).into(),
            ..TableState::default()
        }
    }
}

/// The settings' tables.
pub(super) fn mapping() -> Mapping {
    let settings = Settings {
        relay_name: "sim".into(),
        tables: vec!["outbox.events".into()],
        preset: Preset::Default,
        columns: Columns {
            key: Some("key".into()),
            headers: Some("headers".into()),
            ..Columns::default()
        },
        topic: None,
        header_style: HeaderStyle::Outbox,
        header_columns: vec![],
        former_columns: vec![],
        record_bytes_max: 1 << 20,
        share: None,
    };
    settings.validate().unwrap()
}

impl World {
    /// Somebody changes the publication or the table. Often it is put back at once, with a few transactions
    /// between, so that no look sees it.
    pub(super) fn alter(&mut self) {
        let kind = self.random.random_range(0..16);
        let catalog = &mut self.catalog;
        let (mut soon, what) = match kind {
            0..3 => {
                (catalog.publication, catalog.listed, catalog.schema) = (None, None, None);
                (true, "the publication is dropped")
            }
            3..6 => {
                catalog.publication = catalog.updated(catalog.publication.clone().as_ref());
                catalog.inserts = false;
                (true, "the publication publishes no inserts")
            }
            6..10 => {
                catalog.listed = None;
                (true, "the table leaves the publication")
            }
            10..12 => {
                catalog.schema = match catalog.schema {
                    None if catalog.has_publication() => Some(catalog.row("schema ")),
                    _ => None,
                };
                (true, "the table's schema joins or leaves the publication")
            }
            12..14 => {
                catalog.other = Some(catalog.row("table "));
                (true, "another table joins the publication")
            }
            // Nothing that is compared tells that it was logged again, or dropped: known only if a look saw it.
            _ if !catalog.logged => return,
            14 => {
                catalog.logged = false;
                (false, "the table is unlogged")
            }
            _ => {
                catalog.make_table();
                (true, "the table is dropped and created")
            }
        };
        self.tell(|| what.to_owned());
        soon &= self.catalog.logged && self.once_in(2);
        for _ in 0..self.random.random_range(0..3) {
            self.write();
        }
        if soon {
            self.put_back(false);
        }
    }

    /// Whoever has changed it has the rows published again. That a table was unlogged is `seen` first.
    pub(super) fn put_back(&mut self, seen: bool) {
        if !self.catalog.publishes() && (seen || self.catalog.logged) {
            self.catalog.publish();
            self.tell(|| "the table is published again".to_owned());
        }
    }
}
