//! `docs/RETRIES.md` has a line for each place that makes a state which the relay tries to outlast, as `docs/HALTS.md`
//! has for halts.

use super::{
    names_tests_that_exist,
    page::{lines, lines_and_places_agree, words_are_printed},
    places::places,
    sources,
};

const RETRIES: &str = include_str!("../../../docs/RETRIES.md");

/// What makes such a state: the attempt's end, the sinks' "not now", and what says that it is tried again.
const MAKERS: &[&str] = &["Ended::retry(", "unavailable(", "Phase::Retrying {"];

/// Lines that name no test.
const UNTRIED: usize = 0;

/// Lines that name unit tests alone.
const UNIT_ALONE: usize = 0;

/// Lines of places that pass on what others say.
const WORDLESS: usize = 13;

#[test]
fn every_place_that_tries_again_has_its_line_and_every_line_its_place() {
    let places = places(makes);
    lines_and_places_agree("docs/RETRIES.md", &lines(RETRIES), &places);
    assert!(places.values().filter(|place| place.made > 0).count() > 40, "the sources are read");
}

#[test]
fn every_line_of_retries_names_tests_that_exist() {
    let (lines, sources) = (lines(RETRIES), sources());
    let (untried, tried): (Vec<_>, Vec<_>) = lines.iter().partition(|line| line.tests == "none");
    tried.iter().for_each(|line| names_tests_that_exist(line.tests, &sources));
    let unit = tried.iter().filter(|line| line.is_unit()).count();
    assert_eq!(
        (untried.len(), unit),
        (UNTRIED, UNIT_ALONE),
        "a new one comes with its test; with a test more, count one less"
    );
}

#[test]
fn every_line_of_retries_begins_with_words_that_its_place_prints() {
    let wordless = words_are_printed(&lines(RETRIES), &places(makes));
    assert_eq!(wordless, WORDLESS, "a line begins with the words that are printed");
}

#[test]
fn a_call_is_told_from_a_definition_and_a_pattern() {
    for made in [
        "return Err(unavailable(doing, error));",
        "Ended::retry(Cause::Broker, doing, error)",
        "Kind::StorageFull => unavailable(",
    ] {
        assert!(makes(made), "{made}");
    }
    for other in [
        "pub(crate) fn unavailable(doing: impl Into<String>, source: impl Into<BoxError>) -> SinkError {",
        "Phase::Retrying { next_attempt_in, .. } => {",
        "Phase::Retrying { .. } => state.trouble = Some(phase.detail()),",
        "if matches!(phase, Phase::Retrying { .. } | Phase::Halted { .. }) {",
    ] {
        assert!(!makes(other), "{other}");
    }
}

fn makes(line: &str) -> bool {
    MAKERS.iter().any(|maker| {
        let Some((before, after)) = line.split_once(maker) else { return false };
        let is_pattern = ["=>", "..", " = "].iter().any(|sign| after.contains(sign));
        !is_pattern && !before.ends_with("fn ")
    })
}
