//! Which facts of the catalog halt the relay, and what it says then.

use super::*;
use crate::route::{Columns, HeaderStyle, Preset, Settings};

fn mapping(tables: &[&str]) -> Mapping {
    let settings = Settings {
        relay_name: "orders".into(),
        tables: tables.iter().map(|table| (*table).to_owned()).collect(),
        preset: Preset::Default,
        columns: Columns::default(),
        topic: None,
        header_style: HeaderStyle::Outbox,
        header_columns: vec![],
        former_columns: vec![],
        record_bytes_max: 1 << 20,
        share: None,
    };
    settings.validate().expect("they make sense")
}

fn column(name: &str, type_oid: u32) -> table::Column {
    table::Column { name: name.into(), type_oid, binary: true, ..table::Column::default() }
}

/// As our migration makes it.
fn events() -> TableState {
    let mut columns: Vec<_> = [
        ("id", 2950),
        ("topic", 25),
        ("key", 25),
        ("type", 25),
        ("payload", 3802),
        ("headers", 3802),
        ("partition", 23),
        ("created_at", 1184),
        ("xid", 5069),
    ]
    .map(|(name, oid)| column(name, oid))
    .into();
    columns[8].default = Some("pg_current_xact_id()".into());
    TableState {
        kind: "p".into(),
        persistence: "p".into(),
        readable: true,
        usable: true,
        columns,
        ..TableState::default()
    }
}

fn publication() -> PublicationState {
    PublicationState {
        insert: true,
        update: false,
        delete: false,
        truncate: false,
        via_root: true,
        all_tables: false,
        generated: None,
        tables: vec![PublishedTable {
            schema: "outbox".into(),
            table: "events".into(),
            columns: None,
            row_filter: None,
        }],
    }
}

fn looked_at(publication: &PublicationState, table: &TableState) -> Result<Fit, Unfit> {
    let name = TableName { schema: "outbox".into(), table: "events".into() };
    fits("outbox", Some(publication), &name, Some(table), &mapping(&["outbox.events"]))
}

/// The halt's reason and remedy have these words.
#[track_caller]
fn halts(publication: &PublicationState, table: &TableState, words: &[&str]) {
    let halt = match looked_at(publication, table) {
        Err(Unfit::Unpublished(halt)) => halt.to_string(),
        Err(Unfit::Columns(found)) => misfits(&found).to_string(),
        Ok(fit) => panic!("{fit:?}, without {words:?}"),
    };
    words.iter().for_each(|word| assert!(halt.contains(word), "{word:?} is not in: {halt}"));
}

fn hidden(kind: &str, persistence: &str, inherits: bool) -> TableState {
    let below = Hidden {
        name: "outbox.child".into(),
        schema: "outbox".into(),
        table: "child".into(),
        kind: kind.into(),
        persistence: persistence.into(),
        inherits,
    };
    TableState { hidden: vec![below], ..events() }
}

#[test]
fn the_table_of_our_migration_is_binary_and_stamped() {
    let fit = looked_at(&publication(), &events()).expect("it fits");
    assert_eq!(fit, Fit { format: Format::Binary, stamped: true });
}

#[test]
fn all_that_is_wrong_with_a_table_is_found_at_once_in_the_order_in_which_it_is_corrected() {
    let mut table = TableState { persistence: "u".into(), ..events() };
    table.columns.retain(|column| !["id", "topic"].contains(&column.name.as_str()));
    let name = TableName { schema: "outbox".into(), table: "events".into() };
    let mapping = mapping(&["outbox.events"]);
    let found = |publication: Option<&PublicationState>, table: &TableState| {
        let unfit = all("outbox", publication, &name, Some(table), &mapping).expect_err("unfit");
        let told = |unfit: &Unfit| match unfit {
            Unfit::Unpublished(halt) => vec![halt.reason.clone()],
            Unfit::Columns(misfits) => misfits.iter().map(|misfit| misfit.what.clone()).collect(),
        };
        unfit.iter().flat_map(told).collect::<Vec<_>>()
    };
    let nothing = found(None, &table);
    for (told, words) in nothing.iter().zip(["unlogged", "no publication", "id", "topic"]) {
        assert!(told.contains(words), "{words}: {nothing:?}");
    }
    assert_eq!(nothing.len(), 4, "{nothing:?}");
    let updates = PublicationState { insert: false, tables: vec![], ..publication() };
    assert_eq!(found(Some(&updates), &table).len(), 5, "it does not list it, and has no inserts");
    table.kind = "v".into();
    assert_eq!(found(None, &table).len(), 1, "another table is needed");
}

#[test]
fn a_column_xid_is_a_stamp_only_by_its_default_and_in_the_stream() {
    for default in [None, Some("'7'::xid8".to_owned())] {
        let mut table = events();
        table.columns[8].default = default;
        assert!(!looked_at(&publication(), &table).expect("it fits").stamped);
    }
    let mut publication = publication();
    let columns = events().columns.into_iter().map(|column| column.name);
    publication.tables[0].columns = Some(columns.filter(|name| name != XID).collect());
    assert!(!looked_at(&publication, &events()).expect("it fits").stamped);
}

