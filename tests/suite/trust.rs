//! `docs/TRUST.md` names a test in each line, and the tests are there.

mod halts;
mod page;
mod places;
mod retries;

use std::{fs, path::Path};

const TRUST: &str = include_str!("../../docs/TRUST.md");

#[test]
fn every_line_of_trust_names_a_test_that_exists() {
    let sources = sources();
    let lines: Vec<&str> = TRUST
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| it does "))
        .collect();
    assert!(lines.len() > 5, "there are lines: {lines:?}");
    for line in lines {
        names_tests_that_exist(line, &sources);
    }
}

/// The table of cases that every broker is tried with.
#[test]
fn every_case_of_every_broker_names_tests_that_exist() {
    let (page, sources) = (include_str!("../../docs/TESTING.md"), sources());
    let (_, table) = page.split_once("## The same cases to every broker").expect("a section");
    let (table, _) = table.split_once("\n## ").expect("another section");
    let lines: Vec<&str> = table.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(lines.len() > 12, "{lines:?}");
    for line in lines {
        let cells: Vec<&str> = line.trim_matches('|').split('|').skip(1).map(str::trim).collect();
        assert_eq!(cells.len(), 5, "{line}");
        let named = cells.iter().filter(|cell| cell.contains('`'));
        named.for_each(|cell| names_tests_that_exist(cell, &sources));
    }
}

/// The last cell of a table's line names tests, each between backticks.
pub(crate) fn names_tests_that_exist(line: &str, sources: &str) {
    let last = line.trim_end_matches('|').rsplit('|').next().expect("a cell");
    let names: Vec<&str> =
        last.split('`').skip(1).step_by(2).map(|n| n.rsplit("::").next().unwrap_or(n)).collect();
    assert!(!names.is_empty(), "no test: {line}");
    for name in names {
        // One that is written once for every kind of sink is generic.
        let is_there = ["(", "<"].iter().any(|end| sources.contains(&format!("fn {name}{end}")));
        assert!(is_there, "no test {name}: {line}");
    }
}

/// Everything in which there are tests.
pub(crate) fn sources() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let mut sources = String::new();
    for folder in ["tests/suite", "relay/src", "idempotency/src", "migrations/src"] {
        read(&root.join(folder), &mut sources);
    }
    sources
}

fn read(folder: &Path, into: &mut String) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            read(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&fs::read_to_string(&path).expect("a source"));
        }
    }
}
