//! The functions of `relay/src`, and what of the pages' words each of them prints.
//!
//! A place is a file and a function: `halts::moved` is `fn moved` in a `halts.rs` or in a `halts/mod.rs`. So a file
//! may move, and what is made anew in an old function wants its own line all the same.

use std::{collections::BTreeMap, fs, path::Path};

/// A function, or all functions of that name in files of that name.
#[derive(Default)]
pub(super) struct Place {
    /// How many lines of it make what is looked for.
    pub(super) made: usize,
    pub(super) text: String,
}

pub(super) type Places = BTreeMap<String, Place>;

/// Whether a line makes what is looked for.
type Makes = fn(&str) -> bool;

/// The pieces of a text that are the same each time; `…` stands for the others.
pub(super) fn pieces(text: &str) -> impl Iterator<Item = &str> {
    text.split('…').map(str::trim)
}

/// The first piece that a source lacks.
pub(super) fn absent<'a>(text: &'a str, source: &str) -> Option<&'a str> {
    pieces(text).find(|piece| !source.contains(*piece))
}

/// A source's text as it is printed, as far as that can be seen without reading Rust.
fn words(source: &str) -> String {
    source.split_whitespace().collect::<Vec<_>>().join(" ").replace("\\\"", "\"")
}

/// All functions of the relay.
pub(super) fn places(makes: Makes) -> Places {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let mut made = Places::new();
    scan(&root.join("relay/src"), makes, &mut made);
    for place in made.values_mut() {
        place.text = words(&place.text);
    }
    made
}

fn scan(folder: &Path, makes: Makes, made: &mut Places) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).expect("a name").to_owned();
        if ["tests", "sim"].contains(&stem.as_str()) {
            continue;
        }
        if path.is_dir() {
            scan(&path, makes, made);
        } else {
            let parent = folder.file_name().and_then(|name| name.to_str()).expect("a name");
            let file = if stem == "mod" { parent } else { &stem };
            of_source(file, &fs::read_to_string(&path).expect("a source"), makes, made);
        }
    }
}

fn of_source(file: &str, source: &str, makes: Makes, made: &mut Places) {
    let source = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let mut function = "";
    for line in source.lines().map(str::trim_start).filter(|line| !line.starts_with("//")) {
        function = named(line).unwrap_or(function);
        let place = made.entry(format!("{file}::{function}")).or_default();
        place.made += usize::from(makes(line));
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
    let is_a_head = before.split_whitespace().all(|word| {
        word.starts_with("pub") || word.ends_with(')') || ["const", "async"].contains(&word)
    });
    let end = after.find(|c: char| !c.is_alphanumeric() && c != '_')?;
    is_a_head.then(|| &after[..end]).filter(|name| !name.is_empty())
}

#[test]
fn words_are_found_across_the_ends_of_lines() {
    let source = "fn b() {\n    Halt::new(\n        \"slot {} is \\\"gone\\\", and \\\n         nothing \
                  {x}: waits\",\n    );\n}\n";
    let mut made = Places::new();
    of_source("a", source, |line| line.contains("Halt::new("), &mut made);
    let place = made.get("a::b").expect("a function");
    assert_eq!(place.made, 1, "{}", place.text);
    let text = words(&place.text);
    assert_eq!(absent("slot … is \"gone\", and nothing …: waits", &text), None);
    assert_eq!(absent("slot … is here, and nothing", &text), Some("is here, and nothing"));
}