#[test]
fn rows_that_are_not_in_the_wal_halt_the_relay() {
    for (kind, persistence, words) in [
        ("r", "u", ["unlogged", "set logged"]),
        ("r", "t", ["temporary", "outbox.tables"]),
        ("v", "p", ["a view", "outbox.tables"]),
        ("m", "p", ["a view", "outbox.tables"]),
        ("f", "p", ["a foreign table", "outbox.tables"]),
    ] {
        let (kind, persistence) = (kind.to_owned(), persistence.to_owned());
        halts(&publication(), &TableState { kind, persistence, ..events() }, &words);
    }
}

#[test]
fn what_lies_below_the_table_and_is_not_in_its_stream_halts_the_relay() {
    for (kind, persistence, inherits, words) in [
        ("r", "u", false, ["unlogged", "alter table outbox.child set logged"]),
        ("r", "t", false, ["temporary", "detach partition outbox.child"]),
        ("f", "p", false, ["foreign table", "detach partition outbox.child"]),
        ("f", "p", true, ["foreign table", "no inherit outbox.events"]),
        ("r", "p", true, ["inherits", "no inherit outbox.events"]),
    ] {
        halts(&publication(), &hidden(kind, persistence, inherits), &words);
    }
}

#[test]
fn a_child_that_is_a_table_of_the_settings_itself_hides_nothing() {
    let name = TableName { schema: "outbox".into(), table: "events".into() };
    let both = mapping(&["outbox.events", "outbox.child"]);
    let fit = |table| fits("outbox", Some(&publication()), &name, Some(&table), &both);
    assert!(fit(hidden("r", "p", true)).is_ok());
    // Not in the WAL is not in the stream, under whatever name.
    assert!(fit(hidden("r", "u", true)).is_err());
    assert!(fit(hidden("f", "p", true)).is_err());
}

#[test]
fn what_the_publication_keeps_out_halts_the_relay() {
    let mut filtered = publication();
    filtered.tables[0].row_filter = Some("(topic <> 'x')".into());
    halts(&filtered, &events(), &["(topic <> 'x')", "add table outbox.events"]);

    let mut no_insert = publication();
    no_insert.insert = false;
    halts(&no_insert, &events(), &["inserts", "set (publish = 'insert')"]);

    let mut other = publication();
    other.tables.clear();
    halts(&other, &events(), &["does not publish outbox.events", "add table outbox.events"]);
    let leaf = TableState { root: Some("outbox.all".into()), ..events() };
    halts(&other, &leaf, &["does not publish outbox.events", "set outbox.tables to outbox.all"]);
    other.via_root = false;
    let both = "`alter publication outbox set (publish_via_partition_root = true); alter publication outbox add table \
                outbox.events`";
    halts(&other, &events(), &[both]);
}

#[test]
fn a_generated_column_is_not_published_before_18_whatever_the_catalog_lists() {
    let mut table = events();
    table.columns[2].generated = "s".into();
    let words = ["column key", "generated", "drop expression"];
    halts(&publication(), &table, &words);
    let mut listed = publication();
    listed.tables[0].columns = Some(table.columns.iter().map(|c| c.name.clone()).collect());
    halts(&listed, &table, &words);
    // From 18 on the list is what is published.
    listed.generated = Some("n".into());
    assert!(looked_at(&listed, &table).is_ok());
    listed.tables[0].columns = Some(vec!["id".into()]);
    halts(&listed, &table, &words);
}

#[test]
fn a_column_without_a_binary_form_makes_the_stream_text_though_it_is_not_mapped() {
    let mut table = events();
    table.columns.push(table::Column { binary: false, ..column("books", 70_000) });
    assert_eq!(looked_at(&publication(), &table).expect("it fits").format, Format::Text);
    let mut without = publication();
    without.tables[0].columns = Some(events().columns.into_iter().map(|c| c.name).collect());
    assert_eq!(looked_at(&without, &table).expect("it fits").format, Format::Binary);
}

#[test]
fn columns_that_the_publication_leaves_out_are_named_each_and_one_statement_brings_them() {
    let left_out = ["payload", "headers", "partition"];
    let columns = events().columns.into_iter().map(|column| column.name);
    let mut listed = publication();
    listed.tables[0].columns =
        Some(columns.filter(|name| !left_out.contains(&name.as_str())).collect());
    let Err(Unfit::Columns(found)) = looked_at(&listed, &events()) else {
        panic!("they are mapped, and not in the stream")
    };
    let name = TableName { schema: "outbox".into(), table: "events".into() };
    let halt = misfits(&found);
    assert_eq!(halt.remedy, publish_whole("outbox", &name));
    assert_eq!(halt.reason.matches("leaves it out").count(), left_out.len(), "{halt}");
    // Without the column in the table, publishing it whole brings nothing.
    let mut table = events();
    table.columns.retain(|column| column.name != "payload");
    halts(&listed, &table, &["add column payload jsonb"]);
}
