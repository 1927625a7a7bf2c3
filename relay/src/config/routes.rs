//! Several relays in one process: each table `[routes.<r>]` is the settings of one.
//!
//! A route is a whole relay, with a name, a slot and a sink of its own. What its table does not say it takes from the
//! settings above it; but if it names a kind of sink, nothing of `[sink]` is its own, since that is another one's.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Config, Kind, Purpose,
    keys::{ROUTES, section},
    layers::Merged,
    problem::{Origin, Problem},
    reader::Reader,
    route::Route,
    written::Written,
};
use crate::core::progress::TOPICS_BYTES_MAX;

const TOPICS_EXAMPLE: &str = "[\"orders.*\"]";

/// The settings without the routes' tables, and those of each route, by name.
fn split(merged: Merged) -> (Merged, Vec<(Route, Merged)>) {
    let mut base = Merged::new();
    let mut tables: BTreeMap<String, Merged> = BTreeMap::new();
    for (key, value) in merged {
        let of_route = key.strip_prefix("routes.").and_then(|rest| rest.split_once('.'));
        match of_route {
            Some((route, own)) => {
                tables.entry(route.to_owned()).or_default().insert(own.to_owned(), value);
            }
            None => {
                base.insert(key, value);
            }
        }
    }
    let given = |(name, table): (String, Merged)| {
        let own: BTreeSet<String> = table.keys().cloned().collect();
        let has_sink = own.contains("sink.kind");
        let mut merged = base.clone();
        merged.retain(|key, _| !(has_sink && section(key) == "sink"));
        merged.extend(table);
        (Route::new(name, own), merged)
    };
    let routes = tables.into_iter().map(given).collect();
    (base, routes)
}

/// Each relay's settings: one, or one for each route.
pub(super) fn read(merged: Merged, purpose: Purpose, problems: &mut Vec<Problem>) -> Vec<Config> {
    let (base, routes) = split(merged);
    if routes.is_empty() {
        return vec![relay(base, None, purpose, problems)];
    }
    let mut configs = Vec::new();
    for (mut route, merged) in routes {
        let mut found = Vec::new();
        own_settings(&mut route, &merged, problems);
        let full = |key: &str| route.full(key);
        let config = relay(merged, Some(route.clone()), purpose, &mut found);
        configs.push(config);
        for problem in found {
            let problem = Problem { key: full(&problem.key), ..problem };
            // What is above the routes is wrong for each of them, and is told once.
            if !problems.contains(&problem) {
                problems.push(problem);
            }
        }
    }
    told_apart(&configs, problems);
    beside(&mut configs);
    configs
}

/// The settings above the routes, for a command that needs no relay of its own.
pub(super) fn base(merged: Merged, purpose: Purpose, problems: &mut Vec<Problem>) -> Config {
    relay(split(merged).0, None, purpose, problems)
}

fn relay(
    merged: Merged,
    route: Option<Route>,
    purpose: Purpose,
    problems: &mut Vec<Problem>,
) -> Config {
    let origins = merged.iter().map(|(key, (_, origin))| (key.clone(), origin.clone())).collect();
    let written = Written::read(merged, problems);
    super::check::check(written, route, purpose, origins, problems)
}

/// Reads what only a route has.
fn own_settings(route: &mut Route, table: &Merged, problems: &mut Vec<Problem>) {
    let name = &route.name;
    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    if name.is_empty() || !name.bytes().all(is_plain) {
        problems.push(Problem {
            key: format!("{ROUTES}.{name}"),
            origin: Origin::Default,
            what: format!("{name:?} is not valid as a route's name"),
            remedy: "use a-z, 0-9 and _: the relay's name is made of it".into(),
        });
    }
    let key = |own: &str| format!("{ROUTES}.{name}.{own}");
    let mut merged = Merged::new();
    for own in ["topics", "required"] {
        merged.extend(table.get(own).map(|value| (key(own), value.clone())));
    }
    let mut reader = Reader { merged, problems };
    let topics = reader.list(&key("topics"), TOPICS_EXAMPLE);
    let required = reader.flag(&key("required"), "true or false");
    if let Some(topics) = topics.as_ref()
        && (topics.value.is_empty() || topics.value.iter().any(|pattern| pattern.is_empty()))
    {
        problems.push(Problem {
            key: key("topics"),
            origin: topics.origin.clone(),
            what: "takes no topic".into(),
            remedy: format!(
                "write patterns, such as {TOPICS_EXAMPLE}, or leave it out to take all"
            ),
        });
    }
    let bytes = topics.iter().flat_map(|it| &it.value).map(String::len).sum::<usize>();
    if let Some(topics) = topics.as_ref().filter(|_| bytes > TOPICS_BYTES_MAX) {
        problems.push(Problem {
            key: key("topics"),
            origin: topics.origin.clone(),
            what: format!(
                "has {bytes} bytes of patterns, and progress has room for {TOPICS_BYTES_MAX}"
            ),
            remedy: "write fewer patterns, with * in them".into(),
        });
    }
    route.topics = topics.map(|topics| topics.value);
    route.required = required.is_some_and(|required| required.value);
}

/// Two relays share neither name nor slot nor file.
fn told_apart(configs: &[Config], problems: &mut Vec<Problem>) {
    for (at, config) in configs.iter().enumerate() {
        let route = config.route.as_ref().map_or("", |route| &route.name);
        let mut twice = |own: &str, what: String, remedy: &str| {
            let key = format!("{ROUTES}.{route}.{own}");
            problems.push(Problem { key, origin: Origin::Default, what, remedy: remedy.into() });
        };
        for other in configs.iter().take(at) {
            let of = other.route.as_ref().map_or("", |route| &route.name);
            if other.name == config.name {
                let what = format!("is {:?}, as that of route {of} is", config.name);
                twice("name", what, "give each route a name of its own, or none");
            }
            if other.postgres.slot == config.postgres.slot {
                let what = format!("is {:?}, as that of route {of} is", config.postgres.slot);
                twice("postgres.slot", what, "leave it out, or give each route a slot of its own");
            }
            let is_file = |it: &Config| it.sink.kind == Kind::File && it.sink.file_path.is_some();
            if is_file(other) && is_file(config) && other.sink.file_path == config.sink.file_path {
                let what = format!("is the file of route {of}");
                twice("sink.file.path", what, "give each route a file of its own");
            }
        }
    }
}

/// What each route knows of the others.
fn beside(configs: &mut [Config]) {
    let of: Vec<(String, Option<Vec<String>>)> = configs
        .iter()
        .map(|it| (it.name.clone(), it.route.as_ref().and_then(|route| route.topics.clone())))
        .collect();
    for (at, config) in configs.iter_mut().enumerate() {
        let Some(route) = &mut config.route else { continue };
        let others = || of.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, it)| it);
        route.beside = others().map(|(name, _)| name.clone()).collect();
        let patterns: Option<Vec<Vec<String>>> =
            others().map(|(_, topics)| topics.clone()).collect();
        route.elsewhere = patterns.map(|patterns| patterns.concat());
        route.parks_the_rest = at == 0;
    }
}
