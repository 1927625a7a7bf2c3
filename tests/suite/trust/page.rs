//! A page of what the relay says, in tables: each line begins with the words that are printed, names the tests that
//! show it, and ends with the places in `relay/src` that print it.

use super::places::{Places, absent, pieces};

/// The fewest characters in one piece that a person can search the page for.
const PIECE_MIN: usize = 8;

/// The cells that are looked at.
pub(super) struct Line {
    pub(super) says: &'static str,
    pub(super) tests: &'static str,
    pub(super) places: Vec<&'static str>,
}

impl Line {
    /// Whether no more than unit tests show it.
    pub(super) fn is_unit(&self) -> bool {
        self.tests.starts_with("unit: ")
    }
}

pub(super) fn lines(page: &'static str) -> Vec<Line> {
    let rows = page.lines().filter(|line| line.starts_with("| "));
    rows.filter(|line| !line.starts_with("| it says "))
        .map(|line| {
            let cells: Vec<&'static str> =
                line.trim_matches('|').split(" | ").map(str::trim).collect();
            let &[says, data, remedy, tests, place] = cells.as_slice() else {
                panic!("a line has five cells: {line}")
            };
            let is_whole = [says, data, remedy, tests, place].iter().all(|cell| !cell.is_empty());
            assert!(is_whole, "a cell is empty: {line}");
            Line { says, tests, places: place.split('`').skip(1).step_by(2).collect() }
        })
        .collect()
}

/// Checks that each line begins with words that its places print, and that whatever else it quotes is printed
/// somewhere. Returns how many lines have no words of their own.
///
/// # Panics
/// When one does not.
pub(super) fn words_are_printed(lines: &[Line], printed: &Places) -> usize {
    let everything: Vec<&str> = printed.values().map(|place| place.text.as_str()).collect();
    let everything = everything.join(" ");
    let mut wordless = 0;
    for Line { says, places, .. } in lines {
        let own = places.iter().filter_map(|place| printed.get(*place));
        let own = own.map(|place| place.text.as_str()).collect::<Vec<_>>().join(" ");
        let has_words = says.starts_with('`');
        assert!(has_words || says.starts_with('('), "{places:?}: {says}");
        wordless += usize::from(!has_words);
        for (n, text) in says.split('`').skip(1).step_by(2).enumerate() {
            let is_own = has_words && n == 0;
            // What has no space is a name of something, and no text.
            if is_own || text.contains(' ') {
                let source = if is_own { own.as_str() } else { everything.as_str() };
                assert_eq!(absent(text, source), None, "{places:?} does not say: {text}");
            }
            let longest = pieces(text).map(|piece| piece.chars().count()).max();
            assert!(!is_own || longest >= Some(PIECE_MIN), "too short to be found: {text}");
        }
    }
    wordless
}

/// Checks that there are as many lines for a place as it makes states, and none for a place that is not there.
///
/// # Panics
/// When that is not so.
pub(super) fn lines_and_places_agree(page: &str, lines: &[Line], printed: &Places) {
    let told = |place: &str| {
        lines.iter().flat_map(|line| &line.places).filter(|named| **named == place).count()
    };
    let made = printed.iter().filter(|(_, place)| place.made > 0);
    let unlisted: Vec<_> = made
        .filter(|(name, place)| told(name) != place.made)
        .map(|(name, place)| format!("{name} ×{}, lines {}", place.made, told(name)))
        .collect();
    let named = lines.iter().flat_map(|line| &line.places);
    let stale: Vec<_> = named.filter(|place| !printed.contains_key(**place)).collect();
    assert!(
        unlisted.is_empty() && stale.is_empty(),
        "in relay/src: {unlisted:?}; in {page}: {stale:?}"
    );
}
