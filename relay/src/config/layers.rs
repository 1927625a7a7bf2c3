//! Where settings come from, merged: file, then environment, then flags, each over the last.
//!
//! Unknown keys are found layer by layer, before merging: a mistake that a later layer happens to
//! cover is still a mistake. What a value means is left to `written`.

use std::{
    collections::{BTreeMap, hash_map::Entry},
    fmt,
    io::{ErrorKind, Read as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use config::{ConfigError, File, FileFormat, Map, Source, Value, ValueKind};

use super::{
    Sources,
    env_key::{KAFKA, OF_KAFKA, env_key},
    keys::{self, ENV_PREFIX, Place},
    problem::{Origin, Problem},
};

/// The merged settings: each value by its full key, with its origin.
pub(super) type Merged = BTreeMap<String, (ValueKind, Origin)>;

/// Reads all sources. What can't be read is a problem; the rest is still returned, so that its
/// problems are reported together with it. The second value says whether the file was read:
/// if not, a setting that is missing may well be in it.
pub(super) fn merge(sources: &Sources, problems: &mut Vec<Problem>) -> (Merged, bool) {
    let file = file(sources, problems);
    let file_was_read = file.is_some();
    let layers = [file.unwrap_or_default(), environment(sources, problems), flags(sources)];
    let mut builder = config::Config::builder();
    for layer in layers {
        builder = builder.add_source(layer);
    }
    let mut given = Merged::new();
    match builder.build().and_then(|merged| merged.collect()) {
        Ok(merged) => flatten(merged, "", &mut given),
        Err(error) => problems.push(Problem {
            key: "settings".into(),
            origin: Origin::Default,
            what: error.to_string(),
            remedy: "check the file and the environment".into(),
        }),
    }
    (given, file_was_read)
}

/// One source, already sifted: only keys that exist, in tables that exist.
#[derive(Clone, Default)]
struct Layer(Map<String, Value>);

/// Names nothing: a layer holds secrets.
impl fmt::Debug for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Layer")
    }
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        Ok(self.0.clone())
    }
}

impl Layer {
    /// Puts a value at its key, making the tables on the way. Sections are never values here, so
    /// only a setting that may be either can be in the way; then the table wins.
    fn set(&mut self, key: &str, kind: ValueKind, origin: &Origin) {
        let origin = origin.encode();
        let mut table = &mut self.0;
        let mut rest = key;
        while let Some((section, below)) = rest.split_once('.') {
            let value = table
                .entry(section.to_owned())
                .or_insert_with(|| Value::new(None, Map::<String, Value>::new()));
            if !matches!(value.kind, ValueKind::Table(_)) {
                value.kind = ValueKind::Table(Map::new());
            }
            let ValueKind::Table(inner) = &mut value.kind else { return };
            table = inner;
            let walked = key.strip_suffix(below).map_or("", |path| path.trim_end_matches('.'));
            rest = below;
            if keys::place(walked) == Place::Open {
                break; // What follows is one name, dots and all.
            }
        }
        table.insert(rest.to_owned(), Value::new(Some(&origin), kind));
    }
}

/// `None` when there is a file and it could not be read.
fn file(sources: &Sources, problems: &mut Vec<Problem>) -> Option<Layer> {
    let mut layer = Layer::default();
    let Some(path) = &sources.file else { return Some(layer) };
    let origin = Origin::File(path.display().to_string());
    let parsed = read(path, sources.explicit).and_then(|text| {
        File::from_str(&text, FileFormat::Toml).collect().map_err(|error| Problem {
            key: path.display().to_string(),
            origin: Origin::Default,
            what: without_snippet(&error.to_string()),
            remedy: "correct the TOML there; the settings in it were not read".into(),
        })
    });
    match parsed {
        Ok(mut map) => {
            kafka_section(&mut map, &origin, problems);
            if let Some(ValueKind::Table(routes)) = map.get_mut("routes").map(|it| &mut it.kind) {
                for route in routes.values_mut() {
                    let ValueKind::Table(route) = &mut route.kind else { continue };
                    kafka_section(route, &origin, problems);
                }
            }
            sift(map, "", &origin, &mut layer, problems);
        }
        Err(problem) => {
            problems.push(problem);
            return None;
        }
    }
    Some(layer)
}

