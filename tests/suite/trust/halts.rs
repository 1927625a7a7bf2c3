//! `docs/HALTS.md` has a line for each place that makes a halt, and none for a place that there is no
//! more; each line names the tests that show it, and they are there.
//!
//! A place is a file and a function: `halts::moved` is `fn moved` in a `halts.rs` or in
//! a `halts/mod.rs`. So a file may move, and a new halt in an old function wants its own line all the same.

use std::{collections::BTreeMap, fs, path::Path};

use super::{names_tests_that_exist, sources};

const HALTS: &str = include_str!("../../../docs/HALTS.md");

/// What makes the two texts of a halt, or of an error that becomes one.
const MAKERS: &[&str] =
    &["Halt::new(", "::Misconfigured {", "ConnectError::Permanent {", "push(Misfit {"];

/// Lines that name no test.
const UNTRIED: usize = 1;

type Places = BTreeMap<String, usize>;

#[test]
fn every_place_that_makes_a_halt_has_its_line_and_every_line_its_place() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let mut made = Places::new();
    scan(&root.join("relay/src"), &mut made);
    let mut told = Places::new();
    for line in lines() {
        let place = line.split('`').nth(1).expect("a place between backticks");
        *told.entry(place.to_owned()).or_default() += 1;
    }
    assert!(made.len() > 40, "the sources are read: {made:?}");
    let differ = |one: &Places, other: &Places| {
        let more = one.iter().filter(|(place, n)| other.get(*place) != Some(n));
        more.map(|(place, n)| format!("{place} ×{n}")).collect::<Vec<_>>()
    };
    let (unlisted, stale) = (differ(&made, &told), differ(&told, &made));
    assert!(
        unlisted.is_empty() && stale.is_empty(),
        "in relay/src: {unlisted:?}; in docs/HALTS.md: {stale:?}"
    );
}

#[test]
fn every_line_of_halts_has_its_five_cells_and_names_tests_that_exist() {
    let sources = sources();
    for line in lines() {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        assert!(cells.len() == 5 && cells.iter().all(|cell| !cell.is_empty()), "{line}");
        if cells.last() != Some(&"none") {
            names_tests_that_exist(line, &sources);
        }
    }
    let untried = lines().into_iter().filter(|line| line.ends_with("| none |")).count();
    assert_eq!(
        untried, UNTRIED,
        "a new halt comes with its test; with a test more, count one less"
    );
}

#[test]
fn a_constructor_is_told_from_a_pattern() {
    for made in [
        "return Err(SinkError::Misconfigured {",
        "Kind::BrokenPipe => SinkError::Misconfigured {",
        "return Err(SinkError::Misconfigured { what, remedy });",
        "SinkError::Misconfigured { what, remedy }",
        "true => Halt::new(reason, ANEW),",
    ] {
        assert!(makes(made), "{made}");
    }
    for looked_at in [
        "SinkError::Misconfigured { what, remedy } => Ended::Halted(halt),",
        "Err(SinkError::Misconfigured { what, remedy }) => {",
        "Err(error @ DeadLetterError::Misconfigured { .. }) => {",
        "if let ConnectError::Permanent { remedy, .. } = &mut self {",
        "Misconfigured {",
    ] {
        assert!(!makes(looked_at), "{looked_at}");
    }
}

fn lines() -> Vec<&'static str> {
    HALTS.lines().filter(|line| line.starts_with("| `")).collect()
}

fn scan(folder: &Path, made: &mut Places) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).expect("a name").to_owned();
        if ["tests", "sim"].contains(&stem.as_str()) {
            continue;
        }
        if path.is_dir() {
            scan(&path, made);
        } else {
            let parent = folder.file_name().and_then(|name| name.to_str()).expect("a name");
            let file = if stem == "mod" { parent } else { &stem };
            of_source(file, &fs::read_to_string(&path).expect("a source"), made);
        }
    }
}

fn of_source(file: &str, source: &str, made: &mut Places) {
    let source = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let mut function = "";
    for line in source.lines().map(str::trim_start).filter(|line| !line.starts_with("//")) {
        function = named(line).unwrap_or(function);
        if makes(line) {
            *made.entry(format!("{file}::{function}")).or_default() += 1;
        }
    }
}

/// The function that begins in this line.
fn named(line: &str) -> Option<&str> {
    let (before, after) = line.split_once("fn ")?;
    let is_a_head = before
        .split_whitespace()
        .all(|word| word.starts_with("pub") || ["const", "async", "super)"].contains(&word));
    let end = after.find(|c: char| !c.is_alphanumeric() && c != '_')?;
    is_a_head.then(|| &after[..end]).filter(|name| !name.is_empty())
}

fn makes(line: &str) -> bool {
    MAKERS.iter().any(|maker| {
        let Some((_, after)) = line.split_once(maker) else { return false };
        *maker == "Halt::new(" || !["=>", "..", " = "].iter().any(|sign| after.contains(sign))
    })
}
