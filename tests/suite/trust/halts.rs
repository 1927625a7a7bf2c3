//! `docs/HALTS.md` has a line for each place that makes a halt, and none for a place that there is no
//! more; each line begins with the text's words, as the source has them, and names the tests that show it, which
//! are there.
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

/// Lines of places that pass on what others say, and have no words of their own.
const WORDLESS: usize = 12;

/// The fewest characters in one piece that a person can search the page for.
const PIECE_MIN: usize = 8;

/// A function, or all functions of that name in files of that name.
#[derive(Default)]
struct Place {
    /// Texts of halts that it makes.
    halts: usize,
    text: String,
}

type Places = BTreeMap<String, Place>;

/// The cells that are looked at.
struct Line {
    says: &'static str,
    tests: &'static str,
    place: &'static str,
}

#[test]
fn every_place_that_makes_a_halt_has_its_line_and_every_line_its_place() {
    let halts = places().into_iter().map(|(name, place)| (name, place.halts));
    let made: BTreeMap<String, usize> = halts.filter(|(_, halts)| *halts > 0).collect();
    let mut told = BTreeMap::<String, usize>::new();
    for line in lines() {
        *told.entry(line.place.to_owned()).or_default() += 1;
    }
    assert!(made.len() > 40, "the sources are read: {made:?}");
    let differ = |one: &BTreeMap<String, usize>, other: &BTreeMap<String, usize>| {
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
fn every_line_of_halts_names_tests_that_exist() {
    let sources = sources();
    let mut untried = 0;
    for Line { tests, .. } in lines() {
        if tests == "none" {
            untried += 1;
        } else {
            names_tests_that_exist(tests, &sources);
        }
    }
    assert_eq!(
        untried, UNTRIED,
        "a new halt comes with its test; with a test more, count one less"
    );
}

#[test]
fn every_line_of_halts_begins_with_words_that_its_place_prints() {
    let places = places();
    let everything: Vec<&str> = places.values().map(|place| place.text.as_str()).collect();
    let everything = everything.join(" ");
    let mut wordless = 0;
    for Line { says, place, .. } in lines() {
        let own = places.get(place).map_or("", |place| place.text.as_str());
        let has_words = says.starts_with('`');
        assert!(has_words || says.starts_with('('), "{place}: {says}");
        wordless += usize::from(!has_words);
        for (n, text) in says.split('`').skip(1).step_by(2).enumerate() {
            let is_own = has_words && n == 0;
            // What has no space is a name of something, and no text.
            if is_own || text.contains(' ') {
                let source = if is_own { own } else { everything.as_str() };
                assert_eq!(absent(text, source), None, "{place} does not say: {text}");
            }
            let longest = pieces(text).map(|piece| piece.chars().count()).max();
            assert!(!is_own || longest >= Some(PIECE_MIN), "too short to be found: {text}");
        }
    }
    assert_eq!(wordless, WORDLESS, "a line begins with the halt's own words");
}

#[test]
fn words_are_found_across_the_ends_of_lines() {
    let source = "fn b() {\n    Halt::new(\n        \"slot {} is \\\"gone\\\", and \\\n         nothing \
                  {x}: waits\",\n    );\n}\n";
    let mut made = Places::new();
    of_source("a", source, &mut made);
    let place = made.get("a::b").expect("a function");
    assert_eq!(place.halts, 1, "{}", place.text);
    let text = words(&place.text);
    assert_eq!(absent("slot … is \"gone\", and nothing …: waits", &text), None);
    assert_eq!(absent("slot … is here, and nothing", &text), Some("is here, and nothing"));
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

fn lines() -> Vec<Line> {
    let rows = HALTS.lines().filter(|line| line.starts_with("| "));
    rows.filter(|line| !line.starts_with("| it says "))
        .map(|line| {
            let cells: Vec<&'static str> =
                line.trim_matches('|').split(" | ").map(str::trim).collect();
            let &[says, data, remedy, tests, place] = cells.as_slice() else {
                panic!("a line has five cells: {line}")
            };
            let is_whole = [says, data, remedy, tests, place].iter().all(|cell| !cell.is_empty());
            assert!(is_whole, "a cell is empty: {line}");
            Line { says, tests, place: place.trim_matches('`') }
        })
        .collect()
}

/// The pieces of a text that are the same each time; `…` stands for the others.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    text.split('…').map(str::trim)
}

/// The first piece that a source lacks.
fn absent<'a>(text: &'a str, source: &str) -> Option<&'a str> {
    pieces(text).find(|piece| !source.contains(*piece))
}

/// A source's text as it is printed, as far as that can be seen without reading Rust.
fn words(source: &str) -> String {
    source.split_whitespace().collect::<Vec<_>>().join(" ").replace("\\\"", "\"")
}

/// All functions of the relay.
fn places() -> Places {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let mut made = Places::new();
    scan(&root.join("relay/src"), &mut made);
    for place in made.values_mut() {
        place.text = words(&place.text);
    }
    made
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
        let place = made.entry(format!("{file}::{function}")).or_default();
        place.halts += usize::from(makes(line));
        // There a text continues in the next line.
        match line.strip_suffix('\\') {
            Some(begun) => place.text.push_str(begun),
            None => place.text.extend([line, " "]),
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
