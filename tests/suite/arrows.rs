//! Imports of the relay's sources point one way, as `ARCHITECTURE.md` draws it, and no files of any crate
//! import one another in a circle.
//!
//! Reads `use` statements and paths that begin with `crate::` or `super::`; tests and the simulation may look
//! anywhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

const ARCHITECTURE: &str = include_str!("../../ARCHITECTURE.md");
/// Who meet only above: `pipeline`, `daemon`.
const STRANGERS: [(&str, &str); 3] = [("source", "route"), ("source", "sink"), ("sink", "route")];
/// Whose files import one another in no circle.
const SOURCES: [&str; 5] =
    ["relay/src", "idempotency/src", "migrations/src", "harness/src", "bench/src"];

/// The most lines of a file that does not say in its first ones, with the words `400 lines`, why it has more.
const LINES_MAX: usize = 400;
/// Where no file is longer.
const BOUNDED: [&str; 6] =
    ["relay/src", "idempotency/src", "migrations/src", "harness/src", "bench/src", "tests/suite"];
/// Longer, and without that reason so far. A new one fails, and so does one that was split: take it out then.
const LONG: [&str; 0] = [];

type Arrows = BTreeMap<String, BTreeSet<String>>;

#[test]
fn imports_point_only_downwards_as_architecture_draws_them() {
    let rows: Vec<Vec<&str>> = ARCHITECTURE
        .split("```text\n")
        .find_map(|block| block.strip_prefix("cli\n"))
        .expect("the order begins with cli")
        .split("```")
        .next()
        .expect("its end")
        .lines()
        .map(|line| line.split(", ").collect())
        .collect();
    let row_of =
        |folder: &str| 1 + rows.iter().position(|row| row.contains(&folder)).expect(folder);
    let mut wrong = Vec::new();
    for (from, targets) in arrows("relay/src") {
        for to in targets {
            let (a, b) = (folder(&from), folder(&to));
            if a == b {
                continue;
            }
            let downwards = a == "cli" || row_of(a) < row_of(b) && b != "cli";
            if !downwards || STRANGERS.contains(&(a, b)) {
                wrong.push(format!("{from} imports {to}"));
            }
        }
    }
    assert!(wrong.is_empty(), "against the order of ARCHITECTURE.md: {wrong:#?}");
}

#[test]
fn no_files_import_one_another_in_a_circle() {
    for sources in SOURCES {
        let arrows = arrows(sources);
        assert_eq!(circles(&arrows), BTreeSet::new(), "{sources}");
    }
}

#[test]
fn a_file_of_more_than_400_lines_says_why_in_its_first_ones() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let mut long = BTreeSet::new();
    for sources in BOUNDED {
        let mut files = Vec::new();
        list(&workspace.join(sources), &mut files);
        assert!(!files.is_empty(), "{sources} was read");
        for file in files {
            let source = fs::read_to_string(&file).expect("readable");
            let first = source.lines().take_while(|line| line.starts_with("//!"));
            let says_why = first.into_iter().any(|line| line.contains("400 lines"));
            if source.lines().count() > LINES_MAX && !says_why {
                let name = file.strip_prefix(workspace).expect("inside");
                long.insert(name.to_str().expect("UTF-8").to_owned());
            }
        }
    }
    assert_eq!(long, LONG.iter().map(|&name| name.to_owned()).collect());
}

fn folder(module: &str) -> &str {
    module.split("::").next().unwrap_or(module)
}

/// Each module, with those that it imports.
fn arrows(sources: &str) -> Arrows {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").join(sources);
    let mut files = Vec::new();
    list(&root, &mut files);
    let module = |file: &PathBuf| {
        let inside = file.strip_prefix(&root).expect("inside").with_extension("");
        let name = inside.to_str().expect("UTF-8").replace('/', "::");
        name.strip_suffix("::mod").map(str::to_owned).unwrap_or(name)
    };
    let modules: BTreeSet<String> = files.iter().map(module).collect();
    let mut arrows = Arrows::new();
    for file in &files {
        let from = module(file);
        let parts: Vec<&str> = from.split("::").collect();
        if ["lib", "main"].contains(&from.as_str())
            || parts.iter().any(|p| ["tests", "sim"].contains(p))
        {
            continue;
        }
        let source = product(&fs::read_to_string(file).expect("readable"));
        let targets =
            paths(&source).into_iter().filter_map(|path| resolve(&parts, &path, &modules));
        arrows.insert(from.clone(), targets.filter(|to| *to != from).collect());
    }
    assert!(arrows.values().any(|targets| !targets.is_empty()), "{sources} was read");
    arrows
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path())
    {
        if entry.is_dir() {
            list(&entry, files);
        } else if entry.extension().is_some_and(|it| it == "rs") {
            files.push(entry);
        }
    }
}