/// The file's text; empty when it is only the default one and is not there.
fn read(path: &Path, explicit: bool) -> Result<String, Problem> {
    match read_own(path, explicit) {
        Ok(Some(text)) => Ok(text),
        Ok(None) => Err(Problem {
            key: path.display().to_string(),
            origin: Origin::Default,
            what: "this settings file in the working directory belongs to another user, or others may write \
                   to it: settings can run code and send passwords elsewhere, so it was not read"
                .into(),
            remedy: "if it is meant, name it with --config; if not, work in another directory".into(),
        }),
        Err(error) if error.kind() == ErrorKind::NotFound && !explicit => Ok(String::new()),
        Err(error) => Err(Problem {
            key: path.display().to_string(),
            origin: Origin::Default,
            what: format!("the settings file can't be read: {error}"),
            remedy: "name a readable file with --config, or leave --config out".into(),
        }),
    }
}

/// `None` where no one has named the file, and it may be another user's.
fn read_own(path: &Path, explicit: bool) -> std::io::Result<Option<String>> {
    let mut file = std::fs::File::open(path)?;
    let found = file.metadata()?; // Of the file that is open, whatever its name leads to by now.
    // SAFETY: geteuid has no preconditions and cannot fail.
    let us = unsafe { libc::geteuid() };
    if !explicit && !is_own((found.uid(), found.mode()), us) {
        return Ok(None);
    }
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(Some(text))
}

/// Whether a file of this owner and mode says what user `us`, or root, wants.
fn is_own((owner, mode): (u32, u32), us: u32) -> bool {
    const OTHERS_WRITE: u32 = 0o002;
    [0, us].contains(&owner) && mode & OTHERS_WRITE == 0
}

/// The parser shows the line that it failed at, and that line may hold a password.
fn without_snippet(error: &str) -> String {
    let is_snippet = |line: &str| {
        line.trim_start_matches(|c: char| c == ' ' || c.is_ascii_digit()).starts_with('|')
    };
    let lines: Vec<&str> =
        error.lines().map(str::trim_end).filter(|l| !l.is_empty() && !is_snippet(l)).collect();
    lines.join(": ")
}

/// Moves what is below `sink.kafka` to the place that it has without.
fn kafka_section(map: &mut Map<String, Value>, origin: &Origin, problems: &mut Vec<Problem>) {
    let Some(ValueKind::Table(sink)) = map.get_mut("sink").map(|sink| &mut sink.kind) else {
        return;
    };
    let Some(Value { kind: ValueKind::Table(kafka), .. }) = sink.remove("kafka") else { return };
    for (name, value) in sorted(kafka) {
        let key = format!("{KAFKA}.{name}");
        if !OF_KAFKA.contains(&name.as_str()) {
            problems.push(unknown(key, origin.clone()));
            continue;
        }
        match sink.entry(name) {
            Entry::Vacant(place) => {
                place.insert(value);
            }
            Entry::Occupied(there) => problems.push(Problem {
                what: format!("is there twice, as sink.{} too", there.key()),
                remedy: "write all of it in one place".into(),
                key,
                origin: origin.clone(),
            }),
        }
    }
}

/// Copies what exists into the layer and reports the rest.
fn sift(
    map: Map<String, Value>,
    above: &str,
    origin: &Origin,
    layer: &mut Layer,
    problems: &mut Vec<Problem>,
) {
    for (name, value) in sorted(map) {
        let full = if above.is_empty() { name } else { format!("{above}.{name}") };
        match (keys::place(&full), value.kind) {
            (Place::Open, ValueKind::Table(table)) => open(table, &full, origin, layer),
            (Place::Section | Place::Either, ValueKind::Table(table)) => {
                sift(table, &full, origin, layer, problems);
            }
            (Place::Section | Place::Open, _) => problems.push(Problem {
                what: "must be a table".into(),
                remedy: format!("write [{full}] and its settings below it"),
                key: full,
                origin: origin.clone(),
            }),
            (Place::Known, ValueKind::Table(_)) => problems.push(Problem {
                what: "is a table".into(),
                remedy: format!("write {}", keys::takes(&full)),
                key: full,
                origin: origin.clone(),
            }),
            (Place::Known | Place::Either, kind) => layer.set(&full, kind, origin),
            (Place::Unknown, _) => problems.push(unknown(full, origin.clone())),
        }
    }
}

/// A table with free keys. TOML reads an unquoted `bootstrap.servers` as tables in one another:
/// what was meant is the name with its dots.
fn open(map: Map<String, Value>, above: &str, origin: &Origin, layer: &mut Layer) {
    for (name, value) in sorted(map) {
        let full = format!("{above}.{name}");
        match value.kind {
            ValueKind::Table(table) => open(table, &full, origin, layer),
            kind => layer.set(&full, kind, origin),
        }
    }
}

