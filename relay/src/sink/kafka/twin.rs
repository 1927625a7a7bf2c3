//! Topics whose names differ in `.` and `_` alone. Brokers name metrics after topics with `_` for `.`, and
//! refuse to create one beside another of the same name there.

use std::{collections::HashMap, time::Duration};

use super::lookup::{Found, Lookup, Seen};

/// So many of a name's separators may each be the other one.
const MIXED_MAX: usize = 4;
/// Names that are looked at in one go.
const NAMES_MAX: usize = 20;

/// For each of `names`, which don't exist, the topic that is in the way of its creation. Empty where the
/// brokers don't say.
pub(super) fn in_the_way<'n>(
    names: &[&'n str],
    lookup: &Lookup,
    timeout: Duration,
) -> HashMap<&'n str, String> {
    let mut found = HashMap::new();
    for name in names.iter().take(NAMES_MAX) {
        let candidates = candidates(name);
        if candidates.is_empty() {
            continue;
        }
        let asked: Vec<&str> = candidates.iter().map(String::as_str).collect();
        let Ok(seen) = lookup.survey(&asked, timeout) else { return found };
        let there = |name: &String| {
            let found =
                |seen: &Seen| matches!(seen.found, Some(Found::Partitions(_) | Found::Internal));
            seen.get(name.as_str()).is_some_and(found)
        };
        if let Some(twin) = candidates.iter().find(|candidate| there(candidate)) {
            found.insert(*name, twin.clone());
        }
    }
    found
}

/// The names that collide with this one: all of them where it has few separators, else those of one kind.
fn candidates(name: &str) -> Vec<String> {
    let places: Vec<usize> = name.match_indices(['.', '_']).map(|(at, _)| at).collect();
    let mut all: Vec<String> = if places.len() > MIXED_MAX {
        vec![name.replace('.', "_"), name.replace('_', ".")]
    } else {
        (0..1_usize << places.len()).map(|mix| mixed(name, &places, mix)).collect()
    };
    all.retain(|candidate| candidate != name);
    all
}

/// A dot at those of the places whose bits are set.
fn mixed(name: &str, places: &[usize], mix: usize) -> String {
    let separator = |at: usize| {
        let place = places.iter().position(|place| *place == at)?;
        Some(if mix >> place & 1 == 1 { '.' } else { '_' })
    };
    name.char_indices().map(|(at, letter)| separator(at).unwrap_or(letter)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_differ_in_separators_alone_are_looked_for() {
        let sorted = |name| {
            let mut found = candidates(name);
            found.sort();
            found
        };
        assert_eq!(sorted("orders"), [""; 0]);
        assert_eq!(sorted("shop.orders"), ["shop_orders"]);
        assert_eq!(sorted("a.b_c"), ["a.b.c", "a_b.c", "a_b_c"]);
        assert_eq!(sorted("a.b.c.d.e_f"), ["a.b.c.d.e.f", "a_b_c_d_e_f"]);
    }
}