/// Without comments, and without the module of tests at the end.
fn product(source: &str) -> String {
    let lines: Vec<&str> = source.lines().collect();
    let after = lines.iter().skip(1);
    let tests = lines.iter().zip(after).position(|(line, next)| {
        line.trim() == "#[cfg(test)]" && next.starts_with("mod ") && next.ends_with('{')
    });
    let code = lines.iter().take(tests.unwrap_or(lines.len()));
    code.map(|line| line.split("//").next().unwrap_or(line)).collect::<Vec<_>>().join("\n")
}

/// What is named, as it is written: of `use` statements each leaf, and what begins with `crate::` or `super::`.
fn paths(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    for statement in source.split(';') {
        let begins = ["use crate::", "use super::", "use self::"];
        let at = begins.iter().filter_map(|begin| statement.rfind(begin)).max();
        if let Some(tree) = at.and_then(|at| statement.get(at + 4..)) {
            expand("", &tree.split_whitespace().collect::<String>(), &mut found);
        }
        let code = statement.get(..at.unwrap_or(statement.len())).unwrap_or_default();
        let is_name = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
        let begins =
            |at: &usize| !code[..*at].ends_with(is_name) && !code[..*at].ends_with("pub(in ");
        let crates = code.match_indices("crate::").map(|(at, _)| at);
        let parents = code.match_indices("super::").map(|(at, _)| at);
        for at in crates.chain(parents).filter(begins) {
            let path = code[at..].split(|c| !is_name(c)).next().unwrap_or_default();
            found.push(path.trim_end_matches(':').to_owned());
        }
    }
    found
}

fn expand(before: &str, tree: &str, found: &mut Vec<String>) {
    let Some((path, rest)) = tree.split_once('{') else {
        found.push(format!("{before}{tree}"));
        return;
    };
    let inside = rest.strip_suffix('}').unwrap_or(rest);
    let (mut depth, mut from) = (0_usize, 0);
    for (at, c) in inside.char_indices().chain([(inside.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                if at > from {
                    expand(&format!("{before}{path}"), &inside[from..at], found);
                }
                from = at + 1;
            }
            _ => {}
        }
    }
}

/// The module of a path, or `None` where it is not of this crate.
fn resolve(here: &[&str], path: &str, modules: &BTreeSet<String>) -> Option<String> {
    let mut segments = path.split("::").peekable();
    let mut base = match segments.next()? {
        "crate" => vec![],
        "self" => here.to_vec(),
        "super" => here.split_last()?.1.to_vec(),
        _ => return None,
    };
    while segments.next_if_eq(&"super").is_some() {
        base.pop();
    }
    base.extend(segments);
    while !base.is_empty() {
        let name = base.join("::");
        if modules.contains(&name) {
            return Some(name);
        }
        base.pop();
    }
    None
}

/// The sets of modules that reach one another, each sorted.
fn circles(arrows: &Arrows) -> BTreeSet<Vec<String>> {
    let reach = |from: &String| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from.clone()]);
        while let Some(one) = next.pop() {
            for to in arrows.get(&one).into_iter().flatten() {
                if seen.insert(to.clone()) {
                    next.push(to.clone());
                }
            }
        }
        seen
    };
    let reached: BTreeMap<&String, BTreeSet<String>> =
        arrows.keys().map(|m| (m, reach(m))).collect();
    let leads_to = |from: &String, to: &String| reached.get(from).is_some_and(|it| it.contains(to));
    let circle = |(one, all): (&&String, &BTreeSet<String>)| {
        let back: Vec<String> = all.iter().filter(|to| leads_to(to, one)).cloned().collect();
        (!back.is_empty() && leads_to(one, one)).then_some(back)
    };
    reached.iter().filter_map(circle).collect()
}

#[test]
fn a_path_is_found_in_trees_and_in_code() {
    let source = "use crate::{a::{self, b::C}, d};\nuse super::e;\nfn f() { crate::g::h::I::new(super::j()) }";
    let found = paths(source);
    for path in [
        "crate::a::self",
        "crate::a::b::C",
        "crate::d",
        "super::e",
        "crate::g::h::I::new",
        "super::j",
    ] {
        assert!(found.iter().any(|it| it == path), "{path}: {found:?}");
    }
}