fn environment(sources: &Sources, problems: &mut Vec<Problem>) -> Layer {
    let mut layer = Layer::default();
    if let Some(level) = sources.env.get("RUST_LOG").filter(|level| !level.is_empty()) {
        let origin = Origin::Env("RUST_LOG".into());
        layer.set("log.level", ValueKind::String(level.clone()), &origin);
    }
    for (name, value) in sources.env.iter() {
        let Some(rest) = name.strip_prefix(ENV_PREFIX) else { continue };
        let key = env_key(rest);
        let origin = Origin::Env(name.clone());
        match (keys::place(&key), inline_table(value)) {
            (Place::Either, Some(table)) => sift(table, &key, &origin, &mut layer, problems),
            (Place::Known | Place::Either, _) => {
                layer.set(&key, ValueKind::String(value.clone()), &origin);
            }
            _ => problems.push(unknown(key, origin)),
        }
    }
    layer
}

/// `{ partitions = 6 }`, as it would be written in a file.
fn inline_table(text: &str) -> Option<Map<String, Value>> {
    let text = text.trim();
    if !text.starts_with('{') || text.contains('\n') {
        return None;
    }
    let mut parsed = File::from_str(&format!("it = {text}"), FileFormat::Toml).collect().ok()?;
    match parsed.remove("it")?.kind {
        ValueKind::Table(table) => Some(table),
        _ => None,
    }
}

fn flags(sources: &Sources) -> Layer {
    let mut layer = Layer::default();
    for flag in &sources.flags.0 {
        let origin = Origin::Flag(flag.flag.to_owned());
        layer.set(flag.key, ValueKind::String(flag.value.clone()), &origin);
    }
    layer
}

fn unknown(key: String, origin: Origin) -> Problem {
    let above = key.strip_prefix("routes.").and_then(|rest| Some(rest.split_once('.')?.1));
    let above = above.filter(|above| keys::place(above) != Place::Unknown);
    let meant = keys::nearest(&key);
    let remedy = match meant {
        _ if above.is_some() => format!(
            "it is the same for all routes: write {} outside of [routes]",
            above.unwrap_or_default()
        ),
        Some(meant) if matches!(origin, Origin::Env(_)) => {
            format!("did you mean {} ({meant})?", keys::env_name(meant))
        }
        Some(meant) => format!("did you mean {meant}?"),
        None if key.starts_with("sink.") => {
            "properties of librdkafka go under [sink.properties]".into()
        }
        None => "remove it, or look it up in docs/CONFIG.md".into(),
    };
    Problem { key, origin, what: "there is no such setting".into(), remedy }
}

/// Ordered by name, so that problems come in the same order each time.
fn sorted(map: Map<String, Value>) -> BTreeMap<String, Value> {
    map.into_iter().collect()
}

fn flatten(map: Map<String, Value>, above: &str, given: &mut Merged) {
    for (name, value) in map {
        let full = if above.is_empty() { name } else { format!("{above}.{name}") };
        let origin = Origin::decode(value.origin());
        match (keys::place(&full), value.kind) {
            (Place::Section | Place::Either | Place::Open, ValueKind::Table(table)) => {
                flatten(table, &full, given);
            }
            (_, kind) => {
                given.insert(full, (kind, origin));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_parsers_snippet_is_dropped_and_its_words_stay() {
        let error = concat!(
            "TOML parse error at line 2, column 7\n  |\n2 | url = \"postgres://u:pw@db\n",
            "  |       ^\ninvalid basic string\n"
        );
        assert_eq!(
            without_snippet(error),
            "TOML parse error at line 2, column 7: invalid basic string"
        );
    }

    /// As in /tmp, where anybody can put one.
    #[test]
    fn a_settings_file_that_others_may_write_is_read_only_where_it_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("outbox-relay.toml");
        std::fs::write(&path, "name = 'mine'").expect("written");
        let read = |explicit| super::read(&path, explicit).map_err(|problem| problem.to_string());
        let set = |mode| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))
                .expect("its mode is set");
        };
        set(0o644);
        assert_eq!(read(false).as_deref(), Ok("name = 'mine'"));
        set(0o646);
        let refused = read(false).expect_err("anybody's");
        assert!(refused.contains("name it with --config"), "{refused}");
        assert_eq!(read(true).as_deref(), Ok("name = 'mine'"));
        for (us, owner, own) in
            [(0, 0, true), (7, 7, true), (7, 0, true), (7, 8, false), (0, 1, false)]
        {
            assert_eq!(is_own((owner, 0o644), us), own, "{owner}'s for {us}");
            assert!(!is_own((owner, 0o646), us), "anybody's");
        }
    }
}
