//! `docs/HALTS.md` has a line for each place that makes a halt, and none for a place that there is no
//! more; each line begins with the text's words, as the source has them, and names the tests that show it, which
//! are there.

use super::{
    names_tests_that_exist,
    page::{Line, lines, lines_and_places_agree, words_are_printed},
    places::{Places, places},
    sources,
};

const HALTS: &str = include_str!("../../../docs/HALTS.md");

/// What makes the two texts of a halt, or of an error that becomes one.
const MAKERS: &[&str] =
    &["Halt::new(", "::Misconfigured {", "ConnectError::Permanent {", "push(Misfit {"];

/// Lines that name no test.
const UNTRIED: usize = 0;

/// Lines that name unit tests alone: the page says above its tables why.
const UNIT_ALONE: usize = 4;

/// Lines of places that pass on what others say, and have no words of their own.
const WORDLESS: usize = 12;

#[test]
fn every_place_that_makes_a_halt_has_its_line_and_every_line_its_place() {
    let (lines, places) = (lines(HALTS), places(makes));
    lines_and_places_agree("docs/HALTS.md", &lines, &places);
    let makes_none = |line: &&Line| !line.places.iter().all(|place| is_made(&places, place));
    let stale: Vec<_> = lines.iter().filter(makes_none).map(|line| &line.places).collect();
    assert!(stale.is_empty(), "they make no halt: {stale:?}");
    assert!(places.values().filter(|place| place.made > 0).count() > 40, "the sources are read");
}

fn is_made(places: &Places, name: &str) -> bool {
    places.get(name).is_some_and(|place| place.made > 0)
}

#[test]
fn every_line_of_halts_names_tests_that_exist() {
    let (lines, sources) = (lines(HALTS), sources());
    let (untried, tried): (Vec<_>, Vec<_>) = lines.iter().partition(|line| line.tests == "none");
    tried.iter().for_each(|line| names_tests_that_exist(line.tests, &sources));
    let unit = tried.iter().filter(|line| line.is_unit()).count();
    assert_eq!(
        (untried.len(), unit),
        (UNTRIED, UNIT_ALONE),
        "a new halt comes with its test; with a test more, count one less"
    );
}

#[test]
fn every_line_of_halts_begins_with_words_that_its_place_prints() {
    let wordless = words_are_printed(&lines(HALTS), &places(makes));
    assert_eq!(wordless, WORDLESS, "a line begins with the halt's own words");
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

fn makes(line: &str) -> bool {
    MAKERS.iter().any(|maker| {
        let Some((_, after)) = line.split_once(maker) else { return false };
        *maker == "Halt::new(" || !["=>", "..", " = "].iter().any(|sign| after.contains(sign))
    })
}
